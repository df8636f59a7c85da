package vmtest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Expect waits until a match of a regular expression is on the console, behind the match
// of the Expect before, and returns it and its submatches ("" for one without a part in
// it). It waits as long as [Patience] says, and not longer than the guest lives. Lines end
// with \n; (?m) lets ^ and $ match at their ends. What matches counts as soon as it is
// there: a `[0-9]+` at the end may be the first of more digits.
func (v *VM) Expect(pattern string) []string {
	v.t.Helper()
	re, err := regexp.Compile(pattern)
	if err != nil {
		v.t.Fatalf("vmtest: expect: %v", err)
	}
	ctx, cancel := context.WithTimeout(v.ctx, v.c.patience)
	defer cancel()
	found, err := v.ExpectContext(ctx, re)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("it has not come within %v", v.c.patience)
	}
	if err != nil {
		v.t.Fatalf("vmtest: expect %q on the console: %v", pattern, err)
	}
	return found
}

// ExpectContext is Expect for as long as ctx says, and with an error: ctx's, or why the
// guest has ended. One at a time may expect.
func (v *VM) ExpectContext(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	found, err := v.console.expect(ctx, re, v.backend().Done())
	if errors.Is(err, errConsoleEnd) {
		return nil, v.ended()
	}
	return found, err
}

// Console is what the guest has written to its console, with lines that end with \n: the
// last 4 MiB at least.
func (v *VM) Console() string { return v.console.String() }

// Send types on the guest's console, ttyS0. With an agent nobody reads there but a command
// that has opened it, and what came before that is lost, as on any serial line. Send waits,
// as long as [Patience] says, when more than a pipe holds has not been read.
func (v *VM) Send(text string) {
	v.t.Helper()
	if v.typed == nil {
		v.t.Fatal("vmtest: send: the console's input is Machine.ConsoleIn of Configure")
	}
	end := time.Now().Add(v.c.patience)
	if d, ok := v.ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	err := v.typed.SetWriteDeadline(end)
	if err == nil {
		_, err = v.typed.WriteString(text)
	}
	if err != nil {
		v.t.Fatalf("vmtest: send %q: %v", text, err)
	}
}
