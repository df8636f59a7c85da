package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// secret is that of all guests here.
var secret = wire.Secret{1, 2, 3, 31: 4}

// agent plays the guest's side.
type agent struct {
	t      *testing.T
	path   string
	secret wire.Secret
	net.Conn
	out *wire.Writer
}

func newGuest(t *testing.T) (*Guest, string) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	g := New(l, Options{Secret: secret})
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return g, path
}

func dial(t *testing.T, path string, p wire.Preface) net.Conn { return dialWith(t, path, p, secret) }

func dialWith(t *testing.T, path string, p wire.Preface, secret wire.Secret) net.Conn {
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = c.Write(p.Append(nil, secret))
	require.NoError(t, err)
	return c
}

func newAgent(t *testing.T, path string) *agent { return newAgentOf(t, path, secret) }

func newAgentOf(t *testing.T, path string, secret wire.Secret) *agent {
	c := dialWith(t, path, wire.Preface{Stream: wire.Control}, secret)
	a := &agent{t: t, path: path, secret: secret, Conn: c, out: wire.NewWriter(c)}
	a.say(wire.KindHello, wire.Hello{Release: "6.1"})
	a.next(wire.KindClock, &wire.Clock{})
	return a
}

func (a *agent) say(k wire.Kind, v any) { require.NoError(a.t, a.out.Write(k, v)) }

func (a *agent) next(k wire.Kind, v any) {
	f, err := wire.ReadFrame(a)
	require.NoError(a.t, err)
	require.Equal(a.t, k, f.Kind)
	require.NoError(a.t, f.Decode(v))
}

// ended is told that a command's stream had so many bytes.
func (a *agent) ended(id uint32, stream uint8, size int64) {
	var in wire.Input
	a.next(wire.KindInput, &in)
	assert.Equal(a.t, wire.Input{ID: id, Stream: stream, Bytes: size}, in)
}

func (a *agent) stream(id uint32, n uint8) *net.UnixConn {
	return dialWith(a.t, a.path, wire.Preface{Command: id, Stream: n}, a.secret).(*net.UnixConn)
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// async runs f and returns a channel with its error.
func async(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

func TestCommandWithStreams(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	hello, err := g.Ready(within(t))
	require.NoError(t, err)
	assert.Equal(t, "6.1", hello.Release)

	var out, errs bytes.Buffer
	c := g.CommandContext(within(t), "cat", "-")
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader("typed"), &out, &errs
	c.Dir, c.User = "/srv", &User{UID: 1, GID: 2, Groups: []uint32{3}}
	run := async(c.Run)

	var w wire.Command
	a.next(wire.KindStart, &w)
	assert.Equal(t, wire.Command{
		ID: w.ID, Path: "cat", Args: wire.Texts([]string{"cat", "-"}), Env: wire.Texts(defaultEnv), Dir: "/srv",
		UID: 1, GID: 2, Groups: []uint32{3}, Umask: 0o022,
		Files: [3]wire.File{wire.FileStream, wire.FileStream, wire.FileStream},
	}, w)
	in, o, e := a.stream(w.ID, 0), a.stream(w.ID, 1), a.stream(w.ID, 2)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 40})
	b, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.Equal(t, "typed", string(b))
	a.ended(w.ID, 0, 5)
	_, _ = o.Write([]byte("out"))
	_, _ = e.Write([]byte("err"))
	o.Close()
	e.Close()
	a.say(wire.KindExited, wire.Exited{ID: w.ID, Code: 3, Wall: 5})

	err = <-run
	var exit *ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 3, exit.ExitCode())
	assert.Equal(t, 40, c.ProcessState.Pid())
	assert.Equal(t, "out", out.String())
	assert.Equal(t, "err", errs.String())
}

