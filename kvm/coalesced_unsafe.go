package kvm

import (
	"sync/atomic"
	"unsafe"
)

// coalescedMMIO mirrors struct kvm_coalesced_mmio.
type coalescedMMIO struct {
	PhysAddr uint64
	Len      uint32
	PIO      uint32
	Data     [8]byte
}

const (
	coalescedHead = 8                                                           // first and last
	coalescedMax  = (pageSize - coalescedHead) / unsafe.Sizeof(coalescedMMIO{}) // KVM_COALESCED_MMIO_MAX
)

// coalescedRing mirrors struct kvm_coalesced_mmio_ring with the entries that fit
// its page. The kernel writes Last and entries, under a lock of its own; the
// reader writes First. The ring is empty when they are equal.
type coalescedRing struct {
	First   uint32
	Last    uint32
	Entries [coalescedMax]coalescedMMIO
}

// coalescedAt returns the ring at page number page of a vCPU's mapping, nil if it
// lies outside.
func coalescedAt(mem []byte, page int) *coalescedRing {
	off := page * pageSize
	if page <= 0 || off+pageSize > len(mem) {
		return nil
	}
	return (*coalescedRing)(unsafe.Pointer(unsafe.SliceData(mem[off:])))
}

// empty reports whether every entry has been handled: drain frees one only then.
func (r *coalescedRing) empty() bool {
	return atomic.LoadUint32(&r.First) == atomic.LoadUint32(&r.Last)
}

// drain hands every entry to fn, oldest first, and frees each after fn has
// returned. The caller holds the VM's coalesced lock.
func (r *coalescedRing) drain(fn func(addr uint64, data []byte, pio bool)) int {
	n := 0
	for first := atomic.LoadUint32(&r.First); ; n++ {
		last := atomic.LoadUint32(&r.Last)
		if first == last || uintptr(first) >= coalescedMax || uintptr(last) >= coalescedMax {
			return n
		}
		e := &r.Entries[first]
		size := min(e.Len, uint32(len(e.Data)))
		fn(e.PhysAddr, e.Data[:size:size], e.PIO != 0)
		if first++; uintptr(first) == coalescedMax {
			first = 0
		}
		atomic.StoreUint32(&r.First, first)
	}
}
