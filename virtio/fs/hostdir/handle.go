package hostdir

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// handle is an open file or directory of the guest.
type handle struct {
	id     uint64
	in     *inode
	fd     int // open for reading or writing; -1 for a directory that shows empty
	writes bool
	mount  uint64 // that it is in

	// refs counts the table and the requests at work; who takes it to zero
	// closes fd, so that no request meets another file's descriptor.
	refs atomic.Int64

	newer, older *handle // of the same node; guarded by FS.mu

	dirMu sync.Mutex
	pos   int64 // of the directory's descriptor
}

// handle finds the handle of a request about a node. unref ends its use.
func (f *FS) handle(id, node uint64, dir bool) (*handle, error) {
	f.handleMu.RLock()
	defer f.handleMu.RUnlock()
	h := f.handles[id]
	if h == nil || h.in.id != node || h.in.dir() != dir {
		return nil, unix.EBADF
	}
	h.refs.Add(1)
	return h, nil
}

func (f *FS) unref(h *handle) {
	if h.refs.Add(-1) == 0 && h.fd >= 0 {
		_ = unix.Close(h.fd)
	}
}

// held counts the handles, and the owners of record locks, of all shares: they have
// one limit of descriptors.
var held atomic.Int64

// full says whether there is no room for one handle more. f.handleMu is held.
func (f *FS) full() bool {
	return len(f.handles)+f.owners >= f.limits.MaxHandles || held.Load() >= f.limits.shared
}

// room fails if the guest has as many handles as it may. It may be wrong by the
// number of requests in flight.
func (f *FS) room() error {
	f.handleMu.RLock()
	n, full := len(f.handles)+f.owners, f.full()
	f.handleMu.RUnlock()
	if full {
		f.complain("the guest holds as many handles as it may", "handles", n)
		return unix.ENFILE
	}
	return nil
}

// addHandle makes a handle of an open descriptor in a mount for a node, pinned by the
// caller. On an error the descriptor is closed.
func (f *FS) addHandle(in *inode, fd int, writes bool, mount uint64) (*handle, error) {
	h := &handle{in: in, fd: fd, writes: writes, mount: mount}
	h.refs.Store(1)
	f.mu.Lock()
	if in.gone || f.closed {
		f.mu.Unlock()
		f.unref(h)
		return nil, unix.ESTALE
	}
	if h.older = in.open; h.older != nil {
		h.older.newer = h
	}
	in.open = h
	f.mu.Unlock()

	f.handleMu.Lock()
	if f.full() {
		f.handleMu.Unlock()
		f.unlinkHandle(h)
		f.unref(h)
		return nil, unix.ENFILE
	}
	f.lastHandle++
	h.id = f.lastHandle
	f.handles[h.id] = h
	held.Add(1)
	f.handleMu.Unlock()
	return h, nil
}

// unlinkHandle takes a handle from its node.
func (f *FS) unlinkHandle(h *handle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.newer != nil {
		h.newer.older = h.older
	} else {
		h.in.open = h.older
	}
	if h.older != nil {
		h.older.newer = h.newer
	}
	h.newer, h.older = nil, nil
	if h.in.open == nil {
		f.closeLockOwners(h.in)
	}
	f.drop(h.in)
}

// removeHandle ends a handle.
func (f *FS) removeHandle(id, node uint64, dir bool) *handle {
	f.handleMu.Lock()
	h := f.handles[id]
	if h == nil || h.in.id != node || h.in.dir() != dir {
		f.handleMu.Unlock()
		return nil
	}
	delete(f.handles, id)
	held.Add(-1)
	f.handleMu.Unlock()
	f.unlinkHandle(h)
	return h
}
