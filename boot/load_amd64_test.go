package boot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
)

var update = flag.Bool("update", false, "write the golden files under testdata anew")

// golden compares b, as a hex dump, with testdata/name.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	got := dump(b)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
}

// dump is a hex dump without the lines that hold only zeroes.
func dump(b []byte) string {
	var out strings.Builder
	for _, line := range strings.SplitAfter(hex.Dump(b), "\n") {
		if strings.Trim(strings.TrimSuffix(line[min(8, len(line)):], "|................|\n"), " 0") != "" {
			out.WriteString(line)
		}
	}
	return out.String()
}

func guest(t testing.TB, size uint64) *memory.Guest {
	t.Helper()
	g, err := memory.FromBytes(memory.Region{Mem: make([]byte, size)})
	require.NoError(t, err)
	return g
}

// bigGuest has RAM on both sides of the hole; its pages are only touched where
// the loader writes.
func bigGuest(t testing.TB, size uint64) *memory.Guest {
	t.Helper()
	g, err := memory.New(memory.Config{Backing: memory.Memfd, Size: size})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, g.Close()) })
	return g
}

func slice(t testing.TB, g *memory.Guest, gpa, n uint64) []byte {
	t.Helper()
	b, err := g.Slice(gpa, n)
	require.NoError(t, err)
	return b
}

var testACPI = append([]byte("RSD PTR "), pattern(0x100, 3)...)

func params(k Image) Params {
	return Params{
		Kernel: k, KernelName: "vmlinuz", Cmdline: "console=ttyS0 panic=-1",
		ACPI: testACPI, RSDP: ACPIAddr,
		Reserved: []Range{{GPA: 0xd0000000, Size: 0x10000000}},
	}
}

func TestLoadBzImage(t *testing.T) {
	const size = 3<<30 + 1<<30
	g := bigGuest(t, size)
	p := params(newBz().image())
	p.Initrd = []Image{bytes.NewReader(pattern(4097, 1)), bytes.NewReader(nil), bytes.NewReader(pattern(10, 2))}
	require.NoError(t, Check(p, size))
	e, err := Load(g, p)
	require.NoError(t, err)
	assert.Equal(t, Entry{
		Protocol: ProtocolBzImage64, Long: true,
		RIP: 0x200200, RSI: ZeroPageAddr, RSP: StackTop, CR3: PageTableAddr,
		GDTBase: GDTAddr, GDTLimit: 0x2f,
		Kernel:      Range{GPA: 0x200000, Size: 0x3000},
		InitrdRange: Range{GPA: 0x7fffe000, Size: 4100 + 12},
	}, e)
	assert.Equal(t, newBz().code, slice(t, g, 0x200000, 0x800))
	assert.Equal(t, pattern(4097, 1), slice(t, g, 0x7fffe000, 4097))
	assert.Equal(t, append([]byte{0, 0, 0}, pattern(10, 2)...), slice(t, g, 0x7fffe000+4097, 13))
	assert.Equal(t, p.Cmdline+"\x00", string(slice(t, g, CmdlineAddr, uint64(len(p.Cmdline))+1)))
	assert.Equal(t, testACPI, slice(t, g, ACPIAddr, uint64(len(testACPI))))
	golden(t, "zeropage-bzimage.hex", slice(t, g, ZeroPageAddr, 0x1000))
	golden(t, "gdt-long.hex", slice(t, g, GDTAddr, gdtSize))
	assert.Equal(t, identity(PageTableAddr, false), slice(t, g, PageTableAddr, pageTableSize))
}

func TestLoadPVH(t *testing.T) {
	const size = 3<<30 + 1<<30
	g := bigGuest(t, size)
	p := params(newELF().image())
	p.Initrd = []Image{bytes.NewReader(pattern(4097, 1))}
	require.NoError(t, Check(p, size))
	e, err := Load(g, p)
	require.NoError(t, err)
	assert.Equal(t, Entry{
		Protocol: ProtocolPVH,
		RIP:      0x200040, RBX: StartInfoAddr, RSP: StackTop,
		GDTBase: GDTAddr, GDTLimit: 0x2f,
		Kernel:      Range{GPA: 0x200000, Size: 0x8000},
		InitrdRange: Range{GPA: 3<<30 - 0x2000, Size: 4100},
	}, e)
	for _, s := range newELF().segs[:3] {
		assert.Equal(t, s.data, slice(t, g, s.paddr, uint64(len(s.data))))
	}
	golden(t, "startinfo.hex", slice(t, g, StartInfoAddr, 0x1000))
	golden(t, "gdt-pvh.hex", slice(t, g, GDTAddr, gdtSize))
	assert.Equal(t, make([]byte, 0x1000), slice(t, g, ZeroPageAddr, 0x1000), "PVH needs no zero page")
	assert.Equal(t, make([]byte, pageTableSize), slice(t, g, PageTableAddr, pageTableSize), "nor page tables")
}

