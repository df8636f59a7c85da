package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// Names of the network's own, with and without localDomain.
const (
	localDomain = ".vole.internal"
	gatewayName = "gateway"
	guestName   = "guest"
)

// Dial opens a connection to the guest, straight into its network: "tcp" or
// "udp", with 4 or 6 behind it to choose, and "HOST:PORT" where HOST is "guest",
// the guest's host name, or an address in its network. A "guest" without a
// choice is its IPv4 address. The TCP connections have CloseRead and CloseWrite.
//
// The connection comes from the gateway. A refused one wraps
// syscall.ECONNREFUSED; ErrNoGuest says that there is no driver. A guest that
// has no address yet does not answer, and Dial tries on until ctx ends or
// Options.DialTimeout has passed.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, fmt.Errorf("usernet: dial %s %s: %w", network, address, err)
	}
	s := n.current.Load()
	if s == nil {
		return fail(ErrNoGuest)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return fail(err)
	}
	port, ok := parsePort(service)
	if !ok || port == 0 {
		return fail(fmt.Errorf("%q is not a port number", service))
	}
	proto, family := strings.CutSuffix(network, "6")
	want6 := family
	if !want6 {
		proto, family = strings.CutSuffix(network, "4")
	}
	if proto != "tcp" && proto != "udp" {
		return fail(net.UnknownNetworkError(network))
	}
	a, err := s.resolveGuest(host, want6)
	if err != nil {
		return fail(err)
	}
	if family && a.Is6() != want6 {
		return fail(&net.AddrError{Err: "address of the other family", Addr: host})
	}
	if !s.enter() {
		return fail(ErrNoGuest)
	}
	defer s.work.Done()
	to := netip.AddrPortFrom(a, port)
	from := s.source(netip.AddrPort{}, a)
	if proto == "udp" {
		local, remote := fullAddr(from), fullAddr(to)
		c, err := gonet.DialUDP(s.stack, &local, &remote, netProto(a))
		if err != nil {
			return fail(err)
		}
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ctx, n.o.DialTimeout)
	defer cancel()
	p, err := s.dialGuest(ctx, from, to, 0)
	if err != nil {
		return fail(err)
	}
	return newGuestConn(p), nil
}

func (s *session) resolveGuest(host string, want6 bool) (netip.Addr, error) {
	host = strings.ToLower(host)
	if host == guestName || host == guestName+localDomain || s.n.o.Hostname != "" && host == strings.ToLower(s.n.o.Hostname) {
		if !want6 {
			return s.guest4, nil
		}
		if a := s.guest6.Load(); a != nil {
			return *a, nil
		}
		return netip.Addr{}, errNoGuest6
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return a, errors.New("not the guest, and not an IP address")
	}
	a = a.Unmap()
	if !s.inside(a) || s.own(a) {
		return a, errors.New("not an address in the guest's network")
	}
	return a.WithZone(""), nil
}

const (
	// publishTimeout bounds the connection of a published port to the guest.
	publishTimeout = 10 * time.Second
	// answerTime is how long a guest has to answer a peer's own address: its first
	// segment and, a second later, the next. A guest that is there answers sooner, but
	// for one that can't send to the peer, or won't take what comes from there.
	answerTime = 1500 * time.Millisecond
	// gatewayTime is how long no peer's own address is tried after that.
	gatewayTime = 10 * time.Minute
)
