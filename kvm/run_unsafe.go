package kvm

import (
	"sync/atomic"
	"unsafe"
)

const (
	pageSize    = 4096 // of x86; the offsets in a vCPU's mapping count in it
	runPageSize = int(unsafe.Sizeof(runPage{}))
)

// runPage mirrors struct kvm_run.
type runPage struct {
	RequestInterruptWindow     uint8
	ImmediateExit              uint8
	_                          [6]uint8
	ExitReason                 uint32
	ReadyForInterruptInjection uint8
	IFFlag                     uint8
	Flags                      uint16
	CR8                        uint64
	APICBase                   uint64
	Exit                       [32]uint64 // the union; one of the exit structs below
	ValidRegs                  uint64
	DirtyRegs                  uint64
	Sync                       [256]uint64
}

// exitIO mirrors kvm_run.io.
type exitIO struct {
	Direction  uint8
	Size       uint8
	Port       uint16
	Count      uint32
	DataOffset uint64
}

const exitIOOut = 1 // KVM_EXIT_IO_OUT

// exitMMIO mirrors kvm_run.mmio.
type exitMMIO struct {
	PhysAddr uint64
	Data     [8]byte
	Len      uint32
	IsWrite  uint8
}

// exitInternal mirrors kvm_run.internal.
type exitInternal struct {
	Suberror uint32
	NData    uint32
	Data     [16]uint64
}

// exitFailEntry mirrors kvm_run.fail_entry.
type exitFailEntry struct {
	Reason uint64
	CPU    uint32
}

// exitSystemEvent mirrors kvm_run.system_event.
type exitSystemEvent struct {
	Type  uint32
	NData uint32
	Data  [16]uint64
}

// exitMemoryFault mirrors kvm_run.memory_fault (Linux 6.8).
type exitMemoryFault struct {
	Flags uint64
	GPA   uint64
	Size  uint64
}

// immediateExitBit is kvm_run.immediate_exit as seen in the 32-bit word at the
// page's start, which Go can write atomically where a byte it cannot. The other
// bytes of the word are request_interrupt_window and padding, all zero here.
const immediateExitBit = 1 << (8 * unsafe.Offsetof(runPage{}.ImmediateExit))

// runView is a vCPU's mapping with what Run left there. Nothing here allocates.
type runView struct {
	mem  []byte
	page *runPage
}

func newRunView(mem []byte) runView {
	return runView{mem: mem, page: (*runPage)(unsafe.Pointer(unsafe.SliceData(mem)))}
}

func (v runView) setImmediateExit(on bool) {
	word := (*uint32)(unsafe.Pointer(v.page))
	if on {
		atomic.OrUint32(word, immediateExitBit)
	} else {
		atomic.AndUint32(word, ^uint32(immediateExitBit))
	}
}

func (v runView) io() (port uint16, out bool, size, count int, data []byte) {
	e := (*exitIO)(unsafe.Pointer(&v.page.Exit))
	n := uint64(e.Size) * uint64(e.Count)
	// Size and count come from the kernel; an access outside the mapping could
	// only be a bug there, and must not become one here.
	if n == 0 || e.DataOffset > uint64(len(v.mem)) || n > uint64(len(v.mem))-e.DataOffset {
		return e.Port, e.Direction == exitIOOut, 0, 0, nil
	}
	end := e.DataOffset + n
	return e.Port, e.Direction == exitIOOut, int(e.Size), int(e.Count), v.mem[e.DataOffset:end:end]
}

func (v runView) mmio() (addr uint64, write bool, data []byte) {
	e := (*exitMMIO)(unsafe.Pointer(&v.page.Exit))
	if e.Len == 0 || e.Len > uint32(len(e.Data)) {
		return e.PhysAddr, e.IsWrite != 0, nil
	}
	return e.PhysAddr, e.IsWrite != 0, e.Data[:e.Len:e.Len]
}

func (v runView) internalError() InternalError {
	e := (*exitInternal)(unsafe.Pointer(&v.page.Exit))
	return InternalError{Suberror: e.Suberror, NData: min(int(e.NData), len(e.Data)), Data: e.Data}
}

func (v runView) failEntry() FailEntry {
	e := (*exitFailEntry)(unsafe.Pointer(&v.page.Exit))
	return FailEntry{Reason: e.Reason, CPU: e.CPU}
}

func (v runView) systemEvent() SystemEvent {
	e := (*exitSystemEvent)(unsafe.Pointer(&v.page.Exit))
	return SystemEvent{Type: e.Type, NData: min(int(e.NData), len(e.Data)), Data: e.Data}
}

func (v runView) memoryFault() exitMemoryFault {
	return *(*exitMemoryFault)(unsafe.Pointer(&v.page.Exit))
}
