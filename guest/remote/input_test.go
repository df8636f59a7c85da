package remote

import (
	"context"
	"errors"
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
	a := &agent{t: t, path: path, secret: secret}
	b, err := io.ReadAll(a.stream(w.ID, 0))
	require.NoError(t, err)
	assert.Equal(t, "typed", string(b))
	a = newAgent(t, path)
	a.ended(w.ID, 0, 5)
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.NoError(t, c.Wait())
}

// What did not come to a command that read on is an error of Wait, unless it was closed here.
func TestInputIsLost(t *testing.T) {
	cut := func(code int, stream uint8) wire.Exited {
		return wire.Exited{Code: code, LostInput: &wire.Lost{Stream: stream, What: "none\n"}}
	}
	for name, c := range map[string]struct {
		exited wire.Exited
		out    io.Writer
		want   string
		whole  bool // as far as ErrCut says
	}{
		"fine":       {exited: cut(0, 0), want: `stdin: cut short: in the guest: none\n`},
		"not":        {exited: cut(3, 0), want: `exit status 3; stdin: cut short: in the guest: none\n`},
		"a terminal": {exited: cut(0, wire.Terminal), want: `the terminal: cut short: in the guest: none\n`},
		"both": {exited: wire.Exited{Lost: &wire.Lost{Stream: 1, What: "a"}, LostInput: &wire.Lost{What: "b"}},
			want: "stdout: cut short: in the guest: a; stdin: cut short: in the guest: b"},
		"hung up": {exited: cut(0, wire.Terminal), out: failing{}, want: "the terminal: full", whole: true},
	} {
		t.Run(name, func(t *testing.T) {
			g, path := newGuest(t)
			a := newAgent(t, path)
			cmd := g.CommandContext(within(t), "x")
			in, _ := io.Pipe()
			var stream uint8
			if c.exited.LostInput.Stream == wire.Terminal {
				stream = wire.Terminal
				cmd.Terminal = &Terminal{In: in, Out: c.out}
			} else {
				cmd.Stdin = in
			}
			if c.exited.Lost != nil {
				cmd.Stdout = io.Discard
			}
			run := async(cmd.Run)
			var w wire.Command
			a.next(wire.KindStart, &w)
			s := a.stream(w.ID, stream)
			a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
			if c.out != nil {
				_, _ = s.Write([]byte("shown"))
				_, err := s.Read(make([]byte, 1))
				require.ErrorIs(t, err, io.EOF)
				a.ended(w.ID, wire.Terminal, wire.HungUp)
			}
			if c.exited.Lost != nil {
				a.stream(w.ID, 1).Close()
			}
			s.Close()
			c.exited.ID = w.ID
			a.say(wire.KindExited, c.exited)
			err := soon(t, run, "Run")
			require.EqualError(t, err, c.want)
			assert.Equal(t, !c.whole, errors.Is(err, ErrCut))
		})
	}
}
