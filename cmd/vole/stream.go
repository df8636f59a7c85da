package main

import (
	"errors"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// safeChunk is how much is written at once to a descriptor that could not be made non-blocking:
// little enough that a pipe (PIPE_BUF) or terminal that poll calls writable takes it without waiting.
const safeChunk = 256

// backgroundPoll is how often a reader of a terminal looks whether it has come to the foreground.
// A shell need not send SIGCONT to a job that was running when it is brought forward.
const backgroundPoll = 250 * time.Millisecond

// stream is a descriptor that vole was given (stdin, stdout) as an io.Reader and io.Writer whose
// waits end at a deadline, which may be set from another goroutine while the wait is on. One
// goroutine may read and one goroutine may write at a time.
//
// O_NONBLOCK belongs to the open file description, which the descriptor's other holders (the shell,
// the rest of a pipeline) share, so it is never set on an inherited one. Pipes and terminals are
// opened anew through /proc/self/fd where that is allowed; sockets have MSG_DONTWAIT; everything
// else (files) does not wait anyway.
type stream struct {
	fd       int
	owned    bool
	kind     streamKind
	deadline atomic.Int64
	wake     int

	// hold, if set, is asked before each use of the descriptor; while it says true the
	// descriptor is left alone.
	hold func() bool
}

type streamKind uint8

const (
	plain       streamKind = iota // never waits, or not for long: files and most devices
	nonblocking                   // our own description with O_NONBLOCK
	socket                        // MSG_DONTWAIT for each transfer
	blocking                      // a pipe or terminal that could not be opened anew
)

// newStream takes hold of fd. flag is os.O_RDONLY or os.O_WRONLY. The caller keeps fd open until
// the stream is closed.
func newStream(fd int, flag int) (*stream, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	s := &stream{fd: fd, wake: wake}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		s.kind = socket
	case unix.S_IFIFO:
		s.reopen(flag)
	case unix.S_IFCHR:
		if isTerminal(fd) {
			s.reopen(flag)
		}
	}
	return s, nil
}

// reopen replaces an inherited pipe or terminal by a non-blocking description of the same object.
func (s *stream) reopen(flag int) {
	s.kind = blocking
	path := "/proc/self/fd/" + strconv.Itoa(s.fd)
	fd, err := unix.Open(path, flag|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == nil {
		s.fd, s.owned, s.kind = fd, true, nonblocking
	}
}

// Close releases what the stream opened, not the descriptor that it was made from. No read or write
// may be under way.
func (s *stream) Close() error {
	if s.owned {
		_ = unix.Close(s.fd)
	}
	return os.NewSyscallError("close", unix.Close(s.wake))
}

// SetReadDeadline makes a Read that waits, and every later one, fail with os.ErrDeadlineExceeded
// from t on. The zero time takes the deadline away. Safe from any goroutine.
func (s *stream) SetReadDeadline(t time.Time) error { return s.setDeadline(t) }

// SetWriteDeadline is SetReadDeadline for Write. A stream is used in one direction only.
func (s *stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(t) }

func (s *stream) setDeadline(t time.Time) error {
	ns := int64(0)
	if !t.IsZero() {
		ns = max(t.UnixNano(), 1)
	}
	s.deadline.Store(ns)
	return s.poke()
}

// poke makes a goroutine that waits look at the deadline and at hold again.
func (s *stream) poke() error {
	_, err := unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return os.NewSyscallError("write", err)
}

// Read waits for input and returns what is there. The end of input and a terminal that was hung up
// are io.EOF.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if err := s.wait(unix.POLLIN); err != nil {
			return 0, err
		}
		var n int
		var err error
		if s.kind == socket {
			n, _, err = unix.Recvfrom(s.fd, p, unix.MSG_DONTWAIT)
		} else {
			n, err = unix.Read(s.fd, p)
		}
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err == unix.EIO && s.hold != nil:
			// Out of the foreground since hold was asked (SIGTTIN is ignored), or hung up.
			if !s.hold() {
				return 0, io.EOF
			}
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n <= 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write writes all of p, waiting as long as the other side takes.
func (s *stream) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if err := s.wait(unix.POLLOUT); err != nil {
			return done, err
		}
		chunk := p[done:]
		var n int
		var err error
		switch s.kind {
		case socket:
			n, err = unix.SendmsgN(s.fd, chunk, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		case blocking:
			n, err = unix.Write(s.fd, chunk[:min(len(chunk), safeChunk)])
		default:
			n, err = unix.Write(s.fd, chunk)
		}
		switch {
		case err == unix.EINTR || err == unix.EAGAIN:
		case err != nil:
			return done, os.NewSyscallError("write", err)
		default:
			done += n
		}
	}
	return done, nil
}

// wait returns when the descriptor can be used, or with os.ErrDeadlineExceeded.
func (s *stream) wait(events int16) error {
	for {
		timeout := -1
		if ns := s.deadline.Load(); ns != 0 {
			left := time.Until(time.Unix(0, ns))
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			timeout = milliseconds(left)
		}
		fds := [2]unix.PollFd{{Fd: int32(s.wake), Events: unix.POLLIN}, {Fd: int32(s.fd), Events: events}}
		use := fds[:]
		if s.hold != nil && s.hold() {
			use = fds[:1]
			if t := milliseconds(backgroundPoll); timeout < 0 || timeout > t {
				timeout = t
			}
		}
		if _, err := unix.Poll(use, timeout); err != nil && err != unix.EINTR && err != unix.EAGAIN {
			return os.NewSyscallError("poll", err)
		} else if err != nil {
			continue
		}
		if fds[0].Revents != 0 {
			var b [8]byte
			_, _ = unix.Read(s.wake, b[:])
			continue
		}
		if fds[1].Revents != 0 {
			return nil
		}
	}
}

// milliseconds rounds up, so that a deadline has passed when the poll for it ends.
func milliseconds(d time.Duration) int {
	ms := (d + time.Millisecond - 1) / time.Millisecond
	return int(min(ms, 1<<30))
}
