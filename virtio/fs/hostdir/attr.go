package hostdir

import (
	"hash/maphash"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// validity of names and attributes.
func (f *FS) validity() time.Duration {
	switch f.opts.Cache {
	case CacheNone:
		return 0
	case CacheAlways:
		return 24 * time.Hour
	}
	return time.Second
}

// Inode numbers that the guest sees are unique over all file systems below the
// root: those of the root's own are what they are on the host, others have the
// number of their device in the upper bits, and the lower 32 are always the
// host's (which is what git compares).
const (
	inoBits  = 48
	maxDevs  = 1 << (63 - inoBits)
	inoMixed = 1 << 63
)

// number is the inode number that the guest sees.
func (f *FS) number(id file) uint64 {
	f.mu.Lock()
	dev, ok := f.devs[id.dev]
	if !ok && len(f.devs) < maxDevs {
		dev, ok = uint64(len(f.devs)), true
		f.devs[id.dev] = dev
	}
	f.mu.Unlock()
	if ok && id.ino>>inoBits == 0 {
		return dev<<inoBits | id.ino
	}
	// The device and what is above the lower 32 bits, mixed to 31 bits.
	mixed := maphash.Comparable(f.seed, file{id.dev, id.ino >> 32})
	return inoMixed | mixed>>1&^0xffffffff | id.ino&0xffffffff
}

func (f *FS) shown(owner *fuse.Owner) {
	if o := f.opts.Owner; o != nil {
		if owner.Uid == f.uid {
			owner.Uid = o.UID
		}
		if owner.Gid == f.gid {
			owner.Gid = o.GID
		}
	}
}

// hostUID and hostGID are shown's opposite.
func (f *FS) hostUID(uid uint32) uint32 {
	if o := f.opts.Owner; o != nil && uid == o.UID {
		return f.uid
	}
	return uid
}

func (f *FS) hostGID(gid uint32) uint32 {
	if o := f.opts.Owner; o != nil && gid == o.GID {
		return f.gid
	}
	return gid
}

// attr shows what the host says of a node.
func (f *FS) attr(in *inode, st *unix.Statx_t, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: f.number(fileOf(st)), Size: st.Size, Blocks: st.Blocks,
		Atime: uint64(st.Atime.Sec), Mtime: uint64(st.Mtime.Sec), Ctime: uint64(st.Ctime.Sec),
		Atimensec: st.Atime.Nsec, Mtimensec: st.Mtime.Nsec, Ctimensec: st.Ctime.Nsec,
		Mode: uint32(st.Mode), Nlink: st.Nlink,
		Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		// As the kernel's new_encode_dev packs it.
		Rdev:    st.Rdev_minor&0xff | st.Rdev_major<<8 | st.Rdev_minor&^0xff<<12,
		Blksize: st.Blksize,
	}
	f.shown(&out.Owner)
	if in.hidden {
		out.Nlink = 2
	}
}

// GetAttr implements [fuse.RawFileSystem].
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	var fh uint64
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		fh = in.Fh()
	}
	var st unix.Statx_t
	node, err := f.statNode(in.NodeId, fh, &st)
	if err != nil {
		return status(err)
	}
	f.attr(node, &st, &out.Attr)
	f.unpin(node)
	out.SetTimeout(f.validity())
	return fuse.OK
}

// Statx implements [fuse.RawFileSystem].
func (f *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	var fh uint64
	if in.GetattrFlags&fuse.FUSE_GETATTR_FH != 0 {
		fh = in.Fh
	}
	var st unix.Statx_t
	node, err := f.statNode(in.NodeId, fh, &st)
	if err != nil {
		return status(err)
	}
	var attr fuse.Attr
	f.attr(node, &st, &attr)
	f.unpin(node)
	out.Statx.FromStatx(&st)
	out.Ino, out.Uid, out.Gid, out.Nlink = attr.Ino, attr.Uid, attr.Gid, attr.Nlink
	out.Mask = st.Mask & (unix.STATX_BASIC_STATS | unix.STATX_BTIME)
	out.DevMajor, out.DevMinor = 0, 0 // the guest has its own
	out.Attributes, out.AttributesMask = 0, 0
	out.SetTimeout(f.validity())
	return fuse.OK
}

// statNode finds and pins a node and looks at it, by the handle fh unless that
// is 0.
func (f *FS) statNode(id, fh uint64, st *unix.Statx_t) (*inode, error) {
	in, err := f.node(id)
	if err != nil {
		return nil, err
	}
	if fh != 0 && !in.dir() {
		var h *handle
		if h, err = f.handle(fh, id, false); err == nil {
			err = statFD(h.fd, st)
			f.unref(h)
		}
	} else {
		err = f.stat(in, st)
	}
	if err != nil {
		f.unpin(in)
		return nil, err
	}
	return in, nil
}

