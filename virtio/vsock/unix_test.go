package vsock_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/virtiotest"
	"github.com/vole-vmm/vole/virtio/vsock"
)

// socketDir is a directory with a short name.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vs")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// unixGuest is a guest whose device serves a Unix socket.
func unixGuest(t testing.TB, open virtiotest.Opener, o vsock.Options) (*guest, string) {
	t.Helper()
	path := filepath.Join(socketDir(t), "v.sock")
	o.Path = path
	return newGuest(t, open, o), path
}

func connectTo(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// unixFromHost makes a connection by the socket's protocol.
func unixFromHost(g *guest, path string, port uint32) (*net.UnixConn, *socket) {
	g.t.Helper()
	c := connectTo(g.t, path)
	_, err := fmt.Fprintf(c, "CONNECT %d\n", port)
	require.NoError(g.t, err)
	s := g.accept(port)
	assert.Equal(g.t, fmt.Sprintf("OK %d\n", s.hostPort), readLine(g.t, c))
	return c, s
}

// readLine reads no more than a line.
func readLine(t testing.TB, c io.Reader) string {
	t.Helper()
	var line []byte
	for b := []byte{0}; b[0] != '\n'; line = append(line, b[0]) {
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
	}
	return string(line)
}

// unixListen listens where the guest's connections to port go.
func unixListen(t testing.TB, path string, port uint32) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("%s_%d", path, port), Net: "unix"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func unixFromGuest(g *guest, l *net.UnixListener, port, hostPort uint32) (*net.UnixConn, *socket) {
	g.t.Helper()
	s := g.connect(port, hostPort)
	c, err := l.AcceptUnix()
	require.NoError(g.t, err)
	g.t.Cleanup(func() { _ = c.Close() })
	require.NoError(g.t, c.SetDeadline(time.Now().Add(patience)))
	return c, s
}

func TestUnixProtocol(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{})
		c := connectTo(t, path)
		_, err := c.Write([]byte("CONNECT 52\nand data at once"))
		require.NoError(t, err)
		p := g.next()
		assert.EqualValues(t, opRequest, p.op)
		assert.EqualValues(t, 52, p.dstPort)
		g.quiet("nothing is sent before the guest has accepted")
		s := g.socket(52, p.srcPort)
		s.isOpen = true
		s.send(opResponse, 0, nil)
		assert.Equal(t, fmt.Sprintf("OK %d\n", p.srcPort), readLine(t, c))
		assert.Equal(t, "and data at once", s.read(16))
		s.write([]byte("answer"))
		buf := make([]byte, 6)
		_, err = io.ReadFull(c, buf)
		require.NoError(t, err)
		assert.Equal(t, "answer", string(buf))
		require.NoError(t, c.Close())
		g.until("the guest knows", func() bool { return s.reset })
		g.until("it is over", func() bool { return g.dev.Stats().Conns == 0 })

		l := unixListen(t, path, 1234)
		c, s = unixFromGuest(g, l, 9, 1234)
		s.write([]byte("from the guest"))
		buf = make([]byte, 14)
		_, err = io.ReadFull(c, buf)
		require.NoError(t, err)
		assert.Equal(t, "from the guest", string(buf))
		s.write([]byte("last words"))
		s.close()
		all, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "last words", string(all))
		g.until("it is over", func() bool { return g.dev.Stats().Conns == 0 })
	})
}

