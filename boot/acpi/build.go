package acpi

import (
	"encoding/binary"
	"fmt"
)

const (
	headerLength = 36 // ACPI 6.3, section 5.2.6
	tableAlign   = 16

	defaultOEMID      = "VOLE"
	defaultOEMTableID = "VOLEVM"
	creatorID         = "VOLE"
	oemRevision       = 1
	creatorRevision   = 1
)

// Build returns the tables of m as they are to stand in guest memory at base,
// the RSDP first. base is a multiple of 16 and not 0. The tables take at most
// limit bytes.
//
// An error wraps ErrMachine when m (or base) is at fault, and names the field,
// or ErrTooLarge when limit is.
func Build(base uint64, limit int, m Machine) ([]byte, error) {
	if err := m.validate(base, limit); err != nil {
		return nil, err
	}
	body, err := m.dsdt()
	if err != nil {
		return nil, err
	}

	l := layout{base: base, machine: &m, b: make([]byte, align(rsdpLength))}
	dsdt := l.table("DSDT", 2, body)
	entries := []uint64{
		l.table("FACP", fadtRevision, m.fadt(dsdt)),
		l.table("APIC", madtRevision, m.madt()),
	}
	if m.PCI != nil {
		entries = append(entries, l.table("MCFG", 1, m.PCI.mcfg()))
	}
	xsdt := l.table("XSDT", 1, xsdtBody(entries))
	copy(l.b, m.rsdp(xsdt))

	if len(l.b) > limit {
		return nil, fmt.Errorf("%w: those of a machine with %d CPUs take %d bytes, and the limit is %d",
			ErrTooLarge, len(m.CPUs), len(l.b), limit)
	}
	return l.b, nil
}

// layout places tables one after the other.
type layout struct {
	base    uint64
	machine *Machine
	b       []byte
}

// table appends a table with its header and returns its guest-physical address.
func (l *layout) table(signature string, revision byte, body []byte) uint64 {
	at := len(l.b)
	b := append(l.b, signature...)
	b = binary.LittleEndian.AppendUint32(b, uint32(headerLength+len(body)))
	b = append(b, revision, 0)
	b = append(b, padded(l.machine.oemID(), 6)...)
	b = append(b, padded(l.machine.oemTableID(), 8)...)
	b = binary.LittleEndian.AppendUint32(b, oemRevision)
	b = append(b, creatorID...)
	b = binary.LittleEndian.AppendUint32(b, creatorRevision)
	b = append(b, body...)
	b[at+9] = checksum(b[at:])
	l.b = append(b, make([]byte, align(len(b))-len(b))...)
	return l.base + uint64(at)
}

func (m *Machine) oemID() string {
	if m.OEMID == "" {
		return defaultOEMID
	}
	return m.OEMID
}

func (m *Machine) oemTableID() string {
	if m.OEMTableID == "" {
		return defaultOEMTableID
	}
	return m.OEMTableID
}

// padded is s filled up with spaces to n bytes.
func padded(s string, n int) string { return fmt.Sprintf("%-*s", n, s) }

// checksum is the byte that brings the sum of b to 0.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}

func align(n int) int { return (n + tableAlign - 1) &^ (tableAlign - 1) }
