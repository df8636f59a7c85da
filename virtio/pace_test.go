package virtio

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

const us = time.Microsecond

// paced is a device and its driver in a time of their own: whatever takes time moves it.
type paced struct {
	now     time.Duration
	driver  pacedDriver
	untold  int
	tells   int
	served  int
	slept   int // times that the device was woken
	service time.Duration
}

// pacedDriver makes requests. Its methods are called with times that never go back.
type pacedDriver interface {
	// made is how many requests have been made up to now; next is when the next will be,
	// if the driver is told nothing until then, or false if it waits for that.
	made(now time.Duration) int
	next(now time.Duration) (time.Duration, bool)
	// told is the interrupt for the first n requests.
	told(now time.Duration, n int)
}

// run serves n requests, with a Pace or, without, as a device does that tells at once.
func (d *paced) run(n int, with bool) {
	p := &Pace{
		pending: func() bool { return d.driver.made(d.now) > d.served },
		tell:    func() { d.tell() },
		now:     func() time.Duration { return d.now },
		yield:   func() { d.now += us / 2 },
	}
	p.init()
	for d.served < n {
		if d.driver.made(d.now) == d.served {
			if d.untold > 0 {
				d.tell()
				continue
			}
			at, ok := d.driver.next(d.now)
			if !ok {
				panic("the driver waits to be told")
			}
			d.slept++
			d.now = max(d.now, at) + 2*us // the notification, and waking up
			continue
		}
		p.Took()
		d.now += d.service
		d.served++
		d.untold++
		if with && p.More(d.untold) {
			continue
		}
		p.Tell()
		if with {
			p.Watch()
		}
	}
	d.tell()
}

func (d *paced) tell() {
	d.tells++
	d.now += us / 2
	d.driver.told(d.now, d.served)
	d.untold = 0
}

// burst is a driver on one vCPU with so many requests in flight: making one takes a
// while, and being told takes it away from that.
type burst struct {
	depth           int
	submit, handle  time.Duration
	free            time.Duration // when the vCPU is done with what it does
	requests, ended int
}

func (b *burst) made(now time.Duration) int {
	for b.requests-b.ended < b.depth && b.free+b.submit <= now {
		b.free += b.submit
		b.requests++
	}
	return b.requests
}

func (b *burst) next(time.Duration) (time.Duration, bool) {
	return b.free + b.submit, b.requests-b.ended < b.depth
}

func (b *burst) told(now time.Duration, n int) {
	b.made(now)
	b.free = max(b.free, now) + b.handle
	b.ended = n
}

// threads are drivers of one request each, on a vCPU each: the next is made so long after
// it was told of the last.
type threads struct {
	think []time.Duration
	at    []time.Duration // when each makes its next; while it waits, never
	order []int           // who made each request
	ended int
}

const never = time.Duration(1 << 62)

func (s *threads) made(now time.Duration) int {
	for {
		first := 0
		for i := range s.at {
			if s.at[i] < s.at[first] {
				first = i
			}
		}
		if s.at[first] > now {
			return len(s.order)
		}
		s.order = append(s.order, first)
		s.at[first] = never
	}
}

func (s *threads) next(time.Duration) (time.Duration, bool) {
	at := never
	for _, t := range s.at {
		at = min(at, t)
	}
	return at, at != never
}

func (s *threads) told(now time.Duration, n int) {
	for ; s.ended < n; s.ended++ {
		i := s.order[s.ended]
		s.at[i] = now + 4*us + s.think[i]
	}
}

// TestPace: what it spares drivers that have much in flight, and costs those that don't.
func TestPace(t *testing.T) {
	const n = 20_000
	for _, c := range []struct {
		name   string
		driver func() pacedDriver
		faster float64 // the time without it, at least this many times the time with it
		tells  float64 // at most so many for each request
	}{
		{"32 in flight", func() pacedDriver { return &burst{depth: 32, submit: 2 * us, handle: 8 * us} }, 2, 0.15},
		{"32 in flight, slow machine", func() pacedDriver { return &burst{depth: 32, submit: 60 * us, handle: 300 * us} }, 2.5, 0.15},
		{"3 in flight", func() pacedDriver { return &burst{depth: 3, submit: 2 * us, handle: 8 * us} }, 1.5, 0.36},
		{"one in flight", func() pacedDriver { return &burst{depth: 1, submit: 2 * us, handle: 8 * us} }, 0.98, 1},
		{"one in flight, slow machine", func() pacedDriver { return &burst{depth: 1, submit: 60 * us, handle: 300 * us} }, 0.98, 1},
		{"one in flight, seldom", func() pacedDriver { return &burst{depth: 1, submit: 5000 * us, handle: 10 * us} }, 0.99, 1},
		{"two threads", func() pacedDriver {
			return &threads{think: []time.Duration{5 * us, 5 * us}, at: make([]time.Duration, 2)}
		}, 0.95, 1},
		{"a quick and a slow thread", func() pacedDriver {
			return &threads{think: []time.Duration{5 * us, 90 * us}, at: make([]time.Duration, 2)}
		}, 0.9, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			with, without := paced{driver: c.driver(), service: us}, paced{driver: c.driver(), service: us}
			with.run(n, true)
			without.run(n, false)
			t.Logf("with: %v, told %d times, woken %d; without: %v, told %d times, woken %d",
				with.now, with.tells, with.slept, without.now, without.tells, without.slept)
			assert.GreaterOrEqual(t, float64(without.now)/float64(with.now), c.faster)
			assert.LessOrEqual(t, float64(with.tells), c.tells*float64(n)+100)
		})
	}
}

// phases is a driver that does something else after a while.
type phases struct {
	*burst
	depths []int
	each   int
}

func (p *phases) made(now time.Duration) int {
	p.depth = p.depths[p.requests/p.each%len(p.depths)]
	return p.burst.made(now)
}

// TestPaceLearnsAnew: a driver that had one request in flight for long has many then.
func TestPaceLearnsAnew(t *testing.T) {
	for _, depths := range [][]int{{1, 32}, {1, 1, 1, 1, 3}} {
		p := &phases{&burst{submit: 2 * us, handle: 8 * us}, depths, 50_000}
		d := &paced{driver: p, service: us}
		d.run((len(depths)-1)*50_000, true)
		assert.Greater(t, d.tells, 45_000*(len(depths)-1), "one at a time is told at once")
		before := d.tells
		d.run(len(depths)*50_000, true)
		assert.Less(t, d.tells-before, 50_000/2, "depths %v", depths)
	}
}

// TestPaceBounds: the driver is told of no more than sixteen at once, and no later than
// that many windows after the first, however the requests come.
func TestPaceBounds(t *testing.T) {
	var now time.Duration
	gap, last := 90*us, time.Duration(0)
	pending := func() bool { return now-last >= gap }
	p := &Pace{pending: pending, tell: func() {}, now: func() time.Duration { return now }, yield: func() { now += us }}
	p.init()
	p.turn = paceTurn
	most := 0
	for range 1000 {
		begin, untold := now, 1
		last = now
		for p.More(untold) {
			untold++
			last = now
		}
		p.Tell()
		assert.LessOrEqual(t, now-begin, paceMost*(paceWindow+us))
		most = max(most, untold)
	}
	assert.Equal(t, paceMost, most)
}

// TestPaceKnowsNothing: before a turn was measured nobody waits.
func TestPaceKnowsNothing(t *testing.T) {
	p := &Pace{pending: func() bool { return false }, now: func() time.Duration { return 0 }, yield: func() { t.Fatal("a look") }}
	p.init()
	assert.False(t, p.More(1))
	p.Watch()
}
