package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockedTemp is a temporary file in the cache that is also a lock: whoever
// holds the flock of the file that has the name may write it. It goes away by
// being renamed to its final name or by discard; one that a crash left behind
// is taken over by the next who wants it.
type lockedTemp struct {
	f    *os.File
	path string
	done bool
}

const (
	lockPollMin = 2 * time.Millisecond
	lockPollMax = 100 * time.Millisecond
)

// lockTemp opens and locks dir/name, empty. It waits for another holder until
// ctx ends.
func lockTemp(ctx context.Context, dir, name string) (*lockedTemp, error) {
	path := filepath.Join(dir, name)
	poll := time.NewTimer(0)
	defer poll.Stop()
	for wait := lockPollMin; ; wait = min(2*wait, lockPollMax) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-poll.C:
		}
		t, err := tryLockTemp(path)
		if t != nil || err != nil {
			return t, err
		}
		poll.Reset(wait)
	}
}

// tryLockTemp returns nil and no error when another holds the file.
func tryLockTemp(path string) (*lockedTemp, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	// The last holder may have renamed or removed the file before its lock
	// came free: then what is locked here is not what has the name.
	mine, err := f.Stat()
	if err == nil {
		var named os.FileInfo
		if named, err = os.Lstat(path); err == nil && !os.SameFile(mine, named) {
			err = os.ErrNotExist
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		f.Close()
		return nil, nil
	}
	t := &lockedTemp{f: f, path: path}
	if err == nil {
		err = f.Truncate(0)
	}
	if err != nil {
		t.discard()
		return nil, err
	}
	return t, nil
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// fill makes b the file's contents, on disk.
func (t *lockedTemp) fill(b []byte) error {
	if _, err := t.f.Write(b); err != nil {
		return err
	}
	return t.f.Sync()
}

// publish gives the file, already synced, its final name. The lock stays held
// until discard.
func (t *lockedTemp) publish(path string) error {
	if err := os.Rename(t.path, path); err != nil {
		return err
	}
	t.done = true
	return nil
}

// discard removes the file, unless it was published, and unlocks it. It may be
// called again.
func (t *lockedTemp) discard() {
	if !t.done {
		t.done = true
		os.Remove(t.path)
	}
	t.f.Close()
}

// syncDir makes renames in dir last. File systems that can't sync a directory
// are no worse off than without.
func syncDir(dir string) {
	if f, err := os.Open(dir); err == nil {
		f.Sync()
		f.Close()
	}
}
