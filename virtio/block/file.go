package block

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// CacheMode says what the host's page cache does for an image.
type CacheMode uint8

const (
	// Writeback leaves writes in the page cache until Flush.
	Writeback CacheMode = iota
	// Writethrough has each write on stable storage before it returns.
	Writethrough
	// NoCache goes around the page cache (O_DIRECT); the device may have a
	// cache of its own, so that Flush is still needed.
	NoCache
)

// ParseCacheMode understands what String returns; "" is writeback.
func ParseCacheMode(s string) (CacheMode, error) {
	switch s {
	case "", "writeback":
		return Writeback, nil
	case "writethrough":
		return Writethrough, nil
	case "none":
		return NoCache, nil
	}
	return 0, fmt.Errorf("block: cache mode %q is none of writeback, writethrough and none: %w", s, ErrImage)
}

func (m CacheMode) String() string {
	switch m {
	case Writethrough:
		return "writethrough"
	case NoCache:
		return "none"
	}
	return "writeback"
}

// File is a raw image: a regular file or a block device of the host. It
// implements every interface of this package. All methods may be called from
// any goroutine.
//
// Reads and writes are plain system calls: a host that hangs holds the caller
// for as long. Close never waits.
type File struct {
	path     string
	fd       int
	readOnly bool
	cache    CacheMode
	device   bool // a block device
	nameless bool // a file that nobody else can open
	locked   bool
	id       imageID // in images
	held     bool    // id is there
	logical  int     // block sizes, in bytes
	physical int
	direct   *direct // of NoCache, else nil

	size atomic.Int64
	// end is the least at which the file was ever found to end inside its size,
	// or size. What lies behind was cut off underneath: if the file is that long
	// again, there is a hole in place of what is lost.
	end atomic.Int64
	// shrunk counts how often the size became smaller. Where the file was found
	// to end before that says nothing of it now.
	shrunk atomic.Uint64
	sizeMu sync.Mutex // for changing size, end and shrunk
	looks  sync.Mutex // held by Refresh

	// refs counts calls in flight; closedBit is set by Close. Who takes the
	// count to closedBit closes fd, so that no call meets another file's
	// descriptor.
	refs atomic.Int64

	noDiscard, noPunch, noZeroRange atomic.Bool // the host has no such operation
	prompt                          promptness

	vecs vecPool

	syncMu  sync.Mutex
	syncErr error // of the first fdatasync that failed
}

const closedBit = 1 << 62

func (f *File) acquire() error {
	for {
		n := f.refs.Load()
		if n&closedBit != 0 {
			return fs.ErrClosed
		}
		if f.refs.CompareAndSwap(n, n+1) {
			return nil
		}
	}
}

func (f *File) release() {
	if f.refs.Add(-1) == closedBit {
		_ = f.shut()
	}
}

// shut closes fd, which nobody uses any more.
func (f *File) shut() error {
	err := unix.Close(f.fd)
	if f.held {
		images.leave(f.id)
	}
	return err
}

// Close lets go of the file and of its lock; calls in flight keep both until
// they return. Close does not flush. Later calls fail with [fs.ErrClosed],
// a second Close does nothing.
func (f *File) Close() error {
	for {
		n := f.refs.Load()
		if n&closedBit != 0 {
			return nil
		}
		if !f.refs.CompareAndSwap(n, n|closedBit) {
			continue
		}
		if n != 0 {
			return nil
		}
		if err := f.shut(); err != nil {
			return f.fail("close", err)
		}
		return nil
	}
}

// Path is the name that the file was opened by.
func (f *File) Path() string { return f.path }

// Cache is the mode that the file was opened with.
func (f *File) Cache() CacheMode { return f.cache }

// ReadOnly implements [ReadOnlyer].
func (f *File) ReadOnly() bool { return f.readOnly }

// Locked implements [Locking].
func (f *File) Locked() bool { return f.locked || f.nameless }

// Size implements [Image].
func (f *File) Size() int64 { return f.size.Load() }

// BlockSize implements [Geometry]: a block device's own sizes; 512 and 4096
// for a file, whose content is not bound to the device it happens to lie on.
func (f *File) BlockSize() (logical, physical int) { return f.logical, f.physical }

