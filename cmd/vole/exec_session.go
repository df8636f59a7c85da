package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/harness"
	"github.com/vole-vmm/vole/vmm/harness/gotest"
)

// execSession is one `vole exec`.
type execSession struct {
	session
	flags *execFlags
	vsock string // the Unix socket of --vsock
	args  []string
	user  *remote.User // who runs the command

	guest *harness.Machine
	cmd   *remote.Cmd
	files execFiles
	early harness.EarlySignals

	signals chan os.Signal // from the start on
	// after is for what comes behind the command, nil if it was not started.
	after     context.Context
	afterStop context.CancelFunc
}

// shutdownBound is how long the guest may take to write what is not written yet.
const shutdownBound = 2 * time.Minute

// close gives back what is left.
func (s *execSession) close() {
	s.term.release()
	s.stderr.close()
}

// run runs the command to its end and returns what is the exit code.
func (s *execSession) run() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s.cancel = cancel
	defer s.term.release()
	s.last.Started, s.last.Cmdline = s.started, s.cfg.Cmdline
	err := s.once(ctx)
	s.term.release()
	s.last.finish(err, 0)
	if s.guest != nil { // otherwise nothing was started
		if rerr := s.writeReport(); rerr != nil {
			fmt.Fprintf(s.stderr, "vole: exec: warning: %s\n", oneLine(rerr.Error()))
		}
	}
	if s.after != nil {
		defer s.afterStop()
		// Who has bounded the run does not want to wait on.
		if s.last.Boot.Missed && ctx.Err() == nil && !s.timeIsUp() {
			s.fillCache(s.after)
		}
	}
	return err
}

// timeIsUp says whether --timeout has ended the guest.
func (s *execSession) timeIsUp() bool {
	var f *harness.Failure
	return errors.As(s.last.Err, &f) && f.Kind == harness.Timeout
}

// once boots the machine, runs the command and takes the machine down.
func (s *execSession) once(ctx context.Context) error {
	scratch := s.scratch()
	defer scratch.Remove()
	o, err := s.options(scratch.Dirs())
	if err != nil {
		return err
	}
	var log *boundedWriter
	if s.console.path != "" {
		log = &boundedWriter{}
		o.Console = log
	}
	if o.Machine.Devices, err = s.devices(); err != nil {
		return err
	}
	// These are in use until the machine is closed.
	defer s.console.close()
	defer s.files.close()
	m, err := harness.New(o)
	if err != nil {
		return err
	}
	defer func() {
		if err := m.Close(); err != nil {
			s.log.Info("closing the machine", "error", err)
		}
	}()
	// The command is not bound to ctx: how it ended is known better here.
	s.cmd = m.Guest().Command(s.args[0], s.args[1:]...)
	if err := s.fill(s.cmd); err != nil {
		return err
	}
	if err := s.files.open(s); err != nil {
		return err
	}
	s.files.connect(s.cmd, m)
	sigs := s.watchSignals(m)
	defer func() {
		// What comes after the command is given up at the first of them.
		s.after, s.afterStop = harness.Endings(context.Background())
		sigs.stop()
	}()
	// Everything that is wrong with what was said is known when there is a machine.
	if err := m.Prepare(ctx, s.cmd); err != nil {
		var failure *harness.Failure
		switch {
		case ctx.Err() != nil:
			return s.stopped(ctx)
		case errors.As(err, &failure):
			return s.failed(failure)
		}
		return err
	}
	if v := s.vsock; v != "" {
		if err := m.Sockets().ServeUnix(v); err != nil {
			return fmt.Errorf("--vsock: %w", err)
		}
	}
	if err := s.openOutputs(&s.console, &s.report.file); err != nil {
		return err
	}
	if log != nil {
		log.stream = s.console.stream
	}
	s.warnPVM()
	s.warnLeft(scratch.Left(), o.Root.Writable)
	if err := m.Start(ctx, nil); err != nil {
		return err
	}
	s.guest = m
	if err := trimText(); err != nil {
		s.log.Debug("what the start has used stays in memory", "reason", err)
	}
	defer context.AfterFunc(ctx, func() { m.Guest().Fail(context.Cause(ctx)) })()
	greet := s.greet(ctx, m)
	err = s.cmd.Wait()
	ended := time.Now()
	greet()
	var failure *harness.Failure
	if ctx.Err() == nil && !errors.As(err, &failure) {
		bounded, cancel := context.WithTimeout(ctx, shutdownBound)
		serr := m.Shutdown(bounded)
		switch {
		case errors.As(serr, &failure) && failure.Kind == harness.Oops:
			err = errors.Join(err, failure) // the command's code is not what was asked for
		case serr != nil && ctx.Err() == nil:
			fmt.Fprintf(s.stderr, "vole: exec: warning: what the command wrote may not all be written: %s\n", oneLine(serr.Error()))
		}
		cancel()
	}
	s.reported(m, ended)
	if cerr := m.ConsoleError(); cerr != nil {
		fmt.Fprintf(s.stderr, "vole: exec: warning: --console-log: not all of the console is in %s: %s\n", s.console.path, oneLine(cerr.Error()))
	}
	return s.ending(ctx, err)
}

