package usernet

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	virtionet "github.com/vole-vmm/vole/virtio/net"
)

const (
	patience = 10 * time.Second

	allOffloads = virtionet.FeatureCsum | virtionet.FeatureGuestCsum | virtionet.FeatureGuestTSO4 | virtionet.FeatureGuestTSO6 |
		virtionet.FeatureHostTSO4 | virtionet.FeatureHostTSO6
)

var (
	testMAC  = mac{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	guestIP6 = netip.MustParseAddr("fd00:766f:6c65::5054:ff")
)

// TestMain looks for what Close leaves behind.
func TestMain(m *testing.M) {
	if os.Getenv(echoEnv) != "" {
		serveEcho()
	}
	before := descriptors()
	code := m.Run()
	if fuzzing := flag.Lookup("test.fuzz"); code == 0 && fuzzing.Value.String() == "" {
		code = leaks(before)
	}
	os.Exit(code)
}

func descriptors() int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(all)
}

func leaks(before int) int {
	var left string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		buf := make([]byte, 1<<20)
		left = ""
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "usernet") && !strings.Contains(g, "usernet.TestMain") || strings.Contains(g, "gvisor.dev") {
				left += g + "\n\n"
			}
		}
		if left == "" && descriptors() <= before+2 && sockets.Load() == 0 { // the poller's own
			return 0
		}
	}
	println("left behind:", left, "descriptors before and after:", before, descriptors(), "sockets counted:", sockets.Load())
	return 1
}

func newNetwork(t testing.TB, o Options) *Network {
	t.Helper()
	if o.ResolvConf == "" {
		o.ResolvConf = write(t, "resolv.conf", "nameserver 127.0.0.1\nsearch example.test lab.example.test\n")
	}
	if o.HostsFile == "" {
		o.HostsFile = write(t, "hosts", "")
	}
	n, err := New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n
}

func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// driver is a guest that makes its frames by hand.
type driver struct {
	t      testing.TB
	n      *Network
	frames chan []byte // with the virtio header
	work   sync.WaitGroup
}

func startDriver(t testing.TB, n *Network, features uint64) *driver {
	t.Helper()
	require.NoError(t, n.Start(features))
	d := &driver{t: t, n: n, frames: make(chan []byte, 4096)}
	d.work.Go(d.pump)
	t.Cleanup(func() { n.Stop(); d.work.Wait() })
	return d
}

func (d *driver) pump() {
	// Odd sizes: buffers of the guest's are as they come.
	bufs := [][]byte{make([]byte, 7), make([]byte, 100), make([]byte, 70000)}
	for {
		more, err := d.n.Wait(0)
		if !more || err != nil {
			return
		}
		n, err := d.n.Receive(0, bufs)
		if n == 0 || err != nil {
			continue
		}
		f := make([]byte, 0, n)
		for _, b := range bufs {
			f = append(f, b...)
		}
		d.frames <- f[:n]
	}
}

// send takes a frame without its virtio header.
func (d *driver) send(frame []byte) {
	require.NoError(d.t, d.n.Send(0, [][]byte{make([]byte, virtionet.HeaderSize), frame}))
}

// next returns the next frame that pick takes, without its virtio header.
func (d *driver) next(pick func([]byte) bool) []byte {
	d.t.Helper()
	for end := time.After(patience); ; {
		select {
		case f := <-d.frames:
			if f = f[virtionet.HeaderSize:]; pick(f) {
				return f
			}
		case <-end:
			require.FailNow(d.t, "no such frame came")
		}
	}
}

// quiet waits until what was sent is answered, and returns what came meanwhile.
func (d *driver) quiet() [][]byte {
	d.t.Helper()
	d.send(arpRequest(DefaultIPv4.Addr().Next().Next())) // answered in order
	var got [][]byte
	for {
		f := d.next(func([]byte) bool { return true })
		if binary.BigEndian.Uint16(f[12:]) == etherARP {
			return got
		}
		got = append(got, f)
	}
}

func arpRequest(target netip.Addr) []byte {
	f := append(append([]byte{}, broadcastMAC[:]...), testMAC[:]...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(f, testMAC[:]...)
	f = append(f, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0)
	return append(f, target.AsSlice()...)
}

// arpReply says that the guest has an address, as the gateway has asked.
func arpReply(a netip.Addr) []byte {
	f := append(append([]byte{}, gatewayMAC[:]...), testMAC[:]...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
	f = append(append(f, testMAC[:]...), a.AsSlice()...)
	f = append(f, gatewayMAC[:]...)
	return append(f, 10, 0, 2, 2)
}

// guest is a guest with a TCP/IP stack.
type guest struct {
	*driver
	stack *stack.Stack
	link  *guestLink
}

func startGuest(t testing.TB, n *Network, features uint64) *guest {
	t.Helper()
	g := &guest{link: &guestLink{n: n, features: features, mtu: uint32(n.o.MTU)}}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocolWithOptions(ipv6.Options{})},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	sack := tcpip.TCPSACKEnabled(true)
	require.Nil(t, g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	require.Nil(t, g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 4 << 20}))
	require.Nil(t, g.stack.CreateNIC(1, g.link))
	for _, a := range []netip.Addr{n.guest4, guestIP6} {
		require.Nil(t, g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: netProto(a), AddressWithPrefix: stackAddr(a).WithPrefix()}, stack.AddressProperties{}))
	}
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	require.NoError(t, n.Start(features))
	g.driver = &driver{t: t, n: n}
	g.driver.work.Go(func() { g.link.pump() })
	// As a kernel does: of a static IPv4 address it says nothing, and of one of IPv6 only
	// that nobody else should have it.
	if n.v6 {
		g.send(icmp6("::", "ff02::1:ff00:ff", 255, solicit(guestIP6.String())...))
	}
	t.Cleanup(g.shutdown)
	return g
}

