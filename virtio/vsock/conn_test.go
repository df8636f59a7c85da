package vsock_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
	"github.com/vole-vmm/vole/virtio/vsock"
)

// result is what a goroutine of a test's brings.
type result[T any] struct {
	v   T
	err error
}

// async calls f on a goroutine of its own.
func async[T any](f func() (T, error)) <-chan result[T] {
	c := make(chan result[T], 1)
	go func() {
		v, err := f()
		c <- result[T]{v, err}
	}()
	return c
}

// await gives a result, or fails the test.
func await[T any](t testing.TB, c <-chan result[T]) (T, error) {
	t.Helper()
	select {
	case r := <-c:
		return r.v, r.err
	case <-time.After(patience):
		require.Fail(t, "it does not end")
		panic("unreachable")
	}
}

// dial connects to a guest's port from the host.
func dial(g *guest, port uint32) <-chan result[net.Conn] {
	return async(func() (net.Conn, error) { return g.dev.Dial(context.Background(), port) })
}

// fromHost makes a connection from the host.
func fromHost(g *guest, port uint32) (*vsock.Conn, *socket) {
	g.t.Helper()
	c := dial(g, port)
	s := g.accept(port)
	conn, err := await(g.t, c)
	require.NoError(g.t, err)
	g.t.Cleanup(func() { _ = conn.Close() })
	return conn.(*vsock.Conn), s
}

// fromGuest makes a connection from the guest.
func fromGuest(g *guest, l net.Listener, port uint32) (*vsock.Conn, *socket) {
	g.t.Helper()
	s := g.connect(port, l.Addr().(vsock.Addr).Port)
	conn, err := await(g.t, async(l.Accept))
	require.NoError(g.t, err)
	g.t.Cleanup(func() { _ = conn.Close() })
	return conn.(*vsock.Conn), s
}

func listen(g *guest, port uint32) net.Listener {
	g.t.Helper()
	l, err := g.dev.Listen(port)
	require.NoError(g.t, err)
	return l
}

// TestConfig: VIRTIO 1.2, 5.10.3 and 5.10.4.
func TestConfig(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		assert.Equal(t, virtio.TypeVsock, g.Regs.Type())
		assert.NotZero(t, g.Features&vsock.FeatureStream)
		b := make([]byte, 8)
		g.Regs.ReadConfig(0, b)
		assert.Equal(t, []byte{guestCID, 0, 0, 0, 0, 0, 0, 0}, b)
		assert.Equal(t, vsock.State{CID: guestCID}, g.dev.State())
	})
}

func TestBadOptions(t *testing.T) {
	for _, c := range []struct {
		name string
		o    vsock.Options
		say  string
	}{
		{"no CID", vsock.Options{}, "CID of 0"},
		{"the host's CID", vsock.Options{CID: 2}, "CID of 2"},
		{"the CID of no one", vsock.Options{CID: 0xffffffff}, "CID of 4294967295"},
		{"negative", vsock.Options{CID: 3, MaxConns: -1}, "-1 connections"},
		{"too many", vsock.Options{CID: 3, MaxConns: 1 << 20}, "1048576 connections"},
	} {
		_, err := vsock.New(c.o)
		require.ErrorIs(t, err, vsock.ErrConfig, c.name)
		assert.ErrorContains(t, err, c.say, c.name)
	}
}