// Output that is still on its way, even in connections that have not come, when the end
// is known.
func TestOutputBehindTheEnd(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	c := g.CommandContext(within(t), "true")
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	run := async(c.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	assert.Equal(t, [3]wire.File{wire.FileNull, wire.FileStream, wire.FileOut}, w.Files)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	<-c.finished
	o := a.stream(w.ID, 1)
	_, _ = o.Write([]byte("late"))
	o.Close()
	require.NoError(t, <-run)
	assert.Equal(t, "late", out.String())
}

func TestEarly(t *testing.T) {
	g, path := newGuest(t)
	c := g.CommandContext(within(t), "true")
	pipe, err := c.StdoutPipe()
	require.NoError(t, err)
	w, err := c.Early()
	require.NoError(t, err)
	_, err = c.Early()
	require.ErrorIs(t, err, ErrUsed)
	require.ErrorIs(t, c.Start(), ErrUsed)
	a := newAgent(t, path)
	o := a.stream(w.ID, 1)
	_, _ = o.Write([]byte("x"))
	o.Close()
	b, err := io.ReadAll(pipe)
	require.NoError(t, err)
	assert.Equal(t, "x", string(b))
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.NoError(t, c.Wait())
}

func TestEndings(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(g *Guest, a *agent, id uint32)
		want func(t *testing.T, err error)
	}{
		"not there": {
			func(_ *Guest, a *agent, id uint32) {
				a.say(wire.KindFailed, wire.Failed{ID: id, Errno: uint32(syscall.ENOENT), What: "exec: nope: not found"})
			},
			func(t *testing.T, err error) {
				var start *StartError
				require.ErrorAs(t, err, &start)
				require.ErrorIs(t, err, fs.ErrNotExist)
			},
		},
		"killed": {
			func(_ *Guest, a *agent, id uint32) {
				a.say(wire.KindStarted, wire.Started{ID: id, PID: 2})
				a.say(wire.KindExited, wire.Exited{ID: id, Signal: 9, OOM: true})
			},
			func(t *testing.T, err error) {
				var exit *ExitError
				require.ErrorAs(t, err, &exit)
				assert.Equal(t, syscall.SIGKILL, exit.Signal())
				assert.True(t, exit.OOM())
				assert.Equal(t, -1, exit.ExitCode())
			},
		},
		"agent gone": {
			func(_ *Guest, a *agent, id uint32) {
				a.say(wire.KindStarted, wire.Started{ID: id, PID: 2})
				a.Close()
			},
			func(t *testing.T, err error) { require.ErrorIs(t, err, ErrLost) },
		},
		"nonsense": {
			func(_ *Guest, a *agent, _ uint32) { _, _ = a.Write(bytes.Repeat([]byte{0xff}, 64)) },
			func(t *testing.T, err error) { require.ErrorIs(t, err, ErrProtocol) },
		},
		"the machine's end": {
			func(g *Guest, _ *agent, _ uint32) { g.Fail(fs.ErrInvalid) },
			func(t *testing.T, err error) { require.ErrorIs(t, err, fs.ErrInvalid) },
		},
		"closed": {
			func(g *Guest, _ *agent, _ uint32) { g.Close() },
			func(t *testing.T, err error) { require.ErrorIs(t, err, ErrClosed) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, path := newGuest(t)
			a := newAgent(t, path)
			cmd := g.CommandContext(within(t), "x")
			// Neither of them ever ends by itself.
			r, _ := io.Pipe()
			cmd.Stdin = r
			run := async(cmd.Run)
			var w wire.Command
			a.next(wire.KindStart, &w)
			a.stream(w.ID, 0)
			c.end(g, a, w.ID)
			c.want(t, <-run)
		})
	}
}

