package usernet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
)

// ErrClosed is what a closed network answers.
var ErrClosed = errors.New("usernet: the network is closed")

// ErrNoGuest says that no driver in the guest has started the device.
var ErrNoGuest = errors.New("usernet: the guest's network device is not started")

// maxPairs is how many queue pairs a device may have.
const maxPairs = 8

// Network is the network of one guest. It is the backend of one network device;
// its methods other than the Backend's may be called by anyone at any time, also
// before the guest starts and across its resets: published ports and listeners
// live until they are closed, flows end with a reset.
//
// A frame that made gVisor's stack panic would take the link down, until the
// driver starts the device anew, and leave the process alive. That holds for
// what the stack does as a frame comes in; TCP segments are partly handled in
// goroutines of the stack's own, which nobody can catch. So it is a last line:
// the first is that every frame is checked before the stack sees it.
type Network struct {
	plan
	o        Options
	resolver *resolver
	sockets  int64 // that all networks of the process may have
	stats    counters
	born     time.Time     // muffled's clock starts
	muffled  virtio.Muffle // what the policy denied, what a port could not accept
	pingOnce sync.Once     // says once that the host forbids to ping

	current atomic.Pointer[session]
	mu      sync.Mutex
	closed  bool                   // under mu
	ended   chan struct{}          // closed by Close
	work    sync.WaitGroup         // of published ports
	ports   []*publication         // under mu
	offers  map[offerKey]*listener // under mu
	offered atomic.Int32           // len(offers)
	notify  atomic.Pointer[func(bool)]
	down    atomic.Bool // the link, by a panic of the stack
}

var (
	_ virtionet.Backend      = (*Network)(nil)
	_ virtionet.LinkNotifier = (*Network)(nil)
	_ virtionet.Sizer        = (*Network)(nil)
)

// New returns a network that waits for its guest. The error names the option
// that makes no sense.
func New(o Options) (*Network, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Network{plan: newPlan(&o), o: o, sockets: mostSockets(), born: time.Now(), ended: make(chan struct{}), offers: make(map[offerKey]*listener)}
	n.o.MaxUDP = min(o.MaxUDP, int(n.sockets/2)) // an idle flow makes room for another
	n.resolver = newResolver(n)
	return n, nil
}

// Allows asks the policy for a destination, and returns what it says to that.
func (n *Network) Allows(d Destination) error { return n.o.Policy(d) }

// Features implements Backend.
func (*Network) Features() uint64 {
	return virtionet.FeatureCsum | virtionet.FeatureGuestCsum | virtionet.FeatureMTU |
		virtionet.FeatureGuestTSO4 | virtionet.FeatureGuestTSO6 |
		virtionet.FeatureHostTSO4 | virtionet.FeatureHostTSO6 | virtionet.FeatureHostECN
}

// MaxPairs implements Backend.
func (*Network) MaxPairs() int { return maxPairs }

// MTU implements Backend.
func (n *Network) MTU() int { return n.o.MTU }

// Start implements Backend.
func (n *Network) Start(features uint64) error {
	if err := n.start(features); err != nil {
		return err
	}
	if n.down.Swap(false) {
		n.tellLink(true)
	}
	return nil
}

func (n *Network) start(features uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	if n.current.Load() != nil {
		return errors.New("usernet: started twice")
	}
	s, err := newSession(n, features)
	if err != nil {
		return err
	}
	n.current.Store(s)
	return nil
}

// SetPairs implements Backend.
func (n *Network) SetPairs(pairs int) error {
	s := n.current.Load()
	switch {
	case s == nil:
		return ErrNoGuest
	case pairs < 1 || pairs > maxPairs:
		return fmt.Errorf("usernet: %d pairs of queues are not 1 to %d", pairs, maxPairs)
	}
	s.pairs.Store(int32(pairs))
	return nil
}

// NotifyLink implements virtio/net's LinkNotifier.
func (n *Network) NotifyLink(f func(up bool)) { n.notify.Store(&f) }

func (n *Network) linkDown() {
	n.down.Store(true)
	n.tellLink(false)
}

func (n *Network) tellLink(up bool) {
	if f := n.notify.Load(); f != nil && *f != nil {
		(*f)(up)
	}
}

var errBroken = errors.New("usernet: the TCP/IP stack failed over a frame of the guest")

// Wait implements Backend.
func (n *Network) Wait(pair int) (bool, error) {
	s := n.current.Load()
	if s == nil {
		return false, nil
	}
	e := s.egress[pair]
	for e.idle() {
		select {
		case <-e.bell:
		case <-s.done:
			return false, s.gone()
		}
	}
	if s.ctx.Err() != nil {
		return false, s.gone()
	}
	return true, nil
}

