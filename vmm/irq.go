package vmm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/kvm"
)

// irqLine raises one edge on a GSI by its irqfd: one write, no ioctl, from any
// thread.
type irqLine struct {
	fd int
}

// eventOne is what an eventfd counts up by, in the byte order of the host.
var eventOne = [8]byte{1}

// newIRQLine makes a line for gsi. It is closed before the VM's memory goes,
// after the last device that pulses it.
func newIRQLine(vm *kvm.VM, gsi uint32) (*irqLine, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd for interrupt %d: %w", gsi, err)
	}
	if err := vm.AssignIRQFD(kvm.IRQFD{FD: fd, GSI: gsi}); err != nil {
		return nil, errors.Join(fmt.Errorf("irqfd for interrupt %d: %w", gsi, err), unix.Close(fd))
	}
	return &irqLine{fd: fd}, nil
}

// Pulse raises the interrupt once. KVM takes the count away at once, so that
// the write can't block; nothing could be done about another error.
func (l *irqLine) Pulse() {
	_, _ = unix.Write(l.fd, eventOne[:])
}

func (l *irqLine) close() error { return unix.Close(l.fd) }
