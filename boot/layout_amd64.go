package boot

import (
	"cmp"
	"math"
	"slices"

	"github.com/vole-vmm/vole/memory"
)

// Where the boot structures lie in guest memory. Only the pages that are used
// are written.
const (
	GDTAddr       = 0x500
	StartInfoAddr = 0x6000 // PVH: start_info, module list, memory map
	ZeroPageAddr  = 0x7000 // struct boot_params
	StackTop      = 0x8ff0 // kernels bring their own stack; payloads may use this one
	PageTableAddr = 0x9000
	CmdlineAddr   = 0x20000
	EBDAStart     = 0x9fc00 // end of conventional memory
	ACPIAddr      = 0xe0000
	KernelMin     = 0x100000 // no kernel is loaded below

	vgaStart      = 0xa0000
	cmdlineEnd    = EBDAStart
	startInfoEnd  = ZeroPageAddr
	zeroPageSize  = 0x1000
	pageTableSize = 6 * pageSize
)

// Types of memory in e820 and in PVH's memory map, which share their numbers
// (ACPI 6.5, section 15).
const (
	e820RAM      = 1
	e820Reserved = 2
)

// maxE820 is how many ranges both protocols can carry: 128 in the zero page,
// one of which Linux adds itself when it comes in by PVH.
const maxE820 = 127

type e820Entry struct {
	addr, size uint64
	typ        uint32
}

func (e e820Entry) end() uint64 { return e.addr + e.size }

// ram is where a guest has RAM: low from 0 up to low bytes, and the ranges
// above, by ascending address.
type ram struct {
	low  uint64
	high []Range
}

// ramOf returns the RAM of a guest of size bytes.
func ramOf(size uint64) (ram, error) {
	if size > math.MaxInt64 {
		return ram{}, faultf(ErrParams, "%d bytes of guest memory are more than an address can tell", size)
	}
	return newRAM(memory.Layout(size))
}

// ramIn returns the RAM that mem has.
func ramIn(mem *memory.Guest) (ram, error) {
	var rs []Range
	for _, r := range mem.Regions() {
		rs = append(rs, Range{GPA: r.GPA, Size: r.Size()})
	}
	return newRAM(rs)
}

func newRAM(rs []Range) (ram, error) {
	if len(rs) == 0 || rs[0].GPA != 0 || rs[0].Size <= KernelMin {
		return ram{}, faultf(ErrTooBig, "the guest needs more than 1 MiB of memory from address 0 on")
	}
	if rs[0].Size > memory.HighStart {
		return ram{}, faultf(ErrParams, "%d bytes of memory from address 0 on leave no room for devices below 4 GiB", rs[0].Size)
	}
	return ram{low: rs[0].Size, high: rs[1:]}, nil
}

// e820 returns the memory map: RAM, the holes of a PC below 1 MiB, and the
// caller's reserved ranges, by ascending address.
func (m ram) e820(reserved []Range) ([]e820Entry, error) {
	es := []e820Entry{
		{0, EBDAStart, e820RAM},
		{EBDAStart, vgaStart - EBDAStart, e820Reserved},
		{ACPIAddr, KernelMin - ACPIAddr, e820Reserved},
		{KernelMin, m.low - KernelMin, e820RAM},
	}
	for _, r := range m.high {
		es = append(es, e820Entry{r.GPA, r.Size, e820RAM})
	}
	if len(reserved) > maxE820-len(es) {
		return nil, faultf(ErrParams, "%d reserved ranges do not fit into the memory map", len(reserved))
	}
	for _, r := range reserved {
		if r.Size == 0 || r.GPA+r.Size < r.GPA {
			return nil, faultf(ErrParams, "reserved range at %#x with %#x bytes is empty or wraps", r.GPA, r.Size)
		}
		es = append(es, e820Entry{r.GPA, r.Size, e820Reserved})
	}
	slices.SortFunc(es, func(a, b e820Entry) int { return cmp.Compare(a.addr, b.addr) })
	for i := 1; i < len(es); i++ {
		if a, b := es[i-1], es[i]; a.end() > b.addr {
			return nil, faultf(ErrParams, "ranges of the memory map at %#x (%#x bytes) and %#x overlap", a.addr, a.size, b.addr)
		}
	}
	return es, nil
}
