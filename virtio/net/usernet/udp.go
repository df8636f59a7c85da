package usernet

import (
	"cmp"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	maxDatagram = 65535
	// maxPending is how many datagrams wait while the policy thinks about the
	// first, and in how many bytes.
	maxPending      = 16
	maxPendingBytes = 64 << 10
)

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// flowKey names a flow of datagrams by its ends as the guest sees them. A ping's
// port is its identifier, at the guest's end.
type flowKey struct {
	proto       Protocol
	guest, peer netip.AddrPort
}

// flow is datagrams between a port of the guest and one peer.
type flow struct {
	t    *udpTable
	key  flowKey
	last atomic.Int64 // nanoseconds of the table's clock when it was last used

	mu      sync.Mutex
	route   *stack.Route
	pending [][]byte // until the socket is there
	bytes   int
	out     sender // nil until the socket is there
	over    bool
}

// sender takes the guest's datagrams to the outside. Nothing of it blocks, and it does
// not wait for who brings back what comes: that one may wait for the flow's lock.
type sender interface {
	send(b []byte) error
	// halt has the sender's receive return; nothing is sent any more.
	halt()
}

// udpTable is all flows of a session.
type udpTable struct {
	s     *session
	start time.Time
	mu    sync.Mutex
	flows map[flowKey]*flow
	over  bool
}

func (t *udpTable) init(s *session) {
	t.s, t.start, t.flows = s, time.Now(), make(map[flowKey]*flow)
}

func (t *udpTable) now() int64 { return int64(time.Since(t.start)) }

func (t *udpTable) find(k flowKey) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flows[k]
}

// add makes a flow, in the place of the one that was idle longest if there is no
// other. It returns nil at the session's end, and the flow that is there if
// there is one already.
func (t *udpTable) add(k flowKey) (f *flow, fresh bool) {
	route, err := t.s.routeTo(k)
	if err != nil {
		return nil, false
	}
	f = &flow{t: t, key: k, route: route}
	f.last.Store(t.now())
	var idle *flow
	t.mu.Lock()
	if old := t.flows[k]; old != nil || t.over {
		t.mu.Unlock()
		route.Release()
		return old, false
	}
	if len(t.flows) >= t.s.n.o.MaxUDP {
		for _, other := range t.flows {
			if idle == nil || other.last.Load() < idle.last.Load() {
				idle = other
			}
		}
		delete(t.flows, idle.key)
		t.s.n.stats.full.Add(1)
	}
	t.flows[k] = f
	t.mu.Unlock()
	if idle != nil {
		idle.end()
	}
	t.s.n.stats.udp.Add(1)
	return f, true
}

// routeTo is the way of a flow's answers, to be released.
func (s *session) routeTo(k flowKey) (*stack.Route, error) {
	r, err := s.stack.FindRoute(nic, stackAddr(k.peer.Addr()), stackAddr(k.guest.Addr()), netProto(k.guest.Addr()), false)
	if err != nil {
		return nil, asError(err)
	}
	return r, nil
}

// sweep ends the flows that were idle too long.
func (t *udpTable) sweep() {
	limit := t.now() - int64(t.s.n.o.UDPIdle)
	var idle []*flow
	t.mu.Lock()
	for k, f := range t.flows {
		if f.last.Load() < limit {
			idle = append(idle, f)
			delete(t.flows, k)
		}
	}
	t.mu.Unlock()
	for _, f := range idle {
		f.end()
	}
}

func (t *udpTable) close() {
	t.mu.Lock()
	t.over = true
	all := t.flows
	t.flows = nil
	t.mu.Unlock()
	for _, f := range all {
		f.end()
	}
}

// remove takes the flow out of its table and ends it.
func (f *flow) remove() {
	f.t.mu.Lock()
	if f.t.flows[f.key] == f {
		delete(f.t.flows, f.key)
	}
	f.t.mu.Unlock()
	f.end()
}

func (f *flow) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	f.over, f.pending = true, nil
	f.route.Release()
	if f.out != nil {
		f.out.halt()
	}
}

