package vsock_test

import (
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
	"github.com/vole-vmm/vole/virtio/vsock"
)

// TestGarbage: packets that no kernel sends. Those that name no connection are
// answered with a reset or not at all; others end theirs.
func TestGarbage(t *testing.T) {
	const port, hostPort = 20, 1000
	const none, reset, ends = "no answer", "a reset, and the connection goes on", "the end of the connection"
	for _, c := range []struct {
		name string
		p    packet
		want string
	}{
		{"another guest's CID", packet{srcCID: 43, op: opRST}, none},
		{"the host's CID as the source", packet{srcCID: 2, op: opRST}, none},
		{"a source with high bits", packet{srcCID: 1<<32 | guestCID, op: opRST}, none},
		{"to another guest", packet{dstCID: 43}, reset},
		{"to a CID with high bits", packet{dstCID: 1<<32 | 2}, reset},
		{"to itself", packet{dstCID: guestCID}, reset},
		{"a seqpacket", packet{typ: 2}, reset},
		{"an unknown type", packet{typ: 0xffff}, reset},
		{"a reset of an unknown type", packet{typ: 0xffff, op: opRST}, none},
		{"another port of its own", packet{srcPort: 21}, reset},
		{"another port of the host's", packet{dstPort: 1001}, reset},
		{"op 0", packet{op: 0}, ends},
		{"op 8", packet{op: 8}, ends},
		{"op 65535", packet{op: 65535}, ends},
		{"a request on a connection", packet{op: opRequest}, ends},
		{"a response on an open connection", packet{op: opResponse}, ends},
		{"more than is there", packet{op: opRW, len: 100, data: []byte("short")}, ends},
		{"the most", packet{op: opRW, len: 0xffffffff, data: []byte("short")}, ends},
		{"less than is there", packet{op: opRW, len: 2, data: []byte("okay")}, none},
		{"no data", packet{op: opRW}, none},
		{"a control packet with data", packet{op: opCreditUpdate, data: []byte("data")}, none},
		{"a control packet with a lie", packet{op: opCreditUpdate, len: 1 << 31}, none},
		{"a shutdown of nothing", packet{op: opShutdown, flags: 0xfffffffc}, none},
		{"more read than sent", packet{op: opCreditUpdate, fwdCnt: 1 << 31}, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				g := newGuest(t, open, vsock.Options{})
				l := listen(g, hostPort)
				conn, s := fromGuest(g, l, port)
				p := c.p
				if c.want != ends && p.op == 0 {
					p.op = opRW
				}
				if p.srcPort == 0 {
					p.srcPort = port
				}
				if p.dstPort == 0 {
					p.dstPort = hostPort
				}
				p.bufAlloc = s.alloc
				want := g.fill(p)
				g.send(p)
				switch c.want {
				case none:
					g.quiet(c.name)
				case reset:
					if want.srcPort == port && want.dstPort == hostPort && want.dstCID == 2 {
						g.until("a reset", func() bool { return s.reset })
						s.reset = false
						break
					}
					r := g.next()
					assert.EqualValues(t, opRST, r.op)
					assert.Equal(t, want.dstCID, r.srcCID)
					assert.Equal(t, want.typ, r.typ)
					assert.Equal(t, [2]uint32{want.srcPort, want.dstPort}, [2]uint32{r.dstPort, r.srcPort})
				case ends:
					g.until("a reset", func() bool { return s.reset })
					_, err := conn.Read(make([]byte, 10))
					require.ErrorIs(t, err, syscall.ECONNRESET)
					require.NoError(t, conn.Close())
					assert.Zero(t, g.dev.Stats().Conns)
					// The same ports can be used again.
					fromGuest(g, l, port)
					return
				}
				require.False(t, s.reset)
				if c.p.op == opRW && c.p.len == 2 {
					b := make([]byte, 10)
					n, err := conn.Read(b)
					require.NoError(t, err)
					assert.Equal(t, "ok", string(b[:n]))
				}
				s.send(opRW, 0, []byte("on"))
				b := make([]byte, 2)
				_, err := io.ReadFull(conn, b)
				require.NoError(t, err)
				assert.Equal(t, "on", string(b))
			})
		})
	}
}

