package pci

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// vectors is a function with n vectors in BAR 0: the table at 0, pending bits at 0x800, the owner's bytes (tag 7) in the
// rest. The capability is at 0x40.
func vectors(t testing.TB, n int) (*Function, *MSIX, *fakeSource) {
	f, src := NewFunction(testID), &fakeSource{}
	require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000, Handler: &tagged{tag: 7}}))
	x, err := f.AddMSIX(n, 0, 0, 0x800, src)
	require.NoError(t, err)
	return f, x, src
}

func TestAddMSIXErrors(t *testing.T) {
	tests := []struct {
		name       string
		n, bar     int
		table, pba uint32
		src        VectorSource
		words      string
	}{
		{"no vector", 0, 0, 0, 0x800, &fakeSource{}, "1 to 2048"},
		{"fewer", -1, 0, 0, 0x800, &fakeSource{}, "1 to 2048"},
		{"too many", 2049, 4, 0, 0x8000, &fakeSource{}, "1 to 2048"},
		{"no source", 1, 0, 0, 0x800, nil, "source"},
		{"no BAR", 1, 1, 0, 0x800, &fakeSource{}, "BAR 1"},
		{"no register", 1, 6, 0, 0x800, &fakeSource{}, "BAR 6"},
		{"table not aligned", 1, 0, 4, 0x800, &fakeSource{}, "multiples of 8"},
		{"pending bits not aligned", 1, 0, 0, 0x801, &fakeSource{}, "multiples of 8"},
		{"table too long", 257, 0, 0, 0, &fakeSource{}, "fit"},
		{"pending bits behind the end", 1, 0, 0, 0x1000, &fakeSource{}, "fit"},
		{"overlap", 2, 0, 0, 0x18, &fakeSource{}, "overlap"},
		{"good", 2, 0, 0, 0x20, &fakeSource{}, ""},
		{"good, as many as there can be", 2048, 4, 0, 0x8000, &fakeSource{}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := NewFunction(testID)
			require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000}))
			require.NoError(t, f.AddBAR(4, BAR{Size: 0x10000}))
			x, err := f.AddMSIX(tt.n, tt.bar, tt.table, tt.pba, tt.src)
			if tt.words == "" {
				require.NoError(t, err)
				assert.Equal(t, tt.n, x.Len())
				_, err = f.AddMSIX(1, 0, 0, 0x800, &fakeSource{})
				assert.ErrorIs(t, err, ErrInvalid, "twice")
				return
			}
			require.ErrorIs(t, err, ErrInvalid)
			assert.ErrorContains(t, err, tt.words)
		})
	}

	t.Run("the host runs out", func(t *testing.T) {
		f := NewFunction(testID)
		require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000}))
		src := &fakeSource{limit: 2}
		_, err := f.AddMSIX(3, 0, 0, 0x800, src)
		require.ErrorIs(t, err, errHost)
		assert.ErrorContains(t, err, "vector 2 of 3")
		for _, v := range src.vectors {
			assert.Equal(t, 1, v.closed)
		}
		_, err = f.AddMSIX(2, 0, 0, 0x800, &fakeSource{})
		require.NoError(t, err, "the function is as before")
	})
	t.Run("no room for the capability", func(t *testing.T) {
		f := NewFunction(testID)
		require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000}))
		_, err := f.AddCapability(9, make([]byte, 184), nil)
		require.NoError(t, err)
		src := &fakeSource{}
		_, err = f.AddMSIX(1, 0, 0, 0x800, src)
		require.ErrorIs(t, err, ErrNoSpace)
		assert.Empty(t, src.vectors)
	})
}

