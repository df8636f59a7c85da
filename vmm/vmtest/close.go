package vmtest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// close ends the machine with its test, and tells the test's log what there is to tell.
func (v *VM) close() {
	v.t.Helper()
	v.mu.Lock()
	back, known := v.back, v.known
	v.mu.Unlock()
	if back != nil {
		v.closeMachine(back, known)
	}
	for _, f := range v.files {
		_ = f.Close()
	}
	logging := v.console.line != nil
	v.console.flush()
	if !v.t.Failed() || logging {
		return
	}
	text, title := v.console.tail(screenLines, screenBytes), "the last of the guest's console"
	if testing.Verbose() {
		text, title = v.console.String(), "the guest's console"
	}
	if text != "" {
		v.t.Logf("vmtest: %s:\n%s", title, indent(text))
	}
}

func (v *VM) closeMachine(back backend, known bool) {
	v.t.Helper()
	// The test's context has ended, and this has a bound of its own.
	bound := closeBound
	if end, ok := deadline(v.t); ok {
		bound = min(bound, time.Until(end)/2)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(v.ctx), bound)
	defer cancel()
	select {
	case <-back.Done():
		_, _ = back.Wait(ctx) // until it is known why
	default:
	}
	failure := back.Failure()
	if v.guest != nil && failure == nil && v.hello.Release != "" && !known {
		if err := back.Shutdown(ctx); err != nil && back.Failure() == nil {
			v.t.Logf("vmtest: what the guest has written may not all be in the host's files: %v", err)
		}
		failure = back.Failure()
	}
	if failure != nil && !known && !v.t.Failed() {
		v.t.Errorf("vmtest: %v", failure)
	}
	fill := missed(v.machine)
	if d, ok := v.ctx.Deadline(); ok && time.Until(d) < fillBound {
		fill = false
	}
	if err := back.Close(); err != nil {
		v.t.Errorf("vmtest: close the machine: %v", err)
	}
	if fill {
		v.c.fill(context.Background())
	}
}

// indent puts a text of the guest's below a title in a log.
func indent(text string) string {
	text = printable(strings.TrimRight(text, "\n"))
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}

// printable has no character that a terminal takes for a command.
func printable(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1, r < ' ' && r != '\n' && r != '\t', 0x7f <= r && r < 0xa0:
			for i := range n {
				fmt.Fprintf(&b, `\x%02x`, s[i])
			}
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return strings.TrimRight(b.String(), "\n")
}
