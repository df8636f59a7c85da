package hostdir

import (
	"math"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// lockOwner has the record locks of one owner, a process of the guest for POSIX
// ones, on one file: as those of an open file description of its own, since all
// of vole is one process to the host.
type lockOwner struct {
	fd     int
	writes bool
	users  int // requests at work with fd; guarded by FS.mu
	ended  bool
}

const (
	lockWait = 10 * time.Second // the longest wait for a lock
	lockPoll = time.Millisecond // the shortest time between two tries
	lockRest = 50 * time.Millisecond
)

// GetLk implements [fuse.RawFileSystem].
func (f *FS) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	if f.opts.Locks != LocksHost {
		return fuse.ENOSYS
	}
	lk, err := flockOf(&in.Lk)
	if err != nil {
		return status(err)
	}
	h, o, err := f.owner(in, true)
	if err != nil {
		return status(err)
	}
	defer f.unref(h)
	defer f.leaveOwner(h.in, o)
	if err := again(func() error { return unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_GETLK, &lk) }); err != nil {
		return status(err)
	}
	out.Lk = fuse.FileLock{Typ: uint32(lk.Type)}
	if lk.Type != unix.F_UNLCK {
		out.Lk.Start = uint64(lk.Start)
		out.Lk.End = math.MaxInt64
		if lk.Len > 0 {
			out.Lk.End = uint64(lk.Start + lk.Len - 1)
		}
	}
	return fuse.OK
}

// SetLk implements [fuse.RawFileSystem].
func (f *FS) SetLk(_ <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.lock(in, nil)
}

// SetLkw implements [fuse.RawFileSystem]. It waits until the lock is free, the
// request is cancelled or Interrupt is called (EINTR), or ten seconds have gone
// by (ENOLCK): over virtio the guest's kernel has no way to cancel a request.
func (f *FS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	st := f.lock(in, nil)
	if st != fuse.EAGAIN {
		return st
	}
	if cancel == nil {
		cancel = make(chan struct{})
	}
	select {
	case f.waits <- struct{}{}:
		defer func() { <-f.waits }()
	default:
		f.complain("more requests than may wait for a lock", "waiting", cap(f.waits))
		return fuse.Status(unix.ENOLCK)
	}
	return f.lock(in, cancel)
}

// lock sets or removes a lock. With cancel it waits for it.
func (f *FS) lock(in *fuse.LkIn, cancel <-chan struct{}) fuse.Status {
	if f.opts.Locks != LocksHost {
		return fuse.ENOSYS
	}
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		h, err := f.handle(in.Fh, in.NodeId, false)
		if err != nil {
			return status(err)
		}
		defer f.unref(h)
		how := unix.LOCK_UN
		switch in.Lk.Typ {
		case unix.F_RDLCK:
			how = unix.LOCK_SH
		case unix.F_WRLCK:
			how = unix.LOCK_EX
		case unix.F_UNLCK:
		default:
			return fuse.EINVAL
		}
		return status(f.await(cancel, func() error { return unix.Flock(h.fd, how|unix.LOCK_NB) }))
	}
	lk, err := flockOf(&in.Lk)
	if err != nil {
		return status(err)
	}
	h, o, err := f.owner(in, lk.Type != unix.F_UNLCK)
	if err != nil {
		return status(err)
	}
	defer f.unref(h)
	if o == nil { // nothing to unlock
		return fuse.OK
	}
	defer f.leaveOwner(h.in, o)
	return status(f.await(cancel, func() error {
		if f.endedOwner(o) {
			return unix.EBADF // closed while it waited
		}
		try := lk
		err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &try)
		if err == unix.EACCES {
			err = unix.EAGAIN
		}
		return err
	}))
}

// await makes a call until it doesn't fail with EAGAIN; once, without cancel.
func (f *FS) await(cancel <-chan struct{}, call func() error) error {
	err := again(call)
	if cancel == nil || err != unix.EAGAIN {
		return err
	}
	end := time.NewTimer(lockWait)
	defer end.Stop()
	f.mu.Lock()
	interrupted := f.interrupted
	f.mu.Unlock()
	pause := lockPoll
	next := time.NewTimer(pause)
	defer next.Stop()
	for {
		select {
		case <-cancel:
			return unix.EINTR
		case <-interrupted:
			return unix.EINTR
		case <-end.C:
			return unix.ENOLCK
		case <-next.C:
		}
		if err := again(call); err != unix.EAGAIN {
			return err
		}
		pause = min(2*pause, lockRest)
		next.Reset(pause)
	}
}

