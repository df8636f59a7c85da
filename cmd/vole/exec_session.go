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

	guest *harness.Machine
	cmd   *remote.Cmd
	files execFiles
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
	if s.last.Boot.Missed && ctx.Err() == nil {
		s.fillCache(ctx)
	}
	return err
}

// once boots the machine, runs the command and takes the machine down.
func (s *execSession) once(ctx context.Context) error {
	// A command may be a test binary, with `go test -exec`.
	scratch := gotest.New(s.args, os.Getenv("GOCOVERDIR"))
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
	s.files.connect(s.cmd, m.Active)
	sigs := s.watchSignals(m)
	defer sigs.stop()
	// Everything that is wrong with what was said is known when there is a machine.
	if err := m.Prepare(ctx, s.cmd); err != nil {
		if ctx.Err() != nil {
			return s.stopped(ctx)
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
	if err := m.Start(ctx, nil); err != nil {
		return err
	}
	s.guest = m
	if err := trimText(); err != nil {
		s.log.Debug("what the start has used stays in memory", "reason", err)
	}
	s.term.enter()
	defer context.AfterFunc(ctx, func() { m.Guest().Fail(context.Cause(ctx)) })()
	err = s.cmd.Wait()
	ended := time.Now()
	var failure *harness.Failure
	if ctx.Err() == nil && !errors.As(err, &failure) {
		bounded, cancel := context.WithTimeout(ctx, shutdownBound)
		if serr := m.Shutdown(bounded); serr != nil && ctx.Err() == nil {
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

// options are those of the machine.
func (s *execSession) options(writable []string) (harness.Options, error) {
	o := harness.Options{
		Machine:   s.cfg,
		Modules:   s.flags.modules,
		Root:      &harness.Root{Writable: append(slices.Clone(s.flags.rw), writable...)},
		BootBound: s.flags.bootBound,
		Hang:      s.flags.hang,
		FatalOops: s.flags.fatalOops,
		Oopsed: func(line string) {
			fmt.Fprintf(s.stderr, "vole: exec: warning: the guest's kernel oopsed: %s\n", oneLine(line))
		},
		Logger: s.log,
	}
	o.Root.Writable = withoutNested(o.Root.Writable)
	if name, err := os.Hostname(); err == nil {
		o.Hostname = name
	}
	if s.cfg.Cache != nil {
		o.ModulesCache = filepath.Join(s.cfg.Cache.Dir(), "modules")
	}
	if v := s.machine.Vsock; v != nil {
		// The machine's own device carries these sockets too.
		s.vsock = v.Path
		s.machine.Vsock = nil
	}
	if len(s.machine.Nets) > 0 && s.machine.Nets[0].User {
		o.Net = harness.UserNet()
	}
	return o, nil
}

// withoutNested leaves out directories that are below others.
func withoutNested(dirs []string) []string {
	slices.Sort(dirs)
	var out []string
	for _, d := range dirs {
		if len(out) > 0 {
			last := out[len(out)-1]
			if d == last || strings.HasPrefix(d, strings.TrimSuffix(last, "/")+"/") {
				continue
			}
		}
		out = append(out, d)
	}
	return out
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
	c.User, err = execUser(s.flags.user)
	if err != nil {
		return fmt.Errorf("--user: %w", err)
	}
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
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE):
		// Who has closed stdout wants no more of it, and the command has heard of that.
		return nil
	case errors.As(err, &exit):
		switch {
		case exit.OOM():
			return &exitError{codeExecMemory, errors.New("the guest had no memory left, and its kernel killed the command: --memory gives it more")}
		case exit.Signal() != 0:
			return &exitError{code: 128 + int(exit.Signal())}
		}
		return &exitError{code: exit.ExitCode()}
	case ctx.Err() != nil:
		return s.stopped(ctx)
	case errors.As(err, &start):
		if errors.Is(err, fs.ErrNotExist) {
			return &exitError{codeExecNone, err}
		}
		return &exitError{codeExecStart, err}
	case errors.As(err, &failure):
		return s.failed(failure)
	}
	return err
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
	if _, up := s.guest.Guest().Hello(); !up && f.Kind == harness.Hang {
		text += " (--append loglevel=7 has its kernel say more)"
	}
	s.term.release()
	var b bytes.Buffer
	fmt.Fprintf(&b, "vole: exec: %s\n", oneLine(text))
	if len(f.Console) > 0 {
		b.WriteString("the last of the guest's console:\n")
		for line := range bytes.Lines(f.Console) {
			fmt.Fprintf(&b, "  %s\n", oneLine(strings.TrimRight(string(line), "\r\n")))
		}
	}
	_, _ = s.stderr.Write(b.Bytes())
	s.last.Err = f
	return &exitError{code: code}
}
