package net

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVector is how many buffers one system call takes (UIO_MAXIOV).
const maxVector = 1024

// transfer is a readv or writev that is prepared: its arguments are in it, since a
// closure for each call would be allocated. One goroutine uses it.
type transfer struct {
	call  func(fd uintptr) bool // for a syscall.RawConn: it never waits
	vec   [maxVector]unix.Iovec
	count int
	n     int
	errno unix.Errno
}

// fill takes the buffers, and then trap if there is one; it returns how many bytes
// there are without trap.
func (t *transfer) fill(bufs [][]byte, trap []byte) (room int) {
	t.count = 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if t.count == maxVector-1 { // more are none: a frame that needs them is too long
			break
		}
		t.add(b)
		room += len(b)
	}
	if len(trap) > 0 {
		t.add(trap)
	}
	return room
}

func (t *transfer) add(b []byte) {
	v := &t.vec[t.count]
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
	t.count++
}

// done forgets the buffers. They may be guest memory that is unmapped soon; the
// collector must not meet such an address later, when it may be its own.
func (t *transfer) done() { clear(t.vec[:t.count]) }

// prepare makes call the system call trap: a raw one, since it never waits, and
// Go's scheduler need not be ready for that (package virtio's eventfd_unsafe.go says
// what that costs).
func (t *transfer) prepare(trap uintptr) {
	t.call = func(fd uintptr) bool {
		for {
			n, _, errno := unix.RawSyscall(trap, fd, uintptr(unsafe.Pointer(&t.vec[0])), uintptr(t.count))
			if errno == unix.EINTR {
				continue
			}
			t.n, t.errno = int(n), errno
			return true
		}
	}
}

// watch waits for a frame, or for the end of the interface.
type watch struct {
	look   func(fd uintptr) bool // for a syscall.RawConn
	fds    [1]unix.PollFd
	events int16
}

func (w *watch) prepare() {
	// The poller tells of what changes, and forgets it before each wait: so the file
	// itself is asked first.
	w.look = func(fd uintptr) bool {
		w.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		if _, _, errno := unix.RawSyscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&w.fds[0])), 1, 0); errno != 0 {
			return false
		}
		w.events = w.fds[0].Revents
		return w.events != 0
	}
}

func (p *tapPair) init() {
	p.rx.prepare(unix.SYS_READV)
	p.tx.prepare(unix.SYS_WRITEV)
	p.watch.prepare()
}
