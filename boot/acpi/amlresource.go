package acpi

import (
	"encoding/binary"
	"math"
)

// Resource descriptors (ACPI 6.3, section 6.4). Each function gives the bytes of
// one descriptor; resourceTemplate puts them into a buffer.

const (
	tagIO              = 0x47 // small, 7 bytes
	tagEnd             = 0x79 // small, 1 byte
	tagMemory32Fixed   = 0x86
	tagDWordSpace      = 0x87
	tagWordSpace       = 0x88
	tagExtendedIRQ     = 0x89
	tagQWordSpace      = 0x8a
	ioDecode16         = 1
	memoryReadWrite    = 1
	spaceMemory        = 0
	spaceBusNumber     = 2
	spaceMinMaxFixed   = 1<<2 | 1<<3 // _MIF, _MAF
	spaceConsumer      = 1
	extIRQConsumer     = 1
	extIRQEdge         = 1 << 1
	spaceHeaderLength  = 3 // type, general flags, specific flags
	spaceAddressFields = 5 // granularity, minimum, maximum, translation, length
)

// resourceTemplate is a buffer of descriptors with the end tag, whose checksum
// of 0 means that it need not be checked.
func resourceTemplate(descriptors ...term) term {
	list := join(join(descriptors...), raw(tagEnd, 0))
	if list.err != nil {
		return list
	}
	return buffer(list.b)
}

// ioPorts is n ports from base, decoded in 16 bits.
func ioPorts(base uint16, n uint8) term {
	b := []byte{tagIO, ioDecode16}
	b = binary.LittleEndian.AppendUint16(b, base)
	b = binary.LittleEndian.AppendUint16(b, base)
	return term{b: append(b, 1, n)}
}

// interrupt is an Extended Interrupt descriptor for one GSI: consumed by the
// device, edge-triggered, active high, exclusive.
func interrupt(gsi uint32) term {
	b := []byte{tagExtendedIRQ}
	b = binary.LittleEndian.AppendUint16(b, 2+4)
	b = append(b, extIRQConsumer|extIRQEdge, 1)
	return term{b: binary.LittleEndian.AppendUint32(b, gsi)}
}

// memory is size bytes of device registers from base: Memory32Fixed where that
// can say it, otherwise a QWordMemory that the device consumes.
func memory(base, size uint64) term {
	if base > math.MaxUint32 || size > math.MaxUint32 || base+size > 1<<32 {
		return qwordSpace(spaceMemory, spaceConsumer, memoryReadWrite, base, size)
	}
	b := []byte{tagMemory32Fixed}
	b = binary.LittleEndian.AppendUint16(b, 1+4+4)
	b = append(b, memoryReadWrite)
	b = binary.LittleEndian.AppendUint32(b, uint32(base))
	return term{b: binary.LittleEndian.AppendUint32(b, uint32(size))}
}

// busNumbers is the buses from 0 that a host bridge produces.
func busNumbers(n int) term {
	if n < 1 || n > MaxPCIBuses {
		return badTerm("%d PCI buses", n)
	}
	b := spaceHeader(tagWordSpace, 2, spaceBusNumber, 0, 0)
	for _, v := range [spaceAddressFields]uint16{0, 0, uint16(n - 1), 0, uint16(n)} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return term{b: b}
}

// memoryWindow32 is addresses below 4 GiB that a host bridge hands down.
func memoryWindow32(base, size uint64) term {
	if size == 0 || size > math.MaxUint32 || base > 1<<32-size {
		return badTerm("a 32-bit window of %#x bytes at %#x", size, base)
	}
	b := spaceHeader(tagDWordSpace, 4, spaceMemory, 0, memoryReadWrite)
	for _, v := range [spaceAddressFields]uint64{0, base, base + size - 1, 0, size} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return term{b: b}
}

// memoryWindow64 is addresses that a host bridge hands down. It is not marked
// prefetchable, which would keep other BARs out of it.
func memoryWindow64(base, size uint64) term {
	return qwordSpace(spaceMemory, 0, memoryReadWrite, base, size)
}

func qwordSpace(kind, general, specific byte, base, size uint64) term {
	if size == 0 || base > math.MaxUint64-size {
		return badTerm("a range of %#x bytes at %#x", size, base)
	}
	b := spaceHeader(tagQWordSpace, 8, kind, general, specific)
	for _, v := range [spaceAddressFields]uint64{0, base, base + size - 1, 0, size} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return term{b: b}
}

// spaceHeader is what stands before the five address fields, of width bytes
// each, of an address space descriptor: the tag, the length, and three bytes.
// Minimum and maximum are always fixed.
func spaceHeader(tag byte, width int, kind, general, specific byte) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{tag}, uint16(spaceHeaderLength+spaceAddressFields*width))
	return append(b, kind, general|spaceMinMaxFixed, specific)
}
