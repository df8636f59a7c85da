package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// xsaveSize is the size in bytes of struct kvm_xsave and the least size of an
// XSAVE area.
const xsaveSize = 4096

// maxXCRs is KVM_MAX_XCRS.
const maxXCRs = 16

// FPU mirrors struct kvm_fpu, the legacy x87 and SSE state. KVM neither fills in
// nor takes MXCSR: only XSAVE has all of the state.
type FPU struct {
	FPR        [8][16]uint8
	FCW        uint16
	FSW        uint16
	FTWX       uint8 // abridged, as FXSAVE has it
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]uint8
	MXCSR      uint32
	_          uint32
}

// XCR mirrors struct kvm_xcr: an extended control register; XCR0 is number 0.
type XCR struct {
	XCR   uint32
	_     uint32
	Value uint64
}

// xcrs mirrors struct kvm_xcrs.
type xcrs struct {
	NRXCRs uint32
	Flags  uint32
	XCRs   [maxXCRs]XCR
	_      [16]uint64
}

// LAPIC mirrors struct kvm_lapic_state: the local APIC's register page, each
// register at its MMIO offset (Intel SDM, volume 3, "Local APIC Register Address
// Map").
type LAPIC struct {
	Regs [1024]byte
}

// Register returns the 32-bit register at byte offset off, a multiple of 16 below
// 1024; 0 for any other.
func (l *LAPIC) Register(off int) uint32 {
	if off < 0 || off%16 != 0 || off >= len(l.Regs) {
		return 0
	}
	return binary.LittleEndian.Uint32(l.Regs[off:])
}

// SetRegister is Register's counterpart; any other offset is ignored.
func (l *LAPIC) SetRegister(off int, v uint32) {
	if off < 0 || off%16 != 0 || off >= len(l.Regs) {
		return
	}
	binary.LittleEndian.PutUint32(l.Regs[off:], v)
}

// Flags of Events: which of its parts SetEvents writes.
const (
	EventNMIPendingValid  = 1 << 0
	EventSIPIVectorValid  = 1 << 1
	EventShadowValid      = 1 << 2
	EventSMMValid         = 1 << 3
	EventPayloadValid     = 1 << 4
	EventTripleFaultValid = 1 << 5
)

// Events mirrors struct kvm_vcpu_events: exceptions, interrupts and NMIs that are
// pending or being injected.
type Events struct {
	Exception struct {
		Injected     uint8
		NR           uint8
		HasErrorCode uint8
		Pending      uint8
		ErrorCode    uint32
	}
	Interrupt struct {
		Injected uint8
		NR       uint8
		Soft     uint8
		Shadow   uint8
	}
	NMI struct {
		Injected uint8
		Pending  uint8
		Masked   uint8
		_        uint8
	}
	SIPIVector uint32
	Flags      uint32
	SMI        struct {
		SMM          uint8
		Pending      uint8
		SMMInsideNMI uint8
		LatchedInit  uint8
	}
	TripleFaultPending  uint8
	_                   [26]uint8
	ExceptionHasPayload uint8
	ExceptionPayload    uint64
}

// MSRs and CPUID.

// GetMSRs reads MSRs (KVM_GET_MSRS), any number of them. One that KVM refuses
// gives a *MSRError, together with the entries before it; the caller may go on
// after it with index[len(entries)+1:].
func (c *VCPU) GetMSRs(index ...uint32) ([]MSREntry, error) {
	entries, err := readMSRs(c.fd, index)
	return entries, msrError(opGetMSRs, err)
}

// SetMSRs writes MSRs (KVM_SET_MSRS) in order, any number of them. One that KVM
// refuses gives a *MSRError; those before it are written, those after it not,
// and the caller may go on with msrs[err.Done+1:].
func (c *VCPU) SetMSRs(msrs []MSREntry) error {
	return msrError(opSetMSRs, writeMSRs(c.fd, msrs))
}

func msrError(op string, err error) error {
	var refused *MSRError
	if errors.As(err, &refused) {
		return err
	}
	return opError(op, err)
}

// CPUID returns what SetCPUID set, as KVM sees it now: some bits follow the
// guest's control registers (KVM_GET_CPUID2).
func (c *VCPU) CPUID() ([]CPUIDEntry, error) {
	return readCPUID(c.fd, kvmGetCPUID2, "KVM_GET_CPUID2", CapExtCPUID, c.vm.Check)
}

// SetCPUID sets what CPUID returns in the guest (KVM_SET_CPUID2). It must come
// before the first Run; afterwards KVM refuses changes.
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	head, dst := newFlex[cpuidHead, CPUIDEntry](len(entries))
	head.NEnt = uint32(len(entries))
	copy(dst, entries)
	_, err := ioctlStruct(c.fd, kvmSetCPUID2, head)
	return capError(fmt.Sprintf("KVM_SET_CPUID2: %d entries", len(entries)), CapExtCPUID, c.vm.Check, err)
}

// Floating point and extended state.

// FPU reads the legacy FPU state (KVM_GET_FPU).
func (c *VCPU) FPU() (FPU, error) {
	var f FPU
	_, err := ioctlStruct(c.fd, kvmGetFPU, &f)
	return f, opError("KVM_GET_FPU", err)
}

// SetFPU writes the legacy FPU state (KVM_SET_FPU).
func (c *VCPU) SetFPU(f *FPU) error {
	_, err := ioctlStruct(c.fd, kvmSetFPU, f)
	return opError("KVM_SET_FPU", err)
}

// xsaveArea returns how many bytes this vCPU's XSAVE area has for KVM.
func (c *VCPU) xsaveArea() (int, error) {
	n, err := c.vm.Check(CapXSAVE2)
	return max(n, xsaveSize), err
}

