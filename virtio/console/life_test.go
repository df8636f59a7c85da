package console_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestClose: everything ends, whatever the streams are doing, and what can be written
// is.
func TestClose(t *testing.T) {
	filled := func(t *testing.T, p console.Port) (*guest, *console.Device) {
		dev, err := console.New(console.Options{Ports: []console.Port{p}})
		require.NoError(t, err)
		g := &guest{Driver: virtiotest.OpenMMIO(t, dev), t: t}
		g.start(0, 0)
		g.Queues[1].Add(g.Out(make([]byte, 1000)))
		g.Queues[1].Kick()
		g.Queues[1].Next()
		g.Reset()
		return g, dev
	}
	t.Run("unused", func(t *testing.T) {
		nothingLeft(t)
		in := newSilence()
		dev, err := console.New(console.Options{Ports: []console.Port{{Console: true, In: in, Out: io.Discard, Closer: in}}})
		require.NoError(t, err)
		require.NoError(t, dev.Drain(t.Context()))
		require.NoError(t, dev.Close())
		<-in.ended
		require.NoError(t, dev.Close())
	})
	t.Run("what is left is written", func(t *testing.T) {
		nothingLeft(t)
		out := newSink()
		_, dev := filled(t, console.Port{Console: true, Out: out})
		require.NoError(t, dev.Close())
		assert.Len(t, out.String(), 1000)
		require.NoError(t, dev.Drain(t.Context()))
		require.NoError(t, dev.OutErr(0))
	})
	t.Run("freed by the closer", func(t *testing.T) {
		nothingLeft(t)
		in, out := newSilence(), newGate()
		_, dev := filled(t, console.Port{Console: true, In: in, Out: out, Closer: closer(func() error {
			return errors.Join(in.Close(), out.Close())
		})})
		<-out.entered
		require.NoError(t, dev.Close(), "written after all")
		assert.Len(t, out.String(), 1000)
	})
	t.Run("error of the closer", func(t *testing.T) {
		dev, err := console.New(console.Options{Ports: []console.Port{{Name: "a", Closer: closer(func() error { return os.ErrPermission })}}})
		require.NoError(t, err)
		err = dev.Close()
		require.ErrorIs(t, err, os.ErrPermission)
		require.ErrorContains(t, err, `port "a"`)
		assert.Equal(t, err, dev.Close(), "the same again")
	})
	t.Run("freed by deadlines", func(t *testing.T) {
		nothingLeft(t)
		ours, theirs := net.Pipe() // which nobody reads or writes
		t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
		_, dev := filled(t, console.Port{Console: true, In: ours, Out: ours})
		err := dev.Close()
		require.ErrorIs(t, err, console.ErrUnflushed)
		require.ErrorContains(t, err, "1000 bytes")
		require.ErrorIs(t, dev.Drain(t.Context()), console.ErrUnflushed)
		require.NoError(t, dev.OutErr(0))
		require.NoError(t, dev.InErr(0))
		go func() { _, _ = theirs.Write([]byte("x")) }()
		_, err = ours.Read(make([]byte, 1))
		require.NoError(t, err, "the deadline is taken back")
	})
	t.Run("left behind", func(t *testing.T) {
		nothingLeft(t)
		in, out := newSilence(), newGate()
		_, dev := filled(t, console.Port{Console: true, In: in, Out: out})
		<-out.entered
		start := time.Now()
		require.ErrorIs(t, dev.Close(), console.ErrUnflushed)
		assert.Less(t, time.Since(start), virtiotest.Patience/2)
		require.NoError(t, in.Close())
		require.NoError(t, out.Close())
		<-out.n // and the goroutines end, which nothingLeft waits for
	})
	t.Run("a drain that waits", func(t *testing.T) {
		nothingLeft(t)
		out := newGate()
		_, dev := filled(t, console.Port{Console: true, Out: out})
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough"))
		require.ErrorContains(t, dev.Drain(ctx), "1000 bytes are still to be written: enough")
		drained := make(chan error)
		go func() { drained <- dev.Drain(context.Background()) }()
		require.ErrorIs(t, dev.Close(), console.ErrUnflushed)
		require.ErrorIs(t, <-drained, console.ErrUnflushed)
		require.NoError(t, out.Close())
	})
	t.Run("a reader that waits for room", func(t *testing.T) {
		nothingLeft(t)
		in := &counted{Reader: bytes.NewReader(make([]byte, 1<<20))}
		g, dev := filled(t, console.Port{Console: true, In: in})
		g.Until("the buffer is full", func() bool { return in.count() == console.ConsoleInBuffer })
		require.NoError(t, dev.Close())
	})
	t.Run("used afterwards", func(t *testing.T) {
		nothingLeft(t)
		in, out := newSilence(), newSink()
		g, dev := filled(t, console.Port{Console: true, Out: out, In: in, Closer: in})
		go func() { _ = dev.Close() }()
		require.NoError(t, dev.Close())
		g.start(0, 0)
		g.write(0, []byte("to nobody"))
		g.Function.WriteConfig(8, []byte{'x'})
		dev.Resize(1, 2)
		g.Reset()
		assert.Len(t, out.String(), 1000)
		assert.EqualValues(t, 10, dev.Stats()[0].Dropped)
	})
}

