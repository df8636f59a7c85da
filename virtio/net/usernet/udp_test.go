package usernet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// echoUDP is a server of the host's that answers every datagram with itself,
// and with the peer's port where it is told to.
func echoUDP(t testing.TB, network, address string) (uint16, *net.UDPConn) {
	t.Helper()
	a, err := net.ResolveUDPAddr(network, address)
	require.NoError(t, err)
	c, err := net.ListenUDP(network, a)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, peer, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], peer)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), c
}

func TestUDP(t *testing.T) {
	for _, tt := range []struct {
		name, gateway, listen string
		mtu                   int
		features              uint64
	}{
		{"IPv4", gateway4, "127.0.0.1:0", 65520, allOffloads},
		{"IPv4 in fragments", gateway4, "127.0.0.1:0", 1500, 0},
		{"IPv6", gateway6, "[::1]:0", 65520, allOffloads},
		{"IPv6 in fragments", gateway6, "[::1]:0", 1280, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, Options{HostLoopback: true, MTU: tt.mtu})
			port, _ := echoUDP(t, "udp", tt.listen)
			g := startGuest(t, n, tt.features)
			c := g.dialUDP(via(tt.gateway, port))
			buf := make([]byte, 65536)
			for _, size := range []int{1, 2, 100, 1232, 1473, 9000, 32000, 65000} {
				want := bytes.Repeat([]byte{byte(size), 0xff}, size)[:size]
				_, err := c.Write(want)
				require.NoError(t, err)
				k, err := c.Read(buf)
				require.NoError(t, err, "%d bytes", size)
				require.Equal(t, want, buf[:k])
			}
			assert.EqualValues(t, 1, n.Stats().UDP)
		})
	}
}

func TestUDPRefused(t *testing.T) {
	closed, c := echoUDP(t, "udp4", "127.0.0.1:0")
	c.Close()
	open, _ := echoUDP(t, "udp4", "127.0.0.1:0")
	for _, tt := range []struct {
		name string
		o    Options
		to   string
	}{
		{"nobody listens", Options{HostLoopback: true}, via(gateway4, closed)},
		{"nobody listens, IPv6", Options{HostLoopback: true}, via(gateway6, closed)},
		{"host's loopback is off", Options{}, via(gateway4, open)},
		{"the DNS server's other ports", Options{}, "10.0.2.3:54"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := startGuest(t, newNetwork(t, tt.o), allOffloads)
			c := g.dialUDP(tt.to)
			var err error
			assert.Eventually(t, func() bool { // it comes with a later call
				_, err = c.Write([]byte("hello"))
				return err != nil
			}, patience, time.Millisecond)
			assert.ErrorContains(t, err, "connection was refused")
		})
	}
}

func TestUDPFlowsAreBounded(t *testing.T) {
	n := newNetwork(t, Options{HostLoopback: true, MaxUDP: 4})
	port, _ := echoUDP(t, "udp4", "127.0.0.1:0")
	g := startGuest(t, n, allOffloads)
	buf := make([]byte, 100)
	for i := range 20 {
		c := g.dialUDP(via(gateway4, port))
		msg := fmt.Sprint(i)
		_, err := c.Write([]byte(msg))
		require.NoError(t, err)
		k, err := c.Read(buf)
		require.NoError(t, err)
		assert.Equal(t, msg, string(buf[:k]))
		u := &n.current.Load().udp
		u.mu.Lock()
		assert.LessOrEqual(t, len(u.flows), 4)
		u.mu.Unlock()
	}
	assert.EqualValues(t, 16, n.Stats().Full)
}

// flooder is a server of the host's that never stops to send to whoever has sent to it.
func flooder(t *testing.T) (port uint16) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	var work sync.WaitGroup
	t.Cleanup(func() { c.Close(); work.Wait() })
	work.Go(func() {
		buf := make([]byte, 100)
		for {
			_, peer, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // a peer that has gone
			}
			for range 2 {
				work.Go(func() {
					for {
						if _, err := c.WriteToUDPAddrPort([]byte("x"), peer); errors.Is(err, net.ErrClosed) {
							return
						}
					}
				})
			}
			return
		}
	})
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// untilAnswered sends until something comes back: a new flow is dropped as long as the
// goroutines of too many before it are not through.
func untilAnswered(t *testing.T, c net.Conn) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		if _, err = c.Read(make([]byte, 10)); err == nil {
			return
		}
	}
	require.Fail(t, "no answer")
}

