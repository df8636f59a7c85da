package hostdir

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maker is a request that makes something new in a directory.
type maker struct {
	f      *FS
	dir    *inode
	fd     int // of dir
	caller *fuse.Caller
}

// begin begins a request that makes a name in a directory. end ends it.
func (f *FS) begin(header *fuse.InHeader, name string) (maker, error) {
	dir, err := f.changeable(header.NodeId, name)
	if err != nil {
		return maker{}, err
	}
	if r := dir.rule.kid(name); r != nil && r.hidden {
		f.unpin(dir)
		return maker{}, unix.EBUSY
	}
	fd, err := f.hold(dir)
	if err != nil {
		f.unpin(dir)
		return maker{}, err
	}
	return maker{f, dir, fd, &header.Caller}, nil
}

func (m *maker) end() {
	m.f.wrote(m.dir.key.mount)
	m.f.unpin(m.dir)
}

// mode is the mode that a new file is to have. umask is the caller's; a default
// ACL of the directory stands in for it.
func (m *maker) mode(mode, umask uint32) (uint32, error) {
	mode &= 0o7777
	if mode&umask&0o777 != 0 {
		acl, err := m.f.defaultACL(m.fd)
		if err != nil {
			return 0, err
		}
		if !acl {
			mode &^= umask & 0o777
		}
	}
	if mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return mode, nil
	}
	var st unix.Statx_t
	if err := statFD(m.fd, &st); err != nil {
		return 0, err
	}
	return m.f.lent(m.caller, st.Mode, st.Gid, mode), nil
}

// unmask gives a new file the bits of its mode that this process's own umask
// has taken away. fd may be O_PATH.
func (m *maker) unmask(fd int, mode uint32, st *unix.Statx_t) error {
	lost := mode &^ uint32(st.Mode) & m.f.umask & 0o777
	if lost == 0 {
		return nil
	}
	// A default ACL takes bits away as well, and then the umask did not.
	if acl, err := m.f.defaultACL(m.fd); err != nil || acl {
		return err
	}
	if err := m.f.chmod(fd, uint32(st.Mode)&0o7777|lost); err != nil {
		return err
	}
	return statFD(fd, st)
}

// make makes a name with call, which is not told of the caller: it is done as
// the caller. Then it gives the guest a lookup of what it made.
func (m *maker) make(name string, kind, mode uint32, out *fuse.EntryOut, call func() error) error {
	if err := m.f.asCaller(m.caller, call); err != nil {
		return err
	}
	var st unix.Statx_t
	if err := statAt(m.fd, name, &st); err != nil {
		return stale(err)
	}
	if kind != unix.S_IFLNK && mode&^uint32(st.Mode)&m.f.umask&0o777 != 0 {
		fd, err := m.f.openPath(m.fd, name, 0)
		if err != nil {
			return stale(err)
		}
		defer unix.Close(fd)
		if err = statFD(fd, &st); err != nil {
			return err
		}
		// The host may have put another file there in between.
		if uint32(st.Mode)&unix.S_IFMT != kind || st.Uid != m.f.maker(m.caller).Uid {
			return unix.ESTALE
		}
		if err := m.unmask(fd, mode, &st); err != nil {
			return err
		}
	}
	return m.f.entry(m.dir, m.fd, name, &st, out)
}

// Mkdir implements [fuse.RawFileSystem].
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	m, err := f.begin(&in.InHeader, name)
	if err != nil {
		return status(err)
	}
	defer m.end()
	mode, err := m.mode(in.Mode&0o1777, in.Umask)
	if err != nil {
		return status(err)
	}
	return status(m.make(name, unix.S_IFDIR, mode, out, func() error { return unix.Mkdirat(m.fd, name, mode) }))
}

// Mknod implements [fuse.RawFileSystem]: regular files, FIFOs and sockets.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind := in.Mode & unix.S_IFMT
	switch kind {
	case 0:
		kind = unix.S_IFREG
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFCHR, unix.S_IFBLK:
		return fuse.EPERM
	default:
		return fuse.EINVAL
	}
	m, err := f.begin(&in.InHeader, name)
	if err != nil {
		return status(err)
	}
	defer m.end()
	mode, err := m.mode(in.Mode, in.Umask)
	if err != nil {
		return status(err)
	}
	return status(m.make(name, kind, mode, out, func() error { return unix.Mknodat(m.fd, name, kind|mode, 0) }))
}

