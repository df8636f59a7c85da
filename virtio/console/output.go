package console

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vole-vmm/vole/virtio"
)

const (
	// writeSize is the most that goes to Out in one call, so that a slow Out makes
	// room in steps.
	writeSize = 16 << 10
	// A console's writer collects what comes within gatherTime, or gatherSize bytes:
	// Linux sends 16 bytes at a time and waits for each.
	gatherSize = 4 << 10
	gatherTime = time.Millisecond
)

// signalEvery is how many buffers a guest gets back before it is told, while it
// sends more.
const signalEvery = 16

// output is a port's way out: a ring between the queue's goroutine and one that
// writes to Out. The writer belongs to the device, the queue's to an activation.
// The writer reads ring bytes, which nobody changes before they are written,
// without the lock.
type output struct {
	out    io.Writer
	gather bool
	failed func(error) // told of Out's first error

	wake chan struct{} // one token: the writer has something to do
	room chan struct{} // one token: the ring has room again
	done chan struct{} // closed when the writer ends

	sent, written, dropped atomic.Uint64 // bytes: from the guest, to Out, to nowhere

	mu      sync.Mutex
	moved   sync.Cond // on mu: bytes have left the ring
	ring    []byte    // OutBuffer+EmergencyBuffer, made when first needed
	head, n int
	watch   func([]byte)
	entered uint64 // bytes that ever went into the ring
	left    uint64 // bytes that ever left it, written or not
	lost    uint64 // bytes in the ring when Close was over
	started bool
	closing bool // Close was called
	ended   bool // it is over
	err     error
}

func (o *output) init(p *Port, failed func(error)) {
	if p != nil {
		o.out, o.gather = p.Out, p.Console
	}
	o.failed = failed
	o.wake, o.room, o.done = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	o.moved.L = &o.mu
}

// token leaves one where there may be one.
func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// deaf reports whether what comes is thrown away.
func (o *output) deaf() bool { return o.out == nil || o.err != nil || o.closing }

// accept takes the bytes of bufs behind the first skip of them, as many as there
// is room for, and returns how many. It takes a bounded number in one call.
func (o *output) accept(bufs [][]byte, skip uint64) (taken uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.deaf() && o.watch == nil {
		for _, b := range bufs {
			taken += uint64(len(b))
		}
		taken -= min(skip, taken)
		o.sent.Add(taken)
		o.dropped.Add(taken)
		return taken
	}
	room := OutBuffer - o.n
	for _, b := range bufs {
		if skip >= uint64(len(b)) {
			skip -= uint64(len(b))
			continue
		}
		b, skip = b[skip:], 0
		for len(b) > 0 && room > 0 {
			k := o.put(b[:min(len(b), room)])
			b, room, taken = b[k:], room-k, taken+uint64(k)
		}
	}
	return taken
}

// emergency takes one byte, if there is room at all.
func (o *output) emergency(b byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n == OutBuffer+EmergencyBuffer {
		o.sent.Add(1)
		o.dropped.Add(1)
		return
	}
	o.start()
	o.put([]byte{b})
}

// put copies what fits into one piece of the ring, where there is room, and lets
// the watch see it: the copy, which the guest can't change any more.
func (o *output) put(b []byte) int {
	if o.ring == nil {
		o.ring = make([]byte, OutBuffer+EmergencyBuffer)
	}
	at := o.head + o.n
	if at >= len(o.ring) {
		at -= len(o.ring)
	}
	k := copy(o.ring[at:], b)
	if o.watch != nil {
		o.watch(o.ring[at : at+k])
	}
	o.sent.Add(uint64(k))
	if o.deaf() {
		o.dropped.Add(uint64(k))
		return k
	}
	was := o.n
	o.n += k
	o.entered += uint64(k)
	if was == 0 || was < gatherSize && o.n >= gatherSize {
		token(o.wake)
	}
	return k
}

