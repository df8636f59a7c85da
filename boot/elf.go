package boot

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// The parts of the ELF-64 format that a kernel needs: System V ABI, chapters
// 4 and 5.
const (
	elfMagic = "\x7fELF"

	elfHeaderSize  = 64
	elfPHSize      = 56
	elfClass64     = 2
	elfData2LSB    = 1
	elfTypeExec    = 2
	elfTypeDyn     = 3
	elfMachine386  = 3
	elfMachineX64  = 62
	elfPTLoad      = 1
	elfPTInterp    = 3
	elfPTNote      = 4
	elfPTTLS       = 7
	elfNoteXenName = "Xen\x00"
	elfNoteGoName  = "Go\x00\x00" // marks what Go's linker made
	// elfNotePhys32Entry is XEN_ELFNOTE_PHYS32_ENTRY of Linux's
	// include/xen/interface/elfnote.h.
	elfNotePhys32Entry = 18

	// maxProgramHeaders and maxNotes (bytes) bound what a file can make us
	// read. A kernel has about 5 headers and 512 bytes of notes.
	maxProgramHeaders = 64
	maxNotes          = 64 << 10
)

// otherELF are the machines for which kernels are seen most.
var otherELF = map[uint16]string{
	8: "MIPS", 20: "32-bit PowerPC", 21: "64-bit PowerPC", 22: "s390x", 40: "32-bit ARM", 43: "SPARC", 183: "arm64", 243: "RISC-V", 258: "LoongArch",
}

// segment is a PT_LOAD program header, addresses guest-physical.
type segment struct {
	off    uint64 // in the file
	vaddr  uint64
	paddr  uint64
	filesz uint64
	memsz  uint64
}

// elfFile is what the headers of a vmlinux say.
type elfFile struct {
	entry    uint64    // e_entry as it stands: physical or virtual
	segments []segment // by ascending paddr, disjoint, none empty
	// pvh is the 32-bit entry of the note, hasPVH whether there is one.
	pvh    uint64
	hasPVH bool
}

// parseELF reads the program headers and notes of img, whose first bytes are
// head. It checks that all of it lies in the file and that addresses don't
// wrap; whether the segments suit a guest's memory is not known here.
func parseELF(img Image, head []byte) (*elfFile, error) {
	le := binary.LittleEndian
	size := uint64(img.Size())
	if len(head) < 20 {
		return nil, faultf(ErrTruncated, "truncated: it has %d bytes, an ELF header alone has %d", size, elfHeaderSize)
	}
	if head[5] != elfData2LSB {
		return nil, faultf(ErrWrongArch, "a big-endian ELF, not an x86-64 kernel")
	}
	machine := le.Uint16(head[18:])
	switch {
	case machine == elfMachine386:
		return nil, faultf(ErrWrongArch, "a 32-bit i386 ELF, not an x86-64 kernel")
	case otherELF[machine] != "":
		return nil, faultf(ErrWrongArch, "an ELF for %s, not an x86-64 kernel", otherELF[machine])
	case machine != elfMachineX64:
		return nil, faultf(ErrWrongArch, "an ELF for machine %d, not an x86-64 kernel", machine)
	case head[4] != elfClass64:
		return nil, faultf(ErrWrongArch, "a 32-bit ELF, not an x86-64 kernel")
	}
	if len(head) < elfHeaderSize {
		return nil, faultf(ErrTruncated, "truncated: it has %d bytes, an ELF header alone has %d", size, elfHeaderSize)
	}
	if t := le.Uint16(head[16:]); t != elfTypeExec && t != elfTypeDyn {
		return nil, notKernel("an ELF of type %d, not an executable (a module, an object file or a core dump?)", t)
	}
	headers, err := readProgramHeaders(img, head, size)
	if err != nil {
		return nil, err
	}
	f := &elfFile{entry: le.Uint64(head[24:])}
	for i := 0; i+elfPHSize <= len(headers); i += elfPHSize {
		ph := headers[i : i+elfPHSize]
		index := i / elfPHSize
		s := segment{
			off:    le.Uint64(ph[8:]),
			vaddr:  le.Uint64(ph[16:]),
			paddr:  le.Uint64(ph[24:]),
			filesz: le.Uint64(ph[32:]),
			memsz:  le.Uint64(ph[40:]),
		}
		switch le.Uint32(ph) {
		case elfPTInterp, elfPTTLS:
			return nil, notKernel("an ELF program for user space")
		case elfPTLoad:
			if err := s.check(size); err != nil {
				return nil, fmt.Errorf("segment %d: %w", index, err)
			}
			if s.memsz > 0 {
				f.segments = append(f.segments, s)
			}
		case elfPTNote:
			user, err := f.readNotes(img, s, le.Uint64(ph[48:]))
			if err != nil {
				return nil, fmt.Errorf("segment %d (notes): %w", index, err)
			}
			if user {
				return nil, notKernel("an ELF program for user space")
			}
		}
	}
	return f, f.order()
}

