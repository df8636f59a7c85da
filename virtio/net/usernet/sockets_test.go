package usernet

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Guests have no more of the host's sockets than a share of what the process may have, in
// all networks together; what needs one more is refused, and has its place when one is
// free. TCP leaves room for datagrams.
func TestSocketsAreBoundedAcrossNetworks(t *testing.T) {
	const most = 8
	a, b := newNetwork(t, Options{HostLoopback: true}), newNetwork(t, Options{HostLoopback: true})
	a.sockets, b.sockets = most, most
	port := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) { _, _ = c.Read(make([]byte, 1)) })
	echo, _ := echoUDP(t, "udp4", "127.0.0.1:0")
	ga, gb := startGuest(t, a, 0), startGuest(t, b, 0)
	var conns []net.Conn
	for i := range most - most/4 {
		conns = append(conns, []*guest{ga, gb}[i%2].mustDial(via(gateway4, port)))
	}
	refused := func(g *guest) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := g.dial(ctx, via(gateway4, port))
		require.ErrorContains(t, err, "refused")
	}
	refused(ga)
	refused(gb)
	assert.EqualValues(t, 1, a.Stats().Full)

	require.NoError(t, a.Publish(Rule{GuestPort: 80}))
	r := a.Published()[0]
	out, err := net.Dial("tcp", netip.AddrPortFrom(r.Addr, r.Port).String())
	if err == nil {
		defer out.Close()
		_, err = out.Read(make([]byte, 1))
	}
	assert.ErrorIs(t, err, unix.ECONNRESET)

	for i := range most / 4 {
		c := []*guest{ga, gb}[i%2].dialUDP(via(gateway4, echo))
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		require.NoError(t, err)
	}
	assert.EqualValues(t, most, sockets.Load())
	c := ga.dialUDP(via(gateway4, echo))
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	assert.Eventually(t, func() bool { return a.Stats().Full == 3 }, patience, time.Millisecond)
	assert.EqualValues(t, most, sockets.Load())

	ga.shutdown()
	assert.LessOrEqual(t, sockets.Load(), int64(most/2))
	c2 := gb.mustDial(via(gateway4, port))
	c2.Close()
	for _, c := range conns {
		c.Close()
	}
	gb.shutdown()
	assert.Eventually(t, func() bool { return sockets.Load() == 0 }, patience, time.Millisecond)
}

// A low RLIMIT_NOFILE lowers how many flows of UDP are kept: the one idle longest makes
// room where it would otherwise be a new one that is refused.
func TestUDPFlowsFollowTheLimitOfDescriptors(t *testing.T) {
	n := newNetwork(t, Options{})
	var r unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &r))
	assert.EqualValues(t, max(minSockets, min(r.Cur, 1<<30)/4), n.sockets)
	assert.Equal(t, min(DefaultMaxUDP, int(n.sockets/2)), n.o.MaxUDP)

	low := r
	low.Cur = 512
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &r)) }()
	n = newNetwork(t, Options{})
	assert.EqualValues(t, 128, n.sockets)
	assert.Equal(t, 64, n.o.MaxUDP)
	n = newNetwork(t, Options{MaxUDP: 10})
	assert.Equal(t, 10, n.o.MaxUDP)
}
