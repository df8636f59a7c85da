package kernel

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/adler32"
	"hash/crc32"
	"io"

	"github.com/anchore/go-lzo"
)

// lzopMagic starts every file of the lzop program.
const lzopMagic = "\x89LZO\x00\r\n\x1a\n"

// Flags of an lzop header. D and C are checksums of the decompressed and of
// the compressed data of each block.
const (
	lzopAdler32D = 0x00000001
	lzopAdler32C = 0x00000002
	lzopExtra    = 0x00000040
	lzopCRC32D   = 0x00000100
	lzopCRC32C   = 0x00000200
	lzopMulti    = 0x00000400
	lzopFilter   = 0x00000800
	lzopHCRC32   = 0x00001000
)

const (
	// lzopWithExtract is the lzop version from which headers say which version
	// can extract them, and have a level and a 64-bit time.
	lzopWithExtract = 0x0940
	// lzopMaxBlock bounds a block, compressed or not, in bytes: lzop makes
	// blocks of 256 KiB and reads none above 64 MiB.
	lzopMaxBlock = 64 << 20
)

var errLZOP = errors.New("lzop")

// lzopReader reads an lzop file: a header, then blocks of LZO1X data, each with
// its sizes and checksums, until one of size zero.
type lzopReader struct {
	src      *bufio.Reader
	maxBlock int64
	flags    uint32
	in, out  []byte
	pos      int // in out
	finished bool
}

// newLZOPReader reads the header. A block may decompress to at most size bytes.
func newLZOPReader(src *bufio.Reader, size int64) (*lzopReader, error) {
	z := &lzopReader{src: src, maxBlock: min(size, lzopMaxBlock)}
	return z, z.readHeader()
}

func (z *lzopReader) readHeader() error {
	magic := make([]byte, len(lzopMagic))
	if _, err := io.ReadFull(z.src, magic); err != nil {
		return err
	}
	if string(magic) != lzopMagic {
		return fmt.Errorf("%w: no magic", errLZOP)
	}
	h := headerFields{src: z.src}
	version := h.uint16()
	h.uint16() // version of the LZO library
	if version >= lzopWithExtract {
		h.uint16() // version needed to extract
	}
	method := h.uint8()
	if version >= lzopWithExtract {
		h.uint8() // level
	}
	z.flags = h.uint32()
	if z.flags&lzopFilter != 0 {
		h.uint32()
	}
	h.uint32() // mode
	h.uint32() // time
	if version >= lzopWithExtract {
		h.uint32()
	}
	h.skip(int(h.uint8())) // name
	if err := h.checksum(z.flags&lzopHCRC32 != 0); err != nil {
		return err
	}
	if method < 1 || method > 3 {
		return fmt.Errorf("%w: compression method %d, want LZO1X", errLZOP, method)
	}
	if z.flags&(lzopMulti|lzopFilter|lzopExtra) != 0 {
		return fmt.Errorf("%w: a multipart, filtered or extended file (flags %#x)", errLZOP, z.flags)
	}
	return nil
}

func (z *lzopReader) Read(p []byte) (int, error) {
	for z.pos == len(z.out) {
		if z.finished {
			return 0, io.EOF
		}
		if err := z.readBlock(); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
	n := copy(p, z.out[z.pos:])
	z.pos += n
	return n, nil
}

func (z *lzopReader) readBlock() error {
	z.out, z.pos = z.out[:0], 0
	size, err := z.uint32()
	if err != nil {
		return err
	}
	if size == 0 {
		z.finished = true
		return nil
	}
	packed, err := z.uint32()
	if err != nil {
		return err
	}
	if int64(size) > z.maxBlock || packed == 0 || packed > size {
		return fmt.Errorf("%w: a block of %d bytes packed into %d", errLZOP, size, packed)
	}
	sumsOut, err := z.checksums(lzopAdler32D, lzopCRC32D)
	if err != nil {
		return err
	}
	var sumsIn []blockSum
	if packed < size { // otherwise the data is stored, and these sums are not
		if sumsIn, err = z.checksums(lzopAdler32C, lzopCRC32C); err != nil {
			return err
		}
	}
	if z.in, err = readGrowing(z.src, z.in[:0], int(packed)); err != nil {
		return err
	}
	if err := verify(sumsIn, z.in); err != nil {
		return err
	}
	if packed == size {
		z.out = append(z.out, z.in...)
		return verify(sumsOut, z.out)
	}
	if cap(z.out) < int(size) {
		z.out = make([]byte, size)
	}
	z.out = z.out[:size]
	n, err := lzo.Decompress(z.in, z.out)
	if err != nil {
		z.out = z.out[:0]
		return err
	}
	if n != len(z.out) {
		z.out = z.out[:0]
		return fmt.Errorf("%w: a block of %d bytes decompresses to %d", errLZOP, size, n)
	}
	return verify(sumsOut, z.out)
}

func (z *lzopReader) uint32() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(z.src, b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

// blockSum is one stored checksum and how it is made.
type blockSum struct {
	make func() hash.Hash32
	want uint32
}

// checksums reads the checksums that the flags say are here: Adler-32 first.
func (z *lzopReader) checksums(adler, crc uint32) ([]blockSum, error) {
	var sums []blockSum
	for _, kind := range []struct {
		flag uint32
		make func() hash.Hash32
	}{{adler, adler32.New}, {crc, crc32.NewIEEE}} {
		if z.flags&kind.flag == 0 {
			continue
		}
		want, err := z.uint32()
		if err != nil {
			return nil, err
		}
		sums = append(sums, blockSum{kind.make, want})
	}
	return sums, nil
}

func verify(sums []blockSum, data []byte) error {
	for _, s := range sums {
		h := s.make()
		h.Write(data)
		if got := h.Sum32(); got != s.want {
			return fmt.Errorf("%w: a block's checksum is %#08x, the file says %#08x", errLZOP, got, s.want)
		}
	}
	return nil
}

// readGrowing appends n bytes of r to b, allocating no more than twice what
// has really come: n is not to be believed.
func readGrowing(r io.Reader, b []byte, n int) ([]byte, error) {
	const step = 1 << 20
	for n > 0 {
		k := min(n, step)
		at := len(b)
		if cap(b)-at < k {
			b = append(make([]byte, 0, 2*at+k), b...)
		}
		b = b[:at+k]
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return b[:at], err
		}
		n -= k
	}
	return b, nil
}

// headerFields reads big-endian numbers and keeps them for the header's
// checksum. Its first error stays and makes later numbers zero.
type headerFields struct {
	src *bufio.Reader
	raw []byte
	err error
}

func (h *headerFields) skip(n int) []byte {
	b := make([]byte, max(n, 4))
	if h.err == nil {
		_, h.err = io.ReadFull(h.src, b[:n])
	}
	if h.err != nil {
		clear(b)
	}
	h.raw = append(h.raw, b[:n]...)
	return b
}

func (h *headerFields) uint8() uint8   { return h.skip(1)[0] }
func (h *headerFields) uint16() uint16 { return binary.BigEndian.Uint16(h.skip(2)) }
func (h *headerFields) uint32() uint32 { return binary.BigEndian.Uint32(h.skip(4)) }

// checksum reads the header's checksum and compares.
func (h *headerFields) checksum(crc bool) error {
	got := adler32.Checksum(h.raw)
	if crc {
		got = crc32.ChecksumIEEE(h.raw)
	}
	want := h.uint32()
	if h.err != nil {
		return h.err
	}
	if got != want {
		return fmt.Errorf("%w: the header's checksum is %#08x, the file says %#08x", errLZOP, got, want)
	}
	return nil
}
