package pci

import (
	"encoding/binary"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices"
)

func TestHostConfig(t *testing.T) {
	good := HostConfig{ECAMBase: testECAM, Buses: 1, Window32: testWindow32, Window64: testWindow64, Memory: devices.NewBus("memory")}
	tests := []struct {
		name   string
		change func(*HostConfig)
		words  string
	}{
		{"good", func(c *HostConfig) {}, ""},
		{"no 64-bit window", func(c *HostConfig) { c.Window64 = Range{} }, ""},
		{"all buses", func(c *HostConfig) { c.Buses = 256 }, ""},
		{"window up to 4 GiB", func(c *HostConfig) { c.Window32 = Range{0xf000_0000, 0x1000_0000} }, ""},
		{"no memory", func(c *HostConfig) { c.Memory = nil }, "memory bus"},
		{"no bus", func(c *HostConfig) { c.Buses = 0 }, "0 buses"},
		{"too many buses", func(c *HostConfig) { c.Buses = 257 }, "257 buses"},
		{"ECAM off its alignment", func(c *HostConfig) { c.ECAMBase += 4096 }, "multiple of 0x100000"},
		{"window above 4 GiB", func(c *HostConfig) { c.Window32.Base = 0xf000_1000 }, "above 4 GiB"},
		{"window wraps", func(c *HostConfig) { c.Window64 = Range{1 << 63, 1 << 63} }, "wraps"},
		{"window at 0", func(c *HostConfig) { c.Window32 = Range{0, 4096} }, "address 0"},
		{"windows overlap", func(c *HostConfig) { c.Window64.Base = 0xd800_0000 }, "overlap"},
		{"ECAM in a window", func(c *HostConfig) { c.ECAMBase = 0xd800_0000 }, "overlap"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.change(&c)
			h, err := NewHost(c)
			if tt.words == "" {
				require.NoError(t, err)
				assert.Equal(t, uint64(c.Buses)<<20, h.ECAMSize())
				return
			}
			require.ErrorIs(t, err, ErrInvalid)
			assert.ErrorContains(t, err, tt.words)
		})
	}
}

// TestAbsent: what is not there reads as all ones, and takes writes without harm.
func TestAbsent(t *testing.T) {
	m := newMachine(t)
	dev := m.plugIn(t, NewFunction(testID))
	tests := []struct {
		name string
		at   uint64
	}{
		{"the next device", at(dev+1, 0)},
		{"the last device", at(31, 0)},
		{"function 1", at(dev, 0) | 1<<12},
		{"function 7 of the bridge", 7 << 12},
		{"bus 1", 1<<20 | at(dev, 0)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, n := range []int{1, 2, 4, 8} {
				p := make([]byte, n)
				m.ecam.Write(tt.at, p)
				m.ecam.Read(tt.at, p)
				for _, v := range p {
					assert.Equal(t, byte(0xff), v)
				}
			}
			m.ports.Write(0, binary.LittleEndian.AppendUint32(nil, 1<<31|uint32(tt.at>>4)))
			assert.Equal(t, uint32(0xffffffff), word(m.ports, 4))
		})
	}
}

// TestPorts is configuration mechanism 1 (PCI 3.0, section 3.2.2.3.2).
func TestPorts(t *testing.T) {
	m := newMachine(t)
	f := NewFunction(testID)
	require.NoError(t, f.AddBAR(0, BAR{Size: 4096}))
	dev := m.plugIn(t, f)

	assert.Equal(t, uint32(0), word(m.ports, 0))
	poke(m.ports, 0, 0xffffffff)
	assert.Equal(t, uint32(0x80fffffc), word(m.ports, 0), "the other bits are 0")
	m.aim(dev, 4)
	address := word(m.ports, 0)

	for _, tt := range []struct {
		name string
		off  uint64
		n    int
	}{
		{"byte at CF8", 0, 1}, {"word at CF8", 0, 2}, {"qword at CF8", 0, 8}, {"byte at CF9", 1, 1}, {"byte at CFB", 3, 1},
		{"dword at CF9", 1, 4}, {"word across", 3, 2}, {"dword across", 2, 4}, {"dword past the end", 6, 4}, {"past the end", 8, 1},
		{"far past the end", 1 << 63, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := make([]byte, tt.n)
			m.ports.Write(tt.off, p)
			m.ports.Read(tt.off, p)
			for _, v := range p {
				assert.Equal(t, byte(0xff), v)
			}
			assert.Equal(t, address, word(m.ports, 0))
		})
	}

	t.Run("data of every size", func(t *testing.T) {
		m.setPort(dev, 4, 2, 0x0406)
		assert.Equal(t, uint32(0x0406), m.get(dev, 4, 4))
		m.setPort(dev, 5, 1, 0)
		assert.Equal(t, uint32(0x0006), m.get(dev, 4, 4))
		m.setPort(dev, 4, 4, 0)
		assert.Equal(t, uint32(0), m.get(dev, 4, 4))
	})

	t.Run("enable bit", func(t *testing.T) {
		poke(m.ports, 0, uint32(dev)<<11|4)
		assert.Equal(t, uint32(0xffffffff), word(m.ports, 4))
		poke(m.ports, 4, 6)
		assert.Equal(t, uint32(0), m.get(dev, 4, 4))
	})

	t.Run("agrees with ECAM", func(t *testing.T) {
		for reg := range configSize {
			for n := 1; n <= 4-reg%4; n++ {
				if n != 3 {
					require.Equal(t, m.get(dev, reg, n), m.getPort(dev, reg, n), "%d bytes at %#x", n, reg)
				}
			}
		}
	})
}

