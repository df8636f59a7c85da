package remote

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// A file that nobody waits for any more is given up: the agent is not told that it has ended.
func TestCopyIsCancelled(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	ctx, cancel := context.WithCancel(within(t))
	in, half := io.Pipe()
	write := async(func() error { return g.CopyIn(ctx, "/x", in, 0o600) })
	var w wire.Command
	a.next(wire.KindStart, &w)
	s := a.stream(w.ID, 0)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 1})
	_, err := half.Write([]byte("half"))
	require.NoError(t, err)
	_, err = io.ReadFull(s, make([]byte, 4))
	require.NoError(t, err)
	cancel()
	require.ErrorIs(t, soon(t, write, "CopyIn"), context.Canceled)
	var sig wire.Signal
	a.next(wire.KindSignal, &sig)
	assert.Equal(t, wire.Signal{ID: w.ID, Signal: 9}, sig)
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the stream ends as any")
	_ = half.Close() // what was left behind ends now
	ping := async(func() error { return g.Ping(within(t)) })
	var p wire.Ping
	a.next(wire.KindPing, &p)
	a.say(wire.KindPong, p)
	require.NoError(t, <-ping)
}

// What can't be sent counts, too.
func TestInputIsNotSent(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	cmd := g.CommandContext(within(t), "cat")
	in, typist := io.Pipe()
	cmd.Stdin = in
	run := async(cmd.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	s := a.stream(w.ID, 0)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
	_, err := typist.Write([]byte("half"))
	require.NoError(t, err)
	_, err = io.ReadFull(s, make([]byte, 4))
	require.NoError(t, err)
	s.Close()
	_, err = typist.Write([]byte(" more"))
	require.NoError(t, err)
	a.ended(w.ID, 0, 9)
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.NoError(t, soon(t, run, "Run"))
}

// The streams of a command that the agent starts by itself may come before it is ready.
func TestEarlyInput(t *testing.T) {
	g, path := newGuest(t)
	c := g.CommandContext(within(t), "cat")
	c.Stdin = strings.NewReader("typed")
	w, err := c.Early()
	require.NoError(t, err)
	a := &agent{t: t, path: path}
	b, err := io.ReadAll(a.stream(w.ID, 0))
	require.NoError(t, err)
	assert.Equal(t, "typed", string(b))
	a = newAgent(t, path)
	a.ended(w.ID, 0, 5)
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.NoError(t, c.Wait())
}
