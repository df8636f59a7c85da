package virtio

import (
	"sync/atomic"
	"unsafe"
)

// The fields that driver and device change while the other looks are 16 bits
// wide, and sync/atomic has no such operations. A 16-bit field that is aligned
// to its size lies wholly in one aligned 32-bit word, though, and an atomic
// load of the word is an atomic load of the field: sequentially consistent on
// every architecture, so at least the acquire that the rings need, and seen by
// the race detector. The bytes of the word that are not the field's belong to
// the same page of RAM and are ignored.
//
// Drivers, as virtiotest has one, do the same with the fields that are theirs.
//
// Stores are of two kinds. used.flags and used.idx share a word that only the
// device writes: Publish stores both at once; being sequentially consistent, it
// is also the full barrier that must stand between the new idx and the look at
// used_event (XCHG on x86-64; STLR with the later LDAR on arm64, which keep
// their order). avail_event shares its word with bytes that are not the
// device's, so its store is a plain one of 16 bits, which no processor of
// either architecture tears; the callers put an atomic operation behind it.

// word returns the aligned 32-bit word around the two bytes at off, and how far
// its value must be shifted. b begins at an address aligned to 2, off is even.
func word(b []byte, off int) (*uint32, uint) {
	p := uintptr(unsafe.Pointer(&b[off : off+2][0]))
	in := p & 3
	return (*uint32)(unsafe.Add(unsafe.Pointer(&b[off]), -int(in))), uint(in) * 8
}

// Load16 loads the field at b[off:off+2], which the other side may be writing.
func Load16(b []byte, off int) uint16 {
	w, shift := word(b, off)
	return uint16(atomic.LoadUint32(w) >> shift)
}

// Publish stores flags and idx at the start of a ring that only the caller
// writes, b being aligned to 4. What was written before is visible to whoever
// sees idx, and no later load of the caller's comes before it.
func Publish(b []byte, flags, idx uint16) {
	w, _ := word(b, 0)
	atomic.StoreUint32(w, uint32(idx)<<16|uint32(flags))
}

// Store16 stores a field that shares its word with bytes of others. It orders
// nothing. The race detector is kept out: who loads the field takes any value
// of it, and looks at idx again.
//
//go:norace
//go:noinline
func Store16(b []byte, off int, v uint16) {
	*(*uint16)(unsafe.Pointer(&b[off : off+2][0])) = v
}

// aligned reports whether b begins at a host address that is a multiple of n,
// a power of two.
func aligned(b []byte, n uintptr) bool {
	return len(b) > 0 && uintptr(unsafe.Pointer(&b[0]))&(n-1) == 0
}
