package kvm

import (
	"encoding/binary"
	"fmt"
)

// PITSpeakerDummy in PITConfig.Flags makes KVM answer port 0x61
// (KVM_PIT_SPEAKER_DUMMY).
const PITSpeakerDummy = 1 << 0

// PITConfig mirrors struct kvm_pit_config.
type PITConfig struct {
	Flags uint32
	_     [15]uint32
}

// PITChannel mirrors struct kvm_pit_channel_state: a counter of the i8254.
type PITChannel struct {
	Count         uint32 // up to 65536
	LatchedCount  uint16
	CountLatched  uint8
	StatusLatched uint8
	Status        uint8
	ReadState     uint8
	WriteState    uint8
	WriteLatch    uint8
	RWMode        uint8
	Mode          uint8
	BCD           uint8
	Gate          uint8
	CountLoadTime int64 // host's monotonic clock, nanoseconds
}

// PITState mirrors struct kvm_pit_state2.
type PITState struct {
	Channels [3]PITChannel
	Flags    uint32
	_        [9]uint32
}

// IRQChip mirrors struct kvm_irqchip: the state of one controller of the in-kernel
// irqchip. Chip is a PICState or an IOAPICState; see those methods.
type IRQChip struct {
	ChipID uint32 // ChipPICMaster, ChipPICSlave or ChipIOAPIC
	_      uint32
	Chip   [512]byte
}

// PICState mirrors struct kvm_pic_state: an i8259.
type PICState struct {
	LastIRR                uint8
	IRR                    uint8
	IMR                    uint8
	ISR                    uint8
	PriorityAdd            uint8
	IRQBase                uint8
	ReadRegSelect          uint8
	Poll                   uint8
	SpecialMask            uint8
	InitState              uint8
	AutoEOI                uint8
	RotateOnAutoEOI        uint8
	SpecialFullyNestedMode uint8
	Init4                  uint8
	ELCR                   uint8
	ELCRMask               uint8
}

// IOAPICState mirrors struct kvm_ioapic_state. An entry of Redirection has the
// layout of the 82093AA data sheet, section 3.2.4.
type IOAPICState struct {
	BaseAddress uint64
	IORegSel    uint32
	ID          uint32
	IRR         uint32
	Pad         uint32
	Redirection [24]uint64
}

// PIC decodes the state of a PIC.
func (c *IRQChip) PIC() PICState {
	var s PICState
	c.decode(&s)
	return s
}

// SetPIC encodes the state of a PIC.
func (c *IRQChip) SetPIC(s PICState) { c.encode(&s) }

// IOAPIC decodes the state of the IOAPIC.
func (c *IRQChip) IOAPIC() IOAPICState {
	var s IOAPICState
	c.decode(&s)
	return s
}

// SetIOAPIC encodes the state of the IOAPIC.
func (c *IRQChip) SetIOAPIC(s IOAPICState) { c.encode(&s) }

// The structs have a fixed size below that of Chip, so neither can fail.

func (c *IRQChip) decode(s any) { _, _ = binary.Decode(c.Chip[:], binary.LittleEndian, s) }

func (c *IRQChip) encode(s any) { _, _ = binary.Encode(c.Chip[:], binary.LittleEndian, s) }

// Flags of ClockData.
const (
	ClockTSCStable = 1 << 1 // KVM_CLOCK_TSC_STABLE
	ClockRealtime  = 1 << 2 // KVM_CLOCK_REALTIME: Realtime holds
	ClockHostTSC   = 1 << 3 // KVM_CLOCK_HOST_TSC: HostTSC holds
)

// ClockData mirrors struct kvm_clock_data.
type ClockData struct {
	Clock    uint64 // the guest's KVM clock, nanoseconds
	Flags    uint32
	_        uint32
	Realtime uint64 // the host's, nanoseconds since 1970
	HostTSC  uint64
	_        [4]uint32
}

// SetTSSAddress gives KVM three unused pages of guest-physical address space
// below 4 GiB, which Intel's real mode needs (KVM_SET_TSS_ADDR).
func (vm *VM) SetTSSAddress(addr uint64) error {
	_, err := ioctlValue(vm.fd, kvmSetTSSAddr, uintptr(addr))
	return capError(fmt.Sprintf("KVM_SET_TSS_ADDR %#x", addr), CapSetTSSAddr, vm.Check, err)
}

