package vmtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/harness"
)

// Start boots a machine for a test, benchmark or fuzz test, and waits until its agent is
// there. If that fails the test ends; where no guest can run it is skipped or fails (see
// the package comment). The machine is closed when the test has ended.
func Start(t testing.TB, opts ...Option) *VM {
	t.Helper()
	c := newConfig(opts)
	v := newVM(t, c)
	if err := c.boot(v); err != nil {
		c.closeDevices()
		c.end(t, err)
	}
	v.up()
	return v
}

// end ends a test that can't have a guest.
func (c *config) end(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, errUnusable) {
		skip, perr := c.skips()
		switch {
		case perr != nil:
			err = perr
		case skip:
			t.Skipf("vmtest: %v", err)
		default:
			err = fmt.Errorf("%w (%s=%s skips this test)", err, envWithoutKVM, Skip)
		}
	}
	t.Fatalf("vmtest: %v", err)
}

// backend is the machine behind a VM.
type backend interface {
	// Done is closed when the machine has ended and its console is written.
	Done() <-chan struct{}
	// Wait returns how it ended.
	Wait(ctx context.Context) (vmm.Exit, error)
	// Failure is why the guest can serve no command any more, nil as long as it can or
	// if it was told to end.
	Failure() *harness.Failure
	// Shutdown ends the guest without loss.
	Shutdown(ctx context.Context) error
	Close() error
}

// boot makes the machine and starts it. The devices are still the options' if it fails.
func (c *config) boot(v *VM) error {
	// The options are looked at before this machine is, so that mistakes show everywhere.
	if err := c.complete(); err != nil {
		return err
	}
	if !c.noAgent {
		if err := c.canBeAgent(); err != nil {
			return err
		}
	}
	m := &c.harness.Machine
	c.harness.Console, m.ConsoleOut = v.console, v.console
	if c.harness.Logger == nil {
		c.harness.Logger = slog.New(slog.NewTextHandler(logged{v.t}, &slog.HandlerOptions{Level: level(testing.Verbose()), ReplaceAttr: withoutTime}))
	}
	if m.Logger == nil {
		m.Logger = c.harness.Logger
	}
	if m.Cache == nil {
		m.Cache = c.cache()
	}
	if m.Cache != nil && c.harness.ModulesCache == "" {
		c.harness.ModulesCache = harness.ModulesCacheIn(m.Cache)
	}
	for _, f := range c.finish {
		f(&c.harness)
	}
	if err := c.usable(); err != nil {
		return err
	}
	if c.noAgent {
		return c.bootPlain(v)
	}
	return c.bootAgent(v)
}

// fillBound is how long a kernel may take to be unpacked for the next machine.
const fillBound = time.Minute

// missed says whether the machine would have booted a kernel of the cache that is not
// there.
func missed(m *vmm.Machine) bool { return m != nil && m.Report().Boot.Missed }

// fill unpacks the kernel into the cache for the next machine. Nothing depends on it.
func (c *config) fill(ctx context.Context) {
	if c.harness.Machine.Cache == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, fillBound)
	defer cancel()
	_ = c.harness.Machine.Cache.TryFill(ctx, c.harness.Machine.Kernel)
}

func (c *config) bootAgent(v *VM) error {
	if err := c.openShares(); err != nil {
		return err
	}
	devices := c.harness.Machine.Devices
	c.harness.Machine.Devices = nil
	o := c.harness
	if err := v.typeOn(&o.Machine); err != nil {
		return err
	}
	o.Machine.Devices = devices // New's from here on
	m, err := harness.New(o)
	if err != nil {
		return err
	}
	v.own(&agentMachine{Machine: m})
	v.guest, v.dial = m.Guest(), m.Sockets().Dial
	v.onHostRoot = !c.root().None && (c.root().Dir == "" || c.root().Dir == "/")
	if err := m.Start(v.ctx, nil); err != nil {
		return err
	}
	v.machine = m.VM()
	return nil
}

