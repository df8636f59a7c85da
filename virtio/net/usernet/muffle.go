package usernet

import (
	"sync/atomic"
	"time"
)

// muffle lets one line a second into the log, however fast a guest makes them,
// and counts the others. Any number of goroutines may use it.
type muffle struct {
	next atomic.Int64 // nanoseconds of the caller's clock until which all is held
	held atomic.Uint64
}

// pass reports whether a line may be logged at now, and how many were held since
// the last.
func (m *muffle) pass(now time.Duration) (held uint64, ok bool) {
	until := m.next.Load()
	if int64(now) < until || !m.next.CompareAndSwap(until, int64(now+time.Second)) {
		m.held.Add(1)
		return 0, false
	}
	return m.held.Swap(0), true
}
