package pci

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAddBARErrors(t *testing.T) {
	f := NewFunction(testID)
	require.NoError(t, f.AddBAR(1, BAR{Size: 0x1000, Wide: true}))
	tests := []struct {
		name  string
		index int
		bar   BAR
		words string
	}{
		{"before the first", -1, BAR{Size: 0x1000}, "6 registers"},
		{"behind the last", 6, BAR{Size: 0x1000}, "6 registers"},
		{"wide at the last", 5, BAR{Size: 0x1000, Wide: true}, "6 registers"},
		{"taken", 1, BAR{Size: 0x1000}, "taken"},
		{"upper half of another", 2, BAR{Size: 0x1000}, "taken"},
		{"upper half taken", 0, BAR{Size: 0x1000, Wide: true}, "taken"},
		{"empty", 0, BAR{}, "power of two"},
		{"too small", 0, BAR{Size: 0x800}, "power of two"},
		{"not a power of two", 0, BAR{Size: 0x3000}, "power of two"},
		{"too large", 0, BAR{Size: 1 << 32}, "power of two"},
		{"too large and wide", 3, BAR{Size: 1 << 63, Wide: true}, "power of two"},
		{"good", 0, BAR{Size: 1 << 31}, ""},
		{"good and wide", 3, BAR{Size: 1 << 62, Wide: true}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := f.AddBAR(tt.index, tt.bar)
			if tt.words == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrInvalid)
			assert.ErrorContains(t, err, tt.words)
		})
	}
}

// TestSizing: all ones written, what comes back says the size (PCI 3.0, section 6.2.5.1).
func TestSizing(t *testing.T) {
	tests := []struct {
		name   string
		bar    BAR
		lo, hi uint32
	}{
		{"page", BAR{Size: 0x1000}, 0xfffff000, 0},
		{"prefetchable", BAR{Size: 0x10000, Prefetchable: true}, 0xffff0008, 0},
		{"2 GiB", BAR{Size: 1 << 31}, 0x80000000, 0},
		{"wide", BAR{Size: 0x4000, Wide: true}, 0xffffc004, 0xffffffff},
		{"wide and prefetchable", BAR{Size: 0x4000, Wide: true, Prefetchable: true}, 0xffffc00c, 0xffffffff},
		{"4 GiB", BAR{Size: 1 << 32, Wide: true}, 0x00000004, 0xffffffff},
		{"64 GiB", BAR{Size: 1 << 36, Wide: true}, 0x00000004, 0xfffffff0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mem := newLedger()
			h, err := NewHost(HostConfig{
				ECAMBase: 0xc000_0000, Buses: 1, Window32: Range{0x4000_0000, 0x8000_0000 - 1}, Window64: Range{1 << 36, 1 << 37}, Memory: mem,
			})
			require.NoError(t, err)
			if tt.bar.Size == 1<<31 {
				h.cfg.Window32 = Range{0x8000_0000, 0x8000_0000}
			}
			m := &machine{Host: h, mem: mem, ecam: h.ECAM(), ports: h.Ports()}
			f := NewFunction(testID)
			require.NoError(t, f.AddBAR(2, tt.bar))
			dev := m.plugIn(t, f)
			m.set(dev, 4, 2, 2)
			was := f.State()
			require.Len(t, mem.ranges, 1)

			m.set(dev, 0x18, 4, 0xffffffff)
			m.set(dev, 0x1c, 4, 0xffffffff)
			assert.Equal(t, tt.lo, m.get(dev, 0x18, 4))
			assert.Equal(t, tt.hi, m.get(dev, 0x1c, 4))
			if tt.bar.Size != 1<<31 { // whose only other address than 0 this is
				assert.Empty(t, mem.ranges, "not decoded meanwhile")
			}
			m.set(dev, 0x18, 4, was.BARs[2])
			m.set(dev, 0x1c, 4, was.BARs[3])
			assert.Equal(t, was, f.State())
			assert.Len(t, mem.ranges, 1)
		})
	}
}