// Symlink implements [fuse.RawFileSystem]. The text is the guest's business.
func (f *FS) Symlink(_ <-chan struct{}, header *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if len(target) == 0 {
		return fuse.ENOENT
	}
	if len(target) >= maxPath {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	m, err := f.begin(header, name)
	if err != nil {
		return status(err)
	}
	defer m.end()
	return status(m.make(name, unix.S_IFLNK, 0, out, func() error { return unix.Symlinkat(target, m.fd, name) }))
}

// Link implements [fuse.RawFileSystem].
func (f *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	m, err := f.begin(&in.InHeader, name)
	if err != nil {
		return status(err)
	}
	defer m.end()
	node, err := f.node(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	defer f.unpin(node)
	if node.dir() {
		return fuse.EPERM
	}
	if !node.key.rw {
		return fuse.EXDEV // as between two mounts
	}
	g, err := f.grip(node)
	if err != nil {
		return status(err)
	}
	defer f.ungrip(g)
	err = again(func() error {
		return unix.Linkat(f.proc, procName(g.fd), m.fd, name, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		return status(err)
	}
	return status(stale(f.enter(m.dir, m.fd, name, out)))
}

// Create implements [fuse.RawFileSystem]. A name that the host made since the
// guest last looked is ESTALE: the guest's kernel then looks again, and checks
// whether the caller may open that.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	m, err := f.begin(&in.InHeader, name)
	if err != nil {
		return status(err)
	}
	defer m.end()
	fd, st, err := m.create(name, in, unix.O_CREAT|unix.O_EXCL)
	if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		return fuse.Status(unix.ESTALE)
	}
	if err != nil {
		return status(err)
	}
	if err := f.entry(m.dir, m.fd, name, &st, &out.EntryOut); err != nil {
		_ = unix.Close(fd)
		return status(err)
	}
	return f.created(fd, in, &st, out)
}

// Tmpfile implements [fuse.RawFileSystem].
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	m, err := f.begin(&in.InHeader, "tmpfile")
	if err != nil {
		return status(err)
	}
	defer m.end()
	fd, st, err := m.create(".", in, unix.O_TMPFILE|in.Flags&unix.O_EXCL)
	if err != nil {
		return status(err)
	}
	node, err := f.nameless(m.dir, &st, m.dir.unborn)
	if err != nil {
		_ = unix.Close(fd)
		return status(err)
	}
	f.fill(node, &st, &out.EntryOut)
	return f.created(fd, in, &st, out)
}

// create makes and opens a regular file.
func (m *maker) create(name string, in *fuse.CreateIn, how uint32) (fd int, st unix.Statx_t, err error) {
	mode, err := m.mode(in.Mode, in.Umask)
	if err != nil {
		return -1, st, err
	}
	if err := m.f.room(); err != nil {
		return -1, st, err
	}
	flags := uint64(openFlags(in.Flags)&^unix.O_TRUNC | how | unix.O_NOCTTY | unix.O_NONBLOCK)
	open := func() (err error) {
		fd, err = openBeneath(m.fd, name, flags, uint64(mode))
		return err
	}
	err = m.f.asCaller(m.caller, open)
	if err == unix.EMFILE || err == unix.ENFILE {
		m.f.shrink()
		err = m.f.asCaller(m.caller, open)
	}
	if err != nil {
		return -1, st, err
	}
	if err = statFD(fd, &st); err == nil {
		err = m.unmask(fd, mode, &st)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// created gives the guest a handle of the file that it was given a lookup of.
func (f *FS) created(fd int, in *fuse.CreateIn, st *unix.Statx_t, out *fuse.CreateOut) fuse.Status {
	node, err := f.node(out.NodeId)
	if err != nil {
		_ = unix.Close(fd)
		return status(err)
	}
	defer f.unpin(node)
	h, err := f.addHandle(node, fd, in.Flags&unix.O_ACCMODE != unix.O_RDONLY, st.Mnt_id)
	if err != nil {
		f.unlookup(node)
		return status(err)
	}
	f.opened(node, h, st, &out.OpenOut)
	return fuse.OK
}
