package block

import (
	"errors"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ReadAt implements [io.ReaderAt].
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	v := f.vecs.get()
	defer f.vecs.put(v)
	*v = append(*v, p)
	return f.ReadvAt(*v, off)
}

// WriteAt implements [io.WriterAt].
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	v := f.vecs.get()
	defer f.vecs.put(v)
	*v = append(*v, p)
	return f.WritevAt(*v, off)
}

// Buffered implements [Buffered].
func (f *File) Buffered() bool { return f.cache == Writeback }

// ReadvAt implements [Vectored]. Where the file ends before its size it fails
// with [io.ErrUnexpectedEOF], and so it does where it was found to end before.
func (f *File) ReadvAt(bufs [][]byte, off int64) (int, error) {
	total := vecLen(bufs)
	if err := checkRange(off, total, f.size.Load()); err != nil {
		return 0, f.fail("read", err)
	}
	if err := f.acquire(); err != nil {
		return 0, f.fail("read", err)
	}
	defer f.release()
	if off+total > f.end.Load() {
		return 0, f.failAt("read", total, off, io.ErrUnexpectedEOF)
	}
	n, err := f.transfer(unix.SYS_PREADV, bufs, off, total)
	if err != nil {
		return int(n), f.failAt("read", total, off, err)
	}
	return int(n), nil
}

// WritevAt implements [Vectored].
func (f *File) WritevAt(bufs [][]byte, off int64) (int, error) {
	total := vecLen(bufs)
	if err := f.writable(off, total); err != nil {
		return 0, f.fail("write", err)
	}
	if err := f.acquire(); err != nil {
		return 0, f.fail("write", err)
	}
	defer f.release()
	if err := f.reaches(off + total); err != nil {
		return 0, f.fail("write", err)
	}
	n, err := f.transfer(unix.SYS_PWRITEV, bufs, off, total)
	if err != nil {
		return int(n), f.failAt("write", total, off, err)
	}
	return int(n), nil
}

// writable returns why n bytes at off may not be changed, or nil.
func (f *File) writable(off, n int64) error {
	if f.readOnly {
		return ErrReadOnly
	}
	return checkRange(off, n, f.size.Load())
}

// reaches fails if the file ends before end: it was cut off, and a write there
// would make it longer again, with a hole in place of what is lost. A block
// device can't be made longer; what it has lost it refuses itself.
func (f *File) reaches(end int64) error {
	if !f.device && !f.nameless {
		if err := f.measure(); err != nil {
			return err
		}
	}
	if end > f.end.Load() {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// transfer moves all total bytes of bufs, or returns how many it did and why
// no more.
func (f *File) transfer(trap uintptr, bufs [][]byte, off, total int64) (int64, error) {
	if total == 0 {
		return 0, nil
	}
	if f.direct != nil {
		return f.transferDirect(trap, bufs, off, total)
	}
	return f.loop(trap, bufs, off, f.cached(trap, bufs, off, total), total)
}

// loop moves the bytes of bufs from byte done up to byte total, which lie at
// off+done in the file, with as many system calls as it takes.
func (f *File) loop(trap uintptr, bufs [][]byte, off, done, total int64) (int64, error) {
	v := iovecPool.Get().(*iovecs)
	defer v.done()
	for done < total {
		v.fill(bufs, done)
		n, err := v.call(trap, f.fd, off+done)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, f.ended(trap, off+done)
		default:
			done += int64(n)
		}
	}
	return done, nil
}

// ended is the error of a call that moved nothing at off.
func (f *File) ended(trap uintptr, off int64) error {
	if trap == unix.SYS_PWRITEV {
		return io.ErrShortWrite
	}
	f.cutOff(f.shrunk.Load(), off)
	return io.ErrUnexpectedEOF
}

// Discard implements [Discarder] by punching a hole, or by BLKDISCARD on a
// block device, whose partial blocks at either end stay as they are. Without
// either in the host it fails with [errors.ErrUnsupported].
func (f *File) Discard(off, n int64) error {
	if err := f.change(off, n, func() error { return f.discard(off, n) }); err != nil {
		return f.failAt("discard", n, off, err)
	}
	return nil
}

func (f *File) discard(off, n int64) error {
	if f.noDiscard.Load() {
		return errors.ErrUnsupported
	}
	var err error
	if f.device {
		block := int64(f.logical)
		start := (off + block - 1) / block * block
		if n = (off + n) / block * block; n <= start {
			return nil
		}
		f.direct.enter()
		err = blockDeviceDiscard(f.fd, start, n-start)
		f.direct.leave()
	} else {
		err = f.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n)
	}
	if unsupported(err) {
		f.noDiscard.Store(true)
		return errors.ErrUnsupported
	}
	return err
}

// WriteZeroes implements [ZeroWriter], by writing zeroes if need be.
func (f *File) WriteZeroes(off, n int64, unmap bool) error {
	err := f.change(off, n, func() error {
		if unmap {
			if done, err := f.zeroBy(unix.FALLOC_FL_PUNCH_HOLE, &f.noPunch, off, n); done {
				return err
			}
		}
		if done, err := f.zeroBy(unix.FALLOC_FL_ZERO_RANGE, &f.noZeroRange, off, n); done {
			return err
		}
		return writeZeroBuffers(f, &f.vecs, off, n)
	})
	if err != nil {
		return f.failAt("zeroing", n, off, err)
	}
	return nil
}

// zeroBy tries one mode of fallocate and reports whether that settled it.
func (f *File) zeroBy(mode uint32, missing *atomic.Bool, off, n int64) (bool, error) {
	if missing.Load() {
		return false, nil
	}
	err := f.fallocate(mode, off, n)
	if unsupported(err) {
		missing.Store(true)
		return false, nil
	}
	// A block device refuses parts of its blocks with EINVAL.
	return err != unix.EINVAL, err
}

// change runs a call that changes n bytes at off, other than a write.
func (f *File) change(off, n int64, call func() error) error {
	if err := f.writable(off, n); err != nil || n == 0 {
		return err
	}
	if err := f.acquire(); err != nil {
		return err
	}
	defer f.release()
	if err := f.reaches(off + n); err != nil {
		return err
	}
	if err := call(); err != nil {
		return err
	}
	if f.cache == Writethrough {
		return f.Flush()
	}
	return nil
}

// fallocate never makes the file larger.
func (f *File) fallocate(mode uint32, off, n int64) error {
	f.direct.enter()
	defer f.direct.leave()
	for {
		err := unix.Fallocate(f.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != unix.EINTR {
			return err
		}
	}
}

func unsupported(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.ENOTTY
}
