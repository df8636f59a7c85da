package vmtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/harness"
)

// fakeTB is a test that is looked at from outside.
type fakeTB struct {
	testing.TB // nil: what is not here must not be called
	deadline   time.Time
	lacks      string // of the machine's agent

	mu       sync.Mutex
	log      strings.Builder
	failed   bool
	skipped  bool
	cleanups []func()
	ctx      context.Context
	cancel   context.CancelFunc
}

// runFake runs f as a test, with its clean-ups.
func runFake(t *testing.T, deadline time.Time, f func(t *fakeTB)) *fakeTB {
	t.Helper()
	fake := &fakeTB{deadline: deadline}
	fake.ctx, fake.cancel = context.WithCancel(context.Background())
	fake.inside(t, func() { f(fake) })
	fake.cancel()
	for len(fake.cleanups) > 0 {
		last := fake.cleanups[len(fake.cleanups)-1]
		fake.cleanups = fake.cleanups[:len(fake.cleanups)-1]
		fake.inside(t, last)
	}
	return fake
}

func (f *fakeTB) inside(t *testing.T, what func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		what()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it hangs")
	}
}

func (f *fakeTB) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log.WriteString(s + "\n")
}

func (f *fakeTB) said() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.String()
}

func (f *fakeTB) Helper()                      {}
func (f *fakeTB) Name() string                 { return "Fake" }
func (f *fakeTB) Context() context.Context     { return f.ctx }
func (f *fakeTB) Cleanup(c func())             { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Logf(s string, args ...any)   { f.note(fmt.Sprintf(s, args...)) }
func (f *fakeTB) Failed() bool                 { return f.failed }
func (f *fakeTB) Errorf(s string, args ...any) { f.failed = true; f.Logf(s, args...) }
func (f *fakeTB) Fatal(args ...any)            { f.Fatalf("%s", fmt.Sprint(args...)) }
func (f *fakeTB) Fatalf(s string, args ...any) {
	f.Errorf(s, args...)
	runtime.Goexit()
}
func (f *fakeTB) Skipf(s string, args ...any) {
	f.skipped = true
	f.Logf(s, args...)
	runtime.Goexit()
}
func (f *fakeTB) Deadline() (time.Time, bool) { return f.deadline, !f.deadline.IsZero() }

// fakeMachine is a machine without KVM, whose agent is in this process.
type fakeMachine struct {
	*remote.Guest
	console *console
	listen  string // the agent's socket
	lacks   string
	stops   sync.WaitGroup

	mu      sync.Mutex
	done    chan struct{}
	exit    vmm.Exit
	failure *harness.Failure
	calls   []string
	files   map[string][]byte
	syncErr error
}

// startFake puts a machine into a test, whose agent comes at once.
func startFake(t *fakeTB, dir string, opts ...Option) (*VM, *fakeMachine) {
	c := newConfig(opts)
	if err := c.complete(); err != nil {
		t.Fatalf("%v", err)
	}
	v := newVM(t, c)
	m := &fakeMachine{console: v.console, listen: filepath.Join(dir, "agent"), lacks: t.lacks, done: make(chan struct{}), files: map[string][]byte{}}
	l, err := net.Listen("unix", m.listen)
	if err != nil {
		t.Fatalf("%v", err)
	}
	m.Guest = remote.New(l, remote.Options{})
	v.own(m)
	v.guest = m.Guest
	v.dial = func(ctx context.Context, port uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, fmt.Sprint(port)))
	}
	m.stops.Go(m.agent)
	v.up()
	return v, m
}

func (m *fakeMachine) call(s string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, s)
}

func (m *fakeMachine) called() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

func (m *fakeMachine) Done() <-chan struct{} { return m.done }

func (m *fakeMachine) Wait(ctx context.Context) (vmm.Exit, error) {
	select {
	case <-m.done:
		return m.exit, nil
	case <-ctx.Done():
		return vmm.Exit{}, ctx.Err()
	}
}

func (m *fakeMachine) Failure() *harness.Failure {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failure
}

func (m *fakeMachine) Shutdown(context.Context) error {
	m.call("shutdown")
	if m.syncErr == nil {
		m.end(vmm.Exit{Reason: vmm.Killed}, nil)
	}
	return m.syncErr
}

