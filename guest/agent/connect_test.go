package agent

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
)

// A command's connections are tried again, as the agent's own is.
func TestStreamIsTriedAgain(t *testing.T) {
	g, _ := newGuest(t, wire.Config{Port: flaky})
	for range 3 {
		c := sh(t, g, "cat; echo err >&2")
		c.Stdin = strings.NewReader("in\n")
		var errs strings.Builder
		c.Stderr = &errs
		out, err := c.Output()
		require.NoError(t, err)
		assert.Equal(t, "in\n", string(out))
		assert.Equal(t, "err\n", errs.String())
	}
	require.NoError(t, g.WriteFile(bounded(t), "/tmp/x", []byte("data"), 0o600))
	data, err := g.ReadFile(bounded(t), "/tmp/x")
	require.NoError(t, err)
	assert.Equal(t, "data", string(data))
}

// A command that ran when one of its connections failed has run, and is not said to be none
// that can.
func TestStreamFails(t *testing.T) {
	for name, c := range map[string]struct {
		files func(c *remote.Cmd)
		want  string
	}{
		"output": {func(c *remote.Cmd) { c.Stdout = io.Discard },
			"signal: killed; stdout: cut short: in the guest: no stream to the host: address family not supported by protocol"},
		"input": {func(c *remote.Cmd) { c.Stdin = strings.NewReader("in") },
			"signal: killed; stdin: cut short: in the guest: no stream to the host: address family not supported by protocol"},
		"terminal": {func(c *remote.Cmd) { c.Terminal = &remote.Terminal{} },
			"signal: killed; the terminal: cut short: in the guest: no stream to the host: address family not supported by protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := newGuest(t, wire.Config{Port: deserted})
			cmd := sh(t, g, "echo >"+ranFile+"; sleep 1000")
			c.files(cmd)
			require.NoError(t, cmd.Start())
			err := cmd.Wait()
			require.EqualError(t, err, c.want)
			require.ErrorIs(t, err, remote.ErrCut)
			var exit *remote.ExitError
			require.True(t, errors.As(err, &exit))
			assert.Equal(t, syscall.SIGKILL, exit.Signal())
		})
	}
}

// Attempts to connect end after their bound, with the command, and where there can be no
// connection at all.
func TestConnectEnds(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		over time.Duration // the command; 0 is never
		took time.Duration
	}{
		"nobody there": {unix.ECONNRESET, 0, connectBound},
		"no command":   {unix.ECONNRESET, time.Second, time.Second},
		"no sockets":   {unix.EAFNOSUPPORT, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &agent{Options: Options{Dial: func(uint32) (*os.File, error) { return nil, c.err }}}
				over := make(chan struct{})
				if c.over != 0 {
					time.AfterFunc(c.over, func() { close(over) })
				}
				began := time.Now()
				_, err := a.connect(wire.Preface{Command: 1}, over)
				require.ErrorIs(t, err, c.err)
				assert.InDelta(t, c.took, time.Since(began), float64(2*connectPause))
			})
		})
	}
}
