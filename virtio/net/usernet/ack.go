package usernet

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// The stack acknowledges what the guest says at once, in a segment of its own, and the
// answer follows in another a moment later: two interrupts where one would do, and for a
// guest an interrupt is the dearest part of a question. So the acknowledgement of a small
// segment may wait a little, as a receiver's may (RFC 9293, 3.8.6.3: no more than half a
// second, and no more than one of two full-sized segments), and gives way to an answer
// that says the same. What is acknowledged beyond that, repeated, or said of the window
// goes at once.
//
// A guest whose program writes twice and then reads holds its second segment back until
// the first is acknowledged (Nagle's algorithm): there a wait is in vain and all of it is
// lost. So whether answers come, and how soon, is learned for each connection from
// acknowledgements that do not wait.

// smallSegment is the most payload, in bytes, whose acknowledgement may wait: less than
// a full segment anywhere.
const smallSegment = 512

const (
	// trust is after how many answers in a row that were soon an acknowledgement waits;
	// each wait in vain doubles it, up to maxTrust.
	trust    = 8
	maxTrust = 1024
	// soon is the latest that an answer is worth a wait.
	soon = 4 * time.Millisecond
	// minHold is the shortest wait, which a timer can keep.
	minHold = 100 * time.Microsecond
	// conversations is how many connections are learned of at a time.
	conversations = 64
)

// ackKey names a place in a connection's stream from the guest: the guest's port, the
// other's, and the sequence number that comes next. Addresses are left out: it decides
// only on what waits. 0 is none.
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

// sameAnswer reports whether pkt, a segment, acknowledges what the bare acknowledgement
// ack does, so that ack need not go.
func sameAnswer(ack, pkt *stack.PacketBuffer) bool {
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber || pkt.NetworkProtocolNumber != ack.NetworkProtocolNumber {
		return false
	}
	from, to := 12, 20 // both addresses
	if pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		from, to = 8, 40
	}
	a, b := ack.NetworkHeader().Slice(), pkt.NetworkHeader().Slice()
	s, t := ack.TransportHeader().Slice(), pkt.TransportHeader().Slice()
	if min(len(a), len(b)) < to || min(len(s), len(t)) < header.TCPMinimumSize {
		return false
	}
	return bytes.Equal(a[from:to], b[from:to]) && bytes.Equal(s[:4], t[:4]) && // ports
		header.TCP(s).AckNumber() == header.TCP(t).AckNumber() && header.TCP(t).Flags()&header.TCPFlagAck != 0
}

// turns is what was learned of how connections take turns. The zero value is ready; who
// calls serializes.
type turns struct {
	by   [conversations]conversation
	last *conversation // of the acknowledgement that waits
}

// conversation is one connection's, whose ports have the place in the table; who comes
// later takes it over.
type conversation struct {
	ports   uint32
	asked   ackKey // without an answer yet
	at      time.Time
	streak  int // answers in a row that were soon
	need    int // before an acknowledgement waits
	typical time.Duration
}

func (t *turns) of(key ackKey) *conversation {
	ports := uint32(key >> 32)
	return &t.by[(ports*0x9e3779b1)>>26]
}

// asked notes an acknowledgement that might wait, and returns for how long it should.
func (t *turns) asked(key ackKey, now time.Time) time.Duration {
	c := t.of(key)
	if ports := uint32(key >> 32); c.ports != ports || c.need == 0 {
		*c = conversation{ports: ports, need: trust}
	}
	if c.asked != 0 { // the guest went on without an answer
		c.streak = 0
	}
	c.asked, c.at = key, now
	if c.streak < c.need {
		return 0
	}
	t.last = c
	return max(minHold, 4*c.typical) // answers are not even
}

// answered notes a segment that is not a bare acknowledgement.
func (t *turns) answered(key ackKey, now time.Time) {
	c := t.of(key)
	if key == 0 || c.asked != key {
		return
	}
	c.asked = 0
	took := now.Sub(c.at)
	if took > soon {
		c.streak = 0
		return
	}
	if c.streak == 0 {
		c.typical = took
	}
	c.typical += (took - c.typical) / 8
	if c.streak++; c.streak >= 2*c.need && c.need > trust {
		c.need, c.streak = c.need/2, c.need/2
	}
}

// late notes that the acknowledgement that waits has done so in vain.
func (t *turns) late() {
	c := t.last
	c.streak, c.need = 0, min(2*c.need, maxTrust)
}
