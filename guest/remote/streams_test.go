package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
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
	errs := &deaf{written: make(chan struct{})}
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
	<-errs.written
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

// slow takes a Write's bytes after a time, or none if its deadline comes before.
type slow struct {
	time time.Duration
	end  chan time.Time
	got  bytes.Buffer
}

func newSlow(d time.Duration) *slow { return &slow{time: d, end: make(chan time.Time, 10)} }

func (s *slow) SetWriteDeadline(t time.Time) error {
	s.end <- t
	return nil
}

func (s *slow) Write(p []byte) (int, error) {
	taken := time.NewTimer(s.time)
	late := time.NewTimer(never)
	for {
		select {
		case <-taken.C:
			return s.got.Write(p)
		case <-late.C:
			return 0, os.ErrDeadlineExceeded
		case t := <-s.end:
			if late.Reset(never); !t.IsZero() {
				late.Reset(time.Until(t))
			}
		}
	}
}

const never = 1000 * time.Hour

// The command's end is known and its output is not all taken when the guest fails or the
// context ends: Wait says so, and why. What was taken in time is all that there is to say.
func TestOutputIsCut(t *testing.T) {
	gone := errors.New("it panicked")
	fail := func(g *Guest, _ func()) { g.Fail(gone) }
	cancel := func(_ *Guest, cancel func()) { cancel() }
	live := func(*Guest, func()) {}
	for name, c := range map[string]struct {
		out  io.Writer
		mute bool // the stream does not come
		open bool // nor does its end
		code int
		end  func(g *Guest, cancel func())
		want string
		is   error
	}{
		"taken":                     {out: newSlow(time.Hour), code: 1, end: live, want: "exit status 1"},
		"taken in time":             {out: newSlow(time.Second), code: 1, end: fail, want: "exit status 1"},
		"taken in time, and fine":   {out: newSlow(time.Second), end: cancel},
		"not taken":                 {out: newSlow(never), code: 1, end: fail, want: "exit status 1; stdout: cut short: it panicked", is: gone},
		"not taken, and fine":       {out: newSlow(never), end: fail, want: "stdout: cut short: it panicked", is: gone},
		"nobody waits":              {out: newSlow(never), code: 1, end: cancel, want: "exit status 1; stdout: cut short: context canceled", is: context.Canceled},
		"left behind":               {out: untilClosed{}, code: 1, end: fail, want: "exit status 1; stdout: cut short: it panicked", is: gone},
		"left behind, and fine":     {out: untilClosed{}, end: cancel, want: "stdout: cut short: context canceled", is: context.Canceled},
		"it does not come":          {out: io.Discard, mute: true, end: live, want: "stdout: cut short", is: ErrCut},
		"it does not come any more": {out: io.Discard, mute: true, code: 1, end: fail, want: "exit status 1; stdout: cut short: it panicked", is: gone},
		"it does not end":           {out: io.Discard, open: true, end: live, want: "stdout: cut short", is: ErrCut},
		"a bound of the caller's":   {out: refusing{os.ErrDeadlineExceeded}, code: 1, end: live, want: "exit status 1; stdout: i/o timeout"},
		"closed":                    {out: refusing{syscall.EPIPE}, code: 1, end: live, want: "exit status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, p, a := inBubble(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				cmd := g.CommandContext(ctx, "x")
				cmd.Stdout = c.out
				if s, ok := c.out.(*slow); ok {
					cmd.Stdout = newSlow(s.time) // of this bubble
				}
				if _, ok := c.out.(untilClosed); ok {
					u := untilClosed{make(chan struct{})}
					defer close(u.closed)
					cmd.Stdout = u
				}
				run := async(cmd.Run)
				var w wire.Command
				a.next(wire.KindStart, &w)
				a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
				if !c.mute {
					o := p.dial(t, wire.Preface{Command: w.ID, Stream: 1})
					_, err := o.Write([]byte("its output"))
					require.NoError(t, err)
					if !c.open {
						o.Close()
					}
				}
				a.say(wire.KindExited, wire.Exited{ID: w.ID, Code: c.code})
				synctest.Wait()
				c.end(g, cancel)
				err := <-run
				if c.want == "" {
					require.NoError(t, err)
				} else {
					require.EqualError(t, err, c.want)
				}
				assert.Equal(t, strings.Contains(c.want, "cut short"), errors.Is(err, ErrCut))
				if c.is != nil {
					require.ErrorIs(t, err, c.is)
				}
				var exit *ExitError
				assert.Equal(t, c.code != 0, errors.As(err, &exit))
				if s, ok := cmd.Stdout.(*slow); ok && !errors.Is(err, ErrCut) {
					assert.Equal(t, "its output", s.got.String())
				}
			})
		})
	}
}

