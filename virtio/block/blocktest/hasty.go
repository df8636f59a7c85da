package blocktest

import (
	"math/rand/v2"
	"sync"

	"github.com/vole-vmm/vole/virtio/block"
)

// Hasty is a Faulty image that can also be asked not to wait: it implements
// [block.Prompt]. What comes of such a call a generator decides: it is carried out, or
// would have to wait and nothing is moved, or moves a part, or moves everything and
// fails all the same. Where a fault would strike, the call would have to wait.
type Hasty struct {
	*Faulty

	mu          sync.Mutex
	r           *rand.Rand
	tried, done int
}

var _ block.Prompt = (*Hasty)(nil)

// NewHasty returns f with a generator that begins at seed.
func NewHasty(f *Faulty, seed uint64) *Hasty {
	h := &Hasty{Faulty: f}
	h.Seed(seed)
	return h
}

// Seed has the generator begin anew.
func (h *Hasty) Seed(seed uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.r = rand.New(rand.NewPCG(seed, 0))
}

// Tried is how often the image was asked not to wait, and how often it has carried the
// request out then.
func (h *Hasty) Tried() (tried, done int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tried, h.done
}

// TryReadvAt implements [block.Prompt].
func (h *Hasty) TryReadvAt(bufs [][]byte, off int64) bool {
	return h.try(Read, block.ReadVec, bufs, off)
}

// TryWritevAt implements [block.Prompt].
func (h *Hasty) TryWritevAt(bufs [][]byte, off int64) bool {
	return h.try(Write, block.WriteVec, bufs, off)
}

func (h *Hasty) try(op Op, call vecCall, bufs [][]byte, off int64) bool {
	total := length(bufs)
	move, succeed := h.decide(total)
	if h.hit(op, off, total) || move == 0 {
		return false
	}
	if _, err := call(h.img, first(bufs, move), off); err != nil || !succeed {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done++
	return true
}

// decide returns how many of n bytes a call is to move, and whether it is to succeed.
func (h *Hasty) decide(n int64) (move int64, succeed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tried++
	switch h.r.IntN(6) {
	case 0:
		return 0, false
	case 1:
		return h.r.Int64N(n + 1), false
	case 2:
		return n, false
	}
	return n, true
}

// hit reports whether a fault would strike, and leaves it alone.
func (f *Faulty) hit(op Op, off, n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(op, off, n) != nil
}
