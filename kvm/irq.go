package kvm

import "fmt"

// Interrupt controllers of the in-kernel irqchip, for IRQRoute and IRQChip.
const (
	ChipPICMaster = 0
	ChipPICSlave  = 1
	ChipIOAPIC    = 2
)

// Flags of an IRQFD.
const (
	IRQFDDeassign = 1 << 0 // take the binding away
	IRQFDResample = 1 << 1 // level-triggered: ResampleFD is signalled at EOI; needs CapIRQFDResample
)

// Flags of an IOEventFD.
const (
	IOEventFDDatamatch = 1 << 0 // only a write of DataMatch counts
	IOEventFDPIO       = 1 << 1 // Addr is a port
	IOEventFDDeassign  = 1 << 2 // take the binding away
)

// irqLevel mirrors struct kvm_irq_level.
type irqLevel struct {
	IRQ   uint32
	Level uint32
}

// irqFD mirrors struct kvm_irqfd.
type irqFD struct {
	FD         uint32
	GSI        uint32
	Flags      uint32
	ResampleFD uint32
	_          [16]uint8
}

// ioEventFD mirrors struct kvm_ioeventfd.
type ioEventFD struct {
	DataMatch uint64
	Addr      uint64
	Len       uint32
	FD        int32
	Flags     uint32
	_         [36]uint8
}

// msi mirrors struct kvm_msi.
type msi struct {
	AddressLo uint32
	AddressHi uint32
	Data      uint32
	Flags     uint32
	DevID     uint32
	_         [12]uint8
}

// irqRoutingHead mirrors struct kvm_irq_routing up to its entries.
type irqRoutingHead struct {
	NR    uint32
	Flags uint32
}

// irqRoutingEntry mirrors struct kvm_irq_routing_entry; U is its union.
type irqRoutingEntry struct {
	GSI   uint32
	Type  uint32
	Flags uint32
	_     uint32
	U     [8]uint32
}

// Values of irqRoutingEntry.Type.
const (
	irqRoutingIRQChip = 1
	irqRoutingMSI     = 2
)

// IRQLine sets the level of an interrupt line of the in-kernel irqchip
// (KVM_IRQ_LINE); an edge is true, then false. It does not allocate.
func (vm *VM) IRQLine(gsi uint32, level bool) error {
	arg := irqLevel{IRQ: gsi}
	if level {
		arg.Level = 1
	}
	if _, err := ioctlStruct(vm.fd, kvmIRQLine, &arg); err != nil {
		return opError("KVM_IRQ_LINE", err)
	}
	return nil
}

// MSI is a message-signalled interrupt: a write of Data to Address in the sense of
// the Intel SDM, volume 3, "Message Signalled Interrupts".
type MSI struct {
	Address uint64
	Data    uint32
}

// SignalMSI delivers an MSI (KVM_SIGNAL_MSI). delivered is false if the guest
// could not take it, because no APIC matches or it is disabled. It does not
// allocate.
func (vm *VM) SignalMSI(m MSI) (delivered bool, err error) {
	arg := msi{AddressLo: uint32(m.Address), AddressHi: uint32(m.Address >> 32), Data: m.Data}
	n, err := ioctlStruct(vm.fd, kvmSignalMSI, &arg)
	if err != nil {
		return false, capError("KVM_SIGNAL_MSI", CapSignalMSI, vm.Check, err)
	}
	return n > 0, nil
}

// IRQFD binds an eventfd to an interrupt: a write to FD injects GSI, without a
// system call to KVM.
type IRQFD struct {
	FD         int // an eventfd, which stays the caller's
	GSI        uint32
	Flags      uint32
	ResampleFD int // an eventfd; only with IRQFDResample
}

// AssignIRQFD makes the binding, or takes it away if Flags has IRQFDDeassign
// (KVM_IRQFD). KVM holds its own reference: FD may be closed while it is bound,
// and closing the last reference to the eventfd unbinds it. An eventfd that is
// bound already gives unix.EBUSY.
func (vm *VM) AssignIRQFD(f IRQFD) error {
	arg := irqFD{FD: uint32(f.FD), GSI: f.GSI, Flags: f.Flags}
	need := CapIRQFD
	if f.Flags&IRQFDResample != 0 {
		arg.ResampleFD = uint32(f.ResampleFD)
		need = CapIRQFDResample
	}
	if _, err := ioctlStruct(vm.fd, kvmIRQFD, &arg); err != nil {
		return capError(fmt.Sprintf("KVM_IRQFD: fd %d, GSI %d", f.FD, f.GSI), need, vm.Check, err)
	}
	return nil
}

