package console_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

func TestOptions(t *testing.T) {
	named := func(names ...string) (ports []console.Port) {
		for _, n := range names {
			ports = append(ports, console.Port{Name: n})
		}
		return ports
	}
	many := func(n int) []console.Port { return append(make([]console.Port, n-1), console.Port{Console: true}) }
	for _, tc := range []struct {
		name string
		o    console.Options
		want string // in the error; "" is none
	}{
		{"no port", console.Options{}, "no port"},
		{"one console", console.Options{Ports: many(1)}, ""},
		{"the most", console.Options{Ports: many(console.MaxPorts)}, ""},
		{"too many", console.Options{Ports: many(console.MaxPorts + 1)}, "32 ports: the highest number is 30"},
		{"the most without a console", console.Options{Ports: make([]console.Port, console.MaxPorts-1)}, ""},
		{"too many without a console", console.Options{Ports: make([]console.Port, console.MaxPorts)}, "31 ports"},
		{"longest name", console.Options{Ports: named(strings.Repeat("a", console.MaxName))}, ""},
		{"name too long", console.Options{Ports: named(strings.Repeat("a", console.MaxName+1))}, "256 bytes"},
		{"name twice", console.Options{Ports: named("org.vole.0", "x", "org.vole.0")}, `port 2: the name "org.vole.0" is taken`},
		{"slash", console.Options{Ports: named("a/b")}, "a slash"},
		{"parent", console.Options{Ports: named("..")}, "directory"},
		{"space", console.Options{Ports: named("a b")}, "a space"},
		{"zero byte", console.Options{Ports: named("a\x00b")}, "control character"},
		{"not UTF-8", console.Options{Ports: named("a\xff")}, "UTF-8"},
		{"UTF-8", console.Options{Ports: named("größe")}, ""},
		{"size", console.Options{Ports: many(1), Columns: 65535, Rows: 1}, ""},
		{"too wide", console.Options{Ports: many(1), Columns: 65536, Rows: 1}, "65536 columns"},
		{"negative", console.Options{Ports: many(1), Rows: -1}, "-1 rows"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			closed := newGate()
			for i := range tc.o.Ports {
				tc.o.Ports[i].Closer = closed
			}
			dev, err := console.New(tc.o)
			if tc.want == "" {
				require.NoError(t, err)
				require.NoError(t, dev.Close())
			} else {
				require.ErrorIs(t, err, console.ErrOptions)
				require.ErrorContains(t, err, tc.want)
			}
			if len(tc.o.Ports) > 0 {
				<-closed.open // by New or Close
			}
		})
	}
}

// TestShape: features, queues (5.3.2) and the configuration space (5.3.4) follow
// the ports.
func TestShape(t *testing.T) {
	const all = console.FeatureSize | console.FeatureMultiport | console.FeatureEmergWrite
	for _, tc := range []struct {
		name     string
		o        console.Options
		features uint64
		queues   int
		config   string
	}{
		{"one console", console.Options{Ports: []console.Port{{Console: true}}, Columns: 80, Rows: 25},
			console.FeatureSize | console.FeatureEmergWrite, 2, "\x50\x00\x19\x00\x01\x00\x00\x00\x00\x00\x00\x00"},
		{"one console with messages", console.Options{Ports: []console.Port{{Console: true}}, Multiport: true},
			all, 4, "\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"},
		{"one console with a name", console.Options{Ports: []console.Port{{Console: true, Name: "tty"}}},
			all, 4, "\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"},
		{"a port", console.Options{Ports: []console.Port{{Name: "a"}}, Columns: 80, Rows: 25},
			console.FeatureMultiport, 6, "\x50\x00\x19\x00\x02\x00\x00\x00\x00\x00\x00\x00"},
		{"console and two ports", console.Options{Ports: []console.Port{{Name: "a"}, {Console: true}, {Name: "b"}}, Columns: 0x1234, Rows: 0x5678},
			all, 8, "\x34\x12\x78\x56\x03\x00\x00\x00\x00\x00\x00\x00"},
		{"the most", console.Options{Ports: append(make([]console.Port, 30), console.Port{Console: true})},
			all, 64, "\x00\x00\x00\x00\x1f\x00\x00\x00\x00\x00\x00\x00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				g, _ := newGuest(t, open, tc.o)
				assert.Equal(t, virtio.TypeConsole, g.Regs.Type())
				assert.Equal(t, tc.features, g.Regs.DeviceFeatures()&0xff_ffff)
				assert.NotZero(t, g.Regs.QueueMax(tc.queues-1))
				assert.Zero(t, g.Regs.QueueMax(tc.queues))
				b := make([]byte, 20)
				g.Regs.ReadConfig(0, b)
				assert.Equal(t, tc.config+strings.Repeat("\x00", 8), string(b))
				g.Regs.WriteConfig(0, []byte{1, 2, 3, 4, 5, 6, 7, 8})
				g.Regs.ReadConfig(0, b)
				assert.Equal(t, tc.config, string(b[:12]), "read-only")
			})
		})
	}
}

