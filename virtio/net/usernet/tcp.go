package usernet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Buffers of the guest's end of one connection, each way, in bytes. All of
// 4,096 connections to hosts that never read hold less than 1 GiB: see
// bufferFor.
const (
	tcpMinBuffer = 16 << 10
	tcpBuffer    = 1 << 20
	tcpMaxBuffer = 4 << 20
	// tcpBudget is what the first connections share in full-sized buffers.
	tcpBudget = 256 << 20
	// tcpSmall is what each gets however many there are.
	tcpSmall = 64 << 10
)

// lingerTimeout bounds the life of a connection that both programs are done
// with, while the guest's kernel does not answer.
const lingerTimeout = 30 * time.Second

// bufferFor is the size of a connection's buffers when it is the nth.
func bufferFor(n int32) int64 {
	return max(tcpSmall, min(tcpBuffer, tcpBudget/(2*int64(n))))
}

// slot is one place among the connections that are allowed at a time. It is
// given back once: when the guest's end is gone for good, as what a guest does
// not acknowledge is still held, and whoever has the host's end is done with it
// too. Neither alone would do: a guest may reset as often as it likes.
type slot struct {
	s     *session
	n     int32
	ep    tcpip.Endpoint
	wq    *waiter.Queue
	entry waiter.Entry
	said  atomic.Bool // the guest was or is being told that nothing more comes

	mu    sync.Mutex
	timer *time.Timer // under mu
	ended bool        // under mu: the guest's end is gone
	done  bool        // under mu: so is the host's
	free  bool        // under mu
}

// takeSlot returns nil if there is no room.
func (s *session) takeSlot() *slot {
	n := s.tcpFlows.Add(1)
	if int(n) > s.n.o.MaxTCP {
		s.tcpFlows.Add(-1)
		s.n.stats.full.Add(1)
		return nil
	}
	s.n.stats.tcp.Add(1)
	return &slot{s: s, n: n}
}

// giveBack is for a slot that got no endpoint.
func (p *slot) giveBack() { p.settle(true, true) }

// settle notes which ends are gone.
func (p *slot) settle(ended, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.done = p.ended || ended, p.done || done
	switch {
	case p.free || !p.done:
	case p.ended:
		p.free = true
		p.s.tcpFlows.Add(-1)
		if p.timer != nil {
			p.timer.Stop()
		}
	case p.timer == nil:
		p.timer = time.AfterFunc(lingerTimeout, func() {
			p.ep.Abort()
			p.settle(true, true)
		})
	}
}

// hold ties the slot to an endpoint, and sizes its buffers.
func (p *slot) hold(ep tcpip.Endpoint, wq *waiter.Queue) {
	p.ep, p.wq = ep, wq
	size := bufferFor(p.n)
	ep.SocketOptions().SetSendBufferSize(size, true)
	ep.SocketOptions().SetReceiveBufferSize(size, true)
	p.entry = waiter.NewFunctionEntry(waiter.EventHUp, func(waiter.EventMask) { p.settle(true, false) })
	wq.EventRegister(&p.entry)
	if p.gone() {
		p.settle(true, false)
	}
}

func (p *slot) gone() bool {
	switch tcp.EndpointState(p.ep.State()) {
	case tcp.StateClose, tcp.StateError, tcp.StateTimeWait:
		return true
	}
	return false
}

// lost reports whether the guest has given its end up instead of closing it.
// After a reset, the stack's state is that of an error, or, if the guest had half
// closed before, the one that otherwise needs a FIN of this end.
func (p *slot) lost() bool {
	switch tcp.EndpointState(p.ep.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose:
		return !p.said.Load()
	}
	return false
}

// closed is for whoever has the host's end, after Close of the endpoint. It
// bounds what is left of the connection.
func (p *slot) closed() { p.settle(p.gone(), true) }

// forwardTCP decides on a connection that the guest opens. It runs in a
// goroutine of its own; until it answers, the guest's SYN is neither accepted
// nor refused.
func (s *session) forwardTCP(r *tcp.ForwarderRequest) {
	if !s.enter() {
		r.Complete(false)
		return
	}
	defer s.work.Done()
	p := s.takeSlot()
	if p == nil {
		r.Complete(true)
		return
	}
	id := r.ID()
	dst := netip.AddrPortFrom(hostAddr(id.LocalAddress), id.LocalPort)
	if l := s.n.offer(TCP, dst); l != nil {
		s.acceptTCP(r, p, l)
		return
	}
	if s.dns(dst.Addr()) && dst.Port() == dnsPort {
		if c := s.establish(r, p); c != nil {
			s.serveDNS(c)
		}
		return
	}
	if !s.n.takeSocket(TCP) {
		r.Complete(true)
		p.giveBack()
		return
	}
	defer giveSocket()
	host, err := s.dialOutside(TCP, dst)
	if err != nil {
		r.Complete(true)
		p.giveBack()
		return
	}
	var wq waiter.Queue
	ep, failed := r.CreateEndpoint(&wq)
	r.Complete(false)
	if failed != nil {
		p.giveBack()
		reset(host)
		return
	}
	p.hold(ep, &wq)
	s.relay(p, host.(*net.TCPConn))
}

