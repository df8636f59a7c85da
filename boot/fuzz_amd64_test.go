package boot

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
)

// sentinels are all that an image in memory can be refused for.
var sentinels = []error{ErrNotKernel, ErrWrongArch, ErrUnsupported, ErrMalformed, ErrTruncated, ErrTooBig, ErrCmdline, ErrParams, ErrEmpty}

func requireSentinel(t *testing.T, err error) {
	t.Helper()
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return
		}
	}
	t.Fatalf("no sentinel in %v", err)
}

const (
	fuzzMem    = 3 << 20
	fuzzCanary = 0x5a
)

// fuzzLoad loads data into a small guest and checks what every load must keep:
// Check agrees, a refused kernel writes nothing, and an accepted one nothing
// outside the places that are its own.
func fuzzLoad(t *testing.T, data, initrd []byte, cmdline string, force bool) {
	p := Params{
		Kernel: bytes.NewReader(data), Cmdline: cmdline, ACPI: testACPI, RSDP: ACPIAddr,
		Reserved: []Range{{GPA: 0xd0000000, Size: 1 << 28}}, ForceELF64: force,
	}
	if len(initrd) > 0 {
		p.Initrd = []Image{bytes.NewReader(initrd), bytes.NewReader(initrd[:1])}
	}
	backing := make([]byte, fuzzMem+2*pageSize)
	edge := [2][]byte{backing[:pageSize], backing[pageSize+fuzzMem:]}
	for _, e := range edge {
		copy(e, bytes.Repeat([]byte{fuzzCanary}, pageSize))
	}
	mem := backing[pageSize : pageSize+fuzzMem : pageSize+fuzzMem]
	g, err := memory.FromBytes(memory.Region{Mem: mem})
	require.NoError(t, err)

	checked := Check(p, fuzzMem)
	entry, err := Load(g, p)
	if err != nil {
		requireSentinel(t, err)
		require.EqualError(t, checked, err.Error())
		requireZero(t, mem, "a refused kernel was written")
		return
	}
	require.NoError(t, checked)
	require.GreaterOrEqual(t, entry.Kernel.GPA, uint64(KernelMin))
	require.True(t, entry.RIP >= entry.Kernel.GPA && entry.RIP < entry.Kernel.GPA+entry.Kernel.Size)
	if i := entry.InitrdRange; i.Size > 0 {
		require.GreaterOrEqual(t, i.GPA, entry.Kernel.GPA+entry.Kernel.Size)
		require.LessOrEqual(t, i.GPA+i.Size, uint64(fuzzMem))
		require.Equal(t, initrd, mem[i.GPA:i.GPA+uint64(len(initrd))])
	}
	// Wipe what the loader owns; the rest must still be zero.
	for _, r := range []Range{
		{GPA: GDTAddr, Size: gdtSize},
		{GPA: CmdlineAddr, Size: uint64(len(cmdline)) + 1},
		{GPA: ACPIAddr, Size: uint64(len(testACPI))},
		{GPA: StartInfoAddr, Size: pageSize},
		{GPA: ZeroPageAddr, Size: pageSize},
		{GPA: PageTableAddr, Size: pageTableSize},
		entry.Kernel, entry.InitrdRange,
	} {
		clear(mem[r.GPA : r.GPA+r.Size])
	}
	requireZero(t, mem, "written outside of what the loader owns")
	for _, e := range edge {
		require.Equal(t, bytes.Repeat([]byte{fuzzCanary}, pageSize), e)
	}
}

func requireZero(t *testing.T, mem []byte, what string) {
	t.Helper()
	for i := 0; i < len(mem); i += pageSize {
		if b := mem[i:min(i+pageSize, len(mem))]; !bytes.Equal(b, zeroes[:len(b)]) {
			t.Fatalf("%s: page %#x", what, i)
		}
	}
}

func seedBz() [][]byte {
	z := newBz()
	z.code = z.code[:0x400]
	small := func(f func(*bz)) []byte { return z.with(f).bytes() }
	return [][]byte{
		small(func(*bz) {}),
		small(func(z *bz) { z.setupSects = 0 }),
		small(func(z *bz) { z.relocatable, z.pref = 0, 0x100000 }),
		small(func(z *bz) { z.pref, z.align = 0, 0 }),
		small(func(z *bz) { z.initSize = 0x100000 }),
		small(func(z *bz) { z.initrdMax = 0x240000 }),
		small(func(z *bz) { z.xloadFlags = 0 }),
		z.bytes()[:0x400],
	}
}

func seedELF() [][]byte {
	e := newELF().with(func(e *elfImage) {
		e.segs[0].data = e.segs[0].data[:0x200]
		e.segs[2].data = pattern(0x80, 5)
	})
	small := func(f func(*elfImage)) []byte { return e.with(f).bytes() }
	return [][]byte{
		small(func(*elfImage) {}),
		small(func(e *elfImage) { e.segs = e.segs[:3] }),
		small(func(e *elfImage) { e.segs, e.entry = e.segs[:3], 0xffffffff81200010 }),
		small(func(e *elfImage) { e.segs[3].data = note("Xen\x00", 18, le32(0x200080)) }),
		small(func(e *elfImage) { e.segs[3].data, e.segs[3].align = pvhNotes(0x200000), 8 }),
		small(func(e *elfImage) { e.segs[1].paddr = 0x2fff00 }),
		small(func(e *elfImage) { e.machine = 3 }),
		e.bytes()[:100],
	}
}

func FuzzProbe(f *testing.F) {
	for _, s := range append(seedBz(), seedELF()...) {
		f.Add(s)
	}
	for _, o := range otherFiles {
		f.Add(at(0x300, o.off, o.magic))
	}
	for _, o := range otherKernels {
		f.Add(at(0x300, o.off, o.magic))
	}
	f.Add(pe(0xaa64))
	f.Add([]byte("text\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, h, err := Probe(bytes.NewReader(data))
		if err != nil {
			requireSentinel(t, err)
			return
		}
		if kind == ELF {
			require.Nil(t, h)
			return
		}
		require.Equal(t, BzImage, kind)
		require.LessOrEqual(t, h.SetupSize+h.SystemSize, int64(len(data)))
		require.LessOrEqual(t, h.PayloadOffset+h.PayloadLength, int64(len(data)))
		require.LessOrEqual(t, len(h.raw), setupHeaderMax)
		require.LessOrEqual(t, len(h.KernelVersion), 256)
	})
}

func FuzzLoadBzImage(f *testing.F) {
	for i, s := range seedBz() {
		f.Add(s, pattern(i*100, 1), "console=ttyS0")
	}
	f.Fuzz(func(t *testing.T, data, initrd []byte, cmdline string) {
		fuzzLoad(t, data, initrd, cmdline, false)
	})
}

func FuzzLoadELF(f *testing.F) {
	for i, s := range seedELF() {
		f.Add(s, pattern(i*100, 1), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, data, initrd []byte, force bool) {
		fuzzLoad(t, data, initrd, "console=ttyS0", force)
	})
}
