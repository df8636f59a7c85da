package vsock_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/virtiotest"
	"github.com/vole-vmm/vole/virtio/vsock"
)

// TestCreditOfHost: the guest may send exactly what it was told (5.10.6.3), one
// byte more ends the connection, and a reader gives credit back.
func TestCreditOfHost(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		c, s := fromHost(g, 5)
		require.Equal(t, vsock.MaxWindow, s.credit())
		s.write(make([]byte, vsock.MaxWindow))
		g.quiet("no credit without a reader")
		require.Zero(t, s.updates)

		s.send(opCreditRequest, 0, nil)
		g.until("the reply", func() bool { return s.updates == 1 })
		require.Zero(t, s.credit())
		require.EqualValues(t, 0, s.peerFwd)

		read := func(n int) {
			t.Helper()
			_, err := io.ReadFull(c, make([]byte, n))
			require.NoError(t, err)
		}
		read(vsock.MaxWindow/4 - 1)
		g.quiet("not yet")
		require.Equal(t, 1, s.updates)
		s.send(opCreditRequest, 0, nil)
		g.until("the reply", func() bool { return s.updates == 2 })
		require.Equal(t, vsock.MaxWindow/4-1, s.credit(), "to the byte")
		read(vsock.MaxWindow / 4)
		g.until("credit unasked", func() bool { return s.updates == 3 })
		require.Equal(t, vsock.MaxWindow/2-1, s.credit())
		require.EqualValues(t, vsock.MaxWindow/2-1, s.peerFwd)

		// A packet of data tells it, too.
		read(100)
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		s.read(1)
		require.EqualValues(t, vsock.MaxWindow/2+99, s.peerFwd)
		require.Equal(t, 3, s.updates)

		s.write(make([]byte, s.credit()))
		s.send(opRW, 0, []byte("x"))
		g.until("one too many", func() bool { return s.reset })
		all, err := io.ReadAll(c)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		assert.Len(t, all, vsock.MaxWindow, "what was within the credit")
	})
}

// TestCreditOfGuest: the device sends exactly what the guest has room for, asks once
// when that ends, and goes on with what it is told.
func TestCreditOfGuest(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, kind := range []string{"go", "unix"} {
			g, path := unixGuest(t, open, vsock.Options{})
			var c io.Writer
			var s *socket
			if kind == "go" {
				c, s = fromHost(g, 5)
			} else {
				c, s = unixFromHost(g, path, 5)
			}
			s.manualCredit = true
			s.alloc = 10_000
			s.send(opCreditUpdate, 0, nil)
			w := async(func() (int, error) { return c.Write(make([]byte, 30_000)) })
			g.until("all that has room", func() bool { return len(s.in) == 10_000 && s.asked == 1 })
			for range 10 {
				s.send(opCreditUpdate, 0, nil)
			}
			g.quiet("nothing new, nothing more")
			require.Len(t, s.in, 10_000)
			require.Equal(t, 1, s.asked)
			s.fwd = 1
			s.in = s.in[1:]
			s.send(opCreditUpdate, 0, nil)
			g.until("one byte", func() bool { return len(s.in) == 10_000 && s.asked == 2 })
			s.alloc = 5000 // smaller than what is there
			s.send(opCreditUpdate, 0, nil)
			s.fwd += 5000
			s.in = s.in[5000:]
			s.send(opCreditUpdate, 0, nil)
			g.quiet("no room")
			require.Len(t, s.in, 5000)
			s.alloc = 100_000
			s.send(opCreditUpdate, 0, nil)
			g.until("the rest", func() bool { return len(s.in) == 30_000-5001 })
			n, err := await(t, w)
			require.NoError(t, err)
			assert.Equal(t, 30_000, n)
			require.NoError(t, g.dev.Close())
		}
	})
}

// TestReaderThatNeverReads: a host's reader that does not read costs its window of
// memory, and stalls nobody else; nor does a guest that does not read.
func TestReaderThatNeverReads(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		const stuck = 20
		for i := range uint32(stuck) {
			_, s := fromHost(g, 100+i)
			s.write(make([]byte, s.credit()))
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		assert.Less(t, after.HeapAlloc, before.HeapAlloc+stuck*(vsock.MaxWindow+64<<10)+1<<20)

		full, s := fromHost(g, 6)
		s.manualCredit = true
		w := async(func() (int, error) { return full.Write(make([]byte, 1<<20)) })
		g.until("the guest is full", func() bool { return len(s.in) == int(s.alloc) && s.asked == 1 })

		c, s2 := fromHost(g, 7)
		s2.write([]byte("ping"))
		b := make([]byte, 4)
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
		_, err = c.Write([]byte("pong"))
		require.NoError(t, err)
		assert.Equal(t, "pong", s2.read(4))

		require.NoError(t, full.SetWriteDeadline(time.Unix(1, 0)))
		n, err := await(t, w)
		isTimeout(t, err)
		assert.EqualValues(t, s.alloc, n, "how much was written is said")
	})
}

