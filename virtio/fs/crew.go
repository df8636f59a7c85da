package fs

import (
	"sync"

	"github.com/vole-vmm/vole/virtio"
)

// crew is the workers of one queue. One at a time listens: it waits for a request,
// leaves the place to another, and does the work itself, so that a lone request
// is not handed from one goroutine to another. The next listener looks at the
// queue at once, and so asks the driver to notify it of what comes meanwhile.
type crew struct {
	mu        sync.Mutex
	listening bool
	called    bool            // an idle worker was called and is not here yet
	over      bool            // the queue is stopped
	idle      []chan struct{} // of idle workers
}

// listen waits for the listener's place and reports false when the queue is
// stopped. call, of capacity 1, is the worker's own.
func (c *crew) listen(call chan struct{}) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.over {
		if !c.listening {
			c.listening = true
			return true
		}
		c.idle = append(c.idle, call)
		c.mu.Unlock()
		<-call
		c.mu.Lock()
		c.called = false
	}
	return false
}

// leave gives the place up; over says that there is nothing to listen to any
// more.
func (c *crew) leave(over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listening, c.over = false, c.over || over
	for len(c.idle) > 0 && (c.over || !c.called) {
		last := len(c.idle) - 1
		call := c.idle[last]
		c.idle = c.idle[:last]
		c.called = true
		call <- struct{}{}
	}
}

// worker serves a request queue, one request at a time; its crew shares the queue.
type worker struct {
	d    *Device
	q    *virtio.Queue
	crew *crew
	call chan struct{} // the crew's, to this worker
	r    *request
}

func (w *worker) run() {
	for w.crew.listen(w.call) {
		ok := w.take()
		w.crew.leave(!ok)
		if !ok {
			continue
		}
		if !w.r.serve() {
			w.d.waitForLock(w.r)
			w.r = newRequest(w.d, w.q)
		}
	}
}

// take waits for the next request and reports false when the queue is stopped.
func (w *worker) take() bool {
	for !w.q.Pop(w.r.c) {
		if !w.q.Wait() {
			return false
		}
	}
	return true
}