func TestPlugAssigns(t *testing.T) {
	m := newMachine(t)
	f := NewFunction(testID)
	require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000}))
	require.NoError(t, f.AddBAR(1, BAR{Size: 0x10000, Prefetchable: true}))
	require.NoError(t, f.AddBAR(2, BAR{Size: 0x1000, Wide: true}))
	require.NoError(t, f.AddBAR(4, BAR{Size: 1 << 33, Wide: true, Prefetchable: true}))
	dev := m.plugIn(t, f)
	for i, want := range []uint32{0xd0000000, 0xd0010008, 0x00000004, 0x40, 0x0000000c, 0x42} {
		assert.Equal(t, want, m.get(dev, 0x10+4*i, 4), "BAR %d", i)
	}
	assert.Empty(t, m.mem.ranges, "decoding is off")

	g := NewFunction(testID)
	require.NoError(t, g.AddBAR(0, BAR{Size: 0x1000}))
	require.NoError(t, g.AddBAR(1, BAR{Size: 0x1000, Wide: true}))
	dev = m.plugIn(t, g)
	assert.Equal(t, uint32(0xd0020000), m.get(dev, 0x10, 4))
	assert.Equal(t, uint32(0x00000004), m.get(dev, 0x14, 4))
	assert.Equal(t, uint32(0x44), m.get(dev, 0x18, 4))
}

func TestPlugErrors(t *testing.T) {
	t.Run("addresses", func(t *testing.T) {
		m := newMachine(t)
		f := NewFunction(testID)
		require.NoError(t, f.AddBAR(0, BAR{Size: 1 << 27}))
		require.NoError(t, f.AddBAR(1, BAR{Size: 1 << 28}))
		_, err := m.Plug(f)
		require.ErrorIs(t, err, ErrNoSpace)
		assert.ErrorContains(t, err, "BAR 1 of 0x10000000 bytes")

		g := NewFunction(testID)
		require.NoError(t, g.AddBAR(0, BAR{Size: 1 << 28}))
		assert.Equal(t, 1, m.plugIn(t, g), "neither number nor addresses are lost")
	})
	t.Run("a wide BAR falls back", func(t *testing.T) {
		h, err := NewHost(HostConfig{ECAMBase: testECAM, Buses: 1, Window32: testWindow32, Memory: newLedger()})
		require.NoError(t, err)
		f := NewFunction(testID)
		require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000, Wide: true}))
		_, err = h.Plug(f)
		require.NoError(t, err)
		assert.Equal(t, [6]uint32{0xd0000004}, f.State().BARs)
	})
	t.Run("numbers", func(t *testing.T) {
		m := newMachine(t)
		for i := 1; i < MaxDevices; i++ {
			assert.Equal(t, i, m.plugIn(t, NewFunction(testID)))
		}
		_, err := m.Plug(NewFunction(testID))
		assert.ErrorIs(t, err, ErrNoSpace)
	})
}

func TestHostReset(t *testing.T) {
	m := newMachine(t)
	f, _, src := vectors(t, 2)
	dev := m.plugIn(t, f)
	first := f.State()
	m.set(dev, 4, 2, 2)
	m.set(dev, 0x10, 4, 0xd8000000)
	m.set(dev, 0x42, 2, 0x8000)
	poke(f.bars[0].handler, 12, 0)
	require.NotEmpty(t, m.mem.ranges)
	require.False(t, src.vectors[0].masked)

	m.Reset()
	assert.Equal(t, first, f.State())
	assert.Empty(t, m.mem.ranges)
	assert.True(t, src.vectors[0].masked)
	assert.Equal(t, uint32(0), word(m.ports, 0))
}

func TestHostClose(t *testing.T) {
	m := newMachine(t)
	f, x, src := vectors(t, 2)
	dev := m.plugIn(t, f)
	m.set(dev, 4, 2, 2)
	m.set(dev, 0x42, 2, 0x8000)
	poke(f.bars[0].handler, 12, 0)
	src.take()
	require.NoError(t, m.Close())
	require.NoError(t, m.Close())
	require.NoError(t, f.Close())
	assert.Empty(t, m.mem.ranges)

	// Nothing reaches a closed vector.
	m.set(dev, 0x42, 2, 0)
	m.set(dev, 0x42, 2, 0x8000)
	poke(f.bars[0].handler, 12, 1)
	x.Trigger(0)
	x.ClearPending()
	x.Reset()
	assert.Empty(t, src.take())
	for _, v := range src.vectors {
		assert.Equal(t, 1, v.closed)
		assert.Zero(t, v.sent.Load())
	}
}

// TestConcurrent lets vCPUs, a device and a snapshot at one host, for the race detector.
func TestConcurrent(t *testing.T) {
	m := newMachine(t)
	f, x, _ := vectors(t, 4)
	maps := 0
	f.OnMap = func(bar int, base uint64, mapped bool) { maps++ }
	dev := m.plugIn(t, f)
	h := f.bars[0].handler
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for j := range 500 {
				m.set(dev, 4, 2, uint32(j&2))
				m.set(dev, 0x10, 4, 0xd0000000+uint32(i)<<16)
				m.set(dev, 0x42, 2, uint32(j&3)<<14)
				m.getPort(dev, j&0xfc, 4)
				poke(h, uint64(j%4*16+12), uint32(j&1))
				poke(h, uint64(j%4*16+8), uint32(j))
				word(h, 0x800)
				m.mem.Read(0xd0000000, make([]byte, 4))
			}
		})
	}
	wg.Go(func() {
		for j := range 2000 {
			x.Trigger(uint16(j % 5))
		}
	})
	wg.Go(func() {
		for range 200 {
			assert.NoError(t, m.SetState(m.State()))
			x.ClearPending()
		}
	})
	wg.Wait()
	assert.NotZero(t, maps)
}
