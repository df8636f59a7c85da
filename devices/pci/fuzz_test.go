package pci

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices"
)

// fuzzMachine is two functions with BARs of each kind, MSI-X, and an active capability that reaches into a BAR.
func fuzzMachine(t *testing.T) (*machine, []*Function, []*fakeSource, map[uint64]int) {
	m := newMachine(t)
	require.NoError(t, m.mem.Add(0xd8000000, 0x1000, "other", nothing{}))
	mapped := map[uint64]int{} // as told to OnMap
	var functions []*Function
	var sources []*fakeSource
	for range 2 {
		f, src := NewFunction(testID), &fakeSource{}
		require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000}))
		require.NoError(t, f.AddBAR(1, BAR{Size: 0x4000, Prefetchable: true}))
		require.NoError(t, f.AddBAR(2, BAR{Size: 0x1000, Wide: true}))
		require.NoError(t, f.AddBAR(4, BAR{Size: 1 << 32, Wide: true, Prefetchable: true}))
		_, err := f.AddMSIX(5, 0, 0, 0x80, src)
		require.NoError(t, err)
		all := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		_, err = f.AddActiveCapability(9, make([]byte, 6), all, 2, 4, reach{f})
		require.NoError(t, err)
		f.OnMap = func(bar int, base uint64, on bool) {
			if on {
				mapped[base]++
			} else {
				mapped[base]--
			}
		}
		m.plugIn(t, f)
		functions, sources = append(functions, f), append(sources, src)
	}
	return m, functions, sources, mapped
}

// reach is a capability that leads into the BARs, as virtio's PCI_CFG does: body[0] is the BAR, body[1] the offset.
type reach struct{ f *Function }

func (r reach) ReadCapability(body []byte, off int, p []byte) {
	r.f.ReadBAR(int(body[0]), uint64(body[1]), p)
}

func (r reach) WriteCapability(body []byte, off int, p []byte) {
	r.f.WriteBAR(int(body[0]), uint64(body[1]), p)
}

// FuzzHost drives configuration space, by both ways, and the MSI-X tables. Each operation is 8 bytes: what, size, where
// (two), data (four).
func FuzzHost(f *testing.F) {
	f.Add([]byte{0, 2, 0x04, 1, 2, 0, 0, 0, 0, 2, 0x10, 1, 0, 0x10, 0, 0xd0, 0, 2, 0x10, 1, 0, 0, 0, 0xd8})
	f.Add([]byte{0, 2, 0x04, 1, 6, 4, 0, 0, 0, 2, 0x24, 1, 0x41, 0, 0, 0, 0, 2, 0x20, 1, 0, 0, 0, 0})
	f.Add([]byte{0, 2, 0x40, 1, 0, 0, 0, 0x80, 2, 2, 0, 0, 0, 0x10, 0xe0, 0xfe, 2, 2, 12, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 2, 0x4c, 1, 9, 0, 0, 0, 1, 2, 0x50, 1, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 3, 0xfe, 2, 0xff, 0xff, 0xff, 0xff, 0, 2, 0x10, 2, 0, 0, 1, 0xd0, 0, 2, 4, 2, 2, 0, 0, 0, 0, 2, 4, 1, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		m, functions, sources, mapped := fuzzMachine(t)
		n := 0
		for ; len(ops) >= 8 && n < 64; ops, n = ops[8:], n+1 {
			kind, size, lo, hi := ops[0], 1<<(ops[1]%4), uint64(ops[2]), uint64(ops[3])
			data := append([]byte(nil), ops[4:8]...)
			data = append(data, data...)[:size]
			which := int(hi) % 2
			table := functions[which].bars[0].handler
			switch kind % 8 {
			case 0: // a few devices, mostly in the first 256 bytes
				reg := lo
				if hi&0x80 != 0 {
					reg |= hi & 0x70 << 4
				}
				m.ecam.Write(hi%4<<15|reg, data)
			case 1:
				poke(m.ports, 0, 1<<31|uint32(hi%4)<<11|uint32(lo&0xfc))
				m.ports.Write(4+lo%4, data)
			case 2:
				table.Write(lo, data)
			case 3:
				m.ports.Write(lo%9, data)
			case 4:
				functions[which].msix.Trigger(uint16(lo % 7))
			case 5:
				table.Read(lo, data)
				m.ecam.Read((hi<<8|lo)<<5, data)
				m.ports.Read(lo%9, data)
			case 6:
				require.NoError(t, m.SetState(m.State()))
			case 7:
				switch lo % 16 {
				case 0:
					m.Reset()
				case 1:
					functions[which].msix.Reset()
				default:
					functions[which].msix.ClearPending()
				}
			}
			checkMapping(t, m, functions, mapped)
			for i, f := range functions {
				checkVectors(t, f.msix, sources[i])
			}
		}
		checkRegisters(t, m)
		before := m.State()
		require.NoError(t, m.SetState(before))
		require.Equal(t, before, m.State())
	})
}

