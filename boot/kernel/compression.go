package kernel

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
	"github.com/ulikunitz/xz/lzma"
)

// Compression names how a bzImage's payload is packed, as the kernel's
// configuration (CONFIG_KERNEL_*) does, in lower case.
type Compression string

// The compressions that Linux offers for an x86 kernel.
const (
	Gzip  Compression = "gzip"
	Bzip2 Compression = "bzip2"
	LZMA  Compression = "lzma"
	XZ    Compression = "xz"
	LZO   Compression = "lzo"
	LZ4   Compression = "lz4"
	Zstd  Compression = "zstd"
)

// maxWindow bounds the dictionary of XZ, LZMA and zstd in bytes: the kernel's
// build uses up to 128 MiB (XZ since 6.12, zstd -22).
const maxWindow = 128 << 20

// maxMagic is the longest magic that detect looks at, in bytes.
const maxMagic = 9

// detect recognises a payload by its first bytes: "payload_offset" of the boot
// protocol lists the magic numbers.
func detect(b []byte) (Compression, error) {
	for _, m := range []struct {
		magic string
		c     Compression
	}{
		{"\x1f\x8b", Gzip},
		{"BZh", Bzip2},
		{"\x5d\x00\x00", LZMA},
		{"\xfd7zXZ\x00", XZ},
		{lzopMagic, LZO},
		{"\x02\x21\x4c\x18", LZ4},
		{"\x28\xb5\x2f\xfd", Zstd},
	} {
		if bytes.HasPrefix(b, []byte(m.magic)) {
			return m.c, nil
		}
	}
	return "", fmt.Errorf("%w: the payload starts with % x, which no known compression does", ErrUnsupported, b)
}

// decompress unpacks src, to its end, into dst. size is how much is expected;
// it bounds windows and is not checked here. A decompressor is made when it is
// needed and dropped afterwards. Their panics over bad input are errors here.
func decompress(c Compression, src *bufio.Reader, dst io.Writer, size int64) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: the %s payload does not decompress: %v", ErrCorrupt, c, r)
		}
	}()
	r, err := newReader(c, src, size)
	if err == nil {
		_, err = io.CopyBuffer(dst, r, make([]byte, copyBuffer))
		if d, ok := r.(*zstd.Decoder); ok {
			d.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("%w: the %s payload does not decompress: %w", ErrCorrupt, c, err)
	}
	return nil
}

func newReader(c Compression, src *bufio.Reader, size int64) (io.Reader, error) {
	switch c {
	case Gzip:
		zr, err := gzip.NewReader(src)
		if err != nil {
			return nil, err
		}
		zr.Multistream(false)
		return zr, nil
	case Bzip2:
		return bzip2.NewReader(src), nil
	case LZMA:
		return newLZMAReader(src, size)
	case XZ:
		return xz.NewReader(src, maxWindow)
	case LZO:
		return newLZOPReader(src, size)
	case LZ4:
		return newLZ4Reader(src, size)
	case Zstd:
		return newZstdReader(src, size)
	}
	return nil, fmt.Errorf("%w: compression %q", ErrUnsupported, c)
}

// newLZMAReader opens an LZMA-alone stream: properties, dictionary size, size,
// data. The header always claims the packer's dictionary (64 MiB for lzma -9);
// no match reaches back farther than there is output, so what is above that is
// not allocated. What is above maxWindow then is refused.
func newLZMAReader(src *bufio.Reader, size int64) (io.Reader, error) {
	header := make([]byte, lzma.HeaderLen)
	if _, err := io.ReadFull(src, header); err != nil {
		return nil, err
	}
	dict := binary.LittleEndian.Uint32(header[1:])
	dict = min(dict, uint32(max(size, lzma.MinDictCap)))
	binary.LittleEndian.PutUint32(header[1:], dict)
	return lzma.ReaderConfig{DictCap: maxWindow}.NewReader(&headed{head: header, Reader: src})
}

// newZstdReader opens a zstd stream. Its frame header claims the packer's window
// (128 MiB for zstd -22); what of that is above the output's size is not
// allocated here either.
func newZstdReader(src *bufio.Reader, size int64) (io.Reader, error) {
	const (
		descriptor    = 4 // Frame_Header_Descriptor, behind the magic
		window        = 5 // Window_Descriptor, if the frame isn't one segment
		singleSegment = 1 << 5
		minWindowLog  = 10
		maxBlockLog   = 17 // blocks of up to 128 KiB must fit into the window
	)
	header := make([]byte, window+1)
	if _, err := io.ReadFull(src, header); err != nil {
		return nil, err
	}
	if header[descriptor]&singleSegment == 0 {
		// The byte is an exponent above 2^10 and three bits of fraction.
		need := max(bits.Len64(uint64(size)), maxBlockLog) - minWindowLog
		header[window] = min(header[window], byte(need<<3))
	}
	return zstd.NewReader(&headed{head: header, Reader: src},
		zstd.WithDecoderConcurrency(1), // no goroutines
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow))
}

// headed reads head before what the buffered reader has. It is an
// io.ByteReader, as the LZMA decoder likes to have.
type headed struct {
	head []byte
	*bufio.Reader
}

func (h *headed) Read(p []byte) (int, error) {
	if len(h.head) > 0 {
		n := copy(p, h.head)
		h.head = h.head[n:]
		return n, nil
	}
	return h.Reader.Read(p)
}

func (h *headed) ReadByte() (byte, error) {
	if len(h.head) > 0 {
		b := h.head[0]
		h.head = h.head[1:]
		return b, nil
	}
	return h.Reader.ReadByte()
}
