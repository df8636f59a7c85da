package acpi

import "encoding/binary"

// rsdpLength is that of the structure of ACPI 2.0 and later (ACPI 6.3, section
// 5.2.5.3).
const rsdpLength = 36

// rsdp points at the XSDT. There is no RSDT: the only reader of one would be a
// system older than ACPI 2.0.
func (m *Machine) rsdp(xsdt uint64) []byte {
	b := make([]byte, 0, rsdpLength)
	b = append(b, "RSD PTR "...)
	b = append(b, 0) // checksum of the first 20 bytes
	b = append(b, padded(m.oemID(), 6)...)
	b = append(b, 2) // revision
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, rsdpLength)
	b = binary.LittleEndian.AppendUint64(b, xsdt)
	b = append(b, 0, 0, 0, 0) // checksum of all, reserved
	b[8] = checksum(b[:20])
	b[32] = checksum(b)
	return b
}

// xsdtBody lists the addresses of the tables (ACPI 6.3, section 5.2.8).
func xsdtBody(tables []uint64) []byte {
	b := make([]byte, 0, 8*len(tables))
	for _, t := range tables {
		b = binary.LittleEndian.AppendUint64(b, t)
	}
	return b
}
