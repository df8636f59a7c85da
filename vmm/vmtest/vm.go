package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/harness"
)

const (
	// closeBound is how long the guest may take to write what is not written yet, when
	// its test has ended.
	closeBound = 10 * time.Second
	// A screen of console goes to the log of a test that fails.
	screenLines = 40
	screenBytes = 8 << 10
	// retryEvery is how often Dial tries.
	retryEvery = 50 * time.Millisecond
)

// VM is a machine of a test. Methods that return no error end the test, as t.Fatal does,
// when they can't do what they say, and may be called from the test's goroutine only; all
// others from any.
type VM struct {
	t          testing.TB
	c          *config
	ctx        context.Context
	console    *console
	guest      *remote.Guest // nil without an agent
	machine    *vmm.Machine  // nil before its start
	typed      *os.File      // the console's input, nil if it is another
	files      []io.Closer   // to close behind the machine
	onHostRoot bool          // the guest's files are this host's
	dial       func(ctx context.Context, port uint32) (net.Conn, error)
	hello      wire.Hello

	mu    sync.Mutex
	back  backend
	known bool // the test knows that the guest has ended, or has ended it
}

// newVM makes what a machine of c is put into. From here on the end of the test closes it.
func newVM(t testing.TB, c *config) *VM {
	t.Helper()
	v := &VM{t: t, c: c, console: &console{tees: c.console}}
	if c.logAll {
		v.console.line = func(s string) { t.Logf("console: %s", printable(s)) }
	}
	ctx, cancel := boundContext(t)
	v.ctx = ctx
	t.Cleanup(func() {
		t.Helper()
		v.close()
		cancel()
	})
	return v
}

func (v *VM) own(b backend) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.back = b
}

// up waits for the agent, if there is one.
func (v *VM) up() {
	v.t.Helper()
	if v.guest == nil {
		return
	}
	hello, err := v.guest.Ready(v.ctx)
	if err != nil {
		v.t.Fatalf("vmtest: %v", v.because(err))
	}
	v.hello = hello
	if hello.Lacks != "" {
		v.t.Fatalf("vmtest: the guest: %s", printable(hello.Lacks))
	}
	for _, p := range hello.Problems {
		v.t.Logf("vmtest: the guest: %s", printable(p))
	}
}

// because says why a wait has ended, in words of the test.
func (v *VM) because(err error) error {
	if end := v.ctx.Err(); end != nil && errors.Is(err, end) {
		return errors.New(strings.Replace(err.Error(), end.Error(), context.Cause(v.ctx).Error(), 1))
	}
	return err
}

// Context ends with the test, or a little before the test's time is over: it is for waits
// that concern the guest.
func (v *VM) Context() context.Context { return v.ctx }

// Guest is the agent in the guest, nil without one. Its methods return errors where those
// of VM end the test, and work in the test's clean-ups, when Context has ended.
func (v *VM) Guest() *remote.Guest { return v.guest }

// Machine is the machine itself.
func (v *VM) Machine() *vmm.Machine { return v.machine }

// Release is the guest's kernel, as uname -r has it; "" without an agent.
func (v *VM) Release() string { return v.hello.Release }

// agent is the agent, for methods that need one.
func (v *VM) agent() *remote.Guest {
	v.t.Helper()
	if v.guest == nil {
		v.t.Fatal("vmtest: the machine has no agent: the options NoAgent and Initrd leave that out")
	}
	return v.guest
}

// Command returns a command to run in the guest, with the fields and methods of exec.Cmd.
// It runs as root; where the guest's root is this host's it has the test's environment and
// working directory, as with os/exec. It is killed when the test ends.
func (v *VM) Command(name string, args ...string) *remote.Cmd {
	v.t.Helper()
	c := v.agent().CommandContext(v.ctx, name, args...)
	if v.onHostRoot {
		c.Env = os.Environ()
		if dir, err := os.Getwd(); err == nil {
			c.Dir = dir
		}
	}
	return c
}

// Output runs a command in the guest and returns its standard output. If it does not end
// with code 0 the test ends, with what it wrote to its standard error.
func (v *VM) Output(name string, args ...string) string {
	v.t.Helper()
	c := v.Command(name, args...)
	out, err := c.Output()
	if err == nil {
		return string(out)
	}
	said := ""
	var exit *remote.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		said = "\n" + printable(string(exit.Stderr))
	}
	v.t.Fatalf("vmtest: %s: %v%s", c, v.because(err), said)
	return ""
}

// ReadFile returns a file of the guest.
func (v *VM) ReadFile(name string) []byte {
	v.t.Helper()
	b, err := v.agent().ReadFile(v.ctx, name)
	v.check(err)
	return b
}

