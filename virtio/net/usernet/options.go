package usernet

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"
)

// MTU bounds, in bytes of an IP packet: what IPv6 asks for, and what the
// largest frame of a virtio network device holds.
const (
	MinMTU = 1280
	MaxMTU = 65520
)

// What Options stand for when they say nothing.
const (
	DefaultMTU         = 65520
	DefaultMaxTCP      = 4096
	DefaultMaxUDP      = 1024
	DefaultUDPIdle     = 2 * time.Minute
	DefaultDialTimeout = 30 * time.Second
)

// Default networks; see the package comment.
var (
	DefaultIPv4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 2, 0}), 24)
	DefaultIPv6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x00, 0x76, 0x6f, 0x6c, 0x65}), 64)
)

// Options say what a network is to be. The zero value is the network of the
// package comment.
type Options struct {
	// Name stands in errors and logs.
	Name string
	// Logger is told what went wrong at Warn, and what a policy denied at Info;
	// nil is silence.
	Logger *slog.Logger

	// IPv4 is the guest's network, /8 to /27: host number 2 is the gateway, 3 the
	// DNS server, 15 the guest.
	IPv4 netip.Prefix
	// IPv6 is the guest's network, a /64: 2 is the gateway and 3 the DNS server.
	IPv6 netip.Prefix
	// NoIPv6 leaves IPv6 out.
	NoIPv6 bool
	// MTU is MinMTU to MaxMTU.
	MTU int
	// MAC, where it is given, is the only hardware address that frames are taken
	// from.
	MAC net.HardwareAddr
	// Hostname is given out by DHCP.
	Hostname string
	// Hosts are names that the DNS server answers for the guest.
	Hosts map[string][]netip.Addr

	// Policy decides what the guest reaches outside; nil is AllowAll.
	Policy Policy
	// HostLoopback leads the gateway's address to the host's loopback. The policy
	// is asked for those connections too.
	HostLoopback bool

	// MaxTCP and MaxUDP bound the flows at any one time, in both directions. A
	// connection beyond is refused; a UDP flow beyond ends the one that was idle
	// longest. Pings count as UDP. What guests have of the host's sockets in all
	// networks of this process is bounded by a quarter of RLIMIT_NOFILE, TCP by
	// three quarters of that: more is refused too.
	MaxTCP, MaxUDP int
	// UDPIdle ends a UDP flow in which nothing was said for so long.
	UDPIdle time.Duration
	// DialTimeout bounds a connection to the outside until it is established.
	DialTimeout time.Duration

	// Servers are the DNS servers to ask instead of those of ResolvConf.
	Servers []netip.AddrPort
	// ResolvConf and HostsFile are /etc/resolv.conf and /etc/hosts when empty.
	ResolvConf, HostsFile string
}