// relocated is a machine with a narrow BAR (tag 1) and a wide one (tag 2), and one of another function (tag 3), all
// decoded, next to a device that is not PCI's (tag 9) at the end of the 32-bit window.
func relocated(t *testing.T) (m *machine, maps *[]string) {
	m, maps = newMachine(t), new([]string)
	require.NoError(t, m.mem.Add(0xdffff000, 0x1000, "other", &tagged{tag: 9}))
	f, g := NewFunction(testID), NewFunction(testID)
	require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000, Name: "narrow", Handler: &tagged{tag: 1}}))
	require.NoError(t, f.AddBAR(4, BAR{Size: 0x2000, Name: "wide", Wide: true, Handler: &tagged{tag: 2}}))
	f.OnMap = func(bar int, base uint64, mapped bool) {
		*maps = append(*maps, fmt.Sprintf("%d %#x %t", bar, base, mapped))
	}
	require.NoError(t, g.AddBAR(0, BAR{Size: 0x1000, Handler: &tagged{tag: 3}}))
	require.Equal(t, 1, m.plugIn(t, f))
	require.Equal(t, 2, m.plugIn(t, g))
	m.set(1, 4, 2, 2)
	m.set(2, 4, 2, 2)
	require.Equal(t, []string{"0 0xd0000000 true", "4 0x4000000000 true"}, *maps)
	*maps = nil
	return m, maps
}

func TestRelocation(t *testing.T) {
	t.Run("memory enable", func(t *testing.T) {
		m, maps := relocated(t)
		tag, ok := m.peek(0xd0000fff)
		assert.True(t, ok)
		assert.Equal(t, byte(1), tag)
		m.set(1, 4, 2, 4)
		assert.Equal(t, []string{"0 0xd0000000 false", "4 0x4000000000 false"}, *maps)
		_, ok = m.peek(0xd0000000)
		assert.False(t, ok)
		*maps = nil
		m.set(1, 4, 2, 0)
		assert.Empty(t, *maps, "off already")
		m.set(1, 4, 2, 6)
		m.set(1, 4, 2, 2)
		assert.Equal(t, []string{"0 0xd0000000 true", "4 0x4000000000 true"}, *maps)
	})

	t.Run("inside the window", func(t *testing.T) {
		m, maps := relocated(t)
		m.set(1, 0x10, 4, 0xd8000fff)
		assert.Equal(t, uint32(0xd8000000), m.get(1, 0x10, 4))
		assert.Equal(t, []string{"0 0xd0000000 false", "0 0xd8000000 true"}, *maps)
		tag, _ := m.peek(0xd8000000)
		assert.Equal(t, byte(1), tag)
		*maps = nil
		m.set(1, 0x10, 4, 0xd8000000)
		assert.Empty(t, *maps, "where it was")
	})

	t.Run("by bytes", func(t *testing.T) {
		m, maps := relocated(t)
		m.set(1, 0x13, 1, 0xd4)
		assert.Equal(t, []string{"0 0xd0000000 false", "0 0xd4000000 true"}, *maps)
	})

	t.Run("wide, half by half", func(t *testing.T) {
		m, maps := relocated(t)
		m.set(1, 0x24, 4, 0)
		m.set(1, 0x20, 4, 0xd6000000)
		assert.Equal(t, []string{"4 0x4000000000 false", "4 0xd6000000 true"}, *maps)
		assert.Equal(t, uint32(0xd6000004), m.get(1, 0x20, 4))
		m.set(1, 0x24, 4, 0x4f)
		m.set(1, 0x20, 4, 0xffffe000)
		tag, ok := m.peek(0x4fffffffff)
		assert.True(t, ok)
		assert.Equal(t, byte(2), tag)
	})

	refused := []struct {
		name     string
		reg      int
		lo, hi   uint32
		wide     bool
		probe    uint64
		tag      byte
		answered bool
	}{
		{name: "over RAM", lo: 0x00100000, probe: 0x00100000},
		{name: "at 0", lo: 0, probe: 0},
		{name: "over another device", lo: 0xdffff000, probe: 0xdffff000, tag: 9, answered: true},
		{name: "over another function", lo: 0xd0001000, probe: 0xd0001000, tag: 3, answered: true},
		{name: "over ECAM", lo: testECAM, probe: testECAM},
		{name: "below the window", lo: 0xcffff000, probe: 0xcffff000},
		{name: "above 4 GiB, out of the window", wide: true, lo: 0, hi: 1, probe: 1 << 32},
		{name: "just below the 64-bit window", wide: true, lo: 0xffffe000, hi: 0x3f, probe: 0x3fffffe000},
		{name: "just above it", wide: true, lo: 0, hi: 0x50, probe: 0x5000000000},
		{name: "at the last address", wide: true, lo: 0xffffffff, hi: 0xffffffff, probe: math.MaxUint64 - 0x1fff},
		{name: "across two functions", wide: true, lo: 0xd0000000, hi: 0, probe: 0xd0000000, tag: 1, answered: true},
	}
	for _, tt := range refused {
		t.Run("refused "+tt.name, func(t *testing.T) {
			m, maps := relocated(t)
			if tt.wide {
				m.set(1, 0x24, 4, tt.hi)
				m.set(1, 0x20, 4, tt.lo)
			} else {
				m.set(1, 0x10, 4, tt.lo)
			}
			tag, ok := m.peek(tt.probe)
			assert.Equal(t, tt.answered, ok)
			if ok {
				assert.Equal(t, tt.tag, tag)
			}
			require.Len(t, *maps, 1, "gone from where it was, and nowhere else")

			m.set(1, 0x10, 4, 0xd0000000)
			m.set(1, 0x20, 4, 0)
			m.set(1, 0x24, 4, 0x40)
			assert.Len(t, *maps, 2, "decoded again where it was")
			tag, _ = m.peek(0xd0000000)
			assert.Equal(t, byte(1), tag)
			tag, _ = m.peek(0x4000001fff)
			assert.Equal(t, byte(2), tag)
		})
	}

	t.Run("a refused BAR is decoded when the place is free", func(t *testing.T) {
		m, maps := relocated(t)
		m.set(1, 0x10, 4, 0xd0001000)
		require.Equal(t, []string{"0 0xd0000000 false"}, *maps)
		m.set(2, 0x10, 4, 0xd0000000)
		assert.Equal(t, []string{"0 0xd0000000 false", "0 0xd0001000 true"}, *maps)
		tag, _ := m.peek(0xd0001000)
		assert.Equal(t, byte(1), tag)
		tag, _ = m.peek(0xd0000000)
		assert.Equal(t, byte(3), tag)
	})

	t.Run("over a BAR of its own", func(t *testing.T) {
		m, maps := relocated(t)
		m.set(1, 0x24, 4, 0)
		m.set(1, 0x20, 4, 0xd0000000)
		assert.Equal(t, []string{"4 0x4000000000 false"}, *maps)
		m.set(1, 0x10, 4, 0xd1000000)
		m.set(2, 4, 2, 0)
		assert.Equal(t, []string{"4 0x4000000000 false", "0 0xd0000000 false", "0 0xd1000000 true", "4 0xd0000000 true"}, *maps)
	})
}

