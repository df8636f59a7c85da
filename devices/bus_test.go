package devices

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// memo answers reads with its tag and remembers the last access.
type memo struct {
	tag byte
	off uint64
	n   int
}

func (m *memo) Read(off uint64, p []byte)  { m.off, m.n = off, len(p); fill(p, m.tag) }
func (m *memo) Write(off uint64, p []byte) { m.off, m.n = off, len(p) }

func TestBusDispatch(t *testing.T) {
	b := NewBus("port")
	low, com, top := &memo{tag: 1}, &memo{tag: 2}, &memo{tag: 3}
	require.NoError(t, b.Add(0x3f8, 8, "com1", com))
	require.NoError(t, b.Add(0, 4, "low", low))
	require.NoError(t, b.Add(math.MaxUint64-3, 4, "top", top))

	tests := []struct {
		name string
		addr uint64
		n    int
		want *memo
		off  uint64
	}{
		{"first byte", 0x3f8, 1, com, 0},
		{"last byte", 0x3ff, 1, com, 7},
		{"whole range", 0x3f8, 8, com, 0},
		{"crosses the end", 0x3ff, 2, nil, 0},
		{"crosses the start", 0x3f7, 2, nil, 0},
		{"just below", 0x3f7, 1, nil, 0},
		{"just above", 0x400, 1, nil, 0},
		{"address 0", 0, 4, low, 0},
		{"above low", 4, 1, nil, 0},
		{"last address", math.MaxUint64, 1, top, 3},
		{"wraps", math.MaxUint64, 2, nil, 0},
		{"nothing asked", 0x3f8, 0, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := make([]byte, tt.n)
			hit := b.Read(tt.addr, p)
			assert.Equal(t, tt.want != nil, hit)
			tag := byte(0xff)
			if tt.want != nil {
				tag = tt.want.tag
				assert.Equal(t, tt.off, tt.want.off)
				assert.Equal(t, tt.n, tt.want.n)
			}
			for _, v := range p {
				assert.Equal(t, tag, v)
			}
			assert.Equal(t, tt.want != nil, b.Write(tt.addr, p))
		})
	}
}

func TestBusAddErrors(t *testing.T) {
	b := NewBus("memory")
	require.NoError(t, b.Add(0x1000, 0x1000, "first", &memo{}))
	tests := []struct {
		name       string
		base, size uint64
		h          Handler
		err        error
		words      string
	}{
		{"same", 0x1000, 0x1000, &memo{}, ErrOverlap, "memory bus: new (0x1000 to 0x1fff) and first (0x1000 to 0x1fff)"},
		{"tail", 0x1fff, 1, &memo{}, ErrOverlap, "first"},
		{"head", 0xfff, 2, &memo{}, ErrOverlap, "first"},
		{"around", 0, math.MaxUint64, &memo{}, ErrOverlap, "first"},
		{"inside", 0x1800, 8, &memo{}, ErrOverlap, "first"},
		{"empty", 0x5000, 0, &memo{}, ErrRange, "empty"},
		{"wraps", math.MaxUint64, 2, &memo{}, ErrRange, "wraps"},
		{"no handler", 0x5000, 1, nil, ErrRange, "no handler"},
		{"before", 0xfff, 1, &memo{}, nil, ""},
		{"after", 0x2000, math.MaxUint64 - 0x2000 + 1, &memo{}, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := b.Add(tt.base, tt.size, "new", tt.h)
			if tt.err == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, tt.err)
			assert.ErrorContains(t, err, tt.words)
		})
	}
}

func TestBusRemove(t *testing.T) {
	b := NewBus("port")
	require.NoError(t, b.Add(0x10, 2, "a", &memo{}))
	require.NoError(t, b.Add(0x20, 2, "b", &memo{}))
	assert.False(t, b.Remove(0x11), "only the start of a range names it")
	assert.False(t, b.Remove(0x30))
	assert.True(t, b.Remove(0x10))
	assert.False(t, b.Remove(0x10))
	assert.False(t, b.Read(0x10, make([]byte, 1)))
	assert.True(t, b.Read(0x20, make([]byte, 1)))
	assert.NoError(t, b.Add(0x11, 4, "c", &memo{}))
}

