package vsock

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Conn is a stream to or from the guest. Besides what net.Conn says, either
// direction can be closed by itself. A Write returns when the guest's buffers have
// taken the data; a guest that does not read makes it wait.
//
// When the guest is reset, or its kernel resets the connection, what was received
// before can still be read, and then errors are ECONNRESET.
type Conn struct {
	f *flow

	reading, writing sync.Mutex // held by a Read, a Write

	// The rest is guarded by f.mu.
	arrived, taken sync.Cond
	into           []byte // of the Read that waits: data goes there
	got            int    // bytes that were put there
	out            []byte // of the Write that waits: what is left
	readEnd        deadline
	writeEnd       deadline
	isClosed       bool
	readShut       bool
}

var (
	_ net.Conn = (*Conn)(nil)
	_ host     = (*Conn)(nil)
)

func newConn(f *flow) host {
	c := &Conn{f: f}
	c.arrived.L, c.taken.L = &f.mu, &f.mu
	return c
}

// deadline is guarded by the flow's lock.
type deadline struct {
	timer  *time.Timer
	passed bool
}

// Dial connects to a port of the guest's. It waits for the guest's answer until
// ctx is done, but not more than 10 s. Errors are of type *net.OpError and wrap
// ECONNREFUSED if nobody listens there, ErrNoDriver if the guest has no driver,
// ErrTooMany, and net.ErrClosed.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := d.dial(ctx, port)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: Addr{d.cid, port}, Err: err}
	}
	return c, nil
}

func (d *Device) dial(ctx context.Context, port uint32) (*Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.times.connect, os.ErrDeadlineExceeded)
	defer cancel()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	f, err := d.newFlow(greeting, key{}, newConn)
	if err != nil {
		return nil, err
	}
	c := f.host.(*Conn)
	f.mu.Lock()
	if err := f.call(port); err != nil {
		f.fail(err)
		f.mu.Unlock()
		return nil, err
	}
	f.mu.Unlock()
	d.pump(briefly)
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		c.arrived.Broadcast()
	})
	defer stop()
	f.mu.Lock()
	for f.state == requested && ctx.Err() == nil {
		c.arrived.Wait()
	}
	switch {
	case f.state == requested:
		err = context.Cause(ctx)
		f.finish(err, true)
	case !f.established:
		err = f.err
	}
	if err != nil {
		f.host.abandon()
	}
	f.mu.Unlock()
	d.pump(briefly)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Read implements net.Conn. What the guest has shut is io.EOF at its end.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.f.mu.Lock()
	n, err := c.read(p)
	c.f.mu.Unlock()
	c.f.d.pump(briefly) // the guest may have to know of credit
	return n, c.wrap("read", err)
}

func (c *Conn) read(p []byte) (int, error) {
	f := c.f
	switch {
	case c.isClosed:
		return 0, errClosed
	case c.readEnd.passed:
		return 0, os.ErrDeadlineExceeded
	case len(p) == 0:
		return 0, nil
	case c.readShut:
		return 0, io.EOF
	case f.buf.n > 0:
		n := f.buf.read(&f.d.pool, p)
		f.consumed(n)
		return n, nil
	}
	c.into, c.got = p, 0
	for c.got == 0 && !c.isClosed && !c.readEnd.passed && !c.readShut && !c.over() {
		c.arrived.Wait()
	}
	c.into = nil
	switch {
	case c.got > 0:
		return c.got, nil
	case c.isClosed:
		return 0, errClosed
	case c.readEnd.passed:
		return 0, os.ErrDeadlineExceeded
	case c.readShut || f.peerShut&shutSend != 0 || f.err == nil:
		return 0, io.EOF
	}
	return 0, f.err
}

// over reports whether the guest sends no more.
func (c *Conn) over() bool { return c.f.state == ended || c.f.peerShut&shutSend != 0 }

// Write implements net.Conn. A guest that has shut its receiving side is EPIPE.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	f := c.f
	f.mu.Lock()
	err := c.writable()
	if err == nil && len(p) > 0 {
		c.out = p
		f.d.enqueue(f, false)
		f.mu.Unlock()
		f.d.pump(briefly)
		f.mu.Lock()
		for len(c.out) > 0 && err == nil {
			if err = c.writable(); err == nil {
				c.taken.Wait()
			}
		}
		p = p[:len(p)-len(c.out)]
		if c.out = nil; err == nil {
			f.mu.Unlock()
			return len(p), nil
		}
		f.mu.Unlock()
		return len(p), c.wrap("write", err)
	}
	f.mu.Unlock()
	return 0, c.wrap("write", err)
}

