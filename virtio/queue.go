package virtio

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/vole-vmm/vole/memory"
)

// Layout of the rings (sections 2.7.6 and 2.7.8): flags, idx, the elements, and
// the event field of the other side.
const (
	ringFlags    = 0
	ringIdx      = 2
	ringElements = 4
	usedElement  = 8

	availNoInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	usedNoNotify     = 1 // VIRTQ_USED_F_NO_NOTIFY
)

// QueueConfig is what a driver sets up for a queue. Addresses are
// guest-physical.
type QueueConfig struct {
	Size              uint16
	Desc, Avail, Used uint64
}

// areas checks a configuration (rule 9) and returns the three parts of the
// queue in guest memory.
func (c QueueConfig) areas(mem *memory.Guest, most uint16) (desc, avail, used []byte, err error) {
	n := uint64(c.Size)
	if n == 0 || n&(n-1) != 0 || c.Size > most {
		return nil, nil, nil, fmt.Errorf("%w: a size of %d is no power of two from 1 to %d", ErrBroken, c.Size, most)
	}
	for _, a := range []struct {
		name            string
		addr, size, mod uint64
		to              *[]byte
	}{
		{"descriptor table", c.Desc, n * descSize, 16, &desc},
		{"available ring", c.Avail, ringElements + 2*n + 2, 2, &avail},
		{"used ring", c.Used, ringElements + usedElement*n + 2, 4, &used},
	} {
		if a.addr%a.mod != 0 {
			return nil, nil, nil, fmt.Errorf("%w: the %s at %#x is not aligned to %d", ErrBroken, a.name, a.addr, a.mod)
		}
		b, err := mem.Slice(a.addr, a.size)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("%w: the %s: %w", ErrBroken, a.name, err)
		}
		if !aligned(b, uintptr(a.mod)) {
			return nil, nil, nil, fmt.Errorf("virtio: the host's mapping of the %s at %#x is not aligned to %d", a.name, a.addr, a.mod)
		}
		*a.to = b
	}
	return desc, avail, used, nil
}

// Queue is the device's half of an activated split queue. What the driver has
// set up is frozen in it.
//
// All methods may be called from any goroutine: a lock of its own, which is free
// unless a device lets several workers share the queue, keeps each step whole.
type Queue struct {
	index    int
	mem      *memory.Guest
	bell     *Doorbell
	raise    func()      // tells the driver of used buffers
	fail     func(error) // called once
	event    bool
	indirect bool

	size              uint16
	desc, avail, used []byte

	mu        sync.Mutex
	idle      sync.Cond // on mu: the queue may be idle
	next      uint16    // of the available ring
	seen      uint16    // avail.idx as last loaded: entries before it may be taken
	done      uint16    // of the used ring
	told      uint16    // done, when the driver was last told or decided against it
	inflight  int       // popped and not pushed
	raising   int       // calls of raise and fail under way
	quiet     bool      // used.flags has NO_NOTIFY
	held      bool      // paused
	stopped   bool
	broken    bool
	stopOnce  sync.Once
	stoppedCh chan struct{}

	lending sync.Mutex // held, before mu, while the worker is told to start or stop
	worker  Worker     // that the queue is lent to; changed under lending and mu
	working bool       // under lending
}

// QueueState is where a queue stands between two requests.
type QueueState struct {
	NextAvail uint16 // the next entry of the available ring
	NextUsed  uint16 // the next entry of the used ring
}

func newQueue(index int, c QueueConfig, most uint16, features uint64, mem *memory.Guest) (*Queue, error) {
	desc, avail, used, err := c.areas(mem, most)
	if err != nil {
		return nil, fmt.Errorf("queue %d: %w", index, err)
	}
	q := &Queue{
		index: index, mem: mem, size: c.Size, desc: desc, avail: avail, used: used,
		event:     features&FeatureEventIdx != 0,
		indirect:  features&FeatureIndirectDesc != 0,
		stoppedCh: make(chan struct{}),
	}
	q.idle.L = &q.mu
	return q, nil
}

// Index is the queue's number.
func (q *Queue) Index() int { return q.index }

// Size is the number of descriptors.
func (q *Queue) Size() int { return int(q.size) }

// Wait blocks until the driver has rung since the last call, the queue goes on
// after a pause, or [Queue.Wake] was called; a spurious return is possible. It
// reports false once the queue is stopped for good: then the goroutine that
// serves it ends.
func (q *Queue) Wait() bool {
	if !q.bell.wait() {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped {
		q.bell.Ring() // for the next goroutine that waits
		return false
	}
	return true
}

// Wake lets a Wait return.
func (q *Queue) Wake() { q.bell.Ring() }

// Stopped is closed when the queue is stopped for good.
func (q *Queue) Stopped() <-chan struct{} { return q.stoppedCh }

// Pop takes the next request into c and reports whether there is one. When
// there is none the driver has been asked to ring for the next; there is none
// either while the queue is paused, and when it is stopped or broken. Every
// chain popped must be pushed.
func (q *Queue) Pop(c *Chain) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	ok, err := q.pop(c)
	if err != nil {
		q.broken = true
		q.outside(func() { q.fail(fmt.Errorf("queue %d: %w", q.index, err)) })
	}
	return ok
}

// outside makes a call that changes what the driver sees, without mu, which it is
// called under: until the call has returned the queue is busy.
func (q *Queue) outside(call func()) {
	q.raising++
	q.mu.Unlock()
	call()
	q.mu.Lock()
	q.raising--
	if !q.busy() {
		q.idle.Broadcast()
	}
}

