package virtio

import "time"

const (
	// paceMost is how many requests the driver is told of at once at most.
	paceMost = 16
	// paceWindow is how long one look out for more takes at most.
	paceWindow = 100 * time.Microsecond
	// paceHold is how many windows old the first untold request may be when another one
	// is taken or looked out for.
	paceHold = 4
	// paceTurn is the longest that a driver's turn is taken for one: who takes longer rests.
	paceTurn = 1 * time.Millisecond
)

// Pace keeps a device in step with its driver. A device that is quick takes each request
// the moment that it is made and tells its end at once; of a driver that would have
// made many more it then interrupts each one's making with the end of the last, and has
// itself woken for each. A slower device is faster then: one notification and one
// interrupt do for many requests. So a device looks out a little longer, where that is
// found to pay:
//
//   - before the driver is told ([Pace.More]): is there another request to be told of in
//     the same interrupt? That is learned for each number of them: a driver with three
//     requests in flight is told of three, and no time is lost in the wait for a fourth.
//   - before the device sleeps ([Pace.Watch]): is there the next request already? Then
//     there was neither a notification nor a wakeup.
//
// Whether a look is worth its time goes by how often the same look has been rewarded of
// late, by what is found behind it, and by the driver's turn: the time from when it is
// told to its next request, half of which a request spares that comes before. For no
// longer than that is waited for one that is to share an interrupt, since who takes
// longer would have been quicker had he been told, and never longer than 100
// microseconds. What is not worth it is tried one time in 64 all the same. A look is for
// nothing too where the processor was given to others meanwhile.
//
// Looking takes the processor, and the place among the runtime's processors: there is no
// look without a request before it, and none is longer than two turns.
//
// A Pace is used by one goroutine at a time, the one that listens to the queue.
type Pace struct {
	pending func() bool // a request waits to be popped
	tell    func()
	now     func() time.Duration

	first time.Duration  // when the first untold request was done
	told  time.Duration  // when the driver was, or 0 if its turn is over
	turn  time.Duration  // how long it took of late
	looks [paceMost]look // for one more request, by the number of untold ones
}

// NewPace returns what is to serve q in step with its driver.
func NewPace(q *Queue) *Pace {
	start := time.Now()
	p := &Pace{pending: q.Pending, tell: q.Signal, now: func() time.Duration { return time.Since(start) }}
	p.init()
	return p
}

func (p *Pace) init() {
	p.turn = paceWindow
	for i := range p.looks {
		p.looks[i].chance = lookHope
	}
}

// More reports whether there is a request that should be taken before the driver is told
// of the untold ones that were pushed. If not, [Pace.Tell] is due.
func (p *Pace) More(untold int) bool {
	now, window := p.now(), min(p.turn/2, paceWindow)
	if untold == 1 {
		p.first = now
	}
	return untold < paceMost && now-p.first <= paceHold*window && p.look(untold, window)
}

// Tell is [Queue.Signal].
func (p *Pace) Tell() {
	p.tell()
	p.told = p.now()
}

// Took is called when a request was popped, the first since Tell.
func (p *Pace) Took() {
	if p.told == 0 {
		return
	}
	if turn := p.now() - p.told; turn <= paceTurn {
		p.turn += (turn - p.turn) / 8
	}
	p.told = 0
}

// Watch looks out for the next request, if that promises anything, before [Queue.Pop]
// asks the driver to notify of it.
func (p *Pace) Watch() { p.look(0, min(2*p.turn, paceWindow)) }

// look reports whether there is a request, or one comes within the window if that is
// worth waiting for.
func (p *Pace) look(untold int, window time.Duration) bool {
	l := &p.looks[untold]
	if p.pending() {
		l.won()
		return true
	}
	if !p.worth(untold, window) && l.seldom() {
		return false
	}
	end := p.now() + window
	for {
		pending, now := p.pending(), p.now()
		switch {
		case pending && now <= end:
			l.won()
			return true
		case now > end:
			l.lost()
			return pending
		}
	}
}

// worth reports whether a look is likely to save more than it costs. One more request
// saves half a turn, and may have others behind it.
func (p *Pace) worth(untold int, window time.Duration) bool {
	saved, cost, value := float64(p.turn)/2, float64(window), 0.0
	last := len(p.looks) - 1
	if untold == 0 {
		last = 0 // who sleeps is not held to a number
	}
	for i := last; i >= untold; i-- {
		chance := p.looks[i].chance
		value = chance*(saved+max(value, 0)) - (1-chance)*cost
	}
	return value > 0
}

// look is what is known of one.
type look struct {
	chance  float64 // that it is rewarded
	skipped int
}

const (
	lookWeight = 1.0 / 16 // of the last one in the chance
	lookHope   = 0.5      // the chance at first, and after a success where there was less
	lookSeldom = 63       // how often one is left out that is not worth it
)

func (l *look) seldom() bool {
	if l.skipped < lookSeldom {
		l.skipped++
		return true
	}
	l.skipped = 0
	return false
}

func (l *look) won() { l.chance = max(l.chance+(1-l.chance)*lookWeight, lookHope) }

func (l *look) lost() { l.chance -= l.chance * lookWeight }
