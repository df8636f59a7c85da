package net

import "encoding/binary"

// Fields of struct virtio_net_hdr_v1 (5.1.6).
const (
	headerFlags      = 0
	headerGSOType    = 1
	headerLen        = 2
	headerGSOSize    = 4
	headerCsumStart  = 6
	headerCsumOffset = 8
	headerBuffers    = 10
)

// Values of flags and gso_type.
const (
	flagNeedsCsum = 1
	flagDataValid = 2

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDPL4 = 5
	gsoECN   = 0x80
)

// checkHeader makes h, a copy of what the driver put before a frame of n bytes, one
// that a backend need not doubt: checksum and header lie inside the frame, what is
// not in use is 0. False if the frame is to be dropped: the header makes no sense,
// or wants what was not negotiated.
func checkHeader(h *[HeaderSize]byte, n int, features uint64) bool {
	binary.LittleEndian.PutUint16(h[headerBuffers:], 0)
	// Flags that only the device gives mean nothing here (5.1.6.2.2).
	h[headerFlags] &= flagNeedsCsum
	if h[headerFlags] == 0 {
		if h[headerGSOType] != gsoNone {
			return false
		}
		clear(h[headerLen:headerBuffers])
		return true
	}
	csum := int(binary.LittleEndian.Uint16(h[headerCsumStart:]))
	end := csum + int(binary.LittleEndian.Uint16(h[headerCsumOffset:])) + 2
	if features&FeatureCsum == 0 || csum < ethernetSize || end > n {
		return false
	}
	kind, ecn := h[headerGSOType]&^gsoECN, h[headerGSOType]&gsoECN != 0
	var want uint64
	switch kind {
	case gsoNone:
		clear(h[headerLen:headerCsumStart])
		return !ecn
	case gsoTCPv4:
		want = FeatureHostTSO4
	case gsoTCPv6:
		want = FeatureHostTSO6
	case gsoUDPL4:
		want = FeatureHostUSO
	default:
		return false
	}
	switch {
	case features&want == 0:
		return false
	case ecn && (features&FeatureHostECN == 0 || kind == gsoUDPL4):
		return false
	case binary.LittleEndian.Uint16(h[headerGSOSize:]) == 0:
		return false
	}
	// hdr_len is a hint that drivers are known to get wrong.
	l := int(binary.LittleEndian.Uint16(h[headerLen:]))
	binary.LittleEndian.PutUint16(h[headerLen:], uint16(min(max(l, end), n, 1<<16-1)))
	return true
}

// prefixSize is how much of a received frame the device looks at: the header and
// the destination's address.
const prefixSize = HeaderSize + 6

// prefix returns a copy of the first bytes of a frame that lies in bufs.
func prefix(bufs [][]byte) (p [prefixSize]byte) {
	peek(bufs, p[:])
	return p
}

// peek copies the first bytes of bufs to p, as many as fit.
func peek(bufs [][]byte, p []byte) {
	for _, b := range bufs {
		if len(p) == 0 {
			return
		}
		p = p[copy(p, b):]
	}
}

// poke copies p into bufs, from byte off on.
func poke(bufs [][]byte, off int, p []byte) {
	for _, b := range bufs {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		k := copy(b[off:], p)
		if p = p[k:]; len(p) == 0 {
			return
		}
		off = 0
	}
}

// address is a MAC address as a number, the first byte being the highest of six.
func address(b [6]byte) uint64 {
	return uint64(binary.BigEndian.Uint32(b[:]))<<16 | uint64(binary.BigEndian.Uint16(b[4:]))
}
