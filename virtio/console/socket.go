package console

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path of a Unix socket, in bytes: sun_path of unix(7)
// without its end.
const maxPath = 107

// acceptPause is how long after a failure the next client is waited for.
const acceptPause = 100 * time.Millisecond

// ErrSocket reports a path at which there can be no socket.
var ErrSocket = errors.New("console: socket")

// Socket listens at path on a Unix stream socket and returns a port without a name
// that is connected to it; the caller gives it one, or makes it a console. Nothing
// may be at path, and what Socket has made there the device's Close removes again.
// Errors wrap ErrSocket and, as far as there is one, the system's.
//
// One client is served at a time; others wait in the listener's backlog until it is
// gone and the guest has taken what it sent. The guest is told of each as the host
// opening and closing the port. A client that has only stopped sending is still
// there: it gets what the guest sends until it closes the connection. What
// the guest sends while nobody is connected, or to a client that does not take
// bytes any more, is thrown away, and so is at the end what a client has not read. A
// client that is connected and does not read makes the guest wait.
//
// The socket's mode follows the process's umask.
func Socket(path string) (Port, error) {
	ln, err := bind(path)
	if err != nil {
		return Port{}, fmt.Errorf("%w %s: %w", ErrSocket, path, err)
	}
	s := &socket{ln: ln, path: path, gone: make(chan struct{}), connected: func(bool) {}}
	if s.made, err = os.Lstat(path); err != nil {
		return Port{}, fmt.Errorf("%w %s: %w", ErrSocket, path, errors.Join(err, ln.Close()))
	}
	return Port{In: s, Out: s, Closer: s}, nil
}

func bind(path string) (*net.UnixListener, error) {
	switch {
	case path == "":
		return nil, errors.New("no path")
	case len(path) > maxPath:
		return nil, fmt.Errorf("the path has %d bytes: a socket's can have %d", len(path), maxPath)
	case path[0] == '@' || path[0] == 0:
		return nil, errors.New("the path begins with a sign that means no file: put ./ before it")
	}
	switch _, err := os.Lstat(path); {
	case err == nil:
		return nil, fmt.Errorf("%w: remove it if nothing uses it any more", fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	ln.SetUnlinkOnClose(false) // somebody may have put another there by then
	return ln, nil
}

// socket is both streams of a port on a Unix socket. Read is called by one goroutine,
// Write by one other.
type socket struct {
	ln        *net.UnixListener
	path      string
	made      fs.FileInfo // what is at path
	connected func(bool)  // tells the device; it learns of a client's end from Read
	gone      chan struct{}

	mu     sync.Mutex
	client *net.UnixConn // nil without one
	mute   bool          // the client takes no bytes any more
	closed bool
}

// Read reads from the client, waiting for one. It is errHungUp once a client is
// gone, and net.ErrClosed after Close.
func (s *socket) Read(p []byte) (int, error) {
	s.mu.Lock()
	c := s.client
	s.mu.Unlock()
	if c == nil {
		var err error
		if c, err = s.accept(); err != nil {
			return 0, err
		}
		s.connected(true)
	}
	n, err := c.Read(p)
	if err == nil {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		awaitHangUp(c)
	}
	s.mu.Lock()
	s.client = nil
	over := s.closed
	s.mu.Unlock()
	_ = c.Close() // nothing is lost: it takes nothing and gives nothing
	if over {
		return n, net.ErrClosed
	}
	return n, errHungUp
}

// accept waits for the next client. A host that has no descriptors left, say, may
// have some later.
func (s *socket) accept() (*net.UnixConn, error) {
	for {
		c, err := s.ln.AcceptUnix()
		s.mu.Lock()
		over := s.closed
		if err == nil && !over {
			s.client, s.mute = c, false
		}
		s.mu.Unlock()
		switch {
		case over && err == nil:
			return nil, errors.Join(net.ErrClosed, c.Close())
		case over || errors.Is(err, net.ErrClosed):
			return nil, net.ErrClosed
		case err == nil:
			return c, nil
		}
		t := time.NewTimer(acceptPause)
		select {
		case <-t.C:
		case <-s.gone:
			t.Stop()
		}
	}
}

// awaitHangUp waits until a client that has stopped sending has closed its end, or c
// is closed.
func awaitHangUp(c *net.UnixConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		return err != nil || n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
}

// Write writes to the client, and to nobody if there is none. It does not fail: that
// a client is gone is for Read to find.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	c := s.client
	if s.mute {
		c = nil
	}
	s.mu.Unlock()
	if c == nil {
		return len(p), nil
	}
	if _, err := c.Write(p); err != nil {
		s.mu.Lock()
		s.mute = s.mute || s.client == c
		s.mu.Unlock()
	}
	return len(p), nil
}

// Close ends every Read and Write and removes the socket, if it is still the one that
// Socket made.
func (s *socket) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	c := s.client
	s.mu.Unlock()
	if !first {
		return nil
	}
	close(s.gone)
	var errs []error
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.made) {
		errs = append(errs, os.Remove(s.path))
	}
	errs = append(errs, s.ln.Close())
	if c != nil {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) { // Read may have closed it
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