func (m *fakeMachine) Close() error {
	m.call("close")
	m.end(vmm.Exit{Reason: vmm.Killed}, nil)
	err := m.Guest.Close()
	m.stops.Wait()
	return err
}

// end is the machine's end, once.
func (m *fakeMachine) end(e vmm.Exit, f *harness.Failure) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return
	default:
	}
	m.exit, m.failure = e, f
	if f != nil {
		m.Guest.Fail(f)
	}
	close(m.done)
}

func (m *fakeMachine) panic() {
	_, _ = io.WriteString(m.console, "Kernel panic - not syncing: a fake\r\n")
	m.end(vmm.Exit{Reason: vmm.Panic}, &harness.Failure{Kind: harness.Panic, Text: "the guest's kernel panicked: a fake"})
}

func (m *fakeMachine) connect(p wire.Preface) (*net.UnixConn, error) {
	c, err := net.Dial("unix", m.listen)
	if err != nil {
		return nil, err
	}
	_, err = c.Write(p.Append(nil, m.Guest.Secret()))
	return c.(*net.UnixConn), err
}

// agent is what runs in the guest. It ends with its connection.
func (m *fakeMachine) agent() {
	c, err := m.connect(wire.Preface{Stream: wire.Control})
	if err != nil {
		return
	}
	defer c.Close()
	out := wire.NewWriter(c)
	_ = out.Write(wire.KindHello, wire.Hello{Release: "6.1-fake", Problems: []string{"a \x1b[problem"}, Lacks: m.lacks})
	for {
		f, err := wire.ReadFrame(c)
		if err != nil {
			return
		}
		if f.Kind != wire.KindStart {
			continue
		}
		var cmd wire.Command
		if f.Decode(&cmd) == nil {
			m.stops.Go(func() { m.command(out, &cmd) })
		}
	}
}

// command carries a command out: "echo WORDS", "cat", "code N", "hang", "panic", "env",
// or a file.
func (m *fakeMachine) command(out *wire.Writer, c *wire.Command) {
	m.call(string(c.Op) + string(c.Path))
	fail := func(what string, errno uint32) {
		_ = out.Write(wire.KindFailed, wire.Failed{ID: c.ID, What: what, Errno: errno})
	}
	m.mu.Lock()
	file, there := m.files[string(c.Path)]
	m.mu.Unlock()
	if c.Op == wire.OpRead && !there {
		fail("open "+string(c.Path)+": no such file", 2)
		return
	}
	if c.Path == "nothing" {
		fail("nothing: no such program", 2)
		return
	}
	_ = out.Write(wire.KindStarted, wire.Started{ID: c.ID, PID: 7})
	streams := make([]*net.UnixConn, 3)
	for i, f := range c.Files {
		if f == wire.FileStream {
			streams[i], _ = m.connect(wire.Preface{Command: c.ID, Stream: uint8(i)})
		}
	}
	defer func() {
		for _, s := range streams {
			if s != nil {
				s.Close()
			}
		}
	}()
	write := func(i int, text []byte) {
		if streams[i] != nil {
			_, _ = streams[i].Write(text)
		}
	}
	code := 0
	switch {
	case c.Op == wire.OpRead:
		write(1, file)
	case c.Op == wire.OpWrite:
		b, _ := io.ReadAll(streams[0])
		m.mu.Lock()
		m.files[string(c.Path)] = b
		m.mu.Unlock()
	case c.Path == "echo":
		var words []string
		for _, a := range c.Args[1:] {
			words = append(words, string(a))
		}
		write(1, []byte(strings.Join(words, " ")+"\n"))
	case c.Path == "cat":
		b, _ := io.ReadAll(streams[0])
		write(1, b)
	case c.Path == "code":
		write(2, []byte("it went wrong\n"))
		_, _ = fmt.Sscan(string(c.Args[1]), &code)
	case c.Path == "where":
		write(1, fmt.Appendf(nil, "%s %d", c.Dir, len(c.Env)))
	case c.Path == "panic":
		m.panic()
		return
	case c.Path == "hang":
		<-m.Guest.Done()
		return
	}
	for i, s := range streams {
		if s != nil && i > 0 {
			s.Close()
			streams[i] = nil
		}
	}
	_ = out.Write(wire.KindExited, wire.Exited{ID: c.ID, Code: code})
}
