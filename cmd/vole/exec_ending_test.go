package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/vmm/harness"
)

// badFile can't be read or written.
type badFile struct{ err error }

func (b badFile) Read([]byte) (int, error)  { return 0, b.err }
func (b badFile) Write([]byte) (int, error) { return 0, b.err }

// endedBy runs a command in a guest that answers to it with one frame, after it has written
// something to stdout and read all of stdin.
func endedBy(t *testing.T, in io.Reader, out io.Writer, kind wire.Kind, answer func(id uint32) any) (*remote.Cmd, error) {
	t.Helper()
	return endedAnd(t, in, out, kind, answer, nil)
}

// endedAnd is endedBy for a guest to which something happens then, before the output is taken.
func endedAnd(t *testing.T, in io.Reader, out io.Writer, kind wire.Kind, answer func(id uint32) any, then func(g *remote.Guest)) (*remote.Cmd, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	g := remote.New(l, remote.Options{})
	t.Cleanup(func() { _ = g.Close() })
	dial := func(p wire.Preface) net.Conn {
		c, err := net.Dial("unix", path)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = c.Write(p.Append(nil, g.Secret()))
		require.NoError(t, err)
		return c
	}
	control := dial(wire.Preface{Stream: wire.Control})
	w := wire.NewWriter(control)
	require.NoError(t, w.Write(wire.KindHello, wire.Hello{}))
	clock, err := wire.ReadFrame(control)
	require.NoError(t, err)
	require.Equal(t, wire.KindClock, clock.Kind)
	cmd := g.Command("x")
	cmd.Stdin, cmd.Stdout = in, out
	ended := make(chan error, 1)
	go func() { ended <- cmd.Run() }()
	f, err := wire.ReadFrame(control)
	require.NoError(t, err)
	var c wire.Command
	require.NoError(t, f.Decode(&c))
	if kind == wire.KindExited {
		require.NoError(t, w.Write(wire.KindStarted, wire.Started{ID: c.ID, PID: 2}))
		if in != nil {
			_, _ = io.Copy(io.Discard, dial(wire.Preface{Command: c.ID}))
		}
		if out != nil {
			o := dial(wire.Preface{Command: c.ID, Stream: 1})
			_, _ = o.Write([]byte("x"))
			_ = o.(*net.UnixConn).CloseWrite()
			if then == nil {
				_, _ = o.Read(make([]byte, 1))
			}
		}
	}
	require.NoError(t, w.Write(kind, answer(c.ID)))
	if then != nil {
		// The answer to what is asked behind it says that it was heard.
		ping := make(chan error, 1)
		go func() { ping <- g.Ping(t.Context()) }()
		var p wire.Ping
		f, err := wire.ReadFrame(control)
		require.NoError(t, err)
		require.NoError(t, f.Decode(&p))
		require.NoError(t, w.Write(wire.KindPong, p))
		require.NoError(t, <-ping)
		then(g)
	}
	return cmd, <-ended
}

// TestExecEnding: the exit code of how a command ended, and what is said of that.
func TestExecEnding(t *testing.T) {
	exited := func(x wire.Exited) func(uint32) any { return func(id uint32) any { x.ID = id; return x } }
	failed := func(f wire.Failed) func(uint32) any { return func(id uint32) any { f.ID = id; return f } }
	const enoent = uint32(syscall.ENOENT)
	for name, c := range map[string]struct {
		in     io.Reader
		out    io.Writer
		kind   wire.Kind
		answer func(uint32) any
		code   int
		says   string // as the error
		warns  string
	}{
		"fine":               {kind: wire.KindExited, answer: exited(wire.Exited{})},
		"its own":            {kind: wire.KindExited, answer: exited(wire.Exited{Code: 3}), code: 3},
		"full":               {out: badFile{syscall.ENOSPC}, kind: wire.KindExited, answer: exited(wire.Exited{Signal: 13}), code: 125, says: "stdout: no space left on device"},
		"full, caught":       {out: badFile{syscall.EIO}, kind: wire.KindExited, answer: exited(wire.Exited{Code: 3}), code: 125, says: "stdout: input/output error"},
		"full, unseen":       {out: badFile{syscall.ENOSPC}, kind: wire.KindExited, answer: exited(wire.Exited{}), code: 125, says: "stdout: no space left on device"},
		"not wanted":         {out: badFile{syscall.EPIPE}, kind: wire.KindExited, answer: exited(wire.Exited{Signal: 13}), code: 141},
		"not wanted, unseen": {out: badFile{syscall.EPIPE}, kind: wire.KindExited, answer: exited(wire.Exited{})},
		"stdin cut": {in: strings.NewReader("in"), kind: wire.KindExited, answer: exited(wire.Exited{LostInput: &wire.Lost{What: "only 1 bytes of it came"}}), code: 125,
			says: "stdin: cut short: in the guest: only 1 bytes of it came"},
		"stdin cut, and its own": {in: strings.NewReader("in"), kind: wire.KindExited, answer: exited(wire.Exited{Code: 3, LostInput: &wire.Lost{What: "none"}}), code: 125,
			says: "stdin: cut short: in the guest: none"},
		"a directory": {in: badFile{syscall.EISDIR}, kind: wire.KindExited, answer: exited(wire.Exited{}),
			warns: "vole: exec: warning: stdin: is a directory: the command's input ends there\n"},
		"a directory, and its own": {in: badFile{syscall.EISDIR}, kind: wire.KindExited, answer: exited(wire.Exited{Code: 3}), code: 3,
			warns: "vole: exec: warning: stdin: is a directory: the command's input ends there\n"},
		"a child killed": {kind: wire.KindExited, answer: exited(wire.Exited{Code: 3, OOMKills: 2}), code: 3,
			warns: "vole: exec: warning: the guest had no memory left, and its kernel killed processes (2), but not the command itself: --memory gives it more\n"},
		"a child killed, and fine": {kind: wire.KindExited, answer: exited(wire.Exited{OOMKills: 1}),
			warns: "vole: exec: warning: the guest had no memory left, and its kernel killed processes (1), but not the command itself: --memory gives it more\n"},
		"no such command":   {kind: wire.KindFailed, answer: failed(wire.Failed{Errno: enoent, What: "x: none"}), code: 127, says: "x: none"},
		"not executable":    {kind: wire.KindFailed, answer: failed(wire.Failed{Errno: uint32(syscall.EACCES), What: "x: no"}), code: 126, says: "x: no"},
		"no such directory": {kind: wire.KindFailed, answer: failed(wire.Failed{Errno: enoent, Cause: wire.CauseDir, What: "the working directory"}), code: 126, says: "the working directory"},
		"not writable":      {kind: wire.KindFailed, answer: failed(wire.Failed{Errno: enoent, Cause: wire.CauseFiles, What: "/x can't be"}), code: 126, says: "/x can't be"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			s := &execSession{session: session{stderr: &lineWriter{w: &stderr}}}
			cmd, err := endedBy(t, c.in, c.out, c.kind, c.answer)
			s.cmd = cmd
			err = s.ending(context.Background(), err)
			if c.code == 0 {
				require.NoError(t, err)
			} else {
				var exit *exitError
				require.ErrorAs(t, execError(err), &exit)
				assert.Equal(t, c.code, exit.code)
				assert.Equal(t, c.says, exit.Error())
			}
			assert.Equal(t, c.warns, stderr.String())
		})
	}
}

