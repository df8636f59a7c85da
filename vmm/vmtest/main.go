package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vole-vmm/vole/guest"
	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/vmm/harness"
	"github.com/vole-vmm/vole/vmm/harness/gotest"
)

// handsOver says that this test binary calls Init or Main, and so can be PID 1 of a guest.
// It serves an error message: without it a guest of Start that ran the tests instead
// would have to be waited for.
var handsOver atomic.Bool

// Init makes the test binary the agent where it is PID 1 of a guest, and does not return
// there; anywhere else it does nothing. TestMain calls it first if the package uses [Start].
func Init() {
	handsOver.Store(true)
	if guest.IsInit() {
		os.Exit(guest.Main())
	}
}

// InGuest says whether this process is a test binary that [Main] runs in a guest, or a
// child of one.
func InGuest() bool { return os.Getenv(envInside) != "" }

// Main is what TestMain calls to have the package's tests run in a guest. It does not
// return: it exits with the code of the tests.
//
// This process boots a machine and runs the test binary there once more, with the same
// arguments, working directory, environment and user, over this host's files. Standard
// input and outputs are passed through, signals too. Coverage, profiles, the log for the
// test cache and testdata/fuzz are written here; what else the tests write vanishes with
// the guest ([Writable] names exceptions). A test that takes longer than -timeout dumps
// its goroutines as ever, and so does SIGQUIT; if the guest can't, its console's last
// screen is shown.
//
// TestMain runs three times then: here, as PID 1 of the guest, and in the guest for the
// tests. Main returns from none of them; what comes before it should ask [InGuest].
func Main(m *testing.M, opts ...Option) {
	Init()
	if InGuest() {
		os.Exit(m.Run())
	}
	if list := gotest.Flags(os.Args)["list"]; list != "" {
		os.Exit(m.Run()) // it runs no test
	}
	code := newMainRun(opts).run()
	if testing.CoverMode() != "" {
		// Counters of this process are nobody's business: os.Exit would write them, or
		// complain that it can't.
		syscall.Exit(code)
	}
	os.Exit(code)
}

// shutdownBound is how long the guest may take to write what is not written yet.
const shutdownBound = 30 * time.Second

// mainRun is the outer half of Main.
type mainRun struct {
	*config
	args   []string
	stderr io.Writer
	cmd    *remote.Cmd
	early  harness.EarlySignals
	cancel context.CancelCauseFunc
	// after is for what comes behind the tests, nil if they were not started.
	after     context.Context
	afterStop context.CancelFunc
}

func newMainRun(opts []Option) *mainRun {
	return &mainRun{config: newConfig(opts), args: os.Args, stderr: os.Stderr}
}

// say prints a line of vmtest's own.
func (r *mainRun) say(format string, args ...any) {
	fmt.Fprintf(r.stderr, "vmtest: %s\n", printable(fmt.Sprintf(format, args...)))
}

// run runs the tests in a guest and returns the exit code.
func (r *mainRun) run() int {
	err := r.prepare()
	if err == nil {
		err = r.usable()
	}
	if err != nil {
		r.closeDevices()
		return r.without(err)
	}
	scratch := r.scratch()
	defer scratch.Remove()
	dirs, err := realDirs(append(scratch.Dirs(), r.root().Writable...))
	if err == nil {
		r.root().Writable = dirs
		r.warnLeft(scratch.Left())
		err = r.openShares()
	}
	if err != nil {
		r.closeDevices()
		return r.without(err)
	}
	code, fill, err := r.once()
	if err != nil {
		return r.without(err)
	}
	if fill {
		r.fill(r.after)
	}
	if r.after != nil {
		r.afterStop()
	}
	if code == 0 {
		r.noteInputs()
	}
	return code
}

// without ends a run whose tests can't run.
func (r *mainRun) without(err error) int {
	if errors.Is(err, errUnusable) {
		skip, perr := r.skips()
		if perr == nil && skip {
			r.say("SKIP: no test ran: %v", err)
			return 0
		}
		if perr != nil {
			err = perr
		} else {
			err = fmt.Errorf("%w (%s=%s skips the tests)", err, envWithoutKVM, Skip)
		}
	}
	r.say("FAIL: no test ran: %v", err)
	return 1
}

