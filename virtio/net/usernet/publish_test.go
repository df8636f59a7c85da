package usernet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var outsider = netip.MustParseAddrPort("192.0.2.7:5000")

// visit has a peer with the given address connect to a published port, as if it came from
// there, and returns the peer's end.
func visit(t *testing.T, n *Network, p *publication, from netip.AddrPort) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { peer.Close() })
	c, err := l.Accept()
	require.NoError(t, err)
	s := n.current.Load()
	require.True(t, s.beginIn(p, c.(*net.TCPConn), from))
	return peer
}

// syns watches the guest's card, which drops what is not from the gateway if onlyGateway
// is set, for who opens connections.
func syns(g *guest, onlyGateway bool) <-chan netip.Addr {
	from := make(chan netip.Addr, 100)
	takes := func(f []byte) bool {
		if binary.BigEndian.Uint16(f[12:]) != etherIPv4 {
			return true
		}
		src := netip.AddrFrom4([4]byte(f[26:30]))
		if f[23] == protoTCP && header.TCPFlags(f[47]) == header.TCPFlagSyn {
			from <- src
		}
		return !onlyGateway || src == g.n.gateway4
	}
	g.link.takes.Store(&takes)
	return from
}

// A guest that can't answer a peer's own address is reached from the gateway's, before the
// peer has given up, and at once the next time. Its flows of UDP follow.
func TestPublishFallsBackToTheGatewaysAddress(t *testing.T) {
	n := newNetwork(t, Options{})
	require.NoError(t, n.Publish(Rule{GuestPort: 80}))
	require.NoError(t, n.Publish(Rule{Protocol: UDP, GuestPort: 53}))
	p, udp := n.ports[0], n.ports[1]
	g := startGuest(t, n, allOffloads)
	echoes(t, g.listen(n.guest4, 80))
	from := syns(g, true)
	s := n.current.Load()
	f := s.flowIn(udp, outsider)
	require.NotNil(t, f)
	assert.Equal(t, outsider, f.key.peer)

	start := time.Now()
	talk(t, visit(t, n, p, outsider), "hello")
	assert.Less(t, time.Since(start), publishTimeout, "what the peer may wait in all")
	assert.Equal(t, outsider.Addr(), <-from)
	last := netip.Addr{}
	for len(from) > 0 {
		last = <-from
	}
	assert.Equal(t, n.gateway4, last)
	f = s.flowIn(udp, outsider)
	require.NotNil(t, f)
	assert.Equal(t, netip.AddrPortFrom(n.gateway4, outsider.Port()), f.key.peer)

	talk(t, visit(t, n, p, outsider), "hello again")
	for len(from) > 0 {
		assert.Equal(t, n.gateway4, <-from, "at once")
	}

	// After a while the peer's own address is tried again.
	s.unanswered.mu.Lock()
	s.unanswered.by[p] = time.Now().Add(-gatewayTime)
	s.unanswered.mu.Unlock()
	from = syns(g, false)
	talk(t, visit(t, n, p, outsider), "hello once more")
	assert.Equal(t, outsider.Addr(), <-from)
	assert.Empty(t, from)
	f = s.flowIn(udp, outsider)
	require.NotNil(t, f)
	assert.Equal(t, outsider, f.key.peer)
}

// A guest that is only late, as one that boots, says nothing about the peer's address; nor
// does one that refuses.
func TestPublishKeepsThePeersAddress(t *testing.T) {
	n := newNetwork(t, Options{})
	require.NoError(t, n.Publish(Rule{GuestPort: 80}))
	p := n.ports[0]
	t.Run("late", func(t *testing.T) {
		d := startDriver(t, n, 0)
		s := n.current.Load()
		s.answerTime = 10 * time.Millisecond
		visit(t, n, p, outsider)
		for range 4 { // of which each is ten times the patience after the other
			f := d.next(func([]byte) bool { return true })
			require.Equal(t, uint16(etherARP), binary.BigEndian.Uint16(f[12:]))
		}
		d.send(arpReply(n.guest4))
		d.send(arpRequest(n.gateway4)) // answered behind what has waited
		var from []netip.Addr
		d.next(func(f []byte) bool {
			if binary.BigEndian.Uint16(f[12:]) == etherIPv4 {
				from = append(from, netip.AddrFrom4([4]byte(f[26:30])))
			}
			return f[13] == etherARP&0xff && f[21] == 2
		})
		assert.Contains(t, from, outsider.Addr())
		assert.NotContains(t, from, n.gateway4)
		n.Stop()
	})
	t.Run("refused", func(t *testing.T) {
		g := startGuest(t, n, allOffloads)
		from := syns(g, false)
		_, err := visit(t, n, p, outsider).Read(make([]byte, 1))
		require.Error(t, err)
		assert.Equal(t, outsider.Addr(), <-from)
		assert.Empty(t, from)
		assert.False(t, n.current.Load().unanswered.any())
	})
}
