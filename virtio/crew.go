package virtio

import (
	"sync"
)

// Crew is the workers of one queue, one request each at a time. One of them listens:
// it takes requests from the queue and, when there is none, waits for the bell. Having
// taken one it leaves the place to whoever comes first, an idle worker that it calls or
// one that has finished, and does the work itself: a lone request is never handed on.
// The next listener looks at the queue before it waits, and so asks the driver to
// ring for what comes while the first is at work, however long that takes.
//
// The zero value is ready to use.
type Crew struct {
	mu        sync.Mutex
	listening bool
	called    bool            // an idle worker was called and is not here yet
	over      bool            // the queue is stopped
	idle      []chan struct{} // of idle workers: the last one's caches are the warmest
}

// Listen waits for the listener's place and reports false when the queue is
// stopped. call, of capacity 1, is the worker's own.
func (c *Crew) Listen(call chan struct{}) bool {
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

// Leave gives the place up; over says that there is nothing to listen to any
// more.
func (c *Crew) Leave(over bool) {
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
