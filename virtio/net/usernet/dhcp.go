package usernet

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68
	// leaseTime is how long a lease lasts; the network lasts as long as the guest.
	leaseTime = 24 * time.Hour
)

// Messages (RFC 2132, 9.6).
const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpDecline  = 4
	dhcpAck      = 5
	dhcpNak      = 6
	dhcpRelease  = 7
	dhcpInform   = 8
)

// Options (RFC 2132; 119 is RFC 3397).
const (
	optPad          = 0
	optMask         = 1
	optRouter       = 3
	optDNS          = 6
	optHostname     = 12
	optDomain       = 15
	optMTU          = 26
	optBroadcast    = 28
	optRequestedIP  = 50
	optLease        = 51
	optType         = 53
	optServer       = 54
	optParameters   = 55
	optMaxSize      = 57
	optRenewal      = 58
	optRebinding    = 59
	optClientID     = 61
	optDomainSearch = 119
	optEnd          = 255
)

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// dhcpMessage is what a server needs of a request (RFC 2131, 2).
type dhcpMessage struct {
	kind              byte
	xid               [4]byte
	flags             uint16
	client            netip.Addr // ciaddr
	relay             netip.Addr // giaddr
	hardware          mac
	requested, server netip.Addr // zero without the option
	parameters        []byte
	maxSize           int
	id                []byte // the client's identifier: to be echoed (RFC 6842)
}

const dhcpHead = 240 // with the cookie

var dhcpCookie = [4]byte{99, 130, 83, 99}

// parseDHCP reads a client's message. It takes no overloaded options: no client
// has a reason to send them.
func parseDHCP(b []byte) (dhcpMessage, bool) {
	var m dhcpMessage
	if len(b) < dhcpHead || b[0] != 1 || b[1] != 1 || b[2] != 6 || [4]byte(b[236:240]) != dhcpCookie {
		return m, false
	}
	m.xid = [4]byte(b[4:8])
	m.flags = binary.BigEndian.Uint16(b[10:])
	m.client = netip.AddrFrom4([4]byte(b[12:16]))
	m.relay = netip.AddrFrom4([4]byte(b[24:28]))
	m.hardware = mac(b[28:34])
	for o := b[dhcpHead:]; len(o) > 0 && o[0] != optEnd; {
		if o[0] == optPad {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return m, false
		}
		code, v := o[0], o[2:2+int(o[1])]
		o = o[2+len(v):]
		switch {
		case code == optType && len(v) == 1:
			m.kind = v[0]
		case code == optRequestedIP && len(v) == 4:
			m.requested = netip.AddrFrom4([4]byte(v))
		case code == optServer && len(v) == 4:
			m.server = netip.AddrFrom4([4]byte(v))
		case code == optParameters:
			m.parameters = v
		case code == optMaxSize && len(v) == 2:
			m.maxSize = int(binary.BigEndian.Uint16(v))
		case code == optClientID:
			m.id = v
		case code == optType || code == optRequestedIP || code == optServer || code == optMaxSize:
			return m, false
		}
	}
	return m, m.kind != 0 && m.relay.IsUnspecified() && !m.hardware.group()
}

// dhcp answers a client (RFC 2131, 4.3). There is one address to give, and the
// guest is the only client: whoever asks gets it, and nothing is kept.
func (s *session) dhcp(from mac, src netip.Addr, packet []byte) use {
	udp := packet[int(packet[0]&15)*4:]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if length < udpSize || length > len(udp) || checksum.Checksum(packet[:int(packet[0]&15)*4], 0) != 0xffff {
		return dropped
	}
	m, ok := parseDHCP(udp[udpSize:length])
	if !ok || !src.IsUnspecified() && !s.net4.Contains(src) {
		return dropped
	}
	if m.server.IsValid() && m.server != s.gateway4 { // another server's
		return taken
	}
	kind := byte(0)
	switch m.kind {
	case dhcpDiscover:
		kind = dhcpOffer
	case dhcpRequest:
		want := m.requested
		if !want.IsValid() {
			want = m.client
		}
		kind = dhcpAck
		if want != s.guest4 {
			kind = dhcpNak
		}
	case dhcpInform:
		if !s.net4.Contains(m.client) {
			return dropped
		}
		kind = dhcpAck
	default: // a release or decline needs no answer
		return taken
	}
	s.answerDHCP(from, &m, kind)
	return taken
}

