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
	stolen  time.Duration // what others take each time that the device has looked at the clock 100 times
	looks   int
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
		now: func() time.Duration {
			d.now += us / 10
			if d.looks++; d.looks%100 == 0 {
				d.now += d.stolen
			}
			return d.now
		},
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
		woken  float64 // and the device at most so often
	}{
		{"32 in flight", func() pacedDriver { return &burst{depth: 32, submit: 2 * us, handle: 8 * us} }, 2, 0.15, 0.1},
		{"32 in flight, slow machine", func() pacedDriver { return &burst{depth: 32, submit: 60 * us, handle: 300 * us} }, 2.5, 0.15, 0.15},
		{"3 in flight", func() pacedDriver { return &burst{depth: 3, submit: 2 * us, handle: 8 * us} }, 1.5, 0.36, 0.1},
		{"one in flight", func() pacedDriver { return &burst{depth: 1, submit: 2 * us, handle: 8 * us} }, 0.98, 1, 0.1},
		{"one in flight, slow machine", func() pacedDriver { return &burst{depth: 1, submit: 60 * us, handle: 300 * us} }, 0.98, 1, 1},
		{"one in flight, seldom", func() pacedDriver { return &burst{depth: 1, submit: 5000 * us, handle: 10 * us} }, 0.99, 1, 1},
		{"two threads", func() pacedDriver {
			return &threads{think: []time.Duration{5 * us, 5 * us}, at: make([]time.Duration, 2)}
		}, 0.95, 1, 0.1},
		{"a quick and a slow thread", func() pacedDriver {
			return &threads{think: []time.Duration{5 * us, 90 * us}, at: make([]time.Duration, 2)}
		}, 0.9, 1, 0.1},
		{"twelve threads on as many vCPUs", func() pacedDriver {
			s := &threads{think: make([]time.Duration, 12), at: make([]time.Duration, 12)}
			for i := range s.think {
				s.think[i] = 50 * us
			}
			return s
		}, 0.8, 0.2, 0.1},
	} {
		t.Run(c.name, func(t *testing.T) {
			with, without := paced{driver: c.driver(), service: us}, paced{driver: c.driver(), service: us}
			with.run(n, true)
			without.run(n, false)
			t.Logf("with: %v, told %d times, woken %d; without: %v, told %d times, woken %d",
				with.now, with.tells, with.slept, without.now, without.tells, without.slept)
			assert.GreaterOrEqual(t, float64(without.now)/float64(with.now), c.faster)
			assert.LessOrEqual(t, float64(with.tells), c.tells*n+100)
			assert.LessOrEqual(t, float64(with.slept), c.woken*n+100)
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

// TestPaceBounds: the driver is told of no more than sixteen at once, and not much later
// than four windows after the first was done, however the requests come.
func TestPaceBounds(t *testing.T) {
	for gap, want := range map[time.Duration]int{2 * us: paceMost, 20 * us: paceMost, 90 * us: paceHold + 2} {
		var now, last time.Duration
		p := &Pace{pending: func() bool { return now-last >= gap }, tell: func() {}, now: func() time.Duration { now += us; return now }}
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
			assert.LessOrEqual(t, now-begin, (paceHold+1)*paceWindow+10*us)
			most = max(most, untold)
		}
		assert.Equal(t, want, most, gap)
	}
}

// TestPaceStolen: where others want the processor, looks that last are not repeated.
func TestPaceStolen(t *testing.T) {
	const n = 20_000
	for _, depth := range []int{1, 3} {
		driver := func() pacedDriver { return &burst{depth: depth, submit: 2 * us, handle: 20 * us} }
		with := paced{driver: driver(), service: us, stolen: 500 * us}
		without := paced{driver: driver(), service: us}
		with.run(n, true)
		without.run(n, false)
		t.Logf("depth %d: %v, without %v", depth, with.now, without.now)
		assert.Greater(t, float64(without.now)/float64(with.now), 0.5)
	}
}
