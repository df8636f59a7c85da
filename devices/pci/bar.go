package pci

import (
	"fmt"
	"math/bits"

	"github.com/vole-vmm/vole/devices"
)

// MinBARSize is the size in bytes of the smallest BAR: a page, so that a guest can map it without its neighbours.
const MinBARSize = 4096

const (
	barWide         = 2 << 1 // 64-bit, in bits 2:1 of the register (PCI 3.0, section 6.2.5.1)
	barPrefetchable = 1 << 3
	barFlags        = 0xf

	maxNarrowBAR = 1 << 31
	maxWideBAR   = 1 << 62
)

// BAR is a range of memory addresses that a function answers for.
type BAR struct {
	Size         uint64 // bytes: a power of two, MinBARSize or more, at most 2 GiB unless Wide
	Prefetchable bool   // reading has no side effects
	Wide         bool   // 64-bit: takes the register after it too
	Name         string // stands in error messages
	// Handler gets the accesses, with offsets from the start of the BAR, on vCPU threads and without any lock. Without
	// one the BAR reads as 0 and ignores writes, but for what [Function.AddMSIX] puts there.
	Handler devices.Handler
}

// bar is a BAR of a function and where it is now.
type bar struct {
	BAR
	index   int
	handler devices.Handler // Handler, behind MSI-X if that is here; never nil
	base    uint64          // on the bus, if mapped
	mapped  bool
}

// AddBAR gives the function a BAR at register index, 0 to 5.
func (f *Function) AddBAR(index int, b BAR) error {
	if err := f.building(fmt.Sprintf("add BAR %d", index)); err != nil {
		return err
	}
	last, limit := index, uint64(maxNarrowBAR)
	if b.Wide {
		last, limit = index+1, maxWideBAR
	}
	switch {
	case index < 0 || last >= numBARs:
		return invalid("BAR %d (wide: %t): there are %d registers", index, b.Wide, numBARs)
	case f.taken(index) || f.taken(last):
		return invalid("BAR %d (wide: %t) takes a register that is taken", index, b.Wide)
	case bits.OnesCount64(b.Size) != 1 || b.Size < MinBARSize || b.Size > limit:
		return invalid("BAR %d of %#x bytes: a power of two from %#x to %#x is wanted", index, b.Size, MinBARSize, limit)
	}
	n := &bar{BAR: b, index: index, handler: b.Handler}
	if n.handler == nil {
		n.handler = nothing{}
	}
	f.bars[index] = n

	r := regBAR0 + index
	if b.Prefetchable {
		f.regs[r] |= barPrefetchable
	}
	mask := ^(b.Size - 1)
	f.writable[r] = uint32(mask)
	if b.Wide {
		f.regs[r] |= barWide
		f.writable[r+1] = uint32(mask >> 32)
	}
	return nil
}

// taken reports whether the BAR register at index is in use, as an upper half too.
func (f *Function) taken(index int) bool {
	return f.bars[index] != nil || index > 0 && f.bars[index-1] != nil && f.bars[index-1].Wide
}

// ReadBAR is a read of [off, off+len(p)) of a BAR, wherever that is mapped, as virtio's PCI_CFG capability does it. It
// reports false, and leaves p alone, if the function has no such bytes.
func (f *Function) ReadBAR(index int, off uint64, p []byte) bool {
	b := f.reach(index, off, len(p))
	if b == nil {
		return false
	}
	b.handler.Read(off, p)
	return true
}

// WriteBAR is the write to [Function.ReadBAR].
func (f *Function) WriteBAR(index int, off uint64, p []byte) bool {
	b := f.reach(index, off, len(p))
	if b == nil {
		return false
	}
	b.handler.Write(off, p)
	return true
}

func (f *Function) reach(index int, off uint64, n int) *bar {
	if index < 0 || index >= numBARs || f.bars[index] == nil {
		return nil
	}
	if b := f.bars[index]; uint64(n) <= b.Size && off <= b.Size-uint64(n) {
		return b
	}
	return nil
}

// address returns what the registers of b say. The caller holds the lock.
func (f *Function) address(b *bar) uint64 {
	a := uint64(f.regs[regBAR0+b.index] &^ barFlags)
	if b.Wide {
		a |= uint64(f.regs[regBAR0+b.index+1]) << 32
	}
	return a
}

// place writes address to the registers of b. The caller holds the lock.
func (f *Function) place(b *bar, address uint64) {
	r := regBAR0 + b.index
	f.regs[r] = f.regs[r]&barFlags | uint32(address)
	if b.Wide {
		f.regs[r+1] = uint32(address >> 32)
	}
}

// nothing is the handler of a BAR without one.
type nothing struct{}

func (nothing) Read(off uint64, p []byte)  { clear(p) }
func (nothing) Write(off uint64, p []byte) {}
