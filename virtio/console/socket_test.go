package console_test

import (
	"bytes"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// socketPath is short enough whatever the test is called.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vc")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "port")
}

func dial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	require.NoError(t, c.SetDeadline(time.Now().Add(virtiotest.Patience)))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestSocketPath(t *testing.T) {
	path := socketPath(t)
	dir := filepath.Dir(path)
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(filepath.Join(dir, "nowhere"), link))
	long := filepath.Join(dir, strings.Repeat("x", 107-len(dir)-1))
	for _, tc := range []struct {
		name, path, want string
		is               error
	}{
		{"none", "", "no path", nil},
		{"too long", long + "x", "the path has 108 bytes", nil},
		{"a file", file, "remove it if nothing uses it", fs.ErrExist},
		{"a link to nothing", link, "remove it if nothing uses it", fs.ErrExist},
		{"a directory", dir, "remove it if nothing uses it", fs.ErrExist},
		{"no directory", filepath.Join(dir, "no", "port"), "no such file or directory", fs.ErrNotExist},
		{"under a file", filepath.Join(file, "port"), "not a directory", syscall.ENOTDIR},
		{"abstract", "@port", "put ./ before it", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := console.Socket(tc.path)
			require.ErrorIs(t, err, console.ErrSocket)
			require.ErrorContains(t, err, tc.want)
			if tc.is != nil {
				require.ErrorIs(t, err, tc.is)
			}
		})
	}
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "precious", string(b))

	p, err := console.Socket(long)
	require.NoError(t, err)
	_, err = console.Socket(long)
	require.ErrorIs(t, err, fs.ErrExist)
	require.NoError(t, p.Closer.Close())
	require.NoFileExists(t, long)
	require.NoError(t, p.Closer.Close())

	// What somebody else has put there meanwhile is not removed.
	p, err = console.Socket(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, p.Closer.Close())
	require.FileExists(t, path)
}

// TestSocketOfRefusedDevice: New gives back what it was given.
func TestSocketOfRefusedDevice(t *testing.T) {
	path := socketPath(t)
	p, err := console.Socket(path)
	require.NoError(t, err)
	p.Name = "a/b"
	_, err = console.New(console.Options{Ports: []console.Port{p}})
	require.ErrorIs(t, err, console.ErrOptions)
	require.NoFileExists(t, path)
}

// TestSocket: one client after the other; the guest sees each come and go, after its
// last byte.
func TestSocket(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		nothingLeft(t)
		path := socketPath(t)
		p, err := console.Socket(path)
		require.NoError(t, err)
		p.Name = "s"
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{p}})
		g.start(0, 64)
		g.begin(1)
		g.hear(message(1, console.EventPortName, 1, 's'))
		q, out := queues(1)
		for range 4 {
			g.post(q, g.In(64))
		}
		g.say(1, console.EventPortOpen, 1)
		g.write(1, []byte("to nobody"))
		g.Until("it was thrown away", func() bool { return dev.Stats()[0].Written == 9 })

		first := dial(t, path)
		g.hear(message(1, console.EventPortOpen, 1))
		second := dial(t, path) // waits
		_, err = second.Write([]byte("second"))
		require.NoError(t, err)
		_, err = first.Write([]byte("ping"))
		require.NoError(t, err)
		assert.Equal(t, "ping", string(g.take(q)))
		g.write(1, []byte("pong"))
		b := make([]byte, 4)
		_, err = io.ReadFull(first, b)
		require.NoError(t, err)
		assert.Equal(t, "pong", string(b))

		// Having said all, it still listens.
		require.NoError(t, first.CloseWrite())
		g.write(1, []byte("more"))
		_, err = io.ReadFull(first, b)
		require.NoError(t, err)
		assert.Equal(t, "more", string(b))
		require.NoError(t, g.Function.Pause(patient(t)))
		g.silent(controlIn)
		g.Function.Resume()
		require.NoError(t, first.Close())
		g.hear(message(1, console.EventPortOpen, 0), message(1, console.EventPortOpen, 1))
		assert.Equal(t, "second", string(g.take(q)))

		// What a client sends before it goes is not lost, while the guest does not
		// listen; nor is the next one's told before.
		g.say(1, console.EventPortOpen, 0)
		_, err = second.Write([]byte("last words"))
		require.NoError(t, err)
		require.NoError(t, second.Close())
		third := dial(t, path)
		require.NoError(t, g.Function.Pause(patient(t)))
		g.silent(controlIn)
		g.silent(q)
		g.Function.Resume()
		g.say(1, console.EventPortOpen, 1)
		assert.Equal(t, "last words", string(g.take(q)))
		g.hear(message(1, console.EventPortOpen, 0), message(1, console.EventPortOpen, 1))

		// A guest that boots again finds the client there.
		g.start(0, 64)
		g.begin(1)
		g.hear(message(1, console.EventPortName, 1, 's'), message(1, console.EventPortOpen, 1))
		g.write(1, []byte("good morning"))
		b = make([]byte, 12)
		_, err = io.ReadFull(third, b)
		require.NoError(t, err)
		assert.Equal(t, "good morning", string(b))

		// A client that is connected when the device ends sees the end.
		g.Queues[out].Add(g.Out([]byte("bye")))
		g.Queues[out].Kick()
		g.Queues[out].Next()
		g.Reset()
		require.NoError(t, dev.Close())
		rest, err := io.ReadAll(third)
		require.NoError(t, err)
		assert.Equal(t, "bye", string(rest))
		require.NoFileExists(t, path)
	})
}

