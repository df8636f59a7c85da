package virtio

import (
	"fmt"
	"math"
	"math/bits"
	"sync"
	"time"
)

// Rate is what one token bucket allows.
type Rate struct {
	// PerSecond is how many tokens come in a second; 0 is no limit.
	PerSecond int64
	// Burst is how many tokens an idle bucket holds; 0 is a second's worth.
	Burst int64
}

// Limits are the rates of a device, or of one direction of it.
type Limits struct {
	Bytes Rate
	Ops   Rate
}

// Validate says which number makes no sense.
func (l Limits) Validate() error {
	for _, r := range []struct {
		what string
		rate Rate
	}{{"bytes", l.Bytes}, {"operations", l.Ops}} {
		switch {
		case r.rate.PerSecond < 0 || r.rate.Burst < 0:
			return fmt.Errorf("virtio: a rate of %d %s a second with a burst of %d is negative", r.rate.PerSecond, r.what, r.rate.Burst)
		case r.rate.PerSecond == 0 && r.rate.Burst != 0:
			return fmt.Errorf("virtio: a burst of %d %s needs a rate", r.rate.Burst, r.what)
		}
	}
	return nil
}

// Clock is the time that a [Limiter] goes by.
type Clock interface {
	// Now is the time since any fixed moment; it never goes back.
	Now() time.Duration
	// After returns a channel that receives once, d from now, and what stops
	// it before that.
	After(d time.Duration) (fired <-chan time.Time, stop func())
}

// NewClock returns the machine's own clock.
func NewClock() Clock { return systemClock{start: time.Now()} }

type systemClock struct{ start time.Time }

func (c systemClock) Now() time.Duration { return time.Since(c.start) }

func (systemClock) After(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// Limiter is a pair of token buckets: bytes and operations. A request takes
// its tokens when it asks, in the order of asking, and then waits for as long
// as they are a debt. So a request larger than the burst is possible, and the
// long run keeps the rate whatever the sizes are.
//
// A nil Limiter limits nothing. All methods may be called from any goroutine.
type Limiter struct {
	clock Clock

	mu         sync.Mutex
	bytes, ops bucket
}

// NewLimiter returns a limiter with full buckets, or nil, which limits
// nothing, if l has no limit. A nil clock is the machine's.
func NewLimiter(l Limits, clock Clock) (*Limiter, error) {
	if err := l.Validate(); err != nil {
		return nil, err
	}
	if l.Bytes.PerSecond == 0 && l.Ops.PerSecond == 0 {
		return nil, nil
	}
	if clock == nil {
		clock = NewClock()
	}
	now := clock.Now()
	return &Limiter{clock: clock, bytes: newBucket(l.Bytes, now), ops: newBucket(l.Ops, now)}, nil
}

// bucket counts in time: the moment at which it will be full, were nothing
// more taken. A token is a second divided by the rate.
type bucket struct {
	rate  uint64 // tokens a second, 0 for no limit
	burst time.Duration
	full  time.Duration
	// rest is what is missing from full, in nanoseconds divided by rate.
	rest uint64
}

func newBucket(r Rate, now time.Duration) bucket {
	if r.PerSecond == 0 {
		return bucket{}
	}
	b := bucket{rate: uint64(r.PerSecond), burst: time.Second, full: now}
	if r.Burst != 0 {
		b.burst, _ = nanoseconds(uint64(r.Burst), 0, b.rate)
	}
	return b
}

// nanoseconds is how long n tokens and rest take at rate, and what remains of
// the division. It ends at half the range of a Duration, about 146 years.
func nanoseconds(n, rest, rate uint64) (time.Duration, uint64) {
	const most = math.MaxInt64 / 2
	hi, lo := bits.Mul64(n, uint64(time.Second))
	lo, carry := bits.Add64(lo, rest, 0)
	if hi += carry; hi >= rate {
		return most, 0
	}
	q, r := bits.Div64(hi, lo, rate)
	if q > most {
		return most, 0
	}
	return time.Duration(q), r
}

// take takes n tokens and returns how long they are a debt.
func (b *bucket) take(now time.Duration, n int64) time.Duration {
	if b.rate == 0 || n <= 0 {
		return 0
	}
	if b.full < now {
		b.full, b.rest = now, 0
	}
	cost, rest := nanoseconds(uint64(n), b.rest, b.rate)
	b.rest = rest
	if b.full > math.MaxInt64/2 {
		cost = 0 // a debt of a century is enough
	}
	b.full += cost
	return b.debt(now)
}

// debt is how long what was taken is a debt.
func (b *bucket) debt(now time.Duration) time.Duration { return max(b.full-now-b.burst, 0) }

// Debt is how long it takes until all that was taken is paid; it takes nothing.
func (l *Limiter) Debt() time.Duration {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	return max(l.bytes.debt(now), l.ops.debt(now))
}

// Reserve takes the tokens of a request and returns how long the caller must
// wait before it begins, or before its next one if it has carried this one out:
// 0 is at once. For callers with a timer of their own.
func (l *Limiter) Reserve(ops int, bytes int64) time.Duration {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	return max(l.bytes.take(now, bytes), l.ops.take(now, int64(ops)))
}
