package kernel

import (
	"encoding/binary"
	"fmt"
)

// Sizes of ELF-64 structures, in bytes.
const (
	ehdrSize = 64
	phdrSize = 56
)

// Values of ELF-64 fields, by their names in the specification. Package
// debug/elf has them too, and brings DWARF along.
const (
	elfMagic      = "\x7fELF"
	elfClass64    = 2
	elfData2LSB   = 1
	elfTypeExec   = 2
	elfTypeDyn    = 3
	elfMachineX86 = 62 // EM_X86_64
	ptLoad        = 1
)

// Offsets in the ELF-64 file header.
const (
	ehdrClass     = 4
	ehdrData      = 5
	ehdrType      = 16
	ehdrMachine   = 18
	ehdrPhoff     = 32
	ehdrShoff     = 40
	ehdrPhentsize = 54
	ehdrPhnum     = 56
	ehdrShentsize = 58
	ehdrShnum     = 60
	ehdrShstrndx  = 62
)

// checkELF says whether head, the first ehdrSize bytes of a file, starts an
// x86-64 vmlinux. Errors wrap ErrCorrupt for no ELF at all and ErrUnsupported
// for an ELF of another kind.
func checkELF(head []byte) error {
	if string(head[:4]) != elfMagic {
		return fmt.Errorf("%w: the payload is not an ELF file, it starts with % x", ErrCorrupt, head[:4])
	}
	class, data := head[ehdrClass], head[ehdrData]
	machine := binary.LittleEndian.Uint16(head[ehdrMachine:])
	if class != elfClass64 || data != elfData2LSB || machine != elfMachineX86 {
		return fmt.Errorf("%w: the payload is an ELF file of class %d, byte order %d, machine %d, want an x86-64 one: %d, %d, %d",
			ErrUnsupported, class, data, machine, elfClass64, elfData2LSB, elfMachineX86)
	}
	if t := binary.LittleEndian.Uint16(head[ehdrType:]); t != elfTypeExec && t != elfTypeDyn {
		return fmt.Errorf("%w: the payload is an ELF file of type %d, want an executable", ErrUnsupported, t)
	}
	if binary.LittleEndian.Uint16(head[ehdrPhentsize:]) != phdrSize || binary.LittleEndian.Uint16(head[ehdrPhnum:]) == 0 {
		return fmt.Errorf("%w: the payload is an ELF file without program headers", ErrUnsupported)
	}
	return nil
}

// progHeader is an ELF-64 program header (Elf64_Phdr), field for field.
type progHeader struct {
	Type, Flags                                uint32
	Offset, Vaddr, Paddr, Filesz, Memsz, Align uint64
}

func decodeProgHeader(b []byte) progHeader {
	le := binary.LittleEndian
	return progHeader{
		Type: le.Uint32(b), Flags: le.Uint32(b[4:]),
		Offset: le.Uint64(b[8:]), Vaddr: le.Uint64(b[16:]), Paddr: le.Uint64(b[24:]),
		Filesz: le.Uint64(b[32:]), Memsz: le.Uint64(b[40:]), Align: le.Uint64(b[48:]),
	}
}

func (p progHeader) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, p.Type)
	b = le.AppendUint32(b, p.Flags)
	for _, v := range []uint64{p.Offset, p.Vaddr, p.Paddr, p.Filesz, p.Memsz, p.Align} {
		b = le.AppendUint64(b, v)
	}
	return b
}
