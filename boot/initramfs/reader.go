package initramfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// ErrFormat is an archive that is damaged, cut short, or not newc at all.
var ErrFormat = errors.New("not a well-formed newc archive")

// Header is an entry as a [Reader] found it.
type Header struct {
	// Entry has no Body: the Reader reads it. Name is what the archive says,
	// which may be absolute or climb out with "..": check it before use.
	Entry
	// Ino, Links and ModTime (seconds since 1970) are what the archive says.
	// Entries with the same Ino and Links above 1 are hard links of each other.
	Ino, Links, ModTime uint32
}

// Reader walks over a newc archive, or several in a row with zeroes between
// them, as the kernel does. It needs memory for one name, whatever is in the
// archive. The checksums of 070702 archives are not verified.
type Reader struct {
	r      *bufio.Reader
	off    int64 // bytes consumed
	body   int64 // bytes of the current body not yet read
	pad    int64 // bytes between that body and the next header
	inside bool  // an archive has begun and its trailer not been seen
	err    error // sticky
}

// NewReader returns a Reader of r, which it buffers.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReader(r)}
}

// Next skips what is left of the current entry and returns the next one. It
// returns [io.EOF] after the last archive's trailer, or when r has nothing but
// zeroes. Other errors wrap ErrFormat or come from r; after any error Next keeps returning
// it.
func (r *Reader) Next() (*Header, error) {
	if r.err != nil {
		return nil, r.err
	}
	h, err := r.next()
	if err != nil {
		r.err, r.body = err, 0
		return nil, err
	}
	return h, nil
}

// Read reads from the body of the current regular file.
func (r *Reader) Read(p []byte) (int, error) {
	if r.body == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.body {
		p = p[:r.body]
	}
	n, err := r.r.Read(p)
	r.off += int64(n)
	r.body -= int64(n)
	if err == io.EOF && r.body > 0 {
		err = r.damaged("it ends within a file: %w", io.ErrUnexpectedEOF)
		r.err, r.body = err, 0
	} else if err == io.EOF {
		err = nil
	}
	return n, err
}

func (r *Reader) next() (*Header, error) {
	if err := r.skip(r.body + r.pad); err != nil {
		return nil, err
	}
	r.body, r.pad = 0, 0
	for {
		if !r.inside {
			if err := r.skipZeroes(); err != nil {
				return nil, err
			}
			r.inside = true
		}
		h, err := r.header()
		if err != nil {
			return nil, err
		}
		if h.Name != trailerName {
			return h, nil
		}
		r.inside = false
		if err := r.skip(r.body + r.pad); err != nil {
			return nil, err
		}
		r.body, r.pad = 0, 0
	}
}

// skipZeroes goes to the next byte that is not zero. The kernel wants an
// archive to begin at a multiple of four.
func (r *Reader) skipZeroes() error {
	for {
		b, err := r.r.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			if r.off&3 != 0 {
				return r.damaged("something begins at an offset that is not a multiple of 4")
			}
			return r.r.UnreadByte()
		}
		r.off++
	}
}

func (r *Reader) header() (*Header, error) {
	start := r.off
	var raw [headerSize]byte
	if err := r.full(raw[:]); err != nil {
		return nil, err
	}
	if m := string(raw[:len(magicNewc)]); m != magicNewc && m != magicCRC {
		r.off = start
		return nil, r.damaged("the magic is %q and not %q", m, magicNewc)
	}
	f, err := parseFields(raw[:])
	if err != nil {
		r.off = start
		return nil, r.damaged("%w", err)
	}
	nameSize := f[fieldNameSize]
	if nameSize == 0 || nameSize > MaxName+1 {
		return nil, r.damaged("a name of %d bytes", nameSize)
	}
	name := make([]byte, nameSize)
	if err := r.full(name); err != nil {
		return nil, err
	}
	if bytes.IndexByte(name, 0) != len(name)-1 {
		return nil, r.damaged("the name %q does not end in its only NUL", name)
	}
	if err := r.skip(pad4(headerSize + int64(nameSize))); err != nil {
		return nil, err
	}
	h := &Header{
		Entry: Entry{
			Name:  string(name[:len(name)-1]),
			Mode:  goMode(f[fieldMode]),
			UID:   f[fieldUID],
			GID:   f[fieldGID],
			Major: f[fieldRdevMajor],
			Minor: f[fieldRdevMinor],
		},
		Ino:     f[fieldIno],
		Links:   f[fieldNlink],
		ModTime: f[fieldMtime],
	}
	size := int64(f[fieldFileSize])
	switch f[fieldMode] & sIFMT {
	case sIFLNK:
		if size > MaxName {
			return nil, r.damaged("%q: a symbolic link target of %d bytes", h.Name, size)
		}
		target := make([]byte, size)
		if err := r.full(target); err != nil {
			return nil, err
		}
		h.Target = string(target)
		return h, r.skip(pad4(size))
	case sIFREG:
		h.Size = size
		r.body, r.pad = size, pad4(size)
	default:
		r.pad = size + pad4(size)
	}
	return h, nil
}

func (r *Reader) full(p []byte) error {
	n, err := io.ReadFull(r.r, p)
	r.off += int64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return r.damaged("it ends before its trailer: %w", io.ErrUnexpectedEOF)
	}
	return err
}

func (r *Reader) skip(n int64) error {
	for n > 0 {
		k, err := r.r.Discard(int(min(n, 1<<30)))
		r.off += int64(k)
		n -= int64(k)
		if err == io.EOF {
			return r.damaged("it ends before its trailer: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) damaged(format string, args ...any) error {
	return fmt.Errorf("initramfs: offset %d: %w: %w", r.off, ErrFormat, fmt.Errorf(format, args...))
}
