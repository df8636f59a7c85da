package usernet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

func echoes(t testing.TB, l net.Listener) {
	t.Helper()
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
}

// talk says something and expects to hear it again, to the end.
func talk(t testing.TB, c net.Conn, what string) {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	_, err := c.Write([]byte(what))
	require.NoError(t, err)
	require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, what, string(b))
}

func TestDial(t *testing.T) {
	n := newNetwork(t, Options{Hostname: "box", Policy: DenyOutside})
	g := startGuest(t, n, allOffloads)
	echoes(t, g.listen(n.guest4, 80))
	echoes(t, g.listen(guestIP6, 80))
	for _, tt := range []struct{ network, address, local string }{
		{"tcp", "guest:80", gateway4},
		{"tcp4", "Guest.vole.internal:80", gateway4},
		{"tcp6", "guest:80", gateway6},
		{"tcp", "box:80", gateway4},
		{"tcp", "10.0.2.15:80", gateway4},
		{"tcp", "[fd00:766f:6c65::5054:ff]:80", gateway6},
	} {
		t.Run(tt.network+" "+tt.address, func(t *testing.T) {
			c, err := n.Dial(t.Context(), tt.network, tt.address)
			require.NoError(t, err)
			defer c.Close()
			assert.Equal(t, tt.local, c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().String())
			talk(t, c, "hello")
		})
	}
	assert.Eventually(t, func() bool { return n.current.Load().tcpFlows.Load() == 0 }, patience, time.Millisecond)
}

// A program's end of a connection is a net.Conn: its reads come in any size, and
// its deadlines hold and move.
func TestConnReadsAndDeadlines(t *testing.T) {
	n := newNetwork(t, Options{})
	g := startGuest(t, n, allOffloads)
	l := g.listen(n.guest4, 80)
	guests := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		guests <- c
	}()
	c, err := n.Dial(t.Context(), "tcp", "guest:80")
	require.NoError(t, err)
	peer := <-guests
	defer peer.Close()

	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	assert.True(t, timeout.Timeout())
	require.NoError(t, c.SetDeadline(time.Time{}))
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	require.NoError(t, c.SetDeadline(time.Now().Add(-time.Second)))
	assert.ErrorIs(t, <-ended, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))

	const size = 4 << 20
	go func() {
		_, _ = io.Copy(peer, noise(3, size))
		_ = peer.(interface{ CloseWrite() error }).CloseWrite()
	}()
	want, _ := sumOf(noise(3, size))
	got, err := sumOf(odd{c})
	require.NoError(t, err)
	assert.Equal(t, want, got)

	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	assert.ErrorIs(t, <-ended, io.EOF)
	require.NoError(t, c.Close())
	assert.ErrorIs(t, c.Close(), net.ErrClosed)
	_, err = c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, net.ErrClosed)
}

// odd reads a few bytes at a time, never as many as the last time.
type odd struct{ io.Reader }

func (o odd) Read(b []byte) (int, error) {
	return o.Reader.Read(b[:min(len(b), 1+int(time.Now().UnixNano()%5003))])
}

func TestDialUDP(t *testing.T) {
	n := newNetwork(t, Options{})
	g := startGuest(t, n, allOffloads)
	at := fullAddr(netip.AddrPortFrom(n.guest4, 99))
	server, err := gonet.DialUDP(g.stack, &at, nil, netProto(n.guest4))
	require.NoError(t, err)
	defer server.Close()
	c, err := n.Dial(t.Context(), "udp", "guest:99")
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	_, err = c.Write([]byte("ping"))
	require.NoError(t, err)
	buf := make([]byte, 10)
	k, peer, err := server.ReadFrom(buf)
	require.NoError(t, err)
	assert.Equal(t, "ping", string(buf[:k]))
	_, err = server.WriteTo([]byte("pong"), peer)
	require.NoError(t, err)
	k, err = c.Read(buf)
	require.NoError(t, err)
	assert.Equal(t, "pong", string(buf[:k]))
}

func TestDialErrors(t *testing.T) {
	n := newNetwork(t, Options{})
	_, err := n.Dial(t.Context(), "tcp", "guest:80")
	assert.ErrorIs(t, err, ErrNoGuest)
	g := startGuest(t, n, allOffloads)
	_, err = n.Dial(t.Context(), "tcp", "guest:81")
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)
	for _, tt := range []struct{ network, address, says string }{
		{"tcp", "guest", "missing port"},
		{"tcp", "guest:http", "not a port"},
		{"tcp", "guest:0", "not a port"},
		{"unix", "guest:80", "unknown network"},
		{"tcp6", "10.0.2.15:80", "other family"},
		{"tcp", "192.0.2.1:80", "not an address in the guest's network"},
		{"tcp", "10.0.2.2:80", "not an address in the guest's network"},
		{"tcp", "example.org:80", "not the guest"},
	} {
		_, err := n.Dial(t.Context(), tt.network, tt.address)
		assert.ErrorContains(t, err, tt.says)
	}
	g.shutdown()
	_, err = n.Dial(t.Context(), "tcp", "guest:80")
	assert.ErrorIs(t, err, ErrNoGuest)
}

