package hostdir

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// SetAttr implements [fuse.RawFileSystem].
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	node, err := f.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.unpin(node)
	if !node.key.rw || node.hidden {
		return fuse.EROFS
	}
	g := grip{fd: -1}
	if fh, ok := in.GetFh(); ok && !node.dir() {
		g.open, err = f.handle(fh, in.NodeId, false)
		if err == nil {
			g.fd = g.open.fd
		}
	} else {
		g, err = f.grip(node)
	}
	if err != nil {
		return status(err)
	}
	defer f.ungrip(g)
	err = f.setAttr(node, &g, in)
	var st unix.Statx_t
	serr := statFD(g.fd, &st)
	f.wrote(st.Mnt_id)
	if err == nil {
		err = serr
	}
	if err != nil {
		return status(err)
	}
	f.attr(node, &st, &out.Attr)
	out.SetTimeout(f.validity())
	return fuse.OK
}

// setAttr changes what is asked for: the owner first, for that may clear bits of
// the mode, and the times last, for all else changes them.
func (f *FS) setAttr(node *inode, g *grip, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		if err := f.chown(node, g.fd, in); err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if node.mode == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		if err := f.chmod(g.fd, mode); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
			if err := f.killBits(g.fd); err != nil {
				return err
			}
		}
		if err := f.truncate(node, g, size); err != nil {
			return err
		}
	}
	return f.setTimes(g.fd, in)
}

func (f *FS) chown(node *inode, fd int, in *fuse.SetAttrIn) error {
	uid, gid := -1, -1
	if u, ok := in.GetUID(); ok {
		if u == math.MaxUint32 {
			return unix.EINVAL
		}
		uid = int(f.hostUID(u))
	}
	if g, ok := in.GetGID(); ok {
		if g == math.MaxUint32 {
			return unix.EINVAL
		}
		gid = int(f.hostGID(g))
	}
	return again(func() error {
		return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
	})
}

// truncate cuts or lengthens a regular file.
func (f *FS) truncate(node *inode, g *grip, size uint64) error {
	switch {
	case node.dir():
		return unix.EISDIR
	case node.mode != unix.S_IFREG, size > math.MaxInt64:
		return unix.EINVAL
	}
	if g.open != nil && g.open.writes {
		return again(func() error { return unix.Ftruncate(g.fd, int64(size)) })
	}
	fd, err := f.openFile(g.fd, 0, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return again(func() error { return unix.Ftruncate(fd, int64(size)) })
}

func (f *FS) setTimes(fd int, in *fuse.SetAttrIn) error {
	const any = fuse.FATTR_ATIME | fuse.FATTR_MTIME
	if in.Valid&any == 0 {
		return nil
	}
	pick := func(is, now uint32, sec uint64, nsec uint32) (unix.Timespec, error) {
		switch {
		case in.Valid&is == 0:
			return unix.Timespec{Nsec: unix.UTIME_OMIT}, nil
		case in.Valid&now != 0:
			return unix.Timespec{Nsec: unix.UTIME_NOW}, nil
		case nsec >= 1e9:
			return unix.Timespec{}, unix.EINVAL
		}
		return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}, nil
	}
	atime, err := pick(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec)
	if err != nil {
		return err
	}
	mtime, err := pick(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec)
	if err != nil {
		return err
	}
	ts := []unix.Timespec{atime, mtime}
	return again(func() error { return unix.UtimesNanoAt(f.proc, procName(fd), ts, 0) })
}