// TestUnixRefused: who asks for what there is not is closed, or reset.
func TestUnixRefused(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{MaxConns: 3})
		closed := func(c net.Conn) {
			t.Helper()
			n, err := c.Read(make([]byte, 10))
			assert.Zero(t, n)
			if !errors.Is(err, syscall.ECONNRESET) { // if we had written more
				require.ErrorIs(t, err, io.EOF)
			}
		}
		for _, line := range []string{
			"GET / HTTP/1.1\r\n", "CONNECT\n", "CONNECT \n", "CONNECT 1 2\n", "CONNECT -1\n", "CONNECT 4294967296\n",
			"CONNECT 0x10\n", "CONNECT port\n", "\n", "\x00\xff\n", "CONNECT 1" + strings.Repeat(" ", 40) + "\n", strings.Repeat("x", 100),
		} {
			c := connectTo(t, path)
			_, err := c.Write([]byte(line))
			require.NoError(t, err)
			closed(c)
		}
		c := connectTo(t, path)
		require.NoError(t, c.CloseWrite())
		closed(c)
		g.quiet("none of it came to the guest")

		for _, line := range []string{"CONNECT 7\n", "connect 7\r\n"} {
			c = connectTo(t, path)
			_, err := c.Write([]byte(line))
			require.NoError(t, err)
			p := g.next()
			g.send(packet{srcPort: 7, dstPort: p.srcPort, op: opRST})
			closed(c)
		}

		c = connectTo(t, path)
		_, err := c.Write([]byte("CONNECT 7\n"))
		require.NoError(t, err)
		p := g.next()
		require.NoError(t, c.Close())
		q := g.next()
		assert.EqualValues(t, opRST, q.op, "the client has gone")
		assert.Equal(t, p.srcPort, q.srcPort)

		g.send(packet{srcPort: 1, dstPort: 77, op: opRequest})
		assert.EqualValues(t, opRST, g.next().op, "no such socket")
		require.NoError(t, os.WriteFile(path+"_78", nil, 0o600))
		g.send(packet{srcPort: 1, dstPort: 78, op: opRequest})
		assert.EqualValues(t, opRST, g.next().op, "no socket")
		l := unixListen(t, path, 79)
		l.SetUnlinkOnClose(false)
		require.NoError(t, l.Close())
		g.send(packet{srcPort: 1, dstPort: 79, op: opRequest})
		assert.EqualValues(t, opRST, g.next().op, "nobody listens")

		for range 3 { // as many as may be
			_, _ = unixFromHost(g, path, 5)
		}
		closed(connectTo(t, path))

		g.Reset()
		g.until("the connections are over", func() bool { return g.dev.Stats().Conns == 0 })
		c = connectTo(t, path)
		_, err = c.Write([]byte("CONNECT 7\n"))
		require.NoError(t, err)
		closed(c)
	})
}

// TestUnixConnsAreBoundedAcrossDevices: connections with a Unix socket take descriptors,
// of which the process has a number for all its machines. Those of Go programs take none.
func TestUnixConnsAreBoundedAcrossDevices(t *testing.T) {
	const most = 4
	a, pathA := unixGuest(t, virtiotest.OpenMMIO, vsock.Options{})
	b, pathB := unixGuest(t, virtiotest.OpenMMIO, vsock.Options{})
	a.dev.SetMostUnixConns(most)
	b.dev.SetMostUnixConns(most)
	l := unixListen(t, pathA, 79)
	_, _ = unixFromHost(a, pathA, 5)
	_, _ = unixFromGuest(a, l, 1, 79)
	_, _ = unixFromHost(b, pathB, 5)
	last, _ := unixFromHost(b, pathB, 5)
	assert.EqualValues(t, most, vsock.UnixConns())
	for _, path := range []string{pathA, pathB} {
		_, err := connectTo(t, path).Read(make([]byte, 1))
		assert.ErrorIs(t, err, io.EOF)
	}
	a.send(packet{srcPort: 2, dstPort: 79, op: opRequest})
	assert.EqualValues(t, opRST, a.next().op)
	_, _ = fromHost(a, 6)

	require.NoError(t, last.Close())
	b.until("a place is free", func() bool { return vsock.UnixConns() == most-1 })
	b.Reset() // when the guest has nothing more to answer
	b.until("another is free", func() bool { return vsock.UnixConns() == most-2 })
	_, _ = unixFromHost(a, pathA, 7)
	require.NoError(t, a.dev.Close())
	assert.Zero(t, vsock.UnixConns())
}

