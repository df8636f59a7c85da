package net_test

import (
	"errors"
	"slices"
	"sync"

	virtionet "github.com/vole-vmm/vole/virtio/net"
)

// allOffloads are what a backend can offer.
const allOffloads = virtionet.FeatureCsum | virtionet.FeatureGuestCsum |
	virtionet.FeatureGuestTSO4 | virtionet.FeatureGuestTSO6 | virtionet.FeatureGuestECN | virtionet.FeatureGuestUSO4 | virtionet.FeatureGuestUSO6 |
	virtionet.FeatureHostTSO4 | virtionet.FeatureHostTSO6 | virtionet.FeatureHostECN | virtionet.FeatureHostUSO

// fake is a backend in memory. Its fields are set before it is used.
type fake struct {
	features uint64
	pairs    int
	mtu      int
	capacity int  // frames that wait, of each pair; 0 is no bound
	edge     bool // Wait tells of a frame once
	startErr error
	pairsErr error
	pairsRun func() // in SetPairs

	mu      sync.Mutex
	moved   sync.Cond
	in      [][][]byte
	news    []bool
	sent    [][][]byte
	started bool
	acked   uint64
	active  int
	starts  int
	closed  int
	full    bool
	waitErr error
	refused int // frames for which there was no room
	late    int // calls after Stop
	sendErr error
}

func newFake() *fake {
	f := &fake{features: allOffloads, pairs: 1, mtu: 1500}
	f.moved.L = &f.mu
	return f
}

// withPairs makes it serve n pairs.
func (f *fake) withPairs(n int) *fake {
	f.pairs = n
	return f
}

func (f *fake) grow() {
	for len(f.in) < f.pairs {
		f.in, f.news, f.sent = append(f.in, nil), append(f.news, false), append(f.sent, nil)
	}
}

func (f *fake) Features() uint64 { return f.features }
func (f *fake) MaxPairs() int    { return f.pairs }
func (f *fake) MTU() int         { return f.mtu }

func (f *fake) Start(features uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grow()
	f.started, f.acked, f.active = true, features, 1
	f.starts++
	return f.startErr
}

func (f *fake) SetPairs(n int) error {
	if f.pairsRun != nil {
		f.pairsRun()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pairsErr == nil {
		f.active = n
	}
	return f.pairsErr
}

func (f *fake) Wait(pair int) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case !f.started:
			return false, nil
		case f.waitErr != nil:
			return false, f.waitErr
		case f.edge && f.news[pair], !f.edge && len(f.in[pair]) > 0:
			f.news[pair] = false
			return true, nil
		}
		f.moved.Wait()
	}
}

func (f *fake) Receive(pair int, bufs [][]byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.started:
		f.late++
		return 0, nil
	case f.waitErr != nil:
		return 0, f.waitErr
	case len(f.in[pair]) == 0:
		return 0, nil
	}
	frame := f.in[pair][0]
	f.in[pair] = f.in[pair][1:]
	n := 0
	for _, b := range bufs {
		n += copy(b, frame[n:])
	}
	if n < len(frame) {
		return 0, virtionet.ErrTooLong
	}
	return n, nil
}

func (f *fake) Send(pair int, bufs [][]byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.started:
		f.late++
		return errors.New("stopped")
	case f.full:
		return virtionet.ErrFull
	case f.sendErr != nil:
		return f.sendErr
	}
	f.sent[pair] = append(f.sent[pair], slices.Concat(bufs...))
	f.moved.Broadcast()
	return nil
}

func (f *fake) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = false
	f.moved.Broadcast()
}

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}

// put has a frame come in, header and all, and reports whether there was room.
func (f *fake) put(pair int, frame []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grow()
	if f.capacity > 0 && len(f.in[pair]) >= f.capacity {
		f.refused++
		return false
	}
	f.in[pair] = append(f.in[pair], frame)
	f.news[pair] = true
	f.moved.Broadcast()
	return true
}

// waiting is how many frames were not received yet.
func (f *fake) waiting(pair int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grow()
	return len(f.in[pair])
}

// took is what was sent so far.
func (f *fake) took(pair int) [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grow()
	return slices.Clone(f.sent[pair])
}

// set changes what the methods return.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.moved.Broadcast()
}

// measured is a fake that says how long its next frame is, or as much less as it errs,
// and notes of each frame how many buffers it was given.
type measured struct {
	*fake
	sized   bool
	errs    int
	buffers []int // of each frame; under mu
}

func (m *measured) Receive(pair int, bufs [][]byte) (int, error) {
	n, err := m.fake.Receive(pair, bufs)
	if n > 0 {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.buffers = append(m.buffers, len(bufs))
	}
	return n, err
}

// sizing is measured as a Sizer.
type sizing struct{ *measured }

func (s sizing) NextSize(pair int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.in[pair]) == 0 {
		return 0
	}
	return max(1, len(s.in[pair][0])-s.errs)
}

// backend is m as the device is to see it.
func (m *measured) backend() virtionet.Backend {
	if m.sized {
		return sizing{m}
	}
	return m
}

// speaking is a fake that says how its link is.
type speaking struct {
	*fake
	tell func(up bool)
}

func (s *speaking) NotifyLink(f func(up bool)) { s.tell = f }