func TestLoadPVHWithoutInitrd(t *testing.T) {
	g := guest(t, 4<<20)
	e, err := Load(g, Params{Kernel: newELF().image()})
	require.NoError(t, err)
	assert.Equal(t, Range{}, e.InitrdRange)
	golden(t, "startinfo-bare.hex", slice(t, g, StartInfoAddr, 0x1000))
}

func TestLoadELF64(t *testing.T) {
	noNote := newELF().with(func(e *elfImage) { e.segs = e.segs[:3] })
	for _, tc := range []struct {
		name  string
		elf   elfImage
		force bool
		rip   uint64
	}{
		{"no note", noNote, false, 0x200000},
		{"forced", newELF(), true, 0x200000},
		{"virtual entry", noNote.with(func(e *elfImage) { e.entry = 0xffffffff81200123 }), false, 0x200123},
		{"virtual entry near 0", noNote.with(func(e *elfImage) { e.entry = 0x10 }), false, 0x202010},
		{"position independent", noNote.with(func(e *elfImage) { e.typ = 3 }), false, 0x200000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guest(t, 8<<20)
			p := params(tc.elf.image())
			p.ForceELF64 = tc.force
			p.HugeIdentity1G = true
			p.Initrd = []Image{bytes.NewReader(pattern(10, 2))}
			e, err := Load(g, p)
			require.NoError(t, err)
			assert.Equal(t, Entry{
				Protocol: ProtocolELF64, Long: true,
				RIP: tc.rip, RSI: ZeroPageAddr, RSP: StackTop, CR3: PageTableAddr,
				GDTBase: GDTAddr, GDTLimit: 0x2f,
				Kernel:      Range{GPA: 0x200000, Size: 0x8000},
				InitrdRange: Range{GPA: 0x7ff000, Size: 12},
			}, e)
			golden(t, "zeropage-elf64.hex", slice(t, g, ZeroPageAddr, 0x1000))
			assert.Equal(t, identity(PageTableAddr, true), slice(t, g, PageTableAddr, 2*pageSize))
			assert.Equal(t, make([]byte, 4*pageSize), slice(t, g, PageTableAddr+2*pageSize, 4*pageSize))
		})
	}
}