func readProgramHeaders(img Image, head []byte, size uint64) ([]byte, error) {
	le := binary.LittleEndian
	off, entsize, num := le.Uint64(head[32:]), le.Uint16(head[54:]), int(le.Uint16(head[56:]))
	if num == 0 {
		return nil, notKernel("an ELF with no program headers")
	}
	if entsize != elfPHSize {
		return nil, faultf(ErrMalformed, "malformed ELF: program headers of %d bytes instead of %d", entsize, elfPHSize)
	}
	if num > maxProgramHeaders {
		return nil, faultf(ErrMalformed, "malformed ELF: %d program headers, more than %d", num, maxProgramHeaders)
	}
	n := uint64(num) * elfPHSize
	if off > size || n > size-off {
		return nil, faultf(ErrTruncated, "truncated: it has %d bytes, its %d program headers are at %#x", size, num, off)
	}
	if off+n <= uint64(len(head)) {
		return head[off : off+n], nil
	}
	b := make([]byte, n)
	return b, readFull(img, b, int64(off))
}

// check tells whether the segment lies in a file of size bytes and its
// addresses don't wrap.
func (s segment) check(size uint64) error {
	switch {
	case s.filesz > s.memsz:
		return faultf(ErrMalformed, "malformed ELF: %d bytes in the file but %d in memory", s.filesz, s.memsz)
	case s.paddr+s.memsz < s.paddr:
		return faultf(ErrMalformed, "malformed ELF: %#x bytes at physical address %#x wrap", s.memsz, s.paddr)
	case s.filesz > 0 && (s.off > size || s.filesz > size-s.off):
		return faultf(ErrTruncated, "truncated: the file has %d bytes, the segment takes %d from %#x", size, s.filesz, s.off)
	}
	return nil
}

// order sorts the segments and refuses overlapping ones.
func (f *elfFile) order() error {
	if len(f.segments) == 0 {
		return notKernel("an ELF with nothing to load")
	}
	slices.SortFunc(f.segments, func(a, b segment) int { return cmp.Compare(a.paddr, b.paddr) })
	for i := 1; i < len(f.segments); i++ {
		a, b := f.segments[i-1], f.segments[i]
		if a.paddr+a.memsz > b.paddr {
			return faultf(ErrMalformed, "malformed ELF: segments at %#x (%#x bytes) and %#x overlap", a.paddr, a.memsz, b.paddr)
		}
	}
	return nil
}

// readNotes looks for the PVH entry in the notes at s. user is set where they
// are those of a program for user space; a static Go program can't be told
// from a kernel otherwise.
func (f *elfFile) readNotes(img Image, s segment, align uint64) (user bool, err error) {
	size := uint64(img.Size())
	switch {
	case s.filesz > maxNotes:
		return false, faultf(ErrMalformed, "malformed ELF: %d bytes of notes, more than %d", s.filesz, maxNotes)
	case s.filesz > 0 && (s.off > size || s.filesz > size-s.off):
		return false, faultf(ErrTruncated, "truncated: the file has %d bytes, the notes take %d from %#x", size, s.filesz, s.off)
	}
	b := make([]byte, s.filesz)
	if err := readFull(img, b, int64(s.off)); err != nil {
		return false, err
	}
	// Notes are padded to 4 bytes except where the segment says 8 (gABI).
	pad := uint64(4)
	if align == 8 {
		pad = 8
	}
	le := binary.LittleEndian
	for len(b) >= 12 {
		namesz, descsz, typ := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		desc := alignUp(12+namesz, pad)
		if desc+descsz > uint64(len(b)) {
			return false, faultf(ErrMalformed, "malformed ELF: a note of %d bytes does not end within its segment", desc+descsz)
		}
		switch name := string(b[12 : 12+namesz]); {
		case name == elfNoteGoName:
			return true, nil
		case name == elfNoteXenName && typ == elfNotePhys32Entry:
			switch descsz {
			case 4:
				f.pvh = uint64(le.Uint32(b[desc:]))
			case 8:
				f.pvh = le.Uint64(b[desc:])
			default:
				return false, faultf(ErrMalformed, "malformed ELF: PVH entry note of %d bytes", descsz)
			}
			f.hasPVH = true
			return false, nil
		}
		b = b[min(alignUp(desc+descsz, pad), uint64(len(b))):]
	}
	return false, nil
}

// physical maps an entry address to guest-physical: vmlinux files name the
// physical address of startup_64, other ELF files their virtual one. ok is
// false where the address is in no segment's file content.
func (f *elfFile) physical(addr uint64) (gpa uint64, ok bool) {
	for _, s := range f.segments {
		if addr >= s.paddr && addr-s.paddr < s.filesz {
			return addr, true
		}
	}
	for _, s := range f.segments {
		if addr >= s.vaddr && addr-s.vaddr < s.filesz {
			return s.paddr + (addr - s.vaddr), true
		}
	}
	return 0, false
}

// alignUp rounds n up to a multiple of a, a power of two. It wraps when n is
// within a of 1<<64.
func alignUp(n, a uint64) uint64 { return (n + a - 1) &^ (a - 1) }
