package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	ethernetSize = 14
	vnetSize     = 10 // of struct virtio_net_hdr, which a socket with PACKET_VNET_HDR puts before each frame
	longestFrame = 65535
)

// junk sends count frames that nobody has asked for: runt and oversize ones, random
// bytes with and without the beginning of a packet, with random offloads. It returns
// how many the kernel did not take. The frames are the same in each run.
func junk(address string, count int) (refused int, err error) {
	name, mac, _ := strings.Cut(address, "/")
	neighbour, err := net.ParseMAC(mac)
	if err != nil || len(neighbour) != 6 {
		return 0, fmt.Errorf("%q is not INTERFACE/MAC: %w", address, err)
	}
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	own, err := ownAddress(ifi)
	if err != nil {
		return 0, err
	}
	// Protocol 0: it receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return 0, fmt.Errorf("PACKET_VNET_HDR: %w", err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	noise := rand.NewChaCha8([32]byte{1})
	frame := make([]byte, vnetSize+longestFrame)
	for range count {
		b := frame[:vnetSize+junkLength(r, ifi.MTU)]
		_, _ = noise.Read(b)
		junkOffload(r, b[:vnetSize], len(b)-vnetSize, ifi.MTU)
		if len(b) >= vnetSize+ethernetSize {
			junkPacket(r, b[vnetSize:], neighbour, own)
		}
		err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.ENOBUFS):
			refused++
		case errors.Is(err, unix.EINTR):
		default:
			return refused, fmt.Errorf("send a frame of %d bytes: %w", len(b)-vnetSize, err)
		}
	}
	return refused, nil
}

// ownAddress is the IPv4 address of an interface.
func ownAddress(ifi *net.Interface) (net.IP, error) {
	list, err := ifi.Addrs()
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			return n.IP.To4(), nil
		}
	}
	return nil, fmt.Errorf("%s has no IPv4 address", ifi.Name)
}

// junkLength is one of a frame, in bytes: runt, small, ordinary or oversize.
func junkLength(r *rand.Rand, mtu int) int {
	switch r.IntN(8) {
	case 0:
		return r.IntN(2 * ethernetSize)
	case 1, 2, 3:
		return ethernetSize + r.IntN(50)
	case 4:
		return min(ethernetSize+mtu-r.IntN(2), longestFrame)
	case 5:
		return ethernetSize + 1500 + r.IntN(longestFrame-ethernetSize-1500)
	}
	return ethernetSize + r.IntN(1500)
}

// junkOffload fills in a virtio_net_hdr: mostly none, or one that the kernel may
// believe. Without segmentation it takes no oversize frame.
func junkOffload(r *rand.Rand, h []byte, frame, mtu int) {
	clear(h)
	oversize := frame > ethernetSize+mtu
	if !oversize && r.IntN(3) > 0 {
		return
	}
	h[0] = byte(r.IntN(2)) // VIRTIO_NET_HDR_F_NEEDS_CSUM
	h[1] = []byte{1, 3, 4, 5, 0x81, 0x84, 0}[r.IntN(7)]
	binary.LittleEndian.PutUint16(h[2:], uint16(r.IntN(100)))
	binary.LittleEndian.PutUint16(h[4:], uint16(1+r.IntN(2000)))
	binary.LittleEndian.PutUint16(h[6:], uint16(r.IntN(frame+1)))
	binary.LittleEndian.PutUint16(h[8:], uint16(r.IntN(40)))
}

// junkPacket makes a frame of random bytes one that is looked into, mostly.
func junkPacket(r *rand.Rand, b []byte, neighbour net.HardwareAddr, own net.IP) {
	if r.IntN(8) == 0 {
		return
	}
	copy(b, neighbour)
	if r.IntN(4) == 0 {
		copy(b, "\xff\xff\xff\xff\xff\xff")
	}
	kind := []uint16{unix.ETH_P_IP, unix.ETH_P_IP, unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP, unix.ETH_P_8021Q, 100}[r.IntN(7)]
	binary.BigEndian.PutUint16(b[12:], kind)
	p := b[ethernetSize:]
	switch {
	case kind == unix.ETH_P_IPV6 && len(p) >= 40:
		p[0] = 0x60
		p[6] = []byte{0, 6, 17, 43, 44, 58}[r.IntN(6)]
		if r.IntN(2) == 0 {
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		}
	case kind == unix.ETH_P_IP && len(p) >= 20:
		p[0] = 0x45
		p[9] = []byte{1, 6, 17}[r.IntN(3)]
		if r.IntN(2) == 0 {
			p[0] += byte(r.IntN(11))
		}
		if r.IntN(4) > 0 {
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			p[6], p[7] = 0, 0 // no fragment
		}
		if r.IntN(4) > 0 {
			copy(p[12:], own)
		}
		if r.IntN(2) == 0 {
			copy(p[16:], own[:3])
			p[19] = byte(r.IntN(5))
		}
		ipChecksum(p[:20])
	}
}

// ipChecksum makes an IPv4 header's right.
func ipChecksum(h []byte) {
	h[10], h[11] = 0, 0
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
}