func TestMSIXCapability(t *testing.T) {
	m := newMachine(t)
	f := NewFunction(testID)
	require.NoError(t, f.AddBAR(4, BAR{Size: 0x4000, Wide: true}))
	_, err := f.AddMSIX(3, 4, 0x2000, 0x3000, &fakeSource{})
	require.NoError(t, err)
	dev := m.plugIn(t, f)
	assert.Equal(t, uint32(0x00020011), m.get(dev, 0x40, 4))
	assert.Equal(t, uint32(0x2004), m.get(dev, 0x44, 4))
	assert.Equal(t, uint32(0x3004), m.get(dev, 0x48, 4))
	tests := []struct {
		name   string
		reg, n int
		v      uint32
		want   uint32
	}{
		{"all ones", 0x40, 4, 0xffffffff, 0xc0020011},
		{"low byte of control", 0x42, 1, 0, 0xc0020011},
		{"high byte of control", 0x43, 1, 0x80, 0x80020011},
		{"word", 0x42, 2, 0x4000, 0x40020011},
		{"a word in the middle", 0x41, 2, 0, 0x40020011},
		{"another capability register", 0x44, 4, 0, 0x40020011},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m.set(dev, tt.reg, tt.n, tt.v)
			assert.Equal(t, tt.want, m.get(dev, 0x40, 4))
			assert.Equal(t, tt.want, m.getPort(dev, 0x40, 4))
			assert.Equal(t, uint32(0x2004), m.get(dev, 0x44, 4))
		})
	}
}

func TestMSIXTable(t *testing.T) {
	f, _, _ := vectors(t, 3)
	h := f.bars[0].handler
	for i := range uint64(3) {
		for j, want := range []uint32{0, 0, 0, 1} {
			assert.Equal(t, want, word(h, i*16+uint64(j)*4), "entry %d word %d after reset", i, j)
		}
	}
	for j, want := range []uint32{0xfffffffc, 0xffffffff, 0xffffffff, 1} {
		poke(h, 16+uint64(j)*4, 0xffffffff)
		assert.Equal(t, want, word(h, 16+uint64(j)*4), "word %d", j)
	}
	assert.Equal(t, uint32(0), word(h, 8), "the entry before")
	assert.Equal(t, uint32(0), word(h, 32), "the entry after")

	t.Run("qwords", func(t *testing.T) {
		h.Write(32, []byte{0, 0x10, 0xe0, 0xfe, 1, 0, 0, 0})
		h.Write(40, []byte{0x41, 0, 0, 0, 0, 0, 0, 0})
		p := make([]byte, 8)
		h.Read(32, p)
		assert.Equal(t, []byte{0, 0x10, 0xe0, 0xfe, 1, 0, 0, 0}, p)
		h.Read(40, p)
		assert.Equal(t, []byte{0x41, 0, 0, 0, 0, 0, 0, 0}, p)
	})
	t.Run("past the end", func(t *testing.T) {
		p := []byte{9, 9, 9, 9, 9, 9, 9, 9}
		h.Write(44, p)
		h.Read(44, p)
		assert.Equal(t, []byte{1, 0, 0, 0, 0, 0, 0, 0}, p)
	})
	t.Run("the rest is the owner's", func(t *testing.T) {
		for _, off := range []uint64{48, 0x7f8, 0x808, 0xffc} {
			assert.Equal(t, uint32(0x07070707), word(h, off))
		}
		poke(h, 0x100, 0x12345678)
		assert.Equal(t, []byte{0x78, 0x56, 0x34, 0x12}, f.bars[0].Handler.(*tagged).got)
	})
	t.Run("pending bits are read-only", func(t *testing.T) {
		poke(h, 0x800, 0xffffffff)
		assert.Equal(t, uint32(0), word(h, 0x800))
		assert.Equal(t, uint32(0), word(h, 0x804))
	})
	t.Run("empty accesses", func(t *testing.T) {
		h.Write(0, nil)
		h.Read(0, nil)
	})
}

// bench is a plugged function with vectors whose messages are written, 0xfee01000+i and 0x40+i.
type bench struct {
	*machine
	x   *MSIX
	src *fakeSource
	dev int
	f   *Function
}

func newBench(t *testing.T, n int) *bench {
	m := newMachine(t)
	f, x, src := vectors(t, n)
	b := &bench{machine: m, x: x, src: src, dev: m.plugIn(t, f), f: f}
	for i := range n {
		b.entry(i, 0, 0xfee01000+uint32(i)<<12)
		b.entry(i, 8, 0x40+uint32(i))
	}
	require.Empty(t, src.take(), "nothing is programmed before it is unmasked")
	return b
}

func (b *bench) entry(i, off int, v uint32) { poke(b.f.bars[0].handler, uint64(i*16+off), v) }
func (b *bench) control(v uint32)           { b.set(b.dev, 0x42, 2, v) }
func (b *bench) pba() uint32                { return word(b.f.bars[0].handler, 0x800) }
func (b *bench) sent(i int) int             { return int(b.src.vectors[i].sent.Swap(0)) }

