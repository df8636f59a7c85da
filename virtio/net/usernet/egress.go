package usernet

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// What one pair's queue to the guest holds at most. The bytes of a TCP segment
// are those that its connection keeps until they are acknowledged, so they are
// not held twice.
const (
	queueFrames = 2048
	queueBytes  = 16 << 20
)

// egress is the frames on their way to one queue pair of the guest. Anyone may
// put; one goroutine at a time waits and takes.
type egress struct {
	mu     sync.Mutex
	frames []*stack.PacketBuffer // a ring; made at the first put
	head   int
	n      int
	bytes  int
	over   bool
	bell   chan struct{} // capacity 1: rung when a frame is put into an empty queue
}

func newEgress() *egress { return &egress{bell: make(chan struct{}, 1)} }

// put takes a reference of its own to pkt. It reports false if there is no room.
func (e *egress) put(pkt *stack.PacketBuffer) bool {
	size := pkt.Size()
	e.mu.Lock()
	if e.over || e.n == queueFrames || e.bytes+size > queueBytes {
		e.mu.Unlock()
		return false
	}
	if e.frames == nil {
		e.frames = make([]*stack.PacketBuffer, queueFrames)
	}
	e.frames[(e.head+e.n)%queueFrames] = pkt.IncRef()
	e.n++
	e.bytes += size
	first := e.n == 1
	e.mu.Unlock()
	if first {
		e.ring()
	}
	return true
}

func (e *egress) ring() {
	select {
	case e.bell <- struct{}{}:
	default:
	}
}

// take returns the next frame, the caller's to release, or nil.
func (e *egress) take() *stack.PacketBuffer {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == 0 {
		return nil
	}
	pkt := e.frames[e.head]
	e.frames[e.head] = nil
	e.head = (e.head + 1) % queueFrames
	e.n--
	e.bytes -= pkt.Size()
	return pkt
}

func (e *egress) empty() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n == 0
}

// close releases what is left and takes nothing more.
func (e *egress) close() {
	e.mu.Lock()
	e.over = true
	e.mu.Unlock()
	for pkt := e.take(); pkt != nil; pkt = e.take() {
		pkt.DecRef()
	}
}