// TestBeforeDriverOK: nothing is consumed (rule 2).
func TestBeforeDriverOK(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		out := newSink()
		g, _ := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true, In: strings.NewReader("in"), Out: out}}})
		g.Negotiate(0)
		g.posted = map[int]map[uint32]virtiotest.Buffer{}
		g.SetUp(0, 8)
		g.SetUp(1, 8)
		g.post(0, g.In(16))
		g.Queues[1].Add(g.Out([]byte("out")))
		g.Queues[1].Kick()
		assert.Zero(t, g.Queues[0].UsedIndex())
		assert.Zero(t, g.Queues[1].UsedIndex())
		g.DriverOK()
		g.Queues[1].Kick()
		g.Regs.Notify(1)
		assert.Equal(t, "in", string(g.take(0)))
		g.Queues[1].Next()
		out.wait(t, "out")
	})
}

// TestOneConsole: without MULTIPORT, on offer or not, port 0's queues are a console
// that is open from DRIVER_OK to the reset, and no other queue is looked at.
func TestOneConsole(t *testing.T) {
	for _, tc := range []struct {
		name string
		more []console.Port
	}{
		{"not offered", nil},
		{"not taken", []console.Port{{Name: "a", In: strings.NewReader("for nobody")}, {Console: true}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				out, opened := newSink(), new(calls)
				in, typed := io.Pipe()
				first := console.Port{Console: true, In: in, Out: out, Closer: in, Open: opened.add}
				g, dev := newGuest(t, open, console.Options{Ports: append([]console.Port{first}, tc.more...)})
				for range 2 {
					g.start(console.FeatureSize, 0)
					for q := range g.Queues {
						if q != 1 && q != 3 && q%2 == 0 {
							g.post(q, g.In(64))
						}
					}
					g.write(0, []byte("login: "))
					_, err := typed.Write([]byte("root\n"))
					require.NoError(t, err)
					assert.Equal(t, "root\n", string(g.take(0)))
					if len(g.Queues) > controlOut {
						g.Queues[controlOut].Add(g.Out(message(noID, console.EventDeviceReady, 1)))
						g.Regs.Notify(controlOut)
					}
					g.write(0, []byte("# "))
					for q := 2; q < len(g.Queues); q++ {
						assert.Zero(t, g.Queues[q].UsedIndex(), "queue %d", q)
					}
				}
				g.Reset()
				require.NoError(t, dev.Drain(patient(t)))
				assert.Equal(t, "login: # login: # ", out.String())
				assert.Equal(t, []bool{true, false, true, false}, opened.list())
			})
		})
	}
}

// TestNoPort0: a guest that does not take MULTIPORT, or is not told of port 0, may
// use its queues all the same: what it sends goes nowhere, and it does not wait.
func TestNoPort0(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Name: "a", In: strings.NewReader("x"), Out: newSink()}}})
		dev.Watch(func([]byte) { t.Error("that is no console") })
		for _, features := range []uint64{console.FeatureMultiport, virtio.FeatureVersion1} {
			g.start(features, 64)
			g.post(0, g.In(64))
			g.write(0, []byte("anybody?"))
			assert.Zero(t, g.Queues[0].UsedIndex())
		}
		dev.Resize(80, 25)
		g.Regs.WriteConfig(8, []byte{'!', 0, 0, 0})
		assert.Equal(t, []console.PortStats{{}}, dev.Stats())
	})
}

