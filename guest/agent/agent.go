package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

const (
	// connectBound is how long the host has until it must have taken a connection,
	// connectPause how long it is left alone between two attempts.
	connectBound = 30 * time.Second
	connectPause = 20 * time.Millisecond
	// maxCommands bounds the commands at once. Each has up to nine descriptors, of
	// which the process has 1024, and four connections.
	maxCommands = 60
)

// Options is what an agent works with. The zero value of all but Config is for a
// real guest.
type Options struct {
	Config wire.Config
	// Began is the uptime when the process began to be the agent.
	Began time.Duration
	// Say tells whoever watches the console.
	Say func(string)
	// Dial connects to a port of the host, by vsock if it is nil. The file is in
	// non-blocking mode.
	Dial func(port uint32) (*os.File, error)
	// Share mounts a shared directory, by virtiofs if it is nil.
	Share func(tag, dir string, readOnly bool) error
	// PowerOff ends the machine.
	PowerOff func()
}

// agent is PID 1 at work.
type agent struct {
	Options
	children *reaper
	starts   starter
	discards chan struct{} // a place for each output that is read to nowhere
	renewal  renewal

	control *wire.Writer
	greeted chan struct{} // closed when the Hello is on its way, or never will be
	hello   time.Time     // just before that
	rootErr error         // why commands can't run
	lacks   error         // why they may not: what they write would be lost
	shares  shares

	mu       sync.Mutex
	commands map[uint32]*command
	ran      bool // a command has begun
}

// Run is the agent's life. It does not return before the host has gone or told it to
// end the machine, and then only where PowerOff does; the error says why it ended,
// nil if it was told to.
func Run(o Options) error {
	if o.Say == nil {
		o.Say = func(string) {}
	}
	if o.Dial == nil {
		o.Dial = dialVsock
	}
	if o.Share == nil {
		o.Share = mountVirtioFS
	}
	if o.PowerOff == nil {
		o.PowerOff = powerOff
	}
	// A system call that waits keeps its processor (in Go's sense) until a watchdog
	// takes it away, which is late: there must be others.
	runtime.GOMAXPROCS(max(4, runtime.NumCPU()))
	a := &agent{
		Options:  o,
		children: newReaper(),
		greeted:  make(chan struct{}),
		discards: make(chan struct{}, maxDiscards),
		commands: make(map[uint32]*command),
	}
	go a.children.run()
	immune()
	err := a.run()
	if err != nil {
		a.Say(fmt.Sprintf("vole guest: %v\n", err))
	}
	a.PowerOff()
	return err
}

func (a *agent) run() error {
	c := &a.Config
	var problems problems
	sockets := make(chan struct{}) // closed when there can be any
	control := make(chan *os.File, 1)
	failed := make(chan error, 1)
	var early *command
	if c.Command != nil {
		early = a.admit(*c.Command)
	}
	go func() {
		<-sockets
		if early != nil {
			early.dial()
		}
		f, err := a.connect(wire.Preface{Stream: wire.Control}, nil)
		if err != nil {
			failed <- fmt.Errorf("no connection to the host: %w", err)
			return
		}
		control <- f
	}()
	problems.add(loadModules(c.Modules, sockets))
	done := make(chan []string, 1)
	go func() { done <- configureNet(c.Net) }()
	problems.add(a.makeRoot())
	problems.add(<-done)
	limits()
	if early != nil {
		go early.run()
	}
	ready := uptime()

	var f *os.File
	select {
	case f = <-control:
	case err := <-failed:
		return err
	}
	defer f.Close()
	a.control = wire.NewWriter(patient{f})
	a.hello = time.Now()
	err := a.control.Write(wire.KindHello, wire.Hello{
		Release: release(), Init: int64(a.Began), Ready: int64(ready), Problems: problems, Lacks: errorText(a.lacks),
	})
	if err != nil {
		return fmt.Errorf("the host has gone: %w", err)
	}
	close(a.greeted)
	return a.serve(f)
}

// connect makes a connection and says what it is for. It tries until that is done, for as
// long as connectBound, or until nobody wants it any more, which over says.
func (a *agent) connect(p wire.Preface, over <-chan struct{}) (*os.File, error) {
	for deadline := time.Now().Add(connectBound); ; {
		f, err := a.open(p)
		// A kernel that has no such sockets will not get any.
		if err == nil || errors.Is(err, unix.EAFNOSUPPORT) || time.Now().After(deadline) {
			return f, err
		}
		select {
		case <-over:
			return nil, err
		case <-time.After(connectPause):
		}
	}
}

