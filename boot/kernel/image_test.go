package kernel

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testVersion is the version text of the images that makeImage makes.
const testVersion = "6.1.0-99-test (vole@example.org) #1 SMP"

// makeVmlinux builds a vmlinux like the kernel's: text with a note in it, data
// with zero pages, per-CPU data at virtual address 0, a zero tail for bss,
// section headers and relocations behind. It is always the same.
func makeVmlinux() []byte {
	const (
		textOff, textSize = 0x1000, 0x6400
		noteOff           = textOff + 0x6100
		dataOff, dataSize = 0x8000, 0xe000
		cpuOff, cpuSize   = 0x16000, 0x1000
		initOff, initSize = 0x17000, 0x29000
	)
	headers := []progHeader{
		{Type: ptLoad, Flags: 5, Offset: textOff, Vaddr: 0xffffffff81000000, Paddr: 0x1000000, Filesz: textSize, Memsz: textSize, Align: 0x1000},
		{Type: ptLoad, Flags: 6, Offset: dataOff, Vaddr: 0xffffffff81007000, Paddr: 0x1007000, Filesz: dataSize, Memsz: dataSize, Align: 0x1000},
		{Type: ptLoad, Flags: 6, Offset: cpuOff, Vaddr: 0, Paddr: 0x1015000, Filesz: cpuSize, Memsz: cpuSize, Align: 0x1000},
		{Type: ptLoad, Flags: 7, Offset: initOff, Vaddr: 0xffffffff81016000, Paddr: 0x1016000, Filesz: initSize, Memsz: initSize + 0x5000, Align: 0x1000},
		{Type: 4, Offset: noteOff, Vaddr: 0xffffffff81000000 + noteOff - textOff, Paddr: 0x1000000 + noteOff - textOff, Filesz: 0x20, Memsz: 0x20, Align: 4},
	}
	b := make([]byte, initOff+initSize)
	copy(b, makeELFHeader(0x1000000, len(headers), len(b)))
	table := b[ehdrSize:ehdrSize]
	for _, p := range headers {
		table = p.append(table)
	}
	// Calls from everywhere to few targets: what the x86 BCJ filter is for.
	rng := uint32(1)
	for at := textOff; at+8 <= textOff+textSize; at += 8 {
		rng = rng*1664525 + 1013904223
		target := 0x100 * int(rng>>30)
		b[at] = 0xe8
		binary.LittleEndian.PutUint32(b[at+1:], uint32(textOff+target-(at+5)))
		copy(b[at+5:], "\x48\x89\xc3")
	}
	copy(b[noteOff:], "\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x01\x00\x00\x00\x00")
	for _, off := range []int{0, 0x1000, 0x3000, 0x8000, 0xd000} { // gaps of 1, 4 and 4 pages
		copy(b[dataOff+off:], "data of the kernel")
	}
	copy(b[cpuOff+0x800:], "per-CPU data")
	copy(b[initOff:], "init text")
	copy(b[initOff+0x9fff:], "x")
	b = append(b, make([]byte, 64*3)...) // section headers
	return append(b, bytes.Repeat([]byte{0x10, 0x20, 0x00, 0x81}, 300)...)
}

func makeELFHeader(entry uint64, phnum, shoff int) []byte {
	le := binary.LittleEndian
	b := make([]byte, ehdrSize)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[ehdrType:], elfTypeExec)
	le.PutUint16(b[ehdrMachine:], elfMachineX86)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[ehdrPhoff:], ehdrSize)
	le.PutUint64(b[ehdrShoff:], uint64(shoff))
	le.PutUint16(b[52:], ehdrSize)
	le.PutUint16(b[ehdrPhentsize:], phdrSize)
	le.PutUint16(b[ehdrPhnum:], uint16(phnum))
	le.PutUint16(b[ehdrShentsize:], 64)
	le.PutUint16(b[ehdrShnum:], 3)
	return b
}

// makeImage builds a bzImage around a payload that ends with its size trailer.
func makeImage(payload []byte) []byte {
	const sects, versionAt, padding = 2, 0x400, 0x30
	le := binary.LittleEndian
	b := make([]byte, (sects+1)*sectorSize)
	b[offSetupSects] = sects
	le.PutUint16(b[offBootFlag:], bootFlag)
	copy(b[offMagic:], headerMagic)
	le.PutUint16(b[offVersion:], 0x020f)
	le.PutUint16(b[offKernelVersion:], versionAt-sectorSize)
	copy(b[versionAt:], testVersion+"\x00")
	le.PutUint32(b[offPayloadOffset:], padding)
	le.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	b = append(b, bytes.Repeat([]byte{0x90}, padding)...)
	b = append(b, payload...)
	return append(b, "the end of the loader"...)
}

// withSize appends the size trailer, which gzip has by itself.
func withSize(stream []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(stream), uint32(size))
}

// testPayload returns a golden payload and its trailer.
func testPayload(tb testing.TB, c Compression) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "vmlinux."+string(c)))
	require.NoError(tb, err)
	if c == Gzip {
		return b
	}
	return withSize(b, len(makeVmlinux()))
}

// writeKernel writes a synthetic bzImage that is old enough to be cached.
func writeKernel(tb testing.TB, dir, name string, c Compression) string {
	tb.Helper()
	path := filepath.Join(dir, name)
	require.NoError(tb, os.WriteFile(path, makeImage(testPayload(tb, c)), 0o644))
	old := time.Now().Add(-time.Hour)
	require.NoError(tb, os.Chtimes(path, old, old))
	return path
}

// memoryOf loads an ELF file the way a loader does, and returns its pages of
// physical memory that are not all zero.
func memoryOf(tb testing.TB, file []byte) map[uint64][]byte {
	tb.Helper()
	le := binary.LittleEndian
	require.NoError(tb, checkELF(file[:ehdrSize]))
	phoff, phnum := le.Uint64(file[ehdrPhoff:]), uint64(le.Uint16(file[ehdrPhnum:]))
	pages := map[uint64][]byte{}
	store := func(at uint64, p []byte) {
		for len(p) > 0 {
			page, off := at/pageSize, at%pageSize
			if pages[page] == nil {
				pages[page] = make([]byte, pageSize)
			}
			n := copy(pages[page][off:], p)
			at, p = at+uint64(n), p[n:]
		}
	}
	for i := range phnum {
		p := decodeProgHeader(file[phoff+i*phdrSize:])
		if p.Type == ptLoad {
			store(p.Paddr, file[p.Offset:p.Offset+p.Filesz])
		}
	}
	for page, b := range pages {
		if isZero(b) {
			delete(pages, page)
		}
	}
	return pages
}

// notesOf returns the bytes of an ELF file's PT_NOTE.
func notesOf(tb testing.TB, file []byte) []byte {
	tb.Helper()
	le := binary.LittleEndian
	phoff, phnum := le.Uint64(file[ehdrPhoff:]), uint64(le.Uint16(file[ehdrPhnum:]))
	for i := range phnum {
		if p := decodeProgHeader(file[phoff+i*phdrSize:]); p.Type == 4 {
			return file[p.Offset : p.Offset+p.Filesz]
		}
	}
	return nil
}