// TestHandshake: 5.10.6.5.
func TestHandshake(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		l := listen(g, 1000)
		g.manual = true
		g.send(packet{srcPort: 7, dstPort: 1000, op: opRequest, bufAlloc: 4096})
		p := g.next()
		assert.Equal(t, packet{
			srcCID: vsock.HostCID, dstCID: guestCID, srcPort: 1000, dstPort: 7, typ: 1, op: opResponse, bufAlloc: vsock.MaxWindow,
		}, p)
		c, err := await(t, async(l.Accept))
		require.NoError(t, err)
		assert.Equal(t, vsock.Addr{CID: 2, Port: 1000}, c.LocalAddr())
		assert.Equal(t, vsock.Addr{CID: guestCID, Port: 7}, c.RemoteAddr())
		assert.Equal(t, "42:7", c.RemoteAddr().String())
		assert.Equal(t, "vsock", c.RemoteAddr().Network())
		require.NoError(t, c.Close())
		p = g.next()
		assert.EqualValues(t, opShutdown, p.op)
		assert.EqualValues(t, 3, p.flags)
		g.send(packet{srcPort: 7, dstPort: 1000, op: opRST})

		dialing := dial(g, 99)
		p = g.next()
		assert.EqualValues(t, opRequest, p.op)
		assert.EqualValues(t, 99, p.dstPort)
		assert.EqualValues(t, vsock.MaxWindow, p.bufAlloc)
		g.send(packet{srcPort: 99, dstPort: p.srcPort, op: opResponse, bufAlloc: 4096})
		c, err = await(t, dialing)
		require.NoError(t, err)
		assert.Equal(t, vsock.Addr{CID: 2, Port: p.srcPort}, c.LocalAddr())
		assert.Equal(t, vsock.Addr{CID: guestCID, Port: 99}, c.RemoteAddr())
		require.NoError(t, c.Close())
		g.until("the connection is gone", func() bool {
			g.send(packet{srcPort: 99, dstPort: p.srcPort, op: opRST})
			return g.dev.Stats().Conns == 0
		})
		s := g.dev.Stats()
		assert.EqualValues(t, 1, s.FromGuest)
		assert.EqualValues(t, 1, s.ToGuest)
		assert.Zero(t, s.Refused)
	})
}

func TestRefused(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{MaxConns: 2})
		g.send(packet{srcPort: 7, dstPort: 1000, op: opRequest})
		p := g.next()
		assert.EqualValues(t, opRST, p.op, "nobody listens")
		assert.EqualValues(t, 1000, p.srcPort)

		c := dial(g, 5)
		p = g.next()
		g.send(packet{srcPort: 5, dstPort: p.srcPort, op: opRST})
		_, err := await(t, c)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		var op *net.OpError
		require.ErrorAs(t, err, &op)
		assert.Equal(t, "dial vsock 42:5: connection refused", err.Error())

		ctx, cancel := context.WithCancel(context.Background())
		c = async(func() (net.Conn, error) { return g.dev.Dial(ctx, 5) })
		p = g.next()
		cancel()
		_, err = await(t, c)
		require.ErrorIs(t, err, context.Canceled)
		assert.EqualValues(t, opRST, g.next().op, "the guest is told that nobody waits any more")
		_, err = g.dev.Dial(ctx, 5)
		require.ErrorIs(t, err, context.Canceled)
		g.send(packet{srcPort: 5, dstPort: p.srcPort, op: opResponse})
		assert.EqualValues(t, opRST, g.next().op, "an answer that comes too late")

		l := listen(g, 1000)
		_, err = g.dev.Listen(1000)
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		c1, _ := fromHost(g, 1)
		c2, _ := fromGuest(g, l, 2)
		_, err = g.dev.Dial(context.Background(), 5)
		require.ErrorIs(t, err, vsock.ErrTooMany)
		g.send(packet{srcPort: 8, dstPort: 1000, op: opRequest})
		assert.EqualValues(t, opRST, g.next().op, "too many connections")
		assert.EqualValues(t, 4, g.dev.Stats().Refused)

		require.NoError(t, l.Close())
		require.ErrorIs(t, l.Close(), net.ErrClosed)
		_, err = l.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
		require.NoError(t, c1.Close())
		require.NoError(t, c2.Close())
		g.Reset()
		_, err = g.dev.Dial(context.Background(), 5)
		require.ErrorIs(t, err, vsock.ErrNoDriver)
		require.NoError(t, g.dev.Close())
		_, err = g.dev.Dial(context.Background(), 5)
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = g.dev.Listen(5)
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

// TestDialIsBounded: a guest that never answers.
func TestDialIsBounded(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		dev, err := vsock.NewTimed(vsock.Options{CID: guestCID}, 20*time.Millisecond, time.Minute, time.Minute)
		require.NoError(t, err)
		g := start(t, open, dev)
		_, err = dev.Dial(context.Background(), 5)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.EqualValues(t, opRequest, g.next().op)
		assert.EqualValues(t, opRST, g.next().op)
		assert.Zero(t, dev.Stats().Conns)
	})
}

