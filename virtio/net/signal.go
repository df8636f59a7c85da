package net

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// signal is an eventfd by which the kernel tells of something.
type signal struct {
	f   *os.File
	raw syscall.RawConn
	fd  int
}

func newSignal() (*signal, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("an eventfd: %w", err)
	}
	s := &signal{f: os.NewFile(uintptr(fd), "vhost signal"), fd: fd}
	if s.raw, err = s.f.SyscallConn(); err != nil {
		_ = s.f.Close()
		return nil, err
	}
	return s, nil
}

// serve calls heard whenever there may be a signal, one call after the other, until
// close.
func (s *signal) serve(heard func()) {
	_ = s.raw.Read(func(uintptr) bool {
		heard()
		return false
	})
}

// take reports whether there was a signal since the last take. One goroutine calls it
// at a time, before close.
func (s *signal) take() bool { return takeEventfd(s.fd) }

func (s *signal) close() error { return s.f.Close() }
