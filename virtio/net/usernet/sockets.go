package usernet

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// sockets counts those of the host's that guests have in all networks of this process:
// these have one limit of descriptors, which machines need for other things as well.
var sockets atomic.Int64

// minSockets is what guests may have however low the limit is.
const minSockets = 32

// mostSockets is a quarter of RLIMIT_NOFILE.
func mostSockets() int64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return minSockets
	}
	return max(minSockets, int64(min(r.Cur, 1<<30))/4)
}

// takeSocket counts a socket that is about to be, until giveSocket, if there is room. TCP
// leaves a quarter to datagrams and DNS, without which nothing else works.
func (n *Network) takeSocket(proto Protocol) bool {
	most := n.sockets
	if proto == TCP {
		most -= most / 4
	}
	if sockets.Add(1) > most {
		sockets.Add(-1)
		n.stats.full.Add(1)
		return false
	}
	return true
}

func giveSocket() { sockets.Add(-1) }