func (q *Queue) pop(c *Chain) (bool, error) {
	if q.held || q.stopped || q.broken || q.worker != nil {
		return false, nil
	}
	if q.next == q.seen {
		if more, err := q.look(); err != nil || !more {
			return false, err
		}
	}
	if q.inflight >= int(q.size) {
		return false, fmt.Errorf("%w: more requests than the %d descriptors are in flight", ErrBroken, q.size)
	}
	// seen was loaded with acquire, so the entry is what the driver meant; it
	// is loaded once (rule 10).
	head := binary.LittleEndian.Uint16(q.avail[ringElements+2*int(q.next&(q.size-1)):])
	if head >= q.size {
		return false, fmt.Errorf("%w: the available ring names descriptor %d of %d", ErrBroken, head, q.size)
	}
	if err := c.fill(q, head); err != nil {
		return false, err
	}
	q.next++
	q.inflight++
	return true, nil
}

// look loads avail.idx and reports whether there is something to take. If not,
// it has asked for a notification, and looked again after that (rule 15).
func (q *Queue) look() (bool, error) {
	for range 2 {
		idx := Load16(q.avail, ringIdx)
		if n := idx - q.next; n > q.size {
			return false, fmt.Errorf("%w: the available ring has gone from %d to %d", ErrBroken, q.next, idx)
		}
		if q.seen = idx; idx != q.next {
			if !q.event && !q.quiet {
				q.quiet = true
				Publish(q.used, usedNoNotify, q.done)
			}
			return true, nil
		}
		if q.event {
			Store16(q.used, ringElements+usedElement*int(q.size), q.next)
		}
		// With event indices this only is the full barrier behind avail_event.
		q.quiet = false
		Publish(q.used, 0, q.done)
	}
	return false, nil
}

// Unpop puts back the last n chains that were popped, untouched: the next Pop takes
// them again. It is for a device that popped more than it turned out to need, which
// must be its only goroutine that pops from the queue.
func (q *Queue) Unpop(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.next -= uint16(n)
	q.inflight -= n
	if !q.busy() {
		q.idle.Broadcast()
	}
}

// Push gives a chain back, with the number of bytes written to it from the
// first writable one on (rule 14). A [Queue.Signal] must follow, after this or
// more of them: until it has told the driver, the queue can't be paused.
func (q *Queue) Push(c *Chain) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.use(c)
	q.publish()
}

// PushAll is Push for chains of which the driver must see all or none, in their
// order.
func (q *Queue) PushAll(cs []*Chain) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range cs {
		q.use(c)
	}
	q.publish()
}

// use writes a chain's element of the used ring, which the driver does not look at
// before publish.
func (q *Queue) use(c *Chain) {
	q.inflight--
	e := q.used[ringElements+usedElement*int(q.done&(q.size-1)):]
	binary.LittleEndian.PutUint64(e, uint64(c.head)|uint64(c.written)<<32)
	q.done++
}

func (q *Queue) publish() {
	flags := uint16(0)
	if q.quiet {
		flags = usedNoNotify
	}
	Publish(q.used, flags, q.done)
}

// Signal tells the driver of what was pushed since the last Signal, if it wants
// to be told (rule 15). One call for several chains spares interrupts.
func (q *Queue) Signal() {
	q.mu.Lock()
	defer q.mu.Unlock()
	old := q.told
	q.told = q.done
	var want bool
	switch {
	case old == q.done:
	case q.event:
		event := Load16(q.avail, ringElements+2*int(q.size))
		want = needEvent(event, q.done, old)
	default:
		want = Load16(q.avail, ringFlags)&availNoInterrupt == 0
	}
	if want {
		q.outside(q.raise)
	} else if !q.busy() {
		q.idle.Broadcast()
	}
}

// busy reports whether there are requests that the driver has not been told the
// end of, or it is being told of something. It is called under mu.
func (q *Queue) busy() bool { return q.inflight > 0 || q.told != q.done || q.raising > 0 }

// needEvent reports whether an index that went from old to now has passed the
// one that the other side waits for (section 2.7.10).
func needEvent(event, now, old uint16) bool {
	return now-event-1 < now-old
}

// Pending reports whether requests are waiting to be popped, for a device that
// decides whether to wake another worker.
func (q *Queue) Pending() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.held && !q.stopped && !q.broken && q.worker == nil && (q.next != q.seen || Load16(q.avail, ringIdx) != q.next)
}

// State returns where the queue stands. It is of use while nothing is in flight.
func (q *Queue) State() QueueState {
	q.mu.Lock()
	defer q.mu.Unlock()
	return QueueState{NextAvail: q.next, NextUsed: q.done}
}

// hold stops Pop, and the worker, and waits until the queue is idle; the error is
// ctx's, or the worker's.
func (q *Queue) hold(ctx context.Context) error {
	q.mu.Lock()
	q.held = true
	q.mu.Unlock()
	return errors.Join(q.turn(), q.drain(ctx))
}

// turn has the worker follow the queue's state.
func (q *Queue) turn() error {
	q.lending.Lock()
	defer q.lending.Unlock()
	return q.settle()
}

// drain waits until the queue is idle.
func (q *Queue) drain(ctx context.Context) error {
	end := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.idle.Broadcast()
	})
	defer end()
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.busy() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("virtio: queue %d: requests are still in flight: %w", q.index, err)
		}
		q.idle.Wait()
	}
	return nil
}

// release ends a hold. An error is the worker's.
func (q *Queue) release() error {
	q.mu.Lock()
	q.held = false
	q.mu.Unlock()
	err := q.turn()
	q.bell.Ring()
	return err
}

// stop ends Pop and Wait for good.
func (q *Queue) stop() {
	q.mu.Lock()
	q.stopped = true
	q.mu.Unlock()
	q.stopOnce.Do(func() { close(q.stoppedCh) })
	q.bell.Ring()
}
