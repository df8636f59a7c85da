package vsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPath is the longest path of a Unix socket, in bytes (unix(7)).
	maxPath = 107
	// acceptPause is how long a listener rests that could not accept, for want of
	// descriptors or memory.
	acceptPause = 100 * time.Millisecond
	// dialPause is how long to wait before a Unix socket whose listener has its
	// hands full is tried again.
	dialPause = 10 * time.Millisecond
)

// unixConns counts the connections with a Unix socket in all devices of this process:
// they have one limit of descriptors.
var unixConns atomic.Int64

// minUnixConns is how many there may be however low the limit is.
const minUnixConns = 16

// mostUnixConns is a sixteenth of RLIMIT_NOFILE: shares and the user network, which need
// more, have shares of it too.
func mostUnixConns() int64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return minUnixConns
	}
	return max(minUnixConns, int64(min(r.Cur, 1<<30))/16)
}

// take counts a connection, until it is released, if there is room. d.mu is held.
func (s *unixServer) take() bool {
	if unixConns.Add(1) > s.most {
		unixConns.Add(-1)
		return false
	}
	return true
}

// unixServer is a device's way to other programs: the socket at path for
// connections to the guest, and those at path_PORT for connections from it.
type unixServer struct {
	d    *Device
	path string
	poll *poller
	most int64 // connections with a Unix socket in all devices; guarded by d.mu

	fd   int // guarded by d.mu; -1 when closed
	id   uint64
	node unix.Stat_t // of the socket's file
}

// ServeUnix makes a Unix socket at path and serves it until Close, which removes
// it. Who connects sends "CONNECT PORT\n", with a decimal port, within 30 s; once
// the guest has accepted, they are answered "OK PORT\n", with the host's port, and
// the stream begins. If the guest refuses or does not answer within 10 s, the
// socket is closed. Connections from the guest to a port that has no Go listener go
// to the socket at path_PORT, and are refused if nobody listens there.
//
// The path may have up to 107 bytes, and nothing may exist there; such errors wrap
// ErrConfig. A device serves one path. There are as many connections by Unix sockets as
// Options.MaxConns, but in all devices of this process no more than a sixteenth of
// RLIMIT_NOFILE; one more is closed, or refused to the guest.
func (d *Device) ServeUnix(path string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	p, err := newPoller()
	if err != nil {
		return fmt.Errorf("vsock: %s: %w", path, err)
	}
	s := &unixServer{d: d, path: path, poll: p, most: mostUnixConns(), fd: -1}
	if err := s.listen(); err != nil {
		return errors.Join(err, p.close())
	}
	d.mu.Lock()
	refused := error(nil)
	switch {
	case d.closed:
		refused = fmt.Errorf("vsock: %s: %w", path, errClosed)
	case d.unix != nil:
		refused = fmt.Errorf("%w: %s: the device serves %s already", ErrConfig, path, d.unix.path)
	default:
		if s.id, err = p.add(s.fd, s, unix.EPOLLIN); err != nil {
			refused = fmt.Errorf("vsock: %s: %w", path, err)
		} else {
			d.unix = s
		}
	}
	d.mu.Unlock()
	if refused == nil {
		return nil
	}
	return errors.Join(refused, s.close(), p.close())
}

// CheckPath says why ServeUnix could not make a socket at path, as far as that can be
// known without making one. Errors wrap ErrConfig.
func CheckPath(path string) error {
	switch {
	case path == "":
		return fmt.Errorf("%w: the path of the Unix socket is empty", ErrConfig)
	case len(path) > maxPath:
		return fmt.Errorf("%w: %s: the path of a Unix socket has at most %d bytes, and this has %d", ErrConfig, path, maxPath, len(path))
	case strings.IndexByte(path, 0) >= 0 || path[0] == '@':
		return fmt.Errorf("%w: %q: the Unix socket must be a file", ErrConfig, path)
	}
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		return existing(path)
	case !errors.Is(err, fs.ErrNotExist):
		return unmakable(path, err)
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return unmakable(path, err)
	}
	return nil
}

func unmakable(path string, err error) error {
	var of *fs.PathError
	if errors.As(err, &of) {
		err = of.Err // it is about path, too
	}
	return fmt.Errorf("%w: %s: the Unix socket can't be made: %w", ErrConfig, path, err)
}

func existing(path string) error {
	return fmt.Errorf("%w: %s: %w: remove it, or name another path for the Unix socket", ErrConfig, path, fs.ErrExist)
}

