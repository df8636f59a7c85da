// Package usernet is a network for one guest inside the process: no root, no
// tap, no helper. It is a backend of the network device (package virtio/net) on
// gVisor's TCP/IP stack, and whoever does not import it links none of that.
//
// # The network that the guest sees
//
//	10.0.2.0/24             its IPv4 network, by DHCP
//	10.0.2.2                the gateway: the host, as far as it may be reached
//	10.0.2.3                the DNS server
//	10.0.2.15               the guest
//	fd00:766f:6c65::/64     its IPv6 network, by router advertisements (SLAAC)
//	fd00:766f:6c65::2, ::3  the gateway and the DNS server
//
// The IPv4 numbers are those of QEMU's -netdev user. What the guest opens to any
// other address is opened again by a socket of this process: TCP, UDP, and ICMP
// echo where the host lets unprivileged processes ping. The guest sees a refused
// connection refused: nothing is accepted for a peer that has not answered yet.
// UDP is connected peer by peer: only who was written to can answer.
//
// The gateway's address leads to the loopback of the host only with
// Options.HostLoopback. Unlike QEMU this is off: a guest is not trusted, and
// what listens on a loopback address often asks for no password. The host's
// other addresses are outside like any: what listens there on all addresses, and
// a cloud's metadata service at 169.254.169.254, is for a Policy to keep shut.
//
// # In
//
// Publish opens a port of the host that leads to one of the guest. Dial and
// Listen give a Go program connections to and from the guest with no port on
// the host at all. A guest that has said nothing yet, as one with a static
// address may, is asked for it by ARP or neighbour discovery, and again until it
// answers; what is for it waits for up to ten seconds.
//
// # DNS
//
// Names of Options.Hosts, gateway.vole.internal and guest.vole.internal are
// answered here; then those of the host's /etc/hosts, where a loopback address
// becomes the gateway's if that leads there and is left out otherwise. Any other
// question goes, as the guest asked it, to the servers of the host's
// /etc/resolv.conf, over UDP or TCP as it came. Both files are read anew when
// they change. A forwarder keeps every record type and answers by the host's
// own servers, also those on its loopback (systemd-resolved, dnsmasq): it is
// this process that asks them. Go's own resolver could add nothing to that, as
// it reads the same two files.
//
// # What a guest can't do
//
// Number and buffers of its flows are bounded, and so is the time that a flow
// outlives its ends. A packet's source may be any address of the guest's networks,
// or a link-local one of IPv6, that is not the network's own, and not only the one
// that the guest was given; none at all is for DHCP, ARP and neighbour discovery.
// Any other is dropped. The hardware address that a frame is from may be any but
// zero, the gateway's or a group's, unless Options.MAC says which.
// Anything to a multicast or broadcast address other than what the network itself
// needs is dropped. A Policy decides on every flow to the outside.
//
// # What is left out
//
// ICMP errors from outside other than refused UDP, IGMP and MLD, DHCPv6,
// endpoint-independent NAT (hole punching), and published ports that lead to the
// guest's IPv6 address: they lead to its IPv4 address, from either family.
package usernet
