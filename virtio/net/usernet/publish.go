package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// publication is a published port.
type publication struct {
	n    *Network
	rule Rule // with the port that it got
	tcp  net.Listener
	udp  *net.UDPConn
}

// unanswered is the published ports at which the guest has answered the gateway and not
// a peer, and when that was found.
type unanswered struct {
	mu sync.Mutex
	by map[*publication]time.Time
}

func (u *unanswered) note(p *publication) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.by == nil {
		u.by = make(map[*publication]time.Time)
	}
	u.by[p] = time.Now()
}

func (u *unanswered) forget(p *publication) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.by, p)
}

// lately reports whether p is one, and was not tried again for less than gatewayTime.
func (u *unanswered) lately(p *publication) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	when, ok := u.by[p]
	return ok && time.Since(when) < gatewayTime
}

// any reports whether there is one.
func (u *unanswered) any() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.by) > 0
}

// Publish opens a port of the host that leads to the guest's IPv4 address. The
// guest sees the peer's own address, but the gateway's for a peer with a loopback
// or link-local address, one of the guest's own network, or one of IPv6. It sees
// the gateway's too where a connection from the peer's own went unanswered for a
// second and a half, and then at once for ten minutes. A flow of UDP, which need
// not be answered, has the gateway's once TCP has found that. The port is open
// until Close, whether there is a guest or not: without one a connection is reset.
//
// A rule that makes no sense wraps ErrRule, a port in use syscall.EADDRINUSE,
// and one that this process may not open syscall.EACCES.
func (n *Network) Publish(r Rule) error {
	if r.Protocol == 0 {
		r.Protocol = TCP
	}
	fail := func(err error) error {
		var errno syscall.Errno
		switch why := ""; {
		case !errors.As(err, &errno):
		default:
			switch errno {
			case syscall.EADDRINUSE:
				why = "the port is in use"
			case syscall.EACCES:
				why = fmt.Sprintf("a port below net.ipv4.ip_unprivileged_port_start needs root or CAP_NET_BIND_SERVICE, or: sudo sysctl net.ipv4.ip_unprivileged_port_start=%d", r.Port)
			case syscall.EADDRNOTAVAIL:
				why = "this host has no such address"
			}
			if why != "" {
				err = fmt.Errorf("%s (%w)", why, errno)
			}
		}
		return fmt.Errorf("usernet: publish %v: %w", r, err)
	}
	if err := r.validate(); err != nil {
		return fail(err)
	}
	at := netip.AddrPortFrom(r.listenAddr(), r.Port)
	p := &publication{n: n, rule: r}
	// One family each: [::] must not take 0.0.0.0's port as well.
	family := "4"
	if at.Addr().Is6() {
		family = "6"
	}
	var err error
	if r.Protocol == TCP {
		p.tcp, err = new(net.ListenConfig).Listen(context.Background(), "tcp"+family, at.String())
		if err == nil {
			p.rule.Port = p.tcp.Addr().(*net.TCPAddr).AddrPort().Port()
		}
	} else {
		p.udp, err = net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(at))
		if err == nil {
			p.rule.Port = p.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		}
	}
	if err != nil {
		return fail(err)
	}
	p.rule.Addr = at.Addr()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		p.close()
		return fail(ErrClosed)
	}
	n.ports = append(n.ports, p)
	if p.tcp != nil {
		n.work.Go(p.serveTCP)
	} else {
		n.work.Go(p.serveUDP)
	}
	return nil
}

// Published returns the rules in force, with the ports that they got.
func (n *Network) Published() []Rule {
	n.mu.Lock()
	defer n.mu.Unlock()
	var rules []Rule
	for _, p := range n.ports {
		rules = append(rules, p.rule)
	}
	return rules
}

func (p *publication) close() {
	if p.tcp != nil {
		_ = p.tcp.Close()
	}
	if p.udp != nil {
		_ = p.udp.Close()
	}
}

// acceptPause is how long a published port rests that the host gave an error, as
// when it is out of file descriptors.
const acceptPause = 100 * time.Millisecond

func (p *publication) serveTCP() {
	for {
		c, err := p.tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if held, ok := p.n.muffled.Pass(time.Since(p.n.born)); ok {
				p.n.o.Logger.Warn("usernet: accept", "name", p.n.o.Name, "rule", p.rule.String(), "error", err, "unreported", held)
			}
			select {
			case <-p.n.ended:
				return
			case <-time.After(acceptPause):
				continue
			}
		}
		if s := p.n.current.Load(); s == nil || !s.beginIn(p, c.(*net.TCPConn), peerOf(c)) {
			reset(c)
		}
	}
}