// TestUnixSlowClient: half a line is waited for, but not for ever, and not at the
// cost of others; a line may come in pieces.
func TestUnixSlowClient(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		path := filepath.Join(socketDir(t), "v.sock")
		dev, err := vsock.NewTimed(vsock.Options{CID: guestCID, Path: path}, 500*time.Millisecond, 300*time.Millisecond, time.Minute)
		require.NoError(t, err)
		g := start(t, open, dev)
		slow, mute, pieces := connectTo(t, path), connectTo(t, path), connectTo(t, path)
		_, err = slow.Write([]byte("CONNE"))
		require.NoError(t, err)
		for _, b := range []byte("CONNECT 5\n") {
			_, err = pieces.Write([]byte{b})
			require.NoError(t, err)
		}
		s := g.accept(5)
		assert.Equal(t, fmt.Sprintf("OK %d\n", s.hostPort), readLine(t, pieces))
		for _, c := range []net.Conn{slow, mute} {
			_, err := io.ReadAll(c)
			if !errors.Is(err, syscall.ECONNRESET) {
				require.NoError(t, err)
			}
		}
		g.until("one is left", func() bool { return dev.Stats().Conns == 1 })

		c := connectTo(t, path)
		_, err = c.Write([]byte("CONNECT 6\n"))
		require.NoError(t, err)
		assert.EqualValues(t, opRequest, g.next().op)
		all, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Empty(t, all, "the guest does not answer")
		assert.EqualValues(t, opRST, g.next().op)
	})
}

func TestUnixPath(t *testing.T) {
	dir := socketDir(t)
	path := func(n int) string { return filepath.Join(dir, strings.Repeat("x", n-len(dir)-1)) }
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	for _, c := range []struct{ name, path, say string }{
		{"too long", path(108), "at most 107 bytes, and this has 108"},
		{"a file", file, "file already exists: remove it"},
		{"a directory", dir, "file already exists"},
		{"no directory", filepath.Join(dir, "no", "where"), "no such file"},
		{"in a file", filepath.Join(file, "x"), "not a directory"},
		{"abstract", "@x", "must be a file"},
		{"a zero byte", "x\x00y", "must be a file"},
	} {
		_, err := vsock.New(vsock.Options{CID: 3, Path: c.path})
		require.ErrorIs(t, err, vsock.ErrConfig, c.name)
		assert.ErrorContains(t, err, c.say, c.name)
		assert.EqualError(t, vsock.CheckPath(c.path), err.Error(), c.name)
	}
	require.NoError(t, vsock.CheckPath(path(107)))
	d, err := vsock.New(vsock.Options{CID: 3})
	require.NoError(t, err)
	require.ErrorIs(t, d.ServeUnix(""), vsock.ErrConfig)
	long := path(107)
	require.NoError(t, d.ServeUnix(long))
	require.ErrorIs(t, d.ServeUnix(path(100)), vsock.ErrConfig, "one is enough")
	assert.NoFileExists(t, path(100))
	_, err = vsock.New(vsock.Options{CID: 3, Path: long})
	require.ErrorIs(t, err, os.ErrExist)
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	assert.NoFileExists(t, long)
	require.ErrorIs(t, d.ServeUnix(long), net.ErrClosed)
	assert.NoFileExists(t, long)

	d, err = vsock.New(vsock.Options{CID: 3, Path: long})
	require.NoError(t, err)
	require.NoError(t, os.Remove(long))
	require.NoError(t, os.WriteFile(long, []byte("another's"), 0o600))
	require.NoError(t, d.Close())
	assert.FileExists(t, long, "what is not the device's stays")
	assert.FileExists(t, file)
}

