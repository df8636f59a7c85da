package block

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// overlayBlock is the granule of an overlay, in bytes: the unit in which a
	// guest's file system and the host's page cache write, so that a usual
	// write reads nothing of the base and stores no more than its own data.
	// With 64 KiB each small write would copy 60 KiB; with 512 bytes nothing
	// would ever be copied, but the map of a 3 TiB base could take 768 MiB
	// instead of 96.
	overlayBlock = 4 << 10
	// stripeSize is the part of an image that one lock of an overlay stands
	// for, in bytes.
	stripeSize   = 1 << 20
	overlayLocks = 64
)

// Writable is what an overlay keeps its data in.
type Writable interface {
	Image
	io.WriterAt
	Discarder
	ZeroWriter
	io.Closer
}

// Overlay is copy-on-write over an image that is only read: what was written
// lies in a second image, at the same offset, and a bit for each 4 KiB says
// which of the two has it. Discarded and zeroed blocks are holes there. All
// methods may be called from any goroutine.
//
// An overlay ends with Close, and nothing finds its data again: Flush has
// nothing to make stable and costs nothing.
type Overlay struct {
	base    Image
	upper   Writable
	size    int64
	written *bitmap
	closed  atomic.Bool

	// A write of part of a block that is still the base's fills the rest from
	// there; nobody else may write to the block meanwhile. Such a write holds
	// the block's lock alone, others share those of all their stripes, taken
	// in ascending order.
	locks [overlayLocks]sync.RWMutex
	vecs  vecPool
	fills sync.Pool // of *[overlayBlock]byte
}

// NewOverlay returns base with all changes kept in upper, which must be at
// least as large, read as zeroes, and have no other user. The overlay owns
// both: Close closes them, base if it has a Close. Its size is that of base
// now.
func NewOverlay(base Image, upper Writable) *Overlay {
	size := base.Size()
	return &Overlay{base: base, upper: upper, size: size,
		written: newBitmap((size + overlayBlock - 1) / overlayBlock)}
}

// Size implements [Image].
func (o *Overlay) Size() int64 { return o.size }

// BlockSize implements [Geometry].
func (o *Overlay) BlockSize() (logical, physical int) {
	logical, physical = SectorSize, overlayBlock
	if g, ok := o.base.(Geometry); ok {
		logical, _ = g.BlockSize()
	}
	return logical, max(logical, physical)
}

// Locked implements [Locking]: whether the base is.
func (o *Overlay) Locked() bool {
	l, ok := o.base.(Locking)
	return !ok || l.Locked()
}

// Flush implements [Flusher].
func (o *Overlay) Flush() error { return nil }

// Close implements [io.Closer]: the changes are gone.
func (o *Overlay) Close() error {
	if o.closed.Swap(true) {
		return nil
	}
	err := o.upper.Close()
	if c, ok := o.base.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return err
}

// ReadAt implements [io.ReaderAt].
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	v := o.vecs.get()
	defer o.vecs.put(v)
	*v = append(*v, p)
	return o.ReadvAt(*v, off)
}

// WriteAt implements [io.WriterAt].
func (o *Overlay) WriteAt(p []byte, off int64) (int, error) {
	v := o.vecs.get()
	defer o.vecs.put(v)
	*v = append(*v, p)
	return o.WritevAt(*v, off)
}

// ReadvAt implements [Vectored].
func (o *Overlay) ReadvAt(bufs [][]byte, off int64) (int, error) {
	total := vecLen(bufs)
	if err := o.check("read", off, total); err != nil {
		return 0, err
	}
	if total == 0 {
		return 0, nil
	}
	end := (off+total-1)/overlayBlock + 1
	n, written := o.written.run(off/overlayBlock, end)
	if off/overlayBlock+n == end { // the usual case
		return ReadVec(o.where(written), bufs, off)
	}
	part := o.vecs.get()
	defer o.vecs.put(part)
	for done := int64(0); done < total; {
		at := off + done
		first := at / overlayBlock
		n, written := o.written.run(first, end)
		piece := min((first+n)*overlayBlock-at, total-done)
		*part = subVec((*part)[:0], bufs, done, piece)
		got, err := ReadVec(o.where(written), *part, at)
		if err != nil {
			return int(done) + got, err
		}
		done += piece
	}
	return int(total), nil
}

// where is the image that has the blocks that are written, or not.
func (o *Overlay) where(written bool) Image {
	if written {
		return o.upper
	}
	return o.base
}

// WritevAt implements [Vectored].
func (o *Overlay) WritevAt(bufs [][]byte, off int64) (int, error) {
	total := vecLen(bufs)
	if err := o.check("write", off, total); err != nil {
		return 0, err
	}
	return o.inParts(off, total, func(at, n int64) error {
		part := bufs
		if n != total {
			v := o.vecs.get()
			defer o.vecs.put(v)
			*v = subVec(*v, bufs, at-off, n)
			part = *v
		}
		_, err := WriteVec(o.upper, part, at)
		return err
	})
}

// Discard implements [Discarder]. What is discarded reads as zeroes; blocks
// that are discarded in part stay, and so does everything where the overlay's data
// can't have holes: writing zeroes instead may take long.
func (o *Overlay) Discard(off, n int64) error {
	if err := o.check("discard", off, n); err != nil {
		return err
	}
	start := (off + overlayBlock - 1) / overlayBlock * overlayBlock
	end := off + n
	if end != o.size {
		end = end / overlayBlock * overlayBlock
	}
	if end <= start {
		return nil
	}
	_, err := o.inParts(start, end-start, o.upper.Discard)
	return err
}

