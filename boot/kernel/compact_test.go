package kernel

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bufferAt is a file in memory.
type bufferAt struct{ b []byte }

func (f *bufferAt) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

// compact stores a vmlinux that comes in writes of n bytes.
func compact(tb testing.TB, vmlinux []byte, n int) []byte {
	tb.Helper()
	var f bufferAt
	c := newCompactor(&f)
	for b := vmlinux; len(b) > 0; {
		k := min(n, len(b))
		written, err := c.Write(b[:k])
		require.NoError(tb, err)
		require.Equal(tb, k, written)
		b = b[k:]
	}
	size, err := c.finish()
	require.NoError(tb, err)
	require.Len(tb, f.b, int(size))
	return f.b
}

func programHeaders(file []byte) []progHeader {
	le := binary.LittleEndian
	var all []progHeader
	for i := range uint64(le.Uint16(file[ehdrPhnum:])) {
		all = append(all, decodeProgHeader(file[le.Uint64(file[ehdrPhoff:])+i*phdrSize:]))
	}
	return all
}

// checkCompact checks what every loader relies on.
func checkCompact(tb testing.TB, original, file []byte) {
	tb.Helper()
	assert.Equal(tb, memoryOf(tb, original), memoryOf(tb, file), "physical memory after loading")
	assert.Equal(tb, notesOf(tb, original), notesOf(tb, file), "PT_NOTE")
	assert.Equal(tb, original[:ehdrPhoff], file[:ehdrPhoff], "file header with the entry")
	covered := func(file []byte) (sum uint64) {
		for _, p := range programHeaders(file) {
			if p.Type == ptLoad {
				sum += p.Memsz
			}
		}
		return sum
	}
	assert.Equal(tb, covered(original), covered(file), "memory that the segments cover")
	for i, p := range programHeaders(file) {
		if p.Type != ptLoad {
			continue
		}
		assert.LessOrEqual(tb, p.Filesz, p.Memsz, "segment %d", i)
		assert.LessOrEqual(tb, p.Offset+p.Filesz, uint64(len(file)), "segment %d", i)
		assert.Zero(tb, (p.Offset^p.Paddr)%pageSize, "segment %d can be mapped", i)
		assert.Zero(tb, (p.Offset^p.Vaddr)%pageSize, "segment %d can be mapped", i)
	}
}

func TestCompact(t *testing.T) {
	vmlinux := makeVmlinux()
	whole := compact(t, vmlinux, len(vmlinux))
	checkCompact(t, vmlinux, whole)
	for _, n := range []int{1, 63, 4095, 4096, 4097, 100_000} {
		assert.True(t, bytes.Equal(whole, compact(t, vmlinux, n)), "in writes of %d bytes", n)
	}
	// Data splits at its two gaps of four pages, init at the zeroes between its
	// two texts; zero tails go. That leaves, in pages: 7 + 2 + 1 + 1 ...
	var pages []uint64
	for _, p := range programHeaders(whole) {
		if p.Type == ptLoad {
			pages = append(pages, (p.Filesz+pageSize-1)/pageSize)
		}
	}
	assert.Equal(t, []uint64{7, 4, 1, 1, 1, 1, 1}, pages)
	assert.Less(t, len(whole), len(vmlinux)/3)
}

func TestCompactKeepsWhatItDoesNotUnderstand(t *testing.T) {
	edit := func(i int, f func(p *progHeader)) []byte {
		b := makeVmlinux()
		at := ehdrSize + i*phdrSize
		p := decodeProgHeader(b[at:])
		f(&p)
		copy(b[at:], p.append(nil))
		return b
	}
	header := func(f func(b []byte)) []byte {
		b := makeVmlinux()
		f(b)
		return b
	}
	le := binary.LittleEndian
	for name, vmlinux := range map[string][]byte{
		"segments overlap in the file":    edit(1, func(p *progHeader) { p.Offset, p.Paddr, p.Vaddr = 0x2000, 0x2000, 0x2000 }),
		"segments overlap in memory":      edit(1, func(p *progHeader) { p.Paddr = 0x1000000 }),
		"an address wraps":                edit(1, func(p *progHeader) { p.Paddr = 0xfffffffffffff000 }),
		"an offset that can't be mapped":  edit(1, func(p *progHeader) { p.Paddr += 0x10 }),
		"an address that can't be mapped": edit(1, func(p *progHeader) { p.Vaddr += 0x10 }),
		"more in the file than in memory": edit(0, func(p *progHeader) { p.Memsz = 1 }),
		"a note outside of the segments":  edit(4, func(p *progHeader) { p.Offset = 0 }),
		"no segments":                     header(func(b []byte) { le.PutUint16(b[ehdrPhnum:], 0) }),
		"too many program headers":        header(func(b []byte) { le.PutUint16(b[ehdrPhnum:], maxSegments+1) }),
		"program headers far away":        header(func(b []byte) { le.PutUint64(b[ehdrPhoff:], maxHead) }),
		"program headers of another size": header(func(b []byte) { le.PutUint16(b[ehdrPhentsize:], 32) }),
		"too short":                       makeVmlinux()[:20],
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{1000, len(vmlinux)} {
				assert.True(t, bytes.Equal(vmlinux, compact(t, vmlinux, n)))
			}
		})
	}
}