// withDefaults returns the options complete and checked.
func (o Options) withDefaults() (Options, error) {
	if o.Name == "" {
		o.Name = "usernet"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Policy == nil {
		o.Policy = AllowAll
	}
	for _, d := range []struct {
		v      *int
		preset int
	}{{&o.MTU, DefaultMTU}, {&o.MaxTCP, DefaultMaxTCP}, {&o.MaxUDP, DefaultMaxUDP}} {
		if *d.v == 0 {
			*d.v = d.preset
		}
	}
	if o.UDPIdle == 0 {
		o.UDPIdle = DefaultUDPIdle
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = DefaultDialTimeout
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.HostsFile == "" {
		o.HostsFile = "/etc/hosts"
	}
	if !o.IPv4.IsValid() {
		o.IPv4 = DefaultIPv4
	}
	if !o.IPv6.IsValid() {
		o.IPv6 = DefaultIPv6
	}
	return o, o.validate()
}

func (o *Options) validate() error {
	switch {
	case o.MTU < MinMTU || o.MTU > MaxMTU:
		return fmt.Errorf("usernet: an MTU of %d is not between %d and %d bytes", o.MTU, MinMTU, MaxMTU)
	case o.MaxTCP < 0 || o.MaxUDP < 0:
		return fmt.Errorf("usernet: a bound of %d TCP and %d UDP flows is negative", o.MaxTCP, o.MaxUDP)
	case o.UDPIdle < 0 || o.DialTimeout < 0:
		return fmt.Errorf("usernet: a time of %v for idle UDP and %v for a connection is negative", o.UDPIdle, o.DialTimeout)
	case !o.IPv4.Addr().Is4() || o.IPv4.Bits() < 8 || o.IPv4.Bits() > 27 || o.IPv4 != o.IPv4.Masked() || !unicastNet(o.IPv4.Addr()):
		return fmt.Errorf("usernet: %v is not an IPv4 network of /8 to /27", o.IPv4)
	case !o.IPv6.Addr().Is6() || o.IPv6.Addr().Is4In6() || o.IPv6.Bits() != 64 || o.IPv6 != o.IPv6.Masked() || !unicastNet(o.IPv6.Addr()):
		return fmt.Errorf("usernet: %v is not an IPv6 network of /64", o.IPv6)
	case len(o.MAC) != 0 && (len(o.MAC) != 6 || o.MAC[0]&1 != 0):
		return fmt.Errorf("usernet: %v is not the hardware address of one guest", o.MAC)
	case o.Hostname != "" && !validName(o.Hostname):
		return fmt.Errorf("usernet: %q is not a host name", o.Hostname)
	}
	for name := range o.Hosts {
		if !validName(name) {
			return fmt.Errorf("usernet: %q is not a host name", name)
		}
	}
	return nil
}

func unicastNet(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && (a.Is6() || a.As4()[0] != 0 && a.As4()[0] < 224)
}

// validName takes what DNS can carry: labels of 1 to 63 bytes, 253 in all.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if c <= ' ' || c >= 0x7f {
				return false
			}
		}
	}
	return true
}

// plan is the addresses of a network, from its Options.
type plan struct {
	gateway4, dns4, guest4, broadcast4 netip.Addr
	gateway6, dns6, link6              netip.Addr // link6 is the gateway's link-local
	net4, net6                         netip.Prefix
	v6                                 bool
}

func newPlan(o *Options) plan {
	host4 := func(n byte) netip.Addr {
		a := o.IPv4.Addr().As4()
		a[3] += n
		return netip.AddrFrom4(a)
	}
	host6 := func(n byte) netip.Addr {
		a := o.IPv6.Addr().As16()
		a[15] = n
		return netip.AddrFrom16(a)
	}
	b := o.IPv4.Addr().As4()
	for i := o.IPv4.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return plan{
		gateway4: host4(2), dns4: host4(3), guest4: host4(15), broadcast4: netip.AddrFrom4(b),
		gateway6: host6(2), dns6: host6(3), link6: netip.AddrFrom16([16]byte{0xfe, 0x80, 15: 2}),
		net4: o.IPv4, net6: o.IPv6, v6: !o.NoIPv6,
	}
}

// own reports whether the network itself has the address.
func (p *plan) own(a netip.Addr) bool {
	return a == p.gateway4 || a == p.dns4 || p.v6 && (a == p.gateway6 || a == p.dns6 || a == p.link6)
}

// gateway reports whether a is the gateway's address, of either family.
func (p *plan) gateway(a netip.Addr) bool {
	return a == p.gateway4 || p.v6 && (a == p.gateway6 || a == p.link6)
}

// dns reports whether a is the DNS server's address, of either family.
func (p *plan) dns(a netip.Addr) bool { return a == p.dns4 || p.v6 && a == p.dns6 }

// inside reports whether a is of the guest's networks.
func (p *plan) inside(a netip.Addr) bool {
	return p.net4.Contains(a) || p.v6 && (p.net6.Contains(a) || a.Is6() && a.IsLinkLocalUnicast())
}