func TestReadWriteBAR(t *testing.T) {
	f := NewFunction(testID)
	h := &tagged{tag: 7}
	require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000, Handler: h}))
	require.NoError(t, f.AddBAR(1, BAR{Size: 0x1000}))
	tests := []struct {
		name string
		bar  int
		off  uint64
		n    int
		ok   bool
		tag  byte
	}{
		{"start", 0, 0, 4, true, 7},
		{"end", 0, 0xffc, 4, true, 7},
		{"past the end", 0, 0xffd, 4, false, 0xee},
		{"far past the end", 0, math.MaxUint64, 4, false, 0xee},
		{"no handler", 1, 0, 4, true, 0},
		{"no BAR", 2, 0, 4, false, 0xee},
		{"no register", 6, 0, 4, false, 0xee},
		{"below the registers", -1, 0, 4, false, 0xee},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := make([]byte, tt.n)
			for i := range p {
				p[i] = 0xee
			}
			assert.Equal(t, tt.ok, f.ReadBAR(tt.bar, tt.off, p))
			assert.Equal(t, tt.tag, p[0])
			assert.Equal(t, tt.ok, f.WriteBAR(tt.bar, tt.off, p))
			if tt.ok && tt.bar == 0 {
				assert.Equal(t, tt.off, h.off)
				assert.Equal(t, p, h.got)
			}
		})
	}
}