// WriteFile makes a file in the guest, or takes the place of the one that is there. A file of
// the kernel's (/proc, /sys) or a device is written as it is, in one write.
func (v *VM) WriteFile(name string, data []byte, perm os.FileMode) {
	v.t.Helper()
	v.check(v.agent().WriteFile(v.ctx, name, data, perm))
}

// CopyIn copies a file of this host into the guest, with its permissions.
func (v *VM) CopyIn(from, to string) {
	v.t.Helper()
	g := v.agent()
	f, err := os.Open(from)
	v.check(err)
	defer f.Close()
	info, err := f.Stat()
	v.check(err)
	v.check(g.CopyIn(v.ctx, to, f, info.Mode()))
}

// CopyOut copies a file of the guest to this host. One that is there is replaced when all of
// the new one has come, and keeps its mode; what is there and no regular file, as a link or a
// FIFO, is written to from the first byte on.
func (v *VM) CopyOut(from, to string) {
	v.t.Helper()
	g := v.agent()
	v.check(replace(to, func(w io.Writer) error { return g.CopyOut(v.ctx, w, from) }))
}

func (v *VM) check(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatalf("vmtest: %v", v.because(err))
	}
}

// Dial connects to a vsock port of the guest. It tries until somebody listens there, for
// as long as [Patience] says. The caller closes the connection, at the latest in a
// clean-up.
func (v *VM) Dial(port uint32) net.Conn {
	v.t.Helper()
	v.agent()
	return v.connect(fmt.Sprintf("vsock port %d of the guest", port), func(ctx context.Context) (net.Conn, error) { return v.dial(ctx, port) })
}

// DialTCP connects to a TCP port of the guest by the Dialer of [Net]: "guest:80" with a
// usernet.Network. It tries as Dial does.
func (v *VM) DialTCP(address string) net.Conn {
	v.t.Helper()
	d := v.c.dialer
	if d == nil {
		v.t.Fatal("vmtest: the machine has no network that can be dialled: the option Net has one")
	}
	return v.connect(address, func(ctx context.Context) (net.Conn, error) { return d.Dial(ctx, "tcp", address) })
}

func (v *VM) connect(to string, dial func(context.Context) (net.Conn, error)) net.Conn {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, v.c.patience)
	defer cancel()
	again := time.NewTicker(retryEvery)
	defer again.Stop()
	for {
		conn, err := dial(ctx)
		if err == nil {
			return conn
		}
		select {
		case <-again.C:
			if ctx.Err() == nil {
				continue
			}
		case <-ctx.Done():
		case <-v.backend().Done():
			v.t.Fatalf("vmtest: connect to %s: %v", to, v.ended())
		}
		v.t.Fatalf("vmtest: connect to %s: %v", to, err)
	}
}

func (v *VM) backend() backend {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.back
}

// ended says in words that the guest has, and why if that is known.
func (v *VM) ended() error {
	back := v.backend()
	ctx, cancel := context.WithTimeout(v.ctx, closeBound)
	defer cancel()
	exit, err := back.Wait(ctx)
	if f := back.Failure(); f != nil {
		return f
	}
	if err != nil {
		return v.because(err)
	}
	return fmt.Errorf("%w: %v", errConsoleEnd, exit)
}

// Wait waits until the guest has ended, as long as the test may take, and says how. The
// test knows then, and does not fail because of it.
func (v *VM) Wait() vmm.Exit {
	v.t.Helper()
	exit, err := v.backend().Wait(v.ctx)
	if err != nil {
		v.t.Fatalf("vmtest: the guest has not ended: %v", v.because(err))
	}
	v.know()
	return exit
}

// Failure is why the guest can serve no command any more; nil as long as it can, and after
// Shutdown. The test knows then, and does not fail because of it. Commands that a failure
// ends have it as their error.
func (v *VM) Failure() *harness.Failure {
	f := v.backend().Failure()
	if f != nil {
		v.know()
	}
	return f
}

func (v *VM) know() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known = true
}

// Shutdown ends the guest without loss: what runs is killed, and what is written is in the
// host's files (harness.Machine.Shutdown). Without an agent it presses the power button and waits for the guest to
// power off.
func (v *VM) Shutdown() {
	v.t.Helper()
	if err := v.backend().Shutdown(v.ctx); err != nil {
		v.t.Fatalf("vmtest: shut the guest down: %v", v.because(err))
	}
	v.know()
	if _, err := v.backend().Wait(v.ctx); err != nil {
		v.t.Fatalf("vmtest: shut the guest down: %v", v.because(err))
	}
}
