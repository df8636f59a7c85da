package usernet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

func TestARP(t *testing.T) {
	for _, tt := range []struct {
		name, target string
		answered     bool
	}{
		{"gateway", "10.0.2.2", true},
		{"DNS server", "10.0.2.3", true},
		{"the guest's probe for a duplicate", "10.0.2.15", false},
		{"nobody", "10.0.2.99", false},
		{"outside", "192.0.2.1", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDriver(t, newNetwork(t, Options{}), 0)
			target := netip.MustParseAddr(tt.target)
			d.send(arpRequest(target))
			if !tt.answered {
				assert.Empty(t, d.quiet())
				return
			}
			f := d.next(func([]byte) bool { return true })
			assert.Equal(t, testMAC[:], f[:6])
			assert.Equal(t, gatewayMAC[:], f[6:12])
			assert.Equal(t, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, f[12:22])
			assert.Equal(t, gatewayMAC[:], f[22:28])
			assert.Equal(t, target.AsSlice(), f[28:32])
			assert.Equal(t, testMAC[:], f[32:38])
		})
	}
}

// icmp6 is an ICMPv6 packet of the guest's in its frame.
func icmp6(src, dst string, hops byte, body ...byte) []byte {
	f := appendICMPv6(nil, gatewayMAC, netip.MustParseAddr(src), netip.MustParseAddr(dst), hops, body)
	copy(f[6:], testMAC[:])
	return f
}

func solicit(target string) []byte {
	return append([]byte{ndNeighbourSolicit, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
}

func routerSolicit() []byte { return []byte{ndRouterSolicit, 0, 0, 0, 0, 0, 0, 0} }

func is6(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) == etherIPv6 }

func checkICMPv6(t testing.TB, f []byte) []byte {
	t.Helper()
	src, dst := netip.AddrFrom16([16]byte(f[22:38])), netip.AddrFrom16([16]byte(f[38:54]))
	assert.Equal(t, byte(255), f[21], "hop limit")
	assert.Equal(t, len(f)-etherSize-ip6Size, int(binary.BigEndian.Uint16(f[18:])))
	b := f[etherSize+ip6Size:]
	assert.Equal(t, uint16(0xffff), checksum.Checksum(b, pseudoSum(src, dst, protoICMPv6, len(b))))
	return b
}

func TestNeighbourSolicitation(t *testing.T) {
	const own = "fe80::5054:ff:fe12:3456"
	for _, tt := range []struct {
		name, src, target string
		hops              byte
		answered          bool
	}{
		{"gateway", own, gateway6, 255, true},
		{"DNS server", own, "fd00:766f:6c65::3", 255, true},
		{"the gateway's link-local", own, "fe80::2", 255, true},
		{"a probe for the guest's own", "::", "fd00:766f:6c65::99", 255, false},
		{"a probe for the gateway's", "::", gateway6, 255, true},
		{"from behind a router", own, gateway6, 254, false},
		{"nobody", own, "fd00:766f:6c65::77", 255, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDriver(t, newNetwork(t, Options{}), 0)
			d.send(icmp6(tt.src, "ff02::1:ff00:2", tt.hops, solicit(tt.target)...))
			if !tt.answered {
				assert.Empty(t, d.quiet())
				return
			}
			f := d.next(is6)
			b := checkICMPv6(t, f)
			assert.Equal(t, byte(ndNeighbourAdvert), b[0])
			assert.Equal(t, netip.MustParseAddr(tt.target).AsSlice(), b[8:24])
			assert.Equal(t, append([]byte{2, 1}, gatewayMAC[:]...), b[24:32])
			if tt.src == "::" {
				assert.Equal(t, allNodesMAC[:], f[:6])
				assert.Zero(t, b[4]&0x40, "solicited")
			} else {
				assert.Equal(t, testMAC[:], f[:6])
				assert.NotZero(t, b[4]&0x40)
			}
		})
	}
}

func TestRouterAdvertisement(t *testing.T) {
	d := startDriver(t, newNetwork(t, Options{MTU: 1500}), 0)
	for _, tt := range []struct{ src, dst string }{
		{"fe80::5054:ff:fe12:3456", "fe80::5054:ff:fe12:3456"},
		{"::", "ff02::1"},
	} {
		d.send(icmp6(tt.src, "ff02::2", 255, routerSolicit()...))
		f := d.next(is6)
		b := checkICMPv6(t, f)
		assert.Equal(t, netip.MustParseAddr("fe80::2").AsSlice(), f[22:38])
		assert.Equal(t, netip.MustParseAddr(tt.dst).AsSlice(), f[38:54])
		assert.Equal(t, byte(ndRouterAdvert), b[0])
		assert.Equal(t, byte(0), b[5], "no DHCPv6")
		assert.Equal(t, uint16(9000), binary.BigEndian.Uint16(b[6:]))
		options := map[byte][]byte{}
		for o := b[16:]; len(o) > 0; o = o[8*int(o[1]):] {
			options[o[0]] = o[:8*int(o[1])]
		}
		assert.Equal(t, gatewayMAC[:], options[1][2:])
		assert.Equal(t, []byte{0, 0, 5, 0xdc}, options[5][4:])
		assert.Equal(t, []byte{3, 4, 64, 0xc0}, options[3][:4])
		assert.Equal(t, DefaultIPv6.Addr().AsSlice(), options[3][16:])
		assert.Equal(t, netip.MustParseAddr("fd00:766f:6c65::3").AsSlice(), options[25][8:])
		assert.True(t, bytes.HasPrefix(options[31][8:], []byte("\x07example\x04test\x00\x03lab\x07example\x04test\x00")))
	}
}