// TestFair: connections take turns, whoever has more to send.
func TestFair(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		const conns = 4
		var socks [conns]*socket
		for i := range socks {
			var c net.Conn
			c, socks[i] = fromHost(g, uint32(i+1))
			socks[i].alloc, socks[i].manualCredit = 1<<30, true
			go func() { _, _ = c.Write(make([]byte, 8<<20)) }()
		}
		for _, s := range socks {
			s.send(opCreditUpdate, 0, nil)
		}
		most := 0
		g.until("one is through", func() bool {
			for _, s := range socks {
				most = max(most, len(s.in))
			}
			return most > 4<<20
		})
		for i, s := range socks {
			assert.Greater(t, len(s.in), most/2, "connection %d", i)
		}
	})
}

// TestManyConnections: a thousand at once, from either side, each with its data.
func TestManyConnections(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		const each = 500
		g := newGuest(t, open, vsock.Options{})
		l := listen(g, 1)
		echo := func(c net.Conn) {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go echo(c)
			}
		}()
		var socks []*socket
		for i := range uint32(each) {
			s := g.socket(i+1, 1)
			s.send(opRequest, 0, nil)
			socks = append(socks, s)
			go func() {
				c, err := g.dev.Dial(t.Context(), 10_000+i)
				if err == nil {
					echo(c)
				}
			}()
		}
		for range each {
			p := g.next()
			require.EqualValues(t, opRequest, p.op)
			g.in = append([]packet{p}, g.in...)
			socks = append(socks, g.accept(p.dstPort))
		}
		g.until("all are open", func() bool {
			for _, s := range socks {
				if !s.isOpen {
					return false
				}
			}
			return true
		})
		assert.Equal(t, 2*each, g.dev.Stats().Conns)
		text := func(i int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("connection %d.", i)), 10+i%100) }
		for i, s := range socks {
			s.write(text(i))
		}
		for i, s := range socks {
			assert.Equal(t, string(text(i)), s.read(len(text(i))))
		}
		for _, s := range socks {
			s.close()
		}
		g.until("none is left", func() bool { return g.dev.Stats().Conns == 0 })
		s := g.dev.Stats()
		assert.Zero(t, s.LostResets)
		assert.EqualValues(t, each, s.FromGuest)
		assert.EqualValues(t, each, s.ToGuest)
	})
}

// TestDeadlines are the rules of net.Conn.
func TestDeadlines(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		c, s := fromHost(g, 5)
		s.manualCredit, s.alloc = true, 0
		s.send(opCreditUpdate, 0, nil)
		buf := make([]byte, 10)
		ops := map[string]struct {
			set func(time.Time) error
			do  func([]byte) (int, error)
		}{"read": {c.SetReadDeadline, c.Read}, "write": {c.SetWriteDeadline, c.Write}}
		for name, op := range ops {
			t.Run(name, func(t *testing.T) {
				require.NoError(t, op.set(time.Unix(1, 0)))
				for range 2 {
					_, err := op.do(buf)
					isTimeout(t, err)
				}
				require.NoError(t, op.set(time.Now().Add(30*time.Millisecond)))
				begin := time.Now()
				_, err := op.do(buf)
				isTimeout(t, err)
				assert.GreaterOrEqual(t, time.Since(begin), 25*time.Millisecond)

				// Moved while somebody waits: later, then away, then into the past.
				require.NoError(t, op.set(time.Now().Add(time.Hour)))
				w := async(func() (int, error) { return op.do(buf) })
				waits(t)
				require.NoError(t, op.set(time.Time{}))
				select {
				case r := <-w:
					require.Fail(t, "it does not wait", "%v", r)
				case <-time.After(10 * time.Millisecond):
				}
				require.NoError(t, op.set(time.Now()))
				_, err = await(t, w)
				isTimeout(t, err)
				require.NoError(t, op.set(time.Time{}))
			})
		}
		// An operation that has timed out has done nothing: no byte is lost.
		s.write([]byte("0123456789"))
		_, err := io.ReadFull(c, buf)
		require.NoError(t, err)
		assert.Equal(t, "0123456789", string(buf))
		s.alloc = 100
		s.send(opCreditUpdate, 0, nil)
		_, err = c.Write([]byte("abc"))
		require.NoError(t, err)
		assert.Equal(t, "abc", s.read(3))

		// Close ends both.
		s.asked, s.alloc = 0, 0
		s.send(opCreditUpdate, 0, nil)
		r := async(func() (int, error) { return c.Read(buf) })
		w := async(func() (int, error) { return c.Write(make([]byte, 1000)) })
		g.until("the write waits", func() bool { return s.asked > 0 })
		require.NoError(t, c.Close())
		_, err = await(t, r)
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = await(t, w)
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

// waits gives goroutines the chance to begin what they are for; a test that calls
// it holds, whether they have or not.
func waits(testing.TB) {
	for range 10 {
		runtime.Gosched()
	}
}

// TestConcurrentMethods: all at once, from many goroutines; for the race detector.
func TestConcurrentMethods(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		c, s := fromHost(g, 5)
		done := make(chan struct{})
		const each = 50
		n := 0
		call := func(f func()) {
			n++
			go func() {
				for range each {
					f()
				}
				done <- struct{}{}
			}()
		}
		for range 3 {
			call(func() { _, _ = c.Read(make([]byte, 1000)) })
			call(func() { _, _ = c.Write(make([]byte, 1000)) })
			call(func() { _ = c.SetDeadline(time.Now().Add(time.Millisecond)) })
			call(func() { _ = c.SetReadDeadline(time.Now().Add(-time.Millisecond)) })
			call(func() { _ = c.LocalAddr().String() + c.RemoteAddr().String() })
			call(func() { g.dev.Stats() })
		}
		g.until("all have ended", func() bool {
			s.in = nil
			select {
			case <-done:
				n--
			default:
				if s.credit() > 1000 {
					s.written += 100
					s.send(opRW, 0, make([]byte, 100))
				}
			}
			_ = c.SetDeadline(time.Now().Add(time.Millisecond)) // for those that wait when nobody else does it
			return n == 0
		})
	})
}