// SetIdentityMapAddress gives KVM one unused page of guest-physical address space
// below 4 GiB (KVM_SET_IDENTITY_MAP_ADDR). It must come before the first vCPU.
func (vm *VM) SetIdentityMapAddress(addr uint64) error {
	_, err := ioctlStruct(vm.fd, kvmSetIdentityMapAddr, &addr)
	return capError(fmt.Sprintf("KVM_SET_IDENTITY_MAP_ADDR %#x", addr), CapSetIdentityMapAddr, vm.Check, err)
}

// CreateIRQChip creates the in-kernel PICs, IOAPIC and local APICs
// (KVM_CREATE_IRQCHIP), with GSIs 0 to 15 on PIC and IOAPIC and 16 to 23 on the
// IOAPIC. It must come before the first vCPU, and after SetMemoryRegion: see
// there.
func (vm *VM) CreateIRQChip() error {
	_, err := ioctlValue(vm.fd, kvmCreateIRQChip, 0)
	return capError("KVM_CREATE_IRQCHIP", CapIRQChip, vm.Check, err)
}

// CreatePIT2 creates the in-kernel i8254 (KVM_CREATE_PIT2). It needs the irqchip.
func (vm *VM) CreatePIT2(cfg PITConfig) error {
	_, err := ioctlStruct(vm.fd, kvmCreatePIT2, &cfg)
	return capError("KVM_CREATE_PIT2", CapPIT2, vm.Check, err)
}

// IRQChip reads the state of one controller of the irqchip (KVM_GET_IRQCHIP).
func (vm *VM) IRQChip(chip uint32) (IRQChip, error) {
	c := IRQChip{ChipID: chip}
	_, err := ioctlStruct(vm.fd, kvmGetIRQChip, &c)
	return c, capError(fmt.Sprintf("KVM_GET_IRQCHIP %d", chip), CapIRQChip, vm.Check, err)
}

// SetIRQChip writes the state of the controller that c.ChipID names
// (KVM_SET_IRQCHIP).
func (vm *VM) SetIRQChip(c *IRQChip) error {
	_, err := ioctlStruct(vm.fd, kvmSetIRQChip, c)
	return capError(fmt.Sprintf("KVM_SET_IRQCHIP %d", c.ChipID), CapIRQChip, vm.Check, err)
}

// PIT2 reads the state of the PIT (KVM_GET_PIT2).
func (vm *VM) PIT2() (PITState, error) {
	var s PITState
	_, err := ioctlStruct(vm.fd, kvmGetPIT2, &s)
	return s, capError("KVM_GET_PIT2", CapPITState2, vm.Check, err)
}

// SetPIT2 writes the state of the PIT (KVM_SET_PIT2).
func (vm *VM) SetPIT2(s *PITState) error {
	_, err := ioctlStruct(vm.fd, kvmSetPIT2, s)
	return capError("KVM_SET_PIT2", CapPITState2, vm.Check, err)
}

// Clock reads the guest's KVM clock (KVM_GET_CLOCK).
func (vm *VM) Clock() (ClockData, error) {
	var d ClockData
	_, err := ioctlStruct(vm.fd, kvmGetClock, &d)
	return d, capError("KVM_GET_CLOCK", CapAdjustClock, vm.Check, err)
}

// SetClock sets the guest's KVM clock (KVM_SET_CLOCK). Of the flags, only
// ClockRealtime may be set: it advances the clock by what has passed since
// d.Realtime.
func (vm *VM) SetClock(d *ClockData) error {
	_, err := ioctlStruct(vm.fd, kvmSetClock, d)
	return capError("KVM_SET_CLOCK", CapAdjustClock, vm.Check, err)
}

// TSCKHz returns the TSC frequency in kHz that vCPUs will be created with
// (KVM_GET_TSC_KHZ on a VM). It needs CapVMTSCControl.
func (vm *VM) TSCKHz() (uint32, error) {
	n, err := ioctlValue(vm.fd, kvmGetTSCKHz, 0)
	return uint32(n), capError("KVM_GET_TSC_KHZ on a VM", CapVMTSCControl, vm.Check, err)
}

// SetTSCKHz sets the TSC frequency of vCPUs created afterwards (KVM_SET_TSC_KHZ
// on a VM). It needs CapVMTSCControl.
func (vm *VM) SetTSCKHz(kHz uint32) error {
	_, err := ioctlValue(vm.fd, kvmSetTSCKHz, uintptr(kHz))
	return capError(fmt.Sprintf("KVM_SET_TSC_KHZ %d on a VM", kHz), CapVMTSCControl, vm.Check, err)
}
