package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// readFile returns what a small file has, at most limit bytes of it. Package os
// would offer the file to its poller first.
func readFile(name string, limit int) (string, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, limit)
	n := 0
	for n < limit {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return string(buf[:n]), nil
}

// writeFile writes text to a file that is there.
func writeFile(name, text string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(text))
	return errors.Join(err, unix.Close(fd))
}

// makeDir makes a directory of exactly that mode, and those above it, unless it is
// there. The umask is 022.
func makeDir(name string, perm uint32) error {
	err := unix.Mkdir(name, perm)
	switch err {
	case unix.EEXIST:
		return nil
	case unix.ENOENT:
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		err = unix.Mkdir(name, perm)
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	if perm&^0o755 == 0 {
		return nil
	}
	return unix.Chmod(name, perm)
}
