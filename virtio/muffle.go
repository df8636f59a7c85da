package virtio

import (
	"sync/atomic"
	"time"
)

// Muffle lets one line a second into a log, however fast a guest makes them, and counts
// the others. The zero value is ready to use, by any number of goroutines.
type Muffle struct {
	next atomic.Int64 // when the next may pass, in nanoseconds of the caller's clock
	held atomic.Uint64
}

// Pass reports whether a line may be logged at now, a time of the caller's clock that
// begins at 0, and how many were held back since the last that was.
func (m *Muffle) Pass(now time.Duration) (held uint64, ok bool) {
	next := m.next.Load()
	if int64(now) < next || !m.next.CompareAndSwap(next, int64(now+time.Second)) {
		m.held.Add(1)
		return 0, false
	}
	return m.held.Swap(0), true
}
