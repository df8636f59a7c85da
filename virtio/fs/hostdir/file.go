package hostdir

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// openFlags are the flags of a guest's open that are the host's business. What
// else there is (O_DIRECT, O_APPEND, …) its kernel deals with.
func openFlags(flags uint32) uint32 {
	return flags & (unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME)
}

// Open implements [fuse.RawFileSystem].
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	node, err := f.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.unpin(node)
	switch node.mode {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return fuse.EISDIR
	case unix.S_IFLNK:
		return fuse.Status(unix.ELOOP)
	default:
		return fuse.EACCES // the guest's kernel has FIFOs and sockets of its own
	}
	flags := openFlags(in.Flags)
	access := flags & unix.O_ACCMODE
	if access == unix.O_ACCMODE {
		return fuse.EINVAL
	}
	writes := access != unix.O_RDONLY
	if (writes || flags&unix.O_TRUNC != 0) && !node.key.rw {
		return fuse.EROFS
	}
	if err := f.room(); err != nil {
		return status(err)
	}
	g, err := f.grip(node)
	if err != nil {
		return status(err)
	}
	defer f.ungrip(g)
	if flags&unix.O_TRUNC != 0 && in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		if err := f.killBits(g.fd); err != nil {
			return status(err)
		}
	}
	fd, err := f.openFile(g.fd, in.Flags, flags)
	if err != nil {
		return status(err)
	}
	if flags&unix.O_TRUNC != 0 || !g.own {
		err = statFD(fd, &g.st)
	}
	if flags&unix.O_TRUNC != 0 {
		f.wrote(g.st.Mnt_id)
	}
	if err != nil {
		_ = unix.Close(fd)
		return status(err)
	}
	h, err := f.addHandle(node, fd, writes, g.st.Mnt_id)
	if err != nil {
		return status(err)
	}
	f.opened(node, h, &g.st, out)
	return fuse.OK
}

// openFile opens the regular file that fd refers to.
func (f *FS) openFile(fd int, asked, flags uint32) (int, error) {
	n, err := f.reopen(fd, int(flags))
	if err == unix.EMFILE || err == unix.ENFILE {
		f.shrink()
		n, err = f.reopen(fd, int(flags))
	}
	if err == unix.EPERM {
		// O_NOATIME is for the owner, a file with the append-only attribute for
		// who appends.
		n, err = f.reopen(fd, int(flags&^unix.O_NOATIME|asked&unix.O_APPEND))
	}
	return n, err
}

// opened tells the guest of a handle of its own.
func (f *FS) opened(in *inode, h *handle, st *unix.Statx_t, out *fuse.OpenOut) {
	out.Fh = h.id
	switch f.opts.Cache {
	case CacheNone:
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	case CacheAlways:
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	case CacheAuto:
		if f.unchanged(in, st) {
			out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		}
	}
	if !h.writes && f.opts.Locks == LocksGuest {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH
	}
}

// unchanged says whether a file is what it was when it was last opened, and
// notes what it is.
func (f *FS) unchanged(in *inode, st *unix.Statx_t) bool {
	v := settled(st)
	f.mu.Lock()
	defer f.mu.Unlock()
	same := in.seen == v && v != version{}
	in.seen = v
	return same
}

// settled is the version of a file, or zero: one that has changed just now may
// change once more without a change of its times, whose clock ticks every 10 ms or
// so.
func settled(st *unix.Statx_t) version {
	v := version{st.Mtime.Sec, st.Ctime.Sec, st.Mtime.Nsec, st.Ctime.Nsec, st.Size}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		return version{}
	}
	const enough = 50e6
	if age := (now.Sec-v.csec)*1e9 + now.Nsec - int64(v.cnsec); age < enough && age > -3600e9 {
		return version{}
	}
	return v
}

// Release implements [fuse.RawFileSystem].
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	h := f.removeHandle(in.Fh, in.NodeId, false)
	if h == nil {
		return
	}
	f.unref(h)
}

