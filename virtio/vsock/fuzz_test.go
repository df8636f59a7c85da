package vsock_test

import (
	"context"
	"encoding/binary"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
	"github.com/vole-vmm/vole/virtio/vsock"
)

// The guest of FuzzVsock: a page for each queue's rings, and buffers.
const (
	fuzzQueue   = 16
	fuzzRings   = 4096
	fuzzBuffer  = 2048
	fuzzConns   = 8
	fuzzRingGPA = 1 << 32
)

// fuzzGuest is used again for each input. Its descriptors are fixed: an even one and
// the next are a chain of two, cut where the input says.
type fuzzGuest struct {
	t          *testing.T // of the input
	ram, rings []byte
	dev        *vsock.Device
	f          *virtio.Function
	path       string
	idx, seen  [3]uint16
	accepted   chan net.Conn
	flows      map[[2]uint32]*fuzzFlow
	conns      []net.Conn
	dials      sync.WaitGroup
	dialed     chan net.Conn
}

// fuzzFlow is what has gone over a pair of ports since it was last opened.
type fuzzFlow struct {
	granted uint64 // the most that the guest has allowed, counted from the beginning
	base    uint64 // of the last connection
	got     uint64
}

type noInterrupts struct{}

func (noInterrupts) Queue(int) {}
func (noInterrupts) Config()   {}

func newFuzzGuest(f *testing.F) *fuzzGuest {
	g := &fuzzGuest{
		ram: make([]byte, 3*fuzzQueue*fuzzBuffer), rings: make([]byte, 3*fuzzRings),
		path:     filepath.Join(socketDir(f), "v.sock"),
		accepted: make(chan net.Conn, 4*fuzzConns), dialed: make(chan net.Conn, 4*fuzzConns),
	}
	mem, err := memory.FromBytes(memory.Region{GPA: 0, Mem: g.ram}, memory.Region{GPA: fuzzRingGPA, Mem: g.rings})
	require.NoError(f, err)
	g.dev, err = vsock.New(vsock.Options{CID: guestCID, MaxConns: fuzzConns, Path: g.path})
	require.NoError(f, err)
	g.f, err = virtio.NewFunction(virtio.FunctionConfig{Device: g.dev, Memory: mem, Interrupts: noInterrupts{}})
	require.NoError(f, err)
	l, err := g.dev.Listen(1)
	require.NoError(f, err)
	ul, err := net.Listen("unix", g.path+"_2")
	require.NoError(f, err)
	for _, l := range []net.Listener{l, ul} {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				select {
				case g.accepted <- c:
				default:
					_ = c.Close()
				}
			}
		}()
	}
	f.Cleanup(func() {
		require.NoError(f, g.f.Close(bounded(f)))
		require.NoError(f, ul.Close())
		require.NoError(f, g.dev.Close())
	})
	return g
}

// start resets the device and negotiates everything.
func (g *fuzzGuest) start() {
	virtiotest.Reset(g.t, g.f)
	clear(g.rings)
	g.idx, g.seen, g.flows = [3]uint16{}, [3]uint16{}, map[[2]uint32]*fuzzFlow{}
	s := virtio.StatusAcknowledge | virtio.StatusDriver
	g.f.SetStatus(s)
	g.f.SetDriverFeatures(0, uint32(g.f.DeviceFeatures()))
	g.f.SetDriverFeatures(1, uint32(g.f.DeviceFeatures()>>32))
	s |= virtio.StatusFeaturesOK
	g.f.SetStatus(s)
	for q := range uint32(3) {
		for i, area := range []virtio.Area{virtio.AreaDesc, virtio.AreaAvail, virtio.AreaUsed} {
			g.f.SetQueueArea(q, area, false, q*fuzzRings+uint32(i)*1024)
			g.f.SetQueueArea(q, area, true, 1)
		}
		g.f.SetQueueSize(q, fuzzQueue)
		g.f.SetQueueReady(q, true)
	}
	g.f.SetStatus(s | virtio.StatusDriverOK)
	require.Zero(g.t, g.f.Status()&virtio.StatusNeedsReset)
}

