package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"

	"github.com/vole-vmm/vole/guest/wire"
)

// Cmd is a command in a guest. Its exported fields and methods mean what those of
// exec.Cmd do; what differs is said. A Cmd is used once, and its fields are not changed
// after its start.
type Cmd struct {
	// Path is the program; without a slash it is looked for in the PATH of Env, in
	// the guest. Args has its name as the first; empty is Path alone.
	Path string
	Args []string
	// Env is the whole environment; nil is only a PATH of the usual directories.
	Env []string
	// Dir is the working directory in the guest; "" is the root.
	Dir string
	// Stdin, Stdout and Stderr are /dev/null where they are nil. A reader whose Read
	// waits when the command ends is left behind, unless it has SetReadDeadline: then
	// nothing reads from it after Wait, and it has no deadline.
	// Stdout and Stderr may be the same: then their bytes come in the order in which
	// they were written. A writer that fails closes the command's end: SIGPIPE. A reader
	// that fails, other than by io.EOF, is the end of what the command reads, and an
	// error of Wait. When the guest has gone, or the context ended, a Write that waits is
	// ended by SetWriteDeadline, which is taken back, or left behind.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// User is who runs the command; nil is root.
	User *User
	// Umask is the command's.
	Umask uint32
	// Terminal, if set, gives the command a terminal. The files that are on it are
	// not Stdin, Stdout and Stderr.
	Terminal *Terminal

	guest *Guest
	ctx   context.Context

	// After the command's end.
	ProcessState *ProcessState

	wire    wire.Command
	pipes   []io.Closer  // the caller's ends, closed when Wait has seen the end
	ends    [4]io.Closer // the command's ends of pipes, closed with its streams
	settled sync.Once

	mu       sync.Mutex
	begun    bool
	streams  [4]stream
	output   sync.WaitGroup // of the streams that the command writes
	input    sync.WaitGroup // of those that it reads
	copyErr  *StreamError   // of a writer
	cutErr   *StreamError   // of what was not passed on
	inErr    *StreamError   // of a reader
	inCut    *StreamError   // of what the command did not get
	hurried  bool           // writers may have a deadline of ours
	process  int
	going    chan struct{} // closed when the guest has started it, or at the end
	finished chan struct{} // closed with the end
	left     chan struct{} // closed when nobody waits for the writers any more
	state    *ProcessState
	err      error
}

// User is who runs a command.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Terminal is a command's terminal, of which the other side is here.
type Terminal struct {
	Rows, Cols uint16
	// Files says which of standard input, output and error are on it; none is all.
	Files [3]bool
	// In is what is typed, Out what is shown. Either may be nil.
	In  io.Reader
	Out io.Writer
}

// ErrUsed says that a command was started before.
var ErrUsed = errors.New("the command was started before")

// Command returns a Cmd that runs the program name with args.
func (g *Guest) Command(name string, args ...string) *Cmd {
	return g.CommandContext(context.Background(), name, args...)
}

// CommandContext is Command; when ctx ends first, the command is killed and Wait fails
// with ctx's error.
func (g *Guest) CommandContext(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{
		Path: name, Args: append([]string{name}, args...), guest: g, ctx: ctx, Umask: 0o022,
		going: make(chan struct{}), finished: make(chan struct{}), left: make(chan struct{}),
	}
}

// String is the command as it could be typed, more or less.
func (c *Cmd) String() string { return strings.Join(c.Args, " ") }

// defaultEnv is what a command gets that is given no environment.
var defaultEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// Early is the command for the agent's configuration: the agent starts it by itself. It
// counts as Start.
func (c *Cmd) Early() (*wire.Command, error) {
	if err := c.claim(); err != nil {
		return nil, err
	}
	if err := c.begin(wire.OpExec); err != nil {
		return nil, c.fail(err)
	}
	return &c.wire, nil
}

// Start starts the command, and returns when the guest has: an error is a *StartError if
// the program can't be run. It waits for the agent if that has not connected yet. When it
// fails, the command's pipes are closed.
func (c *Cmd) Start() error { return c.start(wire.OpExec) }

func (c *Cmd) start(op wire.Op) error {
	if err := c.claim(); err != nil {
		return err
	}
	if _, err := c.guest.Ready(c.ctx); err != nil {
		return c.fail(err)
	}
	if err := c.begin(op); err != nil {
		return c.fail(err)
	}
	if err := c.guest.send(c.ctx, wire.KindStart, &c.wire); err != nil && c.ctx.Err() == nil {
		return c.fail(err)
	}
	<-c.going
	return c.failure()
}

// claim makes the command used.
func (c *Cmd) claim() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begun {
		return ErrUsed
	}
	c.begun = true
	return nil
}

// fail ends a command that can't be started.
func (c *Cmd) fail(err error) error {
	c.finish(nil, err)
	return c.failure()
}

// failure is why the command has not started.
func (c *Cmd) failure() error {
	c.mu.Lock()
	err := c.err
	c.mu.Unlock()
	if err != nil {
		c.settle()
	}
	return err
}

