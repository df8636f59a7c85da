package vsock

import (
	"bytes"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLine is how long a client's first line may be, in bytes.
const maxLine = 32

// sock is a Unix socket as the host's end of a connection. All is guarded by the
// flow's lock.
type sock struct {
	f      *flow
	server *unixServer
	fd     int // -1 before there is one and when it is closed
	id     uint64
	armed  uint32 // what the poller watches for
	line   []byte // of the client, as far as it has come
	called bool   // by a client, which waits for an answer
	// dialing says that a goroutine is connecting. Until it is done the connection
	// counts, whatever the guest does.
	dialing bool

	readable bool // there may be something to read
	eof      bool // nothing more is read: the client has shut its side, or the guest has
	hup      bool // the client is gone
	deaf     bool // it takes nothing more
	wrShut   bool
	burst    int // chains to read into
}

var (
	_ host    = (*sock)(nil)
	_ watched = (*sock)(nil)
)

func newSock(s *unixServer) func(*flow) host {
	return func(f *flow) host { return &sock{f: f, server: s, fd: -1, burst: 1} }
}

// disarmed is a value of armed that is no other's.
const disarmed = ^uint32(0)

// attach gives the socket its descriptor, which it closes if it reports false.
func (s *sock) attach(fd int) bool {
	s.fd = fd
	s.armed = unix.EPOLLIN | unix.EPOLLRDHUP
	id, err := s.server.poll.add(fd, s, s.armed)
	if err != nil {
		s.server.d.warn("vsock: a Unix socket can't be watched", "path", s.server.path, "error", err)
		s.fd = -1
		_ = unix.Close(fd)
		return false
	}
	s.id = id
	return true
}

// arm has the poller tell what is of interest now.
func (s *sock) arm() {
	if s.fd < 0 || s.hup {
		return
	}
	var want uint32
	if !s.readable && !s.eof {
		want |= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	if s.f.buf.n > 0 {
		want |= unix.EPOLLOUT
	}
	if want != s.armed {
		s.armed = want
		s.server.poll.arm(s.id, s.fd, want)
	}
}

// ready implements watched.
func (s *sock) ready(events uint32) {
	f := s.f
	f.mu.Lock()
	s.armed = disarmed
	if s.fd >= 0 {
		s.hup = s.hup || events&(unix.EPOLLHUP|unix.EPOLLERR) != 0
		s.readable = s.readable || events&(unix.EPOLLIN|unix.EPOLLRDHUP) != 0 || s.hup
		if f.state == greeting {
			s.greet()
		}
		switch f.state {
		case greeting, requested:
			if s.hup { // nobody waits for an answer
				f.finish(errRefused, true)
			}
		default:
			s.flush()
			s.shut()
			if s.wants() && f.state == open {
				f.d.enqueue(f, false)
			}
		}
		s.arm()
	}
	f.mu.Unlock()
	f.d.pump(briefly)
}

// greet reads the client's line, and not a byte more.
func (s *sock) greet() {
	var b [maxLine]byte
	f := s.f
	n, _, err := unix.Recvfrom(s.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err == unix.EAGAIN || err == unix.EINTR {
		s.readable = false
		return
	}
	end := bytes.IndexByte(b[:max(n, 0)], '\n')
	if end >= 0 {
		n = end + 1
	}
	if err != nil || n == 0 || len(s.line)+n > maxLine {
		f.finish(errRefused, false)
		return
	}
	if k, err := unix.Read(s.fd, b[:n]); k != n || err != nil {
		f.finish(errRefused, false)
		return
	}
	s.line = append(s.line, b[:n]...)
	s.readable = false
	if end < 0 {
		return
	}
	port, ok := parseConnect(string(s.line))
	if !ok {
		f.finish(errRefused, false)
		return
	}
	f.stopTimer()
	s.line, s.called = nil, true
	if err := f.call(port); err != nil {
		f.finish(err, false)
		return
	}
	f.within(f.d.times.connect, func() { f.finish(syscall.ETIMEDOUT, true) })
}

// parseConnect takes the port from a client's line: "CONNECT", in any case, and a
// decimal number.
func parseConnect(line string) (port uint32, ok bool) {
	words := strings.Fields(line)
	if len(words) != 2 || !strings.EqualFold(words[0], "connect") {
		return 0, false
	}
	n, err := strconv.ParseUint(words[1], 10, 32)
	return uint32(n), err == nil
}

// deliver implements host.
func (s *sock) deliver(vec [][]byte, n int) int {
	if s.hup {
		s.f.shut(shutReceive)
	}
	if s.f.buf.n > 0 || s.hup {
		return 0
	}
	total := 0
	for len(vec) > 0 {
		part := vec[:min(len(vec), batch)]
		vec = vec[len(part):]
		k := s.write(part)
		total += k
		for _, b := range part {
			k -= len(b)
		}
		if k < 0 {
			break
		}
	}
	return total
}

// write writes what the socket takes, without waiting. A client that takes nothing
// any more is the guest's to know.
func (s *sock) write(vec [][]byte) int {
	for {
		n, err := writev(s.fd, vec)
		switch err {
		case nil:
			return n
		case unix.EINTR:
		case unix.EAGAIN:
			return 0
		default:
			s.deaf = true
			s.f.shut(shutReceive)
			return 0
		}
	}
}

// buffered implements host.
func (s *sock) buffered() { s.arm() }

// flush writes what is in the buffer, and shuts or closes the socket behind it if
// that is due.
func (s *sock) flush() {
	f := s.f
	for f.buf.n > 0 && !s.hup && !s.deaf {
		var room [batch][]byte
		vec := f.buf.vec(room[:0])
		want := 0
		for _, b := range vec {
			want += len(b)
		}
		n := s.write(vec)
		f.buf.discard(&f.d.pool, n)
		f.consumed(n)
		if n < want && !s.deaf {
			return
		}
	}
	if s.hup || s.deaf {
		f.shut(shutReceive)
		f.drop()
	}
	switch {
	case f.state == ended:
		s.abandon()
	case f.peerShut&shutSend != 0 && !s.wrShut:
		s.wrShut = true
		_ = unix.Shutdown(s.fd, unix.SHUT_WR)
	}
}

// shut tells the guest that the client is gone, when all that it has left behind is
// sent.
func (s *sock) shut() {
	if s.eof && s.hup && s.f.state == open {
		s.f.shut(shutBoth)
		s.abandon()
	}
}

// wants implements host.
func (s *sock) wants() bool { return s.fd >= 0 && s.readable && !s.eof }

// stalled implements host: the end of a stream needs no credit.
func (s *sock) stalled() bool {
	var b [1]byte
	n, _, err := unix.Recvfrom(s.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if n > 0 && err == nil {
		return true
	}
	s.nothing(err)
	return false
}

// nothing is that a read has brought nothing.
func (s *sock) nothing(err error) {
	switch err {
	case unix.EAGAIN:
		s.readable = false
	case unix.EINTR:
	case nil:
		s.eof = true
		s.f.shut(shutSend)
		s.shut()
	default: // the client is gone, and has left unread what it was sent
		s.hup, s.eof = true, true
		s.f.finish(syscall.ECONNRESET, true)
		return
	}
	s.arm()
}

// send implements host: it reads from the socket straight into the guest's
// buffers, into more of them when there was much the last time.
func (s *sock) send(r *rx, n int) (int, bool) {
	chains, room := r.take(n, s.burst)
	switch {
	case chains == 0:
		return 0, true
	case room == 0:
		return s.sendCopy(r, n), false
	}
	k, err := readv(s.fd, r.iov)
	k = max(k, 0)
	if k == room {
		s.burst = min(2*s.burst, batch)
	} else {
		s.burst = 1
	}
	r.filled(s.f, chains, k)
	switch {
	case k == 0:
		s.nothing(err)
	case k < room && !s.hup: // that was all for now; who is gone has left an end, too
		s.readable = false
		s.arm()
	}
	return k, false
}

// sendCopy is for a buffer with its header in pieces.
func (s *sock) sendCopy(r *rx, n int) int {
	var b [1024]byte
	n = int(min(uint64(n), uint64(len(b)), r.space()))
	if n == 0 {
		r.copied(s.f, nil)
		return 0
	}
	k, err := unix.Read(s.fd, b[:n])
	if k <= 0 {
		r.q.Unpop(1)
		s.nothing(err)
		return 0
	}
	r.copied(s.f, b[:k])
	return k
}

// changed implements host.
func (s *sock) changed() {
	f := s.f
	if s.fd < 0 {
		if f.state == ended {
			s.abandon()
		}
		return
	}
	if f.state == open && s.called {
		s.called = false
		answer := "OK " + strconv.FormatUint(uint64(f.key.hostPort), 10) + "\n"
		if n, err := unix.Write(s.fd, []byte(answer)); n != len(answer) || err != nil {
			f.finish(syscall.ECONNRESET, true)
			return
		}
	}
	if f.peerShut&shutReceive != 0 && !s.eof {
		s.eof = true
		_ = unix.Shutdown(s.fd, unix.SHUT_RD)
	}
	s.flush()
	s.shut()
	if f.state == open && s.wants() {
		f.d.enqueue(f, false)
	}
	s.arm()
}

// abandon implements host.
func (s *sock) abandon() {
	if s.fd >= 0 {
		s.server.poll.remove(s.id)
		_ = unix.Close(s.fd)
		s.fd = -1
	}
	if !s.f.done && !s.dialing {
		s.f.closed()
	}
}
