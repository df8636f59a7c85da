package usernet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// host is a TCP server of the host's on a loopback address; the guest gets
// there by the gateway.
func host(t testing.TB, network, address string, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.Listen(network, address)
	require.NoError(t, err)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(3 * patience))
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func via(gateway string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(gateway), port).String()
}

// noise is a stream of bytes that depends on its seed alone.
func noise(seed uint64, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed)}), n)
}

func sumOf(r io.Reader) (string, error) {
	var h hash.Hash = sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d bytes %x", n, h.Sum(nil)), err
}

const gateway4, gateway6 = "10.0.2.2", "fd00:766f:6c65::2"

func TestTCPCarriesBothWaysWithHalfClose(t *testing.T) {
	size := int64(64 << 20)
	if testing.Short() || raceEnabled {
		size = 8 << 20
	}
	for _, tt := range []struct {
		name, gateway, listen string
		mtu                   int
		features              uint64
	}{
		{"IPv4, offloads, MTU 65520", gateway4, "127.0.0.1:0", 65520, allOffloads},
		{"IPv4, offloads, MTU 1500", gateway4, "127.0.0.1:0", 1500, allOffloads},
		{"IPv4, none, MTU 1500", gateway4, "127.0.0.1:0", 1500, 0},
		{"IPv4, none, MTU 9000", gateway4, "127.0.0.1:0", 9000, 0},
		{"IPv6, offloads, MTU 1500", gateway6, "[::1]:0", 1500, allOffloads},
		{"IPv6, none, MTU 1280", gateway6, "[::1]:0", 1280, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, Options{HostLoopback: true, MTU: tt.mtu})
			heard := make(chan string, 1)
			port := host(t, "tcp", tt.listen, func(c *net.TCPConn) {
				sum, err := sumOf(c) // until the guest's half-close
				if err != nil {
					sum = err.Error()
				}
				heard <- sum
				_, err = io.Copy(c, noise(2, size))
				assert.NoError(t, err)
			})
			g := startGuest(t, n, tt.features)
			c := g.mustDial(via(tt.gateway, port))
			defer c.Close()
			_, err := io.Copy(c, noise(1, size))
			require.NoError(t, err)
			require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
			want, _ := sumOf(noise(1, size))
			assert.Equal(t, want, <-heard)
			want, _ = sumOf(noise(2, size))
			got, err := sumOf(c)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}

func TestTCPHostClosesFirst(t *testing.T) {
	n := newNetwork(t, Options{HostLoopback: true})
	heard := make(chan string, 1)
	port := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		heard <- string(b)
	})
	g := startGuest(t, n, allOffloads)
	c := g.mustDial(via(gateway4, port))
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, "bye", string(b))
	_, err = c.Write([]byte("and thanks")) // the other half is still open
	require.NoError(t, err)
	require.NoError(t, c.Close())
	assert.Equal(t, "and thanks", <-heard)
	assert.Eventually(t, func() bool { return n.current.Load().tcpFlows.Load() == 0 }, patience, time.Millisecond)
}

func TestTCPRefused(t *testing.T) {
	closed := func(network, address string) uint16 {
		l, err := net.Listen(network, address)
		require.NoError(t, err)
		defer l.Close()
		return l.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	port4, port6 := closed("tcp4", "127.0.0.1:0"), closed("tcp6", "[::1]:0")
	open := host(t, "tcp", "127.0.0.1:0", func(*net.TCPConn) {})
	for _, tt := range []struct {
		name string
		o    Options
		to   string
	}{
		{"nobody listens", Options{HostLoopback: true}, via(gateway4, port4)},
		{"nobody listens, IPv6", Options{HostLoopback: true}, via(gateway6, port6)},
		{"host's loopback is off", Options{}, via(gateway4, open)},
		{"policy", Options{HostLoopback: true, Policy: DenyOutside}, via(gateway4, open)},
		{"policy, outside", Options{Policy: DenyOutside}, "192.0.2.77:80"},
		{"another address of the network", Options{HostLoopback: true}, "10.0.2.99:80"},
		{"no room", Options{HostLoopback: true, MaxTCP: -1}, via(gateway4, open)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			full := tt.o.MaxTCP < 0
			if full {
				tt.o.MaxTCP = 1
			}
			n := newNetwork(t, tt.o)
			g := startGuest(t, n, allOffloads)
			if full {
				c := g.mustDial(tt.to)
				defer c.Close()
				n.current.Load().tcpFlows.Store(1)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := g.dial(ctx, tt.to)
			require.Error(t, err)
			assert.Contains(t, err.Error(), "connection was refused")
		})
	}
}

// A host that resets must not look like one that has finished.
func TestTCPResetsPassBothWays(t *testing.T) {
	n := newNetwork(t, Options{HostLoopback: true})
	saw := make(chan error, 1)
	ready := make(chan struct{})
	port := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		b := make([]byte, 1)
		_, _ = io.ReadFull(c, b)
		if b[0] == 'r' {
			_ = c.SetLinger(0)
			return
		}
		close(ready)
		_, err := c.Read(b)
		saw <- err
	})
	g := startGuest(t, n, allOffloads)
	c := g.mustDial(via(gateway4, port))
	_, err := c.Write([]byte("r"))
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	assert.NotErrorIs(t, err, io.EOF)
	require.NoError(t, c.Close())

	c = g.mustDial(via(gateway4, port))
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	<-ready
	for _, e := range g.stack.RegisteredEndpoints() {
		e.Abort()
	}
	assert.ErrorIs(t, <-saw, syscall.ECONNRESET)
}

