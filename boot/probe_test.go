package boot

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// at returns a file of n zero bytes with s at off.
func at(n, off int, s string) []byte {
	b := make([]byte, n)
	copy(b[off:], s)
	return b
}

func pe(machine uint16) []byte {
	b := at(2048, 0, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[0x84:], machine)
	return b
}

func TestProbeRefuses(t *testing.T) {
	good, elf := newBz(), newELF()
	cases := []struct {
		name string
		data []byte
		is   error
		text string
	}{
		{"empty", nil, ErrEmpty, "the file is empty"},
		{"one zero byte", []byte{0}, ErrNotKernel, "a file of zero bytes only"},
		{"zeroes", make([]byte, 600), ErrNotKernel, "a file of zero bytes only"},
		{"unknown", at(4096, 0, "\x01\x02\x03"), ErrNotKernel, "not a Linux kernel: no HdrS magic at 0x202 and no ELF header"},
		{"text", []byte("hello\nworld\n"), ErrNotKernel, "not a Linux kernel: a text file"},
		{"text in UTF-8, cut", []byte(strings.Repeat("x", 1023) + "é" + strings.Repeat("y", 99)), ErrNotKernel, "a text file"},
		{"script", []byte("#!/bin/sh\n"), ErrNotKernel, "a script"},
		{"gzip", at(900, 0, "\x1f\x8b\x08"), ErrNotKernel, "a gzip file"},
		{"zstd", at(900, 0, "\x28\xb5\x2f\xfd"), ErrNotKernel, "a zstd file"},
		{"xz", at(900, 0, "\xfd7zXZ\x00"), ErrNotKernel, "an xz file"},
		{"bzip2", at(900, 0, "BZh9"), ErrNotKernel, "a bzip2 file"},
		{"lz4", at(900, 0, "\x02\x21\x4c\x18"), ErrNotKernel, "an LZ4 file"},
		{"deb", []byte("!<arch>\ndebian-binary   1"), ErrNotKernel, "a Debian package"},
		{"ar", []byte("!<arch>\nfoo.o/"), ErrNotKernel, "an ar archive"},
		{"rpm", at(900, 0, "\xed\xab\xee\xdb"), ErrNotKernel, "an RPM package"},
		{"tar", at(2048, 257, "ustar"), ErrNotKernel, "a tar archive"},
		{"initrd", at(900, 0, "070701"), ErrNotKernel, "a cpio archive, perhaps an initrd"},
		{"qcow2", at(900, 0, "QFI\xfb\x00\x00\x00\x03"), ErrNotKernel, "a qcow2 disk image"},
		{"boot sector", at(1024, 510, "\x55\xaa"), ErrNotKernel, "a boot sector or disk image"},
		{"arm64 Image", append([]byte("MZ"), at(4096, 0x36, "ARM\x64")...), ErrWrongArch, "an arm64 Image"},
		{"arm zImage", at(900, 0x24, "\x18\x28\x6f\x01"), ErrWrongArch, "a 32-bit ARM zImage"},
		{"risc-v", at(900, 0x38, "RSC\x05"), ErrWrongArch, "a RISC-V Image"},
		{"uImage", at(900, 0, "\x27\x05\x19\x56"), ErrWrongArch, "a U-Boot image"},
		{"zboot", append([]byte("MZ\x00\x00zimg"), make([]byte, 999)...), ErrNotKernel, "zboot"},
		{"EFI program", pe(0x8664), ErrNotKernel, "an EFI program"},
		{"EFI program for arm64", pe(0xaa64), ErrWrongArch, "an EFI image for arm64"},
		{"EFI program for ia64", pe(0x0200), ErrWrongArch, "an EFI image for machine 0x0200"},
		{"DOS program", at(2048, 0, "MZ"), ErrNotKernel, "a DOS program"},
		{"DOS program, wild offset", at(2048, 0, "MZ"+strings.Repeat("\xff", 100)), ErrNotKernel, "a DOS program"},
		{"MZ alone", []byte("MZ"), ErrTruncated, "truncated: it has 2 bytes"},

		{"bzImage cut in its header", good.bytes()[:0x210], ErrTruncated, "truncated: it has 528 bytes"},
		{"bzImage cut before header's end", good.bytes()[:0x268], ErrTruncated, "its header alone 620"},
		{"bzImage cut in its setup", good.bytes()[:0x700], ErrTruncated, "truncated: it has 1792 bytes, its header says at least 5120"},
		{"bzImage lacks a byte", good.bytes()[:len(good.bytes())-1], ErrTruncated, "truncated"},
		{"bzImage, boot flag", good.with(func(z *bz) { z.bootFlag = 0 }).bytes(), ErrMalformed, "boot flag 0x0000"},
		{"bzImage of Linux 3.7", good.with(func(z *bz) { z.version = 0x20b }).bytes(), ErrUnsupported, "boot protocol 2.11 is too old"},
		{"zImage", good.with(func(z *bz) { z.loadFlags = 0 }).bytes(), ErrUnsupported, "a zImage"},
		{"i386 bzImage", good.with(func(z *bz) { z.xloadFlags = 0 }).bytes(), ErrWrongArch, "an i386 kernel (no 64-bit entry, XLF_KERNEL_64 clear)"},
		{"bzImage without a jump", good.with(func(z *bz) { z.jump[0] = 0x90 }).bytes(), ErrMalformed, "its jump 90 6a"},
		{"bzImage, short jump", good.with(func(z *bz) { z.jump[1] = 0x61 }).bytes(), ErrMalformed, "its jump eb 61"},
		{"bzImage, long jump", good.with(func(z *bz) { z.jump[1] = 0x8f }).bytes(), ErrMalformed, "its jump eb 8f"},
		{"bzImage without code", good.with(func(z *bz) { z.code = z.code[:0x200] }).bytes(), ErrMalformed, "512 bytes of code"},
		{"bzImage, odd alignment", good.with(func(z *bz) { z.align = 0x300000 }).bytes(), ErrMalformed, "kernel_alignment 0x300000"},
		{"bzImage, payload outside", good.with(func(z *bz) { z.payload = [2]uint32{0x700, 0x101} }).bytes(), ErrMalformed, "payload at 0x700"},
		{"bzImage, payload wraps", good.with(func(z *bz) { z.payload = [2]uint32{0xffffffff, 0xffffffff} }).bytes(), ErrMalformed, "payload at 0xffffffff"},

		{"ELF magic alone", []byte("\x7fELF"), ErrTruncated, "an ELF header alone has 64"},
		{"ELF cut in its header", elf.bytes()[:40], ErrTruncated, "an ELF header alone has 64"},
		{"ELF cut in its program headers", elf.bytes()[:100], ErrTruncated, "its 4 program headers are at 0x40"},
		{"ELF cut in a segment", elf.bytes()[:0x1000], ErrTruncated, "segment 0: truncated: the file has 4096 bytes"},
		{"big-endian ELF", elf.with(func(e *elfImage) { e.data = 2 }).bytes(), ErrWrongArch, "a big-endian ELF"},
		{"i386 vmlinux", elf.with(func(e *elfImage) { e.class, e.machine = 1, 3 }).bytes(), ErrWrongArch, "a 32-bit i386 ELF"},
		{"x32 ELF", elf.with(func(e *elfImage) { e.class = 1 }).bytes(), ErrWrongArch, "a 32-bit ELF"},
		{"arm64 vmlinux", elf.with(func(e *elfImage) { e.machine = 183 }).bytes(), ErrWrongArch, "an ELF for arm64"},
		{"ELF for what", elf.with(func(e *elfImage) { e.machine = 9999 }).bytes(), ErrWrongArch, "an ELF for machine 9999"},
		{"kernel module", elf.with(func(e *elfImage) { e.typ = 1 }).bytes(), ErrNotKernel, "an ELF of type 1"},
		{"no program headers", elf.with(func(e *elfImage) { e.phnum = 0 }).bytes(), ErrNotKernel, "no program headers"},
		{"65535 program headers", elf.with(func(e *elfImage) { e.phnum = 65535 }).bytes(), ErrMalformed, "65535 program headers"},
		{"wild program headers", elf.with(func(e *elfImage) { e.phoff = 1<<64 - 1 }).bytes(), ErrTruncated, "program headers are at 0xffffffffffffffff"},
		{"size of program headers", elf.with(func(e *elfImage) { e.phentsize = 32 }).bytes(), ErrMalformed, "program headers of 32 bytes"},
		{"dynamic program", elf.with(func(e *elfImage) { e.segs[3].typ = 3 }).bytes(), ErrNotKernel, "an ELF program for user space"},
		{"static program", elf.with(func(e *elfImage) { e.segs[3].typ = 7 }).bytes(), ErrNotKernel, "an ELF program for user space"},
		{"static Go program", elf.with(func(e *elfImage) { e.segs[3].data = note("Go\x00\x00", 4, []byte("id")) }).bytes(), ErrNotKernel, "kernel: not a Linux kernel: an ELF program for user space"},
		{"nothing to load", elf.with(func(e *elfImage) { e.segs = e.segs[3:] }).bytes(), ErrNotKernel, "an ELF with nothing to load"},
		{"more in file than in memory", elf.with(func(e *elfImage) { e.segs[0].memsz = 1 }).bytes(), ErrMalformed, "6144 bytes in the file but 1 in memory"},
		{"segment wraps", elf.with(func(e *elfImage) { e.segs[2].memsz = 1<<64 - 1 }).bytes(), ErrMalformed, "wrap"},
		{"file offset wraps", elf.with(func(e *elfImage) { e.segs[2].off = 1<<64 - 16 }).bytes(), ErrTruncated, "segment 2: truncated"},
		{"segments overlap", elf.with(func(e *elfImage) { e.segs[1].paddr = 0x201000 }).bytes(), ErrMalformed, "overlap"},
		{"same segment twice", elf.with(func(e *elfImage) { e.segs[1].paddr = 0x200000 }).bytes(), ErrMalformed, "overlap"},
		{"bss overlaps", elf.with(func(e *elfImage) { e.segs[0].memsz = 0x2001 }).bytes(), ErrMalformed, "overlap"},
		{"too many notes", elf.with(func(e *elfImage) { e.segs[3].data = make([]byte, 70000) }).bytes(), ErrMalformed, "70000 bytes of notes"},
		{"notes outside", elf.with(func(e *elfImage) { e.segs[3].off = 1 << 40 }).bytes(), ErrTruncated, "notes"},
		{"note outside", elf.with(func(e *elfImage) { e.segs[3].data = pvhNotes(0)[:40] }).bytes(), ErrMalformed, "does not end within its segment"},
		{"note's size wraps", elf.with(func(e *elfImage) { e.segs[3].data = []byte(strings.Repeat("\xff", 16)) }).bytes(), ErrMalformed, "does not end within its segment"},
		{"PVH note of 2 bytes", elf.with(func(e *elfImage) { e.segs[3].data = note("Xen\x00", 18, []byte{1, 2}) }).bytes(), ErrMalformed, "PVH entry note of 2 bytes"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			kind, h, err := Probe(bytes.NewReader(tc.data))
			require.Error(t, err)
			assert.Zero(t, kind)
			assert.Nil(t, h)
			assert.ErrorIs(t, err, tc.is)
			assert.Contains(t, err.Error(), tc.text)
			assert.NotContains(t, err.Error(), "\n")
			assert.True(t, strings.HasPrefix(err.Error(), "boot: kernel: "), err)
		})
	}
}

