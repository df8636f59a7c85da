package hostdir

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Unlink implements [fuse.RawFileSystem].
func (f *FS) Unlink(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return f.remove(header, name, 0)
}

// Rmdir implements [fuse.RawFileSystem].
func (f *FS) Rmdir(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return f.remove(header, name, unix.AT_REMOVEDIR)
}

func (f *FS) remove(header *fuse.InHeader, name string, flags int) fuse.Status {
	dir, err := f.changeable(header.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer f.unpin(dir)
	defer f.wrote(dir.key.mount)
	if dir.rule.kid(name) != nil {
		return fuse.EBUSY // as where something is mounted
	}
	fd, err := f.hold(dir)
	if err != nil {
		return status(err)
	}
	if err := f.movable(fd, name); err != nil {
		return status(err)
	}
	unlink := func() error {
		return again(func() error { return unix.Unlinkat(fd, name, flags) })
	}
	if flags != 0 {
		return status(unlink())
	}
	return status(f.takeName(dir, fd, name, unlink))
}

// takeName calls take, which takes a name away from what has it. If that is a file
// that the guest knows, its node gets a descriptor: a process there that has just
// looked the name up goes on to open it, or to read the link, as it may with any file
// system. It lasts until the guest forgets the node, which it does at once if nobody is
// at work with it. dir is pinned by the caller, and fd is its descriptor.
func (f *FS) takeName(dir *inode, fd int, name string, take func() error) error {
	in, file := f.knownFile(dir, fd, name)
	if in == nil {
		return take()
	}
	defer f.unpin(in)
	if err := take(); err != nil {
		_ = unix.Close(file)
		return err
	}
	f.keep(in, file)
	return nil
}

// knownFile opens the file that has a name, and pins its node. The node is nil if the
// guest knows none.
func (f *FS) knownFile(dir *inode, fd int, name string) (*inode, int) {
	file, err := f.openPath(fd, name, 0)
	if err != nil {
		return nil, -1
	}
	var st unix.Statx_t
	err = statFD(file, &st)
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.keys[keyOf(&st, dir.key.rw)]
	if err != nil || in == nil || in.dir() || in.lookups == 0 || !in.sameBirth(&st) {
		_ = unix.Close(file)
		return nil, -1
	}
	f.pin(in)
	return in, file
}

// movable fails for a name of what is hidden wherever it is.
func (f *FS) movable(dir int, name string) error {
	if len(f.hidden) == 0 {
		return nil
	}
	var st unix.Statx_t
	if err := statAt(dir, name, &st); err != nil {
		return err
	}
	if _, ok := f.hidden[fileOf(&st)]; ok {
		return unix.EBUSY
	}
	return nil
}

// Rename implements [fuse.RawFileSystem].
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	switch in.Flags {
	case 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE:
	default:
		return fuse.EINVAL // a whiteout is a device
	}
	from, err := f.changeable(in.NodeId, oldName)
	if err != nil {
		return status(err)
	}
	defer f.unpin(from)
	to, err := f.changeable(in.Newdir, newName)
	if err != nil {
		return status(err)
	}
	defer f.unpin(to)
	defer f.wrote(to.key.mount)
	if from.rule.kid(oldName) != nil || to.rule.kid(newName) != nil {
		return fuse.EBUSY
	}
	fd1, err := f.hold(from)
	if err != nil {
		return status(err)
	}
	fd2, err := f.hold(to)
	if err != nil {
		return status(err)
	}
	if err := f.movable(fd1, oldName); err != nil {
		return status(err)
	}
	if err := f.movable(fd2, newName); err != nil && err != unix.ENOENT {
		return status(err)
	}
	f.renames.Lock()
	defer f.renames.Unlock()
	rename := func() error {
		return again(func() error { return unix.Renameat2(fd1, oldName, fd2, newName, uint(in.Flags)) })
	}
	if in.Flags == 0 {
		err = f.takeName(to, fd2, newName, rename)
	} else {
		err = rename()
	}
	if err != nil {
		return status(err)
	}
	f.moved(from, oldName, to, fd2, newName)
	if in.Flags == unix.RENAME_EXCHANGE {
		f.moved(to, newName, from, fd1, oldName)
	}
	return fuse.OK
}

// moved notes that what had a name has another one now. f.renames is held.
func (f *FS) moved(from *inode, oldName string, to *inode, fd int, newName string) {
	var st unix.Statx_t
	if err := statAt(fd, newName, &st); err != nil {
		return // moved on already
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.keys[keyOf(&st, to.key.rw)]
	if in == nil || !in.sameBirth(&st) || to.gone {
		return
	}
	if p := (place{from, oldName}); in.place == p && len(in.more) == 0 {
		f.settle(in, to, newName, 1)
		return
	}
	f.settle(in, to, newName, st.Nlink)
	f.unsettle(in, place{from, oldName})
}
