package remote

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// What a hostile agent does is a byte of these and steps: a byte that says how and on which
// connection, a length of two bytes, and that many bytes.
const (
	hostileDeaf    = 1 << 0 // it reads nothing
	hostileLingers = 1 << 1 // much time passes before the command's context ends
	hostileUnasked = 1 << 2 // nobody waits for the command before Close
)

const (
	stepConn  = 7      // 0 is a control connection, 1 to 4 are streams of the first command, others begin as the bytes do
	stepFrame = 1 << 3 // the bytes are the kind and the body of a frame
	stepClose = 1 << 4 // the connection is closed behind them
)

// step appends a step.
func step(b []byte, how byte, data []byte) []byte {
	b = append(b, how)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(data)))
	return append(b, data...)
}

func frameStep(b []byte, k wire.Kind, v any) []byte {
	body, _ := json.Marshal(v)
	return step(b, stepFrame, append([]byte{byte(k)}, body...))
}

// hostile is an agent that does as it is told.
type hostile struct {
	l     *pipes
	deaf  bool
	conns [stepConn + 1]net.Conn
	all   []net.Conn
	steps int
}

// conn is the connection i, made if it is not there. nil if nobody accepts any.
func (h *hostile) conn(i int) net.Conn {
	if h.conns[i] != nil {
		return h.conns[i]
	}
	c := h.l.connect()
	if c == nil {
		return nil
	}
	h.conns[i] = c
	h.all = append(h.all, c)
	if !h.deaf {
		go func() { _, _ = io.Copy(io.Discard, c) }()
	}
	switch {
	case i == 0:
		h.write(c, wire.Preface{Stream: wire.Control}.Append(nil, secret))
	case i <= wire.Terminal+1:
		h.write(c, wire.Preface{Command: 1, Stream: uint8(i - 1)}.Append(nil, secret))
	}
	return c
}

// write writes what is taken of b.
func (h *hostile) write(c net.Conn, b []byte) {
	_ = c.SetWriteDeadline(time.Now().Add(time.Minute))
	_, _ = c.Write(b)
}

func (h *hostile) run(b []byte) {
	for ; len(b) >= 3; h.steps++ {
		how, n := b[0], int(binary.LittleEndian.Uint16(b[1:]))
		b = b[3:]
		n = min(n, len(b))
		data := b[:n]
		b = b[n:]
		c := h.conn(int(how & stepConn))
		if c == nil {
			return
		}
		if how&stepFrame != 0 && n > 0 {
			data = append(append(binary.LittleEndian.AppendUint32(nil, uint32(n-1)), data[0]), data[1:]...)
		}
		h.write(c, data)
		if how&stepClose != 0 {
			_ = c.Close()
			h.conns[how&stepConn] = nil
		}
	}
}

// Whatever an agent says: nothing panics, every wait ends with its context or with Close,
// which leaves no goroutine and no connection, and it costs memory in proportion to what was
// sent.
func FuzzGuest(f *testing.F) {
	hello := wire.Hello{Release: "6.1", Problems: []string{"a problem"}}
	exited := wire.Exited{ID: 1, Code: 3}
	normal := frameStep([]byte{0}, wire.KindHello, hello)
	normal = step(normal, 2, []byte("to stdout"))
	normal = step(normal, 1, nil)
	normal = step(normal, 4, []byte("on the terminal"))
	normal = frameStep(normal, wire.KindStarted, wire.Started{ID: 1, PID: 7})
	normal = frameStep(normal, wire.KindStarted, wire.Started{ID: 2, PID: 8})
	normal = frameStep(normal, wire.KindLog, wire.Log{Text: "a line\nand more"})
	normal = frameStep(normal, wire.KindPong, wire.Ping{Seq: 1})
	normal = step(normal, 2|stepClose, nil)
	normal = step(normal, 4|stepClose, nil)
	normal = frameStep(normal, wire.KindExited, exited)
	f.Add(frameStep(normal, wire.KindFailed, wire.Failed{ID: 2, Errno: 2, What: "none"}))
	for flags := range byte(8) {
		b := frameStep([]byte{flags}, wire.KindHello, hello)
		b = step(b, 4, []byte("on the terminal"))
		b = frameStep(b, wire.KindExited, exited) // its output has not come
		f.Add(step(b, 2, []byte("late")))
		f.Add(step(frameStep([]byte{flags}, wire.KindHello, hello), stepClose, nil))
	}
	f.Add(frameStep(frameStep([]byte{0}, wire.KindHello, hello), wire.KindHello, hello))
	f.Add(step([]byte{0}, 0, []byte("\xff\xff\xff\x00\x01{")))
	f.Add(step(step([]byte{0}, 5, []byte("GET / HTTP/1.1\r\n\r\n")), 6|stepClose, []byte("vole")))
	f.Add(step([]byte{0}, 7, wire.Preface{Command: 2, Stream: 1}.Append(nil, secret)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		// Beyond the bubble, where time is real.
		hung := time.AfterFunc(time.Minute, func() {
			debug.SetTraceback("all")
			panic("it hangs")
		})
		defer hung.Stop()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		steps := 0
		synctest.Test(t, func(t *testing.T) { steps = beHostile(t, b[0], b[1:]) })
		runtime.ReadMemStats(&after)
		// Each command's streams have buffers; what is decoded has a header for each of its words.
		assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20+64*len(b)+16<<10*steps))
	})
}

// beHostile serves an agent for two commands, and returns how much that has done.
func beHostile(t *testing.T, flags byte, b []byte) (steps int) {
	h := &hostile{l: newPipes(), deaf: flags&hostileDeaf != 0}
	g := New(h.l, Options{Secret: secret})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	typed, typist := net.Pipe()
	defer typed.Close()
	defer typist.Close()
	var out, shown, text tail
	first := g.CommandContext(ctx, "first")
	first.Stdin, first.Stdout = strings.NewReader(strings.Repeat("typed ", 1000)), &out
	first.Terminal = &Terminal{Files: [3]bool{2: true}, In: typed, Out: &shown}
	_, err := first.Early()
	require.NoError(t, err)
	second := g.CommandContext(ctx, "second")
	second.Stdin, second.Stdout = typed, &text
	waits := []<-chan error{
		async(second.Run),
		async(func() error { return g.Ping(ctx) }),
		async(func() error { _, err := g.Ready(ctx); return err }),
		async(func() error { return g.CopyIn(ctx, "/x", strings.NewReader("data"), 0o600) }),
	}
	if flags&hostileUnasked == 0 {
		waits = append(waits, async(first.Wait))
	}
	h.run(b)
	synctest.Wait()
	if flags&hostileLingers != 0 {
		time.Sleep(10 * time.Minute)
	}
	if flags&hostileUnasked == 0 {
		cancel()
		for _, w := range waits {
			if err := <-w; err != nil {
				assert.Less(t, len(err.Error()), 10*maxText)
			}
		}
	}
	hello, _ := g.Hello()
	assert.LessOrEqual(t, len(hello.Release), maxText+3)
	assert.LessOrEqual(t, len(hello.Problems), maxProblems)
	require.NoError(t, g.Close())
	for _, c := range h.all {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		_, err := io.Copy(io.Discard, c)
		assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "a connection is still open")
	}
	return h.steps
}
