package devices

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// txChunk is the most that goes to Out in one call, so that a slow Out makes room in steps.
	txChunk = 16 << 10
	// txEnough is how many bytes end the wait for more, if the ring takes so many.
	txEnough = 4 << 10
	// The writer collects for txWindowMin after the first byte; while the guest goes on sending, for twice as long each
	// time, up to txWindowMax. Waking a thread can cost as much as a port exit, and a console is read by people.
	txWindowMin = time.Millisecond
	txWindowMax = 8 * time.Millisecond
	// txSlack is room in the ring beyond its limit, for the one byte of each vCPU that waits.
	txSlack = 256
)

// serialTx is a [Serial]'s way out: a ring between the vCPUs and one goroutine that writes to Out. Everything in it is
// guarded by the port's lock, except that the goroutine reads ring bytes, which nobody changes before they are written,
// without it.
type serialTx struct {
	s     *Serial
	ring  []byte
	head  int // the oldest byte
	n     int // bytes in the ring
	limit int // n from which on senders wait
	// crowded says that n has come to limit. It is written under the lock.
	crowded atomic.Bool
	ample   int // n from which on the writer does not wait for more
	moved   *sync.Cond

	wake       chan struct{} // one token: the writer has something to do
	collecting bool          // the writer knows that there are bytes
	flushTo    uint64        // accepted count up to which nothing waits for more
	done       chan struct{} // closed when the writer ends; nil before Start

	accepted uint64 // bytes that went into the ring
	written  uint64 // bytes that came out of it
	lost     uint64 // of these, not written because Out had failed
	dropped  uint64 // bytes that did not go in
	err      error  // Out's first
	ended    bool   // nothing will be written any more
}

func (t *serialTx) init(s *Serial, limit int) {
	if limit <= 0 {
		limit = SerialOutBuffer
	}
	t.s = s
	t.limit = min(limit, SerialOutLimit)
	t.ample = min(t.limit, txEnough)
	if s.out != nil {
		t.ring = make([]byte, t.limit+txSlack)
	}
	t.moved = sync.NewCond(&s.mu)
	t.wake = make(chan struct{}, 1)
}

// push accepts one byte. It wakes the writer for the first byte of a burst and when there is enough for a write.
func (t *serialTx) push(b byte) {
	if t.s.out == nil || t.err != nil || t.s.closing || t.n >= SerialOutLimit {
		t.dropped++
		return
	}
	if t.n == len(t.ring) {
		t.grow()
	}
	at := t.head + t.n
	if at >= len(t.ring) {
		at -= len(t.ring)
	}
	t.ring[at] = b
	t.n++
	t.accepted++
	if t.n == t.limit {
		t.crowded.Store(true)
	}
	if !t.collecting || t.n == t.ample {
		t.collecting = true
		t.signal()
	}
}

// grow makes a larger ring. It takes senders that are let go by Hold, again and again, to come here. The writer may be
// reading the old ring's oldest bytes; they are at the same distance from head in the new one.
func (t *serialTx) grow() {
	ring := make([]byte, min(2*len(t.ring), SerialOutLimit))
	k := copy(ring, t.ring[t.head:])
	copy(ring[k:], t.ring[:t.head])
	t.ring, t.head = ring, 0
}

func (t *serialTx) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// flush makes the writer write everything up to the given accepted count without waiting for more.
func (t *serialTx) flush(to uint64) {
	t.flushTo = max(t.flushTo, to)
	if t.written < t.flushTo || t.s.closing {
		t.signal()
	}
}

// full reports whether a sender has to wait.
func (t *serialTx) full() bool {
	return t.n >= t.limit && !t.s.held && !t.s.closing && t.err == nil
}

// wait waits, with the lock, until the ring is not full any more, and returns without the lock. The interrupt that the
// sender's byte has caused goes out first: another vCPU may take it.
func (t *serialTx) wait(rose bool) {
	if rose {
		t.s.mu.Unlock()
		t.s.pulse()
		t.s.mu.Lock()
	}
	for t.full() {
		t.moved.Wait()
	}
	t.s.mu.Unlock()
}

// run is the writer. It writes once in a window, and goes to sleep when a window has passed without a byte; only then
// does the next byte have to wake it.
func (t *serialTx) run() {
	defer close(t.done)
	timer := time.NewTimer(txWindowMax)
	timer.Stop()
	defer timer.Stop()
	window := txWindowMin
	<-t.wake
	for {
		t.collect(timer, window)
		window = min(2*window, txWindowMax)
		if t.write() {
			continue
		}
		t.s.mu.Lock()
		if t.n > 0 {
			t.s.mu.Unlock()
			continue
		}
		if t.s.closing {
			t.s.mu.Unlock()
			return
		}
		t.collecting = false
		t.s.mu.Unlock()
		<-t.wake
		window = txWindowMin
	}
}

// collect lets bytes come together for a window, or until there is a reason to write them now.
func (t *serialTx) collect(timer *time.Timer, window time.Duration) {
	timer.Reset(window)
	defer timer.Stop()
	for {
		t.s.mu.Lock()
		now := t.n >= t.ample || t.flushTo > t.written || t.s.closing
		t.s.mu.Unlock()
		if now {
			return
		}
		select {
		case <-timer.C:
			return
		case <-t.wake:
		}
	}
}

// write hands the ring's bytes to Out until there are only few, and reports whether there were any.
func (t *serialTx) write() (wrote bool) {
	mu := &t.s.mu
	mu.Lock()
	defer mu.Unlock()
	for t.n > 0 {
		chunk := t.ring[t.head:min(t.head+min(t.n, txChunk), len(t.ring))]
		mu.Unlock()
		n, err := t.s.out.Write(chunk)
		mu.Lock()
		n = min(max(n, 0), len(chunk))
		if err == nil && n < len(chunk) {
			err = io.ErrShortWrite
		}
		t.n -= n
		t.written += uint64(n)
		t.head += n
		if t.head >= len(t.ring) || t.n == 0 {
			t.head = 0
		}
		switch {
		case t.ended, err != nil && t.s.closing && isDeadline(err):
			t.n, t.head = 0, 0
		case err != nil:
			t.fail(err)
		}
		if t.n < t.limit {
			t.crowded.Store(false)
		}
		t.moved.Broadcast()
		if t.n < t.ample && t.flushTo <= t.written {
			return true
		}
	}
	return false
}

// fail records Out's error and throws away what there is.
func (t *serialTx) fail(err error) {
	t.err = err
	t.lost += uint64(t.n)
	t.written += uint64(t.n)
	t.n, t.head = 0, 0
}

// stop waits for the writer to end, with Close's patience.
func (t *serialTx) stop() {
	if t.done == nil || within(t.done, closeGrace) {
		return
	}
	if d, ok := t.s.out.(interface{ SetWriteDeadline(time.Time) error }); ok {
		interrupt(d.SetWriteDeadline, t.done)
	}
}