// writable says why nothing can be written.
func (c *Conn) writable() error {
	f := c.f
	switch {
	case c.isClosed:
		return errClosed
	case c.writeEnd.passed:
		return os.ErrDeadlineExceeded
	case f.ownShut&shutSend != 0 || f.peerShut&shutReceive != 0:
		return errPipe
	case f.state == ended && f.err != nil:
		return f.err
	case f.state == ended:
		return errPipe
	}
	return nil
}

// Close implements net.Conn. It does not wait for the guest. What the guest was
// sent it can still read; what was received and not read is lost.
func (c *Conn) Close() error {
	f := c.f
	f.mu.Lock()
	if c.isClosed {
		f.mu.Unlock()
		return c.wrap("close", errClosed)
	}
	f.shut(shutBoth)
	c.abandon()
	f.mu.Unlock()
	f.d.pump(briefly)
	return nil
}

// CloseWrite tells the guest that nothing more comes. A Write that waits ends.
func (c *Conn) CloseWrite() error { return c.shut(shutSend) }

// CloseRead tells the guest that nothing more is received. What comes all the same
// is dropped.
func (c *Conn) CloseRead() error { return c.shut(shutReceive) }

func (c *Conn) shut(flags uint32) error {
	f := c.f
	f.mu.Lock()
	if c.isClosed {
		f.mu.Unlock()
		return c.wrap("close", errClosed)
	}
	f.shut(flags)
	if flags&shutReceive != 0 {
		c.readShut = true
		f.drop()
	}
	c.wake()
	f.mu.Unlock()
	f.d.pump(briefly)
	return nil
}

func (c *Conn) wake() {
	c.arrived.Broadcast()
	c.taken.Broadcast()
}

// LocalAddr implements net.Conn: an Addr.
func (c *Conn) LocalAddr() net.Addr { return Addr{HostCID, c.f.key.hostPort} }

// RemoteAddr implements net.Conn: an Addr.
func (c *Conn) RemoteAddr() net.Addr { return Addr{c.f.d.cid, c.f.key.guestPort} }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline(t, &c.readEnd, &c.writeEnd) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, &c.readEnd) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, &c.writeEnd) }

func (c *Conn) setDeadline(t time.Time, ends ...*deadline) error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.isClosed {
		return c.wrap("set", errClosed)
	}
	for _, e := range ends {
		e.stop()
		if t.IsZero() {
			continue
		}
		left := time.Until(t)
		if left <= 0 {
			e.passed = true
			c.wake()
			continue
		}
		var timer *time.Timer
		timer = time.AfterFunc(left, func() {
			c.f.mu.Lock()
			defer c.f.mu.Unlock()
			if e.timer == timer {
				e.passed = true
				c.wake()
			}
		})
		e.timer = timer
	}
	return nil
}

func (e *deadline) stop() {
	e.passed = false
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
}

// wrap says what the error is of. The end of a stream is nothing else.
func (c *Conn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: network, Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// deliver implements host.
func (c *Conn) deliver(vec [][]byte, n int) int {
	if len(c.into) == 0 || c.f.buf.n > 0 {
		return 0
	}
	k := 0
	for _, v := range vec {
		m := copy(c.into, v)
		c.into = c.into[m:]
		k += m
	}
	if k > 0 && c.got == 0 {
		c.arrived.Broadcast()
	}
	c.got += k
	return k
}

// buffered implements host.
func (c *Conn) buffered() { c.arrived.Broadcast() }

// wants implements host.
func (c *Conn) wants() bool { return len(c.out) > 0 }

// stalled implements host.
func (c *Conn) stalled() bool { return len(c.out) > 0 }

// send implements host.
func (c *Conn) send(r *rx, n int) (int, bool) {
	n, starved := r.copy(c.f, c.out[:min(n, len(c.out))])
	if c.out = c.out[n:]; len(c.out) == 0 {
		c.taken.Broadcast()
	}
	return n, starved
}

// changed implements host.
func (c *Conn) changed() { c.wake() }

// abandon implements host.
func (c *Conn) abandon() {
	if c.isClosed {
		return
	}
	c.isClosed = true
	c.readEnd.stop()
	c.writeEnd.stop()
	c.wake()
	c.f.closed()
}
