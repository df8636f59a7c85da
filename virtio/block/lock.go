package block

import (
	"errors"

	"golang.org/x/sys/unix"
)

// lock takes an open file description lock over the whole file: shared for
// reading, exclusive for writing. It holds against every other opening of the
// file, in this process and in others, and ends with the descriptor. QEMU's
// locks are of the same kind.
func lock(fd int, exclusive bool) error {
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: unix.SEEK_SET}
	if exclusive {
		l.Type = unix.F_WRLCK
	}
	err := ignoringEINTR(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l) })
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return ErrInUse
	case errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		// A file system without locks: the image is usable all the same.
		return nil
	}
	return err
}