// XSAVE reads the extended state in the layout of CPUID leaf 0xD, at least 4096
// bytes (KVM_GET_XSAVE2, or KVM_GET_XSAVE where that suffices).
func (c *VCPU) XSAVE() ([]byte, error) {
	size, err := c.xsaveArea()
	if err != nil {
		return nil, err
	}
	area := make([]byte, size)
	if size > xsaveSize {
		err = opError("KVM_GET_XSAVE2", ioctlBytes(c.fd, kvmGetXSAVE2, area))
	} else {
		err = capError("KVM_GET_XSAVE", CapXSAVE, c.vm.Check, ioctlBytes(c.fd, kvmGetXSAVE, area))
	}
	if err != nil {
		return nil, err
	}
	return area, nil
}

// SetXSAVE writes the extended state (KVM_SET_XSAVE). An area shorter than that
// which XSAVE returns gives ErrInvalid.
func (c *VCPU) SetXSAVE(area []byte) error {
	size, err := c.xsaveArea()
	if err != nil {
		return err
	}
	if len(area) < size {
		return fmt.Errorf("kvm: KVM_SET_XSAVE: %w: %d bytes where KVM reads %d", ErrInvalid, len(area), size)
	}
	return capError("KVM_SET_XSAVE", CapXSAVE, c.vm.Check, ioctlBytes(c.fd, kvmSetXSAVE, area))
}

// XCRs reads the extended control registers (KVM_GET_XCRS).
func (c *VCPU) XCRs() ([]XCR, error) {
	var x xcrs
	if _, err := ioctlStruct(c.fd, kvmGetXCRs, &x); err != nil {
		return nil, capError("KVM_GET_XCRS", CapXCRs, c.vm.Check, err)
	}
	return append([]XCR(nil), x.XCRs[:min(x.NRXCRs, maxXCRs)]...), nil
}

// SetXCRs writes extended control registers (KVM_SET_XCRS), at most 16. What they
// enable must be in the guest's CPUID.
func (c *VCPU) SetXCRs(regs []XCR) error {
	if len(regs) > maxXCRs {
		return fmt.Errorf("kvm: KVM_SET_XCRS: %w: %d registers where %d is the most", ErrInvalid, len(regs), maxXCRs)
	}
	x := xcrs{NRXCRs: uint32(len(regs))}
	copy(x.XCRs[:], regs)
	_, err := ioctlStruct(c.fd, kvmSetXCRs, &x)
	return capError("KVM_SET_XCRS", CapXCRs, c.vm.Check, err)
}

// Interrupts and time.

// LAPIC reads the local APIC (KVM_GET_LAPIC). It needs an in-kernel irqchip.
func (c *VCPU) LAPIC() (LAPIC, error) {
	var l LAPIC
	_, err := ioctlStruct(c.fd, kvmGetLAPIC, &l)
	return l, capError("KVM_GET_LAPIC", CapIRQChip, c.vm.Check, err)
}

// SetLAPIC writes the local APIC (KVM_SET_LAPIC).
func (c *VCPU) SetLAPIC(l *LAPIC) error {
	_, err := ioctlStruct(c.fd, kvmSetLAPIC, l)
	return capError("KVM_SET_LAPIC", CapIRQChip, c.vm.Check, err)
}

// Events reads the pending events (KVM_GET_VCPU_EVENTS).
func (c *VCPU) Events() (Events, error) {
	var e Events
	_, err := ioctlStruct(c.fd, kvmGetVCPUEvents, &e)
	return e, capError("KVM_GET_VCPU_EVENTS", CapVCPUEvents, c.vm.Check, err)
}

// SetEvents writes the pending events, as far as e.Flags says
// (KVM_SET_VCPU_EVENTS).
func (c *VCPU) SetEvents(e *Events) error {
	_, err := ioctlStruct(c.fd, kvmSetVCPUEvents, e)
	return capError("KVM_SET_VCPU_EVENTS", CapVCPUEvents, c.vm.Check, err)
}

// TSCKHz returns the frequency of the guest's TSC in kHz (KVM_GET_TSC_KHZ). A
// host without a stable TSC gives unix.EIO.
func (c *VCPU) TSCKHz() (uint32, error) {
	n, err := ioctlValue(c.fd, kvmGetTSCKHz, 0)
	return uint32(n), capError("KVM_GET_TSC_KHZ", CapGetTSCKHz, c.vm.Check, err)
}

// SetTSCKHz sets the frequency of the guest's TSC (KVM_SET_TSC_KHZ). Without
// CapTSCControl only a value close to the host's own is taken.
func (c *VCPU) SetTSCKHz(kHz uint32) error {
	_, err := ioctlValue(c.fd, kvmSetTSCKHz, uintptr(kHz))
	return capError(fmt.Sprintf("KVM_SET_TSC_KHZ %d", kHz), CapTSCControl, c.vm.Check, err)
}

// KVMClockCtrl tells the guest that it was paused, so that its watchdogs forgive
// the time that passed (KVM_KVMCLOCK_CTRL). ErrNoGuestClock if the guest does not
// use the KVM clock.
func (c *VCPU) KVMClockCtrl() error {
	_, err := ioctlValue(c.fd, kvmKVMClockCtrl, 0)
	err = capError("KVM_KVMCLOCK_CTRL", CapKVMClockCtrl, c.vm.Check, err)
	var missing *MissingError
	if errors.Is(err, unix.EINVAL) && !errors.As(err, &missing) {
		return fmt.Errorf("kvm: KVM_KVMCLOCK_CTRL on vCPU %d: %w", c.id, ErrNoGuestClock)
	}
	return err
}
