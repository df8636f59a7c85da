package console

import "github.com/vole-vmm/vole/virtio"

// PortStats counts the bytes of a port.
type PortStats struct {
	Sent     uint64 // by the guest
	Written  uint64 // of these, to Out
	Dropped  uint64 // of these, thrown away: no Out, Out failed, or closed
	Received uint64 // from In into the guest's buffers
}

// Stats returns the counts of each port so far, in the order of Options.
func (d *Device) Stats() []PortStats {
	all := make([]PortStats, 0, len(d.order))
	for _, p := range d.order {
		all = append(all, p.stats())
	}
	return all
}

func (p *port) stats() PortStats {
	return PortStats{
		Sent: p.out.sent.Load(), Written: p.out.written.Load(), Dropped: p.out.dropped.Load(), Received: p.in.given.Load(),
	}
}

// Counters implements virtio.Counting: the sums over all ports, in bytes, and the
// control messages that could not be understood and that could not be sent.
func (d *Device) Counters() []virtio.Counter {
	var sum PortStats
	for _, p := range d.order {
		s := p.stats()
		sum.Sent += s.Sent
		sum.Dropped += s.Dropped
		sum.Received += s.Received
	}
	return []virtio.Counter{
		{Name: "bytes sent", Value: sum.Sent}, {Name: "bytes received", Value: sum.Received}, {Name: "bytes dropped", Value: sum.Dropped},
		{Name: "control messages ignored", Value: d.ignored.Load()}, {Name: "control messages unsaid", Value: d.unsaid.Load()},
	}
}
