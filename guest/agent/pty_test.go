package agent

import (
	"context"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
)

// screen is what a person would see, and can wait for.
type screen struct {
	t testing.TB
	r *os.File
	s string
}

// until waits until text is shown.
func (s *screen) until(text string) {
	s.t.Helper()
	require.NoError(s.t, s.r.SetReadDeadline(time.Now().Add(boxTimeout)))
	b := make([]byte, 4096)
	for !strings.Contains(s.s, text) {
		n, err := s.r.Read(b)
		s.s += string(b[:n])
		if err != nil {
			require.Contains(s.t, s.s, text, "%v", err)
			return
		}
	}
}

// sit starts a script with a terminal and sits down at it.
func sit(t testing.TB, g *remote.Guest, script string, rows, cols uint16) (*remote.Cmd, *screen, io.WriteCloser) {
	c := sh(t, g, script)
	outR, outW, err := os.Pipe()
	require.NoError(t, err)
	inR, inW, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { outR.Close(); outW.Close(); inR.Close(); inW.Close() })
	c.Terminal = &remote.Terminal{Rows: rows, Cols: cols, In: inR, Out: outW}
	require.NoError(t, c.Start())
	return c, &screen{t: t, r: outR}, inW
}

func TestTerminal(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	t.Run("it is one", func(t *testing.T) {
		c, s, _ := sit(t, g, "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all >/dev/tty; echo $?", 33, 77)
		require.NoError(t, c.Wait())
		s.until("/dev/pts/0\r\n33 77\r\nall\r\n0\r\n")
	})
	t.Run("of no size", func(t *testing.T) {
		c, s, _ := sit(t, g, "stty size", 0, 0)
		require.NoError(t, c.Wait())
		s.until("0 0\r\n")
	})
	t.Run("resized", func(t *testing.T) {
		c, s, _ := sit(t, g, "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.01; done", 10, 10)
		s.until("ready")
		require.NoError(t, c.Resize(20, 30))
		s.until("20 30\r\n")
		require.Error(t, c.Wait())
		assert.Equal(t, 3, c.ProcessState.ExitCode())
	})
	t.Run("^C", func(t *testing.T) {
		c, s, in := sit(t, g, "echo ready; exec sleep 1000", 10, 10)
		s.until("ready")
		_, err := in.Write([]byte{3})
		require.NoError(t, err)
		require.Error(t, c.Wait())
		assert.Equal(t, syscall.SIGINT, c.ProcessState.Signal())
		s.until("^C")
	})
	t.Run("^D", func(t *testing.T) {
		c, s, in := sit(t, g, "cat; echo over", 10, 10)
		_, err := in.Write([]byte("line\n"))
		require.NoError(t, err)
		s.until("line\r\nline\r\n")
		require.NoError(t, in.Close())
		require.NoError(t, c.Wait())
		s.until("over\r\n")
	})
	t.Run("a signal to the foreground", func(t *testing.T) {
		// A shell with job control: what it runs is a group of its own.
		c, s, _ := sit(t, g, "set -m; trap 'echo shell' TERM; sh -c 'echo ready; exec sleep 1000'; echo ended $?; exit 4", 10, 80)
		s.until("ready")
		require.NoError(t, c.Signal(syscall.SIGTERM))
		s.until("ended 143")
		require.Error(t, c.Wait())
		assert.Equal(t, 4, c.ProcessState.ExitCode())
		assert.NotContains(t, s.s, "shell\r\n")
	})
	t.Run("killed with a job in the foreground", func(t *testing.T) {
		c, s, _ := sit(t, g, "set -m; sh -c 'echo $$ >/tmp/job; echo ready; exec sleep 1000'; echo ended $?; exit 4", 10, 80)
		s.until("ready")
		require.NoError(t, c.Signal(syscall.SIGKILL))
		require.Error(t, c.Wait())
		assert.Equal(t, syscall.SIGKILL, c.ProcessState.Signal())
		said(t, g, "while kill -0 $(cat /tmp/job) 2>/dev/null; do sleep 0.01; done")
		assert.NotContains(t, s.s, "ended")
	})
	t.Run("cancelled with a job in the foreground", func(t *testing.T) {
		ctx, cancel := context.WithCancel(bounded(t))
		c := g.CommandContext(ctx, "sh", "-c", "echo $$ >/tmp/shell; set -m; sh -c 'trap \"\" HUP; echo $$ >/tmp/job; echo ready; sleep 1000'; sleep 1000")
		outR, outW, err := os.Pipe()
		require.NoError(t, err)
		defer outR.Close()
		defer outW.Close()
		c.Terminal = &remote.Terminal{Out: outW}
		require.NoError(t, c.Start())
		(&screen{t: t, r: outR}).until("ready")
		cancel()
		require.ErrorIs(t, c.Wait(), context.Canceled)
		said(t, g, "while kill -0 $(cat /tmp/job) 2>/dev/null || kill -0 $(cat /tmp/shell) 2>/dev/null; do sleep 0.01; done")
	})
	t.Run("only standard error", func(t *testing.T) {
		c := sh(t, g, "cat; echo screen >&2; tty <&2 >&2")
		r, w, err := os.Pipe()
		require.NoError(t, err)
		defer r.Close()
		defer w.Close()
		c.Stdin = strings.NewReader("piped")
		c.Terminal = &remote.Terminal{Files: [3]bool{2: true}, Out: w}
		out, err := c.Output()
		require.NoError(t, err)
		assert.Equal(t, "piped", string(out))
		(&screen{t: t, r: r}).until("screen\r\n/dev/pts/0\r\n")
	})
	t.Run("another user's", func(t *testing.T) {
		c := sh(t, g, "echo mine >$(tty); stat -c '%u %a' $(tty)")
		r, w, err := os.Pipe()
		require.NoError(t, err)
		defer r.Close()
		defer w.Close()
		c.User = &remote.User{UID: 1000, GID: 1000}
		c.Terminal = &remote.Terminal{Out: w}
		require.NoError(t, c.Run())
		(&screen{t: t, r: r}).until("mine\r\n1000 620\r\n")
	})
	t.Run("hung up", func(t *testing.T) {
		c := sh(t, g, "while :; do echo x; sleep 0.01; done")
		c.Terminal = &remote.Terminal{Out: failing{}}
		require.Error(t, c.Run())
		assert.Equal(t, syscall.SIGHUP, c.ProcessState.Signal())
	})
	t.Run("hung up while it reads", func(t *testing.T) {
		in, typist := io.Pipe()
		defer typist.Close()
		ctx, cancel := context.WithTimeout(bounded(t), 20*time.Second)
		defer cancel()
		c := g.CommandContext(ctx, "sh", "-c", "trap 'exit 5' HUP; echo x; read line; exit 6")
		c.Terminal = &remote.Terminal{In: in, Out: failing{}}
		err := c.Run()
		require.EqualError(t, err, "exit status 5; the terminal: full")
	})
	t.Run("left behind", func(t *testing.T) {
		c, s, _ := sit(t, g, "trap '' HUP; sleep 1000 & echo bye", 10, 10)
		require.NoError(t, c.Wait())
		s.until("bye\r\n")
	})
}

// What a command has written to a terminal when it ends, which hangs it up, is all
// shown, to those who look slowly as well.
func TestTerminalLastWords(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	for name, c := range map[string]struct {
		times int
		last  string
		bytes int64
		pause time.Duration
	}{
		"often":  {50, "3000", 13893 + 3000, 0},
		"slowly": {3, "200000", 1288895 + 200000, time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			for range c.times {
				shown := slow{pause: c.pause}
				cmd := sh(t, g, "exec seq 1 "+c.last)
				cmd.Terminal = &remote.Terminal{Out: &shown}
				require.NoError(t, cmd.Run())
				assert.Equal(t, c.bytes, shown.n)
			}
		})
	}
}

// slow counts what is written to it, in its own time.
type slow struct {
	pause time.Duration
	n     int64
}

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(s.pause)
	s.n += int64(len(p))
	return len(p), nil
}
