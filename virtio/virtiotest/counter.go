package virtiotest

import (
	"sync"
	"testing"
	"time"
)

// Counter counts interrupts. Its methods may be called from any goroutine.
type Counter struct {
	mu   sync.Mutex
	n    int
	more chan struct{} // closed at the next, if somebody waits

	// C, if it is set before the first interrupt, is offered each.
	C chan struct{}
}

// NewCounter returns a counter at 0.
func NewCounter() *Counter { return new(Counter) }

// Pulse counts one.
func (c *Counter) Pulse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	if c.more != nil {
		close(c.more)
		c.more = nil
	}
	select {
	case c.C <- struct{}{}:
	default:
	}
}

// Count is how many there were.
func (c *Counter) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// Wait waits until there were more than n, and returns how many.
func (c *Counter) Wait(tb testing.TB, n int) int {
	tb.Helper()
	t := time.NewTimer(Patience)
	defer t.Stop()
	for {
		c.mu.Lock()
		if c.more == nil {
			c.more = make(chan struct{})
		}
		now, more := c.n, c.more
		c.mu.Unlock()
		if now > n {
			return now
		}
		select {
		case <-more:
		case <-t.C:
			tb.Fatalf("virtiotest: no interrupt within %v", Patience)
		}
	}
}
