package block

import (
	"sync/atomic"
	"time"
)

// Buffered is implemented by images whose writes may be done when the host has them in
// memory. Most of these take no longer than the copy, but few file systems say in
// advance which (see [Prompt]): there it is habit that counts. What is no whole page may
// have to be read from storage first, and is left out.
type Buffered interface {
	Buffered() bool
}

// quickWrite is longer than copying a small request takes where others want the processor
// too, and shorter than waiting for a disk.
const quickWrite = 1 * time.Millisecond

// A quick write counts one for the habit, a slow one that much against it: of eight
// writes one may have been held up by whoever else wanted the processor.
const (
	habitSlow  = 8
	habitQuick = 16 // from this on it is one
	habitMost  = 32
)

// habit is how long small writes of whole pages have taken of late. As long as they are
// quick whoever serves a queue carries them out itself, one after the other; when they are
// not, several are worked on at a time.
type habit struct {
	count atomic.Int32
}

// habitPage is how many bytes a page of the host's memory has.
const habitPage = 4096

// concerns reports whether a write is of the kind that the habit is of.
func (h *habit) concerns(off, n int64) bool {
	return n <= promptMax && off%habitPage == 0 && n%habitPage == 0
}

func (h *habit) quick() bool { return h.count.Load() >= habitQuick }

func (h *habit) took(d time.Duration) {
	old := h.count.Load()
	count := min(old+1, habitMost)
	if d > quickWrite {
		count = max(old-habitSlow, 0)
	}
	if count != old {
		h.count.Store(count) // of two at the same time one is lost, and that is all
	}
}

// broken is for a write that is so slow that nobody waits for its end.
func (h *habit) broken() { h.count.Store(0) }
