package net

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TapOptions say which TAP interface to use, and how.
type TapOptions struct {
	// Name is the interface's.
	Name string
	// Pairs is the number of pairs of queues; 0 is 1. More than 1 need an interface
	// that was made with multi_queue.
	Pairs int
	// Create makes the interface if there is none, which takes CAP_NET_ADMIN, and
	// brings it up; it is gone after Close.
	Create bool
	// MTU is that of an interface which is made, in bytes; 0 leaves it as the kernel
	// makes it.
	MTU int
}

// Tap is a backend on a TAP interface: what the driver sends comes out of it on the
// host, and what the host sends into it the driver receives. It offers what the
// kernel can do.
//
// An interface that is deleted while it is in use takes the link down. The Tap looks
// for another of its name once a second and, when there is one that it may use, goes
// on with that.
type Tap struct {
	name     string
	pairs    []tapPair
	mtu      int
	wanted   int // TapOptions.MTU
	features uint64
	where    *place
	stopped  atomic.Bool
	events   *tapEvents // not nil where the host's kernel moves the frames

	mu       sync.Mutex
	multi    bool   // the interface is a multi-queue one
	acked    uint64 // features of the last Start
	active   int    // pairs in use
	down     bool   // the interface is gone
	watching bool
	closed   bool
	notify   func(up bool)
	ended    chan struct{} // closed by Close
	watcher  sync.WaitGroup
	index    uint32  // the interface's number
	passed   traffic // what is known of it, where the kernel moves the frames
	counted  traffic // of the interface, when passed was last brought up to date
}

var (
	_ Backend      = (*Tap)(nil)
	_ LinkNotifier = (*Tap)(nil)
	_ Named        = (*Tap)(nil)
)

// tapPair is a queue of the interface.
type tapPair struct {
	port   atomic.Pointer[tapPort] // nil while the interface is gone
	rx, tx transfer
	watch  watch
	trap   [1]byte // behind the buffers: whoever gets there is too long
}

// tapPort is an open queue. Its file waits in the runtime's poller, so that an idle
// queue costs no thread.
type tapPort struct {
	f   *os.File
	raw syscall.RawConn
}

// Features implements Backend.
func (t *Tap) Features() uint64 { return t.features }

// MaxPairs implements Backend.
func (t *Tap) MaxPairs() int { return len(t.pairs) }

// MTU implements Backend: the interface's, when it was opened.
func (t *Tap) MTU() int { return t.mtu }

// Name implements Named: it is the interface's.
func (t *Tap) Name() string { return t.name }

// IsUp reports whether the interface is up on the host, and false if that can't be
// told: while it is not, nothing passes, and the guest is not told so. For a warning
// to whoever forgot `ip link set NAME up`.
func (t *Tap) IsUp() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.closed && t.where.isUp(t.name)
}

// NotifyLink implements LinkNotifier: the link is down while the interface is gone.
func (t *Tap) NotifyLink(f func(up bool)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notify = f
}

// Start implements Backend.
func (t *Tap) Start(features uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("tap %s: %w", t.name, os.ErrClosed)
	}
	t.acked, t.active = features, 1
	t.stopped.Store(false)
	if t.down {
		return nil
	}
	ports := make([]*tapPort, len(t.pairs))
	for i := range t.pairs {
		ports[i] = t.pairs[i].port.Load()
	}
	return t.failed(t.begin(ports))
}

// begin sets ports up as the last Start and SetPairs want it. It is called under mu.
func (t *Tap) begin(ports []*tapPort) error {
	if err := ports[0].control(func(fd int) error {
		return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunOffloads(t.acked))
	}); err != nil {
		return fmt.Errorf("tap %s: set the offloads: %w", t.name, err)
	}
	deadline := time.Time{}
	if t.stopped.Load() {
		deadline = time.Unix(1, 0)
	}
	for i, p := range ports {
		if err := p.attach(t.multi, i < t.active); err != nil {
			return fmt.Errorf("tap %s: queue %d: %w", t.name, i, err)
		}
		if t.events != nil {
			continue // nobody waits for it
		}
		if err := p.f.SetDeadline(deadline); err != nil {
			return fmt.Errorf("tap %s: queue %d: %w", t.name, i, err)
		}
	}
	return nil
}

// failed takes an error of an ioctl: an interface that is gone is no error. It is
// called under mu.
func (t *Tap) failed(err error) error {
	if errors.Is(err, unix.EBADFD) {
		t.lost()
		return nil
	}
	return err
}

