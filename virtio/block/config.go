package block

import "math/bits"

// Feature bits (VIRTIO 1.2, 5.2.3).
const (
	FeatureSizeMax     uint64 = 1 << 1
	FeatureSegMax      uint64 = 1 << 2
	FeatureReadOnly    uint64 = 1 << 5
	FeatureBlockSize   uint64 = 1 << 6
	FeatureFlush       uint64 = 1 << 9
	FeatureTopology    uint64 = 1 << 10
	FeatureMultiQueue  uint64 = 1 << 12
	FeatureDiscard     uint64 = 1 << 13
	FeatureWriteZeroes uint64 = 1 << 14
)

// Config is the device's configuration space (struct virtio_blk_config, 5.2.4).
type Config struct {
	Capacity               uint64 // in sectors
	SizeMax                uint32 // bytes of a segment
	SegMax                 uint32
	Cylinders              uint16
	Heads, Sectors         uint8
	BlockSize              uint32
	PhysicalBlockExp       uint8 // log2 of logical blocks in a physical one
	AlignmentOffset        uint8
	MinIOSize              uint16 // in logical blocks
	OptIOSize              uint32
	Writeback              uint8
	_                      uint8
	NumQueues              uint16
	MaxDiscardSectors      uint32
	MaxDiscardSeg          uint32
	DiscardSectorAlignment uint32
	MaxWriteZeroesSectors  uint32
	MaxWriteZeroesSeg      uint32
	WriteZeroesMayUnmap    uint8
	_                      [3]uint8
}

// Bounds of one request.
const (
	// maxSegment bounds a buffer, in bytes; only a driver that took SIZE_MAX
	// holds to it. A request of more bytes than SEG_MAX such buffers have is
	// refused, however it is made up.
	maxSegment = 1 << 20
	// maxRanges is how many ranges one DISCARD has.
	maxRanges = 32
	// maxRangeSectors bounds one of them: 2 GiB.
	maxRangeSectors = 2 << 30 / SectorSize
	// maxZeroSectors bounds the one range of a WRITE_ZEROES: 128 MiB, as an image
	// may have to write the zeroes.
	maxZeroSectors = 128 << 20 / SectorSize
	// zeroPiece is how many bytes are zeroed between two looks at whether the
	// device was reset.
	zeroPiece = 4 << 20
)

// describe makes the configuration space and the features of a disk.
func describe(img Image, queues int, queueSize uint16) (c Config, features uint64) {
	logical, physical := SectorSize, SectorSize
	if g, ok := img.(Geometry); ok {
		logical, physical = g.BlockSize()
		physical = max(physical, logical)
	}
	c = Config{
		Capacity: uint64(img.Size()) / SectorSize,
		SizeMax:  maxSegment,
		// A request has a descriptor for its header and one for its status.
		SegMax:           max(uint32(queueSize), 3) - 2,
		BlockSize:        uint32(logical),
		PhysicalBlockExp: uint8(bits.TrailingZeros(uint(physical / logical))),
		MinIOSize:        uint16(min(physical/logical, 1<<15)),
		NumQueues:        uint16(queues),
	}
	features = FeatureSizeMax | FeatureSegMax | FeatureBlockSize | FeatureTopology
	if queues > 1 {
		features |= FeatureMultiQueue
	}
	if !CanWrite(img) {
		return c, features | FeatureReadOnly
	}
	if _, ok := img.(Flusher); ok {
		features |= FeatureFlush
		c.Writeback = 1
	}
	if _, ok := img.(Discarder); ok {
		features |= FeatureDiscard
		c.MaxDiscardSectors, c.MaxDiscardSeg = maxRangeSectors, maxRanges
		c.DiscardSectorAlignment = uint32(physical / SectorSize)
	}
	if _, ok := img.(ZeroWriter); ok {
		features |= FeatureWriteZeroes
		c.MaxWriteZeroesSectors, c.MaxWriteZeroesSeg = maxZeroSectors, 1
		c.WriteZeroesMayUnmap = 1
	}
	return c, features
}