// TestListenerClosed: who was not accepted is reset.
func TestListenerClosed(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		l := listen(g, 1)
		a, b := g.connect(10, 1), g.connect(11, 1)
		waits := async(func() (int, error) {
			for n := 0; ; n++ {
				if _, err := l.Accept(); err != nil {
					return n, err
				}
			}
		})
		require.NoError(t, l.Close())
		n, err := await(t, waits)
		require.ErrorIs(t, err, net.ErrClosed)
		g.until("those not accepted are reset", func() bool {
			r := 0
			for _, s := range []*socket{a, b} {
				if s.reset {
					r++
				}
			}
			return r == 2-n
		})
	})
}

// TestDataBothWays: what is sent arrives, by its digest, both ways at once.
func TestDataBothWays(t *testing.T) {
	const size = 64 << 20
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		c, s := fromHost(g, 5)
		sums := exchange(t, s, c, size)
		assert.EqualValues(t, size, g.dev.Stats().Sent.Bytes)
		assert.EqualValues(t, size, g.dev.Stats().Received.Bytes)
		counts := make(map[string]uint64)
		for _, c := range g.dev.Counters() {
			counts[c.Name] = c.Value
		}
		assert.EqualValues(t, size, counts["bytes sent"])
		assert.EqualValues(t, size, counts["bytes received"])
		assert.EqualValues(t, 1, counts["connections of the guest"]+counts["connections to the guest"])
		assert.Equal(t, sums[0], sums[1], "to the guest")
		assert.Equal(t, sums[2], sums[3], "from the guest")
	})
}

// exchange sends size bytes each way between a guest's socket and the host, and
// then ends the stream of each. It returns the digests of what was written and
// read: to the guest, and from it.
func exchange(t testing.TB, s *socket, c interface {
	io.ReadWriter
	CloseWrite() error
}, size int) [4][32]byte {
	t.Helper()
	var sums [4][32]byte
	writer := async(func() ([32]byte, error) {
		r := rand.NewChaCha8([32]byte{1})
		h := sha256.New()
		buf := make([]byte, 200_000)
		for left := size; left > 0; {
			b := buf[:min(left, 1+int(r.Uint64()%uint64(len(buf))))]
			_, _ = r.Read(b)
			h.Write(b)
			if _, err := c.Write(b); err != nil {
				return [32]byte{}, err
			}
			left -= len(b)
		}
		return [32]byte(h.Sum(nil)), c.CloseWrite()
	})
	reader := async(func() ([32]byte, error) {
		h := sha256.New()
		n, err := io.Copy(h, onlyReader{c})
		if err == nil && n != int64(size) {
			err = io.ErrUnexpectedEOF
		}
		return [32]byte(h.Sum(nil)), err
	})
	got, h := 0, sha256.New()
	s.got = func(b []byte) {
		got += len(b)
		h.Write(b)
	}
	r, hOut := rand.NewChaCha8([32]byte{2}), sha256.New()
	buf := make([]byte, 150_000)
	for left := size; left > 0; {
		b := buf[:min(left, 1+int(r.Uint64()%uint64(len(buf))))]
		_, _ = r.Read(b)
		hOut.Write(b)
		s.write(b)
		left -= len(b)
	}
	s.send(opShutdown, shutSend, nil)
	s.g.until("everything is here", func() bool { return got == size && s.peerShut&shutSend != 0 })
	sums[1], sums[2] = [32]byte(h.Sum(nil)), [32]byte(hOut.Sum(nil))
	var err error
	sums[0], err = await(t, writer)
	require.NoError(t, err)
	sums[3], err = await(t, reader)
	require.NoError(t, err)
	return sums
}

type onlyReader struct{ io.Reader }

