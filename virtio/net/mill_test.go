package net_test

import (
	"sync"
	"sync/atomic"
	"testing"

	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// mill is a backend that costs little: it takes every frame, and gives the same one as
// often as it is asked to.
type mill struct {
	frame   []byte
	mtu     int
	due     atomic.Int64 // frames to receive
	taken   atomic.Int64
	mu      sync.Mutex
	moved   sync.Cond
	started bool
}

func newMill(size int) *mill {
	m := &mill{frame: incoming(testFrame(size, 1)), mtu: 1500}
	m.moved.L = &m.mu
	if size > 1514 {
		copy(m.frame, hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}.bytes())
	}
	return m
}

// give has n more frames come in.
func (m *mill) give(n int64) {
	m.due.Add(n)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.moved.Broadcast()
}

func (m *mill) Features() uint64   { return allOffloads }
func (m *mill) MaxPairs() int      { return 1 }
func (m *mill) MTU() int           { return m.mtu }
func (m *mill) SetPairs(int) error { return nil }
func (m *mill) Close() error       { return nil }
func (m *mill) Start(uint64) error { return m.start(true) }
func (m *mill) Stop()              { _ = m.start(false) }

func (m *mill) start(on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = on
	m.moved.Broadcast()
	return nil
}

func (m *mill) Wait(int) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.started && m.due.Load() == 0 {
		m.moved.Wait()
	}
	return m.started, nil
}

func (m *mill) Receive(_ int, bufs [][]byte) (int, error) {
	if m.due.Load() == 0 {
		return 0, nil
	}
	m.due.Add(-1)
	n := 0
	for _, b := range bufs {
		n += copy(b, m.frame[n:])
	}
	return n, nil
}

func (m *mill) Send(_ int, bufs [][]byte) error {
	m.taken.Add(1)
	return nil
}

// sizedMill is a mill that says how long its next frame is.
type sizedMill struct{ *mill }

func (m sizedMill) NextSize(int) int {
	if m.due.Load() == 0 {
		return 0
	}
	return len(m.frame)
}

// ring is a driver's queue that is used without an allocation: its descriptors are
// set up once and made available again and again.
type ring struct {
	q     *virtiotest.Queue
	bell  interface{ Ring() }
	irq   chan struct{}
	kicks int
}

// newRing sets up as many descriptors as there are buffers.
func newRing(n nic, q *virtiotest.Queue, bufs []virtiotest.Buffer) *ring {
	for i, b := range bufs {
		d := virtiotest.Chain(i, b)[0]
		q.SetDesc(i, d)
	}
	n.QueueIRQ.C = make(chan struct{}, 1)
	return &ring{q: q, bell: n.Function.Bell(q.Index), irq: n.QueueIRQ.C}
}

// publish makes a descriptor available and rings if the device wants it.
func (r *ring) publish(i int) {
	old := r.q.Available()
	r.q.Publish(uint16(i))
	if r.q.AvailEvent() == old {
		r.kicks++
		r.bell.Ring()
	}
}

// receiver is a guest with buffers for a mill or a tap, sender one with frames.
func receiverGuest(tb testing.TB, b virtionet.Backend, size, buffers int) (nic, *ring) {
	n := attach(tb, virtiotest.OpenMMIO, b, virtionet.Options{}, 0)
	n.onlyTest()
	var bufs []virtiotest.Buffer
	for range buffers {
		bufs = append(bufs, n.In(size))
	}
	return n, newRing(n, n.rx(0), bufs)
}

func senderGuest(tb testing.TB, b virtionet.Backend, header []byte, f []byte, buffers int) (nic, *ring) {
	n := attach(tb, virtiotest.OpenMMIO, b, virtionet.Options{}, 0)
	var bufs []virtiotest.Buffer
	for range buffers {
		bufs = append(bufs, n.Out(append(append([]byte(nil), header...), f...)))
	}
	return n, newRing(n, n.tx(0), bufs)
}