// A guest that does not answer holds nobody beyond its context, and leaves no
// slot taken.
func TestDialGivesUp(t *testing.T) {
	n := newNetwork(t, Options{})
	startDriver(t, n, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := n.Dial(ctx, "tcp", "guest:80")
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.EqualValues(t, 0, n.current.Load().tcpFlows.Load())

	done := make(chan error)
	go func() {
		_, err := n.Dial(context.Background(), "tcp", "guest:80")
		done <- err
	}()
	assert.Eventually(t, func() bool { return n.current.Load().tcpFlows.Load() == 1 }, patience, time.Millisecond)
	n.Stop()
	assert.ErrorIs(t, <-done, ErrNoGuest)
}

func TestListen(t *testing.T) {
	n := newNetwork(t, Options{Policy: DenyOutside})
	l, err := n.Listen("tcp", ":80")
	require.NoError(t, err)
	echoes(t, l)
	far, err := n.Listen("tcp", "192.0.2.80:443")
	require.NoError(t, err)
	echoes(t, far)
	only6, err := n.Listen("tcp6", "gateway:81")
	require.NoError(t, err)
	echoes(t, only6)
	free, err := n.Listen("tcp", "gateway:0")
	require.NoError(t, err)
	echoes(t, free)
	for range 2 { // listeners live across resets
		g := startGuest(t, n, allOffloads)
		for _, to := range []string{"10.0.2.2:80", "[fd00:766f:6c65::2]:80", "192.0.2.80:443", "[fd00:766f:6c65::2]:81", free.Addr().String()} {
			c := g.mustDial(to)
			talk(t, c, to)
			c.Close()
		}
		for _, to := range []string{"10.0.2.2:81", "10.0.2.2:443", "192.0.2.81:443"} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			_, err := g.dial(ctx, to)
			assert.ErrorContains(t, err, "refused")
			cancel()
		}
		g.shutdown()
	}
	_, err = n.Listen("tcp", "gateway:80")
	assert.ErrorIs(t, err, syscall.EADDRINUSE)
	require.NoError(t, l.Close())
	assert.ErrorIs(t, l.Close(), net.ErrClosed)
	_, err = l.Accept()
	assert.ErrorIs(t, err, net.ErrClosed)
	l, err = n.Listen("tcp", "gateway:80")
	require.NoError(t, err)
	require.NoError(t, n.Close())
	_, err = l.Accept()
	assert.ErrorIs(t, err, net.ErrClosed)
	_, err = n.Listen("tcp", ":80")
	assert.ErrorIs(t, err, ErrClosed)
}

func TestListenErrors(t *testing.T) {
	n := newNetwork(t, Options{NoIPv6: true})
	for _, tt := range []struct{ network, address, says string }{
		{"udp", ":80", "unknown network"},
		{"tcp", "80", "missing port"},
		{"tcp", ":x", "not a port"},
		{"tcp", "example.org:80", "not an IP address"},
		{"tcp6", ":80", "cannot assign"},
		{"tcp", "10.0.2.15:80", "cannot assign"},
		{"tcp", "10.0.2.3:53", "in use"},
	} {
		_, err := n.Listen(tt.network, tt.address)
		assert.ErrorContains(t, err, tt.says, tt.address)
	}
}

// What nobody accepts is bounded, refused beyond that, and reset in the end.
func TestListenBacklog(t *testing.T) {
	n := newNetwork(t, Options{})
	l, err := n.Listen("tcp", ":80")
	require.NoError(t, err)
	g := startGuest(t, n, allOffloads)
	var conns []net.Conn
	for range backlog {
		conns = append(conns, g.mustDial("10.0.2.2:80"))
	}
	_, err = g.dial(t.Context(), "10.0.2.2:80")
	require.ErrorContains(t, err, "refused")
	require.NoError(t, l.Close())
	for _, c := range conns {
		_, err := c.Read(make([]byte, 1))
		assert.Error(t, err)
		assert.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		c.Close()
	}
	assert.Eventually(t, func() bool { return n.current.Load().tcpFlows.Load() == 0 }, patience, time.Millisecond)
}