// SetPairs implements Backend.
func (t *Tap) SetPairs(n int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n < 1 || n > len(t.pairs) {
		return fmt.Errorf("tap %s: %d pairs of queues: it has %d", t.name, n, len(t.pairs))
	}
	t.active = n
	for i := range t.pairs {
		if t.down || t.closed {
			break // it is done when the interface is back
		}
		if err := t.pairs[i].port.Load().attach(t.multi, i < n); err != nil {
			return t.failed(fmt.Errorf("tap %s: queue %d: %w", t.name, i, err))
		}
	}
	return nil
}

// Wait implements Backend.
func (t *Tap) Wait(pair int) (bool, error) {
	p := &t.pairs[pair]
	for {
		port := p.port.Load()
		if t.stopped.Load() {
			return false, nil
		}
		if port == nil {
			return false, ErrTapGone
		}
		err := port.raw.Read(p.watch.look)
		switch {
		case err == nil && p.watch.events&unix.POLLIN != 0:
			return true, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			// Stop was called, and perhaps Start since.
		case p.port.Load() == port:
			t.gone(port)
			return false, ErrTapGone
		}
	}
}

// Receive implements Backend.
func (t *Tap) Receive(pair int, bufs [][]byte) (int, error) {
	p := &t.pairs[pair]
	port := p.port.Load()
	if port == nil {
		return 0, ErrTapGone
	}
	room := p.rx.fill(bufs, p.trap[:])
	err := port.raw.Read(p.rx.call)
	p.rx.done()
	switch {
	case err != nil:
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil
		}
	case p.rx.errno == unix.EAGAIN:
		return 0, nil
	case p.rx.errno == unix.EINVAL || p.rx.errno == unix.EFAULT: // no room for a header
		return 0, ErrTooLong
	case p.rx.errno != 0:
	case p.rx.n > room:
		return 0, ErrTooLong
	default:
		return p.rx.n, nil
	}
	t.gone(port)
	return 0, ErrTapGone
}

// Send implements Backend.
func (t *Tap) Send(pair int, bufs [][]byte) error {
	p := &t.pairs[pair]
	port := p.port.Load()
	if port == nil {
		return ErrTapGone
	}
	p.tx.fill(bufs, nil)
	err := port.raw.Write(p.tx.call)
	p.tx.done()
	if err != nil { // the port was closed: the interface is gone, or Stop was called
		return ErrTapGone
	}
	switch p.tx.errno {
	case 0:
		return nil
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return ErrFull
	case unix.EBADFD:
		t.gone(port)
		return ErrTapGone
	}
	return p.tx.errno // the interface is not up, for one
}

// Stop implements Backend.
func (t *Tap) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped.Store(true)
	for i := range t.pairs {
		if port := t.pairs[i].port.Load(); port != nil && t.events == nil {
			_ = port.f.SetDeadline(time.Unix(1, 0))
		}
	}
}

// Close implements Backend: it gives the interface back. One that OpenTap has made is
// gone then.
func (t *Tap) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.count()
	t.closed = true
	t.stopped.Store(true)
	close(t.ended)
	errs := t.drop()
	t.mu.Unlock()
	if t.events != nil {
		errs = errors.Join(errs, t.events.close())
	}
	t.watcher.Wait()
	return errors.Join(errs, t.where.close())
}

// drop closes all queues. It is called under mu.
func (t *Tap) drop() error {
	var errs []error
	for i := range t.pairs {
		if port := t.pairs[i].port.Swap(nil); port != nil {
			errs = append(errs, port.f.Close())
		}
	}
	return errors.Join(errs...)
}

// control calls f with the file descriptor, which stays open meanwhile.
func (p *tapPort) control(f func(fd int) error) error {
	var err error
	if e := p.raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// attach has the kernel give the queue frames, or not. A queue that is what it is to
// be already is left alone; the only one of an interface always is attached.
func (p *tapPort) attach(multi, on bool) error {
	if !multi {
		return nil
	}
	return p.control(func(fd int) error {
		r, err := unix.NewIfreq("")
		if err != nil {
			return err
		}
		if r.SetUint16(unix.IFF_DETACH_QUEUE); on {
			r.SetUint16(unix.IFF_ATTACH_QUEUE)
		}
		err = unix.IoctlIfreq(fd, unix.TUNSETQUEUE, r)
		if errors.Is(err, unix.EINVAL) {
			return nil // as it is to be
		}
		return err
	})
}
