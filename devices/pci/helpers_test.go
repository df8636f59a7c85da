package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices"
)

var (
	testWindow32 = Range{0xd000_0000, 0x1000_0000}
	testWindow64 = Range{0x40_0000_0000, 0x10_0000_0000}
	testID       = ID{0x1af4, 0x1042, 1, 0x018000, 0x1af4, 0x0040}
)

const testECAM = 0xe000_0000

// ledger is a memory bus that knows what is on it.
type ledger struct {
	*devices.Bus
	mu     sync.Mutex
	ranges map[uint64]uint64
}

func newLedger() *ledger {
	return &ledger{Bus: devices.NewBus("memory"), ranges: map[uint64]uint64{}}
}

func (l *ledger) Add(base, size uint64, name string, h devices.Handler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.Bus.Add(base, size, name, h)
	if err == nil {
		l.ranges[base] = size
	}
	return err
}

func (l *ledger) Remove(base uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ranges, base)
	return l.Bus.Remove(base)
}

// tagged is a BAR that reads as its tag and remembers the last write.
type tagged struct {
	tag byte
	off uint64
	got []byte
}

func (d *tagged) Read(off uint64, p []byte) {
	for i := range p {
		p[i] = d.tag
	}
}

func (d *tagged) Write(off uint64, p []byte) { d.off, d.got = off, append([]byte(nil), p...) }

var errHost = errors.New("the host says no")

// fakeVector is a Vector that writes down what it is told.
type fakeVector struct {
	source  *fakeSource
	index   int
	masked  bool
	pending bool
	addr    uint64
	data    uint32
	sent    atomic.Int64
	closed  int
}

// fakeSource makes fakeVectors. Calls holds what was said to all of them, but for Trigger and Pending.
type fakeSource struct {
	mu      sync.Mutex
	vectors []*fakeVector
	calls   []string
	limit   int             // NewVector fails from this number on, if not 0
	fail    map[string]bool // by kind of call
}

func (s *fakeSource) NewVector() (Vector, error) {
	if s.limit != 0 && len(s.vectors) == s.limit {
		return nil, errHost
	}
	v := &fakeVector{source: s, index: len(s.vectors), masked: true}
	s.vectors = append(s.vectors, v)
	return v, nil
}

// take returns the calls since the last time.
func (s *fakeSource) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.calls
	s.calls = nil
	return c
}

func (v *fakeVector) say(kind, format string, args ...any) error {
	v.source.calls = append(v.source.calls, fmt.Sprintf("%d %s", v.index, kind)+fmt.Sprintf(format, args...))
	if v.source.fail[kind] {
		return errHost
	}
	return nil
}

func (v *fakeVector) Program(addr uint64, data uint32) error {
	v.source.mu.Lock()
	defer v.source.mu.Unlock()
	if err := v.say("program", " %#x %#x", addr, data); err != nil {
		return err
	}
	v.addr, v.data = addr, data
	return nil
}

func (v *fakeVector) Mask(masked bool) error {
	v.source.mu.Lock()
	defer v.source.mu.Unlock()
	kind := "unmask"
	if masked {
		kind = "mask"
	}
	if err := v.say(kind, ""); err != nil {
		return err
	}
	v.masked = masked
	if !masked && v.pending {
		v.pending = false
		v.sent.Add(1)
	}
	return nil
}

func (v *fakeVector) Trigger() {
	v.source.mu.Lock()
	defer v.source.mu.Unlock()
	if v.masked {
		v.pending = true
	} else {
		v.sent.Add(1)
	}
}

func (v *fakeVector) Pending() bool {
	v.source.mu.Lock()
	defer v.source.mu.Unlock()
	return v.pending
}

func (v *fakeVector) Clear() {
	v.source.mu.Lock()
	defer v.source.mu.Unlock()
	if !v.masked {
		panic("Clear of a vector that is not masked")
	}
	v.pending = false
}

func (v *fakeVector) Close() error {
	v.closed++
	return nil
}

// machine is a host with a ledger, reached as a guest does.
type machine struct {
	*Host
	mem   *ledger
	ecam  devices.Handler
	ports devices.Handler
}

func newMachine(tb testing.TB) *machine {
	mem := newLedger()
	h, err := NewHost(HostConfig{
		ECAMBase: testECAM, Buses: 2, Window32: testWindow32, Window64: testWindow64, Memory: mem,
	})
	require.NoError(tb, err)
	return &machine{Host: h, mem: mem, ecam: h.ECAM(), ports: h.Ports()}
}

func (m *machine) plugIn(tb testing.TB, f *Function) int {
	n, err := m.Plug(f)
	require.NoError(tb, err)
	return n
}

func at(device, reg int) uint64 { return uint64(device)<<15 | uint64(reg) }

func (m *machine) get(device, reg, n int) uint32 {
	p := []byte{0xa5, 0xa5, 0xa5, 0xa5}
	m.ecam.Read(at(device, reg), p[:n])
	clear(p[n:])
	return binary.LittleEndian.Uint32(p)
}

func (m *machine) set(device, reg, n int, v uint32) {
	m.ecam.Write(at(device, reg), binary.LittleEndian.AppendUint32(nil, v)[:n])
}

// getPort is get through ports 0xcf8 and 0xcfc.
func (m *machine) getPort(device, reg, n int) uint32 {
	m.aim(device, reg)
	p := []byte{0xa5, 0xa5, 0xa5, 0xa5}
	m.ports.Read(uint64(4+reg%4), p[:n])
	clear(p[n:])
	return binary.LittleEndian.Uint32(p)
}

func (m *machine) setPort(device, reg, n int, v uint32) {
	m.aim(device, reg)
	m.ports.Write(uint64(4+reg%4), binary.LittleEndian.AppendUint32(nil, v)[:n])
}

func (m *machine) aim(device, reg int) {
	m.ports.Write(0, binary.LittleEndian.AppendUint32(nil, 1<<31|uint32(device)<<11|uint32(reg&0xfc)))
}

// peek reads one byte of memory, if anyone answers.
func (m *machine) peek(addr uint64) (byte, bool) {
	p := []byte{0}
	ok := m.mem.Read(addr, p)
	return p[0], ok
}

// word and poke are accesses to a BAR by its handler.
func word(h devices.Handler, off uint64) uint32 {
	p := make([]byte, 4)
	h.Read(off, p)
	return binary.LittleEndian.Uint32(p)
}

func poke(h devices.Handler, off uint64, v uint32) {
	h.Write(off, binary.LittleEndian.AppendUint32(nil, v))
}
