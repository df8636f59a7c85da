package usernet

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// dhcpQuery is a client's message in its frame; options follow the type.
func dhcpQuery(kind byte, client netip.Addr, options ...byte) []byte {
	b := make([]byte, dhcpHead)
	b[0], b[1], b[2] = 1, 1, 6
	copy(b[4:], "xid!")
	copy(b[12:], client.AsSlice())
	copy(b[28:], testMAC[:])
	copy(b[236:], dhcpCookie[:])
	b = append(b, optType, 1, kind)
	b = append(append(b, options...), optEnd)
	src, dst := netip.IPv4Unspecified(), limitedBroadcast
	if !client.IsUnspecified() {
		src, dst = client, netip.MustParseAddr(gateway4)
	}
	f := appendUDP4(nil, broadcastMAC, netip.AddrPortFrom(src, dhcpClientPort), netip.AddrPortFrom(dst, dhcpServerPort), b)
	copy(f[6:], testMAC[:])
	return f
}

// dhcpReply is the options of an answer, its type among them, and its addresses.
type dhcpReply struct {
	yours   netip.Addr
	to      netip.Addr
	mac     mac
	options map[byte][]byte
}

func (d *driver) dhcpReply() dhcpReply {
	d.t.Helper()
	f := d.next(func(f []byte) bool {
		return binary.BigEndian.Uint16(f[12:]) == etherIPv4 && f[etherSize+9] == protoUDP
	})
	ip := f[etherSize:]
	assert.Equal(d.t, uint16(0xffff), checksum.Checksum(ip[:ip4Size], 0), "IPv4 checksum")
	src, dst := netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	assert.Equal(d.t, uint16(0xffff), checksum.Checksum(ip[ip4Size:], pseudoSum(src, dst, protoUDP, len(ip)-ip4Size)), "UDP checksum")
	assert.Equal(d.t, gateway4, src.String())
	b := ip[ip4Size+udpSize:]
	require.Equal(d.t, "xid!", string(b[4:8]))
	r := dhcpReply{yours: netip.AddrFrom4([4]byte(b[16:])), to: dst, mac: mac(f), options: map[byte][]byte{}}
	for o := b[dhcpHead:]; o[0] != optEnd; o = o[2+int(o[1]):] {
		r.options[o[0]] = o[2 : 2+int(o[1])]
	}
	return r
}

func TestDHCP(t *testing.T) {
	none := netip.IPv4Unspecified()
	guest := netip.MustParseAddr("10.0.2.15")
	ask := func(a string) []byte {
		return append([]byte{optRequestedIP, 4}, netip.MustParseAddr(a).AsSlice()...)
	}
	server := func(a string) []byte {
		return append([]byte{optServer, 4}, netip.MustParseAddr(a).AsSlice()...)
	}
	for _, tt := range []struct {
		name  string
		query []byte
		kind  byte // 0: no answer
		yours string
		to    string
	}{
		{"discover", dhcpQuery(dhcpDiscover, none), dhcpOffer, "10.0.2.15", "10.0.2.15"},
		{"discover another", dhcpQuery(dhcpDiscover, none, ask("10.0.2.77")...), dhcpOffer, "10.0.2.15", "10.0.2.15"},
		{"request", dhcpQuery(dhcpRequest, none, append(ask("10.0.2.15"), server(gateway4)...)...), dhcpAck, "10.0.2.15", "10.0.2.15"},
		{"request of another server's", dhcpQuery(dhcpRequest, none, append(ask("10.0.2.15"), server("10.0.2.9")...)...), 0, "", ""},
		{"after a reboot", dhcpQuery(dhcpRequest, none, ask("10.0.2.15")...), dhcpAck, "10.0.2.15", "10.0.2.15"},
		{"after a reboot, from another network", dhcpQuery(dhcpRequest, none, ask("192.168.1.5")...), dhcpNak, "0.0.0.0", "255.255.255.255"},
		{"renewal", dhcpQuery(dhcpRequest, guest), dhcpAck, "10.0.2.15", "10.0.2.15"},
		{"renewal of another", dhcpQuery(dhcpRequest, netip.MustParseAddr("10.0.2.16")), dhcpNak, "0.0.0.0", "255.255.255.255"},
		{"inform", dhcpQuery(dhcpInform, netip.MustParseAddr("10.0.2.20")), dhcpAck, "0.0.0.0", "10.0.2.20"},
		{"release", dhcpQuery(dhcpRelease, guest, server(gateway4)...), 0, "", ""},
		{"decline", dhcpQuery(dhcpDecline, none, ask("10.0.2.15")...), 0, "", ""},
		{"an unknown type", dhcpQuery(99, none), 0, "", ""},
		{"option cut short", dhcpQuery(dhcpDiscover, none, optHostname, 200, 'x'), 0, "", ""},
		{"address of three bytes", dhcpQuery(dhcpDiscover, none, optRequestedIP, 3, 1, 2, 3), 0, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := startDriver(t, newNetwork(t, Options{}), 0)
			d.send(tt.query)
			if tt.kind == 0 {
				assert.Empty(t, d.quiet())
				return
			}
			r := d.dhcpReply()
			assert.Equal(t, []byte{tt.kind}, r.options[optType])
			assert.Equal(t, tt.yours, r.yours.String())
			assert.Equal(t, tt.to, r.to.String())
			if r.to == limitedBroadcast {
				assert.Equal(t, broadcastMAC, r.mac)
			} else {
				assert.Equal(t, testMAC, r.mac)
			}
			_, lease := r.options[optLease]
			assert.Equal(t, tt.kind != dhcpNak && tt.yours != "0.0.0.0", lease)
		})
	}
}

