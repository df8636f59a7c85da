package console_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestBothWays: megabytes in both directions at once, in buffers of odd sizes, with
// digests.
func TestBothWays(t *testing.T) {
	const size = 4 << 20
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		nothingLeft(t)
		toGuest, toHost := pattern(size, 1), pattern(size, 2)
		got := &digest{Hash: sha256.New(), want: size, all: make(chan struct{})}
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true}, {Name: "data", In: bytes.NewReader(toGuest), Out: got}}})
		g.start(0, 64)
		g.begin(2)
		g.say(1, console.EventPortOpen, 1)
		in, out := queues(1)
		for _, n := range []int{1, 3, 4096, 100, 8191, 4096, 17} {
			g.post(in, g.In(n))
		}
		tx := g.Queues[out]
		var free []virtiotest.Buffer
		for _, n := range []int{5000, 1, 32768, 4096, 7, 999} {
			free = append(free, g.Out(make([]byte, n)))
		}
		flying := map[uint32]virtiotest.Buffer{}
		read := sha256.New()
		for received, sent := 0, 0; received < size || sent < size || len(flying) > 0; {
			for len(free) > 0 && sent < size {
				b := free[0]
				free = free[1:]
				part := b
				part.Len = uint32(copy(g.Bytes(b), toHost[sent:]))
				sent += int(part.Len)
				flying[uint32(tx.Add(part))] = b
				tx.Kick()
			}
			if u, ok := tx.Poll(); ok {
				free = append(free, flying[u.Head])
				delete(flying, u.Head)
			}
			if u, ok := g.Queues[in].Poll(); ok {
				data := g.taken(in, u)
				received += len(data)
				read.Write(data)
			}
		}
		<-got.all
		want := sha256.Sum256(toGuest)
		assert.Equal(t, want[:], read.Sum(nil), "to the guest")
		want = sha256.Sum256(toHost)
		assert.Equal(t, want[:], got.Sum(nil), "from the guest")
		assert.Equal(t, console.PortStats{Sent: size, Written: size, Received: size}, dev.Stats()[1])
	})
}

// digest is an Out that hashes.
type digest struct {
	hash.Hash
	want int
	all  chan struct{} // closed when want bytes have come
}

func (d *digest) Write(p []byte) (int, error) {
	if d.want -= len(p); d.want == 0 {
		defer close(d.all)
	}
	return d.Hash.Write(p)
}

// TestBlockedOut: back-pressure. The guest waits when the buffer is full, on that
// port alone; a pause and a reset don't.
func TestBlockedOut(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		nothingLeft(t)
		blocked, free, opened := newGate(), newSink(), new(calls)
		in, typed := io.Pipe()
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{
			{Console: true, Out: blocked, Closer: blocked, In: in},
			{Name: "free", Out: free, Open: opened.add},
		}})
		t.Cleanup(func() { _ = in.Close() })
		g.start(0, 64)
		g.begin(2)
		_, q := queues(0)
		line := pattern(1000, 3)
		tx := g.Queues[q]
		var sent []byte
		for len(sent) < console.OutBuffer+20*len(line) {
			sent = append(sent, line...)
			tx.Add(g.Out(line))
			tx.Kick()
			g.Until("the device has taken what it has room for", func() bool {
				return dev.Stats()[0].Sent == uint64(min(len(sent), console.OutBuffer))
			})
			for _, ok := tx.Poll(); ok; _, ok = tx.Poll() {
			}
		}
		assert.EqualValues(t, console.OutBuffer/len(line), tx.UsedIndex(), "only whole buffers are given back")

		// Everything else goes on: input of the same port, others, control messages.
		g.post(0, g.In(64))
		g.say(0, console.EventPortOpen, 1)
		_, err := typed.Write([]byte("^C"))
		require.NoError(t, err)
		assert.Equal(t, "^C", string(g.take(0)))
		g.say(1, console.EventPortOpen, 1)
		for range 100 {
			g.write(1, line)
		}
		free.wait(t, strings.Repeat(string(line), 100))
		assert.Equal(t, []bool{true}, opened.list())
		dev.Resize(80, 25)
		g.hearUntil(message(0, console.EventResize, 0, 80, 0, 25, 0))

		// A pause has nothing to wait for, and nothing changes in it.
		for range 3 {
			require.NoError(t, g.Function.Pause(patient(t)))
			idx := tx.UsedIndex()
			assert.EqualValues(t, console.OutBuffer, dev.Stats()[0].Sent)
			g.Function.Resume()
			assert.Equal(t, idx, tx.UsedIndex())
		}

		// Nor has a reset: the next driver finds the port as full as it was.
		g.start(0, 64)
		assert.EqualValues(t, console.OutBuffer, dev.Stats()[0].Sent)
		g.Queues[q].Add(g.Out([]byte("after the reset")))
		g.Queues[q].Kick()
		require.NoError(t, g.Function.Pause(patient(t)))
		g.silent(q)
		g.Function.Resume()
		require.NoError(t, blocked.Close())
		g.Queues[q].Next()
		require.NoError(t, dev.Drain(patient(t)))
		want := string(sent[:console.OutBuffer]) + "after the reset"
		assert.True(t, want == blocked.String(), "%d bytes came, %d were sent", len(blocked.String()), len(want))
	})
}

