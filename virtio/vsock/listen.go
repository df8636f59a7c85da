package vsock

import (
	"net"
	"sync"
)

// Listener accepts the guest's connections to a port. It outlives resets of the
// guest.
type Listener struct {
	d    *Device
	port uint32

	// Guarded by d.mu.
	more    sync.Cond
	backlog []*Conn // bounded by the connections that there can be
	closed  bool
}

var _ net.Listener = (*Listener)(nil)

// Listen takes the guest's connections to a port of the host's, any from 0 to
// 4294967294. The error wraps EADDRINUSE if the port has a listener, and
// net.ErrClosed.
func (d *Device) Listen(port uint32) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fail := func(err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: Addr{HostCID, port}, Err: err}
	}
	switch _, used := d.listeners[port]; {
	case d.closed:
		return fail(errClosed)
	case used || port == anyPort:
		return fail(errInUse)
	}
	l := &Listener{d: d, port: port}
	l.more.L = &d.mu
	d.listeners[port] = l
	return l, nil
}

// anyPort is VMADDR_PORT_ANY, which stands for no port.
const anyPort = 0xffff_ffff

// add has a connection accepted, unless the listener is closed. The connection's
// lock is held.
func (l *Listener) add(c *Conn) bool {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if l.closed {
		return false
	}
	l.backlog = append(l.backlog, c)
	l.more.Signal()
	return true
}

// Accept implements net.Listener. After Close its error wraps net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	for len(l.backlog) == 0 {
		if l.closed {
			return nil, l.failed("accept")
		}
		l.more.Wait()
	}
	c := l.backlog[0]
	l.backlog[0] = nil
	l.backlog = l.backlog[1:]
	return c, nil
}

func (l *Listener) failed(op string) error {
	return &net.OpError{Op: op, Net: network, Addr: l.Addr(), Err: errClosed}
}

// Close implements net.Listener: the guest gets a reset for what was not accepted.
func (l *Listener) Close() error {
	d := l.d
	d.mu.Lock()
	if l.closed {
		d.mu.Unlock()
		return l.failed("close")
	}
	l.closed = true
	delete(d.listeners, l.port)
	rest := l.backlog
	l.backlog = nil
	l.more.Broadcast()
	d.mu.Unlock()
	for _, c := range rest {
		c.f.mu.Lock()
		c.f.finish(errClosed, true)
		c.abandon()
		c.f.mu.Unlock()
	}
	d.pump(briefly)
	return nil
}

// Addr implements net.Listener: an Addr.
func (l *Listener) Addr() net.Addr { return Addr{HostCID, l.port} }
