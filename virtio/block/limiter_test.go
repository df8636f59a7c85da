package block

import (
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// handClock moves when it is told to.
type handClock struct {
	mu     sync.Mutex
	now    time.Duration
	timers []*handTimer
	asked  chan time.Duration
}

type handTimer struct {
	at   time.Duration
	c    chan time.Time
	gone bool
}

func newHandClock() *handClock { return &handClock{asked: make(chan time.Duration, 100)} }

func (c *handClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) After(d time.Duration) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &handTimer{at: c.now + d, c: make(chan time.Time, 1)}
	c.timers = append(c.timers, t)
	c.asked <- d
	return t.c, func() {
		c.mu.Lock()
		t.gone = true
		c.mu.Unlock()
	}
}

func (c *handClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	for _, t := range c.timers {
		if t.at <= c.now && !t.gone {
			t.gone = true
			t.c <- time.Time{}
		}
	}
}

func TestLimiterArithmetic(t *testing.T) {
	type step struct {
		after time.Duration
		ops   int
		bytes int64
		want  time.Duration
	}
	for _, c := range []struct {
		name   string
		limits Limits
		steps  []step
	}{
		{"a full bucket, then the rate", Limits{Ops: Rate{10, 2}}, []step{
			{0, 1, 0, 0}, {0, 1, 0, 0}, {0, 1, 0, 100 * time.Millisecond}, {0, 1, 0, 200 * time.Millisecond},
		}},
		{"a burst of a second unless given", Limits{Ops: Rate{10, 0}}, []step{
			{0, 10, 0, 0}, {0, 1, 0, 100 * time.Millisecond},
		}},
		{"it fills while idle, and no further than the burst", Limits{Ops: Rate{10, 2}}, []step{
			{0, 2, 0, 0}, {100 * time.Millisecond, 1, 0, 0}, {time.Hour, 2, 0, 0}, {0, 1, 0, 100 * time.Millisecond},
		}},
		{"more than the burst is a debt", Limits{Bytes: Rate{1000, 100}}, []step{
			{0, 1, 1100, time.Second}, {time.Second, 1, 0, 0}, {0, 1, 100, 100 * time.Millisecond},
		}},
		{"the stricter of two", Limits{Bytes: Rate{1000, 1000}, Ops: Rate{10, 1}}, []step{
			{0, 1, 1000, 0}, {0, 1, 500, 500 * time.Millisecond}, {0, 5, 0, 600 * time.Millisecond},
		}},
		{"bytes alone", Limits{Bytes: Rate{1000, 1000}}, []step{
			{0, 1 << 30, 1000, 0},
		}},
		{"a rate that divides badly", Limits{Ops: Rate{3, 1}}, []step{
			{0, 1, 0, 0}, {0, 1, 0, 333333333}, {0, 1, 0, 666666667}, {0, 1, 0, time.Second},
		}},
		{"huge", Limits{Bytes: Rate{1, 1}}, []step{
			{0, 1, math.MaxInt64, math.MaxInt64/2 - time.Second}, {0, 1, math.MaxInt64, math.MaxInt64 - 1 - time.Second},
			{0, 1, math.MaxInt64, math.MaxInt64 - 1 - time.Second},
		}},
		{"negative numbers take nothing", Limits{Ops: Rate{10, 1}}, []step{{0, -5, -5, 0}, {0, 1, 0, 0}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock := newHandClock()
			l, err := NewLimiter(c.limits, clock)
			require.NoError(t, err)
			for i, s := range c.steps {
				clock.advance(s.after)
				assert.Equal(t, s.want, l.Reserve(s.ops, s.bytes), "step %d", i)
			}
		})
	}
}

// TestLimiterKeepsTheRate has many small requests with a rate whose cost is no
// whole number of nanoseconds.
func TestLimiterKeepsTheRate(t *testing.T) {
	clock := newHandClock()
	l, err := NewLimiter(Limits{Bytes: Rate{PerSecond: 3_000_000_007, Burst: 1}}, clock)
	require.NoError(t, err)
	var last time.Duration
	const n = 1_000_000
	for range n {
		last = l.Reserve(1, 512)
	}
	want := float64(n*512-1) / 3_000_000_007
	assert.InDelta(t, want, last.Seconds(), 1e-8)
}

func TestLimiterWithoutLimits(t *testing.T) {
	l, err := NewLimiter(Limits{}, nil)
	require.NoError(t, err)
	assert.Nil(t, l)
	assert.Zero(t, l.Reserve(1, 1<<40))
	assert.NoError(t, l.Wait(nil, 1, 1<<40))
	if !raceEnabled {
		assert.Zero(t, testing.AllocsPerRun(100, func() { _ = l.Wait(nil, 1, 4096) }))
		m, err := NewLimiter(Limits{Ops: Rate{PerSecond: math.MaxInt64}}, nil)
		require.NoError(t, err)
		assert.Zero(t, testing.AllocsPerRun(100, func() { _ = m.Wait(nil, 1, 4096) }))
	}
}

func TestLimitsThatMakeNoSense(t *testing.T) {
	for name, l := range map[string]Limits{
		"negative rate":        {Ops: Rate{-1, 0}},
		"negative burst":       {Bytes: Rate{1, -1}},
		"a burst and no rate":  {Bytes: Rate{0, 100}},
		"a burst, no ops rate": {Bytes: Rate{1, 1}, Ops: Rate{0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewLimiter(l, nil)
			assert.Error(t, err)
		})
	}
}

func TestLimiterWait(t *testing.T) {
	clock := newHandClock()
	l, err := NewLimiter(Limits{Ops: Rate{10, 1}}, clock)
	require.NoError(t, err)
	require.NoError(t, l.Wait(nil, 1, 0))
	assert.Empty(t, clock.asked)

	first, second := make(chan error), make(chan error)
	cancel := make(chan struct{})
	go func() { first <- l.Wait(nil, 1, 0) }()
	assert.Equal(t, 100*time.Millisecond, <-clock.asked)
	go func() { second <- l.Wait(cancel, 3, 0) }()
	assert.Equal(t, 400*time.Millisecond, <-clock.asked)
	clock.advance(100 * time.Millisecond)
	assert.NoError(t, <-first)
	close(cancel)
	assert.ErrorIs(t, <-second, ErrCanceled)
	assert.Equal(t, 100*time.Millisecond, l.Reserve(1, 0), "what was not used went back")
}

func TestLimiterBySystemClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := NewLimiter(Limits{Bytes: Rate{1 << 20, 1 << 20}}, nil)
		require.NoError(t, err)
		start := time.Now()
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() { assert.NoError(t, l.Wait(nil, 1, 1<<20)) })
		}
		wg.Wait()
		assert.Equal(t, 63*time.Second, time.Since(start))
	})
}

func BenchmarkLimiter(b *testing.B) {
	l, err := NewLimiter(Limits{Ops: Rate{PerSecond: math.MaxInt64}, Bytes: Rate{PerSecond: math.MaxInt64}}, nil)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		_ = l.Wait(nil, 1, 4096)
	}
}