func TestNoIPv6(t *testing.T) {
	n := newNetwork(t, Options{NoIPv6: true})
	d := startDriver(t, n, 0)
	d.send(icmp6("::", "ff02::2", 255, routerSolicit()...))
	d.send(icmp6("fe80::1", "ff02::1:ff00:2", 255, solicit(gateway6)...))
	assert.Empty(t, d.quiet())
	assert.EqualValues(t, 2, n.Stats().FromGuestOdd)
}

// What the guest must not do to its network or to the outside's goes nowhere.
func TestOddFramesAreDropped(t *testing.T) {
	ip4 := func(src, dst string, change ...func([]byte)) []byte {
		f := appendUDP4(nil, gatewayMAC, netip.AddrPortFrom(netip.MustParseAddr(src), 1000), netip.AddrPortFrom(netip.MustParseAddr(dst), 2000), []byte("hello"))
		copy(f[6:], testMAC[:])
		for _, c := range change {
			c(f)
		}
		return f
	}
	const guest = "10.0.2.15"
	echo := []byte{128, 0, 0, 0, 0, 1, 0, 1}
	for name, f := range map[string][]byte{
		"another's address":              ip4("192.0.2.1", "192.0.2.2"),
		"the gateway's address":          ip4(gateway4, "192.0.2.2"),
		"the network's address":          ip4("10.0.2.0", "192.0.2.2"),
		"the broadcast's address":        ip4("10.0.2.255", "192.0.2.2"),
		"no address":                     ip4("0.0.0.0", "192.0.2.2"),
		"to a loopback address":          ip4(guest, "127.0.0.1"),
		"to nowhere":                     ip4(guest, "0.0.0.0"),
		"to a multicast group":           ip4(guest, "224.0.0.251"),
		"to the network's broadcast":     ip4(guest, "10.0.2.255"),
		"to everyone":                    ip4(guest, "255.255.255.255"),
		"to a reserved address":          ip4(guest, "240.0.0.1"),
		"version 5":                      ip4(guest, "192.0.2.2", func(f []byte) { f[14] = 0x55 }),
		"header of 16 bytes":             ip4(guest, "192.0.2.2", func(f []byte) { f[14] = 0x44 }),
		"longer than the frame":          ip4(guest, "192.0.2.2", func(f []byte) { f[16] = 1 }),
		"shorter than its header":        ip4(guest, "192.0.2.2", func(f []byte) { f[17] = 10 }),
		"for another station":            ip4(guest, "192.0.2.2", func(f []byte) { f[0] = 0x52 }),
		"from a group":                   ip4(guest, "192.0.2.2", func(f []byte) { f[6] |= 1 }),
		"from the gateway's station":     ip4(guest, "192.0.2.2", func(f []byte) { copy(f[6:], gatewayMAC[:]) }),
		"a VLAN":                         ip4(guest, "192.0.2.2", func(f []byte) { f[12], f[13] = 0x81, 0 }),
		"IPv6 of another network":        icmp6("2001:db8::1", "2001:db8::2", 64, echo...),
		"IPv6 of the gateway":            icmp6(gateway6, "2001:db8::2", 64, echo...),
		"IPv6 link-local to the outside": icmp6("fe80::99", "2001:db8::2", 64, echo...),
		"IPv6 to a link-local station":   icmp6("fd00:766f:6c65::99", "fe80::99", 64, echo...),
		"IPv6 to a group":                icmp6("fd00:766f:6c65::99", "ff02::fb", 64, echo...),
		"IPv6 to the loopback address":   icmp6("fd00:766f:6c65::99", "::1", 64, echo...),
		"IPv6 to a mapped IPv4 address":  icmp6("fd00:766f:6c65::99", "::ffff:127.0.0.1", 64, echo...),
		"another router":                 icmp6("fe80::99", "ff02::1", 255, ndRouterAdvert, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		"a redirect":                     icmp6("fe80::99", "ff02::1", 255, append([]byte{ndRedirect, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 32)...)...),
		"a bare header":                  append(append([]byte{}, gatewayMAC[:]...), append(testMAC[:], 8, 0)...),
		"too short":                      {1, 2, 3},
		"too long":                       make([]byte, etherSize+maxPacket+1),
		"empty":                          {},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t, Options{Policy: func(d Destination) error {
				assert.Fail(t, "the policy was asked", "%v", d)
				return ErrDenied
			}})
			d := startDriver(t, n, 0)
			d.send(f)
			assert.Empty(t, d.quiet())
			assert.EqualValues(t, 1, n.Stats().FromGuestOdd)
		})
	}
}

func TestOnlyTheGuestsStation(t *testing.T) {
	n := newNetwork(t, Options{MAC: testMAC[:]})
	d := startDriver(t, n, 0)
	f := arpRequest(netip.MustParseAddr(gateway4))
	f[11]++ // another station's
	d.send(f)
	assert.Empty(t, d.quiet())
	assert.EqualValues(t, 1, n.Stats().FromGuestOdd)
}
