package hostdir

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// SyncFS has the host write what it holds of the share: FUSE_SYNCFS (50), which
// go-fuse has no method for. It covers the file systems of the root and of every
// directory that was used lately.
func (f *FS) SyncFS() fuse.Status {
	root, err := f.node(fuse.FUSE_ROOT_ID)
	if err != nil {
		return status(err)
	}
	defer f.unpin(root)
	f.mu.Lock()
	held := []*inode{root}
	devs := map[uint64]bool{root.key.dev: true}
	for in := f.lru.newest; in != nil; in = in.older {
		if !devs[in.key.dev] && in.key.rw && !in.hidden {
			devs[in.key.dev] = true
			f.pin(in)
			held = append(held, in)
		}
	}
	f.mu.Unlock()
	for _, in := range held {
		if e := f.syncAround(in); err == nil {
			err = e
		}
		if in != root {
			f.unpin(in)
		}
	}
	return status(err)
}

// syncAround writes out the file system of a directory that has a descriptor.
func (f *FS) syncAround(in *inode) error {
	dir, err := f.hold(in)
	if err != nil {
		return err
	}
	fd, err := openBeneath(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return again(func() error { return unix.Syncfs(fd) })
}
