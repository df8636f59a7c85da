package virtio

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Doorbell is what a driver's notification rings and the goroutine of a queue
// waits for: an eventfd, so that KVM can ring it without the vCPU leaving to
// user space. It waits in the runtime's poller, so an idle queue costs no
// thread.
type Doorbell struct {
	fd  int
	f   *os.File
	raw syscall.RawConn
}

// NewDoorbell makes a doorbell, which the caller closes.
func NewDoorbell() (*Doorbell, error) { return newDoorbell(unix.EFD_NONBLOCK) }

// newDoorbell makes one with flags of eventfd: without EFD_NONBLOCK it is not in the
// poller.
func newDoorbell(flags int) (*Doorbell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|flags)
	if err != nil {
		return nil, fmt.Errorf("virtio: eventfd for a queue: %w", err)
	}
	f := os.NewFile(uintptr(fd), "doorbell")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("virtio: eventfd for a queue: %w", err), f.Close())
	}
	return &Doorbell{fd: fd, f: f, raw: raw}, nil
}

// FD is the eventfd, for an ioeventfd. It is valid until Close.
func (d *Doorbell) FD() int { return d.fd }

// Ring wakes who waits, or lets the next Wait return at once. It may be called
// from any goroutine and does not block: only 2^64-2 rings would.
func (d *Doorbell) Ring() { _ = d.raw.Control(ringEventfd) }

// wait blocks until the bell was rung since the last wait, and reports false
// once the bell is closed.
func (d *Doorbell) wait() bool { return d.raw.Read(takeEventfd) == nil }

// Close ends every wait, now and later.
func (d *Doorbell) Close() error { return d.f.Close() }