// TestUnixDataBothWays is TestDataBothWays by way of Unix sockets, opened from
// either side.
func TestUnixDataBothWays(t *testing.T) {
	const size = 64 << 20
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{})
		c, s := unixFromHost(g, path, 5)
		sums := exchange(t, s, c, size)
		assert.Equal(t, sums[0], sums[1], "to the guest")
		assert.Equal(t, sums[2], sums[3], "from the guest")
		assert.EqualValues(t, size, g.dev.Stats().Sent.Bytes)
		assert.EqualValues(t, size, g.dev.Stats().Received.Bytes)
		s.close()

		c, s = unixFromGuest(g, unixListen(t, path, 6), 77, 6)
		sums = exchange(t, s, c, 1<<20)
		assert.Equal(t, sums[0], sums[1], "to the guest")
		assert.Equal(t, sums[2], sums[3], "from the guest")
	})
}

// TestUnixHalfClose: shutdown(2) on one side is SHUTDOWN on the other.
func TestUnixHalfClose(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{})
		over := func() {
			t.Helper()
			g.until("it is over", func() bool { return g.dev.Stats().Conns == 0 })
		}

		c, s := unixFromHost(g, path, 5)
		_, err := c.Write([]byte("all"))
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		g.until("the guest knows", func() bool { return s.peerShut == shutSend })
		assert.Equal(t, "all", s.read(3))
		s.write([]byte("answer"))
		s.send(opShutdown, shutSend, nil)
		all, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "answer", string(all))
		g.until("both are shut", func() bool { return s.reset })
		over()

		c, s = unixFromHost(g, path, 5)
		s.send(opShutdown, shutSend, nil)
		all, err = io.ReadAll(c)
		require.NoError(t, err)
		assert.Empty(t, all)
		_, err = c.Write([]byte("still"))
		require.NoError(t, err)
		assert.Equal(t, "still", s.read(5))
		require.NoError(t, c.Close())
		g.until("the guest knows", func() bool { return s.reset })
		over()

		c, s = unixFromHost(g, path, 5)
		s.send(opShutdown, shutReceive, nil)
		require.Eventually(t, func() bool { _, err := c.Write([]byte("x")); return errors.Is(err, syscall.EPIPE) }, patience, time.Millisecond)
		s.write([]byte("one way"))
		buf := make([]byte, 7)
		_, err = io.ReadFull(c, buf)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		g.until("the guest knows", func() bool { return s.reset })
		over()

		c, s = unixFromHost(g, path, 5)
		require.NoError(t, c.CloseRead())
		g.until("the guest knows", func() bool {
			if s.peerShut == 0 {
				s.send(opRW, 0, []byte("x"))
			}
			return s.peerShut&shutReceive != 0
		})
		require.NoError(t, c.Close())
		g.until("the guest knows", func() bool { return s.reset })
		over()

		// A client that goes with data unread has reset its connection.
		c, s = unixFromHost(g, path, 5)
		s.write([]byte("unread"))
		require.NoError(t, c.Close())
		g.until("the guest knows", func() bool { return s.reset })
		over()

		// What a client has left behind is still sent, when there is credit.
		c, s = unixFromHost(g, path, 5)
		s.alloc = 10
		s.send(opCreditUpdate, 0, nil)
		_, err = c.Write([]byte("0123456789abcde"))
		require.NoError(t, err)
		require.NoError(t, c.Close())
		g.until("there is some", func() bool { return len(s.in) == 10 })
		g.quiet("no end before the data")
		require.Zero(t, s.peerShut&shutSend)
		s.in, s.fwd = s.in[10:], 10
		s.send(opCreditUpdate, 0, nil)
		g.until("the rest", func() bool { return s.reset })
		assert.Equal(t, "abcde", string(s.in))
		over()

		// The end needs no credit.
		c, s = unixFromHost(g, path, 5)
		s.alloc = 0
		s.send(opCreditUpdate, 0, nil)
		require.NoError(t, c.CloseWrite())
		g.until("the guest knows", func() bool { return s.peerShut == shutSend })
	})
}

