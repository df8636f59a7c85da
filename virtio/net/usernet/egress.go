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

	held  bool // the only frame is an acknowledgement that nobody was told of
	timer *time.Timer
	turns *turns // made when there is an acknowledgement that might wait
}

func newEgress() *egress { return &egress{bell: make(chan struct{}, 1)} }

// put takes a reference of its own to pkt. It reports false if there is no room. key is
// what pkt acknowledges, or 0; bare says that it is all that pkt says, of a small
// segment, so that it may wait where there is nothing else to take.
func (e *egress) put(pkt *stack.PacketBuffer, key ackKey, bare bool) bool {
	size := pkt.Size()
	e.mu.Lock()
	if e.over || e.n == queueFrames || e.bytes+size > queueBytes {
		e.mu.Unlock()
		return false
	}
	if e.frames == nil {
		e.frames = make([]*stack.PacketBuffer, queueFrames)
	}
	tell := e.n == 0 || e.held
	switch {
	case bare:
		wait := e.asked(key)
		if wait > 0 && e.n == 0 {
			e.hold(wait)
			tell = false
			break
		}
		e.held = false
	default:
		if e.turns != nil {
			e.turns.answered(key, time.Now())
		}
		if e.held && sameAnswer(e.frames[e.head], pkt) {
			e.takeLocked().DecRef()
		}
		e.held = false
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

// asked notes an acknowledgement that might wait, and returns for how long it should.
func (e *egress) asked(key ackKey) time.Duration {
	if e.turns == nil {
		e.turns = new(turns)
	}
	return e.turns.asked(key, time.Now())
}

func (e *egress) hold(wait time.Duration) {
	e.held = true
	if e.timer == nil {
		e.timer = time.AfterFunc(wait, e.late)
	} else {
		e.timer.Reset(wait)
	}
}

// late tells of an acknowledgement that has waited in vain.
func (e *egress) late() {
	e.mu.Lock()
	held := e.held
	if held {
		e.held = false
		e.turns.late()
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
	e.held = false
	return e.takeLocked()
}

func (e *egress) takeLocked() *stack.PacketBuffer {
	pkt := e.frames[e.head]
	e.frames[e.head] = nil
	e.head = (e.head + 1) % queueFrames
	e.n--
	e.bytes -= pkt.Size()
	return pkt
}

// idle reports whether there is nothing that should be taken now.
func (e *egress) idle() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n == 0 || e.held
}

// next is how many bytes the frame has that take would return; 0 if there is none.
func (e *egress) next() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == 0 {
		return 0
	}
	return e.frames[e.head].Size()
}

// waiting is how many frames there are.
func (e *egress) waiting() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n
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
