package kernel

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

const (
	// lz4LegacyMagic starts a legacy frame; little-endian.
	lz4LegacyMagic = 0x184c2102
	// lz4LegacyBlock is what each block of a legacy frame decompresses to, in
	// bytes, but for the last.
	lz4LegacyBlock = 8 << 20
)

var errLZ4 = errors.New("lz4")

// lz4Reader reads LZ4's legacy frame: the magic, then blocks that stand for
// themselves, each behind its packed size, until the source ends. The library's
// own reader takes them for dependent ones and copies every block once more.
type lz4Reader struct {
	src     *bufio.Reader
	in, out []byte
	pos     int // in out
}

// newLZ4Reader reads the magic. The stream is expected to have size bytes.
func newLZ4Reader(src *bufio.Reader, size int64) (*lz4Reader, error) {
	z := &lz4Reader{src: src}
	magic, err := z.uint32()
	if err != nil {
		return nil, err
	}
	if magic != lz4LegacyMagic {
		return nil, fmt.Errorf("%w: no legacy frame", errLZ4)
	}
	z.out = make([]byte, 0, min(size, lz4LegacyBlock))
	return z, nil
}

func (z *lz4Reader) Read(p []byte) (int, error) {
	for z.pos == len(z.out) {
		if err := z.readBlock(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.out[z.pos:])
	z.pos += n
	return n, nil
}

// WriteTo spares io.Copy a buffer.
func (z *lz4Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		n, err := w.Write(z.out[z.pos:])
		z.pos += n
		total += int64(n)
		if err != nil {
			return total, err
		}
		if err := z.readBlock(); err != nil {
			if err == io.EOF {
				err = nil
			}
			return total, err
		}
	}
}

// readBlock replaces out by the next block. The error is io.EOF between blocks.
func (z *lz4Reader) readBlock() error {
	z.out, z.pos = z.out[:0], 0
	packed, err := z.uint32()
	if err == nil && packed == lz4LegacyMagic { // frames may follow each other
		packed, err = z.uint32()
	}
	if err != nil {
		return err
	}
	if packed == 0 || int64(packed) > int64(lz4.CompressBlockBound(lz4LegacyBlock)) {
		return fmt.Errorf("%w: a block packed into %d bytes", errLZ4, packed)
	}
	if z.in, err = readGrowing(z.src, z.in[:0], int(packed)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	n, err := lz4.UncompressBlock(z.in, z.out[:cap(z.out)])
	if err != nil {
		return err
	}
	z.out = z.out[:n]
	return nil
}

func (z *lz4Reader) uint32() (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(z.src, b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}
