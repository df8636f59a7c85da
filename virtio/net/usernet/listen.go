package usernet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
)

// backlog is how many connections of the guest wait for Accept.
const backlog = 128

// Ports that Listen takes from when asked for port 0 (RFC 6335, 6).
const firstDynamicPort, lastDynamicPort = 49152, 65535

type offerKey struct {
	proto Protocol
	at    netip.AddrPort
}

// offer returns who listens at an address of the network, or nil.
func (n *Network) offer(proto Protocol, at netip.AddrPort) *listener {
	if n.offered.Load() == 0 {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.offers[offerKey{proto, at}]
}

// Listen offers the guest a port at an address inside of the network: "tcp",
// "tcp4" or "tcp6", and "HOST:PORT" where HOST is empty or "gateway" for the
// gateway's addresses, or any IP address: the guest then finds the listener
// there, whatever else has that address outside. Port 0 takes a free one. No
// port of the host is opened, and the policy is not asked. The listener lives
// across resets of the guest.
//
// An address in use wraps syscall.EADDRINUSE.
func (n *Network) Listen(network, address string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) {
		return nil, fmt.Errorf("usernet: listen on %s %s: %w", network, address, err)
	}
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return fail(net.UnknownNetworkError(network))
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return fail(err)
	}
	port, ok := parsePort(service)
	if !ok {
		return fail(fmt.Errorf("%q is not a port number", service))
	}
	var addrs []netip.Addr
	switch strings.ToLower(host) {
	case "", gatewayName, gatewayName + localDomain:
		addrs = []netip.Addr{n.gateway4}
		if n.v6 {
			addrs = append(addrs, n.gateway6)
		}
	default:
		a, err := netip.ParseAddr(host)
		if err != nil {
			return fail(errors.New("not an IP address, and not the gateway"))
		}
		addrs = []netip.Addr{a.Unmap()}
	}
	for i := 0; i < len(addrs); {
		if network == "tcp4" && !addrs[i].Is4() || network == "tcp6" && (addrs[i].Is4() || !n.v6) {
			addrs = append(addrs[:i], addrs[i+1:]...)
			continue
		}
		i++
	}
	if len(addrs) == 0 || addrs[0] == n.guest4 {
		return fail(syscall.EADDRNOTAVAIL)
	}
	l := &listener{n: n, queue: make(chan *guestConn, backlog), over: make(chan struct{})}
	if err := n.addOffer(l, addrs, port); err != nil {
		return fail(err)
	}
	return l, nil
}

func (n *Network) addOffer(l *listener, addrs []netip.Addr, port uint16) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	free := func(port uint16) bool {
		for _, a := range addrs {
			if n.offers[offerKey{TCP, netip.AddrPortFrom(a, port)}] != nil || n.dns(a) && port == dnsPort {
				return false
			}
		}
		return true
	}
	if port == 0 {
		for p := firstDynamicPort; p <= lastDynamicPort && port == 0; p++ {
			if free(uint16(p)) {
				port = uint16(p)
			}
		}
	}
	if port == 0 || !free(port) {
		return syscall.EADDRINUSE
	}
	for _, a := range addrs {
		k := offerKey{TCP, netip.AddrPortFrom(a, port)}
		n.offers[k] = l
		l.keys = append(l.keys, k)
	}
	n.offered.Store(int32(len(n.offers)))
	return nil
}

// listener is a net.Listener inside of the network.
type listener struct {
	n     *Network
	keys  []offerKey
	queue chan *guestConn
	once  sync.Once
	over  chan struct{}

	mu       sync.Mutex
	reserved int  // connections in the queue or on their way to it
	closed   bool // under mu
}

// reserve takes a place in the queue, for deliver or cancel.
func (l *listener) reserve() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.reserved == backlog {
		return false
	}
	l.reserved++
	return true
}

func (l *listener) cancel() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reserved--
}

func (l *listener) deliver(c *guestConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.reserved--
		c.p.ep.Abort()
		_ = c.Close()
		return
	}
	l.queue <- c // has room: a place was reserved
}

// Accept implements net.Listener. It goes on across resets of the guest.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		l.cancel()
		return c, nil
	case <-l.over:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close implements net.Listener. What was not accepted is reset.
func (l *listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		err = nil
		l.n.mu.Lock()
		for _, k := range l.keys {
			delete(l.n.offers, k)
		}
		l.n.offered.Store(int32(len(l.n.offers)))
		l.n.mu.Unlock()
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		close(l.over)
		for {
			select {
			case c := <-l.queue:
				c.p.ep.Abort()
				_ = c.Close()
			default:
				return
			}
		}
	})
	return err
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.keys[0].at) }
