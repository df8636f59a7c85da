package virtio

import "fmt"

// Type is a device type (VIRTIO 1.2, section 5).
type Type uint16

// Device types.
const (
	TypeNet     Type = 1
	TypeBlock   Type = 2
	TypeConsole Type = 3
	TypeEntropy Type = 4
	TypeBalloon Type = 5
	TypeVsock   Type = 19
	TypeFS      Type = 26
)

var typeNames = map[Type]string{
	TypeNet: "net", TypeBlock: "block", TypeConsole: "console", TypeEntropy: "rng",
	TypeBalloon: "balloon", TypeVsock: "vsock", TypeFS: "fs",
}

func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return fmt.Sprintf("type %d", uint16(t))
}

// Bits of the device status field (section 2.1).
const (
	StatusAcknowledge uint8 = 1
	StatusDriver      uint8 = 2
	StatusDriverOK    uint8 = 4
	StatusFeaturesOK  uint8 = 8
	StatusNeedsReset  uint8 = 64
	StatusFailed      uint8 = 128
)

// Feature bits that do not depend on the type (section 6).
const (
	FeatureIndirectDesc uint64 = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx     uint64 = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1     uint64 = 1 << 32 // VIRTIO_F_VERSION_1
)

// ringFeatures are offered for every device.
const ringFeatures = FeatureIndirectDesc | FeatureEventIdx | FeatureVersion1

// MaxQueueSize is the largest queue there can be (section 2.6).
const MaxQueueSize = 1 << 15
