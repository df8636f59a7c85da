package usernet

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// echoRequest is a ping of the guest's, in its frame.
func echoRequest(dst netip.Addr, id uint16, payload []byte) []byte {
	body := append([]byte{8, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}, payload...)
	if dst.Is6() {
		body[0] = 128
		return icmp6("fd00:766f:6c65::99", dst.String(), 64, body...)
	}
	binary.BigEndian.PutUint16(body[2:], ^checksum.Checksum(body, 0))
	f := appendEther(nil, gatewayMAC, etherIPv4)
	copy(f[6:], testMAC[:])
	f = appendIPv4(f, netip.MustParseAddr("10.0.2.15"), dst, protoICMP, len(body))
	return append(f, body...)
}

func isICMP(f []byte) bool {
	if is6(f) {
		return f[etherSize+6] == protoICMPv6
	}
	return binary.BigEndian.Uint16(f[12:]) == etherIPv4 && f[etherSize+9] == protoICMP
}

func TestPingTheGateway(t *testing.T) {
	for _, to := range []string{gateway4, "10.0.2.3", gateway6} {
		d := startDriver(t, newNetwork(t, Options{Policy: DenyOutside}), 0)
		dst := netip.MustParseAddr(to)
		d.send(echoRequest(dst, 7, []byte("hello")))
		f := d.next(isICMP)
		assert.Equal(t, "hello", string(f[len(f)-5:]), to)
		assert.Equal(t, []byte{0, 7}, f[len(f)-9:len(f)-7])
	}
}

// The host's own addresses stand for the outside. They need the host's leave.
func TestPingOutside(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "::1"} {
		t.Run(a, func(t *testing.T) {
			dst := netip.MustParseAddr(a)
			file, err := pingSocket(dst)
			if err != nil {
				t.Skipf("this host forbids unprivileged pings: %v (sysctl net.ipv4.ping_group_range)", err)
			}
			require.NoError(t, file.Close())
			n := newNetwork(t, Options{})
			s, err := newSession(n, 0)
			require.NoError(t, err)
			defer s.stop()
			guest := netip.AddrPortFrom(n.guest4, 77)
			if dst.Is6() {
				guest = netip.AddrPortFrom(guestIP6, 77)
			}
			f, fresh := s.udp.add(flowKey{ICMP, guest, netip.AddrPortFrom(dst, 0)})
			require.True(t, fresh)
			require.True(t, s.begin(func() { s.servePing(f) }))
			kind := byte(8)
			if dst.Is6() {
				kind = 128
			}
			require.NoError(t, f.send([]byte{kind, 0, 0, 0, 0, 77, 0, 1, 'h', 'i'}))
			assert.Eventually(t, func() bool { return !s.egress[0].idle() }, patience, time.Millisecond)
			p := s.egress[0].take()
			defer p.DecRef()
			b := p.ToView().AsSlice()
			assert.Equal(t, "\x00\x4d\x00\x01hi", string(b[len(b)-6:]))
		})
	}
}

func TestPingThatIsNotAllowed(t *testing.T) {
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		t.Run(to, func(t *testing.T) {
			asked := make(chan Destination, 1)
			d := startDriver(t, newNetwork(t, Options{Policy: func(d Destination) error { asked <- d; return ErrDenied }}), 0)
			dst := netip.MustParseAddr(to)
			d.send(echoRequest(dst, 7, []byte("hello")))
			assert.Equal(t, Destination{Protocol: ICMP, Addr: dst}, <-asked)
			f := d.next(isICMP)
			if dst.Is6() {
				b := f[etherSize+ip6Size:]
				assert.Equal(t, []byte{1, prohibited.v6}, b[:2])
				assert.Equal(t, dst.AsSlice(), b[8+24:8+40])
				assert.Equal(t, []byte{128, 0, 0, 0, 0, 7}, b[8+40:8+46])
				return
			}
			b := f[etherSize+ip4Size:]
			assert.Equal(t, uint16(0xffff), checksum.Checksum(b, 0))
			assert.Equal(t, []byte{3, prohibited.v4}, b[:2])
			assert.Equal(t, dst.AsSlice(), b[8+16:8+20])
			assert.Equal(t, []byte{8, 0, 0, 0, 0, 7}, b[8+20:8+26])
		})
	}
}
