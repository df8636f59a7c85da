package usernet

import (
	"encoding/binary"
	"net/netip"
)

const arpSize = 28

// What begins a packet: Ethernet, IPv4, the sizes of their addresses, and the operation.
const (
	arpRequestHead = 0x0001_0800_06_04_0001
	arpReplyHead   = 0x0001_0800_06_04_0002
)

// arp answers a request (RFC 826) for an address of the network's own, and
// learns from any that the guest sends. The guest's own address is nobody
// else's, so that its probe for a duplicate (RFC 5227) goes unanswered.
func (s *session) arp(src mac, b []byte) bool {
	if len(b) < arpSize || binary.BigEndian.Uint64(b) != arpRequestHead && binary.BigEndian.Uint64(b) != arpReplyHead {
		return false
	}
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if mac(b[8:14]) != src || s.own(sender) {
		return false
	}
	if s.net4.Contains(sender) {
		s.learn(sender, src)
	} else if !sender.IsUnspecified() {
		return false
	}
	if b[7] != 1 || !s.own(target) {
		return true
	}
	var buf [etherSize + arpSize]byte
	f := appendEther(buf[:0], src, etherARP)
	f = binary.BigEndian.AppendUint64(f, arpReplyHead)
	f = append(f, gatewayMAC[:]...)
	f = append(f, target.AsSlice()...)
	f = append(f, src[:]...)
	f = append(f, sender.AsSlice()...)
	s.emitFrame(f)
	return true
}
