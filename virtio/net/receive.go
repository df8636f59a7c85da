package net

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/vole-vmm/vole/virtio"
)

const (
	// maxBuffers is how many buffers are offered to one Receive, roughly: the last
	// chain may bring more.
	maxBuffers = QueueSize
	// calmFrames is after how many short frames no long one is prepared for.
	calmFrames = 64
	// holdPatience is how long a frame waits for the driver to add as many buffers
	// as it needs. It is dropped then, so that a driver that never will has a network
	// all the same (rule 17).
	holdPatience = 200 * time.Millisecond
	// retryLink is how often a backend that is gone and does not speak of it is
	// asked again.
	retryLink = time.Second
)

// receiver moves the frames of a pair from the backend to the driver.
//
// How long the next frame is nobody knows before it is read, but for a Sizer. So it is
// read into as many of the driver's chains as the frames before it have needed, and
// behind these into spill; when a frame has come to there, more chains are taken and its
// end is copied. A frame for whose end there are none yet is held in spill as a whole.
type receiver struct {
	d        *Device
	pair     int
	sizer    Sizer // the backend, if it is one; else nil
	q        *virtio.Queue
	gate     *gate
	counters *counters
	tally    tally
	features uint64
	merge    bool
	longest  int // frame without segments, with its header; more exceed the MTU
	short    int // what is prepared for at least
	whole    int // frame without segments; more are segments
	long     int // what is prepared for at most

	chains []*virtio.Chain // the first popped ones are from the queue, in their order
	popped int
	spare  []*virtio.Chain // scratch
	bufs   [][]byte        // of the popped chains, with room for spill behind them
	room   int             // bytes in bufs
	expect int             // bytes that are prepared for
	calm   int             // short frames in a row
	pushed bool            // in this batch

	spill  []byte
	waste  [1][]byte // spill, for frames that nobody gets
	held   int       // bytes in spill that are a frame
	giveUp time.Duration
	timer  *time.Timer // wakes who waits for buffers
}

func newReceiver(d *Device, i int, p *pairQueues, features uint64) *receiver {
	r := &receiver{
		d: d, pair: i, q: p.rx, gate: &p.rxGate, counters: &d.pairs[i].rx, features: features,
		merge: features&FeatureMrgRxBuf != 0,
		spare: make([]*virtio.Chain, 0, p.rx.Size()),
		bufs:  make([][]byte, 0, maxBuffers+p.rx.Size()+1),
		spill: make([]byte, maxReceive),
	}
	r.waste[0] = r.spill
	r.sizer, _ = d.backend.(Sizer)
	const around = HeaderSize + ethernetSize + vlanSize
	r.whole = around + max(d.opts.MTU, defaultMTU)
	// Where a frame may have many buffers, most are short even if the MTU is not.
	if r.short = around + defaultMTU; !r.merge {
		r.short = r.whole
	}
	r.long, r.longest = r.whole, maxReceive
	if features&guestSegments != 0 {
		r.long = maxReceive
	}
	if features&FeatureMTU != 0 {
		r.longest = around + d.opts.MTU
	}
	r.expect = r.short
	r.timer = time.AfterFunc(time.Hour, r.q.Wake)
	r.timer.Stop()
	return r
}

// outcome is why a batch has ended.
type outcome int

const (
	more    outcome = iota // there may be more to do at once
	dry                    // there is nothing to move
	starved                // the driver has no buffers, or not enough
	shut                   // the queue is not in use
	failed                 // the backend is gone
)

func (r *receiver) run() {
	defer r.timer.Stop()
	if !r.d.pause(r.q, r.d.rxLimit.Debt()) {
		return
	}
	for o := dry; ; {
		switch o {
		case more:
		case dry:
			if !r.wait() {
				return
			}
		case starved, shut:
			// Once there are buffers the backend is asked at once: it may be full, so
			// that no new frame can come to tell of (rule 17).
			if !r.q.Wait() {
				return
			}
		case failed:
			if !r.d.waitBackend(r.q) {
				return
			}
		}
		var late time.Duration
		o, late = r.batch()
		if !r.d.pause(r.q, late) {
			return
		}
	}
}

// wait waits for a frame and reports false when the device is reset. A backend that
// does not speak of its link is down from when its Wait fails to when it does not.
func (r *receiver) wait() bool {
	for {
		ok, err := r.d.backend.Wait(r.pair)
		if !r.d.speaks {
			r.d.backendLink(err == nil)
		}
		if err == nil {
			return ok
		}
		if !r.d.waitBackend(r.q) {
			return false
		}
	}
}

