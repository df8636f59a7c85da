package usernet

import (
	"sync/atomic"

	"github.com/vole-vmm/vole/virtio"
)

// Stats are what a network has done since New, in frames, bytes without the
// virtio header, and flows.
type Stats struct {
	ToGuest, ToGuestBytes     uint64
	FromGuest, FromGuestBytes uint64
	// ToGuestFull counts frames that found the queue to the guest full, or the guest
	// without an answer to who it is; ToGuestLong those that the guest's buffers did
	// not hold.
	ToGuestFull, ToGuestLong uint64
	// FromGuestOdd counts frames that the network has no use for.
	FromGuestOdd uint64
	// TCP and UDP are flows opened, in either direction; pings count as UDP.
	TCP, UDP uint64
	// Denied are flows and names that the policy refused, Failed those that the
	// outside did, Full those for which the tables had no room.
	Denied, Failed, Full uint64
}

type counters struct {
	toGuest, toGuestBytes, toGuestFull, toGuestLong atomic.Uint64
	fromGuest, fromGuestBytes, fromGuestOdd         atomic.Uint64
	tcp, udp, denied, failed, full                  atomic.Uint64
}

// Stats may be called at any time.
func (n *Network) Stats() Stats {
	c := &n.stats
	return Stats{
		ToGuest: c.toGuest.Load(), ToGuestBytes: c.toGuestBytes.Load(),
		FromGuest: c.fromGuest.Load(), FromGuestBytes: c.fromGuestBytes.Load(),
		ToGuestFull: c.toGuestFull.Load(), ToGuestLong: c.toGuestLong.Load(), FromGuestOdd: c.fromGuestOdd.Load(),
		TCP: c.tcp.Load(), UDP: c.udp.Load(),
		Denied: c.denied.Load(), Failed: c.failed.Load(), Full: c.full.Load(),
	}
}

var _ virtio.Counting = (*Network)(nil)

// Counters implements virtio.Counting: what became of the guest's flows. Frames
// and bytes are the device's to count.
func (n *Network) Counters() []virtio.Counter {
	s := n.Stats()
	return []virtio.Counter{
		{Name: "TCP flows", Value: s.TCP},
		{Name: "UDP flows", Value: s.UDP},
		{Name: "flows, denied", Value: s.Denied},
		{Name: "flows, failed", Value: s.Failed},
		{Name: "flows, no room", Value: s.Full},
	}
}
