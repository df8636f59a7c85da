package usernet

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	virtionet "github.com/vole-vmm/vole/virtio/net"
)

const (
	etherSize = 14
	// maxPacket is the longest IP packet that passes in one piece, segmented or
	// not: its length has 16 bits.
	maxPacket = 65535
)

type mac [6]byte

func (m mac) group() bool { return m[0]&1 != 0 }

func (m mac) number() uint64 {
	return uint64(binary.BigEndian.Uint16(m[:]))<<32 | uint64(binary.BigEndian.Uint32(m[2:]))
}

var (
	broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	// gatewayMAC is locally administered.
	gatewayMAC = mac{0x02, 0x76, 0x6f, 0x6c, 0x65, 0x02}
)

// link is the stack's end of the cable: its frames go to the queues towards the
// guest.
type link struct {
	s        *session
	features uint64
	mtu      uint32
	up       atomic.Pointer[stack.NetworkDispatcher]
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu }

// SetMTU implements stack.LinkEndpoint: the MTU is the Options'.
func (*link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.LinkEndpoint.
func (*link) MaxHeaderLength() uint16 { return etherSize }

// LinkAddress implements stack.LinkEndpoint.
func (*link) LinkAddress() tcpip.LinkAddress { return tcpip.LinkAddress(gatewayMAC[:]) }

// SetLinkAddress implements stack.LinkEndpoint: the address is fixed.
func (*link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements stack.LinkEndpoint. A driver that negotiated CSUM
// leaves sums half done, and the queue in memory that its frames come by harms
// none. The other way the stack sums up what is not a TCP connection's segment.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	if l.features&virtionet.FeatureCsum != 0 {
		return stack.CapabilityRXChecksumOffload
	}
	return stack.CapabilityNone
}

// GSOMaxSize implements stack.GSOEndpoint.
func (*link) GSOMaxSize() uint32 { return maxPacket }

// SupportedGSO implements stack.GSOEndpoint: the driver must take long segments
// of both families, as the stack knows no difference.
func (l *link) SupportedGSO() stack.SupportedGSO {
	const need = virtionet.FeatureGuestCsum | virtionet.FeatureGuestTSO4 | virtionet.FeatureGuestTSO6
	if l.features&need == need {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// Attach implements stack.LinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.up.Store(nil)
		return
	}
	l.up.Store(&d)
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool { return l.up.Load() != nil }

// Wait implements stack.LinkEndpoint: there is no goroutine.
func (*link) Wait() {}

// ARPHardwareType implements stack.LinkEndpoint.
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// AddHeader implements stack.LinkEndpoint: WritePackets says where the frame goes.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	h := pkt.LinkHeader().Push(etherSize)
	copy(h[6:12], gatewayMAC[:])
	binary.BigEndian.PutUint16(h[12:], uint16(pkt.NetworkProtocolNumber))
}

// ParseHeader implements stack.LinkEndpoint: frames come in without theirs.
func (*link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements stack.LinkEndpoint.
func (*link) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (*link) SetOnCloseAction(func()) {}

// WritePackets implements stack.LinkEndpoint.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range list.AsSlice() {
		if !l.write(pkt) {
			return i, &tcpip.ErrNoBufferSpace{}
		}
	}
	return list.Len(), nil
}

func (l *link) write(pkt *stack.PacketBuffer) bool {
	to := destination(pkt)
	m, ok := l.s.neighbours.find(to)
	switch {
	case ok:
	case l.s.inside(to):
		return l.s.unresolved.hold(to, pkt)
	default:
		m = l.s.neighbours.lastSeen()
	}
	return l.s.emitTo(m, pkt)
}

// deliver gives a packet to the stack and releases it.
func (l *link) deliver(proto tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if d := l.up.Load(); d != nil {
		(*d).DeliverNetworkPacket(proto, pkt)
	}
	pkt.DecRef()
}

// maxNeighbours bounds the addresses of one guest that are known by their
// hardware address; one more takes the place of another, which is asked for again.
const maxNeighbours = 256

// neighbours is who has which address. What a guest claims here directs only
// what is sent to that guest.
type neighbours struct {
	mu   sync.RWMutex
	by   map[netip.Addr]mac
	last atomic.Uint64 // the hardware address that a frame came from last
}

// seen notes where a frame comes from, whatever it says.
func (n *neighbours) seen(m mac) {
	if v := m.number(); n.last.Load() != v {
		n.last.Store(v)
	}
}

// lastSeen is zero before there was a frame.
func (n *neighbours) lastSeen() (m mac) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n.last.Load())
	return mac(b[2:])
}

// learn notes who has an address, and reports whether that was not known.
func (n *neighbours) learn(a netip.Addr, m mac) bool {
	n.mu.RLock()
	known, ok := n.by[a]
	n.mu.RUnlock()
	if ok && known == m {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.by == nil {
		n.by = make(map[netip.Addr]mac)
	}
	if _, ok := n.by[a]; !ok && len(n.by) >= maxNeighbours {
		for old := range n.by {
			delete(n.by, old)
			break
		}
	}
	n.by[a] = m
	return true
}

func (n *neighbours) find(a netip.Addr) (mac, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	m, ok := n.by[a]
	return m, ok
}

// learn notes who has an address, and sends what has waited for that.
func (s *session) learn(a netip.Addr, m mac) {
	if s.neighbours.learn(a, m) {
		s.unresolved.learned(a, m)
	}
}