func TestPlaceBzImage(t *testing.T) {
	for _, tc := range []struct {
		name        string
		edit        func(*bz)
		addr, need  uint64
		initrd, max uint64 // expected address; memory size
	}{
		{"as preferred", func(*bz) {}, 0x200000, 0x3000, 8<<20 - 4096, 8 << 20},
		{"aligned up", func(z *bz) { z.pref = 0x280000 }, 0x300000, 0x3000, 8<<20 - 4096, 8 << 20},
		{"no preference", func(z *bz) { z.pref = 0 }, 0x100000, 0x3000, 8<<20 - 4096, 8 << 20},
		{"no alignment", func(z *bz) { z.pref, z.align = 0x212345, 0 }, 0x212345, 0x3000, 8<<20 - 4096, 8 << 20},
		{"not relocatable", func(z *bz) { z.pref, z.relocatable = 0x280000, 0 }, 0x280000, 0x3000, 8<<20 - 4096, 8 << 20},
		{"init_size below syssize", func(z *bz) { z.initSize = 1 }, 0x200000, 0x800, 8<<20 - 4096, 8 << 20},
		{"initrd_addr_max", func(z *bz) { z.initrdMax = 0x3fffff }, 0x200000, 0x3000, 4<<20 - 4096, 8 << 20},
		{"initrd_addr_max is the last address", func(z *bz) { z.initrdMax = 0x3ffffe }, 0x200000, 0x3000, 4<<20 - 4096, 8 << 20},
		{"initrd_addr_max cuts the last page", func(z *bz) { z.initrdMax = 0x3ffff0 }, 0x200000, 0x3000, 4<<20 - 4096, 8 << 20},
		{"initrd_addr_max of 4 GiB", func(z *bz) { z.initrdMax = 0xffffffff }, 0x200000, 0x3000, 8<<20 - 4096, 8 << 20},
		{"fills memory to the page", func(z *bz) { z.initSize = 8<<20 - 0x200000 - 4096 }, 0x200000, 8<<20 - 0x200000 - 4096, 8<<20 - 4096, 8 << 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := params(newBz().with(tc.edit).image())
			p.Initrd = []Image{bytes.NewReader(pattern(0xf0, 2))}
			e, err := Load(guest(t, tc.max), p)
			require.NoError(t, err)
			assert.Equal(t, tc.addr+0x200, e.RIP)
			assert.Equal(t, Range{GPA: tc.addr, Size: tc.need}, e.Kernel)
			assert.Equal(t, Range{GPA: tc.initrd, Size: 0xf0}, e.InitrdRange)
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	bzWith := func(f func(*bz)) Params { return params(newBz().with(f).image()) }
	elfWith := func(f func(*elfImage)) Params { return params(newELF().with(f).image()) }
	edit := func(f func(*Params)) Params {
		p := params(newBz().image())
		f(&p)
		return p
	}
	const mem = 8 << 20
	for _, tc := range []struct {
		name string
		p    Params
		mem  uint64
		is   error
		text string
	}{
		{"text file", edit(func(p *Params) { p.Kernel = strings.NewReader("hello") }), mem, ErrNotKernel, "boot: vmlinuz: not a Linux kernel: a text file"},
		{"no kernel", edit(func(p *Params) { p.Kernel = nil }), mem, ErrParams, "boot: no kernel image"},
		{"no memory", edit(func(*Params) {}), 0, ErrTooBig, "boot: the guest needs more than 1 MiB of memory from address 0 on"},
		{"1 MiB", edit(func(*Params) {}), 1 << 20, ErrTooBig, "boot: the guest needs more than 1 MiB of memory from address 0 on"},

		{"kernel behind memory", bzWith(func(z *bz) { z.pref = 0x10000000 }), mem, ErrTooBig, "boot: vmlinuz: the kernel needs 12288 bytes from 0x10000000 on, the guest has memory up to 0x800000"},
		{"init_size", bzWith(func(z *bz) { z.initSize = mem - 0x200000 + 1 }), mem, ErrTooBig, "boot: vmlinuz: the kernel needs 6.0 MiB from 0x200000 on, the guest has memory up to 0x800000"},
		{"init_size of 4 GiB", bzWith(func(z *bz) { z.initSize = 0xffffffff }), mem, ErrTooBig, "boot: vmlinuz: the kernel needs 4096.0 MiB from 0x200000 on, the guest has memory up to 0x800000"},
		{"pref_address wraps", bzWith(func(z *bz) { z.pref = 1<<64 - 1 }), mem, ErrTooBig, "boot: vmlinuz: the kernel needs 12288 bytes from 0xffffffffffffffff on, the guest has memory up to 0x800000"},
		{"pref_address too low", bzWith(func(z *bz) { z.pref, z.relocatable = 0x9000, 0 }), mem, ErrMalformed, "boot: vmlinuz: malformed setup header: it wants to be at 0x9000, below 1 MiB, and is not relocatable"},

		{"segment below 1 MiB", elfWith(func(e *elfImage) { e.segs[0].paddr = 0x7000 }), mem, ErrMalformed, "boot: vmlinuz: malformed ELF: a segment at 0x7000, below 1 MiB, where boot structures are"},
		{"segment behind memory", elfWith(func(e *elfImage) { e.segs[2].paddr = mem }), mem, ErrTooBig, "boot: vmlinuz: a segment of 20480 bytes at 0x800000 is outside memory, which ends at 0x800000"},
		{"segment at the end of addresses", elfWith(func(e *elfImage) { e.segs[2].paddr = 1<<64 - 0x6000 }), mem, ErrTooBig, "boot: vmlinuz: a segment of 20480 bytes at 0xffffffffffffa000 is outside memory, which ends at 0x800000"},
		{"bss behind memory", elfWith(func(e *elfImage) { e.segs[2].memsz = mem }), mem, ErrTooBig, "boot: vmlinuz: a segment of 8.0 MiB at 0x203000 is outside memory, which ends at 0x800000"},
		{"PVH entry nowhere", elfWith(func(e *elfImage) { e.segs[3].data = pvhNotes(0x100000) }), mem, ErrMalformed, "boot: vmlinuz: malformed ELF: its PVH entry 0x100000 is in no segment"},
		{"PVH entry in bss", elfWith(func(e *elfImage) { e.segs[3].data = pvhNotes(0x207000) }), mem, ErrMalformed, "boot: vmlinuz: malformed ELF: its PVH entry 0x207000 is in no segment"},
		{"entry nowhere", elfWith(func(e *elfImage) { e.entry = 0x1234567; e.segs = e.segs[:3] }), mem, ErrMalformed, "boot: vmlinuz: malformed ELF: its entry 0x1234567 is in no segment"},

		{"initrd larger than memory", edit(func(p *Params) { p.Initrd = []Image{badImage{size: mem + 1}} }), mem, ErrTooBig, "boot: initrd: an initrd of at least 8.0 MiB is larger than the guest's memory below 4 GiB, 8.0 MiB"},
		{"initrd of 8 EiB, twice", edit(func(p *Params) { p.Initrd = []Image{badImage{size: 1<<63 - 1}, badImage{size: 1<<63 - 1}} }), mem, ErrTooBig, ""},
		{"initrds together", edit(func(p *Params) { p.Initrd = []Image{badImage{size: mem - 1}, badImage{size: 2}} }), mem, ErrTooBig, ""},
		{"initrd meets kernel", edit(func(p *Params) { p.Initrd, p.InitrdName = []Image{badImage{size: mem - 0x203000 + 1}}, "x.img" }), mem, ErrTooBig, "boot: x.img: an initrd of 6.0 MiB does not fit between the kernel, which ends at 0x203000, and 0x800000"},
		{"initrd only unaligned", edit(func(p *Params) {
			p.Kernel = newBz().with(func(z *bz) { z.initSize = mem - 0x200000 - 100 }).image()
			p.Initrd = []Image{badImage{size: 50}}
		}), mem, ErrTooBig, ""},
		{"initrd_addr_max below kernel", edit(func(p *Params) {
			p.Kernel = newBz().with(func(z *bz) { z.initrdMax = 0x1fffff }).image()
			p.Initrd = []Image{badImage{size: 1}}
		}), mem, ErrTooBig, "boot: initrd: an initrd of 4 bytes does not fit between the kernel, which ends at 0x203000, and 0x200000"},
		{"initrd is nil", edit(func(p *Params) { p.Initrd = []Image{nil} }), mem, ErrParams, "boot: initrd: part 0 is no image"},
		{"initrd of negative size", edit(func(p *Params) { p.Initrd = []Image{badImage{size: -1}} }), mem, ErrParams, ""},

		{"long command line", edit(func(p *Params) { p.Cmdline = strings.Repeat("x", 2048) }), mem, ErrCmdline, "boot: command line: 2048 bytes are too long, the kernel takes 2047"},
		{"long command line for ELF", edit(func(p *Params) { p.Kernel, p.Cmdline = newELF().image(), strings.Repeat("x", 2048) }), mem, ErrCmdline, "boot: command line: 2048 bytes are too long, the kernel takes 2047"},
		{"kernel without cmdline_size", edit(func(p *Params) {
			p.Kernel, p.Cmdline = newBz().with(func(z *bz) { z.cmdlineSize = 0 }).image(), strings.Repeat("x", 256)
		}), mem, ErrCmdline, "boot: command line: 256 bytes are too long, the kernel takes 255"},
		{"command line beyond memory for it", edit(func(p *Params) {
			p.Kernel, p.Cmdline = newBz().with(func(z *bz) { z.cmdlineSize = 0xffffffff }).image(), strings.Repeat("x", EBDAStart-CmdlineAddr)
		}), mem, ErrCmdline, "boot: command line: 523264 bytes are too long, the kernel takes 523263"},
		{"zero byte in command line", edit(func(p *Params) { p.Cmdline = "a\x00b" }), mem, ErrCmdline, "boot: command line: byte 1 is zero"},

		{"ACPI too long", edit(func(p *Params) { p.ACPI = make([]byte, 0x20001) }), mem, ErrParams, "boot: ACPI tables: 131073 bytes are more than the 131072 below 1 MiB"},
		{"RSDP elsewhere", edit(func(p *Params) { p.RSDP = 0xf0000 }), mem, ErrParams, "boot: ACPI tables: the RSDP address 0xf0000 is outside of them"},
		{"reserved RAM", edit(func(p *Params) { p.Reserved = []Range{{GPA: mem - 1, Size: 1}} }), mem, ErrParams, "boot: memory map: ranges of the memory map at 0x100000 (0x700000 bytes) and 0x7fffff overlap"},
		{"reserved nothing", edit(func(p *Params) { p.Reserved = []Range{{GPA: mem}} }), mem, ErrParams, "boot: memory map: reserved range at 0x800000 with 0x0 bytes is empty or wraps"},
		{"reserved wraps", edit(func(p *Params) { p.Reserved = []Range{{GPA: mem, Size: 1<<64 - 1}} }), mem, ErrParams, ""},
		{"reserved too often", edit(func(p *Params) { p.Reserved = make([]Range, 124) }), mem, ErrParams, "boot: memory map: 124 reserved ranges do not fit into the memory map"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Check(tc.p, tc.mem)
			require.ErrorIs(t, err, tc.is)
			if tc.text != "" {
				assert.EqualError(t, err, tc.text)
			}
			g := guest(t, tc.mem)
			e, lerr := Load(g, tc.p)
			assert.Equal(t, Entry{}, e)
			assert.EqualError(t, lerr, err.Error())
			assert.ErrorIs(t, lerr, tc.is)
			assert.Equal(t, make([]byte, tc.mem), slice(t, g, 0, tc.mem), "nothing is written")
		})
	}
	assert.ErrorIs(t, Check(params(newBz().image()), 1<<64-1), ErrParams)
}

func TestCmdlineLimit(t *testing.T) {
	p := params(newBz().image())
	p.Cmdline = strings.Repeat("x", 2047)
	assert.NoError(t, Check(p, 8<<20))
	p.Kernel = newELF().image()
	assert.NoError(t, Check(p, 8<<20))
	p.Kernel = newBz().with(func(z *bz) { z.cmdlineSize = 0xffffffff }).image()
	p.Cmdline = strings.Repeat("x", EBDAStart-CmdlineAddr-1)
	g := guest(t, 8<<20)
	_, err := Load(g, p)
	require.NoError(t, err)
	assert.Equal(t, []byte{'x', 0, 0}, slice(t, g, EBDAStart-2, 3))
}

func TestReservedFills(t *testing.T) {
	p := params(newBz().image())
	p.Reserved = nil
	for i := range uint64(123) {
		p.Reserved = append(p.Reserved, Range{GPA: 0xd0000000 + i<<20, Size: 1 << 20})
	}
	g := guest(t, 8<<20)
	_, err := Load(g, p)
	require.NoError(t, err)
	assert.Equal(t, byte(127), slice(t, g, ZeroPageAddr, 0x1000)[zpE820Entries])
	p.Kernel = newELF().image()
	_, err = Load(guest(t, 8<<20), p)
	require.NoError(t, err)
	assert.LessOrEqual(t, memmapOffset+127*memmapEntrySize, startInfoEnd-StartInfoAddr)
}

func TestLoadOddGuests(t *testing.T) {
	for name, regions := range map[string][]memory.Region{
		"none":         nil,
		"not at 0":     {{GPA: 0x1000, Mem: make([]byte, 8<<20)}},
		"1 MiB at 0":   {{Mem: make([]byte, 1<<20)}, {GPA: 2 << 20, Mem: make([]byte, 8<<20)}},
		"empty region": {{Mem: nil}},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := memory.FromBytes(regions...)
			require.NoError(t, err)
			_, err = Load(g, params(newBz().image()))
			assert.ErrorIs(t, err, ErrTooBig)
		})
	}
}