// The SYN of a peer that does not answer is neither accepted nor refused; its
// slot is free again when the guest gives up.
func TestTCPUnanswered(t *testing.T) {
	asked := make(chan Destination, 8)
	release := make(chan struct{})
	n := newNetwork(t, Options{Policy: func(d Destination) error {
		asked <- d
		<-release
		return errors.New("no")
	}})
	g := startGuest(t, n, allOffloads)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := g.dial(ctx, "192.0.2.1:81")
		result <- err
	}()
	assert.Equal(t, Destination{Protocol: TCP, Addr: netip.MustParseAddr("192.0.2.1"), Port: 81}, <-asked)
	select {
	case err := <-result:
		assert.Fail(t, "answered before the policy did", "%v", err)
	default:
	}
	cancel()
	<-result
	close(release)
	assert.Eventually(t, func() bool { return n.current.Load().tcpFlows.Load() == 0 }, patience, time.Millisecond)
}

func TestThousandConnections(t *testing.T) {
	const count = 1000
	n := newNetwork(t, Options{HostLoopback: true})
	var lim syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim))
	if lim.Cur < 2*count+100 {
		t.Skipf("this process may open only %d files", lim.Cur)
	}
	all := make(chan struct{})
	port := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		<-all
		_, _ = io.Copy(c, c)
	})
	g := startGuest(t, n, allOffloads)
	conns := make([]net.Conn, count)
	var wg sync.WaitGroup
	for part := range 20 {
		wg.Go(func() {
			for i := part; i < count; i += 20 {
				conns[i] = g.mustDial(via(gateway4, port))
			}
		})
	}
	wg.Wait()
	assert.EqualValues(t, count, n.current.Load().tcpFlows.Load())
	close(all)
	for i, c := range conns {
		wg.Go(func() {
			msg := fmt.Sprintf("connection %d", i)
			_, err := c.Write([]byte(msg))
			assert.NoError(t, err)
			assert.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
			b, err := io.ReadAll(c)
			assert.NoError(t, err)
			assert.Equal(t, msg, string(b))
			c.Close()
		})
	}
	wg.Wait()
	assert.Eventually(t, func() bool { return n.current.Load().tcpFlows.Load() == 0 }, patience, 10*time.Millisecond)
}

// A peer that never reads costs what its buffers hold, and nobody else.
func TestTCPSlowReaderHoldsUpNobody(t *testing.T) {
	n := newNetwork(t, Options{HostLoopback: true})
	stuck := make(chan struct{})
	defer close(stuck)
	port := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) { <-stuck })
	echo := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	g := startGuest(t, n, allOffloads)
	c := g.mustDial(via(gateway4, port))
	defer c.Close()
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(500*time.Millisecond)))
	sent, err := io.Copy(c, noise(1, 1<<30))
	require.Error(t, err, "somebody swallowed 1 GiB")
	assert.Less(t, sent, int64(64<<20))
	other := g.mustDial(via(gateway4, echo))
	defer other.Close()
	_, err = other.Write([]byte("hello"))
	require.NoError(t, err)
	b := make([]byte, 5)
	_, err = io.ReadFull(other, b)
	require.NoError(t, err)
}

func TestStopEndsFlowsAndStartBeginsAnew(t *testing.T) {
	n := newNetwork(t, Options{HostLoopback: true})
	ended := make(chan error, 2)
	port := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	for range 2 {
		g := startGuest(t, n, allOffloads)
		c := g.mustDial(via(gateway4, port))
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err)
		g.n.Stop()
		assert.Error(t, <-ended, "the host's end must see a reset")
		more, err := n.Wait(0)
		assert.False(t, more)
		assert.NoError(t, err)
		g.shutdown()
	}
}