// TestChains: no framing is assumed (rule 13), and what does not belong into a queue
// (5.3.6.1) does no harm.
func TestChains(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		out := newSink()
		in, typed := io.Pipe()
		g, _ := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true, In: in, Out: out, Closer: in}}})
		g.start(0, 0)
		tx, rx := g.Queues[1], g.Queues[0]
		send := func(bufs ...virtiotest.Buffer) {
			tx.Add(bufs...)
			tx.Kick()
			require.Zero(t, tx.Next().Len)
		}
		send(g.Out([]byte("a")), g.Out(nil), g.Out([]byte("bcd")), g.Out([]byte("ef")))
		send(g.Out(nil))
		in1 := g.In(16)
		send(g.Out([]byte("gh")), in1)
		send(in1)
		assert.Equal(t, bytes.Repeat([]byte{0xaa}, 16), g.Bytes(in1), "a transmit queue's buffers are not written")
		tx.AddIndirect(g.Out([]byte("ij")), g.Out([]byte("kl")))
		tx.Kick()
		tx.Next()
		out.wait(t, "abcdefghijkl")

		// A buffer without room is given back; a split one is filled in order.
		readable := g.Out([]byte("the device must not write this"))
		rx.Add(readable)
		a, b := g.In(3), g.In(4)
		rx.Add(a, b)
		rx.Add(g.In(64))
		rx.Kick()
		_, err := typed.Write([]byte("0123456789"))
		require.NoError(t, err)
		assert.Zero(t, rx.Next().Len)
		assert.EqualValues(t, 7, rx.Next().Len)
		assert.EqualValues(t, 3, rx.Next().Len)
		assert.Equal(t, "0123456", string(g.Bytes(a))+string(g.Bytes(b)))
		assert.Equal(t, "the device must not write this", string(g.Bytes(readable)))
	})
}

// TestBrokenQueue: the device says that it needs a reset (rules 6 and 10), and the
// reset cures it.
func TestBrokenQueue(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for q := range 6 {
			out := newSink()
			g, _ := newGuest(t, open, console.Options{Ports: []console.Port{
				{Console: true, In: strings.NewReader(strings.Repeat("x", 100)), Out: out},
				{Name: "a", In: strings.NewReader(strings.Repeat("x", 100))},
			}})
			g.start(0, 0)
			if q != controlOut {
				g.say(noID, console.EventDeviceReady, 1)
				g.say(0, console.EventPortOpen, 1)
				g.say(1, console.EventPortOpen, 1)
			}
			before := g.ConfigIRQ.Count()
			g.Queues[q].SetAvailable(g.Queues[q].Available() + 1000)
			g.Regs.Notify(q)
			g.NeedsReset()
			g.ConfigIRQ.Wait(t, before)
			g.start(0, 64)
			g.write(0, []byte("again"))
			out.wait(t, "again")
		}
	})
}

// TestStreamsThatFail: a stream's first error is its last, is told, and harms nothing
// else.
func TestStreamsThatFail(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		broken := errors.New("no more")
		other := newSink()
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{
			{Console: true, In: io.MultiReader(strings.NewReader("ab"), iotest.ErrReader(broken)), Out: writer(func(p []byte) (int, error) { return 1, broken })},
			{Name: "a", In: strings.NewReader("fine"), Out: other},
			{Name: "liar", In: reader(func(p []byte) (int, error) { return len(p) + 1, nil }), Out: writer(func(p []byte) (int, error) { return len(p) + 1, nil })},
			{Name: "short", In: reader(func(p []byte) (int, error) { return 0, nil }), Out: writer(func(p []byte) (int, error) { return 0, nil })},
		}})
		g.start(0, 300)
		g.begin(4)
		for id := range uint32(4) {
			g.say(id, console.EventPortOpen, 1)
			q, _ := queues(int(id))
			g.post(q, g.In(64))
		}
		assert.Equal(t, "ab", string(g.read(0, 2)))
		g.Until("the console's In has failed", func() bool { return errors.Is(dev.InErr(0), broken) })
		g.Until("the liar's In has failed", func() bool { return errors.Is(dev.InErr(2), io.ErrNoProgress) })
		g.Until("the silent In has failed", func() bool { return errors.Is(dev.InErr(3), io.ErrNoProgress) })
		for id := range 4 {
			g.write(id, []byte("0123456789"))
		}
		require.ErrorIs(t, dev.Drain(patient(t)), broken)
		require.ErrorIs(t, dev.OutErr(0), broken)
		g.Until("the short Out has failed", func() bool { return errors.Is(dev.OutErr(3), io.ErrShortWrite) })
		for range 20 { // more than the ring has room for
			g.write(0, make([]byte, 10000))
		}
		other.wait(t, "0123456789")
		assert.Equal(t, "fine", string(g.read(1, 4)))
		require.NoError(t, dev.InErr(1))
		require.NoError(t, dev.OutErr(1))
		s := dev.Stats()
		assert.Equal(t, console.PortStats{Sent: 200010, Written: 1, Dropped: 200009, Received: 2}, s[0])
		assert.Equal(t, console.PortStats{Sent: 10, Written: 10, Received: 4}, s[1])
	})
}

type writer func([]byte) (int, error)

