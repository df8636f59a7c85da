package acpi

import "errors"

var (
	// ErrMachine is wrapped by every error about what a Machine says.
	ErrMachine = errors.New("acpi: bad machine description")
	// ErrTooLarge is wrapped when the tables do not fit into the given limit.
	ErrTooLarge = errors.New("acpi: tables too large")
)

const (
	// IOAPICPins is the number of inputs of KVM's IOAPIC. GSIs are pin
	// numbers, so a device's GSI lies in 1 to IOAPICPins-1. 0 and 2 are not
	// to be had: Linux on x86 refuses both as a device's interrupt.
	IOAPICPins = 24
	// MaxCPUs is the most CPUs that Build describes, which is KVM's own limit.
	MaxCPUs = 4096
	// MaxSerial is the most serial ports that Build describes.
	MaxSerial = 4
	// MaxPCIBuses is the most buses of a PCI segment.
	MaxPCIBuses = 256
)

// Machine is what the tables describe. Addresses are guest-physical, sizes in
// bytes, ports are x86 I/O ports. Build keeps no reference to it.
type Machine struct {
	// CPUs in the order in which the guest is to number them, the boot CPU
	// first.
	CPUs []CPU
	// OmitProcessorDevices leaves the ACPI0007 device of each CPU out of the
	// DSDT. Linux takes its CPUs from the MADT and does not miss them; the
	// specification wants them. They are 28 to 32 bytes a CPU.
	OmitProcessorDevices bool

	// LAPICBase is the local APIC page, commonly 0xfee00000.
	LAPICBase uint32
	// IOAPICBase is the IOAPIC page, commonly 0xfec00000.
	IOAPICBase uint32
	// IOAPICID is the IOAPIC's id register.
	IOAPICID uint8
	// Overrides are interrupt source overrides. The devices described here
	// need none.
	Overrides []Override

	// SleepControlPort and SleepStatusPort are the byte registers of ACPI 6.3,
	// section 4.8.3.7. Either both are given or, for a machine that cannot
	// switch itself off, none.
	SleepControlPort, SleepStatusPort uint16
	// ResetPort takes ResetValue to reset the machine; 0 = no reset register.
	ResetPort  uint16
	ResetValue uint8

	// GED is the generic event device, which carries the power button.
	GED GED

	// Serial are 16550A ports, ttyS0 first.
	Serial []Serial
	// RTCPort is the index port of the CMOS RTC (0x70), the data port follows
	// it; 0 = none, and the FADT then says so.
	RTCPort uint16
	// PVPanicPort is the pvpanic port; 0 = none.
	PVPanicPort uint16

	// PCI is the PCI host bridge; nil = none.
	PCI *PCI
	// VirtioMMIO are virtio-mmio register blocks.
	VirtioMMIO []MMIO

	// OEMID (at most 6 printable ASCII characters) and OEMTableID (at most 8)
	// stand in every table's header; empty = "VOLE" and "VOLEVM".
	OEMID, OEMTableID string
}

// CPU is one processor.
type CPU struct {
	// UID is the ACPI processor UID. It is unique, and at most 254 for a CPU
	// whose APICID is below 255, since that CPU's MADT entry has one byte.
	UID uint32
	// APICID is the initial local APIC id, unique. From 255 up the MADT has an
	// x2APIC entry instead of a local APIC entry.
	APICID uint32
}

// Override says that ISA interrupt Source arrives at GSI (ACPI 6.3, section
// 5.2.12.5).
type Override struct {
	// Source is the ISA interrupt, 1 to 15. The timer's 0 cannot be
	// overridden: a hardware-reduced machine has no such timer, and Linux
	// would take the entry for the SCI's.
	Source uint8
	GSI    uint32
	// Level and ActiveLow give trigger mode and polarity; the zero values mean
	// edge-triggered and active high, and are written out as that.
	Level, ActiveLow bool
}

// GED is the generic event device (ACPI 6.3, section 5.6.9).
type GED struct {
	// GSI is the event interrupt; 0 = no event device and no power button.
	GSI uint32
	// Port is a byte that reads the pending events and clears them. Bit 0 is
	// the power button.
	Port uint16
}

// Serial is one 16550A of eight ports.
type Serial struct {
	Port uint16
	// IRQ is the port's GSI.
	IRQ uint8
}

// PCI is a PCI Express host bridge, segment 0, buses 0 to Buses-1, no INTx and
// no I/O window.
type PCI struct {
	// ECAMBase is the enhanced configuration space, 1 MiB a bus, aligned to its
	// size rounded up to a power of two, wholly below 4 GiB (Linux mistrusts
	// one above).
	ECAMBase uint64
	// Buses is 1 to MaxPCIBuses.
	Buses int
	// Window32 is where 32-bit BARs may be placed, below 4 GiB.
	Window32 Window
	// Window64 is where 64-bit BARs may be placed; Size 0 = no such window.
	Window64 Window
}

// Window is a range of addresses, page-aligned.
type Window struct{ Base, Size uint64 }

// MMIO is one virtio-mmio device: its page-aligned registers and its interrupt.
type MMIO struct {
	Base, Size uint64
	GSI        uint32
}
