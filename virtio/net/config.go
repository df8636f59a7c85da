package net

import (
	"crypto/sha256"
	"fmt"
	stdnet "net"
)

// HardwareAddr is a MAC address: the standard library's type, so that an importer
// needs one name less.
type HardwareAddr = stdnet.HardwareAddr

// Bounds of a packet, in bytes.
const (
	// MinMTU and MaxMTU bound what a device can say of its MTU (5.1.4.1).
	MinMTU = 68
	MaxMTU = 65535

	ethernetSize = 14
	vlanSize     = 4
	defaultMTU   = 1500
	// minFrame and maxFrame bound a frame that the driver sends, without its header:
	// the address and type, and 64 KiB more, as a segmented packet has at most.
	minFrame = ethernetSize
	maxFrame = 65536 + ethernetSize
	// maxReceive is the largest frame that there is to receive, with its header: an
	// IPv6 packet without a jumbo payload (5.1.6.3), in a VLAN.
	maxReceive = HeaderSize + ethernetSize + vlanSize + 40 + 65535
)

// Config is the device's configuration space (struct virtio_net_config, 5.1.4) as
// far as the features on offer have fields in it.
type Config struct {
	MAC      [6]byte
	Status   uint16
	MaxPairs uint16
	MTU      uint16
}

const (
	configMAC    = 0
	configStatus = 6
)

// Bits of Config.Status.
const (
	StatusLinkUp   = 1 // VIRTIO_NET_S_LINK_UP
	StatusAnnounce = 2 // VIRTIO_NET_S_ANNOUNCE
)

// offloads are the features that a backend has a say in.
const offloads = FeatureCsum | FeatureGuestCsum |
	FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureGuestECN | FeatureGuestUSO4 | FeatureGuestUSO6 |
	FeatureHostTSO4 | FeatureHostTSO6 | FeatureHostECN | FeatureHostUSO

// guestSegments are the features with which frames come that are longer than a
// packet may be.
const guestSegments = FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureGuestUSO4 | FeatureGuestUSO6

// settle takes out of a set of features what lacks its prerequisite (5.1.3.1).
// Neither a driver nor a backend is relied on to know them.
func settle(f uint64) uint64 {
	for _, r := range []struct{ what, needs uint64 }{
		{guestSegments, FeatureGuestCsum},
		{FeatureGuestECN, FeatureGuestTSO4 | FeatureGuestTSO6},
		{FeatureHostTSO4 | FeatureHostTSO6 | FeatureHostUSO, FeatureCsum},
		{FeatureHostECN, FeatureHostTSO4 | FeatureHostTSO6},
		{FeatureCtrlRx | FeatureGuestAnnounce | FeatureMQ | FeatureCtrlMACAddr, FeatureCtrlVQ},
	} {
		if f&r.needs == 0 {
			f &^= r.what
		}
	}
	return f
}

// StableMAC returns a MAC address for a device that has none: always the same for
// the same seed, unicast and locally administered.
func StableMAC(seed string) HardwareAddr {
	sum := sha256.Sum256([]byte("vole network device " + seed))
	mac := HardwareAddr(sum[:6:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// checkMAC says why mac can't be a device's address.
func checkMAC(mac HardwareAddr) error {
	switch {
	case len(mac) != 6:
		return fmt.Errorf("the MAC address %q has %d bytes instead of 6", mac, len(mac))
	case mac[0]&1 != 0:
		return fmt.Errorf("the MAC address %s is one of a group of devices: its first byte must be even", mac)
	case address([6]byte(mac)) == 0:
		return fmt.Errorf("the MAC address %s is nobody's", mac)
	}
	return nil
}
