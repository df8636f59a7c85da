package kernel

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Errors of [Extract] and [Cache.Fill], to be tested with errors.Is.
var (
	// ErrUnsupported says that the file is no bzImage with an x86-64 vmlinux in
	// it, or that its compression is not known.
	ErrUnsupported = errors.New("unsupported kernel image")
	// ErrCorrupt says that the file is a bzImage whose payload is cut short,
	// does not decompress, or is not what its header and trailer promise.
	ErrCorrupt = errors.New("corrupt kernel image")
)

const (
	// MaxSize bounds a decompressed payload, in bytes. x86-64 maps its kernel
	// image in at most 1 GiB of address space.
	MaxSize = 1 << 30

	// sizeTrailer is the little-endian size of the decompressed payload, in the
	// payload's last bytes.
	sizeTrailer = 4
	// minPayload is what the shortest magic and the trailer take.
	minPayload = 4 + sizeTrailer

	sourceBuffer = 256 << 10
	copyBuffer   = 256 << 10
)

// Info tells what [Extract] found.
type Info struct {
	// Compression of the payload.
	Compression Compression
	// Version is the kernel's release, such as "6.1.0-50-amd64", or "" when
	// the image does not say.
	Version string
	// PayloadOffset and PayloadSize locate the compressed payload in the
	// image, in bytes, with the four bytes of size behind it.
	PayloadOffset, PayloadSize int64
	// Size of the decompressed payload in bytes: the vmlinux and, behind it,
	// the relocations.
	Size int64
}

// Extract decompresses the payload of the bzImage img into w: an x86-64
// vmlinux with the kernel's relocations behind the ELF.
//
// It streams: memory is bounded by the window of the decompressor (17 MiB for
// LZ4; at most the decompressed size or 128 MiB, whichever is less, for XZ,
// LZMA and zstd). Nothing is written before the payload is known to start with
// the header of an x86-64 vmlinux, and never more than the size that the image
// announces, itself at most [MaxSize]. When Extract returns an error, what w
// got is worthless.
//
// Errors wrap [ErrUnsupported], [ErrCorrupt], or the error of img or w.
func Extract(img Image, w io.Writer) (Info, error) {
	info, err := extract(img, w, MaxSize)
	if err != nil {
		return info, fmt.Errorf("kernel: %w", err)
	}
	return info, nil
}

func extract(img Image, w io.Writer, limit int64) (Info, error) {
	info, err := inspect(img)
	if err != nil {
		return info, err
	}
	if info.Size > limit {
		return info, fmt.Errorf("%w: a payload of %d bytes when decompressed is over the limit of %d", ErrUnsupported, info.Size, limit)
	}
	length := info.PayloadSize
	if info.Compression != Gzip { // gzip's own trailer ends with the size
		length -= sizeTrailer
	}
	src := &source{r: io.NewSectionReader(img, info.PayloadOffset, length)}
	dst := &sink{w: w, size: info.Size}
	err = decompress(info.Compression, bufio.NewReaderSize(src, sourceBuffer), dst, info.Size)
	switch {
	case dst.err != nil:
		return info, dst.err
	case src.err != nil:
		return info, fmt.Errorf("reading the payload: %w", src.err)
	case err != nil:
		return info, err
	}
	return info, dst.finish()
}

// inspect reads the setup header and the two ends of the payload.
func inspect(img Image) (Info, error) {
	h, err := readSetupHeader(img)
	if err != nil {
		return Info{}, err
	}
	info := Info{Version: h.release(), PayloadOffset: h.payload, PayloadSize: h.length}
	if err := h.checkPayload(img.Size()); err != nil {
		return info, err
	}
	var magic [maxMagic]byte
	n := min(int64(len(magic)), h.length-sizeTrailer)
	if err := readFull(img, magic[:n], h.payload); err != nil {
		return info, fmt.Errorf("reading the payload: %w", err)
	}
	if info.Compression, err = detect(magic[:n]); err != nil {
		return info, err
	}
	var trailer [sizeTrailer]byte
	if err := readFull(img, trailer[:], h.payload+h.length-sizeTrailer); err != nil {
		return info, fmt.Errorf("reading the payload: %w", err)
	}
	info.Size = int64(binary.LittleEndian.Uint32(trailer[:]))
	if info.Size < ehdrSize {
		return info, fmt.Errorf("%w: the payload's trailer promises %d bytes, less than an ELF header", ErrCorrupt, info.Size)
	}
	return info, nil
}

// source remembers an error of the reader below it, so that a decompressor's
// own wording of it does not hide it.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// sink passes on at most size bytes, and none before it has seen that they
// start as an x86-64 vmlinux does. Its first error stays.
type sink struct {
	w     io.Writer
	size  int64 // what the image promises
	n     int64 // received
	head  [ehdrSize]byte
	begun bool
	err   error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if int64(len(p)) > s.size-s.n {
		s.err = fmt.Errorf("%w: the payload decompresses to more than the %d bytes that it promises", ErrCorrupt, s.size)
		return 0, s.err
	}
	taken := 0
	if !s.begun {
		taken = copy(s.head[s.n:], p)
		s.n += int64(taken)
		if s.n < ehdrSize {
			return taken, nil
		}
		if s.err = checkELF(s.head[:]); s.err != nil {
			return 0, s.err
		}
		s.begun = true
		if _, s.err = s.w.Write(s.head[:]); s.err != nil {
			return 0, s.err
		}
	}
	n, err := s.w.Write(p[taken:])
	s.n += int64(n)
	s.err = err
	return taken + n, err
}

// finish reports whether everything that was promised has come.
func (s *sink) finish() error {
	if s.err == nil && s.n != s.size {
		s.err = fmt.Errorf("%w: the payload decompresses to %d bytes, its trailer promises %d", ErrCorrupt, s.n, s.size)
	}
	return s.err
}