// TestBusConcurrent changes the bus under readers, for the race detector.
func TestBusConcurrent(t *testing.T) {
	b := NewBus("memory")
	require.NoError(t, b.Add(0, 8, "fixed", NewPower(nil, nil)))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			p := make([]byte, 4)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !b.Read(0, p) {
					t.Error("the fixed range went away")
					return
				}
				b.Read(0x1000, p)
			}
		})
	}
	for range 2000 {
		require.NoError(t, b.Add(0x1000, 8, "moving", NewPower(nil, nil)))
		require.True(t, b.Remove(0x1000))
	}
	close(stop)
	wg.Wait()
}

// FuzzBus compares the bus with a list that is searched from end to end.
func FuzzBus(f *testing.F) {
	f.Add([]byte{0, 0x10, 8, 0, 0x14, 8, 2, 0x17, 1, 1, 0x10, 0, 2, 0x10, 4})
	f.Add([]byte{0, 0xff, 1, 0, 0xf0, 15, 2, 0xff, 1, 2, 0xff, 2, 2, 0xef, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		type entry struct {
			first, last uint64
			h           *memo
		}
		b := NewBus("fuzz")
		var list []entry
		for ; len(ops) >= 3; ops = ops[3:] {
			// The top 256 addresses, so that the end of the address space is among them.
			addr, n := math.MaxUint64-255+uint64(ops[1]), uint64(ops[2])
			switch ops[0] % 3 {
			case 0:
				h := &memo{tag: byte(len(list))}
				last := addr + n - 1
				ok := n > 0 && last >= addr
				for _, e := range list {
					ok = ok && (last < e.first || e.last < addr)
				}
				err := b.Add(addr, n, fmt.Sprint(len(list)), h)
				require.Equal(t, ok, err == nil, "%v", err)
				if ok {
					list = append(list, entry{addr, last, h})
				}
			case 1:
				at := slices.IndexFunc(list, func(e entry) bool { return e.first == addr })
				require.Equal(t, at >= 0, b.Remove(addr))
				if at >= 0 {
					list = slices.Delete(list, at, at+1)
				}
			case 2:
				p := make([]byte, n%9)
				var want *memo
				for _, e := range list {
					if len(p) > 0 && e.first <= addr && addr <= e.last && e.last-addr >= uint64(len(p)-1) {
						want = e.h
					}
				}
				require.Equal(t, want != nil, b.Read(addr, p))
				require.Equal(t, want != nil, b.Write(addr, p))
				for _, v := range p {
					if want == nil {
						require.Equal(t, byte(0xff), v)
					} else {
						require.Equal(t, want.tag, v)
					}
				}
			}
		}
	})
}

func machineBus(tb testing.TB) (*Bus, *Serial) {
	b := NewBus("port")
	s := NewSerial(SerialConfig{})
	for _, r := range []struct {
		base, size uint64
		h          Handler
	}{
		{0x60, I8042Ports, NewI8042(nil)}, {0x70, RTCPorts, NewRTC(RTCConfig{})}, {0xf4, DebugExitPorts, NewDebugExit(nil)},
		{0x3f8, SerialPorts, s}, {0x505, 1, NewPVPanic(nil)}, {0x600, PowerPorts, NewPower(nil, nil)},
		{0xcf8, 8, &memo{}},
	} {
		require.NoError(tb, b.Add(r.base, r.size, "x", r.h))
	}
	return b, s
}

func BenchmarkBusRead(b *testing.B) {
	bus := NewBus("port")
	for i := range uint64(8) {
		require.NoError(b, bus.Add(i*16, 8, "x", &memo{}))
	}
	p := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		bus.Read(0x30, p)
	}
}

func BenchmarkBusWrite(b *testing.B) {
	bus := NewBus("port")
	for i := range uint64(8) {
		require.NoError(b, bus.Add(i*16, 8, "x", &memo{}))
	}
	p := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		bus.Write(0x30, p)
	}
}

func BenchmarkBusMiss(b *testing.B) {
	bus, _ := machineBus(b)
	p := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		bus.Read(0x80, p)
	}
}