// waitBackend waits until the backend may be back and reports false when the device
// is reset.
func (d *Device) waitBackend(q *virtio.Queue) bool {
	fired, stop := d.clock.After(retryLink)
	defer stop()
	select {
	case <-d.link.waitBack():
		// Not sooner than a moment: it might say that it is back and fail again.
		return d.pause(q, time.Millisecond)
	case <-fired:
		return true
	case <-q.Stopped():
		return false
	}
}

// pause waits for so long, at once if that is nothing, and reports false when the
// device is reset.
func (d *Device) pause(q *virtio.Queue, t time.Duration) bool {
	if t <= 0 {
		return true
	}
	fired, stop := d.clock.After(t)
	defer stop()
	select {
	case <-fired:
		return true
	case <-q.Stopped():
		return false
	}
}

// batch moves some frames. It returns why it has ended, and how long the rate limit
// wants the next to wait. No chain is kept.
func (r *receiver) batch() (o outcome, late time.Duration) {
	r.gate.Lock()
	defer r.gate.Unlock()
	if !r.gate.open {
		if r.held > 0 {
			r.forget(dropTooLong)
		}
		r.tally.publish(r.counters)
		return shut, 0
	}
	select {
	case <-r.q.Stopped():
		return starved, 0 // a Wait says so
	default:
	}
	for frames, bytes := 0, 0; frames < batchFrames && bytes < batchBytes; frames++ {
		var n int
		if n, o = r.next(); o != more {
			break
		}
		bytes += n
		if late = r.d.rxLimit.Reserve(min(n, 1), int64(n)); late > 0 {
			break
		}
	}
	if r.popped > 0 {
		r.q.Unpop(r.popped)
		r.popped, r.room, r.bufs = 0, 0, r.bufs[:0]
	}
	r.tally.publish(r.counters)
	if r.pushed {
		r.pushed = false
		r.q.Signal()
	}
	return o, late
}

// next moves a frame, of which the driver has got n bytes.
func (r *receiver) next() (n int, o outcome) {
	if !r.d.link.up.Load() {
		return 0, r.discard()
	}
	if r.held > 0 {
		return r.deliverHeld()
	}
	want := r.expect
	if r.sizer != nil {
		if want = r.sizer.NextSize(r.pair); want == 0 {
			return 0, dry
		}
	}
	if !r.gather(want) && r.popped == 0 {
		return 0, starved
	}
	list := append(r.bufs, r.spill[:max(maxReceive-r.room, 0)])
	n, err := r.d.backend.Receive(r.pair, list)
	if err != nil || n == 0 {
		return 0, r.none(err)
	}
	if !r.accept(list, n) {
		return 0, more
	}
	if n > r.room {
		return r.overflow(n)
	}
	return r.deliver(n), more
}

// none says how to go on when the backend has given no frame.
func (r *receiver) none(err error) outcome {
	switch {
	case err == nil:
		return dry
	case errors.Is(err, ErrTooLong):
		r.tally.drop(dropTooLong)
		return more
	}
	return failed
}

// discard takes a frame that comes while the link is down.
func (r *receiver) discard() outcome {
	if r.held > 0 {
		r.forget(dropLinkDown)
		return more
	}
	n, err := r.d.backend.Receive(r.pair, r.waste[:])
	if err != nil || n == 0 {
		return r.none(err)
	}
	r.tally.drop(dropLinkDown)
	return more
}

// gather takes chains from the queue until they have n bytes, and reports whether
// they do. Without merged buffers a frame has one chain.
func (r *receiver) gather(n int) bool {
	for r.room < n && r.more() {
		if r.popped == len(r.chains) {
			r.chains = append(r.chains, new(virtio.Chain))
		}
		c := r.chains[r.popped]
		if !r.q.Pop(c) {
			break
		}
		r.popped++
		r.bufs = append(r.bufs, c.Writable()...)
		r.room += int(c.WritableLen())
	}
	return r.room >= n
}

// more reports whether a frame may have another chain.
func (r *receiver) more() bool {
	if !r.merge {
		return r.popped == 0
	}
	return r.popped < r.q.Size() && len(r.bufs) < maxBuffers
}