// An output whose connection breaks is not whole, whatever the command says. A terminal's
// may be reset for what was typed.
func TestOutputIsReset(t *testing.T) {
	for name, c := range map[string]struct {
		stream uint8
		typed  bool
		code   int
		want   string
	}{
		"fine":                  {stream: 1, want: "stdout: cut short: connection reset by peer"},
		"not":                   {stream: 2, code: 3, want: "exit status 3; stderr: cut short: connection reset by peer"},
		"a terminal":            {stream: wire.Terminal, want: "the terminal: cut short: connection reset by peer"},
		"a terminal with input": {stream: wire.Terminal, typed: true},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			g := New(l, Options{Secret: secret})
			defer g.Close()
			dial := func(p wire.Preface) *net.TCPConn {
				conn, err := net.Dial("tcp", l.Addr().String())
				require.NoError(t, err)
				t.Cleanup(func() { conn.Close() })
				_, err = conn.Write(p.Append(nil, secret))
				require.NoError(t, err)
				return conn.(*net.TCPConn)
			}
			conn := dial(wire.Preface{Stream: wire.Control})
			a := &agent{t: t, Conn: conn, out: wire.NewWriter(conn)}
			a.say(wire.KindHello, wire.Hello{})
			a.next(wire.KindClock, &wire.Clock{})

			cmd := g.CommandContext(within(t), "x")
			out, w := io.Pipe()
			switch c.stream {
			case 1:
				cmd.Stdout = w
			case 2:
				cmd.Stderr = w
			default:
				cmd.Terminal = &Terminal{Out: w}
				if c.typed {
					cmd.Terminal.In, _ = io.Pipe()
				}
			}
			run := async(cmd.Run)
			var start wire.Command
			a.next(wire.KindStart, &start)
			o := dial(wire.Preface{Command: start.ID, Stream: c.stream})
			a.say(wire.KindStarted, wire.Started{ID: start.ID, PID: 2})
			_, err = o.Write([]byte("half"))
			require.NoError(t, err)
			_, err = io.ReadFull(out, make([]byte, 4))
			require.NoError(t, err)
			require.NoError(t, o.SetLinger(0))
			require.NoError(t, o.Close())
			a.say(wire.KindExited, wire.Exited{ID: start.ID, Code: c.code})
			err = soon(t, run, "Run")
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, c.want)
			require.ErrorIs(t, err, ErrCut)
		})
	}
}

// What the guest could not send of an output is an error of Wait.
func TestOutputIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		exited wire.Exited
		want   string
	}{
		"fine":       {wire.Exited{Lost: &wire.Lost{Stream: 1, What: "out of\nmemory"}}, `stdout: cut short: in the guest: out of\nmemory`},
		"not":        {wire.Exited{Code: 3, Lost: &wire.Lost{Stream: 1, What: "none"}}, "exit status 3; stdout: cut short: in the guest: none"},
		"a terminal": {wire.Exited{Lost: &wire.Lost{Stream: wire.Terminal, What: "none"}}, "the terminal: cut short: in the guest: none"},
	} {
		t.Run(name, func(t *testing.T) {
			g, path := newGuest(t)
			a := newAgent(t, path)
			cmd := g.CommandContext(within(t), "x")
			var out bytes.Buffer
			cmd.Stdout = &out
			run := async(cmd.Run)
			var w wire.Command
			a.next(wire.KindStart, &w)
			o := a.stream(w.ID, 1)
			a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
			_, _ = o.Write([]byte("half"))
			o.Close()
			c.exited.ID = w.ID
			a.say(wire.KindExited, c.exited)
			err := soon(t, run, "Run")
			require.EqualError(t, err, c.want)
			require.ErrorIs(t, err, ErrCut)
			require.Len(t, StreamErrors(err), 1)
			assert.Equal(t, "half", out.String())
		})
	}
}

// untilClosed takes nothing, whatever its deadline.
type untilClosed struct{ closed chan struct{} }

func (u untilClosed) Write([]byte) (int, error) {
	<-u.closed
	return 0, net.ErrClosed
}

// deaf takes nothing, for ever, whatever its deadline.
type deaf struct {
	stuck
	written  chan struct{} // closed by the first Write
	deadline atomic.Int64  // 0 for none
}

func (d *deaf) Write(p []byte) (int, error) {
	close(d.written)
	return d.stuck.Write(p)
}

func (d *deaf) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		d.deadline.Store(0)
	} else {
		d.deadline.Store(t.UnixNano())
	}
	return nil
}