// TestHalfClose: each side can end what it sends, and what it receives.
func TestHalfClose(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})

		c, s := fromHost(g, 5)
		require.NoError(t, c.CloseWrite())
		g.until("the guest knows", func() bool { return s.peerShut == shutSend })
		_, err := c.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.EPIPE)
		s.write([]byte("still here"))
		buf := make([]byte, 100)
		n, err := io.ReadFull(c, buf[:10])
		require.NoError(t, err)
		assert.Equal(t, "still here", string(buf[:n]))
		s.send(opShutdown, shutSend, nil)
		_, err = c.Read(buf)
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, c.Close())
		g.until("the guest knows", func() bool { return s.reset })

		c, s = fromHost(g, 5)
		s.write([]byte("before"))
		s.send(opShutdown, shutSend, nil)
		all, err := await(t, async(func() ([]byte, error) { return io.ReadAll(c) }))
		require.NoError(t, err)
		assert.Equal(t, "before", string(all))
		_, err = c.Write([]byte("to the guest"))
		require.NoError(t, err)
		assert.Equal(t, "to the guest", s.read(12))
		s.send(opShutdown, shutReceive, nil)
		assert.EqualValues(t, opRST, lastOf(g, s), "shut both ways in two steps")
		_, err = c.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.EPIPE)

		c, s = fromHost(g, 5)
		s.send(opShutdown, shutReceive, nil)
		g.quiet("shut one way")
		_, err = c.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.EPIPE)
		s.write([]byte("one way"))
		_, err = io.ReadFull(c, buf[:7])
		require.NoError(t, err)

		c, s = fromHost(g, 5)
		s.write([]byte("dropped"))
		require.NoError(t, c.CloseRead())
		_, err = c.Read(buf)
		require.ErrorIs(t, err, io.EOF)
		g.until("the guest knows", func() bool { return s.peerShut == shutReceive })
		s.send(opRW, 0, []byte("on its way when the guest was told"))
		g.quiet("data is dropped without a word")
		_, err = c.Write([]byte("more"))
		require.NoError(t, err)
		assert.Equal(t, "more", s.read(4))
		require.NoError(t, c.CloseWrite())
		g.until("both ways", func() bool { return s.reset })

		c, s = fromHost(g, 5)
		s.send(opShutdown, 0, nil)
		g.quiet("a shutdown of nothing")
		s.write([]byte("last words"))
		s.close()
		all, err = io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "last words", string(all))

		require.NoError(t, c.Close())
		require.ErrorIs(t, c.Close(), net.ErrClosed)
		require.ErrorIs(t, c.CloseRead(), net.ErrClosed)
		require.ErrorIs(t, c.SetDeadline(time.Now()), net.ErrClosed)
		_, err = c.Read(buf)
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = c.Write(buf)
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

// lastOf waits for a socket's reset.
func lastOf(g *guest, s *socket) int {
	g.until("the connection is reset", func() bool { return s.reset })
	return opRST
}

// TestResetByGuest: what came before can be read.
func TestResetByGuest(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		c, s := fromHost(g, 5)
		s.write([]byte("before"))
		s.send(opRST, 0, nil)
		buf := make([]byte, 6)
		_, err := io.ReadFull(c, buf)
		require.NoError(t, err)
		_, err = c.Read(buf)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		_, err = c.Write(buf)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.NoError(t, c.Close())
		g.quiet("a reset is not answered")
		assert.Zero(t, g.dev.Stats().Conns)
	})
}

// TestLinger: a guest that does not confirm the end is reset.
func TestLinger(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		dev, err := vsock.NewTimed(vsock.Options{CID: guestCID}, time.Minute, time.Minute, 20*time.Millisecond)
		require.NoError(t, err)
		g := start(t, open, dev)
		c, s := fromHost(g, 5)
		s.manualCredit = true // no answers
		require.NoError(t, c.Close())
		g.until("the connection is reset", func() bool { return s.reset })
		assert.EqualValues(t, 3, s.peerShut)
		assert.Zero(t, dev.Stats().Conns)
	})
}

var errNoTimeout = errors.New("no timeout")

// isTimeout says that err is what a deadline brings.
func isTimeout(t testing.TB, err error) {
	t.Helper()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		require.NoError(t, errNoTimeout)
	}
}