// open gives the flow its socket, which stays the caller's, and that what has waited.
// False says that the flow has ended.
func (f *flow) open(out sender) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return false
	}
	f.out = out
	for _, b := range f.pending {
		_ = out.send(b)
	}
	f.pending = nil
	return true
}

// send passes on a datagram of the guest.
func (f *flow) send(b []byte) error {
	f.last.Store(f.t.now())
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.over:
		return nil
	case f.out != nil:
		return f.out.send(b)
	case len(f.pending) < maxPending && f.bytes+len(b) <= maxPendingBytes:
		f.pending = append(f.pending, append([]byte(nil), b...))
		f.bytes += len(b)
	}
	return nil
}

// reply brings a datagram to the guest.
func (f *flow) reply(b []byte) {
	f.last.Store(f.t.now())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	r := f.route
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: udpSize + int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithView(buffer.NewViewWithData(b)),
	})
	defer pkt.DecRef()
	h := header.UDP(pkt.TransportHeader().Push(udpSize))
	pkt.TransportProtocolNumber = header.UDPProtocolNumber
	h.Encode(&header.UDPFields{SrcPort: f.key.peer.Port(), DstPort: f.key.guest.Port(), Length: uint16(udpSize + len(b))})
	sum := checksum.Checksum(b, r.PseudoHeaderChecksum(header.UDPProtocolNumber, uint16(udpSize+len(b))))
	sum = ^h.CalculateChecksum(sum)
	h.SetChecksum(cmp.Or(sum, 0xffff))
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: header.UDPProtocolNumber, TTL: 64}, pkt)
}

// forwardUDP takes a datagram that no endpoint of the stack is for. It runs in
// the goroutine that lets the guest's frames in, and must not wait.
func (s *session) forwardUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	dst := netip.AddrPortFrom(hostAddr(id.LocalAddress), id.LocalPort)
	k := flowKey{UDP, netip.AddrPortFrom(hostAddr(id.RemoteAddress), id.RemotePort), dst}
	f := s.udp.find(k)
	if f == nil && s.gateway(dst.Addr()) && !s.n.o.HostLoopback {
		return false // the stack says that the port is unreachable
	}
	h := header.UDP(pkt.TransportHeader().Slice())
	if id.LocalPort == 0 || id.RemotePort == 0 {
		return true
	}
	length, sum := header.UDPValid(h, pkt.Data().Checksum, uint16(pkt.Data().Size()), pkt.NetworkProtocolNumber,
		id.RemoteAddress, id.LocalAddress, pkt.RXChecksumValidated)
	if !length || !sum {
		return true
	}
	withData(pkt, int(h.Length())-udpSize, func(b []byte) {
		if f == nil && s.dns(dst.Addr()) {
			if dst.Port() == dnsPort {
				s.lookupUDP(k, b)
			} else {
				s.unreachable(k, portUnreachable)
			}
			return
		}
		if f == nil {
			fresh := false
			if f, fresh = s.udp.add(k); f == nil {
				return
			}
			if fresh && !s.beginFlow(f, s.serveUDP) {
				return
			}
		}
		if f.send(b) == unix.ECONNREFUSED {
			s.unreachable(k, portUnreachable)
		}
	})
	return true
}

// withData calls f with the first n bytes of a packet's payload in one piece,
// which f may not keep.
func withData(pkt *stack.PacketBuffer, n int, f func([]byte)) {
	c := collector{}
	_, _ = pkt.Data().ReadTo(&c, true)
	defer c.free()
	f(c.bytes()[:n])
}

// collector puts a packet's pieces together, and copies nothing where there is
// only one.
type collector struct {
	one []byte
	buf *[maxDatagram]byte
	n   int
}

func (c *collector) Write(b []byte) (int, error) {
	if c.n == 0 {
		c.one = b
	} else {
		if c.buf == nil {
			c.buf = datagrams.Get().(*[maxDatagram]byte)
			copy(c.buf[:], c.one)
		}
		copy(c.buf[min(c.n, maxDatagram):], b)
	}
	c.n += len(b)
	return len(b), nil
}

