package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/memory"
)

func TestPieces(t *testing.T) {
	got := pieces([]read{{off: 7, gpa: 0x1ff000, size: 0x401000}, {gpa: 0x800000, size: 0}, {gpa: 0x900000, size: 3}})
	assert.Equal(t, []read{
		{off: 7, gpa: 0x1ff000, size: 0x1000},
		{off: 0x1007, gpa: 0x200000, size: 0x200000},
		{off: 0x201007, gpa: 0x400000, size: 0x200000},
		{gpa: 0x900000, size: 3},
	}, got)
	assert.NoError(t, readAll(guest(t, 4096), nil))
}

func TestCopyNonZero(t *testing.T) {
	page := pattern(pageSize, 1)
	zero := make([]byte, pageSize)
	for _, tc := range []struct {
		name  string
		src   []byte
		first uint64
		keep  []int // offsets of bytes of dst that must not be written
	}{
		{"nothing", nil, 0, nil},
		{"a page", page, 0, nil},
		{"a page of zeroes", zero, 0, []int{0, 4095}},
		{"zeroes between", append(append(append([]byte(nil), page...), zero...), page...), 0, []int{4096, 8191}},
		{"last byte counts", append(make([]byte, pageSize-1), 1), 0, nil},
		{"from within a page", append(make([]byte, 96), page...), 4000, []int{0, 95}},
		{"up to within a page", append(append([]byte(nil), page...), 0, 0), 0, []int{4096, 4097}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dst := bytes.Repeat([]byte{0xcc}, len(tc.src)+8)
			copyNonZero(dst, tc.src, tc.first)
			assert.Equal(t, bytes.Repeat([]byte{0xcc}, 8), dst[len(tc.src):])
			for _, i := range tc.keep {
				assert.Equal(t, byte(0xcc), dst[i], i)
			}
			for i, c := range tc.src {
				if c != 0 {
					require.Equal(t, c, dst[i], i)
				}
			}
		})
	}
}

// A big file read by several workers arrives whole, from odd offsets too.
func TestReadAll(t *testing.T) {
	data := make([]byte, 9<<20+123)
	for i := 0; i < len(data); i += 977 {
		data[i] = byte(i) | 1
	}
	clear(data[3<<20 : 5<<20])
	for _, sparse := range []bool{false, true} {
		for _, gpa := range []uint64{0x200000, 0x2345} {
			t.Run(fmt.Sprintf("sparse=%v gpa=%#x", sparse, gpa), func(t *testing.T) {
				g := guest(t, 16<<20)
				require.NoError(t, readAll(g, []read{{img: bytes.NewReader(data), off: 11, gpa: gpa, size: uint64(len(data) - 11), sparse: sparse}}))
				assert.True(t, bytes.Equal(data[11:], slice(t, g, gpa, uint64(len(data)-11))))
			})
		}
	}
}

// failFrom fails every read from an offset on and counts the reads.
type failFrom struct {
	from  int64
	err   error
	reads *atomic.Int64
}

func (f failFrom) Size() int64 { return 1 << 40 }
func (f failFrom) ReadAt(p []byte, off int64) (int, error) {
	f.reads.Add(1)
	if off >= f.from {
		return 0, f.err
	}
	return len(p), nil
}

func TestReadAllStopsAtAnError(t *testing.T) {
	sick := errors.New("disk on fire")
	var n atomic.Int64
	err := readAll(guest(t, 64<<20), []read{{name: "k", img: failFrom{8 << 20, sick, &n}, size: 64 << 20}})
	assert.ErrorIs(t, err, sick)
	assert.ErrorContains(t, err, "boot: k: reading 2097152 bytes at offset ")
	assert.Less(t, n.Load(), int64(4+2*maxWorkers+1))
	assert.ErrorIs(t, readAll(guest(t, 4096), []read{{name: "k", size: 4097}}), memory.ErrRange)
}

// Where the host has no page for guest memory, that is an error.
func TestGuestMemoryFaults(t *testing.T) {
	ro, err := unix.Mmap(-1, 0, 8<<20, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, unix.Munmap(ro)) })
	g, err := memory.FromBytes(memory.Region{Mem: ro})
	require.NoError(t, err)
	_, err = Load(g, params(newBz().image()))
	assert.ErrorIs(t, err, memory.ErrNoMemory)
	assert.ErrorContains(t, err, "boot: GDT: writing guest memory: ")

	path := t.TempDir() + "/k"
	require.NoError(t, os.WriteFile(path, make([]byte, 4096), 0o600))
	f, err := OpenImage(path)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, f.Close()) })
	for name, img := range map[string]Image{"by the kernel": f, "by us": bytes.NewReader(pattern(4096, 1))} {
		err = readAll(g, []read{{name: "k", img: img, gpa: 0, size: 4096}})
		assert.ErrorIs(t, err, memory.ErrNoMemory, name)
	}
	assert.ErrorIs(t, guarded(func() error { return syscall.EFAULT }), memory.ErrNoMemory)
	assert.PanicsWithValue(t, "bug", func() { _ = guarded(func() error { panic("bug") }) })
}

// resident returns how many bytes of the mapping called name are resident.
func resident(t testing.TB, name string) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	total, in := 0, false
	for _, line := range strings.Split(string(maps), "\n") {
		if f := strings.Fields(line); len(f) >= 5 && strings.Contains(f[0], "-") {
			in = strings.Contains(line, name)
		} else if in && len(f) == 3 && f[0] == "Rss:" {
			kb, err := strconv.Atoi(f[1])
			require.NoError(t, err)
			total += kb << 10
		}
	}
	return total
}

// Only pages with content become resident: neither bss nor zeroes in the file.
func TestTouchedPages(t *testing.T) {
	elf := newELF().with(func(e *elfImage) {
		e.segs[2].data = make([]byte, 4<<20)
		e.segs[2].data[2<<20] = 1
		e.segs[2].memsz = 32 << 20
	})
	for _, tc := range []struct {
		name    string
		kernel  Image
		force   bool
		huge    bool
		kernels int // pages
		tables  int
	}{
		// One page each: GDT, command line, ACPI, start_info or zero page.
		{"pvh", elf.image(), false, false, 2 + 1 + 1, 0},
		{"elf64", elf.image(), true, false, 2 + 1 + 1, 6},
		{"elf64, 1 GiB pages", elf.image(), true, true, 2 + 1 + 1, 2},
		{"bzImage", newBz().image(), false, false, 1, 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := "vole-boot-" + strings.Map(func(r rune) rune {
				if r == ' ' || r == ',' {
					return '-'
				}
				return r
			}, tc.name)
			g, err := memory.New(memory.Config{Backing: memory.Memfd, Size: 64 << 20, Huge: memory.HugeNever, Name: name})
			require.NoError(t, err)
			defer func() { assert.NoError(t, g.Close()) }()
			require.Zero(t, resident(t, name))
			p := params(tc.kernel)
			p.ForceELF64, p.HugeIdentity1G = tc.force, tc.huge
			_, err = Load(g, p)
			require.NoError(t, err)
			assert.Equal(t, (4+tc.tables+tc.kernels)*pageSize, resident(t, name))
		})
	}
}
