package kvm

import "strconv"

// Cap is a KVM capability, KVM_CAP_* of linux/kvm.h.
type Cap uint32

// The capabilities that a virtual machine monitor of vole's kind asks for.
const (
	CapIRQChip            Cap = 0
	CapUserMemory         Cap = 3
	CapSetTSSAddr         Cap = 4
	CapExtCPUID           Cap = 7
	CapClockSource        Cap = 8
	CapNRVCPUs            Cap = 9  // recommended number of vCPUs
	CapNRMemslots         Cap = 10 // number of memory slots
	CapMPState            Cap = 14
	CapCoalescedMMIO      Cap = 15 // page offset of the ring in the vCPU's mapping
	CapIRQRouting         Cap = 25 // highest number of routes
	CapIRQFD              Cap = 32
	CapPIT2               Cap = 33
	CapPITState2          Cap = 35
	CapIOEventFD          Cap = 36
	CapSetIdentityMapAddr Cap = 37
	CapAdjustClock        Cap = 39 // flags that KVM_GET_CLOCK knows
	CapInternalErrorData  Cap = 40
	CapVCPUEvents         Cap = 41
	CapDebugRegs          Cap = 50
	CapXSAVE              Cap = 55
	CapXCRs               Cap = 56
	CapTSCControl         Cap = 60
	CapGetTSCKHz          Cap = 61
	CapMaxVCPUs           Cap = 66 // highest number of vCPUs
	CapTSCDeadlineTimer   Cap = 72
	CapKVMClockCtrl       Cap = 76
	CapSignalMSI          Cap = 77
	CapReadonlyMem        Cap = 81
	CapIRQFDResample      Cap = 82
	CapEnableCapVM        Cap = 98
	CapCheckExtensionVM   Cap = 105
	CapX86SMM             Cap = 117
	CapSplitIRQChip       Cap = 121
	CapIOEventFDAnyLength Cap = 122
	CapMaxVCPUID          Cap = 128 // highest vCPU id + 1
	CapX2APICAPI          Cap = 129
	CapImmediateExit      Cap = 136
	CapX86DisableExits    Cap = 143
	CapGetMSRFeatures     Cap = 153
	CapNestedState        Cap = 157
	CapCoalescedPIO       Cap = 162
	CapExceptionPayload   Cap = 164
	CapHaltPoll           Cap = 182
	CapX86UserSpaceMSR    Cap = 188
	CapX86MSRFilter       Cap = 189
	CapXSAVE2             Cap = 208 // bytes of the XSAVE area, at least 4096
	CapDisableQuirks2     Cap = 213
	CapVMTSCControl       Cap = 214
	CapTripleFaultEvent   Cap = 218
	CapMemoryFaultInfo    Cap = 232
)

// String returns the name that linux/kvm.h gives the capability.
func (c Cap) String() string {
	if name, _ := c.describe(); name != "" {
		return "KVM_CAP_" + name
	}
	return "KVM capability " + strconv.FormatUint(uint64(c), 10)
}

// Since returns the Linux version that introduced the capability ("4.11"), or
// an empty string if the package does not know it.
func (c Cap) Since() string {
	_, since := c.describe()
	return since
}

func (c Cap) describe() (name, since string) {
	switch c {
	case CapIRQChip:
		return "IRQCHIP", "2.6.24"
	case CapUserMemory:
		return "USER_MEMORY", "2.6.25"
	case CapSetTSSAddr:
		return "SET_TSS_ADDR", "2.6.25"
	case CapExtCPUID:
		return "EXT_CPUID", "2.6.25"
	case CapClockSource:
		return "CLOCKSOURCE", "2.6.26"
	case CapNRVCPUs:
		return "NR_VCPUS", "2.6.26"
	case CapNRMemslots:
		return "NR_MEMSLOTS", "2.6.26"
	case CapMPState:
		return "MP_STATE", "2.6.26"
	case CapCoalescedMMIO:
		return "COALESCED_MMIO", "2.6.27"
	case CapIRQRouting:
		return "IRQ_ROUTING", "2.6.30"
	case CapIRQFD:
		return "IRQFD", "2.6.32"
	case CapPIT2:
		return "PIT2", "2.6.32"
	case CapPITState2:
		return "PIT_STATE2", "2.6.32"
	case CapIOEventFD:
		return "IOEVENTFD", "2.6.32"
	case CapSetIdentityMapAddr:
		return "SET_IDENTITY_MAP_ADDR", "2.6.32"
	case CapAdjustClock:
		return "ADJUST_CLOCK", "2.6.33"
	case CapInternalErrorData:
		return "INTERNAL_ERROR_DATA", "2.6.33"
	case CapVCPUEvents:
		return "VCPU_EVENTS", "2.6.33"
	case CapDebugRegs:
		return "DEBUGREGS", "2.6.35"
	case CapXSAVE:
		return "XSAVE", "2.6.36"
	case CapXCRs:
		return "XCRS", "2.6.36"
	case CapTSCControl:
		return "TSC_CONTROL", "3.0"
	case CapGetTSCKHz:
		return "GET_TSC_KHZ", "3.0"
	case CapMaxVCPUs:
		return "MAX_VCPUS", ""
	case CapTSCDeadlineTimer:
		return "TSC_DEADLINE_TIMER", ""
	case CapKVMClockCtrl:
		return "KVMCLOCK_CTRL", "3.5"
	case CapSignalMSI:
		return "SIGNAL_MSI", "3.5"
	case CapReadonlyMem:
		return "READONLY_MEM", "3.7"
	case CapIRQFDResample:
		return "IRQFD_RESAMPLE", "3.7"
	case CapEnableCapVM:
		return "ENABLE_CAP_VM", "3.15"
	case CapCheckExtensionVM:
		return "CHECK_EXTENSION_VM", "3.17"
	case CapX86SMM:
		return "X86_SMM", "4.2"
	case CapSplitIRQChip:
		return "SPLIT_IRQCHIP", "4.4"
	case CapIOEventFDAnyLength:
		return "IOEVENTFD_ANY_LENGTH", "4.4"
	case CapMaxVCPUID:
		return "MAX_VCPU_ID", ""
	case CapX2APICAPI:
		return "X2APIC_API", "4.8"
	case CapImmediateExit:
		return "IMMEDIATE_EXIT", "4.11"
	case CapX86DisableExits:
		return "X86_DISABLE_EXITS", "4.17"
	case CapGetMSRFeatures:
		return "GET_MSR_FEATURES", ""
	case CapNestedState:
		return "NESTED_STATE", ""
	case CapCoalescedPIO:
		return "COALESCED_PIO", "4.20"
	case CapExceptionPayload:
		return "EXCEPTION_PAYLOAD", "4.20"
	case CapHaltPoll:
		return "HALT_POLL", ""
	case CapX86UserSpaceMSR:
		return "X86_USER_SPACE_MSR", "5.10"
	case CapX86MSRFilter:
		return "X86_MSR_FILTER", "5.10"
	case CapXSAVE2:
		return "XSAVE2", "5.17"
	case CapDisableQuirks2:
		return "DISABLE_QUIRKS2", ""
	case CapVMTSCControl:
		return "VM_TSC_CONTROL", ""
	case CapTripleFaultEvent:
		return "X86_TRIPLE_FAULT_EVENT", "6.0"
	case CapMemoryFaultInfo:
		return "MEMORY_FAULT_INFO", "6.8"
	}
	return "", ""
}
