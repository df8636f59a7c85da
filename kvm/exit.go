package kvm

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Values of InternalError.Suberror, KVM_INTERNAL_ERROR_*.
const (
	InternalEmulation      = 1 // KVM's instruction emulator gave up
	InternalSimultaneous   = 2 // exceptions at the same time
	InternalDeliveryEvent  = 3 // an exit while an event was delivered
	InternalUnexpectedExit = 4 // the hardware gave an exit reason KVM does not know
)

// emulationHasInstruction in InternalError.Data[0] says that Data[1..2] holds the
// instruction (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES).
const emulationHasInstruction = 1 << 0

// maxInstruction is the longest x86 instruction.
const maxInstruction = 15

// InternalError is a KVM_EXIT_INTERNAL_ERROR: KVM cannot go on with this vCPU. It
// is an error value too.
type InternalError struct {
	Suberror uint32
	NData    int // words of Data that KVM has set
	Data     [16]uint64
}

// Instruction returns the bytes of the instruction at which emulation failed, as
// far as KVM fetched them, which may be beyond its end; nil if KVM does not say.
func (e InternalError) Instruction() []byte {
	if e.Suberror != InternalEmulation || e.NData < 3 || e.Data[0]&emulationHasInstruction == 0 {
		return nil
	}
	var b [16]byte // insn_size, then insn_bytes
	binary.LittleEndian.PutUint64(b[0:], e.Data[1])
	binary.LittleEndian.PutUint64(b[8:], e.Data[2])
	return b[1 : 1+min(int(b[0]), maxInstruction)]
}

// Error describes the failure in a sentence, with the instruction if known.
func (e InternalError) Error() string {
	var what string
	switch e.Suberror {
	case InternalEmulation:
		what = "KVM could not emulate an instruction"
		if insn := e.Instruction(); insn != nil {
			return fmt.Sprintf("kvm: %s: % x", what, insn)
		}
	case InternalSimultaneous:
		what = "simultaneous exceptions"
	case InternalDeliveryEvent:
		what = "an exit during event delivery"
	case InternalUnexpectedExit:
		what = "an unknown exit of the processor"
	default:
		what = fmt.Sprintf("internal error %d", e.Suberror)
	}
	var b strings.Builder
	b.WriteString("kvm: ")
	b.WriteString(what)
	for i := range min(e.NData, len(e.Data)) {
		fmt.Fprintf(&b, " %#x", e.Data[i])
	}
	return b.String()
}

// FailEntry is a KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest,
// mostly because of an invalid register state. It is an error value too.
type FailEntry struct {
	Reason uint64 // the processor's own code
	CPU    uint32 // host CPU it happened on
}

func (e FailEntry) Error() string {
	return fmt.Sprintf("kvm: host CPU %d refused to enter the guest: reason %#x", e.CPU, e.Reason)
}

// Values of SystemEvent.Type, KVM_SYSTEM_EVENT_*.
const (
	SystemEventShutdown = 1
	SystemEventReset    = 2
	SystemEventCrash    = 3
	SystemEventWakeup   = 4
	SystemEventSuspend  = 5
	SystemEventSEVTerm  = 6
)

// SystemEvent is a KVM_EXIT_SYSTEM_EVENT: the guest asked the hypervisor
// interface (Hyper-V crash MSRs, on x86) for something machine-wide.
type SystemEvent struct {
	Type  uint32
	NData int // words of Data that KVM has set
	Data  [16]uint64
}

// MemoryFaultError is what Run returns when a guest access failed on host memory
// that could not be had: a hole in the mapping, a truncated file behind it, or a
// hardware memory error (unix.EHWPOISON). Kernels before 6.8 do not say where.
type MemoryFaultError struct {
	GPA   uint64 // guest-physical start of the range
	Size  uint64 // bytes
	Flags uint64
	Err   error // the errno of KVM_RUN
}

func (e *MemoryFaultError) Error() string {
	return fmt.Sprintf("kvm: KVM_RUN: no host memory for guest-physical %#x + %#x: %v", e.GPA, e.Size, e.Err)
}

// Unwrap returns the errno.
func (e *MemoryFaultError) Unwrap() error { return e.Err }
