package kvm

import "strconv"

// Reason is why Run came back: a KVM_EXIT_* of linux/kvm.h, or ReasonAgain.
type Reason uint32

// The reasons that an x86 guest can cause. Those that need a capability to be
// enabled first say which.
const (
	ReasonUnknown       Reason = 0
	ReasonException     Reason = 1
	ReasonIO            Reason = 2 // port access: VCPU.IO
	ReasonHypercall     Reason = 3
	ReasonDebug         Reason = 4
	ReasonHLT           Reason = 5 // only without an in-kernel irqchip
	ReasonMMIO          Reason = 6 // memory access: VCPU.MMIO
	ReasonIRQWindowOpen Reason = 7
	ReasonShutdown      Reason = 8 // triple fault
	ReasonFailEntry     Reason = 9 // VCPU.FailEntry

	// ReasonInterrupted: a signal or SetImmediateExit made Run return, and
	// KVM_RUN said EINTR. There is nothing to handle; the access of the exit
	// before is complete. The run page may still show that exit, which is why
	// the decoders return nothing now.
	ReasonInterrupted Reason = 10

	ReasonSetTPR        Reason = 11
	ReasonTPRAccess     Reason = 12
	ReasonNMI           Reason = 16
	ReasonInternalError Reason = 17 // VCPU.InternalError
	ReasonWatchdog      Reason = 21
	ReasonSystemEvent   Reason = 24 // VCPU.SystemEvent
	ReasonIOAPICEOI     Reason = 26 // CapSplitIRQChip
	ReasonHyperV        Reason = 27
	ReasonX86RDMSR      Reason = 29 // CapX86UserSpaceMSR
	ReasonX86WRMSR      Reason = 30 // CapX86UserSpaceMSR
	ReasonDirtyRingFull Reason = 31
	ReasonAPResetHold   Reason = 32
	ReasonX86BusLock    Reason = 33
	ReasonXen           Reason = 34
	ReasonNotify        Reason = 37
	ReasonMemoryFault   Reason = 39 // Run returns a *MemoryFaultError instead

	// ReasonAgain: KVM_RUN said EAGAIN, as it does for a vCPU that woke up and
	// waits for its SIPI still. Call Run again. Not a number of the kernel's.
	ReasonAgain Reason = 1<<32 - 1
)

// String returns the name of linux/kvm.h.
func (r Reason) String() string {
	switch r {
	case ReasonUnknown:
		return "KVM_EXIT_UNKNOWN"
	case ReasonException:
		return "KVM_EXIT_EXCEPTION"
	case ReasonIO:
		return "KVM_EXIT_IO"
	case ReasonHypercall:
		return "KVM_EXIT_HYPERCALL"
	case ReasonDebug:
		return "KVM_EXIT_DEBUG"
	case ReasonHLT:
		return "KVM_EXIT_HLT"
	case ReasonMMIO:
		return "KVM_EXIT_MMIO"
	case ReasonIRQWindowOpen:
		return "KVM_EXIT_IRQ_WINDOW_OPEN"
	case ReasonShutdown:
		return "KVM_EXIT_SHUTDOWN"
	case ReasonFailEntry:
		return "KVM_EXIT_FAIL_ENTRY"
	case ReasonInterrupted:
		return "KVM_EXIT_INTR"
	case ReasonSetTPR:
		return "KVM_EXIT_SET_TPR"
	case ReasonTPRAccess:
		return "KVM_EXIT_TPR_ACCESS"
	case ReasonNMI:
		return "KVM_EXIT_NMI"
	case ReasonInternalError:
		return "KVM_EXIT_INTERNAL_ERROR"
	case ReasonWatchdog:
		return "KVM_EXIT_WATCHDOG"
	case ReasonSystemEvent:
		return "KVM_EXIT_SYSTEM_EVENT"
	case ReasonIOAPICEOI:
		return "KVM_EXIT_IOAPIC_EOI"
	case ReasonHyperV:
		return "KVM_EXIT_HYPERV"
	case ReasonX86RDMSR:
		return "KVM_EXIT_X86_RDMSR"
	case ReasonX86WRMSR:
		return "KVM_EXIT_X86_WRMSR"
	case ReasonDirtyRingFull:
		return "KVM_EXIT_DIRTY_RING_FULL"
	case ReasonAPResetHold:
		return "KVM_EXIT_AP_RESET_HOLD"
	case ReasonX86BusLock:
		return "KVM_EXIT_X86_BUS_LOCK"
	case ReasonXen:
		return "KVM_EXIT_XEN"
	case ReasonNotify:
		return "KVM_EXIT_NOTIFY"
	case ReasonMemoryFault:
		return "KVM_EXIT_MEMORY_FAULT"
	case ReasonAgain:
		return "again"
	}
	return "KVM exit " + strconv.FormatUint(uint64(r), 10)
}
