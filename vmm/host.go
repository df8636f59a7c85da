package vmm

import (
	"errors"
	"fmt"

	"github.com/vole-vmm/vole/kvm"
)

// requiredCaps are what no machine here can do without.
var requiredCaps = []kvm.Cap{
	kvm.CapUserMemory, kvm.CapIRQChip, kvm.CapExtCPUID, kvm.CapMPState, kvm.CapIRQFD,
	kvm.CapIOEventFD, kvm.CapIRQRouting, kvm.CapImmediateExit, kvm.CapSetTSSAddr, kvm.CapSetIdentityMapAddr,
}

// host is an open /dev/kvm and what was asked of it.
type host struct {
	sys *kvm.System
	cpu hostCPU
	// anyLengthBells: an ioeventfd may be for writes of any width.
	anyLengthBells bool
}

func (h *host) close() error { return h.sys.Close() }

// openKVM opens /dev/kvm and asks it for what every machine needs.
func openKVM() (*host, error) {
	sys, err := kvm.Open("")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKVM, err)
	}
	h := &host{sys: sys}
	if err := h.ask(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrKVM, err), sys.Close())
	}
	return h, nil
}

func (h *host) ask() error {
	if err := h.sys.Require(requiredCaps...); err != nil {
		return err
	}
	var err error
	if h.cpu.supported, err = h.sys.SupportedCPUID(); err != nil {
		return err
	}
	n, err := h.sys.Check(kvm.CapIOEventFDAnyLength)
	if err != nil {
		return err
	}
	h.anyLengthBells = n > 0
	n, err = h.sys.Check(kvm.CapTSCDeadlineTimer)
	h.cpu.tscDeadline = n > 0
	return err
}