// greet takes the terminal and does what else waits for the guest to be up, in a goroutine. What it returns joins that.
func (s *execSession) greet(ctx context.Context, m *harness.Machine) (join func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		hello, err := m.Guest().Ready(ctx)
		if err != nil {
			return
		}
		// Not before: while there is nobody to type to, Ctrl-c ends the boot.
		s.term.enter()
		s.resize() // the window may have changed during the boot
		s.early.Send(s.cmd.Signal)
		if hello.Lacks != "" {
			return // the command fails with it
		}
		for _, p := range hello.Problems {
			s.warn("the guest: %s", p)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// warn says what is no reason to end.
func (s *execSession) warn(format string, args ...any) {
	fmt.Fprintf(s.stderr, "vole: exec: warning: %s\n", oneLine(fmt.Sprintf(format, args...)))
}

// reported keeps what there is to report of the machine.
func (s *execSession) reported(m *harness.Machine, ended time.Time) {
	s.last.Report = m.VM().Report()
	if state := s.cmd.ProcessState; state != nil {
		s.last.Timeline = append(s.last.Timeline,
			vmm.Mark{Name: "command", At: ended.Sub(s.started) - state.Wall()},
			vmm.Mark{Name: "exited", At: ended.Sub(s.started)})
		slices.SortStableFunc(s.last.Timeline, func(a, b vmm.Mark) int { return int(a.At - b.At) })
	}
	if s.report.wanted() {
		s.last.Resident = readResident()
	}
}

// scratch are directories that the command needs if it is a test binary, as with
// `go test -exec`.
func (s *execSession) scratch() *gotest.Scratch {
	return gotest.New(s.args, os.Getenv("GOCOVERDIR"), harness.OwnOf)
}

// warnLeft names the directories that a test binary's results are lost in, unless a --rw
// flag makes them writable.
func (s *execSession) warnLeft(left, writable []string) {
	for _, dir := range left {
		if !slices.ContainsFunc(writable, func(w string) bool { return harness.Covers(w, dir) }) {
			fmt.Fprintf(s.stderr, "vole: exec: warning: the profile or coverage in %s will be gone with the guest: a directory as wide as the user's home is not made writable without --rw %[1]s\n", oneLine(dir))
		}
	}
}

// options are those of the machine.
func (s *execSession) options(writable []string) (_ harness.Options, err error) {
	if s.user, err = execUser(s.flags.user); err != nil {
		return harness.Options{}, fmt.Errorf("--user: %w", err)
	}
	o := harness.Options{
		Machine:   s.cfg,
		Modules:   s.flags.modules,
		Root:      &harness.Root{Visible: s.program(), Owner: harness.OwnerFor(s.user)},
		BootBound: s.flags.bootBound,
		Hang:      s.flags.hang,
		FatalOops: s.flags.fatalOops,
		Oopsed: func(line string) {
			fmt.Fprintf(s.stderr, "vole: exec: warning: the guest's kernel oopsed: %s\n", oneLine(line))
		},
		Logger: s.log,
	}
	o.Root.Writable = harness.Outermost(append(slices.Clone(s.flags.rw), writable...))
	for _, share := range s.machine.Shares {
		if share.At != "" {
			o.Shares = append(o.Shares, wire.Mount{Tag: share.Tag, Dir: wire.Text(filepath.Clean(share.At)), ReadOnly: share.ReadOnly})
		}
	}
	o.CorePattern = harness.CorePattern()
	if name, err := os.Hostname(); err == nil {
		o.Hostname = name
	}
	if s.cfg.Cache != nil {
		o.ModulesCache = harness.ModulesCacheIn(s.cfg.Cache)
	}
	if v := s.machine.Vsock; v != nil {
		// The machine's own device carries these sockets too.
		cid, err := v.GuestCID()
		if err != nil {
			return harness.Options{}, err
		}
		// It is made when there is a machine, which needs more than a good path.
		if err := v.CheckPath(); err != nil {
			return harness.Options{}, fmt.Errorf("--vsock: %w", err)
		}
		s.vsock, o.CID = v.Path, cid
		s.machine.Vsock = nil
	}
	if len(s.machine.Nets) > 0 && s.machine.Nets[0].User {
		o.Net = harness.UserNet()
	}
	return o, nil
}

// program is what the guest has to be shown to find the command.
func (s *execSession) program() []string {
	name := s.args[0]
	if !strings.Contains(name, "/") {
		return nil
	}
	if s.flags.cwd != "" && !filepath.IsAbs(name) {
		name = filepath.Join(s.flags.cwd, name)
	}
	return harness.ProgramDirs(name)
}

// fill says what the command is, besides its files.
func (s *execSession) fill(c *remote.Cmd) error {
	c.Env = os.Environ()
	for _, v := range s.flags.env {
		name, _, _ := strings.Cut(v, "=")
		c.Env = slices.DeleteFunc(c.Env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		c.Env = append(c.Env, v)
	}
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("the working directory: %w", err)
	}
	if s.flags.cwd != "" {
		dir, err = filepath.Abs(s.flags.cwd)
		if err != nil {
			return err
		}
		info, err := os.Stat(dir)
		var path *fs.PathError
		switch {
		case errors.As(err, &path):
			return fmt.Errorf("--cwd: %s: %w", s.flags.cwd, path.Err)
		case !info.IsDir():
			return fmt.Errorf("--cwd: %s: not a directory", s.flags.cwd)
		}
		c.Env = append(slices.DeleteFunc(c.Env, func(v string) bool { return strings.HasPrefix(v, "PWD=") }), "PWD="+dir)
	}
	c.Dir = dir
	c.Umask = harness.Umask()
	c.User = s.user
	return nil
}

// stopped is the end of a run that a signal has ended.
func (s *execSession) stopped(ctx context.Context) error {
	var stop *stopped
	if errors.As(context.Cause(ctx), &stop) {
		return &exitError{stop.code, fmt.Errorf("%s: the guest was ended", stop.why)}
	}
	return context.Cause(ctx)
}

// ending makes the exit code of how the command ended.
func (s *execSession) ending(ctx context.Context, err error) error {
	var exit *remote.ExitError
	var start *remote.StartError
	var failure *harness.Failure
	isExit := errors.As(err, &exit)
	streams := remote.StreamErrors(err)
	lost := s.lost(streams)
	if state := s.cmd.ProcessState; state != nil && state.OOMKills() > 0 && !state.OOM() {
		s.warn("the guest had no memory left, and its kernel killed processes (%d), but not the command itself: --memory gives it more", state.OOMKills())
	}
	// What has ended the guest is in err only where the command's own end is not known, or its
	// output was cut by that.
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && (!isExit || errors.Is(err, remote.ErrCut)):
		return s.stopped(ctx)
	case errors.As(err, &failure):
		return s.failed(failure)
	case isExit && exit.OOM():
		const text = "the guest had no memory left, and its kernel killed the command: --memory gives it more"
		s.last.Err = errors.New(text)
		s.show(text, s.guest.Screen())
		return &exitError{code: codeExecMemory}
	case lost != nil:
		return &exitError{codeExecHost, lost}
	case isExit && exit.Signal() != 0:
		return &exitError{code: 128 + int(exit.Signal())}
	case isExit:
		return &exitError{code: exit.ExitCode()}
	case len(streams) > 0:
		return nil
	case errors.As(err, &start):
		if start.Cause == wire.CauseProgram && errors.Is(err, fs.ErrNotExist) {
			return &exitError{codeExecNone, err}
		}
		return &exitError{codeExecStart, err}
	}
	return err
}

// lost is the first of the errors by which the command's output is not where it should
// be, or its input did not come to it. Who has closed stdout wants no more of it, and the
// command has heard of that. Input that could not be read here is warned of.
func (s *execSession) lost(streams []*remote.StreamError) (lost error) {
	for _, e := range streams {
		var errno syscall.Errno
		if !errors.Is(e, remote.ErrCut) && errors.As(e.Err, &errno) {
			e = &remote.StreamError{File: e.File, Err: errno}
		}
		switch {
		case e.File == 0 && !errors.Is(e, remote.ErrCut):
			s.warn("%v: the command's input ends there", e)
		case lost == nil && errno != syscall.EPIPE:
			lost = e
		}
	}
	return lost
}

// failed says why the guest could not go on, and shows its last screen.
func (s *execSession) failed(f *harness.Failure) error {
	code := map[harness.Kind]int{
		harness.Ended: codeExecEnded, harness.Panic: codeExecPanic, harness.Oops: codeExecOops,
		harness.Hang: codeExecTime, harness.Timeout: codeExecTime, harness.Host: codeExecHost,
	}[f.Kind]
	text := f.Text
	if f.Kind == harness.Timeout {
		text = "--timeout has passed: the guest was ended"
	}
	if f.Kind == harness.Hang {
		if _, up := s.guest.Guest().Hello(); !up {
			text += " (--append loglevel=7 has its kernel say more)"
		}
	}
	s.show(text, f.Console)
	s.last.Err = f
	return &exitError{code: code}
}

// show says a reason, and shows a screen of the guest's console below it.
func (s *execSession) show(text string, console []byte) {
	s.term.release()
	var b bytes.Buffer
	fmt.Fprintf(&b, "vole: exec: %s\n", oneLine(text))
	if len(console) > 0 {
		b.WriteString("the last of the guest's console:\n")
		for line := range bytes.Lines(console) {
			fmt.Fprintf(&b, "  %s\n", oneLine(strings.TrimRight(string(line), "\r\n")))
		}
	}
	_, _ = s.stderr.Write(b.Bytes())
}