// accept makes a frame in list one that the driver may get, or drops it.
func (r *receiver) accept(list [][]byte, n int) bool {
	if n < HeaderSize+ethernetSize || n > maxReceive {
		r.tally.drop(dropInvalid)
		return false
	}
	p := prefix(list)
	if why, ok := r.judge(&p, n); !ok {
		r.tally.drop(why)
		return false
	}
	// Nothing but what was negotiated is said (5.1.6.4.1).
	flags := p[headerFlags] & (flagNeedsCsum | flagDataValid)
	if r.features&FeatureGuestCsum == 0 {
		flags = 0
	}
	poke(list, headerFlags, []byte{flags})
	return true
}

// judge decides on a frame by its first bytes.
func (r *receiver) judge(p *[prefixSize]byte, n int) (drop, bool) {
	if p[headerFlags]&flagNeedsCsum != 0 && r.features&FeatureGuestCsum == 0 {
		return dropInvalid, false
	}
	want := ^uint64(0)
	switch p[headerGSOType] &^ gsoECN {
	case gsoNone:
		if n > r.longest {
			return dropTooLong, false
		}
	case gsoTCPv4:
		want = FeatureGuestTSO4
	case gsoTCPv6:
		want = FeatureGuestTSO6
	case gsoUDPL4:
		want = FeatureGuestUSO4 | FeatureGuestUSO6
	default:
		return dropInvalid, false
	}
	if r.features&want == 0 {
		return dropInvalid, false
	}
	if !r.d.filter.Load().takes(address([6]byte(p[HeaderSize:]))) {
		return dropFiltered, false
	}
	if n > r.short {
		r.expect, r.calm = max(r.expect, min(n, r.long)), 0
		if n > 2*r.whole {
			r.expect = r.long
		}
	} else if r.calm++; r.calm > calmFrames {
		r.expect = r.short
	}
	return 0, true
}

// overflow is deliver for a frame whose end is in spill.
func (r *receiver) overflow(n int) (int, outcome) {
	room := r.room
	if r.gather(n) {
		poke(r.bufs, room, r.spill[:n-room])
		return r.deliver(n), more
	}
	if !r.more() {
		r.tally.drop(dropTooLong)
		return 0, more
	}
	copy(r.spill[room:n], r.spill[:n-room])
	peek(r.bufs, r.spill[:room])
	r.held = n
	r.giveUp = r.d.clock.Now() + holdPatience
	r.timer.Reset(holdPatience)
	return 0, starved
}

// deliverHeld is deliver for the frame in spill.
func (r *receiver) deliverHeld() (int, outcome) {
	n := r.held
	if !r.gather(n) {
		if r.more() && r.d.clock.Now() < r.giveUp {
			return 0, starved
		}
		r.forget(dropTooLong)
		return 0, more
	}
	r.held = 0
	r.timer.Stop()
	poke(r.bufs, 0, r.spill[:n])
	return r.deliver(n), more
}

// forget drops the frame in spill.
func (r *receiver) forget(why drop) {
	r.held = 0
	r.timer.Stop()
	r.tally.drop(why)
}

// deliver gives the driver the first chains, which have a frame of n bytes. It
// returns its length without the header.
func (r *receiver) deliver(n int) int {
	k, bufs := 0, 0
	for left := uint64(n); ; {
		c := r.chains[k]
		k++
		bufs += len(c.Writable())
		r.room -= int(c.WritableLen())
		if c.WritableLen() >= left {
			break
		}
		left -= c.WritableLen()
	}
	var count [2]byte
	binary.LittleEndian.PutUint16(count[:], uint16(k))
	poke(r.bufs, headerBuffers, count[:])
	left := uint64(n)
	for _, c := range r.chains[:k] {
		part := min(left, c.WritableLen())
		c.Wrote(part)
		left -= part
	}
	r.q.PushAll(r.chains[:k])
	r.pushed = true
	r.tally.frame(n - HeaderSize)
	// The chains that are left, and their buffers, move to the front.
	r.popped -= k
	if r.popped > 0 {
		r.spare = append(r.spare[:0], r.chains[:k]...)
		copy(r.chains, r.chains[k:k+r.popped])
		copy(r.chains[r.popped:], r.spare)
	}
	r.bufs = r.bufs[:copy(r.bufs, r.bufs[bufs:])]
	return n - HeaderSize
}
