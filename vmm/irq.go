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

// Pulse raises the interrupt once.
func (l *irqLine) Pulse() { kvm.Signal(l.fd) }

func (l *irqLine) close() error { return unix.Close(l.fd) }
