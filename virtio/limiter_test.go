package virtio

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// handClock moves when it is told to.
type handClock struct{ now time.Duration }

func (c *handClock) Now() time.Duration { return c.now }

func (*handClock) After(time.Duration) (<-chan time.Time, func()) { panic("nobody waits here") }

func (c *handClock) advance(d time.Duration) { c.now += d }

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
			clock := new(handClock)
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
	clock := new(handClock)
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
	assert.Zero(t, testing.AllocsPerRun(100, func() { _ = l.Reserve(1, 4096) }))
	m, err := NewLimiter(Limits{Ops: Rate{PerSecond: math.MaxInt64}}, nil)
	require.NoError(t, err)
	assert.Zero(t, testing.AllocsPerRun(100, func() { _ = m.Reserve(1, 4096) }))
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

func BenchmarkLimiter(b *testing.B) {
	l, err := NewLimiter(Limits{Ops: Rate{PerSecond: math.MaxInt64}, Bytes: Rate{PerSecond: math.MaxInt64}}, nil)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		_ = l.Reserve(1, 4096)
	}
}