// TestGarbageBeforeOpen: what comes in place of an answer refuses.
func TestGarbageBeforeOpen(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		for _, op := range []uint16{0, opRequest, opShutdown, opRW, opCreditRequest, 9} {
			c := dial(g, 5)
			p := g.next()
			g.send(packet{srcPort: 5, dstPort: p.srcPort, op: opCreditUpdate}) // that is no answer
			g.send(packet{srcPort: 5, dstPort: p.srcPort, op: op})
			assert.EqualValues(t, opRST, g.next().op)
			_, err := await(t, c)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		}
		for op := range uint16(12) {
			g.send(packet{srcPort: 5, dstPort: 6, op: op})
			if op != opRST {
				assert.EqualValues(t, opRST, g.next().op, "op %d without a connection", op)
			}
		}
		g.quiet("nothing else")
	})
}

// TestFraming: a packet may be cut anywhere (2.7.4), in both directions, and one
// that is too short is dropped.
func TestFraming(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, kind := range []string{"go", "unix"} {
			g, path := unixGuest(t, open, vsock.Options{})
			var c io.ReadWriter
			var s *socket
			if kind == "go" {
				c, s = fromHost(g, 5)
			} else {
				c, s = unixFromHost(g, path, 5)
			}
			raw := append(g.fill(packet{srcPort: 5, dstPort: s.hostPort, op: opRW, bufAlloc: s.alloc, data: []byte("0123456789")}).header(), "0123456789"...)
			for _, cuts := range [][]int{{1}, {43}, {44}, {45}, {8, 16, 44, 50}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {44, 45, 46, 47, 48, 49, 50, 51, 52, 53}} {
				var bufs []virtiotest.Buffer
				at := 0
				for _, cut := range append(cuts, len(raw)) {
					bufs = append(bufs, g.Out(raw[at:cut]))
					at = cut
				}
				bufs = append(bufs, g.In(100)) // not asked for, and not written
				g.tx.AddIndirect(bufs...)
				g.tx.Kick()
				assert.Zero(t, g.tx.Next().Len)
				b := make([]byte, 10)
				_, err := io.ReadFull(c, b)
				require.NoError(t, err)
				assert.Equal(t, "0123456789", string(b))
			}
			dropped := g.dev.Stats().Dropped
			for _, n := range []int{1, 43} {
				g.tx.Add(g.Out(raw[:n]))
				g.tx.Kick()
				g.tx.Next()
			}
			g.tx.Add(g.In(100))
			g.tx.Kick()
			g.tx.Next()
			assert.Equal(t, dropped+3, g.dev.Stats().Dropped)

			// The device's packets: all buffers but these are taken away.
			g.Start(0)
			g.rx, g.tx, g.rxBufs = g.Queues[0], g.Queues[1], nil
			add := func(sizes ...int) func() packet {
				bufs := []virtiotest.Buffer{g.Out([]byte("not the device's to write"))}
				for _, n := range sizes {
					bufs = append(bufs, g.In(n))
				}
				g.rx.Add(bufs...)
				return func() packet {
					u := g.rx.Next()
					var b []byte
					for _, x := range bufs[1:] {
						b = append(b, g.Bytes(x)...)
					}
					assert.Equal(t, "not the device's to write", string(g.Bytes(bufs[0])))
					return parse(b[:u.Len])
				}
			}
			var conn io.Writer
			var hostPort uint32
			request := add(headerSize)
			g.rx.Kick()
			var dialing <-chan result[vconn]
			if kind == "go" {
				dialing = async(func() (vconn, error) { return g.dev.Dial(t.Context(), 5) })
			} else {
				c := connectTo(t, path)
				_, err := c.Write([]byte("CONNECT 5\n"))
				require.NoError(t, err)
				conn = c
			}
			hostPort = request().srcPort
			g.send(packet{srcPort: 5, dstPort: hostPort, op: opResponse, bufAlloc: 1 << 20})
			if kind == "go" {
				var err error
				conn, err = await(t, dialing)
				require.NoError(t, err)
			} else {
				readLine(t, conn.(io.Reader))
			}
			var got []byte
			reads := []func() packet{
				add(1, 43, 3), add(20, 20, 4, 1, 1), add(44), add(44, 4), add(45), add(50, 4, 1), add(44), add(10, 40), add(headerSize + 100),
			}
			const text = "abcdefghijklmnopqrstuvwxyz"
			writing := async(func() (int, error) { return conn.Write([]byte(text)) })
			for len(got) < len(text) {
				g.rx.Kick()
				p := reads[0]()
				reads = reads[1:]
				if len(p.data) == 0 {
					assert.EqualValues(t, opCreditUpdate, p.op, "a buffer without room for data")
				} else {
					assert.EqualValues(t, opRW, p.op)
				}
				got = append(got, p.data...)
			}
			assert.Equal(t, text, string(got))
			_, err := await(t, writing)
			require.NoError(t, err)
			require.NoError(t, g.dev.Close())
		}
	})
}