func TestCompactOfShortFile(t *testing.T) {
	c := newCompactor(&bufferAt{})
	_, err := c.Write(makeVmlinux()[:0x9000])
	require.NoError(t, err)
	_, err = c.finish()
	assert.ErrorIs(t, err, errShort)
}

func TestCompactSegmentWithoutBytes(t *testing.T) {
	vmlinux := makeVmlinux()
	at := ehdrSize + 2*phdrSize // the per-CPU segment becomes bss
	p := decodeProgHeader(vmlinux[at:])
	p.Filesz = 0
	copy(vmlinux[at:], p.append(nil))
	checkCompact(t, vmlinux, compact(t, vmlinux, 5000))
}

// TestCompactManyGaps has more gaps than headers for them.
func TestCompactManyGaps(t *testing.T) {
	const gaps = 2 * maxSegments
	size := uint64((gaps*5 + 1) * pageSize)
	head := progHeader{Type: ptLoad, Flags: 7, Offset: pageSize, Vaddr: 0x1000000, Paddr: 0x1000000, Filesz: size, Memsz: size + 100, Align: pageSize}
	vmlinux := make([]byte, pageSize+size)
	copy(vmlinux, makeELFHeader(0x1000000, 1, 0))
	copy(vmlinux[ehdrSize:], head.append(nil))
	for at := uint64(0); at < size; at += 5 * pageSize {
		vmlinux[pageSize+at] = 1
	}
	file := compact(t, vmlinux, 10_000)
	checkCompact(t, vmlinux, file)
	assert.Len(t, programHeaders(file), maxSegments)
}

func FuzzCompact(f *testing.F) {
	// A small file with one gap, so that mutations reach the headers.
	seed := make([]byte, 8*pageSize+100)
	copy(seed, makeELFHeader(0x1000000, 2, 0))
	table := progHeader{Type: ptLoad, Offset: 0, Vaddr: 0x1000000, Paddr: 0x1000000, Filesz: 7 * pageSize, Memsz: 9 * pageSize}.append(nil)
	table = progHeader{Type: 4, Offset: 6*pageSize + 8, Filesz: 16}.append(table)
	copy(seed[ehdrSize:], table)
	seed[6*pageSize+8] = 1
	f.Add(seed, 1000)
	f.Add(seed[:3*pageSize], 4096)
	f.Fuzz(func(t *testing.T, vmlinux []byte, n int) {
		if len(vmlinux) < ehdrSize || checkELF(vmlinux[:ehdrSize]) != nil || n < 1 {
			return
		}
		var file bufferAt
		c := newCompactor(&file)
		for b := vmlinux; len(b) > 0; b = b[min(n, len(b)):] {
			if _, err := c.Write(b[:min(n, len(b))]); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.finish(); err != nil || c.verbatim {
			if err == nil && !bytes.Equal(file.b, vmlinux) {
				t.Fatal("kept, but not as it was")
			}
			return
		}
		checkCompact(t, vmlinux, file.b)
	})
}

func BenchmarkCompact(b *testing.B) {
	vmlinux := makeVmlinux()
	b.SetBytes(int64(len(vmlinux)))
	b.ReportAllocs()
	for b.Loop() {
		c := newCompactor(discardAt{})
		if _, err := c.Write(vmlinux); err != nil {
			b.Fatal(err)
		}
		if _, err := c.finish(); err != nil {
			b.Fatal(err)
		}
	}
}

type discardAt struct{}

func (discardAt) WriteAt(p []byte, _ int64) (int, error) { return io.Discard.Write(p) }