// TestSocketBackPressure: a client that does not read makes the guest wait, and
// nothing else; one that goes lets it go on.
func TestSocketBackPressure(t *testing.T) {
	nothingLeft(t)
	path := socketPath(t)
	p, err := console.Socket(path)
	require.NoError(t, err)
	p.Name = "s"
	g, dev := newGuest(t, virtiotest.OpenMMIO, console.Options{Ports: []console.Port{p}})
	g.start(0, 64)
	g.begin(1)
	g.hear(message(1, console.EventPortName, 1, 's'))
	c := dial(t, path)
	g.hear(message(1, console.EventPortOpen, 1))
	_, q := queues(1)
	data := g.Out(pattern(1<<20, 7))
	for range 4 {
		g.Queues[q].Add(data)
	}
	g.Queues[q].Kick()
	g.Until("it is taken as far as there is room", func() bool { return dev.Stats()[0].Sent > console.OutBuffer })
	require.NoError(t, g.Function.Pause(patient(t)))
	assert.Zero(t, g.Queues[q].UsedIndex(), "a megabyte is more than the buffers hold")
	g.Function.Resume()
	half := make([]byte, 2<<20)
	_, err = io.ReadFull(c, half)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(half, bytes.Repeat(pattern(1<<20, 7), 2)))
	require.NoError(t, c.Close()) // with bytes unread
	for range 4 {
		g.Queues[q].Next()
	}
	g.hear(message(1, console.EventPortOpen, 0))
	next := dial(t, path)
	g.hear(message(1, console.EventPortOpen, 1))
	g.Until("the writer has finished", func() bool { return dev.Stats()[0].Written == 4<<20 })
	g.write(1, []byte("hello"))
	// The end of what was sent to the one before may come first.
	var got []byte
	for b := make([]byte, 4096); !bytes.HasSuffix(got, []byte("hello")); {
		n, err := next.Read(b)
		require.NoError(t, err, "after %d bytes", len(got))
		got = append(got, b[:n]...)
	}
	got = bytes.TrimSuffix(got, []byte("hello"))
	assert.True(t, bytes.HasSuffix(bytes.Repeat(pattern(1<<20, 7), 4), got), "%d bytes of another stream", len(got))
}

// TestSocketStuckAtClose: a client that never reads does not hold up the end.
func TestSocketStuckAtClose(t *testing.T) {
	nothingLeft(t)
	path := socketPath(t)
	p, err := console.Socket(path)
	require.NoError(t, err)
	dev, err := console.New(console.Options{Ports: []console.Port{p}})
	require.NoError(t, err)
	g := &guest{Driver: virtiotest.OpenMMIO(t, dev), t: t}
	g.start(0, 64)
	g.begin(1)
	c := dial(t, path)
	g.hear(message(1, console.EventPortOpen, 1))
	_, q := queues(1)
	g.Queues[q].Add(g.Out(make([]byte, 4<<20)))
	g.Queues[q].Kick()
	// The system's buffer is full too when nothing moves for a while.
	var last, still uint64
	g.Until("the writer is stuck", func() bool {
		s := dev.Stats()[0]
		if still++; s.Written != last || s.Sent-s.Written != console.OutBuffer {
			last, still = s.Written, 0
		}
		return still == 100
	})
	g.Reset()
	require.NoError(t, dev.Close())
	require.NoFileExists(t, path)
	_, err = io.Copy(io.Discard, c)
	require.NoError(t, err)
}

// TestSocketClients: many clients one after the other, which send and go, or only go.
func TestSocketClients(t *testing.T) {
	nothingLeft(t)
	path := socketPath(t)
	p, err := console.Socket(path)
	require.NoError(t, err)
	g, _ := newGuest(t, virtiotest.OpenMMIO, console.Options{Ports: []console.Port{p}})
	g.start(0, 64)
	g.begin(1)
	q, _ := queues(1)
	g.post(q, g.In(64))
	g.say(1, console.EventPortOpen, 1)
	for range 150 {
		c := dial(t, path)
		g.hear(message(1, console.EventPortOpen, 1))
		require.NoError(t, c.Close())
		g.hear(message(1, console.EventPortOpen, 0))
	}
	c := dial(t, path)
	_, err = c.Write([]byte("still there?"))
	require.NoError(t, err)
	assert.Equal(t, "still there?", string(g.take(q)))
}