// TestWriterOrder: several writers do not mix their data.
func TestWriterOrder(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		c, s := fromHost(g, 5)
		const writers, size = 8, 50_000
		errs := make(chan error, writers)
		for i := range writers {
			go func() {
				_, err := c.Write(bytes.Repeat([]byte{byte('a' + i)}, size))
				errs <- err
			}()
		}
		var all []byte
		s.got = func(b []byte) { all = append(all, b...) }
		g.until("all is here", func() bool { return len(all) == writers*size })
		for range writers {
			require.NoError(t, <-errs)
		}
		for len(all) > 0 {
			assert.Equal(t, bytes.Repeat(all[:1], size), all[:size])
			all = all[size:]
		}
	})
}

// TestEvents: TRANSPORT_RESET is told when there is a buffer, once (5.10.6.7).
func TestEvents(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		q := g.Queues[2]
		c, _ := fromHost(g, 5)
		first, second := g.In(4), g.In(8)
		g.dev.TransportReset()
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		assert.Equal(t, vsock.State{CID: guestCID, ResetEvent: true}, g.dev.State())
		q.Add(first)
		q.Kick()
		assert.EqualValues(t, 4, q.Next().Len)
		assert.Equal(t, make([]byte, 4), g.Bytes(first))
		assert.Equal(t, vsock.State{CID: guestCID}, g.dev.State())
		q.Add(second)
		q.Kick()
		g.quiet("nothing is sent on the rx queue for it")
		assert.Zero(t, q.UsedIndex()-1)
		g.dev.TransportReset()
		assert.EqualValues(t, 4, q.Next().Len)
		q.Add(g.In(3))
		q.Kick()
		g.dev.TransportReset()
		g.NeedsReset()

		// Before there is a driver.
		g.Reset()
		g.dev.TransportReset()
		g.boot()
		q = g.Queues[2]
		q.Add(g.In(4))
		q.Kick()
		assert.EqualValues(t, 4, q.Next().Len)
	})
}

// TestFewBuffers: whoever sends when a buffer comes, it is not overlooked: with one or
// two buffers all data still arrives.
func TestFewBuffers(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{})
		for _, few := range []int{1, 2} {
			g.few = few
			g.boot()
			const size = 1 << 20
			got := 0
			for i := range uint32(6) {
				var c io.Writer
				var s *socket
				if i%2 == 0 {
					c, s = fromHost(g, i+1)
				} else {
					c, s = unixFromHost(g, path, i+1)
				}
				s.got = func(b []byte) { got += len(b) }
				go func() {
					for range size / 8192 {
						if _, err := c.Write(make([]byte, 8192)); err != nil {
							return
						}
					}
				}()
			}
			g.until("all has come", func() bool { return got == 6*size })
		}
	})
}