// Refresh implements [Refresher]. It does not bring back what was cut off
// underneath: only a size that ends before that does, as whoever uses the image
// knows of no more then.
func (f *File) Refresh() (int64, error) {
	f.looks.Lock()
	defer f.looks.Unlock()
	if err := f.acquire(); err != nil {
		return 0, f.fail("size", err)
	}
	defer f.release()
	size, err := hostSize(f.fd, f.device)
	if err != nil {
		return 0, f.fail("size", err)
	}
	if why := f.badSize(size); why != "" {
		f.cutOff(f.shrunk.Load(), size)
		return 0, refuse(f.path, nil, "%s", why)
	}
	f.sizeMu.Lock()
	defer f.sizeMu.Unlock()
	old, end := f.size.Load(), f.end.Load()
	if size < old {
		f.shrunk.Add(1)
	}
	// A request between the two stores sees too small an end at worst.
	if end == old || size <= end {
		f.end.Store(size)
	}
	f.size.Store(size)
	return size, nil
}

// badSize says why an image can't have this size, or "".
func (f *File) badSize(size int64) string {
	switch {
	case size == 0:
		return "is empty: a disk has at least one sector of 512 bytes"
	case size%SectorSize != 0:
		return fmt.Sprintf("has %d bytes, which is not a multiple of 512: not a raw disk image", size)
	case f.direct != nil && !f.readOnly && size%int64(f.direct.block) != 0:
		return fmt.Sprintf("has %d bytes, which is not a multiple of %d, the unit of cache=none here: use another cache mode",
			size, f.direct.block)
	}
	return ""
}

// Flush implements [Flusher]. After the first failure every later Flush
// returns that failure: the kernel may have dropped what it could not write,
// and says so once.
func (f *File) Flush() error {
	if f.readOnly {
		return nil
	}
	if err := f.acquire(); err != nil {
		return f.fail("flush", err)
	}
	defer f.release()
	if err := f.flushed(); err != nil {
		return err
	}
	err := ignoringEINTR(func() error { return unix.Fdatasync(f.fd) })
	if err == nil {
		// Another Flush may have been told what this one was not.
		if err := f.flushed(); err != nil {
			return err
		}
		return f.whole()
	}
	err = f.fail("flush", err)
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	if f.syncErr == nil {
		f.syncErr = err
	}
	return f.syncErr
}

func (f *File) flushed() error {
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	return f.syncErr
}

// whole fails if the file was found, or is now, shorter than its size.
func (f *File) whole() error {
	if err := f.measure(); err != nil {
		return f.fail("flush", err)
	}
	f.sizeMu.Lock()
	end, size := f.end.Load(), f.size.Load()
	f.sizeMu.Unlock()
	if end < size {
		return f.fail("flush", fmt.Errorf("the file was cut off at %d of %d bytes: %w", end, size, io.ErrUnexpectedEOF))
	}
	return nil
}

// measure notes where the file ends if that is inside its size.
func (f *File) measure() error {
	shrunk, size := f.shrunk.Load(), f.size.Load() // before the look: Refresh may find the file larger
	end, err := hostSize(f.fd, f.device)
	if err == nil && end < size {
		f.cutOff(shrunk, end)
	}
	return err
}

// cutOff notes that the file ends at end, as was found when shrunk was what it is
// given as.
func (f *File) cutOff(shrunk uint64, end int64) {
	f.sizeMu.Lock()
	defer f.sizeMu.Unlock()
	if f.shrunk.Load() == shrunk && end < f.end.Load() {
		f.end.Store(end)
	}
}

// fail names the file and what was being done.
func (f *File) fail(what string, err error) error {
	return fmt.Errorf("block: %s: %s: %w", f.path, what, err)
}

func (f *File) failAt(what string, n, off int64, err error) error {
	return fmt.Errorf("block: %s: %s of %d bytes at %d: %w", f.path, what, n, off, err)
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// hostSize is the size of a file or block device now, in bytes.
func hostSize(fd int, device bool) (int64, error) {
	if device {
		return blockDeviceSize(fd)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Size, nil
}
