package usernet

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	virtionet "github.com/vole-vmm/vole/virtio/net"
)

// tcpSegment is a segment of the guest's in its frame.
func tcpSegment(dst string, flags header.TCPFlags, payload string) []byte {
	src, to := netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr(dst)
	h := make(header.TCP, header.TCPMinimumSize+len(payload))
	h.Encode(&header.TCPFields{SrcPort: 1000, DstPort: 80, SeqNum: 1, AckNum: 1, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 1000})
	copy(h[header.TCPMinimumSize:], payload)
	f := appendEther(nil, gatewayMAC, etherIPv4)
	copy(f[6:], testMAC[:])
	return append(appendIPv4(f, src, to, protoTCP, len(h)), h...)
}

// seeds are frames, each after its length, as a guest may send them.
func seeds() [][]byte {
	frames := [][]byte{
		arpRequest(netip.MustParseAddr(gateway4)),
		dhcpQuery(dhcpDiscover, netip.IPv4Unspecified(), optParameters, 1, optMTU),
		icmp6("::", "ff02::2", 255, routerSolicit()...),
		icmp6("fe80::99", "ff02::1:ff00:2", 255, solicit(gateway6)...),
		echoRequest(netip.MustParseAddr(gateway4), 1, []byte("x")),
		echoRequest(netip.MustParseAddr("192.0.2.1"), 1, []byte("x")),
		echoRequest(netip.MustParseAddr("2001:db8::1"), 1, []byte("x")),
		tcpSegment("192.0.2.1", header.TCPFlagSyn, ""),
		tcpSegment(gateway4, header.TCPFlagSyn, ""),
		tcpSegment(gateway4, header.TCPFlagAck, ""),
		tcpSegment(gateway4, header.TCPFlagAck|header.TCPFlagPsh, "hello"),
		tcpSegment(gateway4, header.TCPFlagRst, ""),
		tcpSegment(gateway4, header.TCPFlagFin|header.TCPFlagAck, ""),
	}
	udp := appendUDP4(nil, gatewayMAC, netip.MustParseAddrPort("10.0.2.15:5"), netip.MustParseAddrPort("10.0.2.3:53"), query(1, "gateway.vole.internal", dnsTypeA))
	copy(udp[6:], testMAC[:])
	fragment := append([]byte{}, udp...)
	fragment[etherSize+6] = 0x20
	frames = append(frames, udp, fragment)
	var all [][]byte
	var together []byte
	for _, f := range frames {
		one := append(binary.BigEndian.AppendUint16(nil, uint16(len(f))), f...)
		all = append(all, one)
		together = append(together, one...)
	}
	return append(all, together)
}

// play sends the frames of one input, mended or not, and takes what comes back.
func play(t *testing.T, n *Network, input []byte, mend bool, bufs [][]byte) {
	var h [virtionet.HeaderSize]byte
	for len(input) >= 2 {
		size := min(int(binary.BigEndian.Uint16(input)), len(input)-2)
		f := append([]byte{}, input[2:2+size]...)
		input = input[2+size:]
		if mend && len(f) >= etherSize { // past the first checks, into the stack
			copy(f, gatewayMAC[:])
			copy(f[6:], testMAC[:])
			if p := f[etherSize:]; binary.BigEndian.Uint16(f[12:]) == etherIPv4 && len(p) >= ip4Size {
				copy(p[12:], []byte{10, 0, 2, 15})
				binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
				p[10], p[11] = 0, 0
			}
		}
		_ = n.Send(0, [][]byte{h[:], f})
	}
	for range 64 {
		k, err := n.Receive(0, bufs)
		require.NoError(t, err)
		if k == 0 {
			return
		}
		assert.LessOrEqual(t, k, virtionet.HeaderSize+etherSize+DefaultMTU)
	}
}

// FuzzFrames plays whatever a guest may send into a network whose policy lets
// nothing out.
func FuzzFrames(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, true)
		f.Add(s, false)
	}
	n := newNetwork(f, Options{Policy: DenyOutside})
	l, err := n.Listen("tcp", "gateway:80")
	require.NoError(f, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	require.NoError(f, n.Start(allOffloads))
	f.Cleanup(func() { n.Stop(); l.Close(); <-done })
	bufs := [][]byte{make([]byte, 70000)}
	f.Fuzz(func(t *testing.T, input []byte, mend bool) {
		play(t, n, input, mend, bufs)
		require.False(t, n.current.Load().broken.Load())
	})
}

// A panic of the stack takes the link down, not the process, and the next Start
// brings it up.
func TestPanicOfTheStackEndsTheLink(t *testing.T) {
	n := newNetwork(t, Options{})
	link := make(chan bool, 2)
	n.NotifyLink(func(up bool) { link <- up })
	require.NoError(t, n.Start(0))
	waited := make(chan error)
	go func() {
		_, err := n.Wait(0)
		waited <- err
	}()
	s := n.current.Load()
	s.link.Attach(panics{})
	f := tcpSegment("192.0.2.1", header.TCPFlagSyn, "")
	require.NoError(t, n.Send(0, [][]byte{make([]byte, virtionet.HeaderSize), f}))
	assert.False(t, <-link)
	assert.Error(t, <-waited)
	require.NoError(t, n.Send(0, [][]byte{make([]byte, virtionet.HeaderSize), f}))
	n.Stop()
	require.NoError(t, n.Start(0))
	assert.True(t, <-link)
	n.Stop()
}

// panics is a dispatcher that does nothing else.
type panics struct{ stack.NetworkDispatcher }

func (panics) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {
	panic("a test's panic")
}