func TestDHCPOptions(t *testing.T) {
	d := startDriver(t, newNetwork(t, Options{MTU: 9000, Hostname: "vole"}), 0)
	d.send(dhcpQuery(dhcpDiscover, netip.IPv4Unspecified(),
		optParameters, 6, optMTU, optHostname, optDomain, optDomainSearch, optMTU, 200,
		optClientID, 3, 'i', 'd', '!'))
	r := d.dhcpReply()
	assert.Equal(t, []byte{255, 255, 255, 0}, r.options[optMask])
	assert.Equal(t, []byte{10, 0, 2, 2}, r.options[optRouter])
	assert.Equal(t, []byte{10, 0, 2, 3}, r.options[optDNS])
	assert.Equal(t, []byte{10, 0, 2, 2}, r.options[optServer])
	assert.Equal(t, []byte{10, 0, 2, 255}, r.options[optBroadcast])
	assert.Equal(t, []byte{0x23, 0x28}, r.options[optMTU])
	assert.Equal(t, "vole", string(r.options[optHostname]))
	assert.Equal(t, "example.test", string(r.options[optDomain]))
	assert.Equal(t, "\x07example\x04test\x00\x03lab\x07example\x04test\x00", string(r.options[optDomainSearch]))
	assert.Equal(t, "id!", string(r.options[optClientID]))
	assert.NotContains(t, r.options, byte(200))

	d.send(dhcpQuery(dhcpDiscover, netip.IPv4Unspecified()))
	r = d.dhcpReply()
	assert.NotContains(t, r.options, byte(optHostname), "what was not asked for")
	assert.Contains(t, r.options, byte(optDNS))
}

func FuzzDHCP(f *testing.F) {
	f.Add(dhcpQuery(dhcpDiscover, netip.IPv4Unspecified(), optParameters, 2, optMTU, optHostname)[etherSize+ip4Size+udpSize:])
	f.Add(dhcpQuery(dhcpRequest, netip.MustParseAddr("10.0.2.15"), optMaxSize, 2, 0, 1)[etherSize+ip4Size+udpSize:])
	n := newNetwork(f, Options{Hostname: "vole"})
	s, err := newSession(n, 0)
	require.NoError(f, err)
	f.Cleanup(s.stop)
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := parseDHCP(b); ok {
			s.answerDHCP(testMAC, &m, dhcpAck)
			p := s.egress[0].take()
			require.NotNil(t, p)
			assert.LessOrEqual(t, p.Size(), etherSize+MinMTU)
			p.DecRef()
		}
	})
}
