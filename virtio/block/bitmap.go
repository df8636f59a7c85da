package block

import (
	"math/bits"
	"sync/atomic"
)

const (
	leafWords = 512            // 4 KiB
	leafBits  = leafWords * 64 // 128 MiB of an image, at 4 KiB a bit
)

// bitmap is one bit for each block of an overlay. It is made of leaves that
// appear with the first bit set in them; one whose bits were all set at once
// is only a mark. A 3 TiB image has 24576 leaves: 192 KiB of pointers, and at
// most 96 MiB when every leaf has both kinds of bits.
//
// Bits are set and never cleared, by atomic operations: who sees one set also
// sees what was written before it was.
type bitmap struct {
	leaves []atomic.Pointer[leaf]
	full   *leaf // stands for a leaf of ones; never written
}

type leaf [leafWords]atomic.Uint64

func newBitmap(n int64) *bitmap {
	return &bitmap{leaves: make([]atomic.Pointer[leaf], (n+leafBits-1)/leafBits), full: new(leaf)}
}

func (m *bitmap) get(i int64) bool {
	l := m.leaves[i/leafBits].Load()
	switch l {
	case nil:
		return false
	case m.full:
		return true
	}
	return l[i%leafBits/64].Load()>>(i%64)&1 != 0
}

// run returns how many bits from i on are the same as bit i, counting to end
// at the latest, and what they are.
func (m *bitmap) run(i, end int64) (n int64, set bool) {
	set = m.get(i)
	for at := i; at < end; {
		l := m.leaves[at/leafBits].Load()
		next := (at/leafBits + 1) * leafBits
		if l == nil || l == m.full {
			if (l != nil) != set {
				return at - i, set
			}
			at = next
			continue
		}
		for at < min(next, end) {
			w := l[at%leafBits/64].Load()
			if set {
				w = ^w
			}
			// Ones in w are where the run ends.
			if w >>= at % 64; w != 0 {
				return min(at+int64(bits.TrailingZeros64(w)), end) - i, set
			}
			at = (at/64 + 1) * 64
		}
	}
	return end - i, set
}

// set sets the bits from i up to end.
func (m *bitmap) set(i, end int64) {
	for i < end {
		slot := &m.leaves[i/leafBits]
		next := min((i/leafBits+1)*leafBits, end)
		l := slot.Load()
		switch {
		case l == m.full:
			i = next
			continue
		case next-i == leafBits:
			// Who sets a bit in the old leaf meanwhile loses nothing.
			slot.Store(m.full)
			i = next
			continue
		case l == nil:
			if l = new(leaf); !slot.CompareAndSwap(nil, l) {
				continue
			}
		}
		for i < next {
			w := ^uint64(0) << (i % 64)
			upto := (i/64 + 1) * 64
			if upto > next {
				w &= ^uint64(0) >> (upto - next)
			}
			word := &l[i%leafBits/64]
			if word.Load()&w != w {
				word.Or(w)
			}
			i = min(upto, next)
		}
	}
}