// prepare completes the options.
func (r *mainRun) prepare() error {
	h := &r.harness
	switch root := r.root(); {
	case r.noAgent:
		return errors.New("the tests need an agent to run in a guest")
	case root.None, root.Dir != "" && root.Dir != "/":
		return errors.New("the tests need this host's root in the guest")
	}
	if err := r.complete(); err != nil {
		return err
	}
	// Test binaries have a clock of their own, which this one leaves its time.
	if d, err := time.ParseDuration(gotest.Flags(r.args)["timeout"]); err == nil && d > 0 && h.Machine.Timeout == 0 {
		boot := h.BootBound
		if boot == 0 {
			boot = harness.DefaultBootBound
		}
		h.Machine.Timeout = d + boot + time.Minute
	}
	if h.Logger == nil {
		h.Logger = slog.New(slog.NewTextHandler(r.stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: withoutTime}))
	}
	if r.logAll {
		r.console = append(r.console, r.stderr)
	}
	if len(r.console) > 0 {
		h.Console = &console{tees: r.console}
	}
	if !r.coreSet {
		h.CorePattern = harness.CorePattern()
	}
	if exe, err := os.Executable(); err == nil {
		r.root().Visible = harness.ProgramDirs(exe)
	}
	if r.asRoot && r.root().Owner == nil {
		r.root().Owner = harness.OwnerFor(nil)
	}
	if name, err := os.Hostname(); err == nil && h.Hostname == "" {
		h.Hostname = name
	}
	if h.Machine.Cache == nil {
		h.Machine.Cache = r.cache()
	}
	if h.Machine.Cache != nil && h.ModulesCache == "" {
		h.ModulesCache = harness.ModulesCacheIn(h.Machine.Cache)
	}
	for _, f := range r.finish {
		f(h)
	}
	return nil
}

// scratch are the directories that the tests leave something in for their caller.
func (r *mainRun) scratch() *gotest.Scratch {
	return gotest.New(r.args, r.getenv("GOCOVERDIR"), harness.OwnOf)
}

// warnLeft names the directories that results are lost in, unless the option Writable makes
// them writable.
func (r *mainRun) warnLeft(left []string) {
	for _, dir := range left {
		if !slices.ContainsFunc(r.root().Writable, func(w string) bool { return harness.Covers(w, dir) }) {
			r.say("warning: the profile or coverage in %s will be gone with the guest: a directory as wide as the user's home is not made writable without the option Writable", dir)
		}
	}
}

// once boots the machine, runs the tests and takes the machine down. fill says that the
// next machine could boot faster.
func (r *mainRun) once() (code int, fill bool, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	r.cancel = cancel
	m, err := harness.New(r.harness)
	if err != nil {
		return 0, false, err
	}
	defer func() {
		if err := m.Close(); err != nil {
			r.say("warning: close the machine: %v", err)
		}
	}()
	if r.cmd, err = r.command(m.Guest()); err != nil {
		return 0, false, err
	}
	stop := r.watchSignals(m)
	defer func() {
		// What comes after the tests is given up at the first of them.
		r.after, r.afterStop = harness.Endings(context.Background())
		stop()
	}()
	if err := m.Start(ctx, r.cmd); err != nil {
		if ctx.Err() != nil {
			return r.ending(m, context.Cause(ctx)), false, nil
		}
		return 0, false, err
	}
	defer r.greet(ctx, m)()
	defer context.AfterFunc(ctx, func() { m.Guest().Fail(context.Cause(ctx)) })()
	err = r.cmd.Wait()
	if hello, _ := m.Guest().Hello(); hello.Lacks == "" { // the tests fail with that
		for _, p := range hello.Problems {
			r.say("warning: the guest: %s", p)
		}
	}
	var failure *harness.Failure
	if ctx.Err() == nil && !errors.As(err, &failure) {
		bounded, cancel := context.WithTimeout(ctx, shutdownBound)
		defer cancel()
		serr := m.Shutdown(bounded)
		switch {
		case errors.As(serr, &failure) && failure.Kind == harness.Oops:
			err = errors.Join(err, failure)
		case serr != nil:
			r.say("warning: coverage and profiles may not all be written: %v", serr)
		}
	}
	// Who has bounded the run does not want to wait on.
	fill = missed(m.VM()) && (failure == nil || failure.Kind != harness.Timeout)
	return r.ending(m, err), fill, nil
}

