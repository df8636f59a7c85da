package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// The formats of [OpenOptions].
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
)

// COW says where an overlay keeps what is written over an image.
type COW uint8

const (
	// COWNone writes to the image itself.
	COWNone COW = iota
	// COWMemory keeps changes in this process's memory.
	COWMemory
	// COWFile keeps changes in a sparse file without a name, which is gone
	// with its last user however that ends.
	COWFile
)

// OpenOptions is a disk as a user names it.
type OpenOptions struct {
	// Path of a regular file or block device.
	Path string
	// Format is FormatRaw, FormatQcow2, or "" for a raw image that does not
	// begin like a qcow2 image.
	Format string
	// ReadOnly refuses writes. It can go with COW: nothing is kept then.
	ReadOnly bool
	// Cache is how the image itself is written and read.
	Cache CacheMode
	// COW keeps changes elsewhere until Close and then drops them; the image
	// itself is opened for reading.
	COW COW
	// COWDir is the directory of COWFile; "" is [os.TempDir].
	COWDir string
	// COWLimit bounds the data of COWMemory, in bytes; 0 is no bound.
	COWLimit int64
}

// Open opens an image and locks it: any number of readers, or one writer. A
// refusal is one sentence that names the file and wraps [ErrImage], and
// [ErrInUse] where the lock is why. What is returned implements [io.Closer],
// [Geometry], [Vectored], [Locking] and, if [CanWrite] says so, every interface for
// writing. Where the file system has no locks, that holds within this process only.
func Open(o OpenOptions) (Image, error) { return o.open(setLock) }

func (o *OpenOptions) open(set fcntlLock) (Image, error) {
	switch o.Format {
	case "", FormatRaw, FormatQcow2:
	default:
		return nil, refuse(o.Path, nil, "format %q is neither raw nor qcow2", o.Format)
	}
	if o.COW > COWFile || o.Cache > NoCache {
		return nil, refuse(o.Path, nil, "COW is %d and Cache %d: no such modes", o.COW, o.Cache)
	}
	readOnly := o.ReadOnly || o.COW != COWNone
	if o.Format == FormatQcow2 && !readOnly {
		return nil, refuse(o.Path, ErrReadOnly, "a qcow2 image can't be written: add ,ro to read it only or ,cow to drop changes at the end")
	}
	f, err := openFile(o.Path, readOnly, o.Cache, set)
	if err != nil {
		return nil, err
	}
	img, err := o.on(f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return img, nil
}

// on makes the image that o describes out of the open file. On an error the
// file is still the caller's.
func (o *OpenOptions) on(f *File) (Image, error) {
	var img Image = f
	if o.Format == FormatQcow2 {
		q, err := openQcow2(f)
		if err != nil {
			return nil, err
		}
		img = q
	} else {
		if why := f.badSize(f.Size()); why != "" {
			return nil, refuse(f.path, nil, "%s", why)
		}
		if o.Format == "" {
			if err := f.refuseQcow2(); err != nil {
				return nil, err
			}
		}
	}
	if o.ReadOnly || o.COW == COWNone {
		return img, nil
	}
	upper, err := o.upper(img)
	if err != nil {
		return nil, err
	}
	return NewOverlay(img, upper), nil
}

// upper is the empty image that takes an overlay's changes.
func (o *OpenOptions) upper(base Image) (Writable, error) {
	if o.COW == COWMemory {
		m := NewMemory(base.Size())
		m.SetLimit(o.COWLimit)
		return m, nil
	}
	dir := o.COWDir
	if dir == "" {
		dir = os.TempDir()
	}
	return newScratch(dir, base.Size())
}

// qcow2Magic begins every qcow2 image.
const qcow2Magic = "QFI\xfb"

// refuseQcow2 fails if a raw image was meant to be a qcow2 image, maybe. A
// guest can write these bytes: the look must never lead to more than this.
func (f *File) refuseQcow2() error {
	var magic [SectorSize]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil {
		return refuse(f.path, err, "can't be read: %v", err)
	}
	if string(magic[:len(qcow2Magic)]) == qcow2Magic {
		return refuse(f.path, nil, "begins like a qcow2 image and no format was named: write ,format=qcow2, or ,format=raw if it is not one")
	}
	return nil
}

// openFile opens and locks a file or block device of any size.
func openFile(path string, readOnly bool, cache CacheMode, set fcntlLock) (*File, error) {
	if path == "" {
		return nil, refuse(`""`, nil, "no file is named")
	}
	// Opening some files does something: look first.
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, refuseErrno(path, readOnly, err)
	}
	if err := refuseKind(path, st.Mode); err != nil {
		return nil, err
	}
	f := &File{path: path, readOnly: readOnly, cache: cache, device: st.Mode&unix.S_IFMT == unix.S_IFBLK,
		logical: SectorSize, physical: 4096}
	// Nonblocking only for the time of opening, should it be a FIFO by now.
	flags := unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_LARGEFILE
	if !readOnly {
		flags |= unix.O_RDWR
		if f.device {
			flags |= unix.O_EXCL // nobody else's, and not mounted
		}
	}
	switch cache {
	case Writethrough:
		flags |= unix.O_DSYNC
	case NoCache:
		flags |= unix.O_DIRECT
	}
	err := ignoringEINTR(func() (err error) {
		f.fd, err = unix.Open(path, flags, 0)
		return err
	})
	if err != nil {
		return nil, refuseErrno(path, readOnly, err, cache)
	}
	if err := f.setUp(&st, flags, set); err != nil {
		_ = f.shut()
		return nil, err
	}
	return f, nil
}