func TestPublishTCP(t *testing.T) {
	n := newNetwork(t, Options{})
	require.NoError(t, n.Publish(Rule{GuestPort: 80}))
	require.NoError(t, n.Publish(Rule{GuestPort: 80, Addr: netip.IPv6Loopback()}))
	rules := n.Published()
	require.Len(t, rules, 2)
	assert.NotZero(t, rules[0].Port)
	at := netip.AddrPortFrom(rules[0].Addr, rules[0].Port).String()

	isReset := func() { // by the time that connect returns, or after it
		c, err := net.Dial("tcp", at)
		if err == nil {
			defer c.Close()
			_, err = c.Read(make([]byte, 1))
		}
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	}
	isReset() // no guest
	for range 2 {
		g := startGuest(t, n, allOffloads)
		isReset() // nobody listens
		echoes(t, g.listen(n.guest4, 80))
		for _, r := range rules {
			c, err := net.Dial("tcp", netip.AddrPortFrom(r.Addr, r.Port).String())
			require.NoError(t, err)
			talk(t, c, "hello")
			c.Close()
		}
		g.shutdown()
	}
	require.NoError(t, n.Close())
	_, err := net.Dial("tcp", at)
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestPublishUDP(t *testing.T) {
	n := newNetwork(t, Options{})
	require.NoError(t, n.Publish(Rule{Protocol: UDP, GuestPort: 99}))
	r := n.Published()[0]
	g := startGuest(t, n, allOffloads)
	at := fullAddr(netip.AddrPortFrom(n.guest4, 99))
	server, err := gonet.DialUDP(g.stack, &at, nil, netProto(n.guest4))
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			k, peer, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:k], peer)
		}
	}()
	defer func() { server.Close(); <-done }()
	for i := range 3 {
		c, err := net.Dial("udp", netip.AddrPortFrom(r.Addr, r.Port).String())
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		for range 3 {
			_, err = c.Write([]byte{byte(i), 1, 2})
			require.NoError(t, err)
			buf := make([]byte, 10)
			k, err := c.Read(buf)
			require.NoError(t, err)
			assert.Equal(t, []byte{byte(i), 1, 2}, buf[:k])
		}
	}
	assert.EqualValues(t, 3, n.Stats().UDP)
}

func TestPublishErrors(t *testing.T) {
	n := newNetwork(t, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	used := l.Addr().(*net.TCPAddr).AddrPort().Port()
	for _, tt := range []struct {
		name string
		r    Rule
		is   error
		says string
	}{
		{"in use", Rule{Port: used, GuestPort: 80}, syscall.EADDRINUSE, "in use"},
		{"not this host's", Rule{Addr: netip.MustParseAddr("192.0.2.200"), GuestPort: 80}, syscall.EADDRNOTAVAIL, "no such address"},
		{"no port of the guest's", Rule{Port: 80}, ErrRule, "guest's port"},
		{"a protocol without ports", Rule{Protocol: ICMP, GuestPort: 1}, ErrRule, "tcp or udp"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := n.Publish(tt.r)
			assert.ErrorIs(t, err, tt.is)
			assert.ErrorContains(t, err, tt.says)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	t.Run("privileged", func(t *testing.T) {
		b, _ := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
		if os.Geteuid() == 0 || len(b) > 0 && b[0] == '0' {
			t.Skip("this process may open any port")
		}
		assert.ErrorIs(t, n.Publish(Rule{Port: 1, GuestPort: 80}), syscall.EACCES)
	})
	require.NoError(t, n.Close())
	assert.ErrorIs(t, n.Publish(Rule{GuestPort: 80}), ErrClosed)
	assert.Empty(t, n.Published())
}

// What a server in the guest sees of its peers.
func TestSourceOfPublishedConnections(t *testing.T) {
	n := newNetwork(t, Options{})
	s, err := newSession(n, 0)
	require.NoError(t, err)
	defer s.stop()
	for _, tt := range []struct{ name, peer, to, want string }{
		{"this host", "127.0.0.1:5000", "10.0.2.15", "10.0.2.2:0"},
		{"another host", "192.0.2.7:5000", "10.0.2.15", "192.0.2.7:5000"},
		{"another host, on an IPv6 socket", "[::ffff:192.0.2.7]:5000", "10.0.2.15", "192.0.2.7:5000"},
		{"of the other family", "[2001:db8::1]:5000", "10.0.2.15", "10.0.2.2:0"},
		{"an address that the guest's network has too", "10.0.2.200:5000", "10.0.2.15", "10.0.2.2:0"},
		{"link-local", "169.254.1.1:5000", "10.0.2.15", "10.0.2.2:0"},
		{"nobody", "0.0.0.0:0", "10.0.2.15", "10.0.2.2:0"},
	} {
		assert.Equal(t, tt.want, s.source(netip.MustParseAddrPort(tt.peer), netip.MustParseAddr(tt.to)).String(), tt.name)
	}
	assert.Equal(t, gateway6, s.source(netip.AddrPort{}, guestIP6).Addr().String())
}

func TestCloseAndStopInAnyOrder(t *testing.T) {
	n := newNetwork(t, Options{})
	assert.Error(t, n.SetPairs(1))
	n.Stop()
	require.NoError(t, n.Start(allOffloads))
	assert.Error(t, n.Start(allOffloads))
	assert.Error(t, n.SetPairs(0))
	assert.Error(t, n.SetPairs(maxPairs+1))
	assert.NoError(t, n.SetPairs(maxPairs))
	n.Stop()
	n.Stop()
	more, err := n.Wait(3)
	assert.False(t, more)
	assert.NoError(t, err)
	k, err := n.Receive(0, nil)
	assert.Zero(t, k)
	assert.NoError(t, err)
	assert.NoError(t, n.Send(0, [][]byte{make([]byte, 12), make([]byte, 60)}))
	require.NoError(t, n.Start(0))
	require.NoError(t, n.Close())
	require.NoError(t, n.Close())
	assert.ErrorIs(t, n.Start(0), ErrClosed)
	assert.True(t, errors.Is(ErrClosed, ErrClosed))
}
