package agent

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// Deadlines for files.
var (
	past  = time.Unix(1, 0)
	never time.Time
)

// maxPending bounds the signals and sizes that wait for a command to start.
const maxPending = 64

// command is one of the host's commands.
type command struct {
	wire.Command
	a       *agent
	streams [wire.Terminal + 1]dialing
	sizes   [wire.Terminal + 1]chan int64 // of what the host sends, once it has said so

	mu      sync.Mutex
	child   *child
	tty     *terminal
	ended   bool
	over    chan struct{} // closed at the end, and by a signal that ends an OpRead or OpWrite
	aborted bool          // by that
	pending []unix.Signal
	abort   func() // ends an OpRead or OpWrite
}

// dialing is a connection that is being made.
type dialing struct {
	done chan struct{} // nil: there is none to be
	file *os.File
	err  error
}

func newCommand(a *agent, w wire.Command) *command {
	c := &command{Command: w, a: a, over: make(chan struct{})}
	for i := range c.streams {
		if c.wants(i) {
			c.streams[i].done = make(chan struct{})
			c.sizes[i] = make(chan int64, 1)
		}
	}
	return c
}

// wants says whether the command has stream i.
func (c *command) wants(i int) bool {
	switch {
	case c.Op == wire.OpRead:
		return i == 1
	case c.Op == wire.OpWrite:
		return i == 0
	case i == wire.Terminal:
		return c.TTY()
	default:
		return c.Files[i] == wire.FileStream
	}
}

// dial begins to make the command's connections.
func (c *command) dial() {
	for i := range c.streams {
		if s := &c.streams[i]; s.done != nil {
			go func() {
				defer close(s.done)
				s.file, s.err = c.a.connect(wire.Preface{Command: c.ID, Stream: uint8(i)}, c.over)
			}()
		}
	}
}

// noStream is why a command's stream could not be connected.
type noStream struct {
	stream int
	error
}

func (e *noStream) Error() string { return "no stream to the host: " + cause(e.error).Error() }
func (e *noStream) Unwrap() error { return e.error }

// connected waits for the connections.
func (c *command) connected() (failed *noStream) {
	for i := range c.streams {
		if s := &c.streams[i]; s.done != nil {
			<-s.done
			if s.err != nil && failed == nil {
				failed = &noStream{i, s.err}
			}
		}
	}
	return failed
}

// refused is why one of the connections could not be made, nil if none has failed so far.
func (c *command) refused() *noStream {
	for i := range c.streams {
		select {
		case <-c.streams[i].done:
			if err := c.streams[i].err; err != nil {
				return &noStream{i, err}
			}
		default: // also where there is none to be
		}
	}
	return nil
}

// close closes the connections.
func (c *command) close() {
	for i := range c.streams {
		if s := &c.streams[i]; s.done != nil {
			<-s.done
			if s.file != nil {
				s.file.Close()
			}
		}
	}
}

// run is the command's life.
func (c *command) run() {
	var exited *wire.Exited
	var err error
	switch lacks := c.a.lacks; {
	case lacks != nil && c.a.rootErr == nil && c.Op != wire.OpRead:
		err = &blamed{wire.CauseFiles, lacks}
	case c.Op == wire.OpExec:
		exited, err = c.exec()
	case c.Op == wire.OpRead:
		exited, err = c.readFile()
	case c.Op == wire.OpWrite:
		exited, err = c.writeFile()
	default:
		err = fmt.Errorf("this guest can't do %q", string(c.Op))
	}
	c.close()
	c.a.forget(c)
	if err != nil {
		f := wire.Failed{ID: c.ID, Errno: errno(err), What: err.Error()}
		var b *blamed
		if errors.As(err, &b) {
			f.Cause = b.cause
		}
		c.a.send(wire.KindFailed, f)
		return
	}
	exited.ID = c.ID
	c.a.send(wire.KindExited, exited)
}

// exec runs a program.
func (c *command) exec() (*wire.Exited, error) {
	if err := c.a.rootErr; err != nil {
		return nil, &blamed{wire.CauseFiles, err}
	}
	f, err := c.files()
	if err != nil {
		return nil, err
	}
	defer f.close()
	if err := c.refused(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	ooms := c.a.oomsBefore()
	began := time.Now()
	child, err := c.fork(f.child)
	f.closeChild()
	if err != nil {
		return nil, err
	}
	c.begin(child, f.tty)
	// What it has done by now is done.
	if failed := c.connected(); failed != nil {
		_ = c.a.children.signal(child, 0, unix.SIGKILL)
		c.a.send(wire.KindStarted, wire.Started{ID: c.ID, PID: child.pid})
		e := <-child.ended
		c.end()
		exited := exitedOf(e, began, ooms)
		what := &wire.Lost{Stream: uint8(failed.stream), What: failed.Error()}
		if failed.stream == 0 {
			exited.LostInput = what
		} else {
			exited.Lost = what
		}
		return exited, nil
	}
	copiers := f.copy(c)
	c.a.send(wire.KindStarted, wire.Started{ID: c.ID, PID: child.pid})
	e := <-child.ended
	c.end()
	copiers.end(c.a)
	exited := exitedOf(e, began, ooms)
	exited.Lost, exited.LostInput = copiers.lost(), copiers.lostInput()
	return exited, nil
}

// begin makes the child known to signal and resize, and does what has waited for it.
func (c *command) begin(child *child, tty *terminal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.child, c.tty = child, tty
	if tty != nil {
		tty.resize(c.Size) // it may have come since the terminal was opened
	}
	for _, s := range c.pending {
		c.kill(s)
	}
	c.pending = nil
}

func (c *command) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.tty = nil
	close(c.over)
}

// signal sends a signal to the command, or to its terminal's foreground.
func (c *command) signal(s unix.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
	case c.abort != nil:
		c.abort()
	case c.child != nil:
		c.kill(s)
	case len(c.pending) < maxPending:
		c.pending = append(c.pending, s)
	}
}

// kill sends a signal to the child; the lock is held.
func (c *command) kill(s unix.Signal) {
	group := 0
	// A background job of a shell has left the foreground to it.
	if c.tty != nil {
		group = c.tty.foreground()
	}
	err := c.a.children.signal(c.child, group, s)
	if err == unix.ESRCH && group != 0 {
		_ = c.a.children.signal(c.child, 0, s)
	}
}

// resize changes the size of the command's terminal.
func (c *command) resize(s wire.Size) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.tty != nil:
		c.tty.resize(s)
	case c.child == nil:
		c.Size = s
	}
}

// oomsBefore is how many processes the kernel has killed before a command begins. For
// the first one that is none.
func (a *agent) oomsBefore() int {
	a.mu.Lock()
	first := !a.ran
	a.ran = true
	a.mu.Unlock()
	if first {
		return 0
	}
	return oomKills()
}

// exitedOf says how a command has ended that began when the kernel had killed ooms
// processes.
func exitedOf(e end, began time.Time, ooms int) *wire.Exited {
	x := &wire.Exited{
		User:   e.usage.Utime.Nano(),
		System: e.usage.Stime.Nano(),
		MaxRSS: e.usage.Maxrss,
		Wall:   int64(e.at.Sub(began)),
	}
	x.OOMKills = max(0, oomKills()-ooms)
	if !e.status.Signaled() {
		x.Code = e.status.ExitStatus()
		return x
	}
	x.Signal = int(e.status.Signal())
	x.Core = e.status.CoreDump()
	x.OOM = e.status.Signal() == unix.SIGKILL && x.OOMKills > 0
	return x
}
