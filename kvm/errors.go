package kvm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotKVM: the opened file does not answer as KVM's device does.
	ErrNotKVM = errors.New("not a KVM device")

	// ErrVersion: the device speaks another API version than 12, the only one
	// there has been since Linux 2.6.22.
	ErrVersion = errors.New("unsupported KVM API version")

	// ErrBusy: the vCPU is inside Run.
	ErrBusy = errors.New("the vCPU is running")

	// ErrClosed: the handle was closed before. It is os.ErrClosed.
	ErrClosed = os.ErrClosed

	// ErrInvalid: an argument that the package refuses before any ioctl. It
	// is os.ErrInvalid.
	ErrInvalid = os.ErrInvalid

	// ErrNoGuestClock: the guest has not enabled its KVM clock, so there is
	// nothing to tell it (KVM_KVMCLOCK_CTRL).
	ErrNoGuestClock = errors.New("the guest has no KVM clock enabled")
)

// MissingError reports a capability that this host's KVM does not have.
type MissingError struct {
	Cap Cap
	Op  string // the ioctl that failed for it; empty if it was only asked for
	Err error  // what that ioctl returned; nil if it was only asked for
}

func (e *MissingError) Error() string {
	s := "kvm: "
	if e.Op != "" {
		s += e.Op + ": "
	}
	s += "this host's KVM lacks " + e.Cap.String()
	if since := e.Cap.Since(); since != "" {
		s += " (Linux " + since + " introduced it)"
	}
	return s
}

// Unwrap returns the errno of the ioctl, if there was one.
func (e *MissingError) Unwrap() error { return e.Err }

// MSRError reports the first MSR that KVM refused to read or write.
type MSRError struct {
	Op    string   // KVM_GET_MSRS or KVM_SET_MSRS
	Index uint32   // number of the MSR
	Entry MSREntry // what was to be written; for a read only its Index is meaningful
	Done  int      // how many entries before it were done; Done is also its position
}

func (e *MSRError) Error() string {
	if e.Op == opSetMSRs {
		return fmt.Sprintf("kvm: %s: KVM refused MSR %#x = %#x (entry %d)", e.Op, e.Index, e.Entry.Data, e.Done)
	}
	return fmt.Sprintf("kvm: %s: KVM refused MSR %#x (entry %d)", e.Op, e.Index, e.Done)
}

// MSREntry mirrors struct kvm_msr_entry: the number of an MSR and its value.
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

const (
	opGetMSRs = "KVM_GET_MSRS"
	opSetMSRs = "KVM_SET_MSRS"
)

// opError wraps what an ioctl returned; nil stays nil.
func opError(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("kvm: %s: %w", op, err)
}

// capError is opError for an ioctl that needs c: when the kernel refused it and
// check says that c is not there, that is the error.
func capError(op string, c Cap, check func(Cap) (int, error), err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENXIO),
		errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		if n, cerr := check(c); cerr == nil && n <= 0 {
			return &MissingError{Cap: c, Op: op, Err: err}
		}
	}
	return opError(op, err)
}
