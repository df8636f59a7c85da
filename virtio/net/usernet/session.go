package usernet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// nic is the stack's only interface.
const nic tcpip.NICID = 1

// sweepInterval is how often idle flows are looked for.
const sweepInterval = 5 * time.Second

// session is the network as one driver of the guest sees it, from Start to
// Stop: a stack of its own with all flows, so that nothing of it outlives a
// reset.
type session struct {
	plan
	n        *Network
	guestMAC mac // the only one, if not zero
	stack    *stack.Stack
	link     *link
	ctx      context.Context
	cancel   context.CancelFunc
	done     <-chan struct{} // of ctx

	pairs      atomic.Int32
	egress     []*egress
	neighbours neighbours
	unresolved unresolved
	owed       owed
	guest6     atomic.Pointer[netip.Addr]

	sending sync.RWMutex // held to read while a frame is let in
	stopped bool         // under sending
	broken  atomic.Bool  // the stack panicked

	gate    sync.Mutex
	closing bool           // under gate
	work    sync.WaitGroup // joined under gate before closing

	answerTime time.Duration
	unanswered unanswered

	tcpFlows atomic.Int32
	udp      udpTable
	serving  atomic.Int32  // goroutines of datagrams' flows
	lookups  chan struct{} // one for each DNS question under way
}

func newSession(n *Network, features uint64) (*session, error) {
	s := &session{plan: n.plan, n: n, answerTime: answerTime, lookups: make(chan struct{}, maxLookups)}
	if len(n.o.MAC) == 6 {
		s.guestMAC = mac(n.o.MAC)
		s.neighbours.seen(s.guestMAC)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.done = s.ctx.Done()
	s.pairs.Store(1)
	for range maxPairs {
		s.egress = append(s.egress, newEgress())
	}
	s.link = &link{s: s, features: features, mtu: uint32(n.o.MTU)}
	s.unresolved.s = s
	s.udp.init(s)
	if err := s.build(); err != nil {
		s.cancel()
		return nil, err
	}
	s.begin(s.housekeeping)
	return s, nil
}

func (s *session) build() error {
	s.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol, ipv6.NewProtocolWithOptions(ipv6.Options{}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	var failed error
	try := func(what string, err tcpip.Error) {
		if err != nil && failed == nil {
			failed = fmt.Errorf("usernet: %s: %v", what, err)
		}
	}
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(false)
	timeWait, linger := tcpip.TCPTimeWaitTimeoutOption(time.Second), tcpip.TCPLingerTimeoutOption(10*time.Second)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &timeWait, &linger,
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcpMinBuffer, Default: tcpBuffer, Max: tcpMaxBuffer},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpMinBuffer, Default: tcpBuffer, Max: tcpMaxBuffer},
	} {
		try("set a TCP option", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o))
	}
	try("make the interface", s.stack.CreateNIC(nic, s.link))
	addrs := []netip.Addr{s.gateway4, s.dns4}
	if s.v6 {
		addrs = append(addrs, s.gateway6, s.dns6, s.link6)
	}
	for _, a := range addrs {
		p := tcpip.ProtocolAddress{Protocol: netProto(a), AddressWithPrefix: stackAddr(a).WithPrefix()}
		try("add "+a.String(), s.stack.AddProtocolAddress(nic, p, stack.AddressProperties{}))
	}
	s.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	// Every address is this stack's, to take connections for and to answer from.
	try("take every address", s.stack.SetPromiscuousMode(nic, true))
	try("answer from every address", s.stack.SetSpoofing(nic, true))
	forward := tcp.NewForwarder(s.stack, tcpBuffer, s.n.o.MaxTCP, s.forwardTCP)
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forward.HandlePacket)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, s.forwardUDP)
	s.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.forwardEcho)
	s.stack.SetTransportProtocolHandler(icmp.ProtocolNumber6, s.forwardEcho)
	return failed
}

