package pci

import (
	"encoding/binary"

	"github.com/vole-vmm/vole/devices"
)

// An entry of the table (PCI 3.0, section 6.8.2.6): address, data, vector control.
const (
	entrySize    = 16
	entryAddress = 0
	entryData    = 8
	entryControl = 12

	entryMasked = 1
)

// entryWritable are the bits of an entry that a guest can change. The lowest two of the address are always 0, since a
// message is a dword.
var entryWritable = [entrySize]byte{
	0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xff, 0xff, 0xff, 0xff, entryMasked, 0, 0, 0,
}

// MSIXEntry is one entry of the table.
type MSIXEntry struct {
	Address uint64
	Data    uint32
	Control uint32 // bit 0: masked
	Pending bool
}

// entry returns entry i without its pending bit.
func (m *MSIX) entry(i int) MSIXEntry {
	b := m.table[i*entrySize:]
	return MSIXEntry{
		Address: binary.LittleEndian.Uint64(b[entryAddress:]),
		Data:    binary.LittleEndian.Uint32(b[entryData:]),
		Control: binary.LittleEndian.Uint32(b[entryControl:]),
	}
}

func (m *MSIX) setEntry(i int, e MSIXEntry) {
	b := m.table[i*entrySize:]
	binary.LittleEndian.PutUint64(b[entryAddress:], e.Address&^3)
	binary.LittleEndian.PutUint32(b[entryData:], e.Data)
	binary.LittleEndian.PutUint32(b[entryControl:], e.Control&entryMasked)
}

func (m *MSIX) clearTable() {
	for i := range m.vectors {
		m.setEntry(i, MSIXEntry{Control: entryMasked})
	}
}

// pending returns the pending bit of vector i, which is set only while the vector is masked.
func (m *MSIX) pending(i int) bool {
	return i < len(m.vectors) && m.control&msixEnable != 0 && !m.closed && !m.vectors[i].live && m.vectors[i].v.Pending()
}

// msixBAR is a BAR with table and pending bits in it. What runs past the end of either of them reads as 0.
type msixBAR struct {
	m     *MSIX
	owner devices.Handler
}

func (b msixBAR) Read(off uint64, p []byte) {
	m := b.m
	switch {
	case m.inTable(off):
		clear(p)
		m.mu.Lock()
		copy(p, m.table[off-m.tableOffset:])
		m.mu.Unlock()
	case m.inPBA(off):
		m.readPBA(off-m.pbaOffset, p)
	default:
		b.owner.Read(off, p)
	}
}

func (b msixBAR) Write(off uint64, p []byte) {
	m := b.m
	switch {
	case m.inTable(off):
		m.writeTable(int(off-m.tableOffset), p)
	case m.inPBA(off): // read-only
	default:
		b.owner.Write(off, p)
	}
}

// Both are false for an offset below the range too: the difference wraps around.
func (m *MSIX) inTable(off uint64) bool { return off-m.tableOffset < uint64(len(m.table)) }
func (m *MSIX) inPBA(off uint64) bool   { return off-m.pbaOffset < m.pbaSize }

// readPBA fills p with pending bits from byte at on.
func (m *MSIX) readPBA(at uint64, p []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range p {
		p[i] = 0
		first := (int(at) + i) * 8
		for bit := range 8 {
			if m.pending(first + bit) {
				p[i] |= 1 << bit
			}
		}
	}
}

// writeTable writes p to the table from byte at on, and then brings the vectors in line whose entries were touched.
func (m *MSIX) writeTable(at int, p []byte) {
	if len(p) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p = p[:min(len(p), len(m.table)-at)]
	for i, v := range p {
		mask := entryWritable[(at+i)%entrySize]
		m.table[at+i] = m.table[at+i]&^mask | v&mask
	}
	for i := at / entrySize; i <= (at+len(p)-1)/entrySize; i++ {
		m.sync(i)
	}
}
