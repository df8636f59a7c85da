package vsock_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/virtiotest"
	"github.com/vole-vmm/vole/virtio/vsock"
)

// bounded is a context of a test's patience.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// TestReset: the guest's reset ends every connection, in whatever state, and
// listeners stay. What had come before can still be read.
func TestReset(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{})
		l := listen(g, 1)
		for range 2 {
			idle, _ := fromHost(g, 5)
			accepted, s := fromGuest(g, l, 6)
			s.write([]byte("before"))
			g.connect(7, 1)
			client, su := unixFromHost(g, path, 8)
			su.write([]byte("before"))
			greets := connectTo(t, path)
			_, err := greets.Write([]byte("CONN"))
			require.NoError(t, err)
			full, sf := fromHost(g, 9)
			sf.manualCredit = true
			writing := async(func() (int, error) { return full.Write(make([]byte, 1<<20)) })
			reading := async(func() (int, error) { return idle.Read(make([]byte, 1)) })
			g.until("the guest is full", func() bool { return sf.asked == 1 })
			dialing := dial(g, 10)
			g.next()

			g.Reset()
			after, irqs := g.Snapshot(), g.QueueIRQ.Count()
			_, err = await(t, reading)
			require.ErrorIs(t, err, syscall.ECONNRESET)
			_, err = await(t, writing)
			require.ErrorIs(t, err, syscall.ECONNRESET)
			_, err = await(t, dialing)
			require.ErrorIs(t, err, syscall.ECONNRESET)
			b := make([]byte, 6)
			_, err = io.ReadFull(accepted, b)
			require.NoError(t, err)
			_, err = accepted.Read(b)
			require.ErrorIs(t, err, syscall.ECONNRESET)
			all, err := io.ReadAll(client)
			require.NoError(t, err)
			assert.Equal(t, "before", string(all))
			c, err := l.Accept()
			require.NoError(t, err)
			_, err = c.Read(b)
			require.ErrorIs(t, err, syscall.ECONNRESET)
			require.NoError(t, c.Close())
			for _, c := range []io.Closer{idle, accepted, full} {
				require.NoError(t, c.Close())
			}
			assert.Equal(t, after, g.Snapshot(), "the guest's memory after its reset")
			assert.Equal(t, irqs, g.QueueIRQ.Count(), "interrupts after its reset")
			g.until("none is left but who has not said where to", func() bool { return g.dev.Stats().Conns == 1 })

			g.boot()
			_, err = greets.Write([]byte("ECT 11\n"))
			require.NoError(t, err)
			s11 := g.accept(11)
			readLine(t, greets)
			require.NoError(t, greets.Close())
			g.until("it ends", func() bool { return s11.reset })
		}
	})
}

// TestPause: connections stay, nothing is written to the guest's memory, and nobody
// who waits holds up the pause. Afterwards all goes on.
func TestPause(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{})
		listen(g, 1)
		c, s := fromHost(g, 5)
		client, su := unixFromHost(g, path, 6)
		full, sf := fromHost(g, 7)
		sf.manualCredit = true
		go func() { _, _ = full.Write(make([]byte, 1<<20)) }()
		g.until("the guest is full", func() bool { return sf.asked == 1 })
		reading := async(func() (int, error) { return c.Read(make([]byte, 4)) })

		require.NoError(t, g.Function.Pause(bounded(t)))
		writing := async(func() (int, error) { return c.Write([]byte("while paused")) })
		_, err := client.Write([]byte("while paused"))
		require.NoError(t, err)
		dialing := dial(g, 8)
		s9 := g.socket(9, 1)
		copy(g.Bytes(g.hdr), g.fill(packet{srcPort: 9, dstPort: 1, op: opRequest}).header())
		g.tx.Add(g.hdr)
		before := g.Snapshot()
		g.tx.Kick()
		g.Until("the write, the client and the call wait", func() bool { return g.dev.Waiting() == 3 })
		_, err = full.Read(nil)
		require.NoError(t, err)
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Hour)))
		assert.Equal(t, before, g.Snapshot(), "the guest's memory during a pause")

		g.Function.Resume()
		g.tx.Next()
		g.until("the guest's call is accepted", func() bool { return s9.isOpen })
		assert.Equal(t, "while paused", s.read(12))
		assert.Equal(t, "while paused", su.read(12))
		g.accept(8)
		_, err = await(t, dialing)
		require.NoError(t, err)
		_, err = await(t, writing)
		require.NoError(t, err)
		s.write([]byte("data"))
		_, err = await(t, reading)
		require.NoError(t, err)

		// A reset and the end while paused.
		require.NoError(t, g.Function.Pause(bounded(t)))
		writing = async(func() (int, error) { return c.Write(make([]byte, 1<<20)) })
		g.Until("the write waits", func() bool { return g.dev.Waiting() == 1 })
		g.Reset()
		_, err = await(t, writing)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		g.Function.Resume()
		g.boot()
		c, _ = fromHost(g, 5)
		require.NoError(t, g.Function.Pause(bounded(t)))
		reading = async(func() (int, error) { return c.Read(make([]byte, 4)) })
		require.NoError(t, g.Function.Close(bounded(t)))
		_, err = await(t, reading)
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

