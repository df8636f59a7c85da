package block

import (
	"encoding/binary"
	"errors"
	"io"
	"math"

	"github.com/lima-vm/go-qcow2reader/image/qcow2"
)

// Bounds of what is read into memory for a qcow2 image.
const (
	qcow2V2Header     = 72
	qcow2V3Header     = 104
	qcow2MinCluster   = 9  // bits
	qcow2MaxCluster   = 21 // bits, as in QEMU
	qcow2MaxL1Entries = 32 << 20 / 8
)

// Incompatible feature bits of a version 3 header.
const (
	qcow2Dirty = 1 << iota
	qcow2Corrupt
	qcow2ExternalData
	qcow2Compression
	qcow2ExtendedL2
	qcow2Unknown
)

// qcow2Header is the part of the header that decides whether an image can be
// read. The layout is QEMU's docs/interop/qcow2.
type qcow2Header struct {
	version     uint32
	backing     uint64
	clusterBits uint32
	size        uint64
	crypt       uint32
	l1Size      uint32
	l1Offset    uint64
	features    uint64
	length      uint32
	compression byte
}

// Qcow2 is a qcow2 image, read-only. It reads what the image itself holds and
// opens no other file. All methods may be called from any goroutine.
type Qcow2 struct {
	file    *File
	img     *qcow2.Qcow2
	size    int64
	cluster int64
}

// openQcow2 takes f over if it returns no error.
func openQcow2(f *File) (*Qcow2, error) {
	q, err := newQcow2(f, f.Size(), f.path)
	if err != nil {
		return nil, err
	}
	q.file = f
	return q, nil
}

// newQcow2 checks the header of an image of length bytes before the library
// sees it: that would follow a backing file, allocate what a header asks for,
// and log.
func newQcow2(r io.ReaderAt, length int64, path string) (*Qcow2, error) {
	h, err := readQcow2Header(r, length, path)
	if err != nil {
		return nil, err
	}
	if err := h.check(length, path); err != nil {
		return nil, err
	}
	img, err := qcow2.Open(h.behind(r, length), nil)
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		return nil, refuse(path, err, "can't be read as qcow2: %v", err)
	}
	return &Qcow2{img: img, size: int64(h.size), cluster: 1 << h.clusterBits}, nil
}

func readQcow2Header(r io.ReaderAt, length int64, path string) (*qcow2Header, error) {
	var raw [qcow2V3Header + 8]byte
	p := raw[:min(length, int64(len(raw)))]
	if n, err := r.ReadAt(p, 0); n < len(p) {
		return nil, refuse(path, err, "can't be read: %v", noShort(err, io.ErrUnexpectedEOF))
	}
	if len(p) < qcow2V2Header || string(p[:4]) != qcow2Magic {
		return nil, refuse(path, nil, "is not a qcow2 image: it does not begin like one")
	}
	be := binary.BigEndian
	h := &qcow2Header{
		version:     be.Uint32(p[4:]),
		backing:     be.Uint64(p[8:]),
		clusterBits: be.Uint32(p[20:]),
		size:        be.Uint64(p[24:]),
		crypt:       be.Uint32(p[32:]),
		l1Size:      be.Uint32(p[36:]),
		l1Offset:    be.Uint64(p[40:]),
		length:      qcow2V2Header,
	}
	switch {
	case h.version == 2:
		return h, nil
	case h.version != 3:
		return nil, refuse(path, nil, "is qcow2 version %d; versions 2 and 3 can be read", h.version)
	case len(p) < qcow2V3Header:
		return nil, refuse(path, nil, "is a qcow2 image that ends inside its header")
	}
	h.features = be.Uint64(raw[72:])
	h.length = be.Uint32(raw[100:])
	if h.length > qcow2V3Header {
		h.compression = raw[qcow2V3Header]
	}
	return h, nil
}

