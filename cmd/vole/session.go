package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/spec"
)

// A guest that resets this soon, this often in a row, would do so for ever.
const (
	resetLoopTime  = 5 * time.Second
	resetLoopCount = 10
)

// session is one `vole run`, or what a `vole exec` has in common with it: the machine (and its successors), the terminal, the streams and how it
// all ends.
type session struct {
	command string // "run"
	cfg     vmm.Config
	machine spec.Machine // what cfg was made of, for its devices
	restart bool
	console outputFile // instead of stdout, if it has a name
	report  report
	started time.Time
	builtin io.Closer // the built-in guest's initramfs, or nil

	log    *slog.Logger
	stderr *lineWriter
	term   *terminal  // nil if stdin is none, or not used
	in     *stream    // nil with --console
	typed  *typeahead // of in, if that is a terminal
	out    *guestOutput

	live      live
	cancel    context.CancelCauseFunc
	restarts  int
	lastWords string // of the last machine's guest
	last      runReport
}

// run runs the guest to its end and returns what commandLine makes the exit code of.
func (s *session) run() error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s.cancel = cancel
	// Also while a panic of this goroutine goes by; the guard is for the others'.
	defer s.term.release()
	sigs := watchSignals(cancel, s.term, &s.live, s.stderr, s.log, os.Exit)
	defer sigs.stop()
	defer s.closeStreams()

	s.last.Started, s.last.Cmdline = s.started, s.cfg.Cmdline
	if s.last.Cmdline == "" {
		s.last.Cmdline = vmm.DefaultCmdline
	}
	err := s.machines(ctx)
	s.term.release()
	if s.out != nil {
		s.out.endLine(s.stderr)
	}
	s.last.finish(err, s.restarts)
	if exitCode(err) != codeUsage {
		rerr := s.writeReport()
		switch {
		case rerr == nil:
		case err == nil:
			err = rerr
		default:
			// How the guest ended is the exit code.
			fmt.Fprintf(s.stderr, "vole: %s: warning: %s\n", s.command, oneLine(rerr.Error()))
		}
	}
	if s.last.Boot.Missed && ctx.Err() == nil {
		s.fillCache(ctx)
	}
	return err
}

// writeReport writes the report, if there is to be one. The error names the flag.
func (s *session) writeReport() error {
	if !s.report.wanted() {
		return nil
	}
	// It isn't open yet if there was no machine to run.
	if err := s.openOutputs(&s.report.file); err != nil {
		return err
	}
	if err := s.report.write(&s.last, s.stderr); err != nil {
		return fmt.Errorf("--%s: %w", s.report.file.flag, err)
	}
	return nil
}

// machines runs one machine after the other until one ends for good.
func (s *session) machines(ctx context.Context) error {
	var deadline time.Time
	soon := 0
	for {
		began := time.Now()
		if s.cfg.Timeout > 0 && deadline.IsZero() {
			deadline = began.Add(s.cfg.Timeout)
		} else if s.cfg.Timeout > 0 {
			s.cfg.Timeout = max(time.Until(deadline), time.Nanosecond)
		}
		exit, err := s.once(ctx)
		if err != nil && s.restarts > 0 && exitCode(err) == codeUsage {
			// It was right when the first machine was started.
			return &exitError{codeHost, fmt.Errorf("the guest reset and can't be started again: %w", err)}
		}
		if err != nil {
			return err
		}
		if exit.Reason != vmm.Reset || !s.restart || ctx.Err() != nil {
			return s.ending(ctx, exit)
		}
		if soon++; time.Since(began) >= resetLoopTime {
			soon = 0
		}
		if soon >= resetLoopCount {
			return &exitError{codeReset, fmt.Errorf("the guest reset %d times in a row within %v of its start: not started again", soon, resetLoopTime)}
		}
		s.restarts++
		s.log.Info("the guest has reset: starting it again", "restarts", s.restarts)
	}
}