// must is require.True without its price, which would be most of a run.
func must(t *testing.T, ok bool, format string, args ...any) {
	if !ok {
		t.Helper()
		t.Fatalf(format, args...)
	}
}

// checkMapping holds the memory bus against the registers.
func checkMapping(t *testing.T, m *machine, functions []*Function, told map[uint64]int) {
	count := 1 // the other device
	for _, f := range functions {
		for i, b := range f.bars {
			if b == nil {
				continue
			}
			base := uint64(f.regs[4+i] &^ 0xf)
			if b.Wide {
				base |= uint64(f.regs[5+i]) << 32
			}
			must(t, base%b.Size == 0, "BAR %d at %#x", i, base)
			wanted := f.regs[1]&2 != 0 && (testWindow32.holds(base, b.Size) || testWindow64.holds(base, b.Size))
			if b.mapped {
				count++
				must(t, wanted && base == b.base, "BAR %d, at %#x, is mapped at %#x", i, base, b.base)
				must(t, b.Size == m.mem.ranges[base], "BAR %d has %#x bytes on the bus", i, m.mem.ranges[base])
				must(t, told[base] == 1, "BAR %d: OnMap has %d at %#x", i, told[base], base)
			} else if wanted {
				err := m.mem.Bus.Add(base, b.Size, "again", nothing{})
				must(t, errors.Is(err, devices.ErrOverlap), "BAR %d could be at %#x", i, base)
			}
		}
	}
	must(t, count == len(m.mem.ranges), "%d ranges for %d", len(m.mem.ranges), count)
	on := 0
	for base, n := range told {
		must(t, n == 0 || n == 1, "OnMap has %d at %#x", n, base)
		on += n
	}
	must(t, on == count-1, "OnMap has %d for %d", on, count-1)
}

// checkVectors holds the vectors against table and message control.
func checkVectors(t *testing.T, x *MSIX, src *fakeSource) {
	src.take()
	for i, v := range src.vectors {
		e := x.entry(i)
		live := x.control == 0x8000 && e.Control == 0
		must(t, live == !v.masked, "vector %d: unmasked is %t", i, live)
		must(t, e.Control <= 1 && e.Address&3 == 0, "vector %d: %+v", i, e)
		if live {
			must(t, e.Address == v.addr && e.Data == v.data && !v.pending, "vector %d: %+v", i, e)
		}
	}
}

// checkRegisters reads everything by both ways, and what never changes.
func checkRegisters(t *testing.T, m *machine) {
	for dev := range 4 {
		for reg := 0; reg < configSize; reg += 4 {
			if reg == 0x50 {
				continue // leads elsewhere: the read of a BAR, at whatever size
			}
			must(t, m.get(dev, reg, 4) == m.getPort(dev, reg, 4), "register %#x of device %d", reg, dev)
		}
	}
	for dev := 1; dev < 3; dev++ {
		for reg, want := range map[int]uint32{0: 0x10421af4, 8: 0x01800001, 0x2c: 0x00401af4, 0x34: 0x40, 0x3c: 0, 0x44: 0, 0x48: 0x80, 0x100: 0} {
			require.Equal(t, want, m.get(dev, reg, 4), "register %#x", reg)
		}
		require.Equal(t, uint32(0x00100000), m.get(dev, 4, 4)&^0x0406)
		require.Equal(t, uint32(0x00044c11), m.get(dev, 0x40, 4)&^0xc0000000)
		for reg, flags := range map[int]uint32{0x10: 0, 0x14: 8, 0x18: 4, 0x20: 0xc} {
			require.Equal(t, flags, m.get(dev, reg, 4)&0xf)
		}
	}
	require.Equal(t, ^uint32(0), m.get(3, 0, 4))
}