func (f writer) Write(p []byte) (int, error) { return f(p) }

type reader func([]byte) (int, error)

func (f reader) Read(p []byte) (int, error) { return f(p) }

// TestEmergencyWrite: section 5.3.5.1. In any state, of any width, in order with the
// rest, and never waiting.
func TestEmergencyWrite(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		out := newGate()
		var seen bytes.Buffer
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true, Out: out, Closer: out}}})
		dev.Watch(func(p []byte) { seen.Write(p) })
		g.Regs.WriteConfig(8, []byte{'a', 0xff, 0xff, 0xff})
		g.Regs.WriteConfig(9, []byte{'x'})
		g.Regs.WriteConfig(12, []byte{'x'})
		g.Function.WriteConfig(8, []byte{'b'})
		g.Function.WriteConfig(4, []byte{'x', 'x', 'x', 'x', 'c', 0})
		g.Function.WriteConfig(0xffff_ffff, []byte{'x'})
		g.Function.WriteConfig(7, []byte{'x'})
		g.Function.WriteConfig(8, nil)
		<-out.entered
		g.start(0, 0)
		g.write(0, []byte("d"))
		for range console.OutBuffer + 2*console.EmergencyBuffer {
			g.Function.WriteConfig(8, []byte{'e'})
		}
		stats := dev.Stats()[0]
		assert.EqualValues(t, console.EmergencyBuffer+4, stats.Dropped)
		require.NoError(t, out.Close())
		require.NoError(t, dev.Drain(patient(t)))
		want := "abcd" + strings.Repeat("e", console.OutBuffer+console.EmergencyBuffer-4)
		assert.True(t, want == out.String())
		assert.True(t, want == seen.String())
		var b [4]byte
		g.Regs.ReadConfig(8, b[:])
		assert.Zero(t, b)
	})
}

// TestWatch: it sees the bytes whatever becomes of them, and before Out.
func TestWatch(t *testing.T) {
	for name, out := range map[string]io.Writer{
		"blocked": newGate(), "none": nil, "failed": writer(func(p []byte) (int, error) { return 0, io.ErrClosedPipe }),
	} {
		t.Run(name, func(t *testing.T) {
			port := console.Port{Console: true, Out: out}
			if c, ok := out.(io.Closer); ok {
				port.Closer = c
			}
			g, dev := newGuest(t, virtiotest.OpenMMIO, console.Options{Ports: []console.Port{port}})
			var seen bytes.Buffer
			dev.Watch(func(p []byte) { seen.Write(p) })
			g.start(0, 0)
			var want []byte
			for i := range 20 {
				line := []byte(fmt.Sprintf("[    0.%06d] a line of the kernel\n", i))
				want = append(want, line...)
				g.write(0, line)
			}
			g.Reset()
			assert.Equal(t, string(want), seen.String())
		})
	}
}

// TestState: the registers, for a machine that stands still.
func TestState(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		out, in := newGate(), newSilence()
		g, dev := newGuest(t, open, console.Options{
			Ports: []console.Port{{Console: true, Out: out, Closer: out}, {Name: "a", In: in, Closer: in}}, Columns: 80, Rows: 25,
		})
		assert.Equal(t, console.State{Columns: 80, Rows: 25, Ports: make([]console.PortState, 2)}, dev.State())
		g.start(0, 64)
		g.begin(2)
		g.hearUntil(message(1, console.EventPortName, 1, 'a'))
		g.hearUntil(message(1, console.EventPortOpen, 1))
		require.NoError(t, in.Close())
		g.hearUntil(message(1, console.EventPortOpen, 0))
		g.say(0, console.EventPortOpen, 1)
		g.Queues[1].Add(g.Out(make([]byte, console.OutBuffer+100)))
		g.Queues[1].Kick()
		g.Until("the ring is full", func() bool { return dev.Stats()[0].Sent == console.OutBuffer })
		require.NoError(t, g.Function.Pause(patient(t)))
		want := console.State{Columns: 80, Rows: 25, Ready: true, Ports: []console.PortState{
			{Added: true, Ready: true, GuestOpen: true, HostOpen: true, Consumed: console.OutBuffer},
			{Added: true, Ready: true},
		}}
		assert.Equal(t, want, g.Function.State().Device)
		g.Function.Resume()
		require.NoError(t, out.Close())
		g.Queues[1].Next()
		assert.Zero(t, dev.State().(console.State).Ports[0].Consumed)
		g.Reset()
		assert.Equal(t, console.State{Columns: 80, Rows: 25, Ports: make([]console.PortState, 2)}, dev.State())
	})
}