func (c *collector) bytes() []byte {
	if c.buf != nil {
		return c.buf[:min(c.n, maxDatagram)]
	}
	return c.one
}

func (c *collector) free() {
	if c.buf != nil {
		datagrams.Put(c.buf)
	}
}

// beginFlow serves a new flow in a goroutine. There may be twice as many as flows: one
// whose place was given to another may still wait for what the policy says. Without room
// the flow is removed.
func (s *session) beginFlow(f *flow, serve func(*flow)) bool {
	if int(s.serving.Add(1)) > 2*s.n.o.MaxUDP {
		s.n.stats.full.Add(1)
	} else if s.begin(func() { defer s.serving.Add(-1); serve(f) }) {
		return true
	}
	s.serving.Add(-1)
	f.remove()
	return false
}

// serveUDP opens a flow's socket, if the policy lets it, and brings back what
// comes on it.
func (s *session) serveUDP(f *flow) {
	defer f.remove()
	to, err := s.outside(UDP, f.key.peer)
	if err != nil {
		s.unreachable(f.key, prohibited)
		return
	}
	if !s.n.takeSocket(UDP) {
		s.unreachable(f.key, hostUnreachable)
		return
	}
	defer giveSocket()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		s.n.stats.failed.Add(1)
		s.unreachable(f.key, hostUnreachable)
		return
	}
	defer c.Close()
	out, err := newSocket(c)
	if err != nil || !f.open(out) {
		return
	}
	out.receive(func(b []byte) { f.reply(b) }, func() { s.unreachable(f.key, portUnreachable) })
}

// descriptor is what a socket needs of a net.UDPConn or an os.File.
type descriptor interface {
	SyscallConn() (syscall.RawConn, error)
	SetReadDeadline(time.Time) error
}

// socket sends to and receives from a connected datagram socket of the host's, which is
// somebody else's to close when receive has returned.
type socket struct {
	c    descriptor
	raw  syscall.RawConn
	b    []byte // for step
	err  error  // of step
	step func(uintptr) bool
}

func newSocket(c descriptor) (*socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	o := &socket{c: c, raw: raw}
	o.step = func(fd uintptr) bool {
		_, o.err = unix.SendmsgN(int(fd), o.b, nil, nil, unix.MSG_DONTWAIT)
		return true
	}
	return o, nil
}

// send is sender's; a datagram for which there is no room is lost, as datagrams
// are. One caller at a time.
func (o *socket) send(b []byte) error {
	o.b = b
	err := o.raw.Write(o.step)
	o.b = nil
	if err != nil {
		return nil
	}
	return o.err
}

// halt is sender's. Close would wait for receive, which may be about to take the lock
// that halt is called with.
func (o *socket) halt() { _ = o.c.SetReadDeadline(time.Unix(1, 0)) }

// burst is how many datagrams are read before it is asked whether to go on: a peer may
// send without a pause.
const burst = 64

// receive calls got with what comes, until halt, and refused whenever the peer's host
// says that nobody listens. A buffer is held only while there is something to read.
func (o *socket) receive(got func([]byte), refused func()) {
	var failed error
	step := func(fd uintptr) bool {
		buf := datagrams.Get().(*[maxDatagram]byte)
		defer datagrams.Put(buf)
		failed = nil
		for range burst {
			n, err := unix.Read(int(fd), buf[:])
			switch {
			case err == nil:
				got(buf[:n])
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return false
			default:
				failed = err
				return true
			}
		}
		return true
	}
	for {
		if err := o.raw.Read(step); err != nil {
			return
		}
		if failed == nil {
			continue
		}
		if failed != unix.ECONNREFUSED && failed != unix.EHOSTUNREACH && failed != unix.ENETUNREACH && failed != unix.EMSGSIZE {
			return
		}
		refused()
	}
}
