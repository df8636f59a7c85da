package acpi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A parsed set of tables, read back from bytes by rules of their own: every
// address is followed, every length and checksum checked.
type parsedTables struct {
	xsdt   parsedTable
	tables map[string]parsedTable // by signature, with the DSDT
	order  []string               // as the XSDT lists them
}

type parsedTable struct {
	addr uint64
	b    []byte // whole, with header
}

func (t parsedTable) u16(off int) uint16 { return binary.LittleEndian.Uint16(t.b[off:]) }
func (t parsedTable) u32(off int) uint32 { return binary.LittleEndian.Uint32(t.b[off:]) }
func (t parsedTable) u64(off int) uint64 { return binary.LittleEndian.Uint64(t.b[off:]) }

func sum(b []byte) byte {
	var s byte
	for _, c := range b {
		s += c
	}
	return s
}

func parseTables(base uint64, b []byte) (*parsedTables, error) {
	if len(b) < 36 || string(b[:8]) != "RSD PTR " {
		return nil, errors.New("no RSDP")
	}
	if sum(b[:20]) != 0 || sum(b[:36]) != 0 || b[15] != 2 || binary.LittleEndian.Uint32(b[20:]) != 36 {
		return nil, errors.New("bad RSDP")
	}

	taken := map[int]bool{}
	at := func(addr uint64) (parsedTable, error) {
		if addr < base+36 || addr-base > uint64(len(b)-headerLength) || addr%16 != 0 {
			return parsedTable{}, fmt.Errorf("table address %#x", addr)
		}
		off := int(addr - base)
		n := int(binary.LittleEndian.Uint32(b[off+4:]))
		if n < headerLength || n > len(b)-off {
			return parsedTable{}, fmt.Errorf("table at %#x has length %d", addr, n)
		}
		for i := off; i < off+n; i++ {
			if taken[i] {
				return parsedTable{}, fmt.Errorf("table at %#x overlaps another", addr)
			}
			taken[i] = true
		}
		if sum(b[off:off+n]) != 0 {
			return parsedTable{}, fmt.Errorf("table at %#x: checksum", addr)
		}
		return parsedTable{addr, b[off : off+n]}, nil
	}

	p := &parsedTables{tables: map[string]parsedTable{}}
	var err error
	if p.xsdt, err = at(binary.LittleEndian.Uint64(b[24:])); err != nil {
		return nil, err
	}
	if string(p.xsdt.b[:4]) != "XSDT" || len(p.xsdt.b)%8 != headerLength%8 {
		return nil, errors.New("bad XSDT")
	}
	for off := headerLength; off < len(p.xsdt.b); off += 8 {
		t, err := at(p.xsdt.u64(off))
		if err != nil {
			return nil, err
		}
		sig := string(t.b[:4])
		if _, ok := p.tables[sig]; ok {
			return nil, fmt.Errorf("two %s tables", sig)
		}
		p.tables[sig] = t
		p.order = append(p.order, sig)
	}
	fadt, ok := p.tables["FACP"]
	if !ok || len(fadt.b) != 276 {
		return nil, errors.New("bad FADT")
	}
	dsdt, err := at(fadt.u64(140))
	if err != nil {
		return nil, err
	}
	if a := fadt.u32(40); a != 0 && uint64(a) != dsdt.addr {
		return nil, errors.New("the FADT's DSDT addresses differ")
	}
	p.tables["DSDT"] = dsdt
	return p, nil
}

// A madtEntry is one interrupt controller structure: its type and all its bytes.
type madtEntry struct {
	kind byte
	b    []byte
}

func (p *parsedTables) madt() ([]madtEntry, error) {
	var list []madtEntry
	for b := p.tables["APIC"].b[44:]; len(b) > 0; {
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return nil, errors.New("bad MADT entry")
		}
		want := map[byte]byte{0: 8, 1: 12, 2: 10, 4: 6, 9: 16, 10: 12}[b[0]]
		if b[1] != want {
			return nil, fmt.Errorf("MADT entry of type %d has %d bytes", b[0], b[1])
		}
		list = append(list, madtEntry{b[0], b[:b[1]]})
		b = b[b[1]:]
	}
	return list, nil
}
