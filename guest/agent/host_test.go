package agent

import (
	"crypto/rand"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

func random(t testing.TB, n int) []byte {
	b := make([]byte, n)
	_, err := rand.Read(b)
	require.NoError(t, err)
	return b
}

// host is a host that does what a test wants.
type host struct {
	t       testing.TB
	box     *box
	control net.Conn
	w       *wire.Writer
	streams map[wire.Preface]net.Conn
}

// newHost takes the control connection and the Hello.
func newHost(t testing.TB, b *box) *host {
	t.Helper()
	h := &host{t: t, box: b, streams: make(map[wire.Preface]net.Conn)}
	h.control = h.stream(wire.Preface{Stream: wire.Control})
	h.w = wire.NewWriter(h.control)
	var hello wire.Hello
	h.next(wire.KindHello, &hello)
	return h
}

// stream waits for a connection.
func (h *host) stream(p wire.Preface) net.Conn {
	h.t.Helper()
	for h.streams[p] == nil {
		c, err := h.box.Accept()
		require.NoError(h.t, err)
		h.t.Cleanup(func() { c.Close() })
		require.NoError(h.t, c.SetDeadline(time.Now().Add(boxTimeout)))
		got, err := wire.ReadPreface(c, boxSecret)
		require.NoError(h.t, err)
		h.streams[got] = c
	}
	return h.streams[p]
}

func (h *host) say(k wire.Kind, v any) {
	h.t.Helper()
	require.NoError(h.t, h.w.Write(k, v))
}

// next reads a frame, which must be of this kind.
func (h *host) next(k wire.Kind, v any) {
	h.t.Helper()
	f, err := wire.ReadFrame(h.control)
	require.NoError(h.t, err)
	require.Equal(h.t, k, f.Kind)
	require.NoError(h.t, f.Decode(v))
}

// ended waits for the box's end, and returns what it said.
func (h *host) ended() string {
	select {
	case <-h.box.exited:
	case <-time.After(boxTimeout):
		h.t.Fatal("the agent goes on")
	}
	assert.Equal(h.t, 0, h.box.cmd.ProcessState.ExitCode())
	return h.box.out.String()
}

// A host that goes or talks nonsense is the guest's end.
func TestHostGone(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(h *host)
		says string
	}{
		"closed":         {func(h *host) { h.control.Close() }, "vole guest: the host has gone\n"},
		"within a frame": {func(h *host) { _, _ = h.control.Write([]byte{9}); h.control.Close() }, "vole guest: the host has gone: unexpected EOF\n"},
		"too long":       {func(h *host) { _, _ = h.control.Write([]byte{255, 255, 255, 255, 64}) }, "vole guest: the host sends nonsense: "},
		"not JSON":       {func(h *host) { _, _ = h.control.Write([]byte{1, 0, 0, 0, 64, 'x'}) }, "vole guest: the host sends nonsense: "},
		"poweroff":       {func(h *host) { h.say(wire.KindPoweroff, wire.Poweroff{}) }, ""},
		"while it runs": {func(h *host) {
			h.say(wire.KindStart, wire.Command{ID: 1, Path: "/bin/sleep", Args: wire.Texts([]string{"sleep", "100"})})
			var s wire.Started
			h.next(wire.KindStarted, &s)
			h.control.Close()
		}, "vole guest: the host has gone\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, startBox(t, wire.Config{Root: hostRoot()}))
			c.do(h)
			said := h.ended()
			if c.says == "" {
				assert.Empty(t, said)
			} else {
				assert.Contains(t, said, c.says)
			}
		})
	}
}