// TestPausedWhileTaken: a chain longer than the buffer is taken in parts, over pauses,
// and given back once, when it is whole.
func TestPausedWhileTaken(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		steps := make(chan struct{})
		out := newSink()
		slow := writer(func(p []byte) (int, error) {
			<-steps
			return out.Write(p)
		})
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true, Out: slow}}})
		g.start(0, 0)
		data := pattern(5*console.OutBuffer+777, 4)
		var bufs []virtiotest.Buffer
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 50_001)
			bufs = append(bufs, g.Out(rest[:n]))
			rest = rest[n:]
		}
		g.Queues[1].Add(bufs...)
		g.Queues[1].Kick()
		for done := false; !done; {
			require.NoError(t, g.Function.Pause(patient(t)))
			done = g.Queues[1].UsedIndex() == 1
			assert.Equal(t, done, dev.Stats()[0].Sent == uint64(len(data)))
			g.Function.Resume()
			if !done {
				steps <- struct{}{}
			}
		}
		close(steps)
		require.NoError(t, dev.Drain(patient(t)))
		assert.True(t, string(data) == out.String())
	})
}

// TestLongestChain: a guest may name one buffer many times, to make a chain of
// gigabytes. Neither is it held for long, nor does it cost memory.
func TestLongestChain(t *testing.T) {
	for _, tc := range []struct {
		name  string
		out   io.Writer
		watch bool
		ends  bool // it is taken whole
	}{
		{"thrown away", nil, false, true},
		{"blocked", newGate(), false, false},
		{"written", io.Discard, false, false},
		{"watched", nil, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				port := console.Port{Console: true, Out: tc.out}
				if c, ok := tc.out.(io.Closer); ok {
					port.Closer = c
				}
				g, dev := newGuest(t, open, console.Options{Ports: []console.Port{port}})
				if tc.watch {
					dev.Watch(func([]byte) {})
				}
				g.start(0, 0)
				big := virtiotest.Buffer{GPA: virtiotest.RAMBase, Len: virtiotest.RAM}
				bufs := make([]virtiotest.Buffer, 63)
				for i := range bufs {
					bufs[i] = big
				}
				g.Queues[1].Add(bufs...)
				g.Queues[1].Kick()
				if tc.ends {
					g.Queues[1].Next()
					assert.EqualValues(t, 63*virtiotest.RAM, dev.Stats()[0].Dropped)
					return
				}
				g.Until("it has begun", func() bool { return dev.Stats()[0].Sent >= console.OutBuffer })
				require.NoError(t, g.Function.Pause(patient(t)))
				before := dev.Stats()[0].Sent
				g.Reset()
				assert.Equal(t, before, dev.Stats()[0].Sent)
			})
		})
	}
}

// TestShrinkingChain: a driver at fault changes a chain that was taken in part.
func TestShrinkingChain(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		out := newGate()
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true, Out: out, Closer: out}}})
		g.start(0, 0)
		q := g.Queues[1]
		b := g.Out(make([]byte, 2*console.OutBuffer))
		head := q.Add(b)
		q.Kick()
		g.Until("the buffer is full", func() bool { return dev.Stats()[0].Sent == console.OutBuffer })
		require.NoError(t, g.Function.Pause(patient(t))) // or it is a race, which the device does not mind
		q.SetDesc(int(head), virtiotest.Desc{Addr: b.GPA, Len: 10})
		g.Function.Resume()
		require.NoError(t, out.Close())
		q.Next()
		g.write(0, []byte("next"))
		require.NoError(t, dev.Drain(patient(t)))
		assert.Equal(t, strings.Repeat("\x00", console.OutBuffer)+"next", out.String())
	})
}

