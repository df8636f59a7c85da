package block

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// errNoLocks reports a file system without locks.
var errNoLocks = errors.New("the file system can't lock files")

// fcntlLock sets a lock, as setLock does. Tests have others.
type fcntlLock func(fd int, l *unix.Flock_t) error

func setLock(fd int, l *unix.Flock_t) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, l) }

// lock takes an open file description lock over the whole file: shared for
// reading, exclusive for writing. It holds against every other opening of the
// file, in this process and in others, and ends with the descriptor. QEMU's
// locks are of the same kind.
func lock(fd int, exclusive bool, set fcntlLock) error {
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: unix.SEEK_SET}
	if exclusive {
		l.Type = unix.F_WRLCK
	}
	err := ignoringEINTR(func() error { return set(fd, &l) })
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return ErrInUse
	case errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return errNoLocks
	}
	return err
}

// images are those that this process has open, for file systems that can't lock
// them: what a lock would hold against is other openings anywhere in the process, so
// that it can belong to no caller. An image is in it from its opening to the close of
// its descriptor.
var images imageTable

// imageTable has who uses an image: a number of readers, or one writer. Its zero value
// is empty; its methods may be called from any goroutine.
type imageTable struct {
	mu    sync.Mutex
	users map[imageID]int // readers, or -1 for a writer; not 0
}

// imageID tells images apart, whatever their names are.
type imageID struct {
	device   bool // then dev is that of the device itself, as it may have several nodes
	dev, ino uint64
}

func imageIDOf(st *unix.Stat_t) imageID {
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return imageID{device: true, dev: st.Rdev}
	}
	return imageID{dev: st.Dev, ino: st.Ino}
}

// take notes one more user, or returns ErrInUse where a lock would.
func (t *imageTable) take(id imageID, exclusive bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch n := t.users[id]; {
	case n < 0, n > 0 && exclusive:
		return ErrInUse
	case t.users == nil:
		t.users = map[imageID]int{}
	}
	if exclusive {
		t.users[id] = -1
	} else {
		t.users[id]++
	}
	return nil
}

// leave ends one take.
func (t *imageTable) leave(id imageID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.users[id]; n > 1 {
		t.users[id] = n - 1
	} else {
		delete(t.users, id)
	}
}
