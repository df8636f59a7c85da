package vsock

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// poller watches the Unix sockets of a device, however many they are, with one
// goroutine and no thread. Each event is told once: a socket is armed for the
// next.
type poller struct {
	work sync.WaitGroup
	raw  syscall.RawConn

	mu     sync.Mutex
	f      *os.File // nil when closed
	fd     int
	last   uint64 // the last id given
	socks  map[uint64]watched
	events [64]unix.EpollEvent // of the goroutine
	n      int
}

// watched is what a poller tells.
type watched interface{ ready(events uint32) }

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	p := &poller{fd: fd, f: os.NewFile(uintptr(fd), "epoll"), socks: map[uint64]watched{}}
	if p.raw, err = p.f.SyscallConn(); err != nil {
		return nil, errors.Join(err, p.f.Close())
	}
	p.work.Go(p.run)
	return p, nil
}

func (p *poller) run() {
	look := p.look // once: it is an allocation
	for p.raw.Read(look) == nil {
		for _, e := range p.events[:p.n] {
			p.mu.Lock()
			w := p.socks[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
			p.mu.Unlock()
			if w != nil {
				w.ready(e.Events)
			}
		}
	}
}

// look takes events, and reports false if there are none.
func (p *poller) look(fd uintptr) bool {
	n, err := epollNow(int(fd), p.events[:])
	p.n = max(n, 0)
	return n > 0 || err != nil && err != unix.EINTR
}

// add begins to watch fd for events, once.
func (p *poller) add(fd int, w watched, events uint32) (id uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f == nil {
		return 0, errClosed
	}
	p.last++
	e := event(p.last, events)
	if err := epollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return 0, fmt.Errorf("epoll: %w", err)
	}
	p.socks[p.last] = w
	return p.last, nil
}

// arm watches for events once more. That the other side is gone is always told.
func (p *poller) arm(id uint64, fd int, events uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f != nil {
		e := event(id, events)
		_ = epollCtl(p.fd, unix.EPOLL_CTL_MOD, fd, &e) // it has been added
	}
}

func event(id uint64, events uint32) unix.EpollEvent {
	return unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
}

// remove ends the watching; the caller closes the descriptor after it.
func (p *poller) remove(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.socks, id)
}

// close ends the goroutine and waits for it.
func (p *poller) close() error {
	p.mu.Lock()
	f := p.f
	p.f = nil
	p.mu.Unlock()
	if f == nil {
		return nil
	}
	err := f.Close()
	p.work.Wait()
	return err
}