// Interrupt ends all waits for locks now, so that no request in flight takes
// long any more but by the host's fault.
func (f *FS) Interrupt() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.interrupted)
	f.interrupted = make(chan struct{})
}

// flockOf is the lock that a guest asks for.
func flockOf(lk *fuse.FileLock) (unix.Flock_t, error) {
	if lk.Typ > unix.F_UNLCK || lk.Start > math.MaxInt64 || lk.End > math.MaxInt64 || lk.End < lk.Start {
		return unix.Flock_t{}, unix.EINVAL
	}
	l := unix.Flock_t{Type: int16(lk.Typ), Start: int64(lk.Start)}
	if lk.End < math.MaxInt64 { // else to the end of the file, wherever that is
		l.Len = int64(lk.End-lk.Start) + 1
	}
	return l, nil
}

// owner finds the locks of a request's owner; without make they may be nil.
// leaveOwner ends their use, unref that of the handle.
func (f *FS) owner(in *fuse.LkIn, make bool) (*handle, *lockOwner, error) {
	h, err := f.handle(in.Fh, in.NodeId, false)
	if err != nil {
		return nil, nil, err
	}
	f.mu.Lock()
	o := h.in.owners[in.Owner]
	if o != nil {
		o.users++
	}
	f.mu.Unlock()
	if o != nil || !make {
		return h, o, nil
	}
	if o, err = f.newOwner(h, in.Owner); err != nil {
		f.unref(h)
		return nil, nil, err
	}
	return h, o, nil
}

func (f *FS) newOwner(h *handle, id uint64) (*lockOwner, error) {
	f.handleMu.Lock()
	if f.full() {
		f.handleMu.Unlock()
		return nil, unix.ENFILE
	}
	f.owners++
	held.Add(1)
	f.handleMu.Unlock()
	o := &lockOwner{users: 1, writes: h.in.key.rw}
	var err error
	if o.writes {
		o.fd, err = f.reopen(h.fd, unix.O_RDWR)
	}
	if !o.writes || err != nil {
		// A lock for writing then needs a file opened for it.
		o.writes = false
		if o.fd, err = f.reopen(h.fd, unix.O_RDONLY); err != nil {
			o.fd, err = f.reopen(h.fd, unix.O_WRONLY)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && (h.in.gone || f.closed || h.in.open == nil) {
		_ = unix.Close(o.fd)
		err = unix.EBADF
	}
	if err != nil {
		f.fewerOwners()
		return nil, err
	}
	if faster := h.in.owners[id]; faster != nil {
		_ = unix.Close(o.fd)
		f.fewerOwners()
		faster.users++
		return faster, nil
	}
	if h.in.owners == nil {
		h.in.owners = map[uint64]*lockOwner{}
	}
	h.in.owners[id] = o
	return o, nil
}

func (f *FS) fewerOwners() {
	f.handleMu.Lock()
	f.owners--
	held.Add(-1)
	f.handleMu.Unlock()
}

func (f *FS) endedOwner(o *lockOwner) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return o.ended
}

func (f *FS) leaveOwner(in *inode, o *lockOwner) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o.users--
	f.closeOwner(o)
}

// endOwner lets go of all record locks of an owner on a file: it has closed it.
func (f *FS) endOwner(in *inode, id uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := in.owners[id]; o != nil {
		delete(in.owners, id)
		o.ended = true
		f.closeOwner(o)
	}
}

// closeLockOwners lets go of all record locks on a file. f.mu is held.
func (f *FS) closeLockOwners(in *inode) {
	for id, o := range in.owners {
		delete(in.owners, id)
		o.ended = true
		f.closeOwner(o)
	}
}

// closeOwner closes the descriptor of one that has ended, unless a request is at
// work with it. f.mu is held.
func (f *FS) closeOwner(o *lockOwner) {
	if o.ended && o.users == 0 {
		_ = unix.Close(o.fd)
		f.fewerOwners()
	}
}
