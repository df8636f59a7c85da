package block

import (
	"errors"
	"fmt"
	"io"
)

// SectorSize is the unit of a virtio disk's capacity and offsets, in bytes,
// whatever the block size (VIRTIO 1.2, 5.2.4). An image's size is a multiple
// of it.
const SectorSize = 512

var (
	// ErrImage reports an image that can't be used as it was asked for: bad
	// input, and nothing was changed.
	ErrImage = errors.New("block: unusable image")
	// ErrInUse reports an image that is open elsewhere in a way that does not
	// allow this one. It comes with ErrImage.
	ErrInUse = errors.New("block: image is in use")
	// ErrReadOnly reports a write, discard or the like to an image that was
	// opened for reading.
	ErrReadOnly = errors.New("block: image is read-only")
	// ErrRange reports an access that is not wholly inside the image. Nothing
	// was transferred.
	ErrRange = errors.New("block: outside the image")
)

// Image is what a disk is made of. ReadAt fills all of p from inside
// [0, Size()) or returns an error; it may be called from any number of
// goroutines, and so may the methods of the interfaces below. What concurrent
// writes to the same bytes leave behind is one or the other, by the sector.
//
// Size is in bytes and a multiple of [SectorSize]. It changes only in Refresh.
type Image interface {
	io.ReaderAt
	Size() int64
}

// An image that can be written implements [io.WriterAt]: all of p is written
// or an error returned. A write never makes an image larger.

// Flusher puts on stable storage what was written, discarded or zeroed before
// Flush was called and had returned by then. An image without it has nothing
// that a loss of power could take or keep.
type Flusher interface {
	Flush() error
}

// Discarder gives n bytes at off back to the host. They read as zeroes
// afterwards or as they were. An error that is [errors.ErrUnsupported] means
// that the image's storage has no such operation and nothing happened.
type Discarder interface {
	Discard(off, n int64) error
}

// ZeroWriter makes n bytes at off read as zeroes. With unmap their storage is
// given back where the host can, without it stays allocated where it can.
type ZeroWriter interface {
	WriteZeroes(off, n int64, unmap bool) error
}

// Vectored reads into and writes from several buffers, one behind the other
// in the image. The count is of bytes; it is less than the sum of the buffers'
// lengths only with an error. The buffers may be guest memory: they are not
// kept, bufs is not changed, and nothing is allocated.
type Vectored interface {
	ReadvAt(bufs [][]byte, off int64) (int, error)
	WritevAt(bufs [][]byte, off int64) (int, error)
}

// Refresher looks again how large an image is that may have grown or shrunk
// underneath, and returns what Size says from then on. On an error the size
// stays what it was.
type Refresher interface {
	Refresh() (int64, error)
}

// Geometry tells the sizes in bytes of an image's blocks: the smallest that
// can be addressed, and the smallest that is written without reading its
// surroundings first. Both are powers of two, SectorSize or more.
type Geometry interface {
	BlockSize() (logical, physical int)
}

// ReadOnlyer is implemented by images that have the methods for writing but
// may refuse to write.
type ReadOnlyer interface {
	ReadOnly() bool
}

// Locking is implemented by images that other processes may have open as well. Locked
// reports whether they are kept from what does not go together: writing beside any
// other use.
type Locking interface {
	Locked() bool
}

// CanWrite reports whether img takes writes.
func CanWrite(img Image) bool {
	if r, ok := img.(ReadOnlyer); ok && r.ReadOnly() {
		return false
	}
	_, ok := img.(io.WriterAt)
	return ok
}

// ReadVec fills bufs from off on, by img's own ReadvAt if it has one.
func ReadVec(img Image, bufs [][]byte, off int64) (int, error) {
	if v, ok := img.(Vectored); ok {
		return v.ReadvAt(bufs, off)
	}
	total := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		n, err := img.ReadAt(b, off)
		total += n
		if n < len(b) {
			return total, noShort(err, io.ErrUnexpectedEOF)
		}
		off += int64(n)
	}
	return total, nil
}

// WriteVec writes bufs from off on, by img's own WritevAt if it has one.
func WriteVec(img Image, bufs [][]byte, off int64) (int, error) {
	if v, ok := img.(Vectored); ok {
		return v.WritevAt(bufs, off)
	}
	w, ok := img.(io.WriterAt)
	if !ok {
		return 0, ErrReadOnly
	}
	total := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		n, err := w.WriteAt(b, off)
		total += n
		if err != nil || n < len(b) {
			return total, noShort(err, io.ErrShortWrite)
		}
		off += int64(n)
	}
	return total, nil
}

// noShort is the error of a transfer that ended early: an image that says
// nothing, or io.EOF inside itself, has lost data.
func noShort(err, short error) error {
	if err == nil || err == io.EOF {
		return short
	}
	return err
}

// checkRange returns ErrRange if n bytes at off are not all below size.
func checkRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, off, size, ErrRange)
	}
	return nil
}

// imageError is a refusal: it is ErrImage, and whatever it wraps.
type imageError struct {
	path, why string
	cause     error // may be nil
}

func (e *imageError) Error() string { return "block: " + e.path + ": " + e.why }

func (e *imageError) Unwrap() []error {
	if e.cause == nil {
		return []error{ErrImage}
	}
	return []error{ErrImage, e.cause}
}

func refuse(path string, cause error, format string, args ...any) error {
	return &imageError{path: path, why: fmt.Sprintf(format, args...), cause: cause}
}
