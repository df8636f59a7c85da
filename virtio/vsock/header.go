package vsock

import "encoding/binary"

// HostCID is the host's context id (VIRTIO 1.2, 5.10.4).
const HostCID = 2

// FeatureStream is VIRTIO_VSOCK_F_STREAM: stream sockets are supported (5.10.3).
const FeatureStream uint64 = 1 << 0

// Operations of a packet (5.10.6).
const (
	opRequest       uint16 = 1
	opResponse      uint16 = 2
	opRST           uint16 = 3
	opShutdown      uint16 = 4
	opRW            uint16 = 5
	opCreditUpdate  uint16 = 6
	opCreditRequest uint16 = 7
)

// typeStream is VIRTIO_VSOCK_TYPE_STREAM.
const typeStream uint16 = 1

// Flags of opShutdown (5.10.6.5).
const (
	shutReceive uint32 = 1 << 0 // the sender will not receive any more
	shutSend    uint32 = 1 << 1 // the sender will not send any more
	shutBoth           = shutReceive | shutSend
)

// eventTransportReset is VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const eventTransportReset uint32 = 0

// headerSize is the size of virtio_vsock_hdr, in bytes.
const headerSize = 44

// header is a copy of a packet's header.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32 // of the payload, in bytes
	typ, op          uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
}

func decodeHeader(b *[headerSize]byte) header {
	le := binary.LittleEndian
	return header{
		srcCID: le.Uint64(b[0:]), dstCID: le.Uint64(b[8:]),
		srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		len: le.Uint32(b[24:]), typ: le.Uint16(b[28:]), op: le.Uint16(b[30:]),
		flags: le.Uint32(b[32:]), bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:]),
	}
}

func (h *header) encode(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.len)
	le.PutUint16(b[28:], h.typ)
	le.PutUint16(b[30:], h.op)
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}
