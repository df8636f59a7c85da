package devices

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Errors of [Bus.Add].
var (
	ErrOverlap = errors.New("ranges overlap")
	ErrRange   = errors.New("bad range")
)

// Bus maps addresses to handlers. Read and Write take no lock and allocate nothing: they look into a sorted slice that
// Add and Remove replace as a whole. All methods may be called from any goroutine.
type Bus struct {
	name   string
	mu     sync.Mutex // serialises Add and Remove
	ranges atomic.Pointer[[]busRange]
}

// busRange is one handler's addresses, both ends included.
type busRange struct {
	first, last uint64
	h           Handler
	name        string
}

func (r busRange) String() string {
	return fmt.Sprintf("%s (%#x to %#x)", r.name, r.first, r.last)
}

// NewBus returns an empty bus. The name stands in error messages.
func NewBus(name string) *Bus {
	b := &Bus{name: name}
	b.ranges.Store(new([]busRange))
	return b
}

// Add gives the size addresses from base on to h. An empty or wrapping range or a nil handler is [ErrRange]; a range that
// touches one already there is [ErrOverlap], with both names in the error.
func (b *Bus) Add(base, size uint64, name string, h Handler) error {
	switch {
	case h == nil:
		return fmt.Errorf("%s bus: %s at %#x has no handler: %w", b.name, name, base, ErrRange)
	case size == 0:
		return fmt.Errorf("%s bus: %s at %#x is empty: %w", b.name, name, base, ErrRange)
	case base+(size-1) < base:
		return fmt.Errorf("%s bus: %s, %#x bytes at %#x, wraps around: %w", b.name, name, size, base, ErrRange)
	}
	r := busRange{first: base, last: base + (size - 1), h: h, name: name}

	b.mu.Lock()
	defer b.mu.Unlock()
	old := *b.ranges.Load()
	at := lowerBound(old, base)
	for _, i := range [2]int{at - 1, at} {
		if i >= 0 && i < len(old) && old[i].first <= r.last && r.first <= old[i].last {
			return fmt.Errorf("%s bus: %v and %v: %w", b.name, r, old[i], ErrOverlap)
		}
	}
	ranges := slices.Insert(slices.Clone(old), at, r)
	b.ranges.Store(&ranges)
	return nil
}

// Remove takes away the range that starts at base and reports whether there was one. An access that another vCPU began
// before may still be running in its handler when Remove returns.
func (b *Bus) Remove(base uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := *b.ranges.Load()
	at := lowerBound(old, base)
	if at == len(old) || old[at].first != base {
		return false
	}
	ranges := slices.Delete(slices.Clone(old), at, at+1)
	b.ranges.Store(&ranges)
	return true
}

// Read lets the owner of [addr, addr+len(p)) fill p and reports whether there is one. Without one, and for an access that
// runs past the end of its range, p is filled with 0xff: nothing drives the lines.
func (b *Bus) Read(addr uint64, p []byte) bool {
	r := b.find(addr, len(p))
	if r == nil {
		fill(p, 0xff)
		return false
	}
	r.h.Read(addr-r.first, p)
	return true
}

// Write hands p to the owner of [addr, addr+len(p)) and reports whether there is one. Without one, and for an access that
// runs past the end of its range, nothing happens.
func (b *Bus) Write(addr uint64, p []byte) bool {
	r := b.find(addr, len(p))
	if r == nil {
		return false
	}
	r.h.Write(addr-r.first, p)
	return true
}

// find returns the range that holds all n bytes from addr on, or nil.
func (b *Bus) find(addr uint64, n int) *busRange {
	ranges := *b.ranges.Load()
	lo, hi := 0, len(ranges)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if r := &ranges[mid]; addr < r.first {
			hi = mid
		} else if addr > r.last {
			lo = mid + 1
		} else if n > 0 && uint64(n-1) <= r.last-addr {
			return r
		} else {
			return nil
		}
	}
	return nil
}

// lowerBound returns the index of the first range that starts at or after base.
func lowerBound(ranges []busRange, base uint64) int {
	at, _ := slices.BinarySearchFunc(ranges, base, func(r busRange, base uint64) int {
		switch {
		case r.first < base:
			return -1
		case r.first > base:
			return 1
		}
		return 0
	})
	return at
}