func TestProbeBzImage(t *testing.T) {
	kind, h, err := Probe(newBz().image())
	require.NoError(t, err)
	assert.Equal(t, BzImage, kind)
	assert.Equal(t, "bzImage", kind.String())
	assert.Equal(t, uint16(0x20f), h.Version)
	assert.EqualValues(t, 6*512, h.SetupSize)
	assert.EqualValues(t, 0x800, h.SystemSize)
	assert.EqualValues(t, 6*512+0x300, h.PayloadOffset)
	assert.EqualValues(t, 0x100, h.PayloadLength)
	assert.Equal(t, "6.1.0-test (a@b) #1 SMP", h.KernelVersion)
	assert.Equal(t, "6.1.0-test", h.Release())
	assert.True(t, h.Relocatable)
	assert.EqualValues(t, 2047, h.CmdlineSize)
}

func TestProbeSetupSectsZero(t *testing.T) {
	_, h, err := Probe(newBz().with(func(z *bz) { z.setupSects = 0 }).image())
	require.NoError(t, err)
	assert.EqualValues(t, 5*512, h.SetupSize)
}

func TestProbeLongestHeader(t *testing.T) {
	_, h, err := Probe(newBz().with(func(z *bz) { z.jump[1] = 0x8e }).image())
	require.NoError(t, err)
	assert.Len(t, h.raw, 0x290)
}

