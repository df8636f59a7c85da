package net

import (
	"sync/atomic"

	"github.com/vole-vmm/vole/virtio"
)

// Stats are the numbers of a device since it was made; of a [VHost]'s frames there are
// none, but its interface's in Counters. Bytes are those of frames, without their
// headers.
type Stats struct {
	// Received frames are those that the driver got.
	Received, ReceivedBytes uint64
	ReceiveDropped          ReceiveDropped
	// Sent frames are those that the backend took.
	Sent, SentBytes uint64
	SendDropped     SendDropped
}

// ReceiveDropped is how many frames the driver did not get, by the reason.
type ReceiveDropped struct {
	TooLong  uint64 // did not fit into the driver's buffers, or exceeded the MTU
	Filtered uint64 // to an address that the driver does not want
	LinkDown uint64
	Invalid  uint64 // no frame, or with a header that was not negotiated: the backend's fault
}

// SendDropped is how many frames did not leave, by the reason.
type SendDropped struct {
	Malformed uint64 // a header or a length that makes no sense, or was not negotiated
	Full      uint64 // the backend had no room
	Failed    uint64 // the backend could not
	LinkDown  uint64
	Inactive  uint64 // in a queue that the driver has said not to use
}

// counters are what one goroutine counts. It adds up a batch and then publishes it,
// so that a frame costs no atomic operation.
type counters struct {
	frames, bytes atomic.Uint64
	dropped       [dropReasons]atomic.Uint64
	_             [64]byte // nobody else's cache line
}

// drop is the reason that a frame was dropped for.
type drop int

const (
	dropTooLong drop = iota
	dropFiltered
	dropInvalid
	dropMalformed
	dropFull
	dropFailed
	dropLinkDown
	dropInactive
	dropReasons
)

// tally is a batch that was not published.
type tally struct {
	frames, bytes uint64
	dropped       [dropReasons]uint64
	some          bool
}

func (t *tally) frame(bytes int) {
	t.frames++
	t.bytes += uint64(bytes)
	t.some = true
}

func (t *tally) drop(why drop) {
	t.dropped[why]++
	t.some = true
}

// publish adds the tally to c and empties it.
func (t *tally) publish(c *counters) {
	if !t.some {
		return
	}
	c.frames.Add(t.frames)
	c.bytes.Add(t.bytes)
	for i, n := range t.dropped {
		if n > 0 {
			c.dropped[i].Add(n)
		}
	}
	*t = tally{}
}

// Stats returns the numbers. It may be called at any time; a frame in flight may be
// counted in one of them and not yet in another.
func (d *Device) Stats() Stats {
	var s Stats
	for i := range d.pairs {
		rx, tx := &d.pairs[i].rx, &d.pairs[i].tx
		s.Received += rx.frames.Load()
		s.ReceivedBytes += rx.bytes.Load()
		s.ReceiveDropped.TooLong += rx.dropped[dropTooLong].Load()
		s.ReceiveDropped.Filtered += rx.dropped[dropFiltered].Load()
		s.ReceiveDropped.LinkDown += rx.dropped[dropLinkDown].Load()
		s.ReceiveDropped.Invalid += rx.dropped[dropInvalid].Load()
		s.Sent += tx.frames.Load()
		s.SentBytes += tx.bytes.Load()
		s.SendDropped.Malformed += tx.dropped[dropMalformed].Load()
		s.SendDropped.Full += tx.dropped[dropFull].Load()
		s.SendDropped.Failed += tx.dropped[dropFailed].Load()
		s.SendDropped.LinkDown += tx.dropped[dropLinkDown].Load()
		s.SendDropped.Inactive += tx.dropped[dropInactive].Load()
	}
	return s
}

var _ virtio.Counting = (*Device)(nil)

// Counters implements virtio.Counting: the device's numbers, and behind them the
// backend's, if it keeps any.
func (d *Device) Counters() []virtio.Counter {
	list := d.counters()
	if c, ok := d.backend.(virtio.Counting); ok {
		list = append(list, c.Counters()...)
	}
	return list
}

func (d *Device) counters() []virtio.Counter {
	if d.carrier != nil {
		t := d.carrier.traffic()
		return []virtio.Counter{
			{Name: "frames in", Value: t.framesIn},
			{Name: "bytes in", Value: t.bytesIn},
			{Name: "frames out", Value: t.framesOut},
			{Name: "bytes out", Value: t.bytesOut},
			{Name: "in, dropped", Value: t.droppedIn},
			{Name: "out, dropped", Value: t.droppedOut},
		}
	}
	s := d.Stats()
	return []virtio.Counter{
		{Name: "frames in", Value: s.Received},
		{Name: "bytes in", Value: s.ReceivedBytes},
		{Name: "frames out", Value: s.Sent},
		{Name: "bytes out", Value: s.SentBytes},
		{Name: "in, too long", Value: s.ReceiveDropped.TooLong},
		{Name: "in, for others", Value: s.ReceiveDropped.Filtered},
		{Name: "in, link down", Value: s.ReceiveDropped.LinkDown},
		{Name: "in, invalid", Value: s.ReceiveDropped.Invalid},
		{Name: "out, malformed", Value: s.SendDropped.Malformed},
		{Name: "out, no room", Value: s.SendDropped.Full},
		{Name: "out, failed", Value: s.SendDropped.Failed},
		{Name: "out, link down", Value: s.SendDropped.LinkDown},
		{Name: "out, queue not in use", Value: s.SendDropped.Inactive},
	}
}
