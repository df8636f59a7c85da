package hostdir

import (
	"bytes"
	"encoding/binary"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	xattrACL        = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
	xattrCapability = "security.capability"
	xattrUser       = "user."
	maxXattr        = 64 << 10 // of a value, and of a list: XATTR_SIZE_MAX, XATTR_LIST_MAX
)

// readable says whether the guest may see an attribute of this name.
func readable(name string) bool {
	return name == xattrACL || name == xattrDefaultACL || name == xattrCapability || strings.HasPrefix(name, xattrUser)
}

// xattrPath is a path that leads to the file of a descriptor, a link or not.
func xattrPath(fd int) string { return "/proc/self/fd/" + procName(fd) }

// defaultACL says whether what is made in a directory inherits an ACL.
func (f *FS) defaultACL(fd int) (bool, error) {
	var n int
	err := again(func() (err error) {
		n, err = unix.Getxattr(xattrPath(fd), xattrDefaultACL, nil)
		return err
	})
	switch err {
	case nil:
		return n > 0, nil
	case unix.ENODATA, unix.EOPNOTSUPP:
		return false, nil
	}
	return false, err
}

// GetXAttr implements [fuse.RawFileSystem].
func (f *FS) GetXAttr(_ <-chan struct{}, header *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !f.opts.Xattr {
		return 0, fuse.ENOSYS
	}
	if !readable(name) {
		return 0, fuse.ENODATA
	}
	node, g, err := f.gripNode(header.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer f.unpin(node)
	defer f.ungrip(g)
	if node.hidden {
		return 0, fuse.ENODATA
	}
	dest = dest[:min(len(dest), maxXattr)]
	var n int
	err = again(func() (err error) {
		n, err = unix.Getxattr(xattrPath(g.fd), name, dest)
		return err
	})
	if err == unix.ERANGE {
		// The size that would do is part of the answer.
		if n, err = unix.Getxattr(xattrPath(g.fd), name, nil); err == nil {
			return uint32(n), fuse.ERANGE
		}
	}
	if err != nil {
		return 0, status(err)
	}
	if len(dest) > 0 && (name == xattrACL || name == xattrDefaultACL) {
		f.mapACL(dest[:n], func(o *fuse.Owner) { f.shown(o) })
	}
	return uint32(n), fuse.OK
}

// ListXAttr implements [fuse.RawFileSystem].
func (f *FS) ListXAttr(_ <-chan struct{}, header *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if !f.opts.Xattr {
		return 0, fuse.ENOSYS
	}
	node, g, err := f.gripNode(header.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer f.unpin(node)
	defer f.ungrip(g)
	if node.hidden {
		return 0, fuse.OK
	}
	path := xattrPath(g.fd)
	var buf []byte
	for tries := 0; ; tries++ {
		n, err := unix.Listxattr(path, nil)
		if err == nil && n > 0 {
			buf = make([]byte, min(n, maxXattr))
			n, err = unix.Listxattr(path, buf)
		}
		if (err == unix.ERANGE || err == unix.EINTR) && tries < 8 {
			continue
		}
		if err != nil {
			return 0, status(err)
		}
		buf = buf[:n]
		break
	}
	list := buf[:0]
	for len(buf) > 0 {
		end := bytes.IndexByte(buf, 0) + 1
		if end == 0 {
			break
		}
		if readable(string(buf[:end-1])) {
			list = append(list, buf[:end]...)
		}
		buf = buf[end:]
	}
	if len(dest) == 0 {
		return uint32(len(list)), fuse.OK
	}
	if len(list) > len(dest) {
		return uint32(len(list)), fuse.ERANGE
	}
	copy(dest, list)
	return uint32(len(list)), fuse.OK
}

// SetXAttr implements [fuse.RawFileSystem].
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	node, g, err := f.gripXattr(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer f.unpin(node)
	defer f.ungrip(g)
	defer f.wroteTo(g.fd)
	if in.Flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0 || int(in.Size) > len(data) {
		return fuse.EINVAL
	}
	if in.Size > maxXattr {
		return fuse.Status(unix.E2BIG)
	}
	// The data is the request's own, and is not to be changed.
	data = bytes.Clone(data[:in.Size])
	if name == xattrACL || name == xattrDefaultACL {
		f.mapACL(data, func(o *fuse.Owner) { o.Uid, o.Gid = f.hostUID(o.Uid), f.hostGID(o.Gid) })
	}
	err = again(func() error { return unix.Setxattr(xattrPath(g.fd), name, data, int(in.Flags)) })
	if err == nil && name == xattrACL && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		var st unix.Statx_t
		if err = statFD(g.fd, &st); err == nil && st.Mode&unix.S_ISGID != 0 {
			err = f.chmod(g.fd, uint32(st.Mode)&0o7777&^unix.S_ISGID)
		}
	}
	return status(err)
}

// RemoveXAttr implements [fuse.RawFileSystem].
func (f *FS) RemoveXAttr(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	node, g, err := f.gripXattr(header.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer f.unpin(node)
	defer f.ungrip(g)
	defer f.wroteTo(g.fd)
	return status(again(func() error { return unix.Removexattr(xattrPath(g.fd), name) }))
}

// gripNode finds a node, pins it and gets a grip on it.
func (f *FS) gripNode(id uint64) (*inode, grip, error) {
	node, err := f.node(id)
	if err != nil {
		return nil, grip{}, err
	}
	g, err := f.grip(node)
	if err != nil {
		f.unpin(node)
		return nil, grip{}, err
	}
	return node, g, nil
}

// gripXattr is gripNode for a request that changes an attribute.
func (f *FS) gripXattr(id uint64, name string) (*inode, grip, error) {
	if !f.opts.Xattr {
		return nil, grip{}, unix.EOPNOTSUPP
	}
	if name == xattrCapability || !readable(name) {
		return nil, grip{}, unix.EOPNOTSUPP
	}
	node, g, err := f.gripNode(id)
	if err == nil && (!node.key.rw || node.hidden) {
		f.ungrip(g)
		f.unpin(node)
		return nil, grip{}, unix.EROFS
	}
	return node, g, err
}

// mapACL changes the users and groups in an ACL, as the kernel's
// include/uapi/linux/posix_acl_xattr.h lays it out: a version of four bytes,
// then entries of a tag and permissions of two bytes each, and an id of four.
func (f *FS) mapACL(acl []byte, change func(*fuse.Owner)) {
	if f.opts.Owner == nil || len(acl) < 4 {
		return
	}
	const user, group = 0x02, 0x08
	for acl = acl[4:]; len(acl) >= 8; acl = acl[8:] {
		id := binary.LittleEndian.Uint32(acl[4:])
		o := fuse.Owner{Uid: id, Gid: id}
		change(&o)
		switch binary.LittleEndian.Uint16(acl) {
		case user:
			binary.LittleEndian.PutUint32(acl[4:], o.Uid)
		case group:
			binary.LittleEndian.PutUint32(acl[4:], o.Gid)
		}
	}
}
