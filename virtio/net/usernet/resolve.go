package usernet

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A guest with a static address may have said nothing when somebody outside wants it: a
// probe for a duplicate has no source, and a kernel announces no address of its own
// accord. So whoever has an address is asked for as on any Ethernet (RFC 826; RFC 4861,
// 7.2), over and over as the guest may be about to take it, and what is for it waits
// meanwhile: the first segment of a connection is not to be lost, and sent again only
// after a second.

const (
	askInterval = 100 * time.Millisecond
	// holdTime is how long a packet waits. One for an address that nobody says to have
	// goes to the guest's last seen hardware address then.
	holdTime = 10 * time.Second
	// maxHeld and maxHeldBytes bound what waits, but for a single packet; the oldest
	// make room. That is less than what a socket of the stack's may have under way, so
	// that its writes do not wait for the guest.
	maxHeld      = 64
	maxHeldBytes = 16 << 10
	// maxUnasked is how many frames may wait for a guest that takes none before it is
	// not asked any more.
	maxUnasked = 32
)

// unresolved is the packets for addresses of the guest's of which no hardware address is
// known.
type unresolved struct {
	s *session
	n atomic.Int32 // len(held) at least

	mu    sync.Mutex
	held  []heldPacket
	bytes int
	timer *time.Timer
	over  bool
}

type heldPacket struct {
	to    netip.Addr
	pkt   *stack.PacketBuffer
	since time.Time
}

// hold takes a reference of its own to pkt, whose Ethernet header lacks the destination.
func (u *unresolved) hold(to netip.Addr, pkt *stack.PacketBuffer) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return false
	}
	// Raised before looking: who learns the address in between comes here.
	u.n.Add(1)
	if m, ok := u.s.neighbours.find(to); ok {
		u.n.Add(-1)
		return u.s.emitTo(m, pkt)
	}
	size := pkt.Size()
	for len(u.held) > 0 && (len(u.held) == maxHeld || u.bytes+size > maxHeldBytes) {
		u.drop()
	}
	asked := false
	for i := range u.held {
		asked = asked || u.held[i].to == to
	}
	u.held = append(u.held, heldPacket{to, pkt.IncRef(), time.Now()})
	u.bytes += size
	if !asked {
		u.s.askFor(to)
	}
	switch {
	case u.timer == nil:
		u.timer = time.AfterFunc(askInterval, u.tick)
	case len(u.held) == 1:
		u.timer.Reset(askInterval)
	}
	return true
}

// drop gives up the oldest. It is called under mu.
func (u *unresolved) drop() {
	u.s.n.stats.toGuestFull.Add(1)
	u.remove(0).DecRef()
}

func (u *unresolved) remove(i int) *stack.PacketBuffer {
	pkt := u.held[i].pkt
	copy(u.held[i:], u.held[i+1:])
	u.held[len(u.held)-1] = heldPacket{}
	u.held = u.held[:len(u.held)-1]
	u.bytes -= pkt.Size()
	u.n.Add(-1)
	return pkt
}

// learned sends what waits for an address that is known now.
func (u *unresolved) learned(a netip.Addr, m mac) {
	if u.n.Load() == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := 0; i < len(u.held); {
		if u.held[i].to != a {
			i++
			continue
		}
		pkt := u.remove(i)
		u.s.emitTo(m, pkt)
		pkt.DecRef()
	}
}

// tick asks again.
func (u *unresolved) tick() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for now := time.Now(); len(u.held) > 0 && now.Sub(u.held[0].since) >= holdTime; {
		m := u.s.neighbours.lastSeen()
		if m == (mac{}) {
			u.drop()
			continue
		}
		pkt := u.remove(0)
		u.s.emitTo(m, pkt)
		pkt.DecRef()
	}
	if u.over || len(u.held) == 0 {
		return
	}
	if u.s.egress[0].waiting() < maxUnasked {
		for i := range u.held {
			first := true
			for _, before := range u.held[:i] {
				first = first && before.to != u.held[i].to
			}
			if first {
				u.s.askFor(u.held[i].to)
			}
		}
	}
	u.timer.Reset(askInterval)
}

func (u *unresolved) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	for len(u.held) > 0 {
		u.remove(0).DecRef()
	}
	if u.timer != nil {
		u.timer.Stop()
	}
}

// askFor asks everybody for the hardware address of a.
func (s *session) askFor(a netip.Addr) {
	if a.Is4() {
		var buf [etherSize + arpSize]byte
		f := appendEther(buf[:0], broadcastMAC, etherARP)
		f = binary.BigEndian.AppendUint64(f, arpRequestHead)
		f = append(f, gatewayMAC[:]...)
		f = append(f, s.gateway4.AsSlice()...)
		f = append(f, 0, 0, 0, 0, 0, 0)
		s.emitFrame(append(f, a.AsSlice()...))
		return
	}
	b := a.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
	body := make([]byte, 0, 32)
	body = append(body, ndNeighbourSolicit, 0, 0, 0, 0, 0, 0, 0)
	body = append(body, b[:]...)
	body = append(body, 1, 1) // source link-layer address
	body = append(body, gatewayMAC[:]...)
	s.emitFrame(appendICMPv6(make([]byte, 0, 128), mac{0x33, 0x33, 0xff, b[13], b[14], b[15]}, s.link6, group, 255, body))
}

// emitTo is emit for a packet whose Ethernet header lacks the destination.
func (s *session) emitTo(m mac, pkt *stack.PacketBuffer) bool {
	copy(pkt.LinkHeader().Slice(), m[:])
	return s.emit(pkt)
}

// destination is the address of an IP packet with its network header in place.
func destination(pkt *stack.PacketBuffer) netip.Addr {
	net := pkt.NetworkHeader().Slice()
	switch pkt.NetworkProtocolNumber {
	case header.IPv4ProtocolNumber:
		return netip.AddrFrom4([4]byte(net[16:20]))
	case header.IPv6ProtocolNumber:
		return netip.AddrFrom16([16]byte(net[24:40]))
	}
	return netip.Addr{}
}