// listen makes the socket.
func (s *unixServer) listen() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("vsock: %s: socket: %w", s.path, err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: s.path})
	switch {
	case err == unix.EADDRINUSE:
		return errors.Join(existing(s.path), unix.Close(fd))
	case err != nil:
		return errors.Join(unmakable(s.path, err), unix.Close(fd))
	}
	s.fd = fd
	if err = unix.Lstat(s.path, &s.node); err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("vsock: %s: %w", s.path, err), s.close())
	}
	return nil
}

// close ends the listening and removes the file, if it is the one that was made.
func (s *unixServer) close() error {
	s.d.mu.Lock()
	fd := s.fd
	s.fd = -1
	s.d.mu.Unlock()
	if fd < 0 {
		return nil
	}
	s.poll.remove(s.id)
	var errs []error
	var now unix.Stat_t
	if unix.Lstat(s.path, &now) == nil && now.Dev == s.node.Dev && now.Ino == s.node.Ino {
		if err := unix.Unlink(s.path); err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("vsock: %s: the Unix socket can't be removed: %w", s.path, err))
		}
	}
	if err := unix.Close(fd); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// acceptMost is how many clients are accepted between two looks at the other
// sockets.
const acceptMost = 16

// ready implements watched: there are clients to accept.
func (s *unixServer) ready(uint32) {
	for range acceptMost {
		s.d.mu.Lock()
		if s.fd < 0 {
			s.d.mu.Unlock()
			return
		}
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		s.d.mu.Unlock()
		switch err {
		case nil:
			s.greet(fd)
			continue
		case unix.EINTR, unix.ECONNABORTED:
			continue
		case unix.EAGAIN:
		default:
			s.d.warn("vsock: a client of the Unix socket can't be accepted", "path", s.path, "error", err)
			time.AfterFunc(acceptPause, s.arm)
			return
		}
		break
	}
	s.arm()
}

func (s *unixServer) arm() {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if s.fd >= 0 {
		s.poll.arm(s.id, s.fd, unix.EPOLLIN)
	}
}

// greet begins with a client, which has to say where to.
func (s *unixServer) greet(fd int) {
	f, err := s.d.newFlow(greeting, key{}, newSock(s))
	if err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, ErrTooMany) {
			s.d.warn("vsock: a client of the Unix socket is turned away: there are too many connections", "path", s.path, "connections", s.d.max)
		}
		return
	}
	s.begin(f, fd)
}

// begin waits for the line of f's client, unless the device was closed since f was
// made.
func (s *unixServer) begin(f *flow, fd int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.state != greeting: // Close was first, and nobody would close fd any more
		_ = unix.Close(fd)
		return
	case !f.host.(*sock).attach(fd):
		f.fail(errClosed)
		return
	}
	f.within(s.d.times.greeting, func() { f.finish(os.ErrDeadlineExceeded, false) })
}

// connect connects a guest's request to the socket of its port. It is the work of
// a goroutine: the file system may take its time.
func (s *unixServer) connect(f *flow) {
	fd, err := s.dial(s.path+"_"+strconv.FormatUint(uint64(f.key.hostPort), 10), f)
	f.mu.Lock()
	f.host.(*sock).dialing = false
	switch {
	case err != nil:
		if f.state == opening {
			f.finish(errRefused, true)
		}
	case f.state != opening: // the guest has given up
		_ = unix.Close(fd)
	case f.host.(*sock).attach(fd):
		f.state, f.established = open, true
		f.post(sendResponse)
	default:
		f.finish(errRefused, true)
	}
	f.host.changed()
	f.mu.Unlock()
	s.d.pump(briefly)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
		s.d.warn("vsock: the guest can't be connected to a Unix socket", "path", s.path, "port", f.key.hostPort, "error", err)
	}
}

func (s *unixServer) dial(path string, f *flow) (int, error) {
	if len(path) > maxPath {
		return -1, fmt.Errorf("%s: the path of a Unix socket has at most %d bytes: %w", path, maxPath, syscall.ENAMETOOLONG)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	end := time.NewTimer(s.d.times.connect)
	defer end.Stop()
	for {
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN: // its backlog is full
			select {
			case <-time.After(dialPause):
				if f.is(opening) {
					continue
				}
			case <-end.C:
			case <-s.d.closing:
			}
		}
		_ = unix.Close(fd)
		return -1, err
	}
}

// is reports whether the state is s.
func (f *flow) is(s state) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state == s
}