// Lookup implements [fuse.RawFileSystem].
func (f *FS) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	dir, err := f.directory(header.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.unpin(dir)
	if dir.hidden {
		return f.none(dir, out)
	}
	fd, err := f.hold(dir)
	if err != nil {
		return status(err)
	}
	var st unix.Statx_t
	err = statAt(fd, name, &st)
	if err == unix.ENOENT {
		f.tell(f.lacks(dir, name))
	} else if err == nil {
		err = f.entry(dir, fd, name, &st, out)
	}
	if err == unix.ENOENT {
		return f.none(dir, out)
	}
	return status(err)
}

// none answers that there is no such name. With a time that it stays so, the answer
// is an entry without a node; an overlay keeps time itself.
func (f *FS) none(dir *inode, out *fuse.EntryOut) fuse.Status {
	if f.opts.Cache == CacheNone || f.opts.Changed != nil && !dir.key.rw {
		return fuse.ENOENT
	}
	*out = fuse.EntryOut{}
	out.SetEntryTimeout(f.validity())
	return fuse.OK
}

// enter looks up a name in a directory and gives the guest a lookup of what it
// finds.
func (f *FS) enter(dir *inode, fd int, name string, out *fuse.EntryOut) error {
	var st unix.Statx_t
	if err := statAt(fd, name, &st); err != nil {
		return err
	}
	return f.entry(dir, fd, name, &st, out)
}

// entry is enter for a file that was looked at already.
func (f *FS) entry(dir *inode, fd int, name string, st *unix.Statx_t, out *fuse.EntryOut) error {
	c := crossing{unborn: dir.unborn}
	if st.Mnt_id != dir.key.mount || st.Mask&unix.STATX_MNT_ID == 0 && fileOf(st).dev != dir.key.dev {
		var err error
		if c, err = f.cross(fd, name, st); err != nil {
			return err
		}
	}
	in, err := f.remember(dir, name, st, c)
	if err != nil {
		return err
	}
	f.fill(in, st, out)
	return nil
}

// cross looks at the file system that a name leads to.
func (f *FS) cross(dir int, name string, st *unix.Statx_t) (crossing, error) {
	fd, err := f.openPath(dir, name, 0)
	if err != nil {
		return crossing{}, err
	}
	defer unix.Close(fd)
	if err := statFD(fd, st); err != nil {
		return crossing{}, err
	}
	kernel, unborn, err := f.kindOf(fd)
	return crossing{kernel: kernel, unborn: unborn}, err
}

// fill tells the guest of a node.
func (f *FS) fill(in *inode, st *unix.Statx_t, out *fuse.EntryOut) {
	out.NodeId = in.id
	out.Generation = in.generation
	f.attr(in, st, &out.Attr)
	t := f.validity()
	out.SetEntryTimeout(t)
	out.SetAttrTimeout(t)
}

// Readlink implements [fuse.RawFileSystem].
func (f *FS) Readlink(_ <-chan struct{}, header *fuse.InHeader) ([]byte, fuse.Status) {
	in, err := f.node(header.NodeId)
	if err != nil {
		return nil, status(err)
	}
	defer f.unpin(in)
	if in.mode != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	g, err := f.grip(in)
	if err != nil {
		return nil, status(err)
	}
	defer f.ungrip(g)
	var buf [maxPath]byte
	n, err := unix.Readlinkat(g.fd, "", buf[:])
	if err != nil {
		return nil, status(err)
	}
	if n == len(buf) {
		return nil, fuse.Status(unix.ENAMETOOLONG)
	}
	return append([]byte(nil), buf[:n]...), fuse.OK
}

// StatFs implements [fuse.RawFileSystem].
func (f *FS) StatFs(_ <-chan struct{}, header *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	in, err := f.node(header.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.unpin(in)
	g, err := f.grip(in)
	if err != nil {
		return status(err)
	}
	defer f.ungrip(g)
	var st unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(g.fd, &st) }); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	return fuse.OK
}

// Access implements [fuse.RawFileSystem]: what vole's user may. A kernel that
// checks permissions itself does not ask.
func (f *FS) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	node, err := f.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.unpin(node)
	if in.Mask&^(fuse.R_OK|fuse.W_OK|fuse.X_OK) != 0 {
		return fuse.EINVAL
	}
	if in.Mask&fuse.W_OK != 0 && !node.key.rw {
		return fuse.EROFS
	}
	g, err := f.grip(node)
	if err != nil {
		return status(err)
	}
	defer f.ungrip(g)
	return status(again(func() error {
		return unix.Faccessat(f.proc, procName(g.fd), in.Mask, unix.AT_EACCESS)
	}))
}