type closer func() error

func (f closer) Close() error { return f() }

// TestInFlight: pauses, resets and the end while bytes and messages go in all
// directions. Nothing hangs, nothing happens in a pause, nothing is left. For the
// race detector.
func TestInFlight(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		nothingLeft(t)
		var bytesIn, bytesOut sync.WaitGroup
		in, feed := io.Pipe()
		drain, out := io.Pipe()
		ports := []console.Port{
			{Console: true, In: in, Out: out, Closer: closer(func() error { return errors.Join(in.Close(), out.Close()) })},
			{Name: "echo", In: newSilence(), Out: io.Discard, Open: func(bool) {}},
		}
		ports[1].Closer = ports[1].In.(*silence)
		dev, err := console.New(console.Options{Ports: ports})
		require.NoError(t, err)
		dev.Watch(func([]byte) {})
		g := &guest{Driver: open(t, dev), t: t}
		bytesIn.Go(func() {
			for {
				if _, err := feed.Write(make([]byte, 777)); err != nil {
					return
				}
			}
		})
		bytesOut.Go(func() { _, _ = io.Copy(io.Discard, drain) })
		stop := make(chan struct{})
		var others sync.WaitGroup
		others.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				dev.Resize(n, n)
				dev.Stats()
				dev.Counters()
				g.Function.State()
				g.Function.WriteConfig(8, []byte{'e'})
				g.Function.ReadConfig(0, make([]byte, 12))
			}
		})
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if g.Function.Pause(patient(t)) == nil {
					s := g.Function.State()
					for i, q := range s.Queues {
						assert.Equal(t, q.NextAvail, q.NextUsed, "queue %d is at rest", i)
					}
				}
				g.Function.Resume()
			}
		})
		for range 30 {
			g.start(0, 64)
			data := g.Out(make([]byte, 3000))
			for q := range g.Queues {
				for range 16 {
					switch {
					case q == controlOut:
						g.Queues[q].Add(g.Out(message(uint32(q%2), console.EventPortOpen, uint16(q%3))))
					case q%2 == 1:
						g.Queues[q].Add(data)
					case q != controlIn:
						g.Queues[q].Add(g.In(100))
					}
				}
			}
			g.Queues[controlOut].Add(g.Out(message(noID, console.EventDeviceReady, 1)))
			g.Queues[controlOut].Add(g.Out(message(0, console.EventPortReady, 1)))
			g.Queues[controlOut].Add(g.Out(message(0, console.EventPortOpen, 1)))
			for q := range g.Queues {
				g.Regs.Notify(q)
			}
			g.Until("some are used", func() bool { return g.Queues[1].UsedIndex() > 3 && g.Queues[0].UsedIndex() > 3 })
		}
		require.NoError(t, g.Function.Close(patient(t)))
		close(stop)
		others.Wait()
		require.NoError(t, dev.Close())
		bytesIn.Wait()
		bytesOut.Wait()
	})
}

// TestResetWhileOpen: the owner of a port learns of the reset, in order, and a port
// whose guest has gone is opened by the next.
func TestResetWhileOpen(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		opened := new(calls)
		g, _ := newGuest(t, open, console.Options{Ports: []console.Port{{Name: "a", Open: opened.add}}})
		for range 3 {
			g.start(0, 64)
			g.say(1, console.EventPortOpen, 1)
		}
		g.Reset()
		assert.Equal(t, []bool{true, false, true, false, true, false}, opened.list())
	})
}
