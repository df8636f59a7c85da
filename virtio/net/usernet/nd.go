package usernet

import (
	"encoding/binary"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// Types of RFC 4861, 4.
const (
	ndRouterSolicit    = 133
	ndRouterAdvert     = 134
	ndNeighbourSolicit = 135
	ndNeighbourAdvert  = 136
	ndRedirect         = 137
)

// routerLifetime is the most that RFC 4861 allows a router to promise, and
// advertInterval how often an advertisement is repeated without being asked.
const (
	routerLifetime = 9000 * time.Second
	advertInterval = 10 * time.Minute
)

var allNodes = netip.AddrFrom16([16]byte{0xff, 0x02, 15: 1})

var allNodesMAC = mac{0x33, 0x33, 0, 0, 0, 1}

func isND(kind byte) bool { return kind >= ndRouterSolicit && kind <= ndRedirect }

// neighbourDiscovery takes a message of RFC 4861. The network is router and
// neighbour to the guest, and believes no other router.
func (s *session) neighbourDiscovery(m mac, src, dst netip.Addr, hops byte, b []byte) use {
	if hops != 255 || len(b) < 8 || b[1] != 0 || checksum.Checksum(b, pseudoSum(src, dst, protoICMPv6, len(b))) != 0xffff {
		return dropped
	}
	switch b[0] {
	case ndRouterSolicit:
		if !src.IsUnspecified() {
			s.learn(src, m)
		}
		s.advertise(m, src)
		return taken
	case ndNeighbourSolicit:
		if len(b) < 24 {
			return dropped
		}
		target := netip.AddrFrom16([16]byte(b[8:24]))
		if src.IsUnspecified() { // a probe for a duplicate: nobody has the guest's addresses
			if !s.own(target) {
				if s.net6.Contains(target) && s.guest6.Load() == nil {
					s.learnGuest6(target) // it will have it soon
				}
				return taken
			}
		} else {
			s.learn(src, m)
			if !src.IsLinkLocalUnicast() {
				s.learnGuest6(src)
			}
		}
		if s.own(target) {
			s.advertiseNeighbour(m, src, target)
		}
		return taken
	case ndNeighbourAdvert:
		if len(b) < 24 || src.IsUnspecified() {
			return dropped
		}
		if target := netip.AddrFrom16([16]byte(b[8:24])); target.Is6() && s.inside(target) && !s.own(target) {
			s.learn(target, m)
			if !target.IsLinkLocalUnicast() {
				s.learnGuest6(target)
			}
		}
		return taken
	}
	return dropped
}

// advertiseNeighbour says that target is here (RFC 4861, 4.4).
func (s *session) advertiseNeighbour(m mac, to, target netip.Addr) {
	flags := byte(0x80 | 0x40 | 0x20) // router, solicited, override
	if to.IsUnspecified() {
		to, m, flags = allNodes, allNodesMAC, 0x80|0x20
	}
	body := make([]byte, 0, 32)
	body = append(body, ndNeighbourAdvert, 0, 0, 0, flags, 0, 0, 0)
	body = append(body, target.AsSlice()...)
	body = append(body, 2, 1) // target link-layer address
	body = append(body, gatewayMAC[:]...)
	s.emitFrame(appendICMPv6(make([]byte, 0, 128), m, target, to, 255, body))
}

// advertise sends a router advertisement (RFC 4861, 4.2; RFC 8106 for DNS) to
// whoever asked, or to all nodes if that is nobody.
func (s *session) advertise(m mac, to netip.Addr) {
	if !to.IsLinkLocalUnicast() && !s.net6.Contains(to) {
		m, to = allNodesMAC, allNodes
	}
	const forever = 0xffffffff
	lifetime := uint32(routerLifetime / time.Second)
	b := make([]byte, 0, 512)
	b = append(b, ndRouterAdvert, 0, 0, 0, 64, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(lifetime))
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, 1, 1) // source link-layer address
	b = append(b, gatewayMAC[:]...)
	b = append(b, 5, 1, 0, 0) // MTU
	b = binary.BigEndian.AppendUint32(b, uint32(s.n.o.MTU))
	b = append(b, 3, 4, 64, 0x80|0x40) // prefix: on-link, autonomous
	b = binary.BigEndian.AppendUint32(b, forever)
	b = binary.BigEndian.AppendUint32(b, forever)
	b = append(b, 0, 0, 0, 0)
	b = append(b, s.net6.Addr().AsSlice()...)
	b = append(b, 25, 3, 0, 0) // RDNSS
	b = binary.BigEndian.AppendUint32(b, lifetime)
	b = append(b, s.dns6.AsSlice()...)
	if domains := appendDomains(nil, s.n.resolver.search(), 240); len(domains) > 0 {
		for len(domains)%8 != 0 {
			domains = append(domains, 0)
		}
		b = append(b, 31, byte(1+len(domains)/8), 0, 0) // DNSSL
		b = binary.BigEndian.AppendUint32(b, lifetime)
		b = append(b, domains...)
	}
	s.emitFrame(appendICMPv6(make([]byte, 0, 640), m, s.link6, to, 255, b))
}