// command is the test binary as the guest runs it.
func (r *mainRun) command(g *remote.Guest) (*remote.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this test binary: %w", err)
	}
	c := g.Command(exe)
	c.Args = r.args
	c.Env = append(os.Environ(), envInside+"=1")
	if c.Dir, err = os.Getwd(); err != nil {
		return nil, fmt.Errorf("the working directory: %w", err)
	}
	c.Umask = harness.Umask()
	if !r.asRoot {
		if c.User, err = harness.Caller(); err != nil {
			return nil, err
		}
	}
	if !isNull(os.Stdin) {
		c.Stdin = os.Stdin
	}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if harness.SameFile(os.Stdout, os.Stderr) {
		c.Stderr = c.Stdout // what is written to both keeps its order
	}
	return c, nil
}

// ending makes the exit code of how the tests ended.
func (r *mainRun) ending(m *harness.Machine, err error) int {
	var exit *remote.ExitError
	var stop *stopped
	var failure *harness.Failure
	if state := r.cmd.ProcessState; state != nil && state.OOMKills() > 0 && !state.OOM() {
		r.say("warning: the guest had no memory left, and its kernel killed processes (%d): the option Memory gives it more", state.OOMKills())
	}
	// What has ended the guest is in err only where the tests' end is not known, or output was cut
	// by it.
	ended := errors.As(err, &stop) || errors.As(err, &failure)
	streams, lost := remote.StreamErrors(err), false
	for _, e := range streams {
		switch {
		case e.File == 0 && !errors.Is(e, remote.ErrCut):
			r.say("warning: %v: the tests' input ends there", e)
		case !ended || !errors.Is(e, remote.ErrCut):
			r.say("FAIL: %v", e)
			lost = true
		}
	}
	switch {
	case err == nil:
		return 0
	case stop != nil:
		r.say("FAIL: %v: the guest was ended%s", stop, screen(m.Screen()))
		return stop.code
	case failure != nil:
		r.say("FAIL: %s%s", failure.Text, screen(failure.Console))
		return 1
	case errors.As(err, &exit):
		switch {
		case exit.OOM():
			r.say("FAIL: the guest had no memory left, and its kernel killed the tests: the option Memory gives it more")
			return 1
		case exit.Signal() != 0:
			r.say("FAIL: the tests were ended by %v", exit.Signal())
			return 128 + int(exit.Signal())
		}
		return exit.ExitCode()
	case lost:
		return 1
	case len(streams) > 0:
		return 0
	}
	r.say("FAIL: %v", err)
	return 1
}

// screen shows the last of a console below a line.
func screen(text []byte) string {
	c := &console{}
	_, _ = c.Write(text)
	tail := c.tail(screenLines, screenBytes)
	if tail == "" {
		return ""
	}
	return "\nthe last of the guest's console:\n" + indent(tail)
}

// noteInputs tells `go test` that the result depends on the environment variables that
// this process has looked at, so that it is not taken from its cache when they change. The
// tests' own process writes the log of that, and has not looked at them.
func (r *mainRun) noteInputs() {
	path := gotest.Flags(r.args)["testlogfile"]
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer f.Close()
	const magic = "# test log\n"
	head := make([]byte, len(magic))
	if _, err := f.ReadAt(head, 0); err != nil || !bytes.Equal(head, []byte(magic)) {
		return // another form than the one known here: it is left alone
	}
	var b strings.Builder
	for _, name := range []string{envKernel, envWithoutKVM, envCI} {
		fmt.Fprintf(&b, "getenv %s\n", name)
	}
	_, _ = f.WriteString(b.String())
}