func peerOf(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// beginIn has connectIn run. It reports false if there is no room, or the session ends.
func (s *session) beginIn(p *publication, c *net.TCPConn, peer netip.AddrPort) bool {
	if !s.n.takeSocket(TCP) {
		return false
	}
	if s.begin(func() { defer giveSocket(); s.connectIn(p, c, peer) }) {
		return true
	}
	giveSocket()
	return false
}

// connectIn carries the connection c of a peer outside to the guest.
func (s *session) connectIn(p *publication, c *net.TCPConn, peer netip.AddrPort) {
	ctx, cancel := context.WithTimeout(s.ctx, publishTimeout)
	defer cancel()
	to := netip.AddrPortFrom(s.guest4, p.rule.GuestPort)
	slot, err := s.dialIn(ctx, p, s.source(peer, s.guest4), to)
	if err != nil {
		s.n.stats.failed.Add(1)
		reset(c)
		return
	}
	s.relay(slot, c)
}

// dialIn tries from, and then the gateway's address: a guest may have no route to the
// peer, or one by another interface, and drops its segments without a word then.
func (s *session) dialIn(ctx context.Context, p *publication, from, to netip.AddrPort) (*slot, error) {
	gateway := netip.AddrPortFrom(s.gateway4, 0)
	if from.Addr() == s.gateway4 {
		return s.dialGuest(ctx, from, to, 0)
	}
	if s.unanswered.lately(p) {
		return s.dialGuest(ctx, gateway, to, 0)
	}
	slot, err := s.dialGuest(ctx, from, to, s.answerTime)
	if err == nil {
		s.unanswered.forget(p)
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, errRefused) {
		return slot, err
	}
	silent := errors.Is(err, errNoAnswer)
	if slot, err = s.dialGuest(ctx, gateway, to, 0); err == nil && silent {
		s.unanswered.note(p)
	}
	return slot, err
}

func (p *publication) serveUDP() {
	buf := new([maxDatagram]byte)
	for {
		n, peer, err := p.udp.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-p.n.ended:
				return
			case <-time.After(acceptPause):
				continue
			}
		}
		if s := p.n.current.Load(); s != nil && s.enter() {
			if f := s.flowIn(p, netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())); f != nil {
				f.reply(buf[:n])
			}
			s.work.Done()
		}
	}
}

// portTries is how many ports of the gateway's are tried for a peer.
const portTries = 64

// flowIn finds or makes the flow of a peer outside with a published port. The
// guest sees the gateway at the peer's port, or at one near it if another peer
// has that already.
func (s *session) flowIn(p *publication, peer netip.AddrPort) *flow {
	guest := netip.AddrPortFrom(s.guest4, p.rule.GuestPort)
	from := s.source(peer, s.guest4)
	if s.unanswered.any() {
		from = netip.AddrPortFrom(s.gateway4, 0)
	}
	if from.Port() == 0 {
		from = netip.AddrPortFrom(from.Addr(), peer.Port())
	}
	for range portTries {
		f, fresh := s.udp.add(flowKey{UDP, guest, from})
		if f == nil {
			return nil
		}
		if fresh {
			out := &publishedPeer{c: p.udp, to: peer}
			if err := out.init(); err != nil || !f.open(out) {
				f.remove()
				return nil
			}
			return f
		}
		f.mu.Lock()
		out, ok := f.out.(*publishedPeer)
		f.mu.Unlock()
		if ok && out.to == peer && out.c == p.udp {
			return f
		}
		from = netip.AddrPortFrom(from.Addr(), max(1024, from.Port()+1))
	}
	return nil
}

// publishedPeer takes the guest's answers to a peer of a published port.
type publishedPeer struct {
	c    *net.UDPConn
	to   netip.AddrPort
	sa   unix.Sockaddr
	raw  syscall.RawConn
	b    []byte
	err  error
	step func(uintptr) bool
}

func (o *publishedPeer) init() error {
	raw, err := o.c.SyscallConn()
	if err != nil {
		return err
	}
	o.raw = raw
	if o.to.Addr().Is4() {
		o.sa = &unix.SockaddrInet4{Port: int(o.to.Port()), Addr: o.to.Addr().As4()}
	} else {
		o.sa = &unix.SockaddrInet6{Port: int(o.to.Port()), Addr: o.to.Addr().As16()}
	}
	o.step = func(fd uintptr) bool {
		o.err = unix.Sendto(int(fd), o.b, unix.MSG_DONTWAIT, o.sa)
		return true
	}
	return nil
}

func (o *publishedPeer) send(b []byte) error {
	o.b = b
	_ = o.raw.Write(o.step)
	o.b = nil
	return nil
}

// halt leaves the socket, which is the published port's.
func (*publishedPeer) halt() {}
