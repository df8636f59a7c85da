package net

import "errors"

// HeaderSize is the size, in bytes, of the struct virtio_net_hdr_v1 that stands
// before every frame (VIRTIO 1.2, 5.1.6). It has always had 12 bytes since
// VERSION_1.
const HeaderSize = 12

// Feature bits of the type (5.1.3). Those for checksums and segmentation depend
// on the backend, the others are the device's own.
const (
	FeatureCsum          uint64 = 1 << 0  // VIRTIO_NET_F_CSUM: the backend takes partial checksums
	FeatureGuestCsum     uint64 = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM: the backend may hand out partial checksums
	FeatureMTU           uint64 = 1 << 3  // VIRTIO_NET_F_MTU
	FeatureMAC           uint64 = 1 << 5  // VIRTIO_NET_F_MAC
	FeatureGuestTSO4     uint64 = 1 << 7  // VIRTIO_NET_F_GUEST_TSO4
	FeatureGuestTSO6     uint64 = 1 << 8  // VIRTIO_NET_F_GUEST_TSO6
	FeatureGuestECN      uint64 = 1 << 9  // VIRTIO_NET_F_GUEST_ECN
	FeatureGuestUFO      uint64 = 1 << 10 // VIRTIO_NET_F_GUEST_UFO, never offered
	FeatureHostTSO4      uint64 = 1 << 11 // VIRTIO_NET_F_HOST_TSO4
	FeatureHostTSO6      uint64 = 1 << 12 // VIRTIO_NET_F_HOST_TSO6
	FeatureHostECN       uint64 = 1 << 13 // VIRTIO_NET_F_HOST_ECN
	FeatureHostUFO       uint64 = 1 << 14 // VIRTIO_NET_F_HOST_UFO, never offered
	FeatureMrgRxBuf      uint64 = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
	FeatureStatus        uint64 = 1 << 16 // VIRTIO_NET_F_STATUS
	FeatureCtrlVQ        uint64 = 1 << 17 // VIRTIO_NET_F_CTRL_VQ
	FeatureCtrlRx        uint64 = 1 << 18 // VIRTIO_NET_F_CTRL_RX
	FeatureGuestAnnounce uint64 = 1 << 21 // VIRTIO_NET_F_GUEST_ANNOUNCE
	FeatureMQ            uint64 = 1 << 22 // VIRTIO_NET_F_MQ
	FeatureCtrlMACAddr   uint64 = 1 << 23 // VIRTIO_NET_F_CTRL_MAC_ADDR
	FeatureGuestUSO4     uint64 = 1 << 54 // VIRTIO_NET_F_GUEST_USO4
	FeatureGuestUSO6     uint64 = 1 << 55 // VIRTIO_NET_F_GUEST_USO6
	FeatureHostUSO       uint64 = 1 << 56 // VIRTIO_NET_F_HOST_USO
)

// What a backend says of a single frame. Both cost nothing to return.
var (
	// ErrTooLong is Receive's: the frame does not fit and is dropped.
	ErrTooLong = errors.New("net: the frame does not fit into the buffers")
	// ErrFull is Send's: there is no room for the frame and it is dropped.
	ErrFull = errors.New("net: the backend has no room for the frame")
)

// Backend is the host's end of a network device. Frames are handed over with
// their HeaderSize bytes of virtio_net_hdr_v1 in front, in lists of buffers that
// are guest memory: a backend may not keep them after the call, nor allocate for
// each frame.
//
// Each pair is used by one receiving and one sending goroutine at a time;
// different pairs, and both directions, run concurrently.
type Backend interface {
	// Features are the offloads, of the bits above, that it can do; the device
	// offers these and no others.
	Features() uint64
	// MaxPairs is how many pairs of queues it can serve, at least 1.
	MaxPairs() int
	// MTU is the largest IP packet that it carries, in bytes; 0 if it does not
	// say.
	MTU() int
	// Start makes ready for the features that the driver acknowledged. It follows
	// New or Stop.
	Start(features uint64) error
	// SetPairs says how many pairs the driver uses, 1 after Start; the others get
	// no frames.
	SetPairs(n int) error
	// Wait blocks until there may be a frame of pair to receive. False says that
	// Stop was called. An error says that this end is gone for now: the link is
	// down, and the device says so in its status and calls Wait again when the
	// backend says that it is back (see LinkNotifier).
	Wait(pair int) (bool, error)
	// Receive reads the next frame of pair into bufs and returns its length with
	// the header; 0 if there is none now. A frame that does not fit is dropped and
	// counted: 0 with ErrTooLong. The header's num_buffers is the device's
	// business.
	Receive(pair int, bufs [][]byte) (int, error)
	// Send takes a frame. Its header, all of bufs[0], is a copy that the device has
	// checked. Send never blocks for long: a frame that the backend has no room for
	// is dropped, with ErrFull.
	Send(pair int, bufs [][]byte) error
	// Stop makes every Wait return false until the next Start. Nothing is sent or
	// received afterwards.
	Stop()
	// Close frees the backend. The device that it was given to calls it in its own
	// Close.
	Close() error
}

// Sizer is implemented by a backend that knows how long a frame is before it is read: no
// more of the driver's buffers are prepared for it than it needs.
type Sizer interface {
	// NextSize is the length with the header of the frame that the next Receive of
	// pair would give; 0 if there is none now. It is called where Receive is. The
	// frame may still turn out to be another.
	NextSize(pair int) int
}

// LinkNotifier is implemented by a backend whose link can go down and come
// back.
type LinkNotifier interface {
	// NotifyLink has f called when the link goes up or down, from any goroutine,
	// also before Start.
	NotifyLink(f func(up bool))
}

// Named is implemented by a backend that has a name, as a tap has its interface's.
type Named interface {
	// Name tells the backend from every other of this host.
	Name() string
}
