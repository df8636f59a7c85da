package usernet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// unreach is a reason of "destination unreachable": its codes in ICMP (RFC 792,
// RFC 1812, 5.2.7.1) and in ICMPv6 (RFC 4443, 3.1).
type unreach struct{ v4, v6 byte }

var (
	hostUnreachable = unreach{1, 3}
	portUnreachable = unreach{3, 4}
	prohibited      = unreach{13, 1}
)

// unreachable tells the guest that a flow of its does not arrive. The packet
// that it is about is gone; the message quotes as much of it as tells the
// guest's kernel which socket to tell.
func (s *session) unreachable(k flowKey, why unreach) {
	quote := make([]byte, 0, ip6Size+udpSize)
	proto := byte(protoUDP)
	if k.proto == ICMP {
		proto = protoICMP
		if k.peer.Addr().Is6() {
			proto = protoICMPv6
		}
	}
	if k.peer.Addr().Is4() {
		quote = appendIPv4(quote, k.guest.Addr(), k.peer.Addr(), proto, udpSize)
	} else {
		quote = appendIPv6(quote, k.guest.Addr(), k.peer.Addr(), proto, 64, udpSize)
	}
	switch proto {
	case protoUDP:
		quote = binary.BigEndian.AppendUint16(quote, k.guest.Port())
		quote = binary.BigEndian.AppendUint16(quote, k.peer.Port())
		quote = append(quote, 0, udpSize, 0, 0)
	default:
		kind := byte(8)
		if proto == protoICMPv6 {
			kind = 128
		}
		quote = append(quote, kind, 0, 0, 0)
		quote = binary.BigEndian.AppendUint16(quote, k.guest.Port())
		quote = append(quote, 0, 0)
	}
	to, ok := s.neighbours.find(k.guest.Addr())
	if !ok {
		to = s.neighbours.lastSeen()
	}
	frame := make([]byte, 0, 160)
	if k.peer.Addr().Is6() {
		s.emitFrame(appendICMPv6(frame, to, s.gateway6, k.guest.Addr(), 64, append([]byte{1, why.v6, 0, 0, 0, 0, 0, 0}, quote...)))
		return
	}
	frame = appendEther(frame, to, etherIPv4)
	frame = appendIPv4(frame, s.gateway4, k.guest.Addr(), protoICMP, 8+len(quote))
	start := len(frame)
	frame = append(frame, 3, why.v4, 0, 0, 0, 0, 0, 0)
	frame = append(frame, quote...)
	binary.BigEndian.PutUint16(frame[start+2:], ^checksum.Checksum(frame[start:], 0))
	s.emitFrame(frame)
}
