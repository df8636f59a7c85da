package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Offsets in the setup header, from the start of the file ("The Real-Mode
// Kernel Header" of the boot protocol), and what is needed of their values.
const (
	offSetupSects    = 0x1f1
	offBootFlag      = 0x1fe
	offMagic         = 0x202
	offVersion       = 0x206
	offKernelVersion = 0x20e
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	headerSize       = 0x250

	bootFlag           = 0xaa55
	headerMagic        = "HdrS"
	versionWithPayload = 0x0208
	sectorSize         = 512
	defaultSetupSects  = 4

	// maxVersionString bounds the version text that is read from an image.
	maxVersionString = 256
)

// Image is a kernel file to read from: random access and a size in bytes. It
// is satisfied by *bytes.Reader, by *io.SectionReader and by boot.Image.
type Image interface {
	io.ReaderAt
	Size() int64
}

// setupHeader is the part of a bzImage's setup header that this package needs.
type setupHeader struct {
	protocol uint16 // boot protocol version, 0x020f is 2.15
	setup    int64  // size in bytes of the boot sector and the setup code
	payload  int64  // offset in the file of the compressed payload
	length   int64  // length in bytes of the payload with its size trailer
	version  string // the kernel's version text, "6.1.0-50-amd64 (...) #1 SMP ..."
}

// release is the first word of the version text: what uname -r would print.
func (h setupHeader) release() string {
	release, _, _ := strings.Cut(h.version, " ")
	return release
}

// readSetupHeader reads and checks the setup header of a bzImage. Errors wrap
// ErrUnsupported when img is something else or too old, ErrCorrupt when it is
// cut short.
func readSetupHeader(img Image) (setupHeader, error) {
	size := img.Size()
	if size < headerSize {
		return setupHeader{}, fmt.Errorf("%w: %d bytes are too few for a bzImage", ErrUnsupported, size)
	}
	var b [headerSize]byte
	if err := readFull(img, b[:], 0); err != nil {
		return setupHeader{}, fmt.Errorf("reading the setup header: %w", err)
	}
	if string(b[offMagic:offMagic+4]) != headerMagic || binary.LittleEndian.Uint16(b[offBootFlag:]) != bootFlag {
		return setupHeader{}, fmt.Errorf("%w: not a bzImage: no %s magic at %#x", ErrUnsupported, headerMagic, offMagic)
	}
	h := setupHeader{protocol: binary.LittleEndian.Uint16(b[offVersion:])}
	sects := int64(b[offSetupSects])
	if sects == 0 {
		sects = defaultSetupSects
	}
	h.setup = (sects + 1) * sectorSize
	if h.setup > size {
		return setupHeader{}, fmt.Errorf("%w: the setup code ends at %d, the file at %d", ErrCorrupt, h.setup, size)
	}
	var err error
	if h.version, err = readVersion(img, int64(binary.LittleEndian.Uint16(b[offKernelVersion:])), h.setup); err != nil {
		return setupHeader{}, err
	}
	if h.protocol >= versionWithPayload {
		h.payload = h.setup + int64(binary.LittleEndian.Uint32(b[offPayloadOffset:]))
		h.length = int64(binary.LittleEndian.Uint32(b[offPayloadLength:]))
	}
	return h, nil
}

// readVersion reads the NUL-terminated version text whose offset, less 0x200,
// the header gives. A header without one, or with one outside the setup code,
// has no version; that is not an error.
func readVersion(img Image, field, setup int64) (string, error) {
	at := field + sectorSize
	if field == 0 || at >= setup {
		return "", nil
	}
	b := make([]byte, min(maxVersionString, setup-at))
	if err := readFull(img, b, at); err != nil {
		return "", fmt.Errorf("reading the version text: %w", err)
	}
	text, _, found := strings.Cut(string(b), "\x00")
	if !found || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", nil
	}
	return strings.TrimSpace(text), nil
}

// checkPayload says whether the payload lies within a file of size bytes and
// is long enough to hold anything.
func (h setupHeader) checkPayload(size int64) error {
	switch {
	case h.protocol < versionWithPayload:
		return fmt.Errorf("%w: boot protocol %d.%02d does not say where the payload is (2.08 and later do)",
			ErrUnsupported, h.protocol>>8, h.protocol&0xff)
	case h.length == 0:
		return fmt.Errorf("%w: the setup header names no payload", ErrUnsupported)
	case h.length < minPayload:
		return fmt.Errorf("%w: a payload of %d bytes", ErrCorrupt, h.length)
	case h.payload+h.length > size:
		return fmt.Errorf("%w: truncated: the payload ends at %d, the file at %d", ErrCorrupt, h.payload+h.length, size)
	}
	return nil
}

// readFull fills p from offset off. A file that ends before p is full is
// io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
