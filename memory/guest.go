package memory

import (
	"errors"
	"fmt"
	"slices"
)

const (
	// LowTop is the guest-physical address at which low RAM ends at the
	// latest: 3 GiB.
	LowTop = 3 << 30
	// HighStart is the guest-physical address at which RAM goes on above the
	// device hole: 4 GiB.
	HighStart = 4 << 30
	// PageSize is the granule of RAM sizes and of host mappings, in bytes.
	PageSize = 4096
)

// ErrRange reports an access that is not wholly inside one region of RAM.
var ErrRange = errors.New("memory: not guest RAM")

// Region is one contiguous range of guest RAM.
type Region struct {
	// GPA is the guest-physical address of the first byte.
	GPA uint64
	// Mem is the host's mapping of the region. It belongs to the Guest and
	// must not be used after [Guest.Close].
	Mem []byte
}

// Size returns the region's length in bytes.
func (r Region) Size() uint64 { return uint64(len(r.Mem)) }

// End returns the guest-physical address behind the region's last byte.
func (r Region) End() uint64 { return r.GPA + r.Size() }

// Guest is the RAM of one machine. Its methods may be called from any
// goroutine until Close; the bytes themselves are not synchronised.
type Guest struct {
	regions []Region // sorted by GPA, disjoint
	backing *backing // nil for FromBytes
}

// FromBytes returns a Guest over ordinary byte slices, for tests and fuzzing.
// The regions are sorted; they must not overlap or wrap.
func FromBytes(regions ...Region) (*Guest, error) {
	rs := slices.Clone(regions)
	slices.SortFunc(rs, func(a, b Region) int {
		switch {
		case a.GPA < b.GPA:
			return -1
		case a.GPA > b.GPA:
			return 1
		}
		return 0
	})
	for i, r := range rs {
		if r.End() < r.GPA {
			return nil, fmt.Errorf("memory: region at %#x with %d bytes wraps: %w", r.GPA, len(r.Mem), ErrRange)
		}
		if i > 0 && rs[i-1].End() > r.GPA {
			return nil, fmt.Errorf("memory: regions at %#x and %#x overlap: %w", rs[i-1].GPA, r.GPA, ErrRange)
		}
	}
	return &Guest{regions: rs}, nil
}

// Layout returns the ranges that size bytes of RAM take: one below LowTop and,
// for the rest, one from HighStart. The ranges carry no memory: only GPA and
// length.
func Layout(size uint64) []Range {
	if size <= LowTop {
		return []Range{{GPA: 0, Size: size}}
	}
	return []Range{{GPA: 0, Size: LowTop}, {GPA: HighStart, Size: size - LowTop}}
}

// Range is a guest-physical range, in bytes.
type Range struct {
	GPA, Size uint64
}

// Regions returns the regions of RAM by ascending address. The slice is the
// Guest's own: do not change it.
func (g *Guest) Regions() []Region { return g.regions }

// Size returns how many bytes of RAM the guest has.
func (g *Guest) Size() uint64 {
	var n uint64
	for _, r := range g.regions {
		n += r.Size()
	}
	return n
}

// Contains reports whether the n bytes at gpa are wholly inside one region.
func (g *Guest) Contains(gpa, n uint64) bool {
	_, ok := g.find(gpa, n)
	return ok
}

// Slice returns the n bytes of RAM at gpa, without copying. They must lie in
// one region; otherwise the error wraps ErrRange. The slice's capacity ends
// with it, so that an append cannot reach further into RAM.
func (g *Guest) Slice(gpa, n uint64) ([]byte, error) {
	if b, ok := g.find(gpa, n); ok {
		return b, nil
	}
	return nil, fmt.Errorf("memory: %d bytes at %#x: %w", n, gpa, ErrRange)
}

func (g *Guest) find(gpa, n uint64) ([]byte, bool) {
	for i := range g.regions {
		r := &g.regions[i]
		if gpa < r.GPA {
			break
		}
		off, size := gpa-r.GPA, uint64(len(r.Mem))
		if off <= size && n <= size-off {
			return r.Mem[off : off+n : off+n], true
		}
	}
	return nil, false
}

// ReadAt copies len(p) bytes of RAM at guest-physical address gpa to p. It is
// all or nothing: a range that is not wholly RAM gives 0 and ErrRange.
func (g *Guest) ReadAt(p []byte, gpa int64) (int, error) {
	b, err := g.at(p, gpa)
	if err != nil {
		return 0, err
	}
	return copy(p, b), nil
}

// WriteAt copies p to RAM at guest-physical address gpa, all or nothing like
// ReadAt.
func (g *Guest) WriteAt(p []byte, gpa int64) (int, error) {
	b, err := g.at(p, gpa)
	if err != nil {
		return 0, err
	}
	return copy(b, p), nil
}

func (g *Guest) at(p []byte, gpa int64) ([]byte, error) {
	if gpa < 0 {
		return nil, fmt.Errorf("memory: %d bytes at %d: %w", len(p), gpa, ErrRange)
	}
	return g.Slice(uint64(gpa), uint64(len(p)))
}

// Close unmaps the RAM. Slices got before must not be used any more: they
// would fault. Closing twice is harmless.
func (g *Guest) Close() error {
	b := g.backing
	g.backing, g.regions = nil, nil
	if b == nil {
		return nil
	}
	return b.close()
}