// TestCloseLeavesNothing: no goroutine, descriptor or file, with connections in
// every state.
func TestCloseLeavesNothing(t *testing.T) {
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(list)
	}
	for name, open := range map[string]virtiotest.Opener{"mmio": virtiotest.OpenMMIO, "pci": virtiotest.OpenPCI} {
		t.Run(name, func(t *testing.T) {
			dir := socketDir(t)
			p, err := os.Open(os.DevNull) // the runtime's poller is there for good
			require.NoError(t, err)
			require.NoError(t, p.Close())
			goroutines, descriptors := runtime.NumGoroutine(), files()
			for i := range 3 {
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					path := filepath.Join(dir, "v.sock")
					g := newGuest(t, open, vsock.Options{Path: path})
					l := listen(g, 1)
					c, s := fromHost(g, 2)
					s.manualCredit = true
					g.connect(3, 1)
					client, su := unixFromHost(g, path, 4)
					ul := unixListen(t, path, 5)
					server, _ := unixFromGuest(g, ul, 5, 5)
					_, err := connectTo(t, path).Write([]byte("CONN"))
					require.NoError(t, err)
					su.write(make([]byte, 1000))
					writing := async(func() (int, error) { return c.Write(make([]byte, 1<<20)) })
					accepting := async(func() (int, error) {
						for {
							if _, err := l.Accept(); err != nil {
								return 0, err
							}
						}
					})
					g.until("the guest is full", func() bool { return s.asked == 1 })
					dialing := dial(g, 10)
					g.next()
					if i%2 == 0 {
						require.NoError(t, g.Function.Close(bounded(t)))
					}
					require.NoError(t, g.dev.Close())
					assert.NoFileExists(t, path)
					_, err = await(t, writing)
					require.ErrorIs(t, err, syscall.ECONNRESET)
					_, err = await(t, accepting)
					require.ErrorIs(t, err, net.ErrClosed)
					_, err = await(t, dialing)
					require.Error(t, err)
					all, err := io.ReadAll(client)
					require.NoError(t, err)
					assert.Len(t, all, 1000)
					_, err = io.ReadAll(server)
					require.NoError(t, err)
				})
			}
			end := time.Now().Add(patience)
			for runtime.NumGoroutine() > goroutines || files() > descriptors {
				if time.Now().After(end) {
					stacks := make([]byte, 1<<16)
					require.Fail(t, "something is left", "%d goroutines and %d descriptors, before %d and %d\n%s",
						runtime.NumGoroutine(), files(), goroutines, descriptors, stacks[:runtime.Stack(stacks, true)])
				}
				time.Sleep(time.Millisecond) // nothing tells when a runtime's goroutine is gone
			}
		})
	}
}

// TestStress has connections come and go from both sides, with data, while the
// machine pauses, resumes and resets, and is closed in the end: for the race
// detector, and for everything that waits to come to an end.
func TestStress(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 5
	}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, path := unixGuest(t, open, vsock.Options{MaxConns: 40})
		l := listen(g, 1)
		ul := unixListen(t, path, 2)
		var work sync.WaitGroup
		stop := make(chan struct{})
		stopped := func() bool {
			select {
			case <-stop:
				return true
			default:
				return false
			}
		}
		use := func(c net.Conn) {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Millisecond))
			b := make([]byte, 10_000)
			for range 5 {
				if _, err := c.Write(b); err != nil {
					return
				}
				if _, err := c.Read(b); err != nil {
					return
				}
			}
		}
		for i := range uint32(3) {
			work.Go(func() {
				for !stopped() {
					if c, err := g.dev.Dial(t.Context(), 100+i); err == nil {
						use(c)
					}
				}
			})
			work.Go(func() {
				for !stopped() {
					c, err := net.Dial("unix", path)
					if err != nil {
						return
					}
					_, _ = fmt.Fprintf(c, "CONNECT %d\n", 200+i)
					use(c)
				}
			})
		}
		for _, accept := range []func() (net.Conn, error){l.Accept, ul.Accept} {
			work.Go(func() {
				for {
					c, err := accept()
					if err != nil {
						return
					}
					work.Go(func() { use(c) })
				}
			})
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		g.manual = true
		for range rounds {
			for range 200 {
				g.poll()
				for _, p := range g.in {
					answer := packet{srcPort: p.dstPort, dstPort: p.srcPort, bufAlloc: 1 << 30, fwdCnt: 0}
					switch {
					case p.op == opRequest && rnd.IntN(4) > 0:
						answer.op = opResponse
					case p.op == opRW:
						answer.op, answer.data = opRW, make([]byte, rnd.IntN(3000))
					case p.op == opRST || p.op == opCreditUpdate:
						continue
					default:
						answer.op = opRST
					}
					g.send(answer)
				}
				g.in = nil
				g.send(packet{srcPort: rnd.Uint32N(20), dstPort: 1 + rnd.Uint32N(2), op: uint16(rnd.IntN(8)), bufAlloc: 1 << 20, data: make([]byte, rnd.IntN(100))})
			}
			switch rnd.IntN(4) {
			case 0:
				g.boot()
				g.manual = true
			default:
				require.NoError(t, g.Function.Pause(bounded(t)))
				before := g.Snapshot()
				waits(t)
				assert.Equal(t, before, g.Snapshot())
				g.Function.Resume()
			}
		}
		require.NoError(t, g.Function.Close(bounded(t)))
		close(stop)
		require.NoError(t, ul.Close())
		require.NoError(t, g.dev.Close())
		work.Wait()
		assert.Zero(t, g.dev.Stats().Conns)
	})
}