// devices makes the virtio devices and opens what they stand on.
func (s *session) devices() ([]virtio.Device, error) {
	list, err := s.machine.Devices(spec.ConsoleStreams{In: s.cfg.ConsoleIn, Out: s.out}, s.log)
	var field *spec.FieldError
	if errors.As(err, &field) && !hostFault(err) {
		return nil, &usageError{fmt.Errorf("--%s: %w", field.Field, field.Err)}
	}
	return list, err
}

// hostFault says whether what can't be opened is not what the user named, but what the host has no more
// of.
func hostFault(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// once makes one machine, runs it and takes it down.
func (s *session) once(ctx context.Context) (exit vmm.Exit, err error) {
	if err := s.openStreams(); err != nil {
		return exit, err
	}
	s.cfg.ConsoleOut = s.out
	if s.in != nil {
		s.cfg.ConsoleIn = s.input()
	}
	if s.cfg.Devices, err = s.devices(); err != nil {
		return exit, err
	}
	if s.machine.VirtioConsole() {
		s.cfg.ConsoleIn = nil // which one of the two gets what is typed must not be left to chance
	}
	m, err := s.newMachine(ctx) // the devices are its own from here on
	switch {
	case err == nil:
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return vmm.Exit{Reason: vmm.Killed}, nil
	case err == errTimeUp:
		return vmm.Exit{Reason: vmm.Timeout}, nil
	default:
		if errors.Is(err, vmm.ErrKVM) {
			err = fmt.Errorf("%w (`vole doctor` says more)", err)
		}
		return exit, err
	}
	s.live.set(m, s.cfg.Devices)
	if s.machine.VirtioConsole() {
		s.live.resizeConsole(s.term)
	}
	defer func() {
		s.live.set(nil, nil)
		// The machine's end stands: what couldn't be given back, or written after it was
		// ended from outside, does not change it.
		if err := m.Close(); err != nil {
			s.log.Info("closing the machine", "error", err)
		}
	}()
	if ctx.Err() != nil {
		return vmm.Exit{Reason: vmm.Killed}, nil
	}
	if err := s.openFiles(); err != nil {
		return exit, err
	}
	s.warnPVM()
	s.term.enter()
	if err := m.Start(); err != nil {
		return exit, err
	}
	if err := trimText(); err != nil {
		s.log.Debug("what the start has used stays in memory", "reason", err)
	}
	exit, err = m.Wait(ctx)
	if err != nil {
		// Only ctx ends a wait early. From here on every wait of the machine has a bound.
		if err := m.Kill(); err != nil {
			return exit, err
		}
		if exit, err = m.Wait(context.Background()); err != nil {
			return exit, err
		}
	}
	s.last.Report = m.Report()
	s.lastWords = lastWords(exit, m.ConsoleTail())
	if s.report.wanted() {
		s.last.Resident = readResident()
	}
	return exit, nil
}

// warnPVM says before the boot what to expect of a KVM that a stock kernel doesn't come up on.
func (s *session) warnPVM() {
	if s.restarts > 0 {
		return
	}
	if v, _, err := vmm.CPUVirtualization(); err == nil && v == vmm.NoVirtualization {
		fmt.Fprintf(s.stderr, "vole: %s: warning: %s; going on (--timeout bounds it). To boot one: %s\n", s.command, pvmSays, pvmFix)
	}
}

// ending is the error, if that is what it is, of a guest's last end.
func (s *session) ending(ctx context.Context, exit vmm.Exit) error {
	if err := s.out.err(); err != nil {
		return fmt.Errorf("%s: %w: the guest was ended", s.out.name, err)
	}
	var stop *stopped
	if errors.As(context.Cause(ctx), &stop) && exit.Reason == vmm.Killed {
		return &exitError{stop.code, fmt.Errorf("%s: the guest was ended", stop.why)}
	}
	code := guestCode(exit)
	if code == codeOK {
		return nil
	}
	return &exitError{code, errors.New(describe(exit) + s.lastWords)}
}

// describe says in words how a guest ended.
func describe(e vmm.Exit) string {
	var s string
	switch e.Reason {
	case vmm.Reset:
		s = "the guest reset"
	case vmm.Panic:
		s = "the guest's kernel panicked"
	case vmm.TripleFault:
		if e.Err != nil {
			return "the guest can't go on: " + e.Err.Error()
		}
		return "the guest can't go on: triple fault"
	case vmm.DebugExit:
		s = fmt.Sprintf("the guest wrote %#x to the debug exit port", e.Code)
	case vmm.Timeout:
		s = "--timeout has passed"
	default:
		s = "the guest was ended: " + e.Reason.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// fillBound bounds the unpacking of a kernel, and the wait for another vole that is at it. XZ takes 5 s.
const fillBound = time.Minute

// errTimeUp says that --timeout has passed before there was a machine.
var errTimeUp = errors.New("no time is left")

// newMachine is vmm.New, which with --boot vmlinux may have to unpack the kernel first: that too has no
// longer than the run, or errTimeUp comes of it.
func (s *session) newMachine(ctx context.Context) (*vmm.Machine, error) {
	if s.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.Timeout)
		defer cancel()
	}
	m, err := vmm.NewContext(ctx, s.cfg)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		err = errTimeUp
	}
	return m, err
}

