package memory

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLayout(t *testing.T) {
	for _, tc := range []struct {
		name string
		size uint64
		want []Range
	}{
		{"small", 128 << 20, []Range{{0, 128 << 20}}},
		{"exactly below the hole", LowTop, []Range{{0, LowTop}}},
		{"a page above", LowTop + PageSize, []Range{{0, LowTop}, {HighStart, PageSize}}},
		{"5 GiB", 5 << 30, []Range{{0, LowTop}, {HighStart, 2 << 30}}},
	} {
		t.Run(tc.name, func(t *testing.T) { assert.Equal(t, tc.want, Layout(tc.size)) })
	}
}

func TestSliceCannotWrapOrCross(t *testing.T) {
	g, err := FromBytes(
		Region{GPA: HighStart, Mem: make([]byte, 2*PageSize)},
		Region{GPA: 0, Mem: make([]byte, PageSize)},
		Region{GPA: PageSize, Mem: make([]byte, PageSize)},
	)
	require.NoError(t, err)
	for _, tc := range []struct {
		name   string
		gpa, n uint64
		ok     bool
	}{
		{"first byte", 0, 1, true},
		{"whole region", 0, PageSize, true},
		{"empty at the end", 2 * PageSize, 0, true},
		{"one too long", PageSize, PageSize + 1, false},
		{"over two neighbours", PageSize - 1, 2, false},
		{"in the hole", LowTop, 1, false},
		{"high", HighStart + 1, 2*PageSize - 1, true},
		{"behind", HighStart + 2*PageSize, 1, false},
		{"length wraps", 1, math.MaxUint64, false},
		{"address and length wrap", math.MaxUint64, 2, false},
		{"top of the address space", math.MaxUint64, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := g.Slice(tc.gpa, tc.n)
			assert.Equal(t, tc.ok, g.Contains(tc.gpa, tc.n))
			if !tc.ok {
				assert.ErrorIs(t, err, ErrRange)
				return
			}
			require.NoError(t, err)
			assert.Len(t, b, int(tc.n))
			assert.Equal(t, len(b), cap(b), "an append must not reach into RAM behind")
		})
	}
	_, err = g.ReadAt(make([]byte, 1), -1)
	assert.ErrorIs(t, err, ErrRange)
	n, err := g.WriteAt(make([]byte, 3), PageSize-1)
	assert.ErrorIs(t, err, ErrRange)
	assert.Zero(t, n)
}

func TestFromBytesRefusesOverlap(t *testing.T) {
	_, err := FromBytes(Region{GPA: 0, Mem: make([]byte, 2)}, Region{GPA: 1, Mem: make([]byte, 2)})
	assert.ErrorIs(t, err, ErrRange)
	_, err = FromBytes(Region{GPA: math.MaxUint64, Mem: make([]byte, 2)})
	assert.ErrorIs(t, err, ErrRange)
}

func TestNew(t *testing.T) {
	for _, backing := range []Backing{Memfd, Anonymous} {
		for _, size := range []uint64{PageSize, 64 << 20, LowTop + 64<<20} {
			t.Run(backing.String(), func(t *testing.T) {
				fds := openFDs(t)
				g, err := New(Config{Size: size, Backing: backing, Name: "vole-test-ram"})
				require.NoError(t, err)
				assert.Equal(t, size, g.Size())
				for _, r := range g.Regions() {
					assert.Zero(t, r.HostAddress()%hugeSize, "aligned for huge pages")
				}
				last := g.Regions()[len(g.Regions())-1].End() - 4
				_, err = g.WriteAt([]byte("vole"), int64(last))
				require.NoError(t, err)
				p := make([]byte, 4)
				_, err = g.ReadAt(p, int64(last))
				require.NoError(t, err)
				assert.Equal(t, "vole", string(p))
				if backing == Memfd {
					assert.Contains(t, maps(t), "memfd:vole-test-ram")
				}
				var at []uintptr
				for _, r := range g.Regions() {
					at = append(at, r.HostAddress())
					_, mapped := guestRAM(t, r.HostAddress())
					assert.True(t, mapped)
				}
				require.NoError(t, g.Close())
				require.NoError(t, g.Close(), "twice is harmless")
				assert.NotContains(t, maps(t), "vole-test-ram")
				for _, addr := range at {
					_, mapped := guestRAM(t, addr)
					assert.False(t, mapped, "%#x", addr)
				}
				assert.Equal(t, fds, openFDs(t))
				_, err = g.Slice(0, 1)
				assert.ErrorIs(t, err, ErrRange)
			})
		}
	}
}

func TestNewTouchesNothing(t *testing.T) {
	for _, backing := range []Backing{Memfd, Anonymous} {
		t.Run(backing.String(), func(t *testing.T) {
			g, err := New(Config{Size: 1 << 30, Backing: backing, Huge: HugeNever, Name: "vole-rss"})
			require.NoError(t, err)
			defer g.Close()
			kib, mapped := guestRAM(t, g.Regions()[0].HostAddress())
			require.True(t, mapped)
			assert.Equal(t, 0, kib)
			_, err = g.WriteAt([]byte{1}, 512<<20)
			require.NoError(t, err)
			kib, _ = guestRAM(t, g.Regions()[0].HostAddress())
			assert.Equal(t, 4, kib)
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		want error
	}{
		{"nothing", Config{}, ErrSize},
		{"part of a page", Config{Size: PageSize + 1}, ErrSize},
		{"16 EiB less a page", Config{Size: math.MaxUint64 - PageSize + 1}, ErrSize},
		{"hugetlb in small pages", Config{Size: PageSize, Huge: HugeReserved}, ErrSize},
		{"more than the address space", Config{Size: 1 << 60}, ErrNoMemory},
		{"anonymous, more than the address space", Config{Size: 1 << 60, Backing: Anonymous}, ErrNoMemory},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fds := openFDs(t)
			_, err := New(tc.cfg)
			require.ErrorIs(t, err, tc.want)
			assert.Equal(t, fds, openFDs(t))
		})
	}
}

func BenchmarkSlice(b *testing.B) {
	g, err := FromBytes(Region{GPA: 0, Mem: make([]byte, PageSize)}, Region{GPA: HighStart, Mem: make([]byte, PageSize)})
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Slice(HighStart+64, 512); err != nil {
			b.Fatal(err)
		}
	}
}

func maps(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	return string(b)
}

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(e)
}

// guestRAM looks for the mapping of guest RAM at addr, which is one that core dumps
// leave out, and returns how much of it is resident.
func guestRAM(t *testing.T, addr uintptr) (kib int, mapped bool) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	in := false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		var from, to uintptr
		switch n, _ := fmt.Sscanf(f[0], "%x-%x", &from, &to); {
		case n == 2:
			in = from <= addr && addr < to
		case in && f[0] == "Rss:":
			_, err := fmt.Sscan(f[1], &kib)
			require.NoError(t, err)
		case in && f[0] == "VmFlags:":
			return kib, slices.Contains(f, "dd")
		}
	}
	return 0, false
}
