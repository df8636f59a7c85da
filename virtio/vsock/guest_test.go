package vsock_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/virtiotest"
	"github.com/vole-vmm/vole/virtio/vsock"
)

// Operations, flags and sizes (VIRTIO 1.2, 5.10.6), written down once more.
const (
	opRequest       = 1
	opResponse      = 2
	opRST           = 3
	opShutdown      = 4
	opRW            = 5
	opCreditUpdate  = 6
	opCreditRequest = 7

	shutReceive = 1
	shutSend    = 2

	headerSize = 44
	guestCID   = 42
	patience   = virtiotest.Patience
)

// packet is one as the guest sees it.
type packet struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32
	typ, op          uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
	data             []byte
}

func (p packet) header() []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, p.srcCID)
	b = le.AppendUint64(b, p.dstCID)
	b = le.AppendUint32(b, p.srcPort)
	b = le.AppendUint32(b, p.dstPort)
	b = le.AppendUint32(b, p.len)
	b = le.AppendUint16(b, p.typ)
	b = le.AppendUint16(b, p.op)
	b = le.AppendUint32(b, p.flags)
	b = le.AppendUint32(b, p.bufAlloc)
	return le.AppendUint32(b, p.fwdCnt)
}

func parse(b []byte) packet {
	le := binary.LittleEndian
	p := packet{
		srcCID: le.Uint64(b), dstCID: le.Uint64(b[8:]), srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		len: le.Uint32(b[24:]), typ: le.Uint16(b[28:]), op: le.Uint16(b[30:]), flags: le.Uint32(b[32:]),
		bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:]),
	}
	if len(b) > headerSize {
		p.data = append([]byte(nil), b[headerSize:]...)
	}
	return p
}

// guest is a machine with a vsock device and a driver for it, which behaves like a
// kernel with sockets where it is not told otherwise. One goroutine uses it.
type guest struct {
	*virtiotest.Driver
	t        testing.TB
	dev      *vsock.Device
	rx, tx   *virtiotest.Queue
	rxBufs   map[uint32]virtiotest.Buffer
	hdr, buf virtiotest.Buffer // of what is sent
	in       []packet          // received and not looked at
	socks    map[[2]uint32]*socket
	manual   bool // packets stay in in
	few      int  // how many receive buffers there are; 0 is all
}

const rxBuffer = 4096 // bytes, as Linux has them

func newGuest(t testing.TB, open virtiotest.Opener, o vsock.Options) *guest {
	t.Helper()
	dev, err := vsock.NewTimed(cid(o), 5*time.Second, 5*time.Second, 5*time.Second)
	require.NoError(t, err)
	return start(t, open, dev)
}

func cid(o vsock.Options) vsock.Options {
	if o.CID == 0 {
		o.CID = guestCID
	}
	return o
}

func start(t testing.TB, open virtiotest.Opener, dev *vsock.Device) *guest {
	t.Helper()
	t.Cleanup(func() { assert.NoError(t, dev.Close()) })
	g := &guest{Driver: open(t, dev), t: t, dev: dev, socks: map[[2]uint32]*socket{}}
	g.hdr, g.buf = g.Out(make([]byte, headerSize)), g.Out(make([]byte, 64<<10))
	g.QueueIRQ.C = make(chan struct{}, 1)
	g.boot()
	return g
}

// boot starts the driver, with all of its buffers.
func (g *guest) boot() {
	g.t.Helper()
	g.Start(0)
	g.rx, g.tx = g.Queues[0], g.Queues[1]
	var bufs []virtiotest.Buffer
	for _, b := range g.rxBufs {
		bufs = append(bufs, b)
	}
	want := 128
	if g.few > 0 {
		want = g.few
		bufs = bufs[:min(len(bufs), want)]
	}
	for len(bufs) < want {
		bufs = append(bufs, g.In(rxBuffer))
	}
	g.rxBufs, g.in = map[uint32]virtiotest.Buffer{}, nil
	clear(g.socks)
	for _, b := range bufs {
		g.give(b)
	}
	g.rx.Kick()
}

func (g *guest) give(b virtiotest.Buffer) { g.rxBufs[uint32(g.rx.Add(b))] = b }

// fill completes a packet with what is right.
func (g *guest) fill(p packet) packet {
	if p.srcCID == 0 {
		p.srcCID = guestCID
	}
	if p.dstCID == 0 {
		p.dstCID = vsock.HostCID
	}
	if p.typ == 0 {
		p.typ = 1
	}
	if p.len == 0 {
		p.len = uint32(len(p.data))
	}
	return p
}

// send gives the device a packet, in two buffers, and waits until it has taken it.
func (g *guest) send(p packet) {
	g.t.Helper()
	g.raw(g.fill(p))
}

func (g *guest) raw(p packet) {
	g.t.Helper()
	copy(g.Bytes(g.hdr), p.header())
	bufs := []virtiotest.Buffer{g.hdr}
	if len(p.data) > 0 {
		b := g.buf
		b.Len = uint32(len(p.data))
		copy(g.Bytes(b), p.data)
		bufs = append(bufs, b)
	}
	g.tx.Add(bufs...)
	g.tx.Kick()
	g.tx.Next()
}

