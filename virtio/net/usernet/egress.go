package usernet

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// What one pair's queue to the guest holds at most. The bytes of a TCP segment
// are those that its connection keeps until they are acknowledged, so they are
// not held twice.
const (
	queueFrames = 2048
	queueBytes  = 16 << 20
)

const (
	// holdFor is how long a bare acknowledgement waits for company.
	holdFor = 5 * time.Millisecond
	// maxPass is how many go at once, at most, before another waits: one, three, seven
	// and so on, after one, two, three in a row have waited in vain.
	maxPass = 64
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
	bell   chan struct{} // capacity 1: rung when there is a frame where there was none to tell of

	held  ackKey // of the only frame, an acknowledgement that nobody was told of; or 0
	timer *time.Timer
	vain  int // acknowledgements that have waited in vain since one had company
	pass  int // how many go at once before the next waits
}

func newEgress() *egress { return &egress{bell: make(chan struct{}, 1)} }

// put takes a reference of its own to pkt. It reports false if there is no room. key is
// what pkt acknowledges, or 0; one that may wait does if there is nothing else to take.
func (e *egress) put(pkt *stack.PacketBuffer, key ackKey, mayWait bool) bool {
	size := pkt.Size()
	e.mu.Lock()
	if e.over || e.n == queueFrames || e.bytes+size > queueBytes {
		e.mu.Unlock()
		return false
	}
	if e.frames == nil {
		e.frames = make([]*stack.PacketBuffer, queueFrames)
	}
	tell := e.n == 0 || e.held != 0
	switch {
	case mayWait && e.n == 0 && e.hold(key):
		tell = false
	case e.held != 0:
		if e.held == key && !mayWait { // it says the same
			e.takeLocked().DecRef()
		}
		e.held = 0
		e.vain = 0
	}
	e.frames[(e.head+e.n)%queueFrames] = pkt.IncRef()
	e.n++
	e.bytes += size
	e.mu.Unlock()
	if tell {
		e.ring()
	}
	return true
}

// hold decides whether an acknowledgement waits: where the last ones had company.
func (e *egress) hold(key ackKey) bool {
	if e.pass > 0 {
		e.pass--
		return false
	}
	e.held = key
	if e.timer == nil {
		e.timer = time.AfterFunc(holdFor, e.late)
	} else {
		e.timer.Reset(holdFor)
	}
	return true
}

// late tells of an acknowledgement that has waited in vain.
func (e *egress) late() {
	e.mu.Lock()
	held := e.held != 0
	if held {
		e.held = 0
		e.vain++
		e.pass = min(1<<min(e.vain, 30)-1, maxPass)
	}
	e.mu.Unlock()
	if held {
		e.ring()
	}
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
	return e.takeLocked()
}

func (e *egress) takeLocked() *stack.PacketBuffer {
	pkt := e.frames[e.head]
	e.frames[e.head] = nil
	e.head = (e.head + 1) % queueFrames
	e.n--
	e.bytes -= pkt.Size()
	e.held = 0
	return pkt
}

// idle reports whether there is nothing that should be taken now.
func (e *egress) idle() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n == 0 || e.held != 0
}

// close releases what is left and takes nothing more.
func (e *egress) close() {
	e.mu.Lock()
	e.over = true
	if e.timer != nil {
		e.timer.Stop()
	}
	e.mu.Unlock()
	for pkt := e.take(); pkt != nil; pkt = e.take() {
		pkt.DecRef()
	}
}