var errNoAnswer = errors.New("the guest does not answer")

var errUnreachable = errors.New("the network offers nothing there")

// outside says where a host's socket has to go to reach dst, if the guest may.
func (s *session) outside(proto Protocol, dst netip.AddrPort) (netip.AddrPort, error) {
	to := dst
	switch {
	case s.gateway(dst.Addr()):
		if !s.n.o.HostLoopback {
			return to, errUnreachable
		}
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if dst.Addr().Is6() {
			loopback = netip.IPv6Loopback()
		}
		to = netip.AddrPortFrom(loopback, dst.Port())
	case s.inside(dst.Addr()):
		return to, errUnreachable
	}
	return to, s.ask(Destination{Protocol: proto, Addr: to.Addr(), Port: to.Port()})
}

// ask puts a destination to the policy. What that refuses is logged, as far as a
// log bears what a guest can ask for.
func (s *session) ask(d Destination) error {
	err := s.n.o.Policy(d)
	if err != nil {
		s.n.stats.denied.Add(1)
		if held, ok := s.n.muffled.Pass(time.Since(s.n.born)); ok {
			s.n.o.Logger.Info("usernet: the guest may not go there", "name", s.n.o.Name, "to", d.String(), "reason", err, "unreported", held)
		}
	}
	return err
}

func (s *session) dialOutside(proto Protocol, dst netip.AddrPort) (net.Conn, error) {
	to, err := s.outside(proto, dst)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.n.o.DialTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err != nil {
		s.n.stats.failed.Add(1)
		s.n.o.Logger.Debug("usernet: outside", "name", s.n.o.Name, "error", err)
	}
	return c, err
}

// reset ends a connection of the host with a RST.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// looks is how often, in the time that a guest has to answer, it is looked whether it is
// there.
const looks = 5

// dialGuest opens a connection to the guest from an address of the network's
// choice; a zero port takes any. With a patience other than 0 a guest that is there, and
// has not answered for so long, is errNoAnswer.
func (s *session) dialGuest(ctx context.Context, from, to netip.AddrPort, patience time.Duration) (*slot, error) {
	p := s.takeSlot()
	if p == nil {
		return nil, errors.New("too many connections")
	}
	wq := new(waiter.Queue)
	ep, terr := s.stack.NewEndpoint(tcp.ProtocolNumber, netProto(to.Addr()), wq)
	if terr != nil {
		p.giveBack()
		return nil, asError(terr)
	}
	fail := func(err error) (*slot, error) {
		ep.Abort()
		p.giveBack()
		return nil, err
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if terr := ep.Bind(fullAddr(from)); terr != nil {
		return fail(asError(terr))
	}
	terr = ep.Connect(fullAddr(to))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		var late <-chan time.Time
		if patience > 0 {
			t := time.NewTicker(patience / looks)
			defer t.Stop()
			late = t.C
		}
		for there, waiting := 0, true; waiting; {
			select {
			case <-ready:
				terr, waiting = ep.LastError(), false
			case <-late:
				if _, ok := s.neighbours.find(to.Addr()); !ok {
					continue // it is still asked whether it is there
				}
				if there++; there == looks {
					return fail(errNoAnswer)
				}
			case <-ctx.Done():
				return fail(ctx.Err())
			case <-s.done:
				return fail(ErrNoGuest)
			}
		}
	}
	if terr != nil {
		return fail(asError(terr))
	}
	p.hold(ep, wq)
	return p, nil
}

// source is the address that a connection to the guest comes from: the peer's
// own, where a guest can take that for one outside, otherwise the gateway's: for
// a loopback or link-local address, one of the guest's own network, and one of
// the other family. Another address of this host is outside like any.
func (s *session) source(peer netip.AddrPort, to netip.Addr) netip.AddrPort {
	a := peer.Addr().Unmap()
	gateway := s.gateway4
	if to.Is6() {
		gateway = s.gateway6
	}
	if !a.IsValid() || a.Is4() != to.Is4() || !a.IsGlobalUnicast() || s.inside(a) {
		return netip.AddrPortFrom(gateway, 0)
	}
	return netip.AddrPortFrom(a, peer.Port())
}

// asError gives the stack's error the errno's clothes that callers look for.
func asError(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return errRefused
	case *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return errReset
	case *tcpip.ErrTimeout:
		return errTimeout
	}
	return errors.New(err.String())
}
