package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/guest/wire"
)

// stream is one of a command's connections and what stands behind it here.
type stream struct {
	r    io.Reader     // for the command to read, or nil
	w    io.Writer     // that takes what the command writes, or nil
	conn net.Conn      // nil until it comes
	late *time.Timer   // until it must have come, once the command has ended
	over bool          // it has not
	shut bool          // it was closed here before its end
	done chan struct{} // closed when w is used no more; nil until conn comes
}

// plan says what the command's files are, to the agent and for attach.
func (c *Cmd) plan(w *wire.Command) {
	if c.Stdin != nil {
		w.Files[0], c.streams[0].r = wire.FileStream, c.Stdin
	}
	if c.Stdout != nil {
		w.Files[1], c.streams[1].w = wire.FileStream, c.Stdout
	}
	switch {
	case c.Stderr == nil:
	case c.Stdout != nil && same(c.Stdout, c.Stderr):
		w.Files[2] = wire.FileOut
	default:
		w.Files[2], c.streams[2].w = wire.FileStream, c.Stderr
	}
	t := c.Terminal
	if t == nil {
		return
	}
	w.Size = wire.Size{Rows: t.Rows, Cols: t.Cols}
	for i, on := range t.Files {
		if on || t.Files == [3]bool{} {
			w.Files[i], c.streams[i] = wire.FileTTY, stream{}
		}
	}
	if w.Files[2] == wire.FileOut && w.Files[1] == wire.FileTTY {
		w.Files[2] = wire.FileTTY
	}
	c.streams[wire.Terminal] = stream{r: t.In, w: t.Out}
	if t.Out == nil {
		c.streams[wire.Terminal].w = io.Discard
	}
}

// same says whether two writers are one. Values that can't be compared are not.
func same(a, b io.Writer) bool {
	t := reflect.TypeOf(a)
	return t == reflect.TypeOf(b) && t.Comparable() && a == b
}

// attach takes a connection as one of the command's streams. False if it has none such.
func (c *Cmd) attach(i int, conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.streams[i]
	if s.conn != nil || s.r == nil && s.w == nil || s.over || s.w == nil && c.ended() {
		return false
	}
	s.conn = conn
	c.guest.hold(conn, s.w != nil)
	if s.r != nil {
		c.input.Add(1)
		c.guest.workers.Go(func() {
			defer c.input.Done()
			c.send(i, conn, s.r)
		})
	}
	if s.w != nil {
		if s.late != nil {
			s.late.Stop()
			_ = conn.SetReadDeadline(time.Now().Add(c.patience()))
		}
		// A Write that can't be interrupted must hold up neither Wait nor Close for ever.
		done := make(chan struct{})
		s.done = done
		go func() {
			defer close(done)
			c.receive(i, conn, s.w)
		}()
		c.guest.workers.Go(func() {
			defer c.output.Done()
			select {
			case <-done:
			case <-c.left:
			case <-c.guest.gone: // nobody has called Wait
			}
		})
	}
	return true
}

// join waits for the command's output. While the guest lives, whoever takes it may take
// as long as they want; afterwards not.
func (c *Cmd) join() {
	all := make(chan struct{})
	go func() {
		c.output.Wait()
		close(all)
	}()
	c.mu.Lock()
	lives := c.state != nil
	c.mu.Unlock()
	if lives {
		select {
		case <-all:
			return
		case <-c.guest.done:
		case <-c.ctx.Done():
		}
	}
	c.hurry(time.Now().Add(lostBound))
	bound := time.NewTimer(lostBound + lostBound/2)
	defer bound.Stop()
	select {
	case <-all:
	case <-bound.C:
		for i := range c.streams {
			if c.streams[i].w != nil {
				c.giveUp(i)
			}
		}
		close(c.left)
		<-all
		for i := range c.streams {
			if c.writing(i) {
				c.missing(i, nil)
			}
		}
	}
	c.hurry(time.Time{})
}

// hurry gives the writers until end. The zero time takes that away again, but not from one
// that was left behind with a Write.
func (c *Cmd) hurry(end time.Time) {
	c.mu.Lock()
	c.hurried = true
	c.mu.Unlock()
	for i := range c.streams {
		if d, ok := c.streams[i].w.(interface{ SetWriteDeadline(time.Time) error }); ok && !(end.IsZero() && c.writing(i)) {
			_ = d.SetWriteDeadline(end)
		}
	}
}

// writing says whether a writer may still be in use.
func (c *Cmd) writing(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.streams[i]
	if s.done == nil {
		return false
	}
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// patience is how long output may take to come once the command has ended; the lock is
// held. Nothing comes of what has not started.
func (c *Cmd) patience() time.Duration {
	switch {
	case c.state != nil:
		return drainBound
	case c.process != 0:
		return lostBound
	}
	return 0
}

// cut bounds the wait for the output when the command has ended. The lock is held. Where the
// agent says that something is lost it may not have been able to connect a stream.
func (c *Cmd) cut() {
	for i := range c.streams {
		s := &c.streams[i]
		switch {
		case s.w == nil:
		case s.conn != nil:
			_ = s.conn.SetReadDeadline(time.Now().Add(c.patience()))
		default:
			bound := c.patience()
			if c.cutErr != nil || c.inCut != nil {
				bound = min(bound, lostBound)
			}
			s.late = time.AfterFunc(bound, func() { c.giveUp(i) })
		}
	}
}

// giveUp ends an output that has not come, once.
func (c *Cmd) giveUp(i int) {
	c.mu.Lock()
	s := &c.streams[i]
	settled := s.conn != nil || s.over
	s.over = true
	c.mu.Unlock()
	if settled {
		return
	}
	c.missing(i, nil)
	if c.ends[i] != nil {
		_ = c.ends[i].Close()
	}
	c.output.Done()
}

// send copies what the command reads, until it ends.
func (c *Cmd) send(i int, conn net.Conn, in io.Reader) {
	past := time.Unix(1, 0)
	if d, ok := in.(interface{ SetReadDeadline(time.Time) error }); ok && d.SetReadDeadline(time.Time{}) == nil {
		stop := make(chan struct{})
		joined := make(chan struct{})
		go func() {
			defer close(joined)
			select {
			case <-c.finished:
				_ = d.SetReadDeadline(past)
				_ = conn.SetWriteDeadline(past)
				<-stop
				_ = d.SetReadDeadline(time.Time{}) // it is the caller's again
			case <-stop:
			}
		}()
		c.pump(i, conn, in)
		close(stop)
		<-joined
		return
	}
	// A Read that can't be interrupted must hold up neither Wait nor Close.
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.pump(i, conn, in)
	}()
	select {
	case <-done:
	case <-c.finished:
		_ = conn.SetWriteDeadline(past)
	}
}

