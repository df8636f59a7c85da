package usernet

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// relay carries a connection between the guest's endpoint and a socket of the
// host, each way in a goroutine, until both ways have ended or one has failed.
// Bytes go from the socket into the stack's own buffers and back out of them;
// nothing is allocated on the way, and an idle connection holds no buffer.
//
// A guest that resets ends both ways at once, whatever the host's peer does: what
// the peer has not been given by then it does not get. One that closes does not:
// its last words may take as long as the peer does to read them.
func (s *session) relay(p *slot, host *net.TCPConn) {
	defer p.closed()
	raw, err := host.SyscallConn()
	if err != nil {
		p.ep.Abort()
		reset(host)
		return
	}
	stop := context.AfterFunc(s.ctx, func() { reset(host); p.ep.Abort() })
	defer stop()
	broken := func() {
		p.ep.Abort()
		reset(host)
	}
	// The stack may call with the endpoint's lock held, which a way at work waits
	// for while it holds the socket: closing that here would wait for ever. A
	// deadline in the past only wakes them.
	lost := waiter.NewFunctionEntry(waiter.EventHUp, func(waiter.EventMask) {
		if p.lost() {
			_ = host.SetDeadline(time.Unix(1, 0))
		}
	})
	p.wq.EventRegister(&lost)
	defer p.wq.EventUnregister(&lost)
	if p.lost() {
		broken()
	}
	other := make(chan struct{})
	go func() {
		defer close(other)
		if !fromHost(p, raw) {
			broken()
		}
	}()
	if !toHost(p, host, raw) {
		broken()
	}
	<-other
	_ = host.Close()
	p.ep.Close()
}

// toHost carries what the guest says until its FIN, which it passes on. False
// says that the connection is broken.
func toHost(p *slot, host *net.TCPConn, raw syscall.RawConn) bool {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	p.wq.EventRegister(&entry)
	defer p.wq.EventUnregister(&entry)
	w := socketWriter{}
	defer w.rest.free()
	var terr tcpip.Error
	step := func(fd uintptr) bool {
		w.fd, w.err = int(fd), nil
		for w.flush() {
			if _, terr = p.ep.Read(&w, tcpip.ReadOptions{}); terr != nil {
				return true
			}
		}
		return w.err != unix.EAGAIN
	}
	for {
		err := raw.Write(step)
		if err != nil || w.err != nil {
			return false
		}
		switch terr.(type) {
		case *tcpip.ErrWouldBlock:
			<-readable
		case *tcpip.ErrClosedForReceive:
			// That is also what follows a reset that the other way has seen.
			return tcp.EndpointState(p.ep.State()) != tcp.StateError && host.CloseWrite() == nil
		default:
			return false
		}
	}
}

// socketWriter writes to a socket. What that does not take it keeps, up to one
// segment: the stack opens the window that it announces when it is rid of whole
// segments, and may forget to say so if one went by halves.
type socketWriter struct {
	fd   int
	err  error // of the socket, EAGAIN too
	rest remainder
}

// Write implements io.Writer: it takes all of b unless it keeps something
// already.
func (w *socketWriter) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	done := w.write(b)
	if done == len(b) || w.err != unix.EAGAIN || len(b)-done > maxDatagram {
		return done, w.err
	}
	w.rest.keep(b[done:])
	return len(b), nil
}

func (w *socketWriter) write(b []byte) (done int) {
	for done < len(b) {
		n, err := writeSocket(w.fd, b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			w.err = err
			break
		}
		done += n
	}
	return done
}

// flush writes what was kept, and reports whether more can follow.
func (w *socketWriter) flush() bool {
	if w.err == nil {
		w.rest.drop(w.write(w.rest.b))
	}
	return w.err == nil
}

// remainder is the end of a segment, in a borrowed buffer while there is one.
type remainder struct {
	b   []byte
	buf *[maxDatagram]byte
}

// keep copies b, which has maxDatagram bytes at most; nothing must be kept.
func (r *remainder) keep(b []byte) {
	if len(b) == 0 {
		return
	}
	if r.buf == nil {
		r.buf = datagrams.Get().(*[maxDatagram]byte)
	}
	r.b = r.buf[:copy(r.buf[:], b)]
}

func (r *remainder) read(b []byte) int {
	n := copy(b, r.b)
	r.drop(n)
	return n
}

func (r *remainder) drop(n int) {
	if r.b = r.b[n:]; len(r.b) == 0 {
		r.free()
	}
}

func (r *remainder) free() {
	if r.buf != nil {
		datagrams.Put(r.buf)
		r.buf, r.b = nil, nil
	}
}

// fromHost carries what the host's peer says until its FIN.
func fromHost(p *slot, raw syscall.RawConn) bool {
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	p.wq.EventRegister(&entry)
	defer p.wq.EventUnregister(&entry)
	r := socketReader{}
	var terr tcpip.Error
	step := func(fd uintptr) bool {
		r.fd = int(fd)
		for {
			if !r.look() {
				return r.err != unix.EAGAIN
			}
			if _, terr = p.ep.Write(&r, tcpip.WriteOptions{}); terr != nil {
				return true
			}
		}
	}
	for {
		terr = nil
		if err := raw.Read(step); err != nil {
			return false
		}
		switch _, full := terr.(*tcpip.ErrWouldBlock); {
		case full:
			<-writable
		case terr != nil:
			return false
		case r.err == io.EOF:
			p.said.Store(true)
			return p.ep.Shutdown(tcpip.ShutdownWrite) == nil
		case r.err != nil:
			return false
		}
	}
}

// socketReader is a tcpip.Payloader over what a socket has at hand, so that the
// stack reads it into its own buffers.
type socketReader struct {
	fd  int
	n   int // bytes that the socket is known to have
	err error
}

// look finds out what there is. False says that there is nothing: err is EAGAIN,
// io.EOF or why.
func (r *socketReader) look() bool {
	r.n, r.err = queuedBytes(r.fd)
	if r.err != nil || r.n > 0 {
		return r.err == nil
	}
	for {
		var b [1]byte
		n, err := recvSocket(r.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
		case err != nil:
			r.err = err
			return false
		case n == 0:
			r.err = io.EOF
			return false
		default: // it came in between
			r.n = n
			return true
		}
	}
}

// Len implements tcpip.Payloader: the stack reads as many bytes, or fewer.
func (r *socketReader) Len() int { return r.n }

var errShort = errors.New("usernet: a socket gave less than it had")

// Read implements tcpip.Payloader. It never gives less than Len in all, unless
// with an error that ends the connection.
func (r *socketReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, err := readSocket(r.fd, b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, errShort
		default:
			r.n -= n
			return n, nil
		}
	}
}
