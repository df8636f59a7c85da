package net

import "slices"

const (
	// maxFilter is how many addresses of each kind a filter holds. A driver that gives
	// more gets all frames of that kind (5.1.6.5.2).
	maxFilter = 64
	// maxTable is how many it may give.
	maxTable = 1 << 16
)

const (
	broadcast    uint64 = 1<<48 - 1
	multicastBit uint64 = 1 << 40
)

// filter decides which received frames the driver gets. It does not change: a new
// mode is a new filter.
type filter struct {
	mac       uint64
	all       bool // promiscuous
	unicast   addresses
	multicast addresses
}

// addresses are those of one kind that the driver wants.
type addresses struct {
	all  bool
	list []uint64
}

func (a addresses) has(dst uint64) bool { return a.all || slices.Contains(a.list, dst) }

// takes reports whether a frame to dst is the driver's.
func (f *filter) takes(dst uint64) bool {
	switch {
	case f.all || dst == f.mac || dst == broadcast:
		return true
	case dst&multicastBit != 0:
		return f.multicast.has(dst)
	}
	return f.unicast.has(dst)
}
