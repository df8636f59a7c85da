package harness

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/vole-vmm/vole/vmm"
)

// Kind is why a guest can serve no command any more.
type Kind int

const (
	// Ended: the guest has ended by itself, or its agent has gone.
	Ended Kind = iota
	// Panic: its kernel panicked.
	Panic
	// Oops: its kernel oopsed, and Options.FatalOops was set.
	Oops
	// Hang: nothing has come of it for longer than a bound.
	Hang
	// Timeout: vmm.Config.Timeout has passed.
	Timeout
	// Host: something on the host failed.
	Host
)

var kinds = []string{Ended: "ended", Panic: "panic", Oops: "oops", Hang: "hang", Timeout: "timeout", Host: "host"}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kinds) {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kinds[k]
}

// MarshalText makes a Kind readable in JSON.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Failure says why a guest can serve no command any more.
type Failure struct {
	Kind Kind
	// Exit is how the machine ended.
	Exit vmm.Exit
	// Text is the reason in one line.
	Text string
	// Console is the last of what the guest wrote to its console: a screen at most.
	Console []byte
	err     error
}

func (f *Failure) Error() string { return f.Text }
func (f *Failure) Unwrap() error { return f.err }

// A screen of console is kept in a Failure.
const (
	screenLines = 40
	screenBytes = 8 << 10
)

// screen is the last screen of a console.
func screen(console []byte) []byte {
	b := bytes.TrimRight(console, "\r\n ")
	if over := len(b) - screenBytes; over > 0 {
		b = b[over:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	for at, lines := len(b), 0; ; {
		i := bytes.LastIndexByte(b[:at], '\n')
		if i < 0 {
			return bytes.Clone(b)
		}
		if lines++; lines == screenLines {
			return bytes.Clone(b[i+1:])
		}
		at = i
	}
}

// deathScreen is the screen of a console that begins where the kernel began to tell of
// its death, if it did: the trace of a panic may be longer than a screen, and what matters
// is at its top.
func deathScreen(console []byte) []byte {
	last := screen(console)
	from := -1
	for at := 0; at < len(console); {
		end := bytes.IndexByte(console[at:], '\n') + 1
		if end == 0 {
			end = len(console) - at
		}
		line := bytes.TrimRight(console[at:at+end], "\r\n")
		switch {
		case from < 0 && (isCause(line) || isOops(line)):
			from = at
		case isPanic(line):
			// An oops that is long gone was not its reason.
			if from < 0 || bytes.Count(console[from:at], []byte("\n")) > screenLines {
				from = at
			}
		}
		at += end
	}
	if from < 0 || len(console)-from <= len(last) {
		return last
	}
	lines := 0
	for i, c := range console[from:] {
		if c == '\n' {
			if lines++; lines == screenLines || i >= screenBytes {
				return bytes.Clone(console[from : from+i])
			}
		}
	}
	return bytes.Clone(console[from:min(len(console), from+screenBytes)])
}

func isPanic(line []byte) bool { return bytes.Contains(line, []byte("Kernel panic - not syncing: ")) }

// agentLine finds the last that the agent had to say on the console.
func agentLine(console []byte) string {
	const words = "vole guest: "
	at := bytes.LastIndex(console, []byte(words))
	if at < 0 || at > 0 && console[at-1] != '\n' {
		return ""
	}
	line, _, _ := bytes.Cut(console[at+len(words):min(len(console), at+len(words)+300)], []byte("\n"))
	return string(bytes.TrimSpace(line))
}

// failureOf says what the end of a machine means for the guest's commands.
func failureOf(exit vmm.Exit) *Failure {
	f := &Failure{Exit: exit, err: exit.Err}
	why := ""
	if exit.Err != nil {
		why = ": " + exit.Err.Error()
	}
	switch exit.Reason {
	case vmm.Panic:
		f.Kind, f.Text = Panic, "the guest's kernel panicked"
	case vmm.Timeout:
		f.Kind, f.Text = Timeout, "the time for the guest has passed"
	case vmm.HostError:
		f.Kind, f.Text = Host, "the machine can't go on"
	case vmm.TripleFault:
		f.Text = "the guest can't go on: triple fault"
		if exit.Err != nil {
			f.Text, why = "the guest can't go on: "+exit.Err.Error(), ""
		}
	case vmm.Poweroff:
		f.Text = "the guest powered off before the command ended"
	case vmm.Reset:
		f.Text = "the guest reset before the command ended"
	case vmm.DebugExit:
		f.Text = fmt.Sprintf("the guest wrote %#x to the debug exit port before the command ended", exit.Code)
	default:
		f.Text = "the guest was ended: " + exit.Reason.String()
	}
	f.Text += why
	return f
}

// panicLine finds the kernel's own word for its panic in a console.
func panicLine(console []byte) string {
	const words = "Kernel panic - not syncing: "
	at := bytes.LastIndex(console, []byte(words))
	if at < 0 {
		return ""
	}
	line, _, _ := strings.Cut(string(console[at+len(words):min(len(console), at+len(words)+300)]), "\n")
	return strings.TrimSpace(line)
}

// ErrNotStarted says that the machine does not run.
var ErrNotStarted = errors.New("harness: the machine was not started")