// WriteZeroes implements [ZeroWriter].
func (o *Overlay) WriteZeroes(off, n int64, unmap bool) error {
	if err := o.check("zeroing", off, n); err != nil {
		return err
	}
	_, err := o.inParts(off, n, func(at, n int64) error {
		// A hole in the overlay is zeroes: nothing is gained by storing them.
		return o.upper.WriteZeroes(at, n, true)
	})
	return err
}

func (o *Overlay) check(what string, off, n int64) error {
	if err := checkRange(off, n, o.size); err != nil {
		return fmt.Errorf("block: overlay: %s: %w", what, err)
	}
	return nil
}

// inParts has the n bytes at off stored by put: the blocks that are covered in
// part one by one, what is between them at once. It returns how many bytes
// were stored from the start.
func (o *Overlay) inParts(off, n int64, put func(at, n int64) error) (int, error) {
	at, end := off, off+n
	for at < end {
		block := at / overlayBlock
		blockEnd := min((block+1)*overlayBlock, o.size)
		stop := min(end, blockEnd)
		var err error
		if at == block*overlayBlock && stop == blockEnd {
			if stop = end; end != o.size {
				stop = end / overlayBlock * overlayBlock
			}
			err = o.putBlocks(at, stop, put)
		} else {
			err = o.putPart(block, at, stop, put)
		}
		if err != nil {
			return int(at - off), err
		}
		at = stop
	}
	return int(n), nil
}

// putBlocks stores whole blocks.
func (o *Overlay) putBlocks(at, end int64, put func(at, n int64) error) error {
	mask := stripes(at, end)
	for m := mask; m != 0; m &= m - 1 {
		o.locks[bits.TrailingZeros64(m)].RLock()
	}
	defer func() {
		for m := mask; m != 0; m &= m - 1 {
			o.locks[bits.TrailingZeros64(m)].RUnlock()
		}
	}()
	if err := put(at, end-at); err != nil {
		return err
	}
	o.written.set(at/overlayBlock, (end+overlayBlock-1)/overlayBlock)
	return nil
}

// putPart stores what lies between at and end in one block, after the rest of
// the block if that is not in the overlay yet.
func (o *Overlay) putPart(block, at, end int64, put func(at, n int64) error) error {
	l := &o.locks[bits.TrailingZeros64(stripes(at, end))]
	if o.written.get(block) {
		// A write to all of the block may be on its way too; that is a race of
		// the guest's own making, for bytes that both write.
		l.RLock()
		defer l.RUnlock()
		return put(at, end-at)
	}
	l.Lock()
	defer l.Unlock()
	if !o.written.get(block) {
		start := block * overlayBlock
		if err := o.fill(start, at); err != nil {
			return err
		}
		if err := o.fill(end, min(start+overlayBlock, o.size)); err != nil {
			return err
		}
	}
	if err := put(at, end-at); err != nil {
		return err
	}
	o.written.set(block, block+1)
	return nil
}

// fill copies what lies from start to end, less than a block, from the base.
func (o *Overlay) fill(start, end int64) error {
	if start == end {
		return nil
	}
	buf, ok := o.fills.Get().(*[overlayBlock]byte)
	if !ok {
		buf = new([overlayBlock]byte)
	}
	defer o.fills.Put(buf)
	p := buf[:end-start]
	if n, err := o.base.ReadAt(p, start); n < len(p) {
		return noShort(err, io.ErrUnexpectedEOF)
	}
	_, err := o.upper.WriteAt(p, start)
	return err
}

// stripes is the set of locks that stand for what lies from at to end.
func stripes(at, end int64) uint64 {
	first, last := at/stripeSize, (end-1)/stripeSize
	if last-first >= overlayLocks-1 {
		return ^uint64(0)
	}
	var mask uint64
	for i := first; i <= last; i++ {
		mask |= 1 << (i % overlayLocks)
	}
	return mask
}

// newScratch returns an empty sparse file without a name in dir.
func newScratch(dir string, size int64) (*File, error) {
	fd, err := openNameless(dir)
	if err != nil {
		return nil, refuse(dir, err, "can't hold what is written over an image: %v", err)
	}
	if err := ignoringEINTR(func() error { return unix.Ftruncate(fd, size) }); err != nil {
		_ = unix.Close(fd)
		return nil, refuse(dir, err, "can't hold an overlay of %d bytes: %v", size, err)
	}
	f := &File{path: filepath.Join(dir, "(overlay)"), fd: fd, nameless: true, logical: SectorSize, physical: 4096}
	f.size.Store(size)
	f.end.Store(size)
	return f, nil
}

// openNameless opens a new file in dir that has no name.
func openNameless(dir string) (fd int, err error) {
	err = ignoringEINTR(func() error {
		fd, err = unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC|unix.O_LARGEFILE, 0o600)
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return openUnlinked(dir)
	}
	return fd, err
}

// openUnlinked is for file systems without O_TMPFILE, such as NFS.
func openUnlinked(dir string) (int, error) {
	named, err := os.CreateTemp(dir, ".vole-overlay-*")
	if err != nil {
		return -1, err
	}
	defer named.Close()
	if err := os.Remove(named.Name()); err != nil {
		return -1, err
	}
	return unix.FcntlInt(named.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}