// give makes a chain of two descriptors available: the first has cut bytes, both
// together n. It reports false if all are in use.
func (g *fuzzGuest) give(q, cut, n int, write bool) (buf []byte, ok bool) {
	if g.idx[q]-g.seen[q] >= fuzzQueue/2 {
		return nil, false
	}
	head := 2 * (g.idx[q] % (fuzzQueue / 2))
	gpa := q*fuzzQueue*fuzzBuffer + int(head)*fuzzBuffer
	n = min(n, 2*fuzzBuffer)
	cut = min(cut, n)
	var flags uint16
	if write {
		flags = virtiotest.DescWrite
	}
	rings := g.rings[q*fuzzRings:]
	le := binary.LittleEndian
	for i, d := range []virtiotest.Desc{
		{Addr: uint64(gpa), Len: uint32(cut), Flags: flags | virtiotest.DescNext, Next: head + 1},
		{Addr: uint64(gpa + cut), Len: uint32(n - cut), Flags: flags},
	} {
		b := rings[16*(int(head)+i):]
		le.PutUint64(b, d.Addr)
		le.PutUint64(b[8:], uint64(d.Len)|uint64(d.Flags)<<32|uint64(d.Next)<<48)
	}
	virtio.Store16(rings[1024:2048], 4+2*int(g.idx[q]%fuzzQueue), head)
	return g.ram[gpa : gpa+n], true
}

func (g *fuzzGuest) publish(q int) {
	g.idx[q]++
	virtio.Publish(g.rings[q*fuzzRings+1024:q*fuzzRings+2048], 0, g.idx[q])
	g.f.Notify(uint32(q))
}

func (g *fuzzGuest) used(q int) uint16 { return virtio.Load16(g.rings[q*fuzzRings+2048:], 2) }

// broken reports whether the device has given up.
func (g *fuzzGuest) broken() bool { return g.f.Status()&virtio.StatusNeedsReset != 0 }

// await waits until what was given to the tx queue is taken.
func (g *fuzzGuest) await() {
	end := time.Now().Add(patience)
	for wait := time.Microsecond; g.used(1) != g.idx[1] && !g.broken(); wait = min(2*wait, time.Millisecond) {
		require.True(g.t, time.Now().Before(end), "a packet is not taken")
		time.Sleep(wait)
	}
	g.seen[1] = g.used(1)
}

// look checks what the device has sent.
func (g *fuzzGuest) look() {
	for ; g.seen[0] != g.used(0); g.seen[0]++ {
		e := g.rings[2048+4+8*int(g.seen[0]%fuzzQueue):]
		head, n := binary.LittleEndian.Uint32(e), int(binary.LittleEndian.Uint32(e[4:]))
		if n == 0 {
			require.True(g.t, g.broken())
			continue
		}
		require.GreaterOrEqual(g.t, n, headerSize)
		p := parse(g.ram[int(head)*fuzzBuffer:][:n])
		require.EqualValues(g.t, guestCID, p.dstCID)
		require.Equal(g.t, n-headerSize, int(p.len))
		k := [2]uint32{p.dstPort, p.srcPort}
		if p.op != opRST {
			require.EqualValues(g.t, 1, p.typ)
			require.EqualValues(g.t, 2, p.srcCID)
			require.LessOrEqual(g.t, p.bufAlloc, uint32(vsock.MaxWindow))
		}
		f := g.flows[k]
		switch p.op {
		case opRequest:
			if f == nil {
				g.flows[k] = &fuzzFlow{}
			}
		case opResponse:
			require.NotNil(g.t, f, "a response to nothing")
		case opRST:
		case opShutdown:
			require.NotZero(g.t, p.flags&3)
			require.Zero(g.t, p.flags&^3)
		case opRW:
			require.NotNil(g.t, f, "data on no connection")
			require.NotZero(g.t, p.len)
			f.got += uint64(p.len)
			require.LessOrEqual(g.t, f.got, f.granted, "more than the guest has room for")
		case opCreditUpdate, opCreditRequest:
		default:
			require.Fail(g.t, "an unknown operation", "%+v", p)
		}
		require.LessOrEqual(g.t, g.dev.Stats().Conns, fuzzConns)
	}
}

