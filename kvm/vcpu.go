package kvm

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// States of VCPU.state.
const (
	vcpuIdle int32 = iota
	vcpuRunning
	vcpuClosed
)

// VCPU is one virtual CPU and its run page. Except for SetImmediateExit its
// methods belong to one goroutine, which is locked to its thread: KVM binds a
// vCPU to the thread that runs it, and moving it costs.
type VCPU struct {
	vm    *VM
	fd    int
	id    int
	state atomic.Int32

	last Reason // what Run returned; the decoders answer for that alone
	run  runView
	ring *coalescedRing // nil if this KVM has none

	kick   sync.Mutex // SetImmediateExit against the unmapping in Close
	mapped bool
}

// mpState mirrors struct kvm_mp_state.
type mpState struct {
	State uint32
}

// CreateVCPU creates a vCPU (KVM_CREATE_VCPU) and maps its run page. On x86 the id
// is its initial APIC id; it must be below CapMaxVCPUID. The caller closes it.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	op := fmt.Sprintf("KVM_CREATE_VCPU %d", id)
	if id < 0 {
		return nil, fmt.Errorf("kvm: %s: %w", op, ErrInvalid)
	}
	fd, err := ioctlValue(vm.fd, kvmCreateVCPU, uintptr(id))
	if err != nil {
		return nil, opError(op, err)
	}
	mem, err := unix.Mmap(fd, 0, vm.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, opError(op+": mapping its run page", err)
	}
	c := &VCPU{vm: vm, fd: fd, id: id, last: ReasonUnknown, run: newRunView(mem), mapped: true}
	if page, err := vm.Check(CapCoalescedMMIO); err == nil {
		c.ring = coalescedAt(mem, page)
	}
	return c, nil
}

// Close unmaps the run page and closes the vCPU. Data that IO or MMIO returned
// must not be touched any more. During Run it does nothing and returns ErrBusy;
// a second Close does nothing.
func (c *VCPU) Close() error {
	if !c.state.CompareAndSwap(vcpuIdle, vcpuClosed) {
		if c.state.Load() == vcpuRunning {
			return fmt.Errorf("kvm: closing vCPU %d: %w", c.id, ErrBusy)
		}
		return nil
	}
	c.kick.Lock()
	c.mapped = false
	err := unix.Munmap(c.run.mem)
	c.run, c.ring = runView{}, nil
	c.kick.Unlock()
	c.last = ReasonUnknown
	if cerr := unix.Close(c.fd); err == nil {
		err = cerr
	}
	c.fd = -1
	return opError(fmt.Sprintf("closing vCPU %d", c.id), err)
}

// ID returns the number that CreateVCPU got.
func (c *VCPU) ID() int { return c.id }

// Run enters the guest (KVM_RUN) and returns why it came back. The access that
// the exit before asked for is completed first, with the data that the caller
// stored for a read.
//
// EINTR and EAGAIN are the reasons ReasonInterrupted and ReasonAgain, with
// nothing to handle: the caller looks whether it should stop, and runs again.
// Go's own signals interrupt KVM_RUN now and then. Other errors are the host's;
// the guest's failures are reasons too. Run does not allocate.
func (c *VCPU) Run() (Reason, error) {
	if !c.state.CompareAndSwap(vcpuIdle, vcpuRunning) {
		if c.state.Load() == vcpuClosed {
			return ReasonUnknown, opError("KVM_RUN", ErrClosed)
		}
		return ReasonUnknown, opError("KVM_RUN", ErrBusy)
	}
	// Syscall, not RawSyscall: the guest may run for seconds, and the
	// scheduler must be able to take this thread's P.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), kvmRun, 0)
	reason, err := ReasonUnknown, error(nil)
	switch errno {
	case 0:
		reason = Reason(c.run.page.ExitReason)
	case unix.EINTR:
		reason = ReasonInterrupted
	case unix.EAGAIN:
		reason = ReasonAgain
	default:
		err = c.runError(errno)
	}
	c.last = reason
	c.state.Store(vcpuIdle)
	return reason, err
}