// gone says why a session's context is over.
func (s *session) gone() error {
	if s.broken.Load() && s.n.current.Load() == s {
		return errBroken
	}
	return nil
}

// NextSize implements virtio/net's Sizer. An acknowledgement may give way to an answer
// until it is received.
func (n *Network) NextSize(pair int) int {
	s := n.current.Load()
	if s == nil {
		return 0
	}
	size := s.egress[pair].next()
	if size == 0 {
		return 0
	}
	return virtionet.HeaderSize + size
}

// Receive implements Backend.
func (n *Network) Receive(pair int, bufs [][]byte) (int, error) {
	s := n.current.Load()
	if s == nil {
		return 0, nil
	}
	pkt := s.egress[pair].take()
	if pkt == nil {
		return 0, nil
	}
	defer pkt.DecRef()
	length, room := virtionet.HeaderSize+pkt.Size(), 0
	for _, b := range bufs {
		room += len(b)
	}
	if length > room {
		n.stats.toGuestLong.Add(1)
		return 0, virtionet.ErrTooLong
	}
	var head [virtionet.HeaderSize]byte
	describe(&head, pkt)
	to := scatter{bufs: bufs}
	to.put(head[:])
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		to.put(b[skip:])
		skip = 0
	}
	n.stats.toGuest.Add(1)
	n.stats.toGuestBytes.Add(uint64(length - virtionet.HeaderSize))
	return length, nil
}

// Fields of struct virtio_net_hdr_v1 (VIRTIO 1.2, 5.1.6).
const (
	hdrNeedsCsum = 1
	gsoTCP4      = 1
	gsoTCP6      = 4
)

// describe writes a frame's header, with num_buffers left at 0.
func describe(h *[virtionet.HeaderSize]byte, pkt *stack.PacketBuffer) {
	g := &pkt.GSOOptions
	if g.Type != stack.GSOTCPv4 && g.Type != stack.GSOTCPv6 || !g.NeedsCsum {
		return
	}
	net, transport := len(pkt.NetworkHeader().Slice()), len(pkt.TransportHeader().Slice())
	h[0] = hdrNeedsCsum
	binary.LittleEndian.PutUint16(h[6:], uint16(etherSize+net))
	binary.LittleEndian.PutUint16(h[8:], g.CsumOffset)
	if pkt.Data().Size() <= int(g.MSS) {
		return
	}
	h[1] = gsoTCP4
	if g.Type == stack.GSOTCPv6 {
		h[1] = gsoTCP6
	}
	binary.LittleEndian.PutUint16(h[2:], uint16(etherSize+net+transport))
	binary.LittleEndian.PutUint16(h[4:], g.MSS)
}

// scatter writes over a list of buffers that has the room.
type scatter struct {
	bufs [][]byte
	at   int // in bufs[0]
}

func (s *scatter) put(p []byte) {
	for len(p) > 0 {
		c := copy(s.bufs[0][s.at:], p)
		p = p[c:]
		if s.at += c; s.at == len(s.bufs[0]) {
			s.bufs, s.at = s.bufs[1:], 0
		}
	}
}

// Send implements Backend. What the network has no use for is dropped and
// counted, without an error.
func (n *Network) Send(_ int, bufs [][]byte) error {
	s := n.current.Load()
	if s == nil || len(bufs) == 0 {
		return nil
	}
	bufs = bufs[1:]
	length := 0
	for _, b := range bufs {
		length += len(b)
	}
	n.stats.fromGuest.Add(1)
	n.stats.fromGuestBytes.Add(uint64(length))
	if length <= etherSize || length > etherSize+maxPacket {
		n.stats.fromGuestOdd.Add(1)
		return nil
	}
	var eth [etherSize]byte
	packet := buffer.NewViewSize(length - etherSize)
	head, rest := eth[:], packet.AsSlice()
	for _, b := range bufs {
		c := copy(head, b)
		head = head[c:]
		rest = rest[copy(rest, b[c:]):]
	}
	if !s.send(&eth, packet) {
		n.stats.fromGuestOdd.Add(1)
	}
	return nil
}

// Stop implements Backend: all flows end, and what the guest was given is
// forgotten.
func (n *Network) Stop() {
	n.mu.Lock()
	s := n.current.Swap(nil)
	n.mu.Unlock()
	if s != nil {
		s.stop()
	}
}

// Close implements Backend: it ends everything, published ports and listeners
// too, and joins every goroutine. It may be called more than once.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	close(n.ended)
	s := n.current.Swap(nil)
	ports := n.ports
	n.ports = nil
	var offers []*listener
	for _, l := range n.offers {
		offers = append(offers, l)
	}
	n.mu.Unlock()
	for _, p := range ports {
		p.close()
	}
	if s != nil {
		s.stop()
	}
	for _, l := range offers {
		_ = l.Close()
	}
	n.work.Wait()
	return nil
}
