package remote

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// soon waits for what is to come at once.
func soon(t *testing.T, c <-chan error, what string) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal(what + " hangs")
		return nil
	}
}

// After a start that failed nothing waits any more: neither Wait nor who reads or writes
// the pipes.
func TestStartFails(t *testing.T) {
	gone := errors.New("it panicked")
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	start := func(ctx context.Context, g *Guest, name string, prepare func(c *Cmd)) (*Cmd, func() error) {
		c := g.CommandContext(ctx, name)
		prepare(c)
		return c, c.Start
	}
	for name, tc := range map[string]struct {
		start func(t *testing.T, g *Guest, path string, prepare func(c *Cmd)) (*Cmd, func() error)
		want  error
	}{
		"the guest has gone": {func(t *testing.T, g *Guest, path string, prepare func(c *Cmd)) (*Cmd, func() error) {
			newAgent(t, path)
			_, err := g.Ready(within(t))
			require.NoError(t, err)
			g.Fail(gone)
			return start(within(t), g, "true", prepare)
		}, gone},
		"it never came": {func(t *testing.T, g *Guest, _ string, prepare func(c *Cmd)) (*Cmd, func() error) {
			g.Fail(gone)
			return start(within(t), g, "true", prepare)
		}, gone},
		"nobody waits for it": {func(_ *testing.T, g *Guest, _ string, prepare func(c *Cmd)) (*Cmd, func() error) {
			return start(ended, g, "true", prepare)
		}, context.Canceled},
		"early": {func(_ *testing.T, g *Guest, _ string, prepare func(c *Cmd)) (*Cmd, func() error) {
			g.Fail(gone)
			c := g.Command("true")
			prepare(c)
			return c, func() error { _, err := c.Early(); return err }
		}, gone},
		"no such program": {func(t *testing.T, g *Guest, path string, prepare func(c *Cmd)) (*Cmd, func() error) {
			a := newAgent(t, path)
			c, run := start(within(t), g, "nope", prepare)
			return c, func() error {
				began := async(run)
				var w wire.Command
				a.next(wire.KindStart, &w)
				a.say(wire.KindFailed, wire.Failed{ID: w.ID, Errno: uint32(syscall.ENOENT), What: "nope"})
				return <-began
			}
		}, syscall.ENOENT},
	} {
		t.Run(name, func(t *testing.T) {
			g, path := newGuest(t)
			var in io.WriteCloser
			var out, errs io.ReadCloser
			cmd, run := tc.start(t, g, path, func(c *Cmd) {
				var err error
				in, err = c.StdinPipe()
				require.NoError(t, err)
				out, err = c.StdoutPipe()
				require.NoError(t, err)
				errs, err = c.StderrPipe()
				require.NoError(t, err)
			})
			typed := async(func() error { _, err := io.Copy(in, strings.NewReader("typed")); return err })
			read := async(func() error { _, err := io.Copy(io.Discard, out); return err })
			readErrs := async(func() error { _, err := io.Copy(io.Discard, errs); return err })
			require.ErrorIs(t, soon(t, async(run), "the start"), tc.want)
			require.ErrorIs(t, soon(t, typed, "who writes to stdin"), io.ErrClosedPipe)
			soon(t, read, "who reads stdout")
			soon(t, readErrs, "who reads stderr")
			for _, w := range cmd.ends[1:3] {
				_, err := w.(io.Writer).Write([]byte("x"))
				require.ErrorIs(t, err, io.ErrClosedPipe)
			}
			require.ErrorIs(t, soon(t, async(cmd.Wait), "Wait"), tc.want)
			require.ErrorIs(t, cmd.Start(), ErrUsed)
		})
	}
}

// A second start leaves what the first has alone.
func TestStartTwice(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	cmd := g.CommandContext(within(t), "true")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	began := async(cmd.Start)
	var w wire.Command
	a.next(wire.KindStart, &w)
	o := a.stream(w.ID, 1)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
	require.NoError(t, <-began)
	require.ErrorIs(t, cmd.Start(), ErrUsed)
	_, _ = o.Write([]byte("x"))
	o.Close()
	text, err := io.ReadAll(out)
	require.NoError(t, err)
	assert.Equal(t, "x", string(text))
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.NoError(t, cmd.Wait())
}