// begin runs f in a goroutine that the session joins. It reports false if the
// session ends already.
func (s *session) begin(f func()) bool {
	if !s.enter() {
		return false
	}
	go func() {
		defer s.work.Done()
		f()
	}()
	return true
}

// enter counts the caller among the work to be joined, until work.Done.
func (s *session) enter() bool {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.closing {
		return false
	}
	s.work.Add(1)
	return true
}

func (s *session) housekeeping() {
	sweep, advert := time.NewTicker(sweepInterval), time.NewTicker(advertInterval)
	defer sweep.Stop()
	defer advert.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-sweep.C:
			s.udp.sweep()
		case <-advert.C:
			if s.v6 {
				s.advertise(allNodesMAC, allNodes)
			}
		}
	}
}

// emit puts a frame on its way to the guest; the reference stays the caller's.
// All of one TCP connection goes by the same pair.
func (s *session) emit(pkt *stack.PacketBuffer) bool {
	pair := 0
	if n := uint32(s.pairs.Load()); n > 1 {
		pair = int(pkt.Hash % n)
	}
	key, bare := s.owed.settles(pkt)
	if !s.egress[pair].put(pkt, key, bare) {
		s.n.stats.toGuestFull.Add(1)
		return false
	}
	return true
}

// send lets one frame of the guest in. A panic of the stack ends the link, not
// the process; see the package's documentation of Network.
func (s *session) send(eth *[etherSize]byte, packet *buffer.View) (used bool) {
	s.sending.RLock()
	defer s.sending.RUnlock()
	if s.stopped || s.broken.Load() {
		packet.Release()
		return false
	}
	defer func() {
		if p := recover(); p != nil {
			s.broken.Store(true)
			s.n.o.Logger.Error("usernet: the TCP/IP stack panicked over a frame of the guest: its network is down until the driver starts anew",
				"name", s.n.o.Name, "panic", p, "stack", string(debug.Stack()))
			s.cancel()
			s.n.linkDown()
		}
	}()
	return s.input(eth, packet)
}

// brokenJoin bounds the wait for what a panic may have left locked.
const brokenJoin = 2 * time.Second

// stop ends all flows and joins every goroutine.
func (s *session) stop() {
	s.cancel()
	s.gate.Lock()
	s.closing = true
	s.gate.Unlock()
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		s.sending.Lock()
		s.stopped = true
		s.sending.Unlock()
		s.udp.close()
		// An endpoint may be born while the others are closed, by a goroutine that
		// was let in before.
		rest := make(chan struct{})
		go func() { s.work.Wait(); close(rest) }()
		for over := false; !over; {
			s.stack.Close()
			select {
			case <-rest:
				over = true
			case <-time.After(5 * time.Millisecond):
			}
		}
		s.stack.Close()
		s.stack.Wait()
		s.unresolved.close()
		for _, e := range s.egress {
			e.close()
		}
	}()
	if !s.broken.Load() {
		<-joined
		return
	}
	select {
	case <-joined:
	case <-time.After(brokenJoin):
		s.n.o.Logger.Error("usernet: what the stack's panic left is abandoned", "name", s.n.o.Name)
	}
}

// learnGuest6 keeps the guest's IPv6 address for those who ask for the guest by
// name: the one that it used last.
func (s *session) learnGuest6(a netip.Addr) {
	if p := s.guest6.Load(); p == nil || *p != a {
		s.guest6.Store(&a)
	}
}

var errNoGuest6 = errors.New("the guest has no IPv6 address yet")

func netProto(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

func stackAddr(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

func fullAddr(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: stackAddr(a.Addr()), Port: a.Port()}
}

// hostAddr is the other way; an address of neither family is the zero Addr.
func hostAddr(a tcpip.Address) netip.Addr {
	switch a.Len() {
	case 4:
		return netip.AddrFrom4(a.As4())
	case 16:
		return netip.AddrFrom16(a.As16())
	}
	return netip.Addr{}
}
