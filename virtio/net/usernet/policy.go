package usernet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ErrDenied is in the error of every destination that a policy of this package
// denies.
var ErrDenied = errors.New("denied by policy")

// Protocol is what a guest wants to speak.
type Protocol uint8

// The protocols that a policy is asked for. DNS is the lookup of a name that
// the network does not answer by itself.
const (
	TCP Protocol = iota + 1
	UDP
	ICMP
	DNS
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMP:
		return "icmp"
	case DNS:
		return "dns"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Destination is where a guest wants to go: a flow that it opens, or a name that
// it asks for.
type Destination struct {
	Protocol Protocol
	// Addr and Port are where the host's socket would go: a loopback address for
	// the guest's gateway. Port is 0 for ICMP; both are zero for DNS.
	Addr netip.Addr
	Port uint16
	// Name is the name asked for: DNS only, in lower case, without a dot at its
	// end.
	Name string
}

func (d Destination) String() string {
	switch d.Protocol {
	case DNS:
		return fmt.Sprintf("dns %q", d.Name)
	case ICMP:
		return "icmp " + d.Addr.String()
	}
	return d.Protocol.String() + " " + netip.AddrPortFrom(d.Addr, d.Port).String()
}

// Policy decides whether the guest may reach a destination outside of its own
// network: nil lets it, an error refuses and is logged. It is called once for
// each flow and name, from many goroutines, and may take its time: only that
// flow waits, and Stop and Close, which join it. What Listen offers, DHCP, and the names that the network knows by
// itself are not asked for.
type Policy func(Destination) error

// AllowAll is the policy that lets everything out.
func AllowAll(Destination) error { return nil }

// DenyOutside is the policy that lets nothing out: the guest reaches what Listen
// offers, and is reached through Dial and Publish.
func DenyOutside(Destination) error { return ErrDenied }

// Filter is a policy of rules: the first that matches decides. Its Check is the
// Policy.
type Filter struct {
	Rules []FilterRule
	// Allow is for what no rule matches.
	Allow bool
}

// FilterRule matches a destination by everything that it names.
type FilterRule struct {
	Allow bool
	// Protocols is empty for all.
	Protocols []Protocol
	// Prefix is of the addresses; the zero Prefix matches all, names too. A rule
	// with a prefix or ports matches no name.
	Prefix netip.Prefix
	// FirstPort and LastPort, both included, are 0 for all ports; a LastPort of 0
	// is the FirstPort.
	FirstPort, LastPort uint16
	// Name matches itself and what ends in a dot and it; a rule with a name
	// matches no address.
	Name string
}

// Check implements Policy.
func (f Filter) Check(d Destination) error {
	for _, r := range f.Rules {
		if r.matches(d) {
			return verdict(r.Allow)
		}
	}
	return verdict(f.Allow)
}

func verdict(allow bool) error {
	if allow {
		return nil
	}
	return ErrDenied
}

func (r FilterRule) matches(d Destination) bool {
	if len(r.Protocols) > 0 && !slices.Contains(r.Protocols, d.Protocol) {
		return false
	}
	if d.Protocol == DNS {
		return !r.Prefix.IsValid() && r.FirstPort == 0 && r.LastPort == 0 && (r.Name == "" || below(d.Name, r.Name))
	}
	if r.Name != "" || r.Prefix.IsValid() && !r.Prefix.Contains(d.Addr.Unmap()) {
		return false
	}
	if r.FirstPort == 0 && r.LastPort == 0 {
		return true
	}
	return d.Port >= r.FirstPort && d.Port <= max(r.FirstPort, r.LastPort)
}

// below reports whether name is parent or ends in a dot and it.
func below(name, parent string) bool {
	parent = strings.ToLower(strings.Trim(parent, "."))
	return name == parent || strings.HasSuffix(name, "."+parent)
}