// reading is a read that is done when there is a buffer for it, so that the
// bytes go straight to the guest.
type reading struct {
	f   *FS
	h   *handle
	off int64
	n   int
}

// Read implements [fuse.RawFileSystem].
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.Offset > math.MaxInt64 {
		return nil, fuse.EINVAL
	}
	h, err := f.handle(in.Fh, in.NodeId, false)
	if err != nil {
		return nil, status(err)
	}
	return &reading{f, h, int64(in.Offset), min(int(in.Size), len(buf))}, fuse.OK
}

// Size implements [fuse.ReadResult].
func (r *reading) Size() int { return r.n }

// Done implements [fuse.ReadResult].
func (r *reading) Done() {
	if r.h != nil {
		r.f.unref(r.h)
		r.h = nil
	}
}

// Bytes implements [fuse.ReadResult].
func (r *reading) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, err := r.h.readAt(buf[:min(r.n, len(buf))], r.off)
	return buf[:n], status(err)
}

// Readv reads into the guest's own buffers.
func (r *reading) Readv(dst [][]byte) (int, fuse.Status) {
	total, off := 0, r.off
	for _, buf := range dst {
		n, err := r.h.readAt(buf, off)
		if err != nil {
			return 0, status(err)
		}
		total += n
		if n < len(buf) {
			break
		}
		off += int64(n)
	}
	return total, fuse.OK
}

// readAt fills buf but for the end of the file. The guest takes a short read for
// that end, so that what the host can't read in full is an error.
func (h *handle) readAt(buf []byte, off int64) (int, error) {
	buf = buf[:min(int64(len(buf)), math.MaxInt64-off)]
	done := 0
	for done < len(buf) {
		n, err := unix.Pread(h.fd, buf[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return done, nil
		default:
			done += n
		}
	}
	return done, nil
}

// Write implements [fuse.RawFileSystem].
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return f.Writev(cancel, in, [][]byte{data})
}

// Writev implements [fuse.RawFileSystem].
func (f *FS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if in.Offset > math.MaxInt64 {
		return 0, fuse.EINVAL
	}
	h, err := f.handle(in.Fh, in.NodeId, false)
	if err != nil {
		return 0, status(err)
	}
	defer f.unref(h)
	if !h.writes {
		return 0, fuse.EBADF
	}
	defer f.wrote(h.mount)
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := f.killBits(h.fd); err != nil {
			return 0, status(err)
		}
	}
	appends := in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0
	left := int(in.Size)
	total, off := 0, int64(in.Offset)
	for _, buf := range data {
		buf = buf[:min(left, len(buf))]
		n, err := h.writeAt(buf, off, appends)
		total += n
		off += int64(n)
		left -= n
		if err != nil && total == 0 {
			return 0, status(err)
		}
		if n < len(buf) {
			break
		}
	}
	return uint32(total), fuse.OK
}

// writeAt writes buf, or as much of it as the host takes.
func (h *handle) writeAt(buf []byte, off int64, appends bool) (int, error) {
	done := 0
	for done < len(buf) {
		var n int
		var err error
		if appends {
			n, err = unix.Pwritev2(h.fd, [][]byte{buf[done:]}, off+int64(done), unix.RWF_APPEND)
			if err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.EINVAL {
				appends = false // the guest's own idea of the end has to do
				continue
			}
		} else {
			n, err = unix.Pwrite(h.fd, buf[done:], off+int64(done))
		}
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// killBits takes the bits from a file that lend its owner's and group's rights,
// before the content changes by somebody who may not keep them.
func (f *FS) killBits(fd int) error {
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		return err
	}
	mode := uint32(st.Mode)
	if mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	kept := mode &^ unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		kept &^= unix.S_ISGID // without x it was mandatory locking's mark
	}
	if kept == mode {
		return nil
	}
	return f.chmod(fd, kept&0o7777)
}

