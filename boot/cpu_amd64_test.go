package boot

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
)

// walk translates a virtual address by the tables at base, as a CPU would.
func walk(t *testing.T, tables []byte, base, va uint64) uint64 {
	t.Helper()
	const addrMask = 0x000f_ffff_ffff_f000
	table := base
	for _, shift := range []uint{39, 30, 21} {
		e := binary.LittleEndian.Uint64(tables[table-base+(va>>shift&0x1ff)*8:])
		if !assert.Equal(t, uint64(ptePresent|pteWrite|pteAccessed), e&(ptePresent|pteWrite|pteAccessed), "va %#x", va) {
			return 0
		}
		if e&ptePageSize != 0 {
			assert.NotEqual(t, uint(39), shift)
			assert.NotZero(t, e&pteDirty)
			mask := uint64(1)<<shift - 1
			assert.Zero(t, e&addrMask&mask&^0xfff, "reserved bits of a large page")
			return e&addrMask&^mask | va&mask
		}
		table = e & addrMask
	}
	t.Fatalf("va %#x: no page", va)
	return 0
}

func TestIdentity(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, huge := range map[string]bool{"2 MiB": false, "1 GiB": true} {
		t.Run(name, func(t *testing.T) {
			b := identity(PageTableAddr, huge)
			assert.Len(t, b, map[bool]int{false: 6, true: 2}[huge]*pageSize)
			for _, va := range []uint64{0, 0xfff, 1<<21 - 1, 1 << 21, 1<<30 - 1, 1 << 30, 3 << 30, 1<<32 - 1} {
				assert.Equal(t, va, walk(t, b, PageTableAddr, va))
			}
			for range 1000 {
				va := uint64(rng.Uint32())
				assert.Equal(t, va, walk(t, b, PageTableAddr, va))
			}
			assert.Zero(t, binary.LittleEndian.Uint64(b[8:]), "nothing above 512 GiB")
			assert.Zero(t, binary.LittleEndian.Uint64(b[pageSize+4*8:]), "nothing above 4 GiB")
		})
	}
}

// The structures of the boot have their places to themselves.
func TestLayout(t *testing.T) {
	type area struct {
		name       string
		start, end uint64
	}
	areas := []area{
		{"GDT", GDTAddr, GDTAddr + gdtSize},
		{"start_info", StartInfoAddr, StartInfoAddr + memmapOffset + maxE820*memmapEntrySize},
		{"zero page", ZeroPageAddr, ZeroPageAddr + zeroPageSize},
		{"stack", ZeroPageAddr + zeroPageSize, StackTop},
		{"page tables", PageTableAddr, PageTableAddr + pageTableSize},
		{"command line", CmdlineAddr, cmdlineEnd},
		{"EBDA and VGA", EBDAStart, ACPIAddr},
		{"ACPI", ACPIAddr, KernelMin},
	}
	for i, a := range areas {
		assert.Less(t, a.start, a.end, a.name)
		if i > 0 {
			assert.LessOrEqual(t, areas[i-1].end, a.start, a.name)
		}
	}
	assert.LessOrEqual(t, startInfoSize, modlistOffset)
	assert.LessOrEqual(t, modlistOffset+modlistSize, memmapOffset)
	assert.LessOrEqual(t, zpE820Table+maxE820*e820EntrySize, 0xcd0)
}
