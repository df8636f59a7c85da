package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// ends are the two ends of something that streams are made of.
type ends struct{ r, w *os.File }

func pipeEnds(t *testing.T) ends {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	return ends{r, w}
}

func socketEnds(t *testing.T) ends {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	return ends{os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")}
}

var endKinds = map[string]func(*testing.T) ends{"pipe": pipeEnds, "socket": socketEnds}

func (e ends) streams(t *testing.T) (r, w *stream) {
	t.Helper()
	r, err := newStream(int(e.r.Fd()), os.O_RDONLY)
	require.NoError(t, err)
	w, err = newStream(int(e.w.Fd()), os.O_WRONLY)
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close(); e.r.Close(); e.w.Close() })
	return r, w
}

func nonblock(t *testing.T, f *os.File) bool {
	t.Helper()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	require.NoError(t, err)
	return flags&unix.O_NONBLOCK != 0
}

func TestStreamPassesAll(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // more than any buffer
	for name, open := range endKinds {
		t.Run(name, func(t *testing.T) {
			e := open(t)
			r, w := e.streams(t)
			done := make(chan error, 1)
			go func() {
				_, err := w.Write(want)
				done <- err
			}()
			got := make([]byte, len(want))
			_, err := io.ReadFull(r, got)
			require.NoError(t, err)
			require.NoError(t, <-done)
			assert.Equal(t, want, got)
			assert.False(t, nonblock(t, e.r), "the inherited description is as it was")
			assert.False(t, nonblock(t, e.w), "the inherited description is as it was")
		})
	}
}

func TestStreamDeadline(t *testing.T) {
	for name, open := range endKinds {
		t.Run(name, func(t *testing.T) {
			r, w := open(t).streams(t)
			errs := make(chan error, 2)
			go func() {
				_, err := r.Read(make([]byte, 1))
				errs <- err
			}()
			require.NoError(t, r.SetReadDeadline(time.Now()))
			assert.ErrorIs(t, <-errs, os.ErrDeadlineExceeded)
			_, err := r.Read(make([]byte, 1))
			assert.ErrorIs(t, err, os.ErrDeadlineExceeded, "it stays")

			var n int
			go func() {
				var err error
				n, err = w.Write(make([]byte, 1<<24))
				errs <- err
			}()
			require.NoError(t, w.SetWriteDeadline(time.Now().Add(20*time.Millisecond)))
			assert.ErrorIs(t, <-errs, os.ErrDeadlineExceeded)
			assert.Less(t, n, 1<<24)

			require.NoError(t, r.SetReadDeadline(time.Time{}))
			if n == 0 {
				require.NoError(t, w.SetWriteDeadline(time.Time{}))
				_, err = w.Write([]byte("x"))
				require.NoError(t, err)
			}
			_, err = r.Read(make([]byte, 1))
			assert.NoError(t, err, "and is taken away")
		})
	}
}

func TestStreamEnds(t *testing.T) {
	for name, open := range endKinds {
		t.Run(name, func(t *testing.T) {
			e := open(t)
			r, w := e.streams(t)
			if name == "pipe" {
				// The streams have descriptors of their own.
				require.Equal(t, nonblocking, r.kind)
				unix.Close(w.fd)
				w.owned = false
			}
			e.w.Close()
			_, err := r.Read(make([]byte, 1))
			assert.Equal(t, io.EOF, err)
		})
		t.Run(name+", nobody reads", func(t *testing.T) {
			e := open(t)
			r, w := e.streams(t)
			if name == "pipe" {
				unix.Close(r.fd)
				r.owned = false
			}
			e.r.Close()
			_, err := w.Write([]byte("x"))
			assert.ErrorIs(t, err, unix.EPIPE)
		})
	}
}

// TestStreamBlocking: a pipe that can't be opened anew is written in pieces that don't wait.
func TestStreamBlocking(t *testing.T) {
	e := pipeEnds(t)
	defer e.r.Close()
	defer e.w.Close()
	w, err := newStream(int(e.w.Fd()), os.O_WRONLY)
	require.NoError(t, err)
	defer w.Close()
	unix.Close(w.fd)
	w.fd, w.owned, w.kind = int(e.w.Fd()), false, blocking

	done := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 1<<20))
		done <- err
	}()
	_, err = io.ReadFull(e.r, make([]byte, 100<<10))
	require.NoError(t, err)
	require.NoError(t, w.SetWriteDeadline(time.Now()))
	assert.ErrorIs(t, <-done, os.ErrDeadlineExceeded)
}

func TestStreamFiles(t *testing.T) {
	path := file(t, "f", []byte("content"))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	s, err := newStream(int(f.Fd()), os.O_RDONLY)
	require.NoError(t, err)
	defer s.Close()
	got, err := io.ReadAll(s)
	require.NoError(t, err)
	assert.Equal(t, "content", string(got))
	_, err = newStream(-1, os.O_RDONLY)
	assert.ErrorIs(t, err, unix.EBADF)
}

func TestStreamHold(t *testing.T) {
	e := pipeEnds(t)
	r, w := e.streams(t)
	held, asked := true, make(chan struct{}, 100)
	r.hold = func() bool {
		asked <- struct{}{}
		return held
	}
	_, err := w.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, r.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = r.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "what is there is left alone")
	require.NotEmpty(t, asked)
	held = false
	require.NoError(t, r.SetReadDeadline(time.Time{}))
	n, err := r.Read(make([]byte, 1))
	require.NoError(t, err)
	assert.Equal(t, 1, n)
}

// pieces is input that comes in pieces.
type pieces struct{ left []string }

func (p *pieces) SetReadDeadline(time.Time) error { return nil }
func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.left[0])
	if p.left[0] = p.left[0][n:]; p.left[0] == "" {
		p.left = p.left[1:]
	}
	return n, nil
}

func TestEscape(t *testing.T) {
	for name, tc := range map[string]struct {
		in         []string
		want       string
		quit, help int
	}{
		"plain":                 {[]string{"abc", "x\x03"}, "abcx\x03", 0, 0},
		"quit":                  {[]string{"ab\x01xcd", "ef"}, "ab", 1, 0},
		"quit, apart":           {[]string{"ab\x01", "xcd"}, "ab", 1, 0},
		"quit alone":            {[]string{"\x01X"}, "", 1, 0},
		"help":                  {[]string{"\x01h", "a\x01?b"}, "ab", 0, 2},
		"literal":               {[]string{"\x01a", "\x01\x01", "\x01", "\x01x"}, "\x01\x01\x01x", 0, 0},
		"another key":           {[]string{"a\x01zb"}, "ab", 0, 0},
		"at the end":            {[]string{"a\x01"}, "a", 0, 0},
		"many":                  {[]string{strings.Repeat("\x01a", 5000)}, strings.Repeat("\x01", 5000), 0, 0},
		"x without Ctrl-a":      {[]string{"x"}, "x", 0, 0},
		"twice quit, quit once": {[]string{"\x01x\x01x"}, "", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			quit, help := 0, 0
			r := &escapeReader{in: &pieces{tc.in}, quit: func() { quit++ }, help: func() { help++ }}
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			assert.Equal(t, tc.want, string(got))
			assert.Equal(t, tc.quit, quit)
			assert.Equal(t, tc.help, help)
		})
	}
}