func TestKernelVersion(t *testing.T) {
	for name, tc := range map[string]struct{ release, want string }{
		"plain":         {"6.12.1 x", "6.12.1 x"},
		"none":          {"", ""},
		"not printable": {"6.1\x1b[2J", ""},
		"no end":        {strings.Repeat("6", 300), ""},
	} {
		t.Run(name, func(t *testing.T) {
			z := newBz()
			z.release = tc.release
			_, h, err := Probe(z.image())
			require.NoError(t, err)
			assert.Equal(t, tc.want, h.KernelVersion)
		})
	}
}

func TestProbeELF(t *testing.T) {
	kind, h, err := Probe(newELF().image())
	require.NoError(t, err)
	assert.Equal(t, ELF, kind)
	assert.Equal(t, "ELF", kind.String())
	assert.Nil(t, h)
}

func TestNotes(t *testing.T) {
	other := note("GNU\x00", 18, le64(1))
	for name, tc := range map[string]struct {
		notes []byte
		align uint64
		has   bool
		pvh   uint64
	}{
		"8 bytes":             {pvhNotes(0x200040), 4, true, 0x200040},
		"4 bytes":             {note("Xen\x00", 18, le32(0x200080)), 4, true, 0x200080},
		"behind other":        {append(other[:len(other):len(other)], pvhNotes(0x200040)...), 4, true, 0x200040},
		"only other":          {other, 4, false, 0},
		"other name's size":   {note("Xen", 18, le64(1)), 4, false, 0},
		"none":                {nil, 4, false, 0},
		"stub behind the end": {append(other[:len(other):len(other)], 1, 2, 3), 4, false, 0},
		"padded to 8":         {append(append(note("Xen\x00", 6, le32(1)), 0, 0, 0, 0), note("Xen\x00", 18, le64(0x200044))...), 8, true, 0x200044},
	} {
		t.Run(name, func(t *testing.T) {
			e := newELF().with(func(e *elfImage) {
				e.segs[3].data, e.segs[3].align = tc.notes, tc.align
				e.trailingBytes = 8
			})
			k, err := probe(e.image())
			require.NoError(t, err)
			assert.Equal(t, tc.has, k.elf.hasPVH)
			assert.Equal(t, tc.pvh, k.elf.pvh)
		})
	}
}