// TestMSIXProgramming: a vector is told no more than it has to know, since each word may be a system call.
func TestMSIXProgramming(t *testing.T) {
	b := newBench(t, 2)
	steps := []struct {
		name string
		do   func()
		want []string
	}{
		{"entry unmasked while disabled", func() { b.entry(0, 12, 0) }, nil},
		{"function mask without enable", func() { b.control(0x4000) }, nil},
		{"enabled under the function mask", func() { b.control(0xc000) }, nil},
		{"function mask lifted", func() { b.control(0x8000) }, []string{"0 program 0xfee01000 0x40", "0 unmask"}},
		{"the same again", func() { b.control(0x8000); b.entry(0, 12, 0); b.entry(0, 8, 0x40) }, nil},
		{"masked", func() { b.entry(0, 12, 1) }, []string{"0 mask"}},
		{"another message while masked", func() { b.entry(0, 8, 0x50); b.entry(0, 8, 0x51) }, nil},
		{"unmasked with it", func() { b.entry(0, 12, 0) }, []string{"0 program 0xfee01000 0x51", "0 unmask"}},
		{"masked and unmasked with the same", func() { b.entry(0, 12, 1); b.entry(0, 12, 0) }, []string{"0 mask", "0 unmask"}},
		{"another message while unmasked", func() { b.entry(0, 0, 0xfee02000) }, []string{"0 program 0xfee02000 0x51"}},
		{"high half of the address", func() { b.entry(0, 4, 1) }, []string{"0 program 0x1fee02000 0x51"}},
		{"the other vector", func() { b.entry(1, 12, 0) }, []string{"1 program 0xfee02000 0x41", "1 unmask"}},
		{"function mask", func() { b.control(0xc000) }, []string{"0 mask", "1 mask"}},
		{"function mask lifted again", func() { b.control(0x8000) }, []string{"0 unmask", "1 unmask"}},
		{"disabled", func() { b.control(0) }, []string{"0 mask", "1 mask"}},
		{"enabled again", func() { b.control(0x8000) }, []string{"0 unmask", "1 unmask"}},
		{"across two entries", func() { b.f.bars[0].handler.Write(12, []byte{1, 0, 0, 0, 0, 0x50, 0xe0, 0xfe}) },
			[]string{"0 mask", "1 program 0xfee05000 0x41"}},
		{"unmasked after that", func() { b.entry(0, 12, 0) }, []string{"0 unmask"}},
		{"reset", b.x.Reset, []string{"0 mask", "1 mask"}},
	}
	for _, s := range steps {
		s.do()
		assert.Equal(t, s.want, b.src.take(), s.name)
	}
	assert.Equal(t, uint32(0x00010011), b.get(b.dev, 0x40, 4), "disabled by the reset")
	assert.Equal(t, uint32(1), word(b.f.bars[0].handler, 12), "masked by it")
	assert.Equal(t, uint32(0), word(b.f.bars[0].handler, 0), "emptied by it")
}