// begin fixes what the agent is told and makes the command known, so that its streams
// can come.
func (c *Cmd) begin(op wire.Op) error {
	args := c.Args
	if len(args) == 0 {
		args = []string{c.Path}
	}
	env := c.Env
	if env == nil {
		env = defaultEnv
	}
	w := wire.Command{
		Op: op, Path: wire.Text(c.Path), Args: wire.Texts(args), Env: wire.Texts(env), Dir: wire.Text(c.Dir),
		Umask: c.Umask, Perm: c.wire.Perm,
	}
	if c.User != nil {
		w.UID, w.GID, w.Groups = c.User.UID, c.User.GID, c.User.Groups
	}
	g := c.guest
	c.mu.Lock()
	defer c.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return g.err
	}
	c.plan(&w)
	for i := range c.streams {
		if c.streams[i].w != nil {
			c.output.Add(1)
		}
	}
	g.nextID++
	w.ID = g.nextID
	c.wire = w
	g.running[w.ID] = c
	g.workers.Go(c.watch)
	return nil
}

// watch ends the command with its context or its guest.
func (c *Cmd) watch() {
	select {
	case <-c.finished:
	case <-c.guest.done:
		c.finish(nil, c.guest.Err())
	case <-c.ctx.Done():
		err := c.Signal(syscall.SIGKILL)
		c.finish(nil, c.ctx.Err())
		if errors.Is(err, context.DeadlineExceeded) { // the agent may be told to start it yet
			_ = c.guest.send(context.Background(), wire.KindSignal, wire.Signal{ID: c.wire.ID, Signal: int(syscall.SIGKILL)})
		}
	}
}

// started notes that the guest runs the command.
func (c *Cmd) started(m wire.Started) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == 0 && m.PID > 0 && !c.ended() {
		c.process = m.PID
		close(c.going)
	}
}

func (c *Cmd) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.process
}

// finish notes how the command ended, once.
func (c *Cmd) finish(s *ProcessState, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended() {
		return
	}
	c.state, c.err = s, err
	if s != nil && s.exit.Lost != nil && c.cutErr == nil {
		c.cutErr = lost(s.exit.Lost)
	}
	if s != nil && s.exit.LostInput != nil && c.fed(int(s.exit.LostInput.Stream)) {
		c.inCut = lost(s.exit.LostInput)
	}
	if c.process == 0 {
		close(c.going)
	}
	close(c.finished)
	c.cut()
}

// lost is what the agent says of a stream.
func lost(l *wire.Lost) *StreamError {
	return &StreamError{int(l.Stream), fmt.Errorf("%w: in the guest: %s", ErrCut, l.What)}
}

// ended says whether the command's end is known; the lock is held.
func (c *Cmd) ended() bool {
	select {
	case <-c.finished:
		return true
	default:
		return false
	}
}

// Wait waits for the command's end and for all of its output. The error is nil if the
// command has ended with code 0, an *ExitError if it ended in another way, a *StartError
// if it could not be started, or the guest's. If a reader or writer has failed, it is or
// wraps a *StreamError, too: but one because nobody reads the output any more (EPIPE) is
// left out where there is an *ExitError. Output that is still on its way when the guest
// goes or the context ends has a moment more; then the error is one that wraps ErrCut and
// the guest's or the context's. It wraps ErrCut, too, if the guest could not send all of
// it, or did not get all of what the command was still reading: its end, and what it has
// written, mean little then. As with exec.Cmd, everything is read from the pipes before.
func (c *Cmd) Wait() error {
	c.mu.Lock()
	begun := c.begun
	c.mu.Unlock()
	if !begun {
		return errors.New("the command was not started")
	}
	<-c.finished
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ProcessState = c.state
	if c.state == nil {
		return c.err
	}
	var all endError
	if !c.state.Success() && !(c.inErr != nil && c.wire.Op == wire.OpWrite) {
		all = append(all, &ExitError{ProcessState: c.state})
	}
	if c.copyErr != nil && (len(all) == 0 || !moot(c.copyErr)) {
		all = append(all, c.copyErr)
	}
	if c.cutErr != nil {
		all = append(all, c.cutErr)
	}
	if c.inCut != nil {
		all = append(all, c.inCut)
	}
	if c.inErr != nil {
		all = append(all, c.inErr)
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return all
}

// settle waits for the output of a command that has ended, closes what is open for it, and
// gives the caller's readers back.
func (c *Cmd) settle() {
	c.settled.Do(func() {
		for _, p := range c.pipes {
			_ = p.Close()
		}
		c.join()
		c.forget()
		c.input.Wait()
		for _, e := range c.ends {
			if e != nil {
				_ = e.Close()
			}
		}
	})
}

// moot says whether a writer's error tells nothing that a command's end does not: its
// reader has gone, as the command has heard.
func moot(err error) bool { return errors.Is(err, syscall.EPIPE) }

// forget takes the command out of its guest, and closes its connections.
func (c *Cmd) forget() {
	g := c.guest
	g.mu.Lock()
	delete(g.running, c.wire.ID)
	g.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.streams {
		if conn := c.streams[i].conn; conn != nil {
			g.drop(conn)
		}
	}
}

// Run is Start and Wait.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Signal sends a signal to the command's process group or, if it has a terminal, to that
// one's foreground; SIGKILL to both.
func (c *Cmd) Signal(s syscall.Signal) error {
	c.mu.Lock()
	id, ended := c.wire.ID, c.ended()
	c.mu.Unlock()
	if ended {
		return fmt.Errorf("%s: the command has ended", c.Path)
	}
	return c.guest.tell(wire.KindSignal, wire.Signal{ID: id, Signal: int(s)})
}

// Resize gives the command's terminal another size.
func (c *Cmd) Resize(rows, cols uint16) error {
	c.mu.Lock()
	id := c.wire.ID
	c.mu.Unlock()
	return c.guest.tell(wire.KindResize, wire.Resize{ID: id, Size: wire.Size{Rows: rows, Cols: cols}})
}