type vconn = interface {
	io.ReadWriteCloser
}

// TestBufferTooSmall: a receive buffer that no packet fits into breaks the device,
// until it is reset.
func TestBufferTooSmall(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		g.Start(0)
		g.rx, g.tx = g.Queues[0], g.Queues[1]
		g.rx.Add(g.In(43))
		g.rx.Add(g.In(4096))
		g.send(packet{srcPort: 1, dstPort: 2, op: opRW})
		g.NeedsReset()
		assert.Zero(t, g.rx.Next().Len)
		g.send(packet{srcPort: 1, dstPort: 2, op: opRW})
		g.boot()
		fromHost(g, 5)
	})
}

// TestBeforeDriverOK: nothing is taken or given before the driver is there (rule 2).
func TestBeforeDriverOK(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		g.Reset()
		g.Negotiate(0)
		g.rx, g.tx = g.SetUp(0, 16), g.SetUp(1, 16)
		in := g.In(rxBuffer)
		g.rxBufs = map[uint32]virtiotest.Buffer{}
		g.give(in)
		copy(g.Bytes(g.hdr), g.fill(packet{srcPort: 1, dstPort: 2, op: opRW}).header())
		g.tx.Add(g.hdr)
		g.Regs.Notify(0)
		g.Regs.Notify(1)
		before, irqs := g.Snapshot(), g.QueueIRQ.Count()
		assert.Never(t, func() bool { return g.rx.UsedIndex()+g.tx.UsedIndex() > 0 }, 30*time.Millisecond, time.Millisecond)
		assert.Equal(t, before, g.Snapshot())
		assert.Equal(t, irqs, g.QueueIRQ.Count())
		g.DriverOK()
		g.tx.Next()
		assert.EqualValues(t, opRST, g.next().op)
	})
}

// TestBrokenRings: an available ring that claims more than it has (rule 10) stops the
// device, which tells the driver (rule 6) and lives on after a reset. A connection ends.
func TestBrokenRings(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, tt := range []struct {
			name string
			of   func(*guest) *virtiotest.Queue
		}{
			{"receive", func(g *guest) *virtiotest.Queue { return g.rx }},
			{"transmit", func(g *guest) *virtiotest.Queue { return g.tx }},
		} {
			t.Run(tt.name, func(t *testing.T) {
				g := newGuest(t, open, vsock.Options{})
				g.few = 2
				g.boot()
				c, _ := fromHost(g, 5)
				q := tt.of(g)
				q.SetAvailable(q.Available() + 1000)
				g.Regs.Notify(q.Index)
				g.Until("the ring is looked at", func() bool {
					if tt.name == "receive" { // for something to give, when what it had before is used up
						require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Millisecond)))
						_, _ = c.Write([]byte("x"))
					}
					return g.Regs.Status()&virtio.StatusNeedsReset != 0
				})
				g.NeedsReset()
				g.boot()
				_, err := c.Read(make([]byte, 1))
				assert.ErrorIs(t, err, syscall.ECONNRESET)
				fromHost(g, 5)
			})
		}
	})
}