// What was written before the guest went is not lost.
func TestOutputOfALostGuest(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	cmd := g.CommandContext(within(t), "x")
	out, shown := io.Pipe()
	cmd.Stdout = shown
	run := async(cmd.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	o := a.stream(w.ID, 1)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
	_, _ = o.Write([]byte("first, "))
	b := make([]byte, 100)
	n, err := out.Read(b) // a stream that nobody has accepted is lost
	require.NoError(t, err)
	_, _ = o.Write([]byte("last words"))
	a.Close()
	<-g.Done()
	o.Close()
	m, err := out.Read(b[n:])
	require.NoError(t, err)
	assert.Equal(t, "first, last words", string(b[:n+m]))
	require.ErrorIs(t, <-run, ErrLost)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestWriterFails(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	cmd := g.CommandContext(within(t), "yes")
	cmd.Stdout = failing{}
	run := async(cmd.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	o := a.stream(w.ID, 1)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
	_, _ = o.Write([]byte("y\n"))
	_, err := o.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the command's end is closed")
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.EqualError(t, <-run, "stdout: full")
}

type refusing struct{ err error }

func (r refusing) Write([]byte) (int, error) { return 0, r.err }

// A command that can't write is killed by SIGPIPE, which says nothing of the reason.
func TestWriterFailsAndCommandToo(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"full":       {syscall.ENOSPC, "signal: broken pipe; stdout: no space left on device"},
		"not wanted": {syscall.EPIPE, "signal: broken pipe"},
	} {
		t.Run(name, func(t *testing.T) {
			g, path := newGuest(t)
			a := newAgent(t, path)
			cmd := g.CommandContext(within(t), "yes")
			cmd.Stdout = refusing{c.err}
			run := async(cmd.Run)
			var w wire.Command
			a.next(wire.KindStart, &w)
			o := a.stream(w.ID, 1)
			a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
			_, _ = o.Write([]byte("y\n"))
			_, err := o.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
			a.say(wire.KindExited, wire.Exited{ID: w.ID, Signal: 13})
			err = <-run
			require.EqualError(t, err, c.want)
			var exit *ExitError
			require.ErrorAs(t, err, &exit)
			assert.Equal(t, syscall.SIGPIPE, exit.Signal())
		})
	}
}

// What can't be read is the end of a command's input, and an error of Wait.
func TestInputFails(t *testing.T) {
	for name, exited := range map[string]wire.Exited{"fine": {}, "not": {Code: 3}} {
		t.Run(name, func(t *testing.T) {
			g, path := newGuest(t)
			a := newAgent(t, path)
			cmd := g.CommandContext(within(t), "cat")
			cmd.Stdin = broken{strings.NewReader("half")}
			run := async(cmd.Run)
			var w wire.Command
			a.next(wire.KindStart, &w)
			in := a.stream(w.ID, 0)
			a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
			got, err := io.ReadAll(in)
			require.NoError(t, err)
			assert.Equal(t, "half", string(got))
			a.ended(w.ID, 0, 4)
			exited.ID = w.ID
			a.say(wire.KindExited, exited)
			err = <-run
			all := StreamErrors(err)
			require.Len(t, all, 1)
			require.EqualError(t, all[0], "stdin: torn")
			var exit *ExitError
			assert.Equal(t, exited.Code != 0, errors.As(err, &exit))
		})
	}
}

// What a guest says of a command has the bounds that Linux has, or is nonsense.
func TestImpossibleEndings(t *testing.T) {
	for _, x := range []wire.Exited{{Code: 256}, {Code: -1}, {Signal: 65}, {Signal: -9}, {OOMKills: -1}, {Lost: &wire.Lost{}}, {Lost: &wire.Lost{Stream: 4}}, {LostInput: &wire.Lost{Stream: 1}}, {LostInput: &wire.Lost{Stream: 4}}} {
		g, path := newGuest(t)
		a := newAgent(t, path)
		cmd := g.CommandContext(within(t), "true")
		run := async(cmd.Run)
		var w wire.Command
		a.next(wire.KindStart, &w)
		x.ID = w.ID
		a.say(wire.KindExited, x)
		require.ErrorIs(t, <-run, ErrProtocol, "%+v", x)
	}
}

// Texts of the guest's are lines of some hundred bytes.
func TestTextsAreBounded(t *testing.T) {
	g, path := newGuest(t)
	c := dial(t, path, wire.Preface{Stream: wire.Control})
	a := &agent{t: t, path: path, secret: secret, Conn: c, out: wire.NewWriter(c)}
	long := strings.Repeat("x", 1<<20)
	a.say(wire.KindHello, wire.Hello{Release: "6.1\n", Lacks: long, Problems: slices.Repeat([]string{"\x1b[2J\xff\u202eé " + long[:600]}, 100)})
	a.next(wire.KindClock, &wire.Clock{})
	hello, err := g.Ready(within(t))
	require.NoError(t, err)
	assert.Equal(t, `6.1\n`, hello.Release)
	assert.Len(t, hello.Lacks, maxText+3)
	assert.Len(t, hello.Problems, maxProblems)
	assert.True(t, strings.HasPrefix(hello.Problems[0], `\x1b[2J`+"\ufffd"+`\u202eé x`), "%.50q", hello.Problems[0])

	cmd := g.CommandContext(within(t), "true")
	run := async(cmd.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	a.say(wire.KindFailed, wire.Failed{ID: w.ID, What: "one\ntwo" + long})
	err = <-run
	assert.True(t, strings.HasPrefix(err.Error(), `one\ntwoxx`))
	assert.Less(t, len(err.Error()), maxText+10)
}

type broken struct{ io.Reader }

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = errors.New("torn")
	}
	return n, err
}

// A file of which only a part can be read must not look whole in the guest.
func TestReaderFails(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	write := async(func() error { return g.CopyIn(within(t), "/x", broken{strings.NewReader("half")}, 0o600) })
	var w wire.Command
	a.next(wire.KindStart, &w)
	a.stream(w.ID, 0)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 1})
	var sig wire.Signal
	a.next(wire.KindSignal, &sig)
	assert.Equal(t, wire.Signal{ID: w.ID, Signal: 9}, sig)
	a.say(wire.KindExited, wire.Exited{ID: w.ID, What: "it was stopped"})
	require.EqualError(t, <-write, "write /x: torn")
}