func (h *qcow2Header) check(length int64, path string) error {
	const not = "is a qcow2 image "
	switch {
	case h.crypt != 0:
		return refuse(path, nil, not+"that is encrypted, which can't be read")
	case h.backing != 0:
		return refuse(path, nil, not+"over a backing file, which is never opened: make one image of both with qemu-img convert")
	case h.features&qcow2ExternalData != 0:
		return refuse(path, nil, not+"with an external data file, which is never opened: make one image of both with qemu-img convert")
	case h.features&qcow2Corrupt != 0:
		return refuse(path, nil, not+"that is marked corrupt: repair it with qemu-img check -r all")
	case h.features&qcow2ExtendedL2 != 0:
		return refuse(path, nil, not+"with extended L2 entries, which can't be read")
	case h.features >= qcow2Unknown:
		return refuse(path, nil, not+"with features %#x, which are not known", h.features)
	case h.compression != 0:
		return refuse(path, nil, not+"with compression type %d; only deflate (0) can be read", h.compression)
	case h.version == 3 && h.length < qcow2V3Header:
		return refuse(path, nil, not+"with a header of %d bytes; version 3 has 104 or more", h.length)
	case h.clusterBits < qcow2MinCluster || h.clusterBits > qcow2MaxCluster:
		return refuse(path, nil, not+"with clusters of 2^%d bytes; 2^9 to 2^21 are possible", h.clusterBits)
	case h.size == 0 || h.size > math.MaxInt64/2 || h.size%SectorSize != 0:
		return refuse(path, nil, not+"of a disk of %d bytes, which is empty, too much, or not a multiple of 512", h.size)
	}
	cluster := uint64(1) << h.clusterBits
	need := h.l1Needed()
	switch {
	case need > qcow2MaxL1Entries:
		return refuse(path, nil, not+"of a disk of %d bytes, which needs %d L1 entries of at most %d", h.size, need, qcow2MaxL1Entries)
	case uint64(h.l1Size) < need:
		return refuse(path, nil, not+"with %d L1 entries for a disk of %d bytes, which needs %d", h.l1Size, h.size, need)
	case h.l1Offset < qcow2V2Header || h.l1Offset%cluster != 0 || h.l1Offset > uint64(length) ||
		need*8 > uint64(length)-h.l1Offset:
		return refuse(path, nil, not+"whose L1 table is not in the file: it is cut off, or no image")
	}
	return nil
}

// l1Needed is how many L1 entries the disk has. Each stands for the clusters
// of one cluster of L2 entries.
func (h *qcow2Header) l1Needed() uint64 {
	cluster := uint64(1) << h.clusterBits
	return (h.size-1)/(cluster*(cluster/8)) + 1
}

// behind returns r, of length bytes, with a header as the library needs it:
// without extensions and without the bits that it warns of.
func (h *qcow2Header) behind(r io.ReaderAt, length int64) io.ReaderAt {
	head := make([]byte, qcow2V2Header+8)
	be := binary.BigEndian
	copy(head, qcow2Magic)
	// A version 2 header says all that is left to say.
	be.PutUint32(head[4:], 2)
	be.PutUint32(head[20:], h.clusterBits)
	be.PutUint64(head[24:], h.size)
	be.PutUint32(head[36:], uint32(h.l1Needed()))
	be.PutUint64(head[40:], h.l1Offset)
	return &headed{r, length, head}
}

// headed is a file whose first bytes are others. An [Image] takes no read
// across its end; the library makes such reads.
type headed struct {
	r      io.ReaderAt
	length int64
	head   []byte
}

func (h *headed) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > h.length {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > h.length-off {
		p, end = p[:h.length-off], io.EOF
	}
	n := 0
	if off < int64(len(h.head)) {
		n = copy(p, h.head[off:])
	}
	if n < len(p) {
		m, err := h.r.ReadAt(p[n:], off+int64(n))
		if n += m; n < len(p) {
			return n, noShort(err, io.ErrUnexpectedEOF)
		}
	}
	return n, end
}

// Size implements [Image].
func (q *Qcow2) Size() int64 { return q.size }

// BlockSize implements [Geometry].
func (q *Qcow2) BlockSize() (logical, physical int) { return SectorSize, 4096 }

// Locked implements [Locking].
func (q *Qcow2) Locked() bool { return q.file == nil || q.file.Locked() }

// ReadAt implements [io.ReaderAt]. It allocates for compressed clusters and
// for tables that are not among the last 16 used.
func (q *Qcow2) ReadAt(p []byte, off int64) (int, error) {
	if err := checkRange(off, int64(len(p)), q.size); err != nil {
		return 0, q.fail(int64(len(p)), off, err)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		piece := min(int64(len(p)-done), q.cluster-at%q.cluster)
		n, err := q.img.ReadAt(p[done:done+int(piece)], at)
		// The library returns what a decompressor gives at once, and io.EOF at
		// the end of a cluster's stream: only nothing at all is too little.
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			return done + n, q.fail(int64(len(p)), off, noShort(err, io.ErrUnexpectedEOF))
		}
		done += n
	}
	return done, nil
}

func (q *Qcow2) fail(n, off int64, err error) error {
	if q.file == nil {
		return err
	}
	return q.file.failAt("qcow2 read", n, off, err)
}

// Close implements [io.Closer].
func (q *Qcow2) Close() error { return q.file.Close() }