func (c *config) bootPlain(v *VM) error {
	cfg := c.harness.Machine
	if err := v.typeOn(&cfg); err != nil {
		return err
	}
	c.harness.Machine.Devices = nil
	m, err := vmm.NewContext(v.ctx, cfg)
	if err != nil {
		return err
	}
	v.own(&plainMachine{m})
	v.machine = m
	return m.Start()
}

// typeOn makes the console's input what Send writes, unless it is something else.
func (v *VM) typeOn(cfg *vmm.Config) error {
	if cfg.ConsoleIn != nil {
		return nil
	}
	// A pipe, since its ends have deadlines.
	in, typed, err := os.Pipe()
	if err != nil {
		return err
	}
	cfg.ConsoleIn, v.typed = in, typed
	v.files = append(v.files, in, typed)
	return nil
}

// agentMachine is a machine with an agent.
type agentMachine struct {
	*harness.Machine
	down atomic.Bool // by Shutdown
}

func (m *agentMachine) Done() <-chan struct{} {
	if vm := m.VM(); vm != nil {
		return vm.Done()
	}
	return nil // it was never started
}

func (m *agentMachine) Wait(ctx context.Context) (vmm.Exit, error) {
	exit, err := m.VM().Wait(ctx)
	if err != nil || m.down.Load() {
		return exit, err
	}
	// What the harness makes of this end follows it closely.
	select {
	case <-m.Machine.Done():
	case <-ctx.Done():
	}
	return exit, nil
}

func (m *agentMachine) Shutdown(ctx context.Context) error {
	if m.down.Load() {
		return nil
	}
	err := m.Machine.Shutdown(ctx)
	if err == nil {
		m.down.Store(true)
	}
	return err
}

// plainMachine is one without.
type plainMachine struct{ *vmm.Machine }

// Failure is for what is no guest's own choice.
func (m *plainMachine) Failure() *harness.Failure {
	select {
	case <-m.Done():
	default:
		return nil
	}
	exit, err := m.Wait(context.Background())
	f := &harness.Failure{Exit: exit, Text: "the guest has ended: " + exit.String()}
	switch {
	case err != nil:
		f.Kind, f.Text = harness.Host, err.Error()
	case exit.Reason == vmm.Panic:
		f.Kind = harness.Panic
	case exit.Reason == vmm.Timeout:
		f.Kind = harness.Timeout
	case exit.Reason == vmm.HostError:
		f.Kind = harness.Host
	case exit.Reason == vmm.TripleFault:
		f.Kind = harness.Ended
	default:
		return nil
	}
	return f
}

// Shutdown presses the power button and waits for what comes of it.
func (m *plainMachine) Shutdown(ctx context.Context) error {
	select {
	case <-m.Done():
		return nil
	default:
	}
	if err := m.PowerButton(); err != nil {
		return err
	}
	_, err := m.Wait(ctx)
	if err != nil {
		return fmt.Errorf("the guest does not power off, although its power button was pressed: %w", err)
	}
	return nil
}

// margin is how long before its end a test has to stop waiting, to have the time for what
// still comes of a command, for closing the machine and for the console.
func margin(left time.Duration) time.Duration {
	return min(max(left/10, 4*time.Second), 20*time.Second, left/2)
}

// errDeadline is why waits end early.
var errDeadline = errors.New("the test's own time is nearly over")

// boundContext is the test's context, which ends before the test's time does.
func boundContext(t testing.TB) (context.Context, context.CancelFunc) {
	if end, ok := deadline(t); ok {
		return context.WithDeadlineCause(t.Context(), end.Add(-margin(time.Until(end))), errDeadline)
	}
	return context.WithCancel(t.Context())
}

// deadline is when a test's time is over, if it has one. Benchmarks have none.
func deadline(t testing.TB) (time.Time, bool) {
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		return d.Deadline()
	}
	return time.Time{}, false
}

// logged writes to a test's log.
type logged struct{ t testing.TB }

func (l logged) Write(p []byte) (int, error) {
	l.t.Logf("vmtest: %s", printable(string(p)))
	return len(p), nil
}

func level(verbose bool) slog.Level {
	if verbose {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