// TestSameBufferTwice: a packet whose chain names one buffer again has those bytes again.
func TestSameBufferTwice(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, vsock.Options{})
		c, s := fromHost(g, 5)
		data := g.Out([]byte("again"))
		p := g.fill(packet{srcPort: s.port, dstPort: s.hostPort, op: opRW, len: 10})
		copy(g.Bytes(g.hdr), p.header())
		g.tx.Add(g.hdr, data, data)
		g.tx.Kick()
		g.tx.Next()
		got := make([]byte, 10)
		_, err := io.ReadFull(c, got)
		require.NoError(t, err)
		assert.Equal(t, "againagain", string(got))
	})
}

// TestQueuesMissing: without a queue for each direction there is no device.
func TestQueuesMissing(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for missing := range 2 {
			g := newGuest(t, open, vsock.Options{})
			g.Negotiate(0)
			g.SetUp(1-missing, 16)
			g.DriverOK()
			g.NeedsReset()
			_, err := g.dev.Dial(t.Context(), 5)
			require.ErrorIs(t, err, vsock.ErrNoDriver)
			g.boot()
			fromHost(g, 5)
		}
		g := newGuest(t, open, vsock.Options{})
		g.Negotiate(virtio.FeatureVersion1) // no other feature, no event queue, small ones
		g.rx, g.tx = g.SetUp(0, 4), g.SetUp(1, 4)
		g.DriverOK()
		g.rxBufs = map[uint32]virtiotest.Buffer{}
		g.give(g.In(rxBuffer))
		g.rx.Kick()
		fromHost(g, 5)
	})
}

// TestNoBuffers: the tx queue is served though the guest gives no buffers to
// answer with, whatever it sends (5.10.6.1.2), and what waits is bounded.
func TestNoBuffers(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		const most = 4
		g := newGuest(t, open, vsock.Options{MaxConns: most})
		l := listen(g, 1)
		g.Start(0)
		g.rx, g.tx = g.Queues[0], g.Queues[1]
		bound := 2*most + vsock.MoreResets
		for i := range 3 * bound {
			port := uint32(i)
			g.send(packet{srcPort: port, dstPort: 1, op: opRequest})
			g.send(packet{srcPort: port, dstPort: 1, op: opCreditRequest})
			g.send(packet{srcPort: port, dstPort: 1, op: opRW, data: []byte("data")})
			g.send(packet{srcPort: port, dstPort: 1, op: opRST})
			g.send(packet{srcPort: port, dstPort: 9, op: opRW})
			require.LessOrEqual(t, g.dev.Waiting(), bound)
		}
		assert.NotZero(t, g.dev.Stats().LostResets)
		assert.Zero(t, g.dev.Stats().Sent.Packets)
		for range most {
			c, err := l.Accept()
			require.NoError(t, err)
			require.NoError(t, c.Close())
		}
		assert.Zero(t, g.dev.Stats().Conns)

		// With buffers, all that waits comes, and things are as ever.
		g.rxBufs = map[uint32]virtiotest.Buffer{}
		for range 128 {
			g.give(g.In(rxBuffer))
		}
		g.rx.Kick()
		g.until("nothing waits", func() bool { return g.dev.Waiting() == 0 })
		g.in = nil
		fromGuest(g, l, 5)
	})
}