// A file may shrink or break between the check and the reading.
func TestLoadFailsWhileReading(t *testing.T) {
	sick := errors.New("disk on fire")
	file := newBz().bytes()
	for _, tc := range []struct {
		name string
		err  error
		is   error
		text string
	}{
		{"shrunk", io.EOF, ErrTruncated, "boot: vmlinuz: truncated: it ends at byte 3072, 2048 bytes before what was expected"},
		{"broken", sick, sick, "boot: vmlinuz: reading 2048 bytes at offset 3072: disk on fire"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := params(badImage{size: int64(len(file)), head: file[:6*512], err: tc.err})
			require.NoError(t, Check(p, 8<<20))
			_, err := Load(guest(t, 8<<20), p)
			assert.ErrorIs(t, err, tc.is)
			assert.EqualError(t, err, tc.text)
		})
	}
	t.Run("initrd", func(t *testing.T) {
		p := params(newBz().image())
		p.Initrd = []Image{bytes.NewReader(pattern(8, 1)), badImage{size: 99, n: 4}}
		p.InitrdName = "initrd.img"
		_, err := Load(guest(t, 8<<20), p)
		assert.ErrorIs(t, err, ErrTruncated)
		assert.EqualError(t, err, "boot: initrd.img: truncated: it ends at byte 4, 95 bytes before what was expected")
	})
}

// named has a name of its own for errors.
type named struct{ Image }

func (named) Name() string { return "/boot/k" }

func TestErrorsNameTheImage(t *testing.T) {
	_, _, err := Probe(named{strings.NewReader("x")})
	assert.EqualError(t, err, "boot: /boot/k: not a Linux kernel: a text file")
	err = Check(Params{Kernel: named{strings.NewReader("x")}}, 8<<20)
	assert.EqualError(t, err, "boot: /boot/k: not a Linux kernel: a text file")
}
