package virtio

import (
	"fmt"

	"github.com/vole-vmm/vole/memory"
)

// Worker serves a queue in the place of its device's goroutines: the host's kernel
// does (vhost). It uses requests in the order in which it takes them. The methods
// are called one at a time, and alternate; they may call [Queue.Raise] and may not
// call the queue's other methods, nor the Function.
type Worker interface {
	// Start has it take requests, from entry next of the available ring on, and use
	// them, from the used ring's idx on. An error leaves it stopped.
	Start(next uint16) error
	// Stop ends that and returns the next entry that it would have taken. When it
	// returns neither the rings nor any buffer are accessed any more, and Raise was
	// called for all that the driver was to be told.
	Stop() (next uint16, err error)
}

// Lending is implemented by a device that lends queues. The doorbells of these wait
// in no poller of this process, which would be woken by each notification for
// nothing: their queues' Wait is not to be called, since it would hold a thread.
type Lending interface {
	// Lends reports whether a queue is lent, whenever it is served. It gives the same
	// answer each time.
	Lends(queue int) bool
}

// Lend gives the queue to w, which serves it from now on, whenever it is not paused,
// until [Queue.TakeBack]: w is stopped by a pause and started again by its end. Pop
// finds nothing meanwhile. An error is w's, which has not got the queue then.
func (q *Queue) Lend(w Worker) error {
	q.lending.Lock()
	defer q.lending.Unlock()
	if q.worker != nil {
		return fmt.Errorf("virtio: queue %d is lent already", q.index)
	}
	q.mu.Lock()
	q.worker = w
	q.mu.Unlock()
	err := q.settle()
	if err != nil {
		q.mu.Lock()
		q.worker = nil
		q.mu.Unlock()
	}
	return err
}

// TakeBack ends a Lend, if there was one: the worker is stopped, and the queue stands
// where it has come to. An error is the worker's. A device takes back all its queues
// in its Reset.
func (q *Queue) TakeBack() error {
	q.lending.Lock()
	defer q.lending.Unlock()
	err := q.halt()
	q.mu.Lock()
	q.worker = nil
	q.mu.Unlock()
	return err
}

// settle has the worker do what the queue's state wants of it. It is called under
// lending.
func (q *Queue) settle() error {
	q.mu.Lock()
	w, next, run := q.worker, q.next, !q.held && !q.stopped
	q.mu.Unlock()
	switch {
	case w == nil || run == q.working:
		return nil
	case !run:
		return q.halt()
	}
	// The worker goes on where idx says, and asks for the notifications that it wants.
	q.mu.Lock()
	q.quiet = false
	Publish(q.used, 0, q.done)
	q.mu.Unlock()
	if err := w.Start(next); err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	q.working = true
	q.bell.Ring() // for what was made available meanwhile
	return nil
}

// halt stops the worker and takes over where it has come to. It is called under
// lending.
func (q *Queue) halt() error {
	if !q.working {
		return nil
	}
	q.working = false
	next, err := q.worker.Stop()
	if err != nil {
		return fmt.Errorf("queue %d: %w", q.index, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	// What it took and could not use is the next that is to be taken. Only a driver
	// that writes where it must not can have them further apart than a queue is long.
	done := Load16(q.used, ringIdx)
	if next-done <= q.size {
		next = done
	}
	q.next, q.seen, q.done, q.told = next, next, done, done
	return nil
}

// Raise sends the driver a used buffer notification, for the worker that the queue is
// lent to. A pause waits for the call.
func (q *Queue) Raise() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.outside(q.raise)
}

// BellFD is the eventfd that the driver's notifications come to, for the worker that
// the queue is lent to. It is valid until the device is reset.
func (q *Queue) BellFD() int { return q.bell.FD() }

// Rings are the descriptor table, the available and the used ring in the host's
// memory, as they were checked and frozen at the activation. They are the driver's
// memory: what is in them is to be copied, checked and used, and nothing of it after
// the device was reset.
func (q *Queue) Rings() (desc, avail, used []byte) { return q.desc, q.avail, q.used }

// Memory is the guest's RAM, which the buffers are in.
func (q *Queue) Memory() *memory.Guest { return q.mem }