// transmit serves a port's transmit queue. A chain that the ring has no room for is
// put back, with a note of how far it was taken: nothing is in flight while Out
// blocks.
func (p *port) transmit(q *virtio.Queue) {
	c := virtio.NewChain(q)
	for pushed := 0; ; {
		if pushed == signalEvery {
			q.Signal()
			pushed = 0
		}
		if !q.Pop(c) {
			q.Signal()
			pushed = 0
			if !q.Wait() {
				return
			}
			continue
		}
		done := p.consumed.Load()
		taken := p.out.accept(c.Readable(), done)
		if done += taken; done >= c.ReadableLen() {
			p.consumed.Store(0)
			q.Push(c)
			pushed++
			continue
		}
		p.consumed.Store(done)
		q.Unpop(1)
		if taken > 0 {
			continue
		}
		q.Signal()
		pushed = 0
		select {
		case <-p.out.room:
		case <-q.Stopped():
		}
	}
}

// begin starts the writer before there is something to write.
func (o *output) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.start()
}

// start starts the writer, if there is something to write to. It is called with
// the lock.
func (o *output) start() {
	if !o.started && o.out != nil && !o.closing {
		o.started = true
		go o.run()
	}
}

// run is the writer.
func (o *output) run() {
	defer close(o.done)
	timer := time.NewTimer(gatherTime)
	timer.Stop()
	defer timer.Stop()
	for {
		<-o.wake
		for more := true; more; more = o.write() && o.gather {
			if o.gather {
				o.collect(timer)
			}
		}
		o.mu.Lock()
		over := o.closing && o.n == 0
		o.mu.Unlock()
		if over {
			return
		}
	}
}

// collect lets bytes come together, or returns when there is a reason to write
// them now.
func (o *output) collect(timer *time.Timer) {
	timer.Reset(gatherTime)
	defer timer.Stop()
	for {
		o.mu.Lock()
		now := o.n >= gatherSize || o.closing
		o.mu.Unlock()
		if now {
			return
		}
		select {
		case <-timer.C:
			return
		case <-o.wake:
		}
	}
}

// write hands what is in the ring to Out, and reports whether there was something.
func (o *output) write() (wrote bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.n > 0 {
		chunk := o.ring[o.head:min(o.head+min(o.n, writeSize), len(o.ring))]
		o.mu.Unlock()
		n, err := o.out.Write(chunk)
		o.mu.Lock()
		n = min(max(n, 0), len(chunk))
		if err == nil && n < len(chunk) {
			err = io.ErrShortWrite
		}
		o.leave(n)
		o.written.Add(uint64(n))
		switch {
		case o.ended:
			o.drop()
		case err != nil && o.closing:
			o.lost += uint64(o.n)
			o.drop()
		case err != nil:
			o.err = err
			o.drop()
			o.mu.Unlock()
			o.failed(err)
			o.mu.Lock()
		}
		o.moved.Broadcast()
		token(o.room)
		wrote = true
		if o.gather && o.n < gatherSize && !o.closing {
			break // what is left may wait for more
		}
	}
	return wrote
}

// leave takes the oldest n bytes out of the ring.
func (o *output) leave(n int) {
	o.n -= n
	o.left += uint64(n)
	if o.head += n; o.head >= len(o.ring) || o.n == 0 {
		o.head = 0
	}
}

// drop throws away what is in the ring.
func (o *output) drop() {
	o.dropped.Add(uint64(o.n))
	o.leave(o.n)
}

// drain waits until what the guest has sent so far is written.
func (o *output) drain(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.moved.Broadcast()
	})
	defer stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	target := o.entered
	for {
		switch {
		case o.err != nil:
			return o.err
		case o.ended:
			return o.unflushed()
		case o.left >= target:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("console: %d bytes are still to be written: %w", target-o.left, context.Cause(ctx))
		}
		o.moved.Wait()
	}
}

// unflushed is the error for what was not written before the end.
func (o *output) unflushed() error {
	if o.lost == 0 {
		return nil
	}
	return fmt.Errorf("%d bytes: %w", o.lost, ErrUnflushed)
}

// stop ends the writer: what is in the ring is written first if Out takes it
// within closeGrace. Then free is called, to free a goroutine inside Out, which has
// as long again before it is left behind.
func (o *output) stop(free func()) error {
	o.mu.Lock()
	o.closing = true
	token(o.wake)
	started := o.started
	o.mu.Unlock()
	if started && !within(o.done, closeGrace) {
		free()
		within(o.done, closeGrace)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.lost += uint64(o.n)
	o.moved.Broadcast()
	return o.unflushed()
}
