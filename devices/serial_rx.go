package devices

import (
	"io"
	"sync"
	"time"
)

const (
	// rxPolls is how many times in a row a guest without receive interrupts has to read LSR to count as listening.
	// Linux's driver reads it at most three times in a row when it sets up the port, and then throws away what came.
	rxPolls = 8

	// After rxBurst bytes without a pause the line rests for a quarter of the time that the guest took to read them,
	// within bounds. A driver that reads until there is nothing more would otherwise never leave its interrupt handler
	// while the host has input, and what should take the bytes from there (and lower RTS in time) would never run.
	rxBurst   = 1024
	rxRestMin = 200 * time.Microsecond
	rxRestMax = 20 * time.Millisecond

	// rxEmptyReads is how many times in a row In may return nothing and no error.
	rxEmptyReads = 100
)

// serialRx is a [Serial]'s way in: one goroutine reads from In into a ring, from which bytes enter the receiver FIFO as
// the guest makes room. Everything in it is guarded by the port's lock, except that the goroutine reads into ring bytes
// that are free.
type serialRx struct {
	s      *Serial
	ring   []byte
	head   int    // the oldest byte
	n      int    // bytes in the ring
	unread []byte // what was in the FIFO before, and comes before the ring
	room   *sync.Cond
	err    error
	done   chan struct{} // closed when the reader ends; nil before Start
	inRead bool          // the reader is inside In

	polls    int // LSR reads in a row
	received uint64

	burst   int       // bytes since the line last rested
	since   time.Time // when that was
	resting bool
	rest    *time.Timer
	rests   sync.WaitGroup // armed timers
}

func (r *serialRx) init(s *Serial) {
	r.s = s
	if s.in != nil {
		r.ring = make([]byte, SerialInBuffer)
	}
	r.unread = make([]byte, 0, 2*len(s.st.RX)) // one FIFO; one more if SetState brought it
	r.room = sync.NewCond(&s.mu)
}

// open reports whether input may enter the FIFO: the port is connected, the guest has not taken back RTS, and the line
// does not rest.
func (r *serialRx) open() bool {
	s := r.s
	return !s.held && !s.closing && !r.resting && s.st.MCR&mcrLoop == 0 && (!s.st.RTSRaised || s.st.MCR&mcrRTS != 0)
}

// listening reports whether the guest wants input: it has enabled the interrupt or polls for it. A driver that sets up
// the port clears the FIFO and reads stray bytes; what it would throw away so is kept from it.
func (r *serialRx) listening() bool { return r.s.st.IER&ierRDA != 0 || r.polls >= rxPolls }

// waiting reports whether input waits only for the guest to listen: then a read of LSR has to be counted.
func (r *serialRx) waiting() bool {
	return r.n+len(r.unread) > 0 && r.s.st.RXLen == 0 && r.open() && !r.listening()
}

// receive moves input into the FIFO and reports whether there was any.
func (s *Serial) receive() bool {
	r := &s.rx
	if r.n+len(r.unread) == 0 || !r.open() || !r.listening() {
		return false
	}
	st := &s.st
	was, size := st.RXLen, s.rxSize()
	if was >= size {
		return false
	}
	for st.RXLen < size && len(r.unread) > 0 {
		st.RX[st.RXLen] = r.unread[0]
		st.RXLen++
		r.unread = r.unread[:copy(r.unread, r.unread[1:])]
	}
	full := r.n == len(r.ring)
	for st.RXLen < size && r.n > 0 {
		st.RX[st.RXLen] = r.ring[r.head]
		st.RXLen++
		r.n--
		if r.head++; r.head == len(r.ring) {
			r.head = 0
		}
	}
	if full && r.n < len(r.ring) {
		r.room.Signal()
	}
	r.received += uint64(st.RXLen - was)
	r.pace(int(st.RXLen - was))
	return true
}

// pace counts n bytes just received and lets the line rest after a burst.
func (r *serialRx) pace(n int) {
	if r.burst == 0 {
		r.since = time.Now()
	}
	if r.burst += n; r.burst < rxBurst {
		return
	}
	r.burst = 0
	pause := min(max(time.Since(r.since)/4, rxRestMin), rxRestMax)
	r.resting = true
	r.rests.Add(1)
	if r.rest == nil {
		r.rest = time.AfterFunc(pause, r.resume)
	} else {
		r.rest.Reset(pause)
	}
}

// resume ends a rest.
func (r *serialRx) resume() {
	defer r.rests.Done()
	r.s.mu.Lock()
	r.resting = false
	r.arrive()
}

// arrive lets input in that came from the host's side, and raises the interrupt for it, also if the line is active
// already: the guest may have lost the edge (it was masked, say), and new input is a good time to remind it. It is called with the
// lock and returns without it.
func (r *serialRx) arrive() {
	s := r.s
	came := s.receive()
	s.settle()
	raise := came && s.line
	s.mu.Unlock()
	if raise {
		s.pulse()
	}
}

// putBack keeps what came from In and is about to be lost from the FIFO, for the guest to get once more: on a wire
// without speed, what a guest clears away has not arrived yet.
func (r *serialRx) putBack() {
	st := &r.s.st
	var kept [2 * len(st.RX)]byte
	n := 0
	for i := range st.RXLen {
		if st.RXLoop>>i&1 == 0 {
			kept[n] = st.RX[i]
			n++
		}
	}
	r.received -= min(r.received, uint64(n))
	n += copy(kept[n:], r.unread)
	r.unread = r.unread[:copy(r.unread[:cap(r.unread)], kept[:n])]
}

// run is the reader.
func (r *serialRx) run() {
	defer close(r.done)
	mu := &r.s.mu
	empty := 0
	for {
		mu.Lock()
		for r.n == len(r.ring) && !r.s.closing {
			r.room.Wait()
		}
		if r.s.closing {
			mu.Unlock()
			return
		}
		from := r.head + r.n
		to := len(r.ring)
		if from >= len(r.ring) {
			from -= len(r.ring)
			to = r.head
		}
		free := r.ring[from:to]
		r.inRead = true
		mu.Unlock()

		n, err := r.s.in.Read(free)

		mu.Lock()
		r.inRead = false
		if n < 0 || n > len(free) {
			n, err = 0, io.ErrNoProgress
		}
		if n > 0 {
			empty = 0
		} else if empty++; empty == rxEmptyReads && err == nil {
			err = io.ErrNoProgress
		}
		if err != nil && err != io.EOF && !(r.s.closing && isDeadline(err)) {
			r.err = err
		}
		r.n += n
		r.arrive()
		if err != nil {
			return
		}
	}
}

// stop ends the reader and the timer, with Close's patience.
func (r *serialRx) stop() {
	r.s.mu.Lock()
	rest := r.rest
	r.s.mu.Unlock()
	if rest != nil && rest.Stop() {
		r.rests.Done()
	}
	r.rests.Wait()
	if r.done == nil {
		return
	}
	if d, ok := r.s.in.(interface{ SetReadDeadline(time.Time) error }); ok && interrupt(d.SetReadDeadline, r.done) {
		return
	}
	r.s.mu.Lock()
	inRead := r.inRead
	r.s.mu.Unlock()
	if !inRead {
		<-r.done
	}
}
