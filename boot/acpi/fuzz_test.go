package acpi

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// fuzzMachine makes a machine of bytes. Where a field is drawn from few values,
// that is so that many machines are good.
func fuzzMachine(b []byte) (base uint64, limit int, m Machine) {
	next := func(n int) uint64 {
		var full [8]byte
		k := copy(full[:n], b)
		b = b[k:]
		return binary.LittleEndian.Uint64(full[:])
	}
	u8 := func() uint8 { return uint8(next(1)) }
	u16 := func() uint16 { return uint16(next(2)) }
	u32 := func() uint32 { return uint32(next(4)) }
	// page is mostly a multiple of the page size.
	page := func() uint64 {
		v := next(8)
		if v%7 != 0 {
			v &^= 0xfff
		}
		return v >> (v >> 60 * 4)
	}
	flag := u8()

	base, limit = next(8)>>u8()&^15, int(u32())
	m = testMachine(0)
	first, step := u32()>>(u8()&31), uint32(u8()&3)
	for i := range uint32(u16() & 0x3ff) {
		m.CPUs = append(m.CPUs, CPU{UID: i, APICID: first + i*step})
	}
	if flag&1 != 0 {
		m.LAPICBase, m.IOAPICBase, m.IOAPICID = uint32(page()), uint32(page()), u8()
		m.SleepControlPort, m.SleepStatusPort, m.ResetPort, m.ResetValue = u16(), u16(), u16(), u8()
		m.GED = GED{u32(), u16()}
		m.RTCPort, m.PVPanicPort = u16(), u16()
		m.OmitProcessorDevices = u8()&1 != 0
	}
	if flag&2 != 0 {
		m.PCI = &PCI{page(), int(u16()), Window{page(), page()}, Window{page(), page()}}
	}
	if flag&4 != 0 {
		m.Serial = nil
		for range u8() & 7 {
			m.Serial = append(m.Serial, Serial{u16(), u8() & 31})
		}
	}
	if flag&8 != 0 {
		for range u8() & 31 {
			m.VirtioMMIO = append(m.VirtioMMIO, MMIO{page(), page(), u32() & 31})
		}
	}
	if flag&16 != 0 {
		for range u8() & 31 {
			m.Overrides = append(m.Overrides, Override{u8() & 31, u32() & 31, flag&32 != 0, flag&64 != 0})
		}
	}
	if flag&128 != 0 {
		m.OEMID, m.OEMTableID = string(b[:min(len(b), 7)]), string(b[:min(len(b), 9)])
	}
	return base, limit, m
}

// fuzzSeeds are machines that are good, in fuzzMachine's form: flags, address and
// its shift, limit, then APIC ids from first>>shift by step, and CPUs.
func fuzzSeeds() [][]byte {
	seed := func(flags byte, cpus uint16, rest ...byte) []byte {
		b := binary.LittleEndian.AppendUint64([]byte{flags}, testBase)
		b = append(b, 0)
		b = binary.LittleEndian.AppendUint32(b, testLimit)
		b = append(b, 0, 0, 0, 0, 0, 1)
		b = binary.LittleEndian.AppendUint16(b, cpus)
		return append(b, rest...)
	}
	var pci []byte
	for i, v := range []uint64{0xe0000000, 0xd0000000, 0x10000000, 0x8000000000, 0x4000000000} {
		pci = binary.LittleEndian.AppendUint64(pci, v)
		if i == 0 {
			pci = append(pci, 1, 0) // buses
		}
	}
	virtio := []byte{
		1,                            // device
		0, 0x10, 0, 0xc0, 0, 0, 0, 0, // base
		0, 0x10, 0, 0, 0, 0, 0, 0, // size
		6, 0, 0, 0, // GSI
		1, 9, 9, 0, 0, 0, // override
	}
	return [][]byte{
		seed(0, 4),
		seed(0, 300),
		seed(2, 4, pci...),
		seed(8|16|32, 4, virtio...),
		seed(4|128, 1, 2, 0xf8, 3, 4, 0xf8, 2, 3, 'O', 'E', 'M'),
	}
}

func TestFuzzSeeds(t *testing.T) {
	for i, s := range fuzzSeeds() {
		_, err := Build(fuzzMachine(s))
		require.NoError(t, err, "seed %d", i)
	}
}

// FuzzBuild builds arbitrary machines: whatever is not refused reads back as
// what it was made of.
func FuzzBuild(f *testing.F) {
	for _, s := range fuzzSeeds() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		base, limit, m := fuzzMachine(data)
		b, err := Build(base, limit, m)
		if err != nil {
			require.True(t, errors.Is(err, ErrMachine) || errors.Is(err, ErrTooLarge), err)
			require.Nil(t, b)
			return
		}
		require.LessOrEqual(t, len(b), limit)
		p, err := parseTables(base, b)
		require.NoError(t, err)
		root, err := parseAML(p.tables["DSDT"].b[headerLength:])
		require.NoError(t, err)
		checkNamespace(t, m, root)
		checkMADT(t, m, p)
	})
}

// FuzzNameString encodes arbitrary paths: whatever is not refused reads back.
func FuzzNameString(f *testing.F) {
	for _, s := range []string{"", `\`, `\_SB.PCI0.COM1`, "^^A", "A.B", "abcd", "A1__"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		got := nameString(path)
		if got.err != nil {
			require.ErrorIs(t, got.err, errAML)
			return
		}
		r := &amlReader{got.b}
		_, err := r.name()
		require.NoError(t, err)
		require.Empty(t, r.b)
		require.Equal(t, got.b, nameString(path).b)
	})
}