// open makes a connection and says what it is for.
func (a *agent) open(p wire.Preface) (*os.File, error) {
	f, err := a.Dial(a.Config.Port)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(p.Append(nil, a.Config.Secret)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// serve does what the host says, until that has gone or says to end.
func (a *agent) serve(control io.Reader) error {
	for {
		f, err := wire.ReadFrame(control)
		if err == nil {
			var ended bool
			if ended, err = a.handle(f); ended {
				return nil
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, wire.ErrFrame):
			return fmt.Errorf("the host sends nonsense: %w", err)
		case errors.Is(err, io.EOF):
			return errors.New("the host has gone")
		default:
			return fmt.Errorf("the host has gone: %w", err)
		}
	}
}

// handle does what one frame says. It does not wait for anything but the end.
func (a *agent) handle(f wire.Frame) (ended bool, err error) {
	switch f.Kind {
	case wire.KindStart:
		var c wire.Command
		if err := f.Decode(&c); err != nil {
			return false, err
		}
		if cmd := a.admit(c); cmd != nil {
			cmd.dial()
			go cmd.run()
		}
	case wire.KindSignal:
		var s wire.Signal
		if err := f.Decode(&s); err != nil {
			return false, err
		}
		if c := a.command(s.ID); c != nil {
			c.signal(unix.Signal(s.Signal))
		}
	case wire.KindResize:
		var r wire.Resize
		if err := f.Decode(&r); err != nil {
			return false, err
		}
		if c := a.command(r.ID); c != nil {
			c.resize(r.Size)
		}
	case wire.KindInput:
		var in wire.Input
		if err := f.Decode(&in); err != nil {
			return false, err
		}
		if c := a.command(in.ID); c != nil {
			c.inputEnded(in)
		}
	case wire.KindPing:
		var p wire.Ping
		if err := f.Decode(&p); err != nil {
			return false, err
		}
		a.send(wire.KindPong, p)
	case wire.KindClock:
		var c wire.Clock
		if err := f.Decode(&c); err != nil {
			return false, err
		}
		var age time.Duration
		if c.Hello {
			age = time.Since(a.hello)
		}
		if err := setClock(c.Unix, age); err != nil {
			a.send(wire.KindLog, wire.Log{Text: fmt.Sprintf("the guest's clock can't be set: %v", err)})
		}
	case wire.KindRenew:
		a.renewal.ask()
	case wire.KindPoweroff:
		var p wire.Poweroff
		if err := f.Decode(&p); err != nil {
			return false, err
		}
		if !p.SyncOnly {
			a.rest()
			return true, nil
		}
		// Pings are answered meanwhile.
		go func() {
			a.settle()
			a.send(wire.KindPong, wire.Ping{Seq: p.Seq})
		}()
	}
	return false, nil
}

// send says something to the host. That it has gone is noticed where it is read.
func (a *agent) send(k wire.Kind, v any) {
	<-a.greeted
	_ = a.control.Write(k, v)
}

// admit makes a command known, so that what the host says about it finds it. nil if
// it can't be.
func (a *agent) admit(w wire.Command) *command {
	a.mu.Lock()
	defer a.mu.Unlock()
	var why string
	errno := unix.EAGAIN
	switch {
	case a.commands[w.ID] != nil:
		errno, why = unix.EEXIST, fmt.Sprintf("a command with the number %d runs already", w.ID)
	case len(a.commands) >= maxCommands:
		why = fmt.Sprintf("the guest runs %d commands, and no more at once", maxCommands)
	default:
		c := newCommand(a, w)
		a.commands[w.ID] = c
		return c
	}
	go a.send(wire.KindFailed, wire.Failed{ID: w.ID, Errno: uint32(errno), What: why})
	return nil
}

// command is the one with this number, nil if it does not run.
func (a *agent) command(id uint32) *command {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.commands[id]
}

func (a *agent) forget(c *command) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.commands, c.ID)
}

// errorText is an error's, "" for none.
func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// problems are sentences for the Hello.
type problems []string

func (p *problems) add(more []string) { *p = append(*p, more...) }

// check adds a sentence if err is not nil.
func (p *problems) check(err error, format string, args ...any) {
	if err != nil {
		*p = append(*p, fmt.Sprintf(format, args...)+": "+err.Error())
	}
}