// send gives the device a packet.
func (g *fuzzGuest) send(r *reader) {
	b := r.byte()
	p := packet{
		srcCID: guestCID, dstCID: 2, typ: 1, op: uint16(r.byte() % 10), flags: uint32(r.byte() % 5),
		srcPort: uint32(r.byte() % 4), dstPort: uint32(r.byte() % 4), bufAlloc: uint32(r.word()) << (r.byte() % 17), fwdCnt: uint32(r.byte()),
		data: make([]byte, r.word()%(2*fuzzBuffer-headerSize)),
	}
	if p.dstPort == 3 { // a connection of the host's
		p.dstPort = 1<<30 + uint32(r.word())
		for k := range g.flows {
			if k[1] >= 1<<30 {
				p.srcPort, p.dstPort = k[0], k[1]
			}
		}
	}
	p.len = uint32(len(p.data))
	switch b % 16 {
	case 1:
		p.srcCID = uint64(r.word())
	case 2:
		p.dstCID = uint64(r.word()) << (r.byte() % 64)
	case 3:
		p.typ = uint16(r.word())
	case 4:
		p.op = uint16(r.word())
	case 5:
		p.len = uint32(r.word()) << (r.byte() % 17)
	case 6:
		p.fwdCnt = uint32(r.word()) << (r.byte() % 17)
	case 7:
		p.data = p.data[:0]
		p.len = 0
	}
	raw := append(p.header(), p.data...)
	if b%16 == 8 {
		raw = raw[:r.byte()%headerSize]
	}
	buf, ok := g.give(1, int(r.byte()), len(raw), false)
	if !ok {
		return
	}
	copy(buf, raw)
	if len(raw) >= headerSize && p.srcCID == guestCID {
		k := [2]uint32{p.srcPort, p.dstPort}
		if g.flows[k] == nil {
			g.flows[k] = &fuzzFlow{}
		}
		f := g.flows[k]
		if p.op == opRequest {
			f.base = f.granted // all that has gone before is within it
		}
		f.granted = max(f.granted, f.base+uint64(p.bufAlloc)+uint64(p.fwdCnt))
	}
	g.publish(1)
}

// host does something on the host's side.
func (g *fuzzGuest) host(ctx context.Context, r *reader) {
	for some := true; some; {
		select {
		case c := <-g.accepted:
			g.conns = append(g.conns, c)
		case c := <-g.dialed:
			g.conns = append(g.conns, c)
		default:
			some = false
		}
	}
	op := r.byte()
	switch {
	case op < 32:
		port := uint32(r.byte() % 4)
		g.dials.Go(func() {
			if c, err := g.dev.Dial(ctx, port); err == nil {
				select {
				case g.dialed <- c:
				default:
					_ = c.Close()
				}
			}
		})
	case op < 40 && len(g.conns) < 2*fuzzConns:
		if c, err := net.Dial("unix", g.path); err == nil {
			g.conns = append(g.conns, c)
			text := make([]byte, r.byte()%40)
			for i := range text {
				text[i] = r.byte()
			}
			if op%2 == 0 {
				text = append([]byte("CONNECT 1\n"), text...)
			}
			_, _ = c.Write(text)
		}
	case op < 44:
		g.dev.TransportReset()
	case len(g.conns) > 0:
		i := int(r.byte()) % len(g.conns)
		c := g.conns[i]
		_ = c.SetDeadline(time.Now().Add(100 * time.Microsecond))
		switch op % 8 {
		case 0, 1, 2:
			_, _ = c.Write(make([]byte, r.word()))
		case 3, 4:
			_, _ = c.Read(make([]byte, r.word()))
		case 5:
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
		case 6:
			_ = c.(interface{ CloseRead() error }).CloseRead()
		case 7:
			_ = c.Close()
			g.conns = append(g.conns[:i], g.conns[i+1:]...)
		}
	}
}