func TestMSIXPending(t *testing.T) {
	t.Run("entry masked", func(t *testing.T) {
		b := newBench(t, 3)
		b.control(0x8000)
		b.x.Trigger(1)
		assert.Equal(t, uint32(2), b.pba())
		assert.Zero(t, b.sent(1))
		b.entry(1, 12, 0)
		assert.Zero(t, b.pba())
		assert.Equal(t, 1, b.sent(1))
		b.x.Trigger(1)
		assert.Equal(t, 1, b.sent(1))
		assert.Zero(t, b.pba())
		assert.Zero(t, b.sent(0)+b.sent(2))
	})
	t.Run("function mask", func(t *testing.T) {
		b := newBench(t, 3)
		b.entry(0, 12, 0)
		b.entry(2, 12, 0)
		b.control(0xc000)
		b.x.Trigger(0)
		b.x.Trigger(1)
		b.x.Trigger(2)
		assert.Equal(t, uint32(7), b.pba())
		b.control(0x8000)
		assert.Equal(t, uint32(2), b.pba())
		assert.Equal(t, 1, b.sent(0))
		assert.Zero(t, b.sent(1))
		assert.Equal(t, 1, b.sent(2))
	})
	t.Run("disabled", func(t *testing.T) {
		b := newBench(t, 1)
		b.entry(0, 12, 0)
		b.x.Trigger(0)
		assert.Zero(t, b.pba())
		b.control(0x8000)
		assert.Zero(t, b.sent(0))
	})
	t.Run("disabled with something pending", func(t *testing.T) {
		b := newBench(t, 1)
		b.control(0x8000)
		b.x.Trigger(0)
		b.control(0)
		assert.Zero(t, b.pba())
		b.entry(0, 12, 0)
		b.control(0x8000)
		assert.Zero(t, b.pba())
		assert.Zero(t, b.sent(0), "no message is owed from before")
	})
	t.Run("no such vector", func(t *testing.T) {
		b := newBench(t, 2)
		b.control(0x8000)
		b.x.Trigger(2)
		b.x.Trigger(0xffff)
		assert.Zero(t, b.pba())
	})
	t.Run("reset", func(t *testing.T) {
		b := newBench(t, 1)
		b.control(0x8000)
		b.x.Trigger(0)
		b.x.Reset()
		assert.Zero(t, b.pba())
		b.x.Trigger(0)
		b.control(0x8000)
		b.entry(0, 12, 0)
		assert.Zero(t, b.sent(0))
	})
	t.Run("reset of the device", func(t *testing.T) {
		b := newBench(t, 2)
		b.control(0x8000)
		b.entry(1, 12, 0)
		b.x.Trigger(0)
		b.x.ClearPending()
		assert.Zero(t, b.pba())
		b.entry(0, 12, 0)
		assert.Zero(t, b.sent(0))
		b.x.Trigger(1)
		assert.Equal(t, 1, b.sent(1), "the table is as it was")
	})
	t.Run("beyond 64 vectors", func(t *testing.T) {
		b := newBench(t, 70)
		b.control(0x8000)
		b.x.Trigger(69)
		p := make([]byte, 8)
		b.f.bars[0].handler.Read(0x808, p)
		assert.Equal(t, []byte{1 << 5, 0, 0, 0, 0, 0, 0, 0}, p)
		b.f.bars[0].handler.Read(0x800, p)
		assert.Equal(t, make([]byte, 8), p)
	})
}

// TestMSIXHostFails: what a host refuses is tried again when the guest next touches the vector.
func TestMSIXHostFails(t *testing.T) {
	tests := []struct {
		name string
		fail string
		on   []string // calls when the vector is unmasked
		off  []string // and then masked
	}{
		{"program", "program", []string{"0 program 0xfee01000 0x40"}, nil},
		{"unmask", "unmask", []string{"0 program 0xfee01000 0x40", "0 unmask"}, nil},
		{"mask", "mask", []string{"0 program 0xfee01000 0x40", "0 unmask"}, []string{"0 mask"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, 1)
			b.control(0x8000)
			b.src.fail = map[string]bool{tt.fail: true}
			b.entry(0, 12, 0)
			assert.Equal(t, tt.on, b.src.take())
			b.entry(0, 12, 1)
			assert.Equal(t, tt.off, b.src.take())
			require.ErrorIs(t, b.x.Err(), errHost)
			assert.ErrorContains(t, b.x.Err(), tt.fail+" MSI-X vector 0")

			b.src.fail = nil
			b.entry(0, 12, 1)
			assert.Equal(t, tt.off, b.src.take(), "masked, if that was refused")
			b.entry(0, 12, 0)
			b.x.Trigger(0)
			assert.Equal(t, 1, b.sent(0))
			assert.Equal(t, uint64(0xfee01000), b.src.vectors[0].addr)
			b.x.Reset()
			assert.NoError(t, b.x.Err())
		})
	}
	t.Run("no old message in place of a new one", func(t *testing.T) {
		b := newBench(t, 1)
		b.control(0x8000)
		b.entry(0, 12, 0)
		b.src.take()
		b.src.fail = map[string]bool{"program": true}
		b.entry(0, 8, 0x77)
		assert.Equal(t, []string{"0 program 0xfee01000 0x77", "0 mask"}, b.src.take())
	})
}
