package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// Connections that say nothing leave the agent its place.
func TestSilentStrangers(t *testing.T) {
	g, path := newGuest(t)
	var first net.Conn
	for range maxConns + 10 {
		c, err := net.Dial("unix", path)
		require.NoError(t, err)
		defer c.Close()
		if first == nil {
			first = c
		}
	}
	a := newAgent(t, path)
	_, err := g.Ready(within(t))
	require.NoError(t, err)
	_, err = first.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the first is closed for the last")

	cmd := g.CommandContext(within(t), "x")
	var out bytes.Buffer
	cmd.Stdout = &out
	run := async(cmd.Run)
	var w wire.Command
	a.next(wire.KindStart, &w)
	o := a.stream(w.ID, 1)
	_, _ = o.Write([]byte("out"))
	o.Close()
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.NoError(t, soon(t, run, "Run"))
	assert.Equal(t, "out", out.String())
}

// A program of the guest that is not the agent can't speak for it, however much it knows of
// the protocol, and hears no answer. What it tries is logged, without the secret.
func TestImpostors(t *testing.T) {
	var log lines
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	g := New(l, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	defer g.Close()
	known := g.Secret()
	require.NotEqual(t, wire.Secret{}, known)
	cmd := g.CommandContext(within(t), "x")
	var out bytes.Buffer
	cmd.Stdout = &out
	w, err := cmd.Early()
	require.NoError(t, err)
	almost := known
	almost[wire.SecretSize-1] ^= 1
	for _, c := range []struct { // the first is logged
		name string
		b    []byte
	}{
		{"control", wire.Preface{Stream: wire.Control}.Append(nil, almost)},
		{"a stream", wire.Preface{Command: w.ID, Stream: 1}.Append(nil, almost)},
		{"without any", wire.Preface{Command: w.ID, Stream: 1}.Append(nil, wire.Secret{})},
		{"only a part of it", wire.Preface{Stream: wire.Control}.Append(nil, known)[:wire.PrefaceSize-1]},
		{"something else", []byte("GET / HTTP/1.1\r\nHost: a-host-with-a-name-of-some-length\r\n\r\n")},
		{"nothing, and closed", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.b
			c, err := net.Dial("unix", path)
			require.NoError(t, err)
			defer c.Close()
			_, err = c.Write(b)
			require.NoError(t, err)
			if len(b) < wire.PrefaceSize {
				require.NoError(t, c.(*net.UnixConn).CloseWrite())
			}
			require.NoError(t, c.SetReadDeadline(time.Now().Add(strangerBound/2)))
			n, err := c.Read(make([]byte, 1))
			assert.Zero(t, n)
			require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "it is not closed")
		})
	}
	_, ready := g.Hello()
	assert.False(t, ready)

	a := &agent{t: t, path: path, secret: known}
	o := a.stream(w.ID, 1)
	_, _ = o.Write([]byte("out"))
	o.Close()
	a = newAgentOf(t, path, known)
	a.say(wire.KindExited, wire.Exited{ID: w.ID})
	require.NoError(t, soon(t, async(cmd.Wait), "Wait"))
	assert.Equal(t, "out", out.String())
	assert.Contains(t, log.String(), "a connection without the guest's secret")
	text, err := known.MarshalText()
	require.NoError(t, err)
	for _, shown := range []string{string(text), string(known[:]), fmt.Sprintf("%x", known[:]), fmt.Sprintf("%q", known[:])} {
		assert.NotContains(t, log.String(), shown)
	}
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

// Who says nothing, or little, is not waited for.
func TestStrangerIsSlow(t *testing.T) {
	for name, begin := range map[string][]byte{"nothing": nil, "a byte": []byte("v")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, p, _ := inBubble(t)
				c := p.connect()
				defer c.Close()
				_, err := c.Write(begin)
				require.NoError(t, err)
				began := time.Now()
				_, err = c.Read(make([]byte, 1))
				require.ErrorIs(t, err, io.EOF)
				assert.Equal(t, strangerBound, time.Since(began))
				require.NoError(t, g.Err())
				require.NoError(t, g.Close())
			})
		})
	}
}

// They end with the guest.
func TestStrangersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, p, _ := inBubble(t)
		c := p.connect()
		defer c.Close()
		synctest.Wait()
		began := time.Now()
		require.NoError(t, g.Close())
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		assert.Equal(t, lostBound, time.Since(began))
	})
}

// What was connected when the guest went, and had not been looked at, may be a command's last
// words.
func TestStrangerOfALostGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, p, a := inBubble(t)
		cmd := g.Command("x")
		var out bytes.Buffer
		cmd.Stdout = &out
		w, err := cmd.Early()
		require.NoError(t, err)
		a.say(wire.KindStarted, wire.Started{ID: w.ID, PID: 2})
		c := p.connect()
		synctest.Wait()
		gone := errors.New("it panicked")
		wait := async(cmd.Wait)
		g.Fail(gone)
		_, err = c.Write(append(wire.Preface{Command: w.ID, Stream: 1}.Append(nil, secret), "last words"...))
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-wait, gone)
		assert.Equal(t, "last words", out.String())
	})
}
