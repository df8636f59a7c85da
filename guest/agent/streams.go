package agent

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

const (
	// A copier's buffer grows when what it reads fills it: most commands say little.
	// 64 KiB is what a pipe and a packet of the socket device have.
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
	// maxLeftover is how much of a terminal's output is read when the command has
	// ended: more than its buffers have.
	maxLeftover = 64 << 10
	// memoryBound is how long the kernel may have no memory for what goes to the host,
	// memoryPause how long it is left alone between two attempts.
	memoryBound = 5 * time.Second
	memoryPause = 20 * time.Millisecond
	// maxDiscards bounds the outputs of commands that have ended which other
	// processes still write to: they are read, to nowhere.
	maxDiscards = 64
)

// output copies what a command writes to the host.
type output struct {
	from   *os.File // our end of a pipe, or of a terminal
	to     *os.File // the connection
	stream uint8    // its number
	tty    bool     // the connection goes on being read

	done chan struct{}
	open bool  // there may be more, from others than the command; after done
	lost error // why the host did not get all of it, though it wanted to; after done
}

func newOutput(from, to *os.File, stream uint8) *output {
	o := &output{from: from, to: to, stream: stream, tty: stream == wire.Terminal, done: make(chan struct{})}
	go o.copy()
	return o
}

// copy copies until the end of the output, or until the host does not want it. The
// command's next write then raises SIGPIPE, and a terminal is hung up.
//
// A terminal's first EIO is not believed: Linux looks for bytes first and for whether
// the other side is gone then (n_tty_read), so that of last words in between only a
// second read hears. Nobody can say more by then.
func (o *output) copy() {
	defer close(o.done)
	buf := make([]byte, smallBuffer)
	gone := false
	for {
		n, err := o.from.Read(buf)
		if n > 0 {
			if !o.pass(buf[:n]) {
				o.from.Close()
				return
			}
			if n == len(buf) && n < largeBuffer {
				buf = make([]byte, largeBuffer)
			}
		}
		if o.tty && !gone && errors.Is(err, unix.EIO) {
			gone = true
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.open = o.drain(buf)
			break
		}
		if err != nil {
			break
		}
	}
	if o.tty {
		shut(o.to, unix.SHUT_WR)
	} else {
		o.to.Close()
	}
}

// end is called when the command has ended: what it wrote is copied, and nothing that
// comes later. It waits for that.
func (o *output) end() {
	_ = o.from.SetReadDeadline(past)
	<-o.done
}

// drain copies what is there without waiting for more. It returns whether there can
// be more.
func (o *output) drain(buf []byte) (open bool) {
	_ = o.from.SetReadDeadline(never)
	rc, err := o.from.SyscallConn()
	if err != nil {
		return false
	}
	left := maxLeftover
	if !o.tty {
		_ = rc.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		if err != nil {
			return false
		}
	}
	gone := false
	for {
		var n int
		// At the least a byte is asked for, to see the end.
		p := buf[:max(1, min(len(buf), left))]
		if cerr := rc.Read(func(fd uintptr) bool { n, err = unix.Read(int(fd), p); return true }); cerr != nil {
			return false
		}
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EIO && o.tty && !gone:
			gone = true // as in copy
			continue
		case err == unix.EAGAIN:
			return true
		case err != nil || n <= 0:
			return false
		}
		if left <= 0 {
			return true // of somebody else
		}
		left -= n
		if !o.pass(p[:n]) {
			return true
		}
	}
}

// pass sends p to the host, and returns whether it takes more.
func (o *output) pass(p []byte) bool {
	_, err := patient{o.to}.Write(p)
	if err != nil && o.lost == nil && !unwanted(err) {
		o.lost = err
	}
	return err == nil
}

// unwanted says whether an error of a connection is that the host has closed it.
func unwanted(err error) bool {
	for _, gone := range [...]error{unix.EPIPE, unix.ECONNRESET, unix.ENOTCONN, os.ErrClosed} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

// patient is a connection for which the kernel may have no memory for a while. Less at
// once may still go then.
type patient struct{ to io.Writer }

func (w patient) Write(p []byte) (written int, err error) {
	size := len(p)
	var began time.Time // when nothing went any more; zero while something does
	for written < len(p) {
		n, err := w.to.Write(p[written:min(len(p), written+size)])
		written += n
		switch {
		case err == nil:
			began = time.Time{}
			continue
		case !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOBUFS):
			return written, err
		case n > 0 || began.IsZero():
			began = time.Now()
		case time.Since(began) >= memoryBound:
			return written, err
		}
		size = max(smallBuffer, size/2)
		time.Sleep(memoryPause)
	}
	return written, nil
}

// discard reads to the end of an output, for processes that were left behind and
// would not live long without it.
func discard(f *os.File) {
	buf := make([]byte, smallBuffer)
	for {
		if _, err := f.Read(buf); err != nil {
			f.Close()
			return
		}
	}
}