// killFor is killBits for requests that can't say whether the caller may keep them.
func (f *FS) killFor(header *fuse.InHeader, fd int) error {
	if header.Uid == 0 {
		return nil
	}
	return f.killBits(fd)
}

// chmod sets a mode; fd may be O_PATH.
func (f *FS) chmod(fd int, mode uint32) error {
	return again(func() error { return unix.Fchmodat(f.proc, procName(fd), mode, 0) })
}

// Flush implements [fuse.RawFileSystem]: a process has closed a file.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h, err := f.handle(in.Fh, in.NodeId, false)
	if err != nil {
		return status(err)
	}
	defer f.unref(h)
	if f.opts.Locks == LocksHost {
		f.endOwner(h.in, in.LockOwner)
	}
	if !h.writes {
		return fuse.OK
	}
	// A file system of a network says at close what it could not write.
	fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fuse.OK
	}
	if err := unix.Close(fd); err != unix.EINTR {
		return status(err)
	}
	return fuse.OK
}

// Fsync implements [fuse.RawFileSystem].
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := f.handle(in.Fh, in.NodeId, false)
	if err != nil {
		return status(err)
	}
	defer f.unref(h)
	return status(h.sync(in))
}

func (h *handle) sync(in *fuse.FsyncIn) error {
	const dataOnly = 1
	return again(func() error {
		if in.FsyncFlags&dataOnly != 0 {
			return unix.Fdatasync(h.fd)
		}
		return unix.Fsync(h.fd)
	})
}

// Fallocate implements [fuse.RawFileSystem].
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	const known = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	if in.Mode&^known != 0 {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if in.Offset > math.MaxInt64 || in.Length > math.MaxInt64 {
		return fuse.EINVAL
	}
	h, err := f.handle(in.Fh, in.NodeId, false)
	if err != nil {
		return status(err)
	}
	defer f.unref(h)
	if !h.writes {
		return fuse.EBADF
	}
	defer f.wrote(h.mount)
	if err := f.killFor(&in.InHeader, h.fd); err != nil {
		return status(err)
	}
	return status(again(func() error {
		return unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length))
	}))
}

// Lseek implements [fuse.RawFileSystem]: only data and holes are to be looked
// for on the host.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE || in.Offset > math.MaxInt64 {
		return fuse.EINVAL
	}
	h, err := f.handle(in.Fh, in.NodeId, false)
	if err != nil {
		return status(err)
	}
	defer f.unref(h)
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	if err != nil {
		return status(err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// maxCopy bounds what one CopyFileRange copies, in bytes: it can't be stopped.
const maxCopy = 16 << 20

// CopyFileRange implements [fuse.RawFileSystem].
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if in.Flags != 0 || in.OffIn > math.MaxInt64 || in.OffOut > math.MaxInt64 {
		return 0, fuse.EINVAL
	}
	from, err := f.handle(in.FhIn, in.NodeId, false)
	if err != nil {
		return 0, status(err)
	}
	defer f.unref(from)
	to, err := f.handle(in.FhOut, in.NodeIdOut, false)
	if err != nil {
		return 0, status(err)
	}
	defer f.unref(to)
	if !to.writes {
		return 0, fuse.EBADF
	}
	defer f.wrote(to.mount)
	if err := f.killFor(&in.InHeader, to.fd); err != nil {
		return 0, status(err)
	}
	var n int
	err = again(func() (err error) {
		// Not more than there is: the offsets are moved by the call.
		offIn, offOut := int64(in.OffIn), int64(in.OffOut)
		n, err = unix.CopyFileRange(from.fd, &offIn, to.fd, &offOut, int(min(in.Len, maxCopy)), 0)
		return err
	})
	if err == unix.ENOSYS {
		err = unix.EXDEV // the guest's kernel then copies itself
	}
	if err != nil {
		return 0, status(err)
	}
	return uint32(n), fuse.OK
}

// Ioctl implements [fuse.RawFileSystem]: there are none.
func (f *FS) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(unix.ENOTTY)
}