// A flow ends while its socket has more to read than will ever be read, whoever ends it.
func TestUDPFlowEndsInFlood(t *testing.T) {
	for _, tt := range []struct {
		name string
		idle time.Duration
		end  func(t *testing.T, n *Network, g *guest)
	}{
		{"the guest resets", time.Hour, func(_ *testing.T, n *Network, _ *guest) { n.Stop() }},
		{"another takes its place", time.Hour, func(t *testing.T, n *Network, g *guest) {
			port, _ := echoUDP(t, "udp4", "127.0.0.1:0")
			c := g.dialUDP(via(gateway4, port))
			untilAnswered(t, c)
		}},
		{"it is idle", time.Nanosecond, func(_ *testing.T, n *Network, _ *guest) { n.current.Load().udp.sweep() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 10 {
				n := newNetwork(t, Options{HostLoopback: true, MaxUDP: 1, UDPIdle: tt.idle})
				g := startGuest(t, n, allOffloads)
				c := g.dialUDP(via(gateway4, flooder(t)))
				untilAnswered(t, c)
				ended := make(chan struct{})
				go func() { defer close(ended); tt.end(t, n, g) }()
				select {
				case <-ended:
				case <-time.After(patience):
					panic("the flow has not ended")
				}
			}
		})
	}
}

// A policy that takes its time is not asked by more goroutines than twice the flows,
// however many a guest begins; what finds no room is dropped.
func TestUDPQuestionsAreBounded(t *testing.T) {
	asked, answer := make(chan struct{}, 1000), make(chan struct{})
	n := newNetwork(t, Options{MaxUDP: 4, Policy: func(Destination) error {
		asked <- struct{}{}
		<-answer
		return ErrDenied
	}})
	g := startGuest(t, n, allOffloads)
	for i := range 100 {
		c := g.dialUDP(via("192.0.2.1", 1000+uint16(i)))
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
	}
	assert.Eventually(t, func() bool { return n.Stats().FromGuest >= 100 }, patience, time.Millisecond)
	assert.Eventually(t, func() bool { return len(asked) == 8 }, patience, time.Millisecond)
	assert.EqualValues(t, 8, n.current.Load().serving.Load())
	close(answer)
	assert.Eventually(t, func() bool { return n.current.Load().serving.Load() == 0 }, patience, time.Millisecond)
	c := g.dialUDP(via("192.0.2.1", 999))
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	assert.Eventually(t, func() bool { return len(asked) == 9 }, patience, time.Millisecond)
}

func TestUDPIdleFlowsEnd(t *testing.T) {
	n := newNetwork(t, Options{HostLoopback: true, UDPIdle: time.Nanosecond})
	port, _ := echoUDP(t, "udp4", "127.0.0.1:0")
	g := startGuest(t, n, allOffloads)
	c := g.dialUDP(via(gateway4, port))
	for range 3 { // each is a new flow
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 10))
		require.NoError(t, err)
		u := &n.current.Load().udp
		u.sweep()
		u.mu.Lock()
		assert.Empty(t, u.flows)
		u.mu.Unlock()
	}
	assert.EqualValues(t, 3, n.Stats().UDP)
}

// Datagrams that come while the policy thinks are bounded and in order.
func TestUDPWaitsForThePolicy(t *testing.T) {
	asked, release := make(chan Destination), make(chan struct{})
	n := newNetwork(t, Options{HostLoopback: true, Policy: func(d Destination) error {
		asked <- d
		<-release
		return nil
	}})
	port, _ := echoUDP(t, "udp4", "127.0.0.1:0")
	g := startGuest(t, n, allOffloads)
	c := g.dialUDP(via(gateway4, port))
	for i := range maxPending + 5 {
		_, err := fmt.Fprint(c, i)
		require.NoError(t, err)
	}
	assert.Equal(t, Destination{Protocol: UDP, Addr: netip.MustParseAddr("127.0.0.1"), Port: port}, <-asked)
	assert.Eventually(t, func() bool { return n.Stats().FromGuest >= maxPending+6 }, patience, time.Millisecond)
	close(release)
	buf := make([]byte, 10)
	for i := range maxPending {
		k, err := c.Read(buf)
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprint(i), string(buf[:k]))
	}
}

func TestUDPDeniedByPolicy(t *testing.T) {
	n := newNetwork(t, Options{Policy: DenyOutside})
	g := startGuest(t, n, allOffloads)
	c := g.dialUDP("192.0.2.1:99")
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	assert.Eventually(t, func() bool { return n.Stats().Denied == 1 && n.Stats().ToGuest == 1 }, patience, time.Millisecond)
}