// poll takes what the device has sent and reports whether there was something.
func (g *guest) poll() bool {
	g.t.Helper()
	some := false
	for u, ok := g.rx.Poll(); ok; u, ok = g.rx.Poll() {
		some = true
		b := g.rxBufs[u.Head]
		delete(g.rxBufs, u.Head)
		raw := g.Bytes(b)
		require.GreaterOrEqual(g.t, u.Len, uint32(headerSize))
		require.LessOrEqual(g.t, u.Len, b.Len)
		p := parse(raw[:u.Len])
		require.Equal(g.t, int(u.Len), headerSize+int(p.len), "the used length is that of the packet")
		require.EqualValues(g.t, guestCID, p.dstCID)
		g.give(b)
		if s := g.socks[[2]uint32{p.dstPort, p.srcPort}]; s != nil && !g.manual && p.srcCID == vsock.HostCID {
			s.receive(p)
		} else {
			g.in = append(g.in, p)
		}
	}
	if some {
		g.rx.Kick()
	}
	return some
}

// until polls until a condition holds.
func (g *guest) until(what string, f func() bool) {
	g.t.Helper()
	g.Until(what, func() bool {
		for g.poll() {
		}
		return f()
	})
}

// next waits for a packet that is no socket's.
func (g *guest) next() packet {
	g.t.Helper()
	g.until("a packet comes", func() bool { return len(g.in) > 0 })
	p := g.in[0]
	g.in = g.in[1:]
	return p
}

// quiet says that no packet comes: the device has answered a later packet first.
func (g *guest) quiet(say string) {
	g.t.Helper()
	g.send(packet{srcPort: 0xdead, dstPort: 0xdead, op: opRW})
	p := g.next()
	require.EqualValues(g.t, 0xdead, p.srcPort, "%s: %+v", say, p)
	require.EqualValues(g.t, opRST, p.op)
}

// socket is a guest's, of a stream.
type socket struct {
	g                *guest
	port, hostPort   uint32
	isOpen, reset    bool
	alloc, fwd       uint32 // what the host is told
	manualCredit     bool   // nothing is read by itself
	peerAlloc        uint32
	peerFwd, written uint32
	peerShut         uint32
	in               []byte // received and not read
	asked, updates   int    // packets of credit from the host
	got              func([]byte)
}

func (g *guest) socket(port, hostPort uint32) *socket {
	s := &socket{g: g, port: port, hostPort: hostPort, alloc: 256 << 10}
	g.socks[[2]uint32{port, hostPort}] = s
	return s
}

// connect makes a connection to a port of the host's.
func (g *guest) connect(port, hostPort uint32) *socket {
	g.t.Helper()
	s := g.socket(port, hostPort)
	s.send(opRequest, 0, nil)
	g.until("the connection is accepted", func() bool { return s.isOpen || s.reset })
	require.True(g.t, s.isOpen, "the host has refused")
	return s
}

// accept waits for the host's request for a connection to port.
func (g *guest) accept(port uint32) *socket {
	g.t.Helper()
	p := g.next()
	require.EqualValues(g.t, opRequest, p.op, "%+v", p)
	require.Equal(g.t, port, p.dstPort)
	s := g.socket(port, p.srcPort)
	s.isOpen = true
	s.peerAlloc, s.peerFwd = p.bufAlloc, p.fwdCnt
	s.send(opResponse, 0, nil)
	return s
}

func (s *socket) send(op uint16, flags uint32, data []byte) {
	s.g.t.Helper()
	s.g.send(packet{srcPort: s.port, dstPort: s.hostPort, op: op, flags: flags, bufAlloc: s.alloc, fwdCnt: s.fwd, data: data})
}

func (s *socket) receive(p packet) {
	s.peerAlloc, s.peerFwd = p.bufAlloc, p.fwdCnt
	switch p.op {
	case opResponse:
		s.isOpen = true
	case opRST:
		s.reset = true
	case opRW:
		require.LessOrEqual(s.g.t, uint32(len(s.in))+p.len, s.alloc, "more than the credit")
		if s.got != nil {
			s.got(p.data)
			s.consumed(p.len)
			return
		}
		s.in = append(s.in, p.data...)
	case opShutdown:
		s.peerShut |= p.flags
		if s.peerShut == 3 && !s.manualCredit {
			s.send(opRST, 0, nil)
			s.reset = true
		}
	case opCreditRequest:
		s.asked++
		if !s.manualCredit {
			s.send(opCreditUpdate, 0, nil)
		}
	case opCreditUpdate:
		s.updates++
	default:
		require.Fail(s.g.t, "a strange packet", "%+v", p)
	}
}

func (s *socket) consumed(n uint32) {
	old := s.fwd
	s.fwd += n
	if s.fwd/(64<<10) != old/(64<<10) {
		s.send(opCreditUpdate, 0, nil)
	}
}

func (s *socket) credit() int { return int(s.peerAlloc - (s.written - s.peerFwd)) }

// write sends data as the credit allows.
func (s *socket) write(data []byte) {
	s.g.t.Helper()
	for len(data) > 0 {
		s.g.until("there is credit", func() bool { return s.credit() > 0 || s.reset })
		require.False(s.g.t, s.reset)
		n := min(len(data), s.credit(), 64<<10)
		s.written += uint32(n)
		s.send(opRW, 0, data[:n])
		data = data[n:]
	}
}

// read waits for n bytes.
func (s *socket) read(n int) string {
	s.g.t.Helper()
	s.g.until("data comes", func() bool { return len(s.in) >= n })
	b := string(s.in[:n])
	s.in = s.in[n:]
	s.consumed(uint32(n))
	return b
}

// close does what close(2) does in Linux.
func (s *socket) close() {
	s.g.t.Helper()
	s.send(opShutdown, shutReceive|shutSend, nil)
	s.g.until("the connection is reset", func() bool { return s.reset })
	delete(s.g.socks, [2]uint32{s.port, s.hostPort})
}
