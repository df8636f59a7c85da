package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What can be wrong with a binary that is to be /init.
var (
	// ErrNotExecutable is a file that this architecture's kernel does not
	// execute as an ELF binary.
	ErrNotExecutable = errors.New("not an ELF executable for this architecture")
	// ErrDynamic is an executable that needs an interpreter and libraries,
	// which an archive with one file cannot offer.
	ErrDynamic = errors.New("not statically linked")
)

// maxSegments is more than any linker makes.
const maxSegments = 256

// maxInterp is as long as the kernel lets the interpreter's name be, in bytes.
const maxInterp = 4096

// loadable is the part of an ELF executable that a kernel loads: everything up
// to the end of the last segment. Symbols and debug information lie behind
// that, and section headers, which the header must then not promise.
type loadable struct {
	io.ReaderAt
	header []byte
	size   int64
	interp string // the interpreter that it needs, if any
}

// newLoadable checks that r, of size bytes, is an executable that runs without
// an interpreter.
func newLoadable(r io.ReaderAt, size int64) (*loadable, error) {
	l, err := readLoadable(r, size)
	if err == nil && l.interp != "" {
		return nil, fmt.Errorf("%w: it needs the interpreter %s (build with CGO_ENABLED=0)", ErrDynamic, l.interp)
	}
	return l, err
}

// readLoadable checks that r, of size bytes, is an executable or a shared library.
func readLoadable(r io.ReaderAt, size int64) (*loadable, error) {
	var h elf.Header64
	header := make([]byte, binary.Size(h))
	if _, err := r.ReadAt(header, 0); err != nil {
		if err == io.EOF {
			return nil, fmt.Errorf("%w: it has only %d bytes", ErrNotExecutable, size)
		}
		return nil, err
	}
	if string(header[:4]) != elf.ELFMAG {
		return nil, fmt.Errorf("%w: it begins with %q", ErrNotExecutable, header[:4])
	}
	if c, d := elf.Class(header[elf.EI_CLASS]), elf.Data(header[elf.EI_DATA]); c != elf.ELFCLASS64 || d != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("%w: it is %v, %v", ErrNotExecutable, c, d)
	}
	if err := binary.Read(bytes.NewReader(header), binary.LittleEndian, &h); err != nil {
		return nil, err
	}
	if m := elf.Machine(h.Machine); m != elfMachine {
		return nil, fmt.Errorf("%w: it is for %v, not %v", ErrNotExecutable, m, elfMachine)
	}
	if t := elf.Type(h.Type); t != elf.ET_EXEC && t != elf.ET_DYN {
		return nil, fmt.Errorf("%w: it is %v", ErrNotExecutable, t)
	}
	var p elf.Prog64
	phsize := int64(binary.Size(p))
	if h.Phnum == 0 || h.Phnum > maxSegments || int64(h.Phentsize) != phsize || h.Phoff > uint64(size) {
		return nil, fmt.Errorf("%w: %d program headers of %d bytes at %#x", ErrNotExecutable, h.Phnum, h.Phentsize, h.Phoff)
	}
	table := make([]byte, int64(h.Phnum)*phsize)
	if _, err := r.ReadAt(table, int64(h.Phoff)); err != nil {
		return nil, fmt.Errorf("%w: its program headers are cut off", ErrNotExecutable)
	}
	end := int64(h.Phoff) + int64(len(table))
	interp := ""
	for t := bytes.NewReader(table); t.Len() > 0; {
		if err := binary.Read(t, binary.LittleEndian, &p); err != nil {
			return nil, err
		}
		if p.Filesz > uint64(size) || p.Off > uint64(size)-p.Filesz {
			return nil, fmt.Errorf("%w: it is cut off within a segment", ErrNotExecutable)
		}
		if elf.ProgType(p.Type) == elf.PT_INTERP {
			path := make([]byte, min(p.Filesz, maxInterp))
			_, err := r.ReadAt(path, int64(p.Off))
			if err != nil && err != io.EOF {
				return nil, err
			}
			if interp = string(bytes.TrimRight(path, "\x00")); interp == "" {
				return nil, fmt.Errorf("%w: its interpreter has no name", ErrNotExecutable)
			}
		}
		end = max(end, int64(p.Off+p.Filesz))
	}
	le := binary.LittleEndian
	le.PutUint64(header[0x28:], 0) // e_shoff
	le.PutUint16(header[0x3c:], 0) // e_shnum
	le.PutUint16(header[0x3e:], 0) // e_shstrndx
	return &loadable{ReaderAt: r, header: header, size: end, interp: interp}, nil
}

// ReadAt reads the executable with the changed header in place.
func (l *loadable) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off >= 0 && off < int64(len(l.header)) {
		n = copy(p, l.header[off:])
	}
	if n == len(p) {
		return n, nil
	}
	m, err := l.ReaderAt.ReadAt(p[n:], off+int64(n))
	return n + m, err
}
