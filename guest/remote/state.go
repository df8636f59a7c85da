package remote

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/guest/wire"
)

// ProcessState is how a command ended.
type ProcessState struct {
	pid  int
	exit wire.Exited
}

// Pid is the process's number in the guest.
func (p *ProcessState) Pid() int { return p.pid }

// ExitCode is the command's exit code, -1 if a signal has killed it.
func (p *ProcessState) ExitCode() int {
	if p.exit.Signal != 0 {
		return -1
	}
	return p.exit.Code
}

// Signal is the signal that has killed it, 0 for none.
func (p *ProcessState) Signal() syscall.Signal { return syscall.Signal(p.exit.Signal) }

// OOM says that the guest's kernel had no memory left, and killed the command.
func (p *ProcessState) OOM() bool { return p.exit.OOM }

// OOMKills is how many processes the guest's kernel has killed for want of memory while
// the command ran, itself included.
func (p *ProcessState) OOMKills() int { return p.exit.OOMKills }

// Success says whether it ended with code 0.
func (p *ProcessState) Success() bool {
	return p.exit.Signal == 0 && p.exit.Code == 0 && p.exit.What == ""
}

// UserTime, SystemTime and Wall are how long the command took; MaxRSS is the most memory
// that it had, in KiB.
func (p *ProcessState) UserTime() time.Duration   { return time.Duration(p.exit.User) }
func (p *ProcessState) SystemTime() time.Duration { return time.Duration(p.exit.System) }
func (p *ProcessState) Wall() time.Duration       { return time.Duration(p.exit.Wall) }
func (p *ProcessState) MaxRSS() int64             { return p.exit.MaxRSS }

func (p *ProcessState) String() string {
	switch s := p.Signal(); {
	case p.exit.What != "":
		return p.exit.What
	case s != 0:
		text := "signal: " + s.String()
		if p.exit.Core {
			text += " (core dumped)"
		}
		if p.exit.OOM {
			text += " (the guest was out of memory)"
		}
		return text
	}
	return fmt.Sprintf("exit status %d", p.exit.Code)
}

// ExitError says that a command has ended without success.
type ExitError struct {
	*ProcessState
	// Stderr is the end of its standard error, if Output collected that.
	Stderr []byte
}

func (e *ExitError) Error() string { return e.ProcessState.String() }

// StreamError says that one of a command's standard files could not be read or written
// here.
type StreamError struct {
	File int // 0 is standard input, 1 and 2 are the outputs, wire.Terminal is the terminal
	Err  error
}

func (e *StreamError) Error() string {
	return [...]string{"stdin", "stdout", "stderr", "the terminal"}[e.File] + ": " + e.Err.Error()
}
func (e *StreamError) Unwrap() error { return e.Err }

// StreamErrors are those of a command's standard files in what Wait has returned.
func StreamErrors(err error) (all []*StreamError) {
	switch e := err.(type) {
	case *StreamError:
		return append(all, e)
	case endError:
		for _, one := range e {
			all = append(all, StreamErrors(one)...)
		}
	}
	return all
}

// endError is all that there is to say of a command's end.
type endError []error

func (e endError) Error() string {
	text := e[0].Error()
	for _, err := range e[1:] {
		text += "; " + err.Error()
	}
	return text
}
func (e endError) Unwrap() []error { return e }

// StartError says that a command could not be started in the guest.
type StartError struct {
	Errno uint32     // of Linux, 0 for none
	Cause wire.Cause // what is to blame
	What  string     // a sentence that names the file
}

func (e *StartError) Error() string { return e.What }

// Unwrap is the errno as this system has it: errors.Is(err, fs.ErrNotExist) works.
func (e *StartError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return syscall.Errno(e.Errno)
}

// ErrCut is wrapped by a StreamError of an output that was not all passed on, beside the
// reason: the guest has gone or the context ended before it was, or it could not be sent;
// and of an input of which not all has come to the command, which read on.
var ErrCut = errors.New("cut short")