// TestUnixReaderThatNeverReads: the guest's credit ends, others go on, and what was
// taken is delivered after the guest has gone.
func TestUnixReaderThatNeverReads(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{})
		c, s := unixFromHost(g, path, 5)
		total := 0
		// A Unix socket takes some before it is full; after that the window ends it.
		for {
			n := min(s.credit(), 64<<10)
			if n == 0 {
				g.quiet("no credit")
				if s.credit() == 0 {
					break
				}
				continue
			}
			s.written += uint32(n)
			s.send(opRW, 0, make([]byte, n))
			total += n
			require.Less(t, total, 16<<20)
		}
		other, so := unixFromHost(g, path, 6)
		so.write([]byte("goes on"))
		buf := make([]byte, 7)
		_, err := io.ReadFull(other, buf)
		require.NoError(t, err)
		s.close()
		all, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Len(t, all, total)
	})
}

// TestGoListenerFirst: a Go listener's port is not a Unix socket's.
func TestGoListenerFirst(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{})
		unixListen(t, path, 8)
		fromGuest(g, listen(g, 8), 1)
	})
}

// TestUnixBacklogFull: a server that does not accept refuses when it has been waited
// for.
func TestUnixBacklogFull(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		path := filepath.Join(socketDir(t), "v.sock")
		dev, err := vsock.NewTimed(vsock.Options{CID: guestCID, Path: path}, 100*time.Millisecond, time.Minute, time.Minute)
		require.NoError(t, err)
		g := start(t, open, dev)
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer func() { assert.NoError(t, syscall.Close(fd)) }()
		require.NoError(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path + "_5"}))
		require.NoError(t, syscall.Listen(fd, 0))
		g.connect(1, 5)
		refused := g.socket(2, 5)
		refused.send(opRequest, 0, nil)
		g.until("the second is refused", func() bool { return refused.reset })
		third := g.socket(3, 5)
		third.send(opRequest, 0, nil)
		nfd, _, err := syscall.Accept(fd)
		require.NoError(t, err)
		defer func() { assert.NoError(t, syscall.Close(nfd)) }()
		g.until("there is room", func() bool { return third.isOpen })
	})
}

// TestUnixCallsAndGivesUp: a guest that calls and gives up, again and again, a port
// whose server does not accept, has no more calls under way than connections.
func TestUnixCallsAndGivesUp(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		const most = 20
		g, path := unixGuest(t, open, vsock.Options{MaxConns: most})
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer func() { assert.NoError(t, syscall.Close(fd)) }()
		require.NoError(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path + "_5"}))
		require.NoError(t, syscall.Listen(fd, 0))
		g.connect(1, 5)
		before := runtime.NumGoroutine()
		for i := range uint32(2000) {
			g.send(packet{srcPort: 10 + i, dstPort: 5, op: opRequest})
			g.send(packet{srcPort: 10 + i, dstPort: 5, op: opRST})
			g.poll()
			g.in = nil
			require.LessOrEqual(t, g.dev.Stats().Conns, most)
			// A goroutine that has ended counts until it is gone.
			g.Until("there are few goroutines", func() bool { return runtime.NumGoroutine() <= before+most+10 })
		}
		g.until("the calls have ended", func() bool { return g.dev.Stats().Conns == 1 })
	})
}

// TestCloseWhileAccepting: a client that Close comes before is closed, as those
// that had said something.
func TestCloseWhileAccepting(t *testing.T) {
	d, err := vsock.New(vsock.Options{CID: guestCID, Path: filepath.Join(socketDir(t), "v.sock")})
	require.NoError(t, err)
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	client := os.NewFile(uintptr(fds[0]), "client")
	defer func() { assert.NoError(t, client.Close()) }()
	require.NoError(t, client.SetReadDeadline(time.Now().Add(patience)))
	require.NoError(t, d.CloseWhileAccepting(fds[1]))
	_, err = client.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	assert.Zero(t, d.Stats().Conns)
}
