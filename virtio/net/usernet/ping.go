package usernet

import (
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// echoSize is the header of an echo message, in both families.
const echoSize = 8

// forwardEcho takes the guest's pings to other hosts. It leaves what is for the
// network's own addresses to the stack.
func (s *session) forwardEcho(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	dst := hostAddr(id.LocalAddress)
	if s.own(dst) {
		return false
	}
	h := pkt.TransportHeader().Slice()
	request, proto := byte(header.ICMPv4Echo), ICMP
	if pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		request = byte(header.ICMPv6EchoRequest)
	}
	if len(h) < echoSize || h[0] != request || h[1] != 0 || s.inside(dst) {
		return true
	}
	k := flowKey{proto, netip.AddrPortFrom(hostAddr(id.RemoteAddress), binary.BigEndian.Uint16(h[4:])), netip.AddrPortFrom(dst, 0)}
	f := s.udp.find(k)
	if f == nil {
		fresh := false
		if f, fresh = s.udp.add(k); f == nil {
			return true
		}
		if fresh && !s.beginFlow(f, s.servePing) {
			return true
		}
	}
	// The ICMPv6 header that the stack parsed may end before the identifier: put
	// the message together again.
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	n := copy(buf[:], h)
	w := appender{b: buf[:n]}
	_, _ = pkt.Data().ReadTo(&w, true)
	if w.full {
		return true
	}
	_ = f.send(w.b)
	return true
}

// appender collects bytes up to its slice's capacity.
type appender struct {
	b    []byte
	full bool
}

func (a *appender) Write(p []byte) (int, error) {
	if len(a.b)+len(p) > cap(a.b) {
		a.full = true
	} else {
		a.b = append(a.b, p...)
	}
	return len(p), nil
}

// servePing pings for the guest through an unprivileged socket, which the host
// allows to the groups of net.ipv4.ping_group_range. The socket has an
// identifier of its own.
func (s *session) servePing(f *flow) {
	defer f.remove()
	to := f.key.peer.Addr()
	if err := s.ask(Destination{Protocol: ICMP, Addr: to}); err != nil {
		s.unreachable(f.key, prohibited)
		return
	}
	if !s.n.takeSocket(ICMP) {
		s.unreachable(f.key, hostUnreachable)
		return
	}
	defer giveSocket()
	file, err := pingSocket(to)
	if err != nil {
		s.n.stats.failed.Add(1)
		if err == unix.EACCES || err == unix.EPERM {
			s.pingForbidden()
			s.unreachable(f.key, prohibited)
			return
		}
		s.unreachable(f.key, hostUnreachable)
		return
	}
	defer file.Close()
	out, err := newSocket(file)
	if err == nil && f.open(out) {
		out.receive(f.echo, func() { s.unreachable(f.key, hostUnreachable) })
	}
}

// pingForbidden says once for the network that the host forbids to ping.
func (s *session) pingForbidden() {
	s.n.pingOnce.Do(func() {
		s.n.o.Logger.Warn("usernet: this host lets the guest ping nobody: sysctl net.ipv4.ping_group_range must contain a group of this process",
			"name", s.n.o.Name)
	})
}

func pingSocket(to netip.Addr) (*os.File, error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr = &unix.SockaddrInet4{}
	if to.Is4() {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		sa = &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "ping"), nil
}

// echo brings an answer to the guest, under the guest's identifier.
func (f *flow) echo(b []byte) {
	v6 := f.key.peer.Addr().Is6()
	reply, proto := byte(header.ICMPv4EchoReply), header.ICMPv4ProtocolNumber
	if v6 {
		reply, proto = byte(header.ICMPv6EchoReply), header.ICMPv6ProtocolNumber
	}
	if len(b) < echoSize || b[0] != reply {
		return
	}
	f.last.Store(f.t.now())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return
	}
	b[2], b[3] = 0, 0
	binary.BigEndian.PutUint16(b[4:], f.key.guest.Port())
	sum := uint16(0)
	if v6 {
		sum = pseudoSum(f.key.peer.Addr(), f.key.guest.Addr(), protoICMPv6, len(b))
	}
	binary.BigEndian.PutUint16(b[2:], ^checksum.Checksum(b, sum))
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: echoSize + int(f.route.MaxHeaderLength()),
		Payload:            buffer.MakeWithView(buffer.NewViewWithData(b[echoSize:])),
	})
	defer pkt.DecRef()
	copy(pkt.TransportHeader().Push(echoSize), b)
	pkt.TransportProtocolNumber = proto
	_ = f.route.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: 64}, pkt)
}