// stuck takes nothing, for ever.
type stuck struct{}

func (stuck) Write([]byte) (int, error) { select {} }

// Nobody takes the output, and the guest has gone: Wait must not wait for that.
func TestStuckWriterOfALostGuest(t *testing.T) {
	for name, end := range map[string]func(g *Guest, a *agent, id uint32){
		"gone": func(_ *Guest, a *agent, _ uint32) { a.Close() },
		"failed afterwards": func(g *Guest, a *agent, id uint32) {
			a.say(wire.KindExited, wire.Exited{ID: id})
			g.Fail(fs.ErrInvalid)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, path := newGuest(t)
			a := newAgent(t, path)
			cmd := g.CommandContext(within(t), "yes")
			cmd.Stdout = stuck{}
			run := async(cmd.Run)
			var w wire.Command
			a.next(wire.KindStart, &w)
			o := a.stream(w.ID, 1)
			a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
			_, _ = o.Write([]byte("y\n"))
			end(g, a, w.ID)
			select {
			case <-run:
			case <-time.After(15 * time.Second):
				t.Fatal("Wait waits for a writer that takes nothing")
			}
			require.NoError(t, g.Close())
		})
	}
}

func TestTerminal(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	cmd := g.CommandContext(within(t), "sh")
	var shown, out bytes.Buffer
	cmd.Stdout = &out
	cmd.Terminal = &Terminal{Rows: 24, Cols: 80, Files: [3]bool{true, false, true}, In: strings.NewReader("ls\n"), Out: &shown}
	run := async(cmd.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	assert.Equal(t, [3]wire.File{wire.FileTTY, wire.FileStream, wire.FileTTY}, w.Files)
	tty, o := a.stream(w.ID, wire.Terminal), a.stream(w.ID, 1)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
	b, err := io.ReadAll(tty)
	require.NoError(t, err)
	assert.Equal(t, "ls\n", string(b))
	a.ended(w.ID, wire.Terminal, 3)
	require.NoError(t, cmd.Resize(25, 81))
	var size wire.Resize
	a.next(wire.KindResize, &size)
	assert.Equal(t, wire.Resize{ID: w.ID, Size: wire.Size{Rows: 25, Cols: 81}}, size)
	require.NoError(t, cmd.Signal(syscall.SIGTERM))
	var sig wire.Signal
	a.next(wire.KindSignal, &sig)
	assert.Equal(t, wire.Signal{ID: w.ID, Signal: 15}, sig)
	_, _ = tty.Write([]byte("$ "))
	_, _ = o.Write([]byte("file\n"))
	tty.Close()
	o.Close()
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.NoError(t, <-run)
	assert.Equal(t, "$ ", shown.String())
	assert.Equal(t, "file\n", out.String())
}

func TestStrangers(t *testing.T) {
	g, path := newGuest(t)
	newAgent(t, path)
	_, err := g.Ready(within(t))
	require.NoError(t, err)
	for name, p := range map[string]wire.Preface{
		"no such command":  {Command: 9, Stream: 1},
		"a second control": {Stream: wire.Control},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := dial(t, path, p).Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
		})
	}
	require.NoError(t, g.Err())
}

func TestPingAndFiles(t *testing.T) {
	g, path := newGuest(t)
	a := newAgent(t, path)
	ping := async(func() error { return g.Ping(within(t)) })
	var p wire.Ping
	a.next(wire.KindPing, &p)
	a.say(wire.KindPong, p)
	require.NoError(t, <-ping)

	write := async(func() error { return g.WriteFile(within(t), "/etc/x", []byte("data"), 0o640) })
	var w wire.Command
	a.next(wire.KindStart, &w)
	assert.Equal(t, wire.OpWrite, w.Op)
	assert.Equal(t, uint32(0o640), w.Perm)
	in := a.stream(w.ID, 0)
	a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 1})
	b, _ := io.ReadAll(in)
	assert.Equal(t, "data", string(b))
	a.ended(w.ID, 0, 4)
	a.say(wire.KindExited, wire.Exited{ID: w.ID, What: "no space left on device"})
	require.EqualError(t, <-write, "write /etc/x: no space left on device")
}
