package initramfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The parts of ELF that lead to a section by its name (System V ABI, chapter 4,
// "ELF Header" and "Sections"; 64-bit, little-endian).
const (
	elfMagic     = "\x7fELF"
	elfClass64   = 2
	elfData2LSB  = 1
	ehdrSize     = 64
	ehdrShoff    = 0x28
	ehdrShentsz  = 0x3a
	ehdrShnum    = 0x3c
	ehdrShstrndx = 0x3e
	shdrSize     = 64
	shdrName     = 0x00
	shdrType     = 0x04
	shdrOffset   = 0x18
	shdrLength   = 0x20
	shtNobits    = 8
)

// maxModinfo bounds the .modinfo of one module in bytes. That of amdgpu, among
// the largest, has some 50 KiB.
const maxModinfo = 1 << 20

// keyValue is one string of .modinfo, "depends=kvm,ccp".
type keyValue struct{ key, value string }

// modinfo returns the strings of a module's .modinfo section in their order.
func modinfo(elf []byte) ([]keyValue, error) {
	data, err := section(elf, ".modinfo")
	if err != nil {
		return nil, err
	}
	if len(data) > maxModinfo {
		return nil, fmt.Errorf("%w: .modinfo has %d bytes, more than %d", errTooLarge, len(data), maxModinfo)
	}
	var info []keyValue
	for s := range bytes.SplitSeq(data, []byte{0}) {
		if k, v, ok := bytes.Cut(s, []byte{'='}); ok {
			info = append(info, keyValue{string(k), string(v)})
		}
	}
	return info, nil
}

// section returns the contents of the first section of that name, which alias
// elf.
func section(elf []byte, name string) ([]byte, error) {
	if len(elf) < ehdrSize || string(elf[:4]) != elfMagic {
		return nil, errors.New("not an ELF object")
	}
	if elf[4] != elfClass64 || elf[5] != elfData2LSB {
		return nil, errors.New("not a 64-bit little-endian ELF object")
	}
	le := binary.LittleEndian
	shoff := le.Uint64(elf[ehdrShoff:])
	count := int(le.Uint16(elf[ehdrShnum:]))
	if size := le.Uint16(elf[ehdrShentsz:]); count > 0 && size != shdrSize {
		return nil, fmt.Errorf("section headers of %d bytes", size)
	}
	table, err := within(elf, shoff, uint64(count)*shdrSize)
	if err != nil {
		return nil, fmt.Errorf("the section headers are %w", err)
	}
	header := func(i int) []byte { return table[i*shdrSize:][:shdrSize] }
	contents := func(h []byte) ([]byte, error) {
		return within(elf, le.Uint64(h[shdrOffset:]), le.Uint64(h[shdrLength:]))
	}
	strndx := int(le.Uint16(elf[ehdrShstrndx:]))
	if strndx >= count {
		return nil, errors.New("no section names")
	}
	names, err := contents(header(strndx))
	if err != nil {
		return nil, fmt.Errorf("the section names are %w", err)
	}
	want := append([]byte(name), 0)
	for i := range count {
		h := header(i)
		at := le.Uint32(h[shdrName:])
		if uint64(at) >= uint64(len(names)) || !bytes.HasPrefix(names[at:], want) {
			continue
		}
		if le.Uint32(h[shdrType:]) == shtNobits {
			continue
		}
		data, err := contents(h)
		if err != nil {
			return nil, fmt.Errorf("section %s is %w", name, err)
		}
		return data, nil
	}
	return nil, fmt.Errorf("no section %s", name)
}

var errOutside = errors.New("outside the file")

func within(b []byte, off, n uint64) ([]byte, error) {
	if off > uint64(len(b)) || n > uint64(len(b))-off {
		return nil, errOutside
	}
	return b[off : off+n], nil
}
