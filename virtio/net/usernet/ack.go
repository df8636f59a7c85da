package usernet

import (
	"encoding/binary"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// The stack acknowledges what the guest says at once, in a segment of its own, and the
// answer follows in another a moment later: two interrupts where one would do, and for a
// guest an interrupt is the dearest part of a question. So the acknowledgement of a small
// segment may wait a little for company, as a receiver's may (RFC 9293, 3.8.6.3: no more
// than half a second, and no more than one of two full-sized segments), and gives way to
// an answer that says the same. What is acknowledged beyond that, repeated, or said of
// the window goes at once.

// smallSegment is the most payload, in bytes, whose acknowledgement may wait: less than
// a full segment anywhere.
const smallSegment = 512

// ackKey names a place in a connection's stream from the guest: the guest's port, the
// other's, and the sequence number that comes next. Addresses are left out: who has the
// same key by chance has an acknowledgement go a little later. 0 is none.
type ackKey uint64

func newAckKey(guest, other uint16, next uint32) ackKey {
	return ackKey(guest)<<48 | ackKey(other)<<32 | ackKey(next)
}

// owed is the last small segment of the guest that nothing has acknowledged yet.
type owed struct{ key atomic.Uint64 }

// note looks at a segment of the guest before the stack does, without its IP header.
func (o *owed) note(segment []byte) {
	if len(segment) < header.TCPMinimumSize {
		return
	}
	offset := int(segment[12]>>4) * 4
	n := len(segment) - offset
	if n <= 0 || n > smallSegment || header.TCPFlags(segment[13])&(header.TCPFlagSyn|header.TCPFlagFin|header.TCPFlagRst) != 0 {
		return
	}
	o.key.Store(uint64(newAckKey(binary.BigEndian.Uint16(segment), binary.BigEndian.Uint16(segment[2:]),
		binary.BigEndian.Uint32(segment[4:])+uint32(n))))
}

// settles reports whether pkt is the bare acknowledgement of what is owed, which then
// is no longer. key is what pkt acknowledges, if it is a TCP segment.
func (o *owed) settles(pkt *stack.PacketBuffer) (key ackKey, bare bool) {
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber {
		return 0, false
	}
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize {
		return 0, false
	}
	const control = header.TCPFlagSyn | header.TCPFlagFin | header.TCPFlagRst
	if h.Flags()&header.TCPFlagAck == 0 || h.Flags()&control != 0 {
		return 0, false
	}
	key = newAckKey(h.DestinationPort(), h.SourcePort(), h.AckNumber())
	was := o.key.Load()
	if key == 0 || was != uint64(key) {
		return key, false
	}
	return key, o.key.CompareAndSwap(was, 0) && pkt.Data().Size() == 0
}
