//go:build amd64

package kvm

import "unsafe"

// The ioctls that x86 alone has, or whose structs are x86's own. The comments
// of linux/kvm.h hold: KVM_SET_IRQCHIP is declared as a read although it writes.
const (
	kvmGetMSRIndexList        = (iocRead|iocWrite)<<iocDirShift | unsafe.Sizeof(msrListHead{})<<iocSizeShift | kvmIO | 0x02
	kvmGetSupportedCPUID      = (iocRead|iocWrite)<<iocDirShift | unsafe.Sizeof(cpuidHead{})<<iocSizeShift | kvmIO | 0x05
	kvmGetMSRFeatureIndexList = (iocRead|iocWrite)<<iocDirShift | unsafe.Sizeof(msrListHead{})<<iocSizeShift | kvmIO | 0x0a

	kvmSetTSSAddr         = kvmIO | 0x47
	kvmSetIdentityMapAddr = iocWrite<<iocDirShift | unsafe.Sizeof(uint64(0))<<iocSizeShift | kvmIO | 0x48
	kvmCreateIRQChip      = kvmIO | 0x60
	kvmGetIRQChip         = (iocRead|iocWrite)<<iocDirShift | unsafe.Sizeof(IRQChip{})<<iocSizeShift | kvmIO | 0x62
	kvmSetIRQChip         = iocRead<<iocDirShift | unsafe.Sizeof(IRQChip{})<<iocSizeShift | kvmIO | 0x63
	kvmCreatePIT2         = iocWrite<<iocDirShift | unsafe.Sizeof(PITConfig{})<<iocSizeShift | kvmIO | 0x77
	kvmSetClock           = iocWrite<<iocDirShift | unsafe.Sizeof(ClockData{})<<iocSizeShift | kvmIO | 0x7b
	kvmGetClock           = iocRead<<iocDirShift | unsafe.Sizeof(ClockData{})<<iocSizeShift | kvmIO | 0x7c
	kvmGetPIT2            = iocRead<<iocDirShift | unsafe.Sizeof(PITState{})<<iocSizeShift | kvmIO | 0x9f
	kvmSetPIT2            = iocWrite<<iocDirShift | unsafe.Sizeof(PITState{})<<iocSizeShift | kvmIO | 0xa0
	kvmSetTSCKHz          = kvmIO | 0xa2
	kvmGetTSCKHz          = kvmIO | 0xa3

	kvmGetRegs       = iocRead<<iocDirShift | unsafe.Sizeof(Regs{})<<iocSizeShift | kvmIO | 0x81
	kvmSetRegs       = iocWrite<<iocDirShift | unsafe.Sizeof(Regs{})<<iocSizeShift | kvmIO | 0x82
	kvmGetSregs      = iocRead<<iocDirShift | unsafe.Sizeof(Sregs{})<<iocSizeShift | kvmIO | 0x83
	kvmSetSregs      = iocWrite<<iocDirShift | unsafe.Sizeof(Sregs{})<<iocSizeShift | kvmIO | 0x84
	kvmTranslate     = (iocRead|iocWrite)<<iocDirShift | unsafe.Sizeof(Translation{})<<iocSizeShift | kvmIO | 0x85
	kvmGetMSRs       = (iocRead|iocWrite)<<iocDirShift | unsafe.Sizeof(msrsHead{})<<iocSizeShift | kvmIO | 0x88
	kvmSetMSRs       = iocWrite<<iocDirShift | unsafe.Sizeof(msrsHead{})<<iocSizeShift | kvmIO | 0x89
	kvmGetFPU        = iocRead<<iocDirShift | unsafe.Sizeof(FPU{})<<iocSizeShift | kvmIO | 0x8c
	kvmSetFPU        = iocWrite<<iocDirShift | unsafe.Sizeof(FPU{})<<iocSizeShift | kvmIO | 0x8d
	kvmGetLAPIC      = iocRead<<iocDirShift | unsafe.Sizeof(LAPIC{})<<iocSizeShift | kvmIO | 0x8e
	kvmSetLAPIC      = iocWrite<<iocDirShift | unsafe.Sizeof(LAPIC{})<<iocSizeShift | kvmIO | 0x8f
	kvmSetCPUID2     = iocWrite<<iocDirShift | unsafe.Sizeof(cpuidHead{})<<iocSizeShift | kvmIO | 0x90
	kvmGetCPUID2     = (iocRead|iocWrite)<<iocDirShift | unsafe.Sizeof(cpuidHead{})<<iocSizeShift | kvmIO | 0x91
	kvmGetVCPUEvents = iocRead<<iocDirShift | unsafe.Sizeof(Events{})<<iocSizeShift | kvmIO | 0x9f
	kvmSetVCPUEvents = iocWrite<<iocDirShift | unsafe.Sizeof(Events{})<<iocSizeShift | kvmIO | 0xa0
	kvmGetDebugRegs  = iocRead<<iocDirShift | unsafe.Sizeof(DebugRegs{})<<iocSizeShift | kvmIO | 0xa1
	kvmSetDebugRegs  = iocWrite<<iocDirShift | unsafe.Sizeof(DebugRegs{})<<iocSizeShift | kvmIO | 0xa2
	kvmGetXSAVE      = iocRead<<iocDirShift | xsaveSize<<iocSizeShift | kvmIO | 0xa4
	kvmSetXSAVE      = iocWrite<<iocDirShift | xsaveSize<<iocSizeShift | kvmIO | 0xa5
	kvmGetXCRs       = iocRead<<iocDirShift | unsafe.Sizeof(xcrs{})<<iocSizeShift | kvmIO | 0xa6
	kvmSetXCRs       = iocWrite<<iocDirShift | unsafe.Sizeof(xcrs{})<<iocSizeShift | kvmIO | 0xa7
	kvmKVMClockCtrl  = kvmIO | 0xad
	kvmGetXSAVE2     = iocRead<<iocDirShift | xsaveSize<<iocSizeShift | kvmIO | 0xcf
)

// cpuidHead mirrors struct kvm_cpuid2 up to its entries.
type cpuidHead struct {
	NEnt uint32
	_    uint32
}

// msrsHead mirrors struct kvm_msrs up to its entries.
type msrsHead struct {
	NMSRs uint32
	_     uint32
}

// msrListHead mirrors struct kvm_msr_list up to its indices.
type msrListHead struct {
	NMSRs uint32
}

// ioctlBytes issues an ioctl whose argument is a block of bytes, which the
// caller has checked to be as long as the kernel reads or writes.
func ioctlBytes(fd int, req uintptr, p []byte) error {
	_, err := ioctlStruct(fd, req, unsafe.SliceData(p))
	return err
}