func (c *VCPU) runError(errno unix.Errno) error {
	if (errno == unix.EFAULT || errno == unix.EHWPOISON) && Reason(c.run.page.ExitReason) == ReasonMemoryFault {
		f := c.run.memoryFault()
		return &MemoryFaultError{GPA: f.GPA, Size: f.Size, Flags: f.Flags, Err: errno}
	}
	return opError(fmt.Sprintf("KVM_RUN on vCPU %d", c.id), errno)
}

// SetImmediateExit tells the next KVM_RUN to return as soon as it has completed
// the access in flight, with ReasonInterrupted (true), or to enter the guest
// again (false). It does not stop a guest that is inside already: for that, send
// the thread a signal after it. It may be called from any goroutine at any time;
// after Close it does nothing. It needs CapImmediateExit.
func (c *VCPU) SetImmediateExit(on bool) {
	c.kick.Lock()
	if c.mapped {
		c.run.setImmediateExit(on)
	}
	c.kick.Unlock()
}

// IO decodes a ReasonIO exit: the guest accesses a port count times with size (1,
// 2 or 4) bytes each. data holds all of them in order: for out what it writes,
// otherwise what the caller must fill before the next Run. data points into the
// run page and is valid until then. After any other reason, and where the kernel's
// numbers do not fit the mapping, count is 0 and data nil.
func (c *VCPU) IO() (port uint16, out bool, size, count int, data []byte) {
	if c.last != ReasonIO {
		return 0, false, 0, 0, nil
	}
	return c.run.io()
}

// MMIO decodes a ReasonMMIO exit: the guest accesses len(data) bytes, 1 to 8 and
// not always a power of two, at a guest-physical address without memory. data is
// what it writes, otherwise what the caller must fill before the next Run. data
// points into the run page and is valid until then. After any other reason data
// is nil.
func (c *VCPU) MMIO() (addr uint64, write bool, data []byte) {
	if c.last != ReasonMMIO {
		return 0, false, nil
	}
	return c.run.mmio()
}

// InternalError decodes a ReasonInternalError exit.
func (c *VCPU) InternalError() InternalError {
	if c.last != ReasonInternalError {
		return InternalError{}
	}
	return c.run.internalError()
}

// FailEntry decodes a ReasonFailEntry exit.
func (c *VCPU) FailEntry() FailEntry {
	if c.last != ReasonFailEntry {
		return FailEntry{}
	}
	return c.run.failEntry()
}

// SystemEvent decodes a ReasonSystemEvent exit.
func (c *VCPU) SystemEvent() SystemEvent {
	if c.last != ReasonSystemEvent {
		return SystemEvent{}
	}
	return c.run.systemEvent()
}

// MPState is what a vCPU does, KVM_MP_STATE_*.
type MPState uint32

// The states that x86 has.
const (
	MPRunnable      MPState = 0
	MPUninitialized MPState = 1 // an AP that waits for INIT
	MPInitReceived  MPState = 2 // waits for SIPI
	MPHalted        MPState = 3
	MPSIPIReceived  MPState = 4
)

// MPState reads the state (KVM_GET_MP_STATE). It needs an in-kernel irqchip.
func (c *VCPU) MPState() (MPState, error) {
	var arg mpState
	_, err := ioctlStruct(c.fd, kvmGetMPState, &arg)
	return MPState(arg.State), capError("KVM_GET_MP_STATE", CapMPState, c.vm.Check, err)
}

// SetMPState writes the state (KVM_SET_MP_STATE). Only MPRunnable is possible
// without an in-kernel irqchip.
func (c *VCPU) SetMPState(s MPState) error {
	arg := mpState{State: uint32(s)}
	_, err := ioctlStruct(c.fd, kvmSetMPState, &arg)
	return capError("KVM_SET_MP_STATE", CapMPState, c.vm.Check, err)
}
