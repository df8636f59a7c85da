package agent

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// configureNet brings up the loopback device, which gets its addresses by that, and
// the first other one if n says how.
func configureNet(n *wire.Net) []string {
	var p problems
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.check(err, "configure the network")
		return p
	}
	defer unix.Close(s)
	p.check(bringUp(s, "lo"), "bring up the loopback device")
	if n == nil {
		return p
	}
	name, index, err := firstDevice(s)
	if err == nil && n.MTU > 0 {
		p.check(setMTU(s, name, n.MTU), "set the MTU of %s to %d", name, n.MTU)
	}
	if err == nil {
		err = bringUp(s, name)
	}
	if err == nil {
		err = address(index, n, &p)
	}
	p.check(err, "configure the network")
	return p
}

func bringUp(s int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

func setMTU(s int, name string, mtu int) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint32(uint32(mtu))
	return unix.IoctlIfreq(s, unix.SIOCSIFMTU, ifr)
}

// lastIndex is as far as firstDevice looks: devices that the kernel makes at its
// start have the lowest numbers.
const lastIndex = 64

// firstDevice is the first Ethernet device.
func firstDevice(s int) (name string, index uint32, err error) {
	for index = 1; index <= lastIndex; index++ {
		ifr, err := unix.NewIfreq("x") // any name: the index counts
		if err != nil {
			return "", 0, err
		}
		ifr.SetUint32(index)
		if unix.IoctlIfreq(s, unix.SIOCGIFNAME, ifr) != nil {
			continue
		}
		name = ifr.Name()
		if ifr, err = unix.NewIfreq(name); err != nil {
			continue
		}
		if unix.IoctlIfreq(s, unix.SIOCGIFHWADDR, ifr) == nil && ifr.Uint16() == unix.ARPHRD_ETHER {
			return name, index, nil
		}
	}
	return "", 0, errors.New("there is no network device")
}

// address gives the device its addresses and routes.
func address(index uint32, n *wire.Net, p *problems) error {
	route, err := openRoute()
	if err != nil {
		return err
	}
	defer route.close()
	for _, text := range n.Addresses {
		prefix, err := netip.ParsePrefix(text)
		if err == nil {
			err = route.addAddress(index, prefix)
		}
		p.check(err, "give the network device the address %s", text)
	}
	for _, text := range n.Gateways {
		gateway, err := netip.ParseAddr(text)
		if err == nil {
			err = route.addGateway(index, gateway)
		}
		p.check(err, "route by the gateway %s", text)
	}
	return nil
}

// route is a socket of rtnetlink(7).
type route struct {
	fd, seq int
}

func openRoute() (*route, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("make a netlink socket: %w", err)
	}
	return &route{fd: fd}, nil
}

func (r *route) close() { unix.Close(r.fd) }

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addAddress adds an address. One of IPv6 is used at once: nobody else can have it.
func (r *route) addAddress(index uint32, prefix netip.Prefix) error {
	a := prefix.Addr().Unmap()
	// struct ifaddrmsg.
	m := netlinkMessage{family(a), byte(prefix.Bits()), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE}
	m = m.u32(index)
	m = m.attr(unix.IFA_LOCAL, a.AsSlice()).attr(unix.IFA_ADDRESS, a.AsSlice())
	return r.do(unix.RTM_NEWADDR, m)
}

// addGateway adds a default route.
func (r *route) addGateway(index uint32, gateway netip.Addr) error {
	gateway = gateway.Unmap().WithZone("")
	// struct rtmsg.
	m := netlinkMessage{family(gateway), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	m = m.u32(0)
	m = m.attr(unix.RTA_GATEWAY, gateway.AsSlice()).attr(unix.RTA_OIF, netlinkMessage(nil).u32(index))
	return r.do(unix.RTM_NEWROUTE, m)
}