// reader takes an input apart; after its end everything is 0.
type reader struct{ rest []byte }

func (r *reader) byte() byte {
	if len(r.rest) == 0 {
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) word() int { return int(r.byte()) | int(r.byte())<<8 }

// FuzzVsock: whatever packets the guest sends, with whatever buffers, and whatever
// the host does meanwhile, nothing panics, hangs or is left behind; the device sends
// only what is well-formed, and no more data than the guest has given credit for.
func FuzzVsock(f *testing.F) {
	rx := []byte{1, 200, 0, 0, 8, 1, 200, 0, 0, 8, 1, 10, 0, 0, 8}
	open := []byte{0, 0, opRequest, 0, 2, 1, 0xff, 0xff, 0, 0, 0, 0, 44}
	f.Add(append(append([]byte{}, rx...), open...))
	f.Add(append(append(append([]byte{}, rx...), open...), 2, 80, 0, 0, 4, 3, 2, 83, 0, 10, 0, 2, 87, 0))
	f.Add(append(append(append([]byte{}, rx...), open...), 0, 0, opRW, 0, 2, 1, 0xff, 0xff, 0, 0, 100, 0, 44, 3, 2, 83, 0, 50, 0, 0, 0, opShutdown, 3, 2, 1, 0, 0, 0, 0, 0, 0, 44, 3))
	f.Add(append(append([]byte{}, rx...), 2, 0, 3, 4, 0, 0, opResponse, 0, 0, 3, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 44, 3, 2, 80, 0, 0, 4))
	f.Add([]byte{2, 32, 0, 0, 0, 1, 200, 0, 0, 8, 4, 5, 6, 3, 4})
	f.Add([]byte{1, 10, 0, 10, 0, 0, 0, opRequest, 0, 2, 1, 3})
	f.Add([]byte{0, 8, opRequest, 0, 2, 2, 0, 0, 0, 0, 0, 0, 5, 40, 3, 0, 0, opRequest, 0, 2, 2, 0, 0, 0, 0, 0, 0, 44, 3, 3, 7})
	// A client that says too much, and is gone.
	f.Add([]byte("\x02#\x20\xf1#\x05\xe5F\xd8p\x00\x00\x00\x00\x00\x01\xc8\xc1\xc1\b\x01\xc8\x00\x00\b\x04\x05\x06\x03\x04"))
	g := newFuzzGuest(f)
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, input []byte) {
		growth.Check(t)
		g.t = t
		g.start()
		ctx, cancel := context.WithCancel(context.Background())
		r := &reader{rest: input}
		for n := 0; n < 64 && len(r.rest) > 0; n++ {
			switch op := r.byte(); op % 8 {
			case 0:
				g.send(r)
			case 1:
				if _, ok := g.give(0, r.word()%fuzzBuffer, r.word(), true); ok {
					g.publish(0)
				}
			case 2:
				g.host(ctx, r)
			case 3:
				g.f.Resume()
				g.await()
			case 4:
				if _, ok := g.give(2, int(r.byte()%5), 4, true); ok && g.idx[2] < 4 {
					g.publish(2)
				}
			case 5:
				require.NoError(t, g.f.Pause(ctx))
			case 6:
				g.f.Resume()
			case 7:
				if op < 64 {
					g.f.Resume()
					g.start()
				}
			}
			g.look()
			if g.broken() {
				g.f.Resume()
				g.start()
			}
		}
		g.f.Resume()
		g.await()
		g.look()
		cancel()
		g.dials.Wait()
		for _, c := range g.conns {
			_ = c.Close()
		}
		g.conns = nil
		g.f.SetStatus(0)
		for end := time.Now().Add(patience); g.dev.Stats().Conns > 0 || len(g.accepted)+len(g.dialed) > 0; time.Sleep(10 * time.Microsecond) {
			select {
			case c := <-g.accepted:
				_ = c.Close()
			case c := <-g.dialed:
				_ = c.Close()
			default:
			}
			require.True(t, time.Now().Before(end), "a connection is left")
		}
		require.Zero(t, g.dev.Waiting())
	})
}
