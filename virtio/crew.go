package virtio

import (
	"sync"
	"time"
)

// crewPatience is how long the listener may be at something that was to be quick, or up
// to twice as long, before others take its place.
const crewPatience = 10 * time.Millisecond

// Crew is the workers of one queue, one request each at a time. One of them listens:
// it takes requests from the queue and, when there is none, waits for the bell. Having
// taken one it leaves the place to whoever comes first, an idle worker that it calls or
// one that has finished, and does the work itself: a lone request is never handed on.
// The next listener looks at the queue before it waits, and so asks the driver to
// ring for what comes while the first is at work, however long that takes.
//
// What is likely to be quick the listener does in its place, between [Crew.Enter] and
// [Crew.Exit]: that spares waking another one. If it takes long after all, others take
// the place.
//
// The zero value is ready to use.
type Crew struct {
	// Late is called, from a goroutine of its own, when a listener has lost its place. It
	// is set before the first use.
	Late func()

	mu        sync.Mutex
	listening bool
	called    bool            // an idle worker was called and is not here yet
	over      bool            // the queue is stopped
	idle      []chan struct{} // of idle workers: the last one's caches are the warmest

	inside  *bool // the listener's, between Enter and Exit: set when it has lost the place
	entered uint  // how often one has entered
	seen    uint  // entered, when the watch last looked
	watched bool  // the watch will look
	watch   *time.Timer
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
	c.leave(over)
}

// leave is called under mu.
func (c *Crew) leave(over bool) {
	c.listening, c.over = false, c.over || over
	if c.over && c.watch != nil {
		c.watch.Stop()
	}
	for len(c.idle) > 0 && (c.over || !c.called) {
		last := len(c.idle) - 1
		call := c.idle[last]
		c.idle = c.idle[:last]
		c.called = true
		call <- struct{}{}
	}
}

// Enter says that the listener begins with something that is likely to be quick. lost is
// its own, and false.
func (c *Crew) Enter(lost *bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside = lost
	c.entered++
	switch {
	case c.watched:
		return
	case c.watch == nil:
		c.watch = time.AfterFunc(crewPatience, c.look)
	default:
		c.watch.Reset(crewPatience)
	}
	c.watched = true
}

// Exit ends what Enter began, and reports whether the caller still is the listener.
func (c *Crew) Exit(lost *bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *lost {
		*lost = false
		return false
	}
	c.inside = nil
	return true
}

// look gives the place to others if the listener is inside since the last look. It looks
// again as long as some enter.
func (c *Crew) look() {
	c.mu.Lock()
	late := false
	switch {
	case c.over || c.inside == nil && c.entered == c.seen:
		c.watched = false
	case c.entered == c.seen:
		*c.inside, c.inside, late = true, nil, true
		c.watched = false
		c.leave(false)
	default:
		c.seen = c.entered
		c.watch.Reset(crewPatience)
	}
	c.mu.Unlock()
	if late && c.Late != nil {
		c.Late()
	}
}
