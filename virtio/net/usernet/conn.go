package usernet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// guestConn is a connection of a Go program with the guest: a net.Conn with
// CloseRead and CloseWrite. It reads by whole segments, for the reason that
// socketWriter has.
type guestConn struct {
	*gonet.TCPConn
	p        *slot
	deadline deadline // for reading
	closed   atomic.Bool
	entry    waiter.Entry
	readable chan struct{}

	reading sync.Mutex
	kept    remainder // under reading
}

func newGuestConn(p *slot) *guestConn {
	c := &guestConn{TCPConn: gonet.NewTCPConn(p.wq, p.ep), p: p}
	c.entry, c.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	p.wq.EventRegister(&c.entry)
	return c
}

// Read implements net.Conn.
func (c *guestConn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	fail := func(err error) (int, error) {
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
	}
	for {
		over, changed := c.deadline.state()
		if c.closed.Load() {
			return fail(net.ErrClosed)
		}
		select {
		case <-over:
			return fail(os.ErrDeadlineExceeded)
		default:
		}
		if n := c.kept.read(b); n > 0 || len(b) == 0 {
			return n, nil
		}
		w := divider{into: b, kept: &c.kept}
		_, err := c.p.ep.Read(&w, tcpip.ReadOptions{})
		if w.n > 0 {
			return w.n, nil
		}
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			select {
			case <-c.readable:
			case <-over:
			case <-changed:
			}
		case *tcpip.ErrClosedForReceive:
			if !c.closed.Load() {
				return 0, io.EOF
			}
		default:
			return fail(asError(err))
		}
	}
}

// divider gives the reader as much as it asked for and keeps the rest of the
// segment that ends it.
type divider struct {
	into []byte
	n    int
	kept *remainder
}

var errEnough = errors.New("usernet: the reader has enough")

func (d *divider) Write(b []byte) (int, error) {
	if d.n == len(d.into) || len(b) > maxDatagram {
		return 0, errEnough
	}
	c := copy(d.into[d.n:], b)
	d.n += c
	d.kept.keep(b[c:])
	return len(b), nil
}

// SetDeadline implements net.Conn.
func (c *guestConn) SetDeadline(t time.Time) error {
	c.deadline.set(t)
	return c.TCPConn.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *guestConn) SetReadDeadline(t time.Time) error {
	c.deadline.set(t)
	return nil
}

// Close implements net.Conn. What was written still goes to the guest.
func (c *guestConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	err := c.TCPConn.Close()
	c.deadline.set(time.Unix(1, 0)) // wakes a reader
	c.p.closed()
	c.reading.Lock()
	defer c.reading.Unlock()
	c.kept.free()
	return err
}

// deadline is a time that may change while somebody waits for it.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer
	over    chan struct{} // closed when it has passed
	changed chan struct{} // closed when there is another
}

func (d *deadline) state() (over, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	return d.over, d.changed
}

func (d *deadline) init() {
	if d.over == nil {
		d.over, d.changed = make(chan struct{}), make(chan struct{})
	}
}

// set takes the zero time for never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	over := make(chan struct{})
	switch left := time.Until(t); {
	case t.IsZero():
	case left <= 0:
		close(over)
	default:
		d.timer = time.AfterFunc(left, func() { close(over) })
	}
	close(d.changed)
	d.over, d.changed = over, make(chan struct{})
}

// establish accepts a connection that the guest opens; nil if that failed.
func (s *session) establish(r *tcp.ForwarderRequest, p *slot) *guestConn {
	wq := new(waiter.Queue)
	ep, err := r.CreateEndpoint(wq)
	r.Complete(false)
	if err != nil {
		p.giveBack()
		return nil
	}
	p.hold(ep, wq)
	return newGuestConn(p)
}

// acceptTCP gives a connection of the guest's to a listener.
func (s *session) acceptTCP(r *tcp.ForwarderRequest, p *slot, l *listener) {
	if !l.reserve() {
		s.n.stats.full.Add(1)
		r.Complete(true)
		p.giveBack()
		return
	}
	c := s.establish(r, p)
	if c == nil {
		l.cancel()
		return
	}
	l.deliver(c)
}

var _ net.Conn = (*guestConn)(nil)
