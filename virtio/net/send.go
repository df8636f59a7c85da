package net

import (
	"errors"
	"time"

	"github.com/vole-vmm/vole/virtio"
)

// sender moves the frames of a pair from the driver to the backend.
type sender struct {
	d        *Device
	pair     int
	q        *virtio.Queue
	gate     *gate
	counters *counters
	tally    tally
	features uint64
	c        *virtio.Chain
	header   [HeaderSize]byte
	bufs     [][]byte
}

func newSender(d *Device, i int, p *pairQueues, features uint64) *sender {
	return &sender{
		d: d, pair: i, q: p.tx, gate: &p.txGate, counters: &d.pairs[i].tx, features: features,
		c: virtio.NewChain(p.tx), bufs: make([][]byte, 0, p.tx.Size()+1),
	}
}

func (s *sender) run() {
	if !s.d.pause(s.q, s.d.txLimit.Debt()) {
		return
	}
	for {
		done, late := s.batch()
		if !s.d.pause(s.q, late) {
			return
		}
		if done && !s.q.Wait() {
			return
		}
	}
}

// batch moves some frames. It reports whether there were no more, and how long the
// rate limit wants the next to wait.
func (s *sender) batch() (done bool, late time.Duration) {
	s.gate.Lock()
	defer s.gate.Unlock()
	some := false
	for frames, bytes := 0, 0; frames < batchFrames && bytes < batchBytes; frames++ {
		if !s.q.Pop(s.c) {
			done = true
			break
		}
		n := s.send()
		bytes += n
		s.q.Push(s.c)
		some = true
		if late = s.d.txLimit.Reserve(min(n, 1), int64(n)); late > 0 {
			break
		}
	}
	s.tally.publish(s.counters)
	if some {
		s.q.Signal()
	}
	return done, late
}

// send sends the frame in the chain, if it is one, and returns how many bytes count
// for the rate limit.
func (s *sender) send() int {
	// A chain may have one buffer many times: the length is not yet one of a frame.
	n := s.c.ReadableLen()
	switch {
	case !s.gate.open:
		s.tally.drop(dropInactive)
		return 0
	case n < HeaderSize+minFrame || n > HeaderSize+maxFrame:
		s.tally.drop(dropMalformed)
		return 0
	}
	s.c.Read(s.header[:])
	frame := int(n) - HeaderSize
	if !checkHeader(&s.header, frame, s.features) {
		s.tally.drop(dropMalformed)
		return 0
	}
	if !s.d.link.up.Load() {
		s.tally.drop(dropLinkDown)
		return frame
	}
	s.bufs = append(append(s.bufs[:0], s.header[:]), s.c.Readable()...)
	switch err := s.d.backend.Send(s.pair, s.bufs); {
	case err == nil:
		s.tally.frame(frame)
	case errors.Is(err, ErrFull):
		s.tally.drop(dropFull)
	default:
		s.tally.drop(dropFailed)
	}
	return frame
}
