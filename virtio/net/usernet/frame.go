package usernet

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	ip4Size = 20
	ip6Size = 40
	udpSize = 8
)

// input takes one frame of the guest: its Ethernet header, and the packet
// behind it, whose view it releases. It reports whether the frame was one that
// this network has a use for.
func (s *session) input(eth *[etherSize]byte, packet *buffer.View) bool {
	dst, src := mac(eth[0:6]), mac(eth[6:12])
	if src.group() || src == (mac{}) || src == gatewayMAC || dst != gatewayMAC && !dst.group() ||
		s.guestMAC != (mac{}) && src != s.guestMAC {
		packet.Release()
		return false
	}
	s.neighbours.seen(src)
	switch b := packet.AsSlice(); binary.BigEndian.Uint16(eth[12:]) {
	case etherARP:
		defer packet.Release()
		return s.arp(src, b)
	case etherIPv4:
		use := s.classify4(src, b)
		if use == toStack {
			s.link.deliver(header.IPv4ProtocolNumber, stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(packet)}))
			return true
		}
		packet.Release()
		return use == taken
	case etherIPv6:
		use := dropped
		if s.v6 {
			use = s.classify6(src, b)
		}
		if use == toStack {
			s.link.deliver(header.IPv6ProtocolNumber, stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(packet)}))
			return true
		}
		packet.Release()
		return use == taken
	}
	packet.Release()
	return false
}

// use is what becomes of a packet.
type use uint8

const (
	dropped use = iota
	taken       // answered here
	toStack
)

// classify4 checks an IPv4 packet (RFC 791) as far as it decides on it; the
// stack checks the rest.
func (s *session) classify4(m mac, b []byte) use {
	if len(b) < ip4Size || b[0]>>4 != 4 {
		return dropped
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < ip4Size || total < head || total > len(b) {
		return dropped
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	fragment := binary.BigEndian.Uint16(b[6:])&0x3fff != 0
	if b[9] == protoUDP && !fragment && total >= head+udpSize && binary.BigEndian.Uint16(b[head+2:]) == dhcpServerPort &&
		(dst == s.gateway4 || dst == s.broadcast4 || dst == limitedBroadcast) {
		return s.dhcp(m, src, b[:total])
	}
	if !s.net4.Contains(src) || s.own(src) || src == s.broadcast4 || src == s.net4.Addr() {
		return dropped
	}
	if d := dst.As4(); d[0] == 0 || d[0] == 127 || d[0] >= 224 || dst == s.broadcast4 {
		return dropped
	}
	s.learn(src, m)
	if b[9] == protoTCP && !fragment {
		s.owed.note(b[head:total])
	}
	return toStack
}

// classify6 does the same for an IPv6 packet (RFC 8200).
func (s *session) classify6(m mac, b []byte) use {
	if len(b) < ip6Size || b[0]>>4 != 6 {
		return dropped
	}
	end := ip6Size + int(binary.BigEndian.Uint16(b[4:]))
	if end > len(b) {
		return dropped
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	local := src.IsLinkLocalUnicast()
	if s.own(src) || !src.IsUnspecified() && !local && !s.net6.Contains(src) {
		return dropped
	}
	if b[6] == protoICMPv6 && end > ip6Size && isND(b[ip6Size]) {
		return s.neighbourDiscovery(m, src, dst, b[7], b[ip6Size:end])
	}
	switch {
	case src.IsUnspecified(), dst.IsUnspecified(), dst.IsMulticast(), dst.IsLoopback(), dst.Is4In6():
		return dropped
	case (local || dst.IsLinkLocalUnicast()) && !s.own(dst):
		return dropped
	}
	s.learn(src, m)
	if b[6] == protoTCP {
		s.owed.note(b[ip6Size:end])
	}
	if !local {
		s.learnGuest6(src)
	}
	return toStack
}

// emitFrame puts a frame of our own making on its way; it is copied.
func (s *session) emitFrame(frame []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(buffer.NewViewWithData(frame))})
	s.emit(pkt)
	pkt.DecRef()
}

func appendEther(b []byte, dst mac, kind uint16) []byte {
	b = append(b, dst[:]...)
	b = append(b, gatewayMAC[:]...)
	return binary.BigEndian.AppendUint16(b, kind)
}

// appendIPv4 begins a packet whose payload of n bytes follows.
func appendIPv4(b []byte, src, dst netip.Addr, proto byte, n int) []byte {
	start := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ip4Size+n))
	b = append(b, 0, 0, 0x40, 0, 64, proto, 0, 0) // don't fragment
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[start+10:], ^checksum.Checksum(b[start:], 0))
	return b
}

func appendIPv6(b []byte, src, dst netip.Addr, proto, hops byte, n int) []byte {
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, proto, hops)
	b = append(b, src.AsSlice()...)
	return append(b, dst.AsSlice()...)
}

// pseudoSum is the sum of a pseudo header (RFC 793, 3.1; RFC 8200, 8.1).
func pseudoSum(src, dst netip.Addr, proto byte, n int) uint16 {
	sum := checksum.Checksum(src.AsSlice(), 0)
	sum = checksum.Checksum(dst.AsSlice(), sum)
	return checksum.Combine(checksum.Combine(sum, uint16(proto)), uint16(n))
}

// appendUDP4 is a whole UDP packet in its frame.
func appendUDP4(b []byte, to mac, src, dst netip.AddrPort, payload []byte) []byte {
	b = appendEther(b, to, etherIPv4)
	b = appendIPv4(b, src.Addr(), dst.Addr(), protoUDP, udpSize+len(payload))
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpSize+len(payload)))
	b = append(b, 0, 0)
	b = append(b, payload...)
	sum := ^checksum.Checksum(b[start:], pseudoSum(src.Addr(), dst.Addr(), protoUDP, len(b)-start))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[start+6:], sum)
	return b
}

// appendICMPv6 is a whole ICMPv6 packet in its frame; body's checksum is filled
// in.
func appendICMPv6(b []byte, to mac, src, dst netip.Addr, hops byte, body []byte) []byte {
	b = appendEther(b, to, etherIPv6)
	b = appendIPv6(b, src, dst, protoICMPv6, hops, len(body))
	start := len(b)
	b = append(b, body...)
	b[start+2], b[start+3] = 0, 0
	binary.BigEndian.PutUint16(b[start+2:], ^checksum.Checksum(b[start:], pseudoSum(src, dst, protoICMPv6, len(body))))
	return b
}