func (g *guest) shutdown() {
	g.n.Stop()
	g.work.Wait()
	g.stack.Close()
	g.stack.Wait()
}

func (g *guest) dial(ctx context.Context, to string) (net.Conn, error) {
	a := netip.MustParseAddrPort(to)
	return gonet.DialContextTCP(ctx, g.stack, fullAddr(a), netProto(a.Addr()))
}

func (g *guest) mustDial(to string) net.Conn {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	c, err := g.dial(ctx, to)
	require.NoError(g.t, err)
	require.NoError(g.t, c.SetDeadline(time.Now().Add(3*patience)))
	return c
}

func (g *guest) dialUDP(to string) net.Conn {
	g.t.Helper()
	a := netip.MustParseAddrPort(to)
	full := fullAddr(a)
	c, err := gonet.DialUDP(g.stack, nil, &full, netProto(a.Addr()))
	require.NoError(g.t, err)
	require.NoError(g.t, c.SetDeadline(time.Now().Add(patience)))
	g.t.Cleanup(func() { c.Close() })
	return c
}

func (g *guest) listen(a netip.Addr, port uint16) net.Listener {
	g.t.Helper()
	l, err := gonet.ListenTCP(g.stack, fullAddr(netip.AddrPortFrom(a, port)), netProto(a))
	require.NoError(g.t, err)
	g.t.Cleanup(func() { l.Close() })
	return l
}

// guestLink is the guest's network card.
type guestLink struct {
	link     // for what is the same
	n        *Network
	features uint64
	mtu      uint32
	takes    atomic.Pointer[func(frame []byte) bool] // nil takes everything
}

func (l *guestLink) MTU() uint32                    { return l.mtu }
func (l *guestLink) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(testMAC[:]) }
func (l *guestLink) GSOMaxSize() uint32             { return maxPacket }
func (l *guestLink) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *guestLink) SupportedGSO() stack.SupportedGSO {
	if l.features&virtionet.FeatureHostTSO4 != 0 {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

func (l *guestLink) AddHeader(pkt *stack.PacketBuffer) {
	h := pkt.LinkHeader().Push(etherSize)
	copy(h, gatewayMAC[:])
	copy(h[6:], testMAC[:])
	binary.BigEndian.PutUint16(h[12:], uint16(pkt.NetworkProtocolNumber))
}

func (l *guestLink) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range list.AsSlice() {
		var h [virtionet.HeaderSize]byte
		describe(&h, pkt)
		var room [8][]byte
		bufs := append(room[:0], h[:])
		views, skip := pkt.AsViewList()
		for v := views.Front(); v != nil; v = v.Next() {
			if b := v.AsSlice(); skip < len(b) {
				bufs = append(bufs, b[skip:])
				skip = 0
			} else {
				skip -= len(b)
			}
		}
		_ = l.n.Send(0, bufs)
	}
	return list.Len(), nil
}

func (l *guestLink) pump() {
	var head [virtionet.HeaderSize + etherSize]byte
	data := make([]byte, 70000)
	bufs := [][]byte{head[:], data}
	for {
		more, err := l.n.Wait(0)
		if !more || err != nil {
			return
		}
		n, err := l.n.Receive(0, bufs)
		if to := mac(head[virtionet.HeaderSize:]); n <= len(head) || err != nil || to != testMAC && !to.group() {
			continue
		}
		if takes := l.takes.Load(); takes != nil && !(*takes)(append(head[virtionet.HeaderSize:len(head):len(head)], data[:n-len(head)]...)) {
			continue
		}
		if l.features&virtionet.FeatureGuestTSO4 == 0 && n-len(head) > int(l.mtu) {
			panic("a packet longer than the MTU")
		}
		if binary.BigEndian.Uint16(head[24:]) == etherARP { // of which its stack knows nothing
			if target := data[24:28]; bytes.Equal(target, l.n.guest4.AsSlice()) {
				_ = l.n.Send(0, [][]byte{make([]byte, virtionet.HeaderSize), arpReply(l.n.guest4)})
			}
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(buffer.NewViewWithData(data[:n-len(head)]))})
		l.deliver(tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(head[24:])), pkt)
	}
}
