package usernet

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ErrRule is in every error of a publish rule that makes no sense.
var ErrRule = errors.New("not a publish rule")

// Rule leads a port of the host to one of the guest.
type Rule struct {
	// Protocol is TCP or UDP; 0 is TCP.
	Protocol Protocol
	// Addr is the host's address to listen on. The zero Addr is 127.0.0.1: what a
	// guest offers is for this host alone unless the rule says otherwise.
	Addr netip.Addr
	// Port is the host's; 0 takes a free one, which Published tells.
	Port uint16
	// GuestPort is the guest's, 1 at least.
	GuestPort uint16
}

func (r Rule) String() string {
	s := netip.AddrPortFrom(r.listenAddr(), r.Port).String() + ":" + strconv.Itoa(int(r.GuestPort))
	if r.Protocol == UDP {
		s += "/udp"
	}
	return s
}

func (r Rule) listenAddr() netip.Addr {
	if r.Addr.IsValid() {
		return r.Addr
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (r Rule) validate() error {
	switch {
	case r.Protocol != 0 && r.Protocol != TCP && r.Protocol != UDP:
		return fmt.Errorf("%w: the protocol of a published port is tcp or udp, not %v", ErrRule, r.Protocol)
	case r.GuestPort == 0:
		return fmt.Errorf("%w: the guest's port must be 1 to 65535", ErrRule)
	}
	return nil
}

// ParsePublish reads a rule as the command line has it:
//
//	[ADDR:]PORT:GUESTPORT[/tcp|/udp]
//
// ADDR is an IP address, IPv6 in brackets; 0.0.0.0 and [::] are all of the
// host's. PORT 0 takes a free one. The error, in one line, wraps ErrRule.
func ParsePublish(s string) (Rule, error) {
	bad := func(why string) (Rule, error) {
		return Rule{}, fmt.Errorf("usernet: publish %q: %w: %s; it has the form [ADDR:]PORT:GUESTPORT[/udp]", s, ErrRule, why)
	}
	r := Rule{Protocol: TCP}
	rest, proto, has := strings.Cut(s, "/")
	if has {
		switch proto {
		case "tcp":
		case "udp":
			r.Protocol = UDP
		default:
			return bad(fmt.Sprintf("the protocol %q is neither tcp nor udp", proto))
		}
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return bad("the guest's port is missing")
	}
	host, guest := rest[:i], rest[i+1:]
	var ok bool
	if r.GuestPort, ok = parsePort(guest); !ok || r.GuestPort == 0 {
		return bad(fmt.Sprintf("the guest's port %q is not a number from 1 to 65535", guest))
	}
	port := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		port = host[i+1:]
		addr := host[:i]
		bare, bracketed := strings.CutPrefix(addr, "[")
		if bracketed {
			if bare, ok = strings.CutSuffix(bare, "]"); !ok {
				return bad(fmt.Sprintf("the bracket of %q is not closed", addr))
			}
		}
		a, err := netip.ParseAddr(bare)
		switch {
		case err != nil:
			return bad(fmt.Sprintf("%q is not an IP address", addr))
		case a.Is6() != bracketed:
			return bad(fmt.Sprintf("an IPv6 address, and no other, stands in brackets: %q", addr))
		case a.IsMulticast():
			return bad(fmt.Sprintf("%v is a multicast address", a))
		}
		r.Addr = a
	}
	if r.Port, ok = parsePort(port); !ok {
		return bad(fmt.Sprintf("the host's port %q is not a number from 0 to 65535", port))
	}
	return r, nil
}

// parsePort takes decimal digits only: no sign, no blanks.
func parsePort(s string) (uint16, bool) {
	if s == "" || len(s) > 5 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}