// pump copies in until either end has ended, and says how much there was: what of that
// has not come the agent knows then. A reader that fails is the end of a command's input,
// but not that of a file: half of one must not look whole.
func (c *Cmd) pump(i int, conn net.Conn, in io.Reader) {
	buf := make([]byte, 64<<10)
	var size int64
	for {
		n, err := in.Read(buf)
		size += int64(n)
		if n > 0 {
			if _, werr := conn.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			if !c.inputFailed(err) {
				return
			}
			break
		}
	}
	if h, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
	c.inputEnded(i, size)
}

// inputEnded tells the agent that a stream of the command's had so many bytes, unless the
// command has ended.
func (c *Cmd) inputEnded(i int, size int64) {
	c.mu.Lock()
	ended := c.ended()
	c.mu.Unlock()
	if ended {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-c.finished:
			cancel()
		case <-ctx.Done():
		}
	}()
	// A command that the agent starts by itself may have its streams before.
	if _, err := c.guest.Ready(ctx); err == nil {
		_ = c.guest.send(ctx, wire.KindInput, wire.Input{ID: c.wire.ID, Stream: uint8(i), Bytes: size})
	}
}

// inputFailed notes why the rest of what the command was to read can't be had, unless it
// has ended, and returns whether that is the end of its input. The making of a file is
// ended.
func (c *Cmd) inputFailed(err error) (end bool) {
	c.mu.Lock()
	late := c.ended()
	if !late && c.inErr == nil {
		c.inErr = &StreamError{0, err}
	}
	c.mu.Unlock()
	if c.wire.Op != wire.OpWrite {
		return !late
	}
	if !late {
		_ = c.Signal(syscall.SIGKILL)
	}
	return false
}

// receive copies what the command writes, until it has closed that or w fails, which
// closes it for the command.
func (c *Cmd) receive(i int, conn net.Conn, w io.Writer) {
	defer func() {
		if c.ends[i] != nil {
			_ = c.ends[i].Close()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				c.outputFailed(i, werr)
				c.mu.Lock()
				c.streams[i].shut = true
				c.mu.Unlock()
				c.guest.drop(conn)
				if i == wire.Terminal {
					c.inputEnded(i, wire.HungUp)
				}
				return
			}
			c.prolong(conn)
		}
		if err != nil {
			if !c.whole(i, err) {
				c.missing(i, err)
			}
			return
		}
	}
}

// whole says whether a stream that ended with err has lost nothing: the guest has closed
// it, or this side has. A terminal's may be reset for what was typed and is not read.
func (c *Cmd) whole(i int, err error) bool {
	if err == io.EOF || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return true
	}
	return i == wire.Terminal && c.streams[i].r != nil && errors.Is(err, syscall.ECONNRESET)
}

// prolong gives what still comes after the command's end as long again.
func (c *Cmd) prolong(conn net.Conn) {
	select {
	case <-c.finished:
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.state != nil {
			_ = conn.SetReadDeadline(time.Now().Add(drainBound))
		}
	default:
	}
}

// fed says whether stream i had something for the command to read, and was not closed here;
// the lock is held.
func (c *Cmd) fed(i int) bool { return c.streams[i].r != nil && !c.streams[i].shut }

// missing notes that the rest of an output is not passed on. why is the stream's error, if
// it has one.
func (c *Cmd) missing(i int, why error) {
	var errno syscall.Errno
	switch gone, ended := c.guest.Err(), c.ctx.Err(); {
	case gone != nil:
		why = gone
	case ended != nil:
		why = ended
	case errors.As(why, &errno):
		why = errno
	case errors.Is(why, os.ErrDeadlineExceeded): // of ours
		why = nil
	}
	err := ErrCut
	if why != nil {
		err = fmt.Errorf("%w: %w", ErrCut, why)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cutErr == nil {
		c.cutErr = &StreamError{i, err}
	}
}

// outputFailed notes why a writer takes no more. That a terminal was hung up is no
// error: the command hears of it.
func (c *Cmd) outputFailed(i int, err error) {
	c.mu.Lock()
	hurried := c.hurried
	c.mu.Unlock()
	if hurried && errors.Is(err, os.ErrDeadlineExceeded) {
		c.missing(i, nil)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.copyErr == nil && err != io.ErrClosedPipe && !(i == wire.Terminal && errors.Is(err, syscall.EIO)) {
		c.copyErr = &StreamError{i, err}
	}
}