// TestInIsNotReadAhead: not beyond the bound, whatever the guest does not do.
func TestInIsNotReadAhead(t *testing.T) {
	for _, tc := range []struct {
		name  string
		port  console.Port
		bound int
	}{
		{"console", console.Port{Console: true}, console.ConsoleInBuffer},
		{"port", console.Port{Name: "a"}, console.InBuffer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				data := pattern(2*tc.bound, 5)
				in := &counted{Reader: bytes.NewReader(data)}
				tc.port.In = in
				id := 1
				if tc.port.Console {
					id = 0
				}
				g, dev := newGuest(t, open, console.Options{Ports: []console.Port{tc.port}, Multiport: true})
				g.Negotiate(0)
				assert.Zero(t, in.count(), "nothing before DRIVER_OK")
				check := func(given int) {
					t.Helper()
					g.Until("In is read as far as there is room", func() bool { return in.count() == min(given+tc.bound, len(data)) })
					require.NoError(t, g.Function.Pause(patient(t)))
					assert.EqualValues(t, given, dev.Stats()[0].Received)
					assert.LessOrEqual(t, in.count(), given+tc.bound)
					g.Function.Resume()
				}
				q, _ := queues(id)
				g.start(0, 64)
				g.post(q, g.In(100))
				check(0) // not open
				g.say(uint32(id), console.EventPortOpen, 1)
				assert.True(t, bytes.Equal(data[:100], g.Bytes(g.posted[q][g.Queues[q].Next().Head])))
				check(100)
				g.start(0, 64) // nothing is lost over a reset, with a reader that waits
				g.post(q, g.In(1000))
				check(100) // the port is not open in the new guest
				g.say(uint32(id), console.EventPortOpen, 1)
				assert.True(t, bytes.Equal(data[100:], g.read(id, len(data)-100)))
			})
		})
	}
}

// TestClosedPortGetsNothing: when the driver has its message back that closed the
// port nothing more comes, and what the host sends then waits for the next opening.
func TestClosedPortGetsNothing(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		in := &counter{stopped: make(chan struct{})}
		g, _ := newGuest(t, open, console.Options{Ports: []console.Port{{Name: "a", In: in, Closer: in}}})
		g.start(0, 64)
		g.begin(1)
		id, _ := queues(1)
		q := g.Queues[id]
		for range 60 {
			g.post(id, g.In(1))
		}
		opening, closing := g.Out(message(1, console.EventPortOpen, 1)), g.Out(message(1, console.EventPortOpen, 0))
		say := func(b virtiotest.Buffer) {
			g.Queues[controlOut].Add(b)
			g.Queues[controlOut].Kick()
			g.Queues[controlOut].Next()
		}
		want := byte(0)
		take := func() (n int) {
			for u, ok := q.Poll(); ok; u, ok = q.Poll() {
				require.Equal(t, []byte{want}, g.taken(id, u), "in order, and none is lost")
				want++
				n++
			}
			return n
		}
		for range 1000 {
			say(opening)
			g.Until("something comes", func() bool { return take() > 0 })
			say(closing)
			idx := q.UsedIndex()
			take() // what Linux would throw away was given before the port was closed
			say(closing)
			require.Equal(t, idx, q.UsedIndex())
		}
	})
}

// counter is an In that counts.
type counter struct {
	stopped chan struct{}
	n       byte
}

func (c *counter) Read(p []byte) (int, error) {
	select {
	case <-c.stopped:
		return 0, io.EOF
	default:
	}
	for i := range p {
		p[i] = c.n
		c.n++
	}
	return len(p), nil
}

func (c *counter) Close() error {
	close(c.stopped)
	return nil
}

// TestGather: a console's lines, which Linux sends in pieces of 16 bytes, are not a
// write each: there is one in a millisecond at most, or for 4 KiB.
func TestGather(t *testing.T) {
	var writes atomic.Int64
	out := newSink()
	count := writer(func(p []byte) (int, error) {
		writes.Add(1)
		return out.Write(p)
	})
	g, dev := newGuest(t, virtiotest.OpenMMIO, console.Options{Ports: []console.Port{{Console: true, Out: count}}})
	g.start(0, 0)
	const line = "0123456789abcdef"
	piece := g.Out([]byte(line))
	var want strings.Builder
	start := time.Now()
	for range 2000 {
		g.Queues[1].Add(piece)
		g.Queues[1].Kick()
		g.Queues[1].Next()
		want.WriteString(line)
	}
	require.NoError(t, dev.Drain(patient(t)))
	most := time.Since(start).Milliseconds() + int64(want.Len())/4096 + 1
	assert.Equal(t, want.String(), out.String())
	assert.LessOrEqual(t, writes.Load(), most)
}

// TestNotifications: a driver that wants no interrupt for what it sends gets none,
// one that does gets one for what was taken (rule 15).
func TestNotifications(t *testing.T) {
	for _, features := range []uint64{1 << 29, 1} {
		t.Run(fmt.Sprintf("features %#x", features), func(t *testing.T) {
			d := virtiotest.OpenPCI
			g, _ := newGuest(t, d, console.Options{Ports: []console.Port{{Console: true, Out: io.Discard}}})
			g.start(features, 0)
			irq := g.Regs.(*virtiotest.PCIRegisters).Vectors[2]
			q := g.Queues[1]
			if features == 1 {
				q.NoInterrupt(true)
			} else {
				q.Quiet = true
				q.UsedEvent(0x8000)
			}
			for range 50 {
				g.write(0, []byte("x"))
			}
			require.NoError(t, g.Function.Pause(patient(t)))
			assert.Zero(t, irq.Count())
			g.Function.Resume()
			q.NoInterrupt(false)
			q.UsedEvent(q.UsedIndex())
			g.write(0, []byte("x"))
			irq.Wait(t, 0)
		})
	}
}