// A host that is merely odd is served.
func TestOddHost(t *testing.T) {
	h := newHost(t, startBox(t, wire.Config{Root: hostRoot()}))
	h.say(250, "of the future")
	h.say(wire.KindSignal, wire.Signal{ID: 77, Signal: 9})
	h.say(wire.KindSignal, wire.Signal{ID: 77, Signal: -9})
	h.say(wire.KindResize, wire.Resize{ID: 77})
	h.say(wire.KindClock, wire.Clock{Unix: time.Now().UnixNano(), Hello: true}) // right, however long it takes
	h.say(wire.KindPing, wire.Ping{Seq: 5})
	var p wire.Ping
	h.next(wire.KindPong, &p)
	assert.EqualValues(t, 5, p.Seq)
	h.say(wire.KindClock, wire.Clock{Unix: 1}) // refused: a box is no guest
	var l wire.Log
	h.next(wire.KindLog, &l)
	assert.Equal(t, "the guest's clock can't be set: operation not permitted", l.Text)

	run := func(id uint32, script string, files ...wire.File) {
		c := wire.Command{ID: id, Path: "/bin/sh", Args: wire.Texts([]string{"sh", "-c", script})}
		copy(c.Files[:], files)
		h.say(wire.KindStart, c)
	}
	var started wire.Started
	var exited wire.Exited
	var failed wire.Failed

	// Signals before the start.
	run(1, "sleep 100")
	h.say(wire.KindSignal, wire.Signal{ID: 1, Signal: 15})
	h.next(wire.KindStarted, &started)
	h.next(wire.KindExited, &exited)
	assert.Equal(t, 15, exited.Signal)

	// A number that is in use, an operation that nobody knows.
	run(2, "sleep 100")
	h.next(wire.KindStarted, &started)
	run(2, "true")
	h.next(wire.KindFailed, &failed)
	assert.Contains(t, failed.What, "number 2")
	h.say(wire.KindStart, wire.Command{ID: 3, Op: "dance"})
	h.next(wire.KindFailed, &failed)
	assert.Contains(t, failed.What, `"dance"`)

	// Streams that are closed at once.
	run(4, "cat; echo x; echo y", wire.FileStream, wire.FileStream, wire.FileStream)
	for i := range 3 {
		h.stream(wire.Preface{Command: 4, Stream: uint8(i)}).Close()
	}
	h.say(wire.KindInput, wire.Input{ID: 77})
	h.say(wire.KindInput, wire.Input{ID: 4, Stream: 99})
	h.say(wire.KindInput, wire.Input{ID: 4})
	h.next(wire.KindStarted, &started)
	h.next(wire.KindExited, &exited)
	assert.EqualValues(t, 4, exited.ID)

	// A stream that is not read holds up its own command alone.
	run(5, "head -c 10000000 /dev/zero", wire.FileNull, wire.FileStream)
	slow := h.stream(wire.Preface{Command: 5, Stream: 1})
	h.next(wire.KindStarted, &started)
	run(6, "exit 6")
	h.next(wire.KindStarted, &started)
	h.next(wire.KindExited, &exited)
	assert.Equal(t, 6, exited.Code)
	n, err := io.Copy(io.Discard, slow)
	require.NoError(t, err)
	assert.EqualValues(t, 10000000, n)
	h.next(wire.KindExited, &exited)
	assert.EqualValues(t, 5, exited.ID)

	// More than there can be.
	for i := range maxCommands {
		run(uint32(100+i), "sleep 100")
	}
	busy := 0
	for range maxCommands {
		f, err := wire.ReadFrame(h.control)
		require.NoError(t, err)
		if f.Kind == wire.KindFailed {
			require.NoError(t, f.Decode(&failed))
			assert.Contains(t, failed.What, "no more at once")
			busy++
		}
	}
	assert.Equal(t, 1, busy) // the second still runs

	h.say(wire.KindPoweroff, wire.Poweroff{SyncOnly: true, Seq: 9})
	for ended := 0; ; {
		f, err := wire.ReadFrame(h.control)
		require.NoError(t, err)
		if f.Kind == wire.KindExited {
			ended++
			continue
		}
		require.Equal(t, wire.KindPong, f.Kind)
		break
	}
	h.control.Close()
	h.ended()
}

// A kernel without sockets is of no use to anybody.
func TestNoSockets(t *testing.T) {
	b := startBox(t, wire.Config{Port: noSockets})
	<-b.exited
	assert.Equal(t, "vole guest: no connection to the host: address family not supported by protocol\n", b.out.String())
}
