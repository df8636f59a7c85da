package vsock

import (
	"sync/atomic"

	"github.com/vole-vmm/vole/virtio"
)

// Stats are a device's counters, since it was made.
type Stats struct {
	// Conns is how many connections there are now.
	Conns int
	// FromGuest and ToGuest are how many connections each side has begun, Refused
	// how many of both came to nothing.
	FromGuest, ToGuest, Refused uint64
	// Sent is what went to the guest, Received what came from it.
	Sent, Received Traffic
	// Resets is how many resets were sent, LostResets how many were not, because
	// the guest has let too many wait.
	Resets, LostResets uint64
	// Dropped is how many packets were not from this guest, or too short.
	Dropped uint64
}

// Traffic is one direction: packets of any kind, and bytes of data in them.
type Traffic struct{ Packets, Bytes uint64 }

// counters are what Stats reads.
type counters struct {
	fromGuest, toGuest, refused        atomic.Uint64
	sentPackets, sentBytes             atomic.Uint64
	receivedPackets, receivedBytes     atomic.Uint64
	resetsSent, resetsLost, badPackets atomic.Uint64
}

// Stats returns the counters. They are not of one moment.
func (d *Device) Stats() Stats {
	d.mu.Lock()
	conns := len(d.flows)
	d.mu.Unlock()
	c := &d.stats
	return Stats{
		Conns:     conns,
		FromGuest: c.fromGuest.Load(), ToGuest: c.toGuest.Load(), Refused: c.refused.Load(),
		Sent:     Traffic{c.sentPackets.Load(), c.sentBytes.Load()},
		Received: Traffic{c.receivedPackets.Load(), c.receivedBytes.Load()},
		Resets:   c.resetsSent.Load(), LostResets: c.resetsLost.Load(),
		Dropped: c.badPackets.Load(),
	}
}

// Describe implements virtio.Describing: the path is that of the Unix socket, if one
// is served.
func (d *Device) Describe() map[string]any {
	m := map[string]any{"cid": d.cid}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unix != nil {
		m["path"] = d.unix.path
	}
	return m
}

// Counters implements virtio.Counting: "sent" and "received" are the guest's, as with
// the other devices.
func (d *Device) Counters() []virtio.Counter {
	s := d.Stats()
	return []virtio.Counter{
		{Name: "connections of the guest", Value: s.FromGuest}, {Name: "connections to the guest", Value: s.ToGuest},
		{Name: "connections refused", Value: s.Refused},
		{Name: "packets sent", Value: s.Received.Packets}, {Name: "bytes sent", Value: s.Received.Bytes},
		{Name: "packets received", Value: s.Sent.Packets}, {Name: "bytes received", Value: s.Sent.Bytes},
		{Name: "packets dropped", Value: s.Dropped},
		{Name: "resets sent", Value: s.Resets}, {Name: "resets lost", Value: s.LostResets},
	}
}