func (s *session) answerDHCP(to mac, m *dhcpMessage, kind byte) {
	inform := m.kind == dhcpInform
	b := make([]byte, dhcpHead, 576)
	b[0], b[1], b[2] = 2, 1, 6
	copy(b[4:8], m.xid[:])
	binary.BigEndian.PutUint16(b[10:], m.flags)
	if kind == dhcpAck {
		copy(b[12:16], m.client.AsSlice())
	}
	if kind != dhcpNak && !inform {
		copy(b[16:20], s.guest4.AsSlice())
	}
	if kind != dhcpNak {
		copy(b[20:24], s.gateway4.AsSlice())
	}
	copy(b[28:34], m.hardware[:])
	copy(b[236:240], dhcpCookie[:])
	b = append(b, optType, 1, kind)
	b = append(append(b, optServer, 4), s.gateway4.AsSlice()...)
	if kind != dhcpNak {
		if !inform {
			lease := uint32(leaseTime / time.Second)
			b = binary.BigEndian.AppendUint32(append(b, optLease, 4), lease)
			b = binary.BigEndian.AppendUint32(append(b, optRenewal, 4), lease/2)
			b = binary.BigEndian.AppendUint32(append(b, optRebinding, 4), lease/8*7)
		}
		mask := ^uint32(0) << (32 - s.net4.Bits())
		b = binary.BigEndian.AppendUint32(append(b, optMask, 4), mask)
		b = append(append(b, optRouter, 4), s.gateway4.AsSlice()...)
		b = append(append(b, optDNS, 4), s.dns4.AsSlice()...)
		b = append(append(b, optBroadcast, 4), s.broadcast4.AsSlice()...)
		b = s.appendWanted(b, m)
	}
	if len(m.id) > 0 && len(b)+len(m.id)+3 <= dhcpLimit(m) {
		b = append(append(b, optClientID, byte(len(m.id))), m.id...)
	}
	b = append(b, optEnd)
	for len(b) < 300 { // what BOOTP relays and old clients expect
		b = append(b, optPad)
	}
	dst := limitedBroadcast
	hw := broadcastMAC
	switch {
	case kind == dhcpNak:
	case !m.client.IsUnspecified() && s.net4.Contains(m.client):
		dst, hw = m.client, to
	case m.flags&0x8000 == 0 && kind != dhcpNak && !inform:
		dst, hw = s.guest4, to
	}
	s.emitFrame(appendUDP4(make([]byte, 0, len(b)+64), hw,
		netip.AddrPortFrom(s.gateway4, dhcpServerPort), netip.AddrPortFrom(dst, dhcpClientPort), b))
}

// dhcpLimit is how long an answer may be, without the headers below it.
func dhcpLimit(m *dhcpMessage) int {
	return max(576, min(m.maxSize, MinMTU)) - ip4Size - udpSize
}

// appendWanted adds what a client has to ask for, as far as there is room.
func (s *session) appendWanted(b []byte, m *dhcpMessage) []byte {
	limit := dhcpLimit(m) - 1
	add := func(code byte, v []byte) {
		if len(v) > 0 && len(v) <= 255 && len(b)+2+len(v) <= limit {
			b = append(append(b, code, byte(len(v))), v...)
		}
	}
	search := s.n.resolver.search()
	seen := [256]bool{}
	for _, code := range m.parameters {
		if seen[code] {
			continue
		}
		seen[code] = true
		switch code {
		case optMTU:
			add(code, binary.BigEndian.AppendUint16(nil, uint16(s.n.o.MTU)))
		case optHostname:
			add(code, []byte(s.n.o.Hostname))
		case optDomain:
			if len(search) > 0 {
				add(code, []byte(search[0]))
			}
		case optDomainSearch:
			add(code, appendDomains(nil, search, 240))
		}
	}
	return b
}

// appendDomains encodes names as DNS does (RFC 1035, 3.1), without compression,
// as many whole ones as fit into limit bytes.
func appendDomains(b []byte, names []string, limit int) []byte {
	start := len(b)
	for _, name := range names {
		if !validName(name) || len(b)-start+len(name)+2 > limit {
			continue
		}
		b = appendName(b, name)
	}
	return b
}

func appendName(b []byte, name string) []byte {
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}
