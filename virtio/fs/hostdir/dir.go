package hostdir

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// OpenDir implements [fuse.RawFileSystem].
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	node, err := f.directory(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.unpin(node)
	if err := f.room(); err != nil {
		return status(err)
	}
	fd := -1
	if !node.hidden {
		dir, err := f.hold(node)
		if err != nil {
			return status(err)
		}
		const flags = unix.O_RDONLY | unix.O_DIRECTORY
		fd, err = openBeneath(dir, ".", flags, 0)
		if err == unix.EMFILE || err == unix.ENFILE {
			f.shrink()
			fd, err = openBeneath(dir, ".", flags, 0)
		}
		if err != nil {
			return status(err)
		}
	}
	h, err := f.addHandle(node, fd, false, node.key.mount)
	if err != nil {
		return status(err)
	}
	out.Fh = h.id
	if f.opts.Cache == CacheAlways {
		out.OpenFlags |= fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// ReleaseDir implements [fuse.RawFileSystem].
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	if h := f.removeHandle(in.Fh, in.NodeId, true); h != nil {
		f.unref(h)
	}
}

// FsyncDir implements [fuse.RawFileSystem].
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := f.handle(in.Fh, in.NodeId, true)
	if err != nil {
		return status(err)
	}
	defer f.unref(h)
	if h.fd < 0 {
		return fuse.OK
	}
	return status(h.sync(in))
}

// ReadDir implements [fuse.RawFileSystem].
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(_ *inode, _ int, e *fuse.DirEntry) bool { return out.AddDirEntry(*e) }, 1)
}

// ReadDirPlus implements [fuse.RawFileSystem]. An entry that can't be looked up
// is listed without a node: the guest will look it up if it cares.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(dir *inode, fd int, e *fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(*e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." || dir.hidden {
			return true
		}
		if err := f.enter(dir, fd, e.Name, entry); err != nil {
			*entry = fuse.EntryOut{}
			return true
		}
		out.FixMode(entry.Mode)
		return true
	}, 5)
}

// list calls add with the entries of a directory from the request's offset until
// add has no more room, or there are many. An entry of the host takes spread
// times as much room in the answer.
func (f *FS) list(in *fuse.ReadIn, add func(dir *inode, fd int, e *fuse.DirEntry) bool, spread uint32) fuse.Status {
	if in.Offset > math.MaxInt64 {
		return fuse.EINVAL
	}
	h, err := f.handle(in.Fh, in.NodeId, true)
	if err != nil {
		return status(err)
	}
	defer f.unref(h)
	node, err := f.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer f.unpin(node)
	if h.fd < 0 {
		return f.listHidden(node, in.Offset, add)
	}
	fd, err := f.hold(node)
	if err != nil {
		return status(err)
	}
	h.dirMu.Lock()
	defer h.dirMu.Unlock()
	if off := int64(in.Offset); off != h.pos {
		h.pos = -1
		if _, err := unix.Seek(h.fd, off, unix.SEEK_SET); err != nil {
			return status(err)
		}
		h.pos = off
	}
	const least, most = 1024, 32 << 10 // 1,024 bytes have room for any entry
	buf := make([]byte, min(max(in.Size/spread, least), most))
	var n int
	err = again(func() (err error) {
		n, err = unix.Getdents(h.fd, buf)
		return err
	})
	if err != nil {
		h.pos = -1
		return status(err)
	}
	buf = buf[:n]
	for len(buf) > 0 {
		var e fuse.DirEntry
		var size int
		if e, size, err = entryOf(buf); err != nil {
			h.pos = -1
			return status(err)
		}
		buf = buf[size:]
		ino := e.Ino
		e.Ino = f.number(file{node.key.dev, ino})
		if e.Name == ".." {
			e.Ino = f.above(node)
		}
		if !add(node, fd, &e) {
			h.pos = -1
			return fuse.OK
		}
		h.pos = int64(e.Off)
	}
	return fuse.OK
}

// above is the inode number of the directory above one, as the guest sees it.
func (f *FS) above(in *inode) uint64 {
	f.mu.Lock()
	up := in.parent
	if up == nil {
		up = in
	}
	f.mu.Unlock()
	return f.number(up.key.file)
}

// listHidden lists a directory that shows as an empty one.
func (f *FS) listHidden(in *inode, off uint64, add func(*inode, int, *fuse.DirEntry) bool) fuse.Status {
	for i, name := range []string{".", ".."} {
		if uint64(i) < off {
			continue
		}
		e := fuse.DirEntry{Name: name, Mode: unix.S_IFDIR, Off: uint64(i) + 1, Ino: f.number(in.key.file)}
		if i == 1 {
			e.Ino = f.above(in)
		}
		if !add(in, -1, &e) {
			break
		}
	}
	return fuse.OK
}

// entryOf takes the first entry from what getdents64 has written: struct
// linux_dirent64 of the kernel's include/linux/dirent.h.
func entryOf(buf []byte) (e fuse.DirEntry, size int, err error) {
	const header = 19
	if len(buf) < header {
		return e, 0, unix.EIO
	}
	size = int(binary.NativeEndian.Uint16(buf[16:]))
	if size < header || size > len(buf) {
		return e, 0, unix.EIO
	}
	name := buf[header:size]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return fuse.DirEntry{
		Ino:  binary.NativeEndian.Uint64(buf),
		Off:  binary.NativeEndian.Uint64(buf[8:]),
		Mode: uint32(buf[18]) << 12,
		Name: string(name),
	}, size, nil
}