// TestExecOutputCut: the command's end is known, but its output waits for a reader when the
// guest is ended: that is the ending, and not the command's own, of which something is
// missing. What is taken in time changes nothing.
func TestExecOutputCut(t *testing.T) {
	timeout := &harness.Failure{Kind: harness.Timeout, Text: "the time for the guest has passed"}
	panicked := &harness.Failure{Kind: harness.Panic, Text: "the guest's kernel panicked"}
	signalled := &stopped{128 + 15, "SIGTERM"}
	for name, c := range map[string]struct {
		exited  wire.Exited
		failure error
		taken   bool
		code    int
		says    string
		shows   string
	}{
		"timeout":              {exited: wire.Exited{Code: 1}, failure: timeout, code: 124, shows: "vole: exec: --timeout has passed: the guest was ended\n"},
		"timeout, and fine":    {failure: timeout, code: 124, shows: "vole: exec: --timeout has passed: the guest was ended\n"},
		"timeout, and killed":  {exited: wire.Exited{Signal: 9, OOM: true, OOMKills: 1}, failure: timeout, code: 124, shows: "vole: exec: --timeout has passed: the guest was ended\n"},
		"panic":                {exited: wire.Exited{Code: 1}, failure: panicked, code: 121, shows: "vole: exec: the guest's kernel panicked\n"},
		"signal":               {exited: wire.Exited{Code: 1}, failure: signalled, code: 143, says: "SIGTERM: the guest was ended"},
		"signal, and fine":     {failure: signalled, code: 143, says: "SIGTERM: the guest was ended"},
		"taken":                {exited: wire.Exited{Code: 1}, failure: timeout, taken: true, code: 1},
		"taken, and a signal":  {exited: wire.Exited{Code: 1}, failure: signalled, taken: true, code: 1},
		"taken, and all fine":  {failure: timeout, taken: true},
		"without a reason":     {failure: remote.ErrClosed, code: 125, says: "stdout: cut short: the guest was closed"},
		"its own, and no more": {exited: wire.Exited{Code: 3}, failure: remote.ErrClosed, code: 125, says: "stdout: cut short: the guest was closed"},
	} {
		t.Run(name, func(t *testing.T) {
			out := &lateWriter{takes: c.taken, begun: make(chan struct{}), bound: make(chan struct{})}
			var stderr bytes.Buffer
			s := &execSession{session: session{stderr: &lineWriter{w: &stderr}}}
			var err error
			s.cmd, err = endedAnd(t, nil, out, wire.KindExited, func(id uint32) any { c.exited.ID = id; return c.exited }, func(g *remote.Guest) {
				<-out.begun
				g.Fail(c.failure)
			})
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			if c.failure == error(signalled) {
				cancel(signalled)
			}
			s.guest = &harness.Machine{}
			err = s.ending(ctx, err)
			if c.code == 0 {
				require.NoError(t, err)
				return
			}
			var exit *exitError
			require.ErrorAs(t, execError(err), &exit)
			assert.Equal(t, c.code, exit.code)
			assert.Equal(t, c.says, exit.Error())
			assert.Equal(t, c.shows, stderr.String())
		})
	}
}

// lateWriter takes no more than one Write, when that has a deadline, or fails by it.
type lateWriter struct {
	takes        bool
	begun, bound chan struct{}
}

func (w *lateWriter) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() {
		close(w.bound)
	}
	return nil
}

func (w *lateWriter) Write(p []byte) (int, error) {
	close(w.begun)
	<-w.bound
	if !w.takes {
		return 0, os.ErrDeadlineExceeded
	}
	return len(p), nil
}