// DeassignIRQFD takes away the binding of an eventfd to a GSI. When it returns,
// no injection by it is under way.
func (vm *VM) DeassignIRQFD(fd int, gsi uint32) error {
	return vm.AssignIRQFD(IRQFD{FD: fd, GSI: gsi, Flags: IRQFDDeassign})
}

// IOEventFD binds a guest's writes to an eventfd: the write signals FD, and the
// vCPU goes on without an exit to user space.
type IOEventFD struct {
	Addr      uint64 // guest-physical, or a port with IOEventFDPIO
	Len       uint32 // 1, 2, 4 or 8 bytes; 0 for any length, which needs CapIOEventFDAnyLength
	FD        int    // an eventfd, which stays the caller's
	Flags     uint32
	DataMatch uint64 // only with IOEventFDDatamatch
}

// AssignIOEventFD makes the binding, or takes it away if Flags has
// IOEventFDDeassign, with all the other fields as they were (KVM_IOEVENTFD). A
// binding that collides with another gives unix.EEXIST.
func (vm *VM) AssignIOEventFD(e IOEventFD) error {
	arg := ioEventFD{DataMatch: e.DataMatch, Addr: e.Addr, Len: e.Len, FD: int32(e.FD), Flags: e.Flags}
	need := CapIOEventFD
	if e.Len == 0 {
		need = CapIOEventFDAnyLength
	}
	if _, err := ioctlStruct(vm.fd, kvmIOEventFD, &arg); err != nil {
		return capError(fmt.Sprintf("KVM_IOEVENTFD: fd %d, address %#x, %d bytes", e.FD, e.Addr, e.Len), need, vm.Check, err)
	}
	return nil
}

// DeassignIOEventFD takes away a binding; e is what AssignIOEventFD got.
func (vm *VM) DeassignIOEventFD(e IOEventFD) error {
	e.Flags |= IOEventFDDeassign
	return vm.AssignIOEventFD(e)
}

// IRQRoute says where a GSI goes: to a pin of an in-kernel interrupt
// controller, or out as an MSI. Make one with ChipRoute or MSIRoute.
type IRQRoute struct {
	GSI   uint32
	IsMSI bool
	Chip  uint32 // ChipPICMaster, ChipPICSlave or ChipIOAPIC
	Pin   uint32
	MSI   MSI
}

// ChipRoute is a route to a pin of an interrupt controller. A GSI below 16
// usually has two, to a PIC and to the IOAPIC.
func ChipRoute(gsi, chip, pin uint32) IRQRoute {
	return IRQRoute{GSI: gsi, Chip: chip, Pin: pin}
}

// MSIRoute is a route to an MSI.
func MSIRoute(gsi uint32, m MSI) IRQRoute {
	return IRQRoute{GSI: gsi, IsMSI: true, MSI: m}
}

func (r IRQRoute) entry() irqRoutingEntry {
	e := irqRoutingEntry{GSI: r.GSI}
	if r.IsMSI {
		e.Type = irqRoutingMSI
		e.U[0], e.U[1], e.U[2] = uint32(r.MSI.Address), uint32(r.MSI.Address>>32), r.MSI.Data
	} else {
		e.Type = irqRoutingIRQChip
		e.U[0], e.U[1] = r.Chip, r.Pin
	}
	return e
}

// SetGSIRouting replaces the whole routing table (KVM_SET_GSI_ROUTING),
// including the routes that CreateIRQChip made: repeat those that are to stay.
func (vm *VM) SetGSIRouting(routes []IRQRoute) error {
	head, entries := newFlex[irqRoutingHead, irqRoutingEntry](len(routes))
	head.NR = uint32(len(routes))
	for i, r := range routes {
		entries[i] = r.entry()
	}
	_, err := ioctlStruct(vm.fd, kvmSetGSIRouting, head)
	return capError(fmt.Sprintf("KVM_SET_GSI_ROUTING: %d routes", len(routes)), CapIRQRouting, vm.Check, err)
}
