package vmm

import (
	"github.com/vole-vmm/vole/kvm"
)

// A kernel reads a register of PCI configuration space by two port accesses:
// it writes the address to CF8 and reads the data at CFC. KVM collects the
// first, which needs no answer, so that only the second one leaves the guest:
// half the exits of probing the bus.

// coalescePCI lets KVM collect the writes to the address register, where it can.
func (m *Machine) coalescePCI() {
	err := m.vm.RegisterCoalesced(kvm.CoalescedZone{Addr: pciPorts, Size: pciAddressSize, PIO: true})
	if err != nil {
		m.log.Debug("KVM does not collect writes to the PCI address register", "error", err)
		return
	}
	m.coalesced = true
}

// catchUp carries out the writes that KVM has collected. It comes before any
// access that depends on them.
func (c *vcpu) catchUp() {
	if c.m.coalesced {
		c.kvm.DrainCoalesced(c.m.collected)
	}
}

// collected carries out one of them.
func (m *Machine) collected(addr uint64, data []byte, pio bool) {
	if pio {
		m.ports.Write(addr, data)
	}
}