// fillCache unpacks the kernel for the next run. The guest's end stands, whatever comes of this.
func (s *session) fillCache(ctx context.Context) {
	// Another vole may hold the cache's lock, and be stopped.
	ctx, cancel := context.WithTimeout(ctx, fillBound)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.cfg.Cache.TryFill(ctx, s.cfg.Kernel) }()
	slow := time.NewTimer(time.Second)
	defer slow.Stop()
	for {
		select {
		case err := <-done:
			switch {
			case err == nil:
			case errors.Is(err, kernel.ErrUnsupported), errors.Is(err, kernel.ErrBusy), ctx.Err() != nil:
				s.log.Info("no unpacked kernel for the next run", "reason", err)
			default:
				fmt.Fprintf(s.stderr, "vole: %s: warning: the unpacked kernel is not kept for the next run: %s\n", s.command, oneLine(err.Error()))
			}
			return
		case <-slow.C:
			fmt.Fprintf(s.stderr, "vole: %s: unpacking the kernel into the cache for the next run (Ctrl-c skips that)\n", s.command)
		}
	}
}

// openStreams takes hold of stdin and stdout, once.
func (s *session) openStreams() error {
	if s.out != nil {
		// The machine before this one has ended its waits by deadlines.
		err := s.out.SetWriteDeadline(time.Time{})
		switch {
		case err != nil:
		case s.typed != nil:
			err = s.typed.SetReadDeadline(time.Time{})
		case s.in != nil:
			err = s.in.SetReadDeadline(time.Time{})
		}
		return err
	}
	if s.console.path != "" {
		s.out = &guestOutput{name: s.console.path, file: &s.console, failed: s.outputFailed}
		return nil
	}
	out, err := newStream(int(os.Stdout.Fd()), os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	s.out = &guestOutput{name: "stdout", stream: out, failed: s.outputFailed}
	if s.in, err = newStream(int(os.Stdin.Fd()), os.O_RDONLY); err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	if s.term != nil {
		s.in.hold = func() bool { return !s.term.enter() }
	}
	return nil
}

// openFiles opens the files that the run writes: not before it is known that there is a machine
// to run.
func (s *session) openFiles() error {
	if err := s.openOutputs(&s.console, &s.report.file); err != nil {
		return &usageError{err}
	}
	if s.out.file != nil {
		s.out.stream = s.out.file.stream
	}
	return nil
}

func (s *session) closeStreams() {
	if s.typed != nil {
		s.typed.stop()
	}
	if s.in != nil {
		_ = s.in.Close()
	}
	if s.out != nil {
		s.out.close()
	}
}

// input is what the guest reads.
func (s *session) input() io.Reader {
	if s.term == nil {
		return s.in
	}
	if s.typed == nil {
		s.typed = newTypeahead(&escapeReader{
			in:   s.in,
			quit: func() { s.cancel(&stopped{codeInterrupted, "Ctrl-a x"}) },
			help: func() { _, _ = io.WriteString(s.stderr, escapeHelp) },
		})
	}
	return s.typed
}

func (s *session) outputFailed(err error) {
	s.cancel(fmt.Errorf("%s: %w", s.out.name, err))
}