// setUp checks, locks and measures the file that was just opened.
func (f *File) setUp(before *unix.Stat_t, flags int, set fcntlLock) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return refuseErrno(f.path, f.readOnly, err)
	}
	if st.Mode&unix.S_IFMT != before.Mode&unix.S_IFMT {
		return refuse(f.path, nil, "turned into another kind of file while it was opened")
	}
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags&^unix.O_NONBLOCK); err != nil {
		return refuseErrno(f.path, f.readOnly, err)
	}
	f.id = imageIDOf(&st)
	if images.take(f.id, !f.readOnly) != nil {
		return f.inUse()
	}
	f.held = true
	switch err := lock(f.fd, !f.readOnly, set); {
	case err == nil:
		f.locked = true
	case errors.Is(err, ErrInUse):
		return f.inUse()
	case !errors.Is(err, errNoLocks): // without locks the image is usable all the same
		return refuse(f.path, err, "can't be locked: %v", err)
	}
	if f.device {
		f.logical = ioctlSize(f.fd, unix.BLKSSZGET, SectorSize)
		f.physical = max(f.logical, ioctlSize(f.fd, unix.BLKPBSZGET, 4096))
	}
	if f.cache == NoCache {
		block, address, ok := directAlignment(f.fd)
		if !ok {
			return refuse(f.path, nil, "can't be used with cache=none on this file system: use another cache mode")
		}
		f.direct = newDirect(block, address)
		f.physical = max(f.physical, block)
	}
	size, err := hostSize(f.fd, f.device)
	if err != nil {
		return refuseErrno(f.path, f.readOnly, err)
	}
	f.size.Store(size)
	f.end.Store(size)
	f.prompt.learn(f.fd, f.cache == NoCache, f.cache == Writethrough)
	return nil
}

func (f *File) inUse() error {
	if f.readOnly {
		return refuse(f.path, ErrInUse, "is in use: it is open for writing elsewhere")
	}
	return refuse(f.path, ErrInUse, "is in use: it is open elsewhere, and a disk that is written must be open once only (,ro and ,cow share it)")
}

// ioctlSize asks a block device for a size, a power of two of 512 or more.
func ioctlSize(fd int, req uint, otherwise int) int {
	n, err := unix.IoctlGetInt(fd, req)
	if err != nil || n < SectorSize || n&(n-1) != 0 {
		return otherwise
	}
	return n
}

func refuseKind(path string, mode uint32) error {
	kind := ""
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFBLK:
		return nil
	case unix.S_IFDIR:
		kind = "a directory"
	case unix.S_IFIFO:
		kind = "a FIFO"
	case unix.S_IFCHR:
		kind = "a character device"
	case unix.S_IFSOCK:
		kind = "a socket"
	default:
		kind = fmt.Sprintf("a file of type %#o", mode&unix.S_IFMT)
	}
	return refuse(path, nil, "is %s, and a disk image is a regular file or a block device", kind)
}

// refuseErrno says in words what the host refused with. cache is given where
// O_DIRECT may be the reason.
func refuseErrno(path string, readOnly bool, err error, cache ...CacheMode) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse(path, err, "does not exist")
	case errors.Is(err, fs.ErrPermission):
		if readOnly {
			return refuse(path, err, "may not be read: %v", err)
		}
		return refuse(path, err, "may not be written: %v (,ro reads it only)", err)
	case errors.Is(err, unix.EROFS):
		return refuse(path, err, "is on a read-only file system: add ,ro, or ,cow to drop changes at the end")
	case errors.Is(err, unix.EBUSY):
		return refuse(path, errors.Join(ErrInUse, err), "is in use: the device is mounted or open elsewhere")
	case errors.Is(err, unix.EINVAL) && len(cache) > 0 && cache[0] == NoCache:
		return refuse(path, err, "can't be used with cache=none on this file system: use another cache mode")
	}
	return refuse(path, err, "can't be opened: %v", err)
}
