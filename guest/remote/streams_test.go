package remote

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// socketPair is a connection's two ends.
func socketPair(t *testing.T) (ours, theirs net.Conn) {
	ours, theirs = net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// What a command has read from is the caller's again when Wait has returned.
func TestReaderIsGivenBack(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	in, typist := socketPair(t)
	for range 2 {
		cmd := g.CommandContext(within(t), "true")
		cmd.Stdin = in
		run := async(cmd.Run)
		var w wire.Command
		a.next(wire.KindStart, &w)
		s := a.stream(w.ID, 0)
		a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
		typed := async(func() error { _, err := typist.Write([]byte("its own")); return err })
		b := make([]byte, 7)
		_, err := io.ReadFull(s, b)
		require.NoError(t, err)
		require.NoError(t, <-typed)
		a.say(wire.KindExited, wire.Exited{ID: w.ID})
		require.NoError(t, <-run)

		typed = async(func() error { _, err := typist.Write([]byte("the next one's")); return err })
		b = make([]byte, 100)
		n, err := in.Read(b)
		require.NoError(t, err)
		assert.Equal(t, "the next one's", string(b[:n]))
		require.NoError(t, <-typed)
	}
}

// So is one that the caller closes meanwhile.
func TestReaderIsClosed(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	in, _ := socketPair(t)
	cmd := g.CommandContext(within(t), "true")
	cmd.Stdin = in
	run := async(cmd.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	s := a.stream(w.ID, 0)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
	in.Close()
	_, err := s.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.EqualError(t, <-run, "stdin: io: read/write on closed pipe")
}

// A guest that reads nothing of what is typed, and whose command ends or which is closed.
func TestInputIsNotTaken(t *testing.T) {
	for name, end := range map[string]func(g *Guest, a *agent, cmd *Cmd, id uint32){
		"Wait": func(_ *Guest, a *agent, cmd *Cmd, id uint32) {
			a.say(wire.KindExited, wire.Exited{ID: id})
			_ = cmd.Wait()
		},
		"Close": func(g *Guest, _ *agent, _ *Cmd, _ uint32) { _ = g.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			g, path := newGuest(t)
			a := newAgent(t, path)
			in, typist := socketPair(t)
			cmd := g.CommandContext(within(t), "sh")
			cmd.Terminal = &Terminal{In: in}
			began := async(cmd.Start)
			var w wire.Command
			a.next(wire.KindStart, &w)
			tty := a.stream(w.ID, wire.Terminal)
			a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
			require.NoError(t, <-began)
			// More than a socket holds, so that the last of it is not taken.
			require.NoError(t, typist.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
			_, err := io.Copy(typist, bytes.NewReader(make([]byte, 16<<20)))
			require.Error(t, err)
			ended := async(func() error {
				end(g, a, cmd, w.ID)
				return nil
			})
			if name == "Wait" {
				require.NoError(t, tty.CloseWrite())
			}
			soon(t, ended, name)
		})
	}
}

// What a command has written to is the caller's again, unless a Write was left behind.
func TestWriterIsGivenBack(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	out, reader := socketPair(t)
	errs := &deaf{}
	cmd := g.CommandContext(within(t), "x")
	cmd.Stdout, cmd.Stderr = out, errs
	run := async(cmd.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	o, e := a.stream(w.ID, 1), a.stream(w.ID, 2)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
	_, _ = o.Write([]byte("last words"))
	_, _ = e.Write([]byte("not taken"))
	b := make([]byte, 100)
	n, err := reader.Read(b)
	require.NoError(t, err)
	assert.Equal(t, "last words", string(b[:n]))
	a.Close()
	o.Close()
	require.ErrorIs(t, soon(t, run, "Run"), ErrLost)
	// The bound of a Write at that time has passed since.
	got := async(func() error { _, err := reader.Read(b); return err })
	_, err = out.Write([]byte("more"))
	require.NoError(t, err)
	require.NoError(t, <-got)
	assert.NotZero(t, errs.deadline.Load())
}

// deaf takes nothing, for ever, whatever its deadline.
type deaf struct {
	stuck
	deadline atomic.Int64 // 0 for none
}

func (d *deaf) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		d.deadline.Store(0)
	} else {
		d.deadline.Store(t.UnixNano())
	}
	return nil
}
