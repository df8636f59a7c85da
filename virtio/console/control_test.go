package console_test

import (
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestHandshake: the messages of sections 5.3.5 and 5.3.6.2, byte by byte, and again
// after a reset.
func TestHandshake(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, _ := newGuest(t, open, console.Options{Columns: 132, Rows: 50, Ports: []console.Port{
			{Name: "org.vole.agent"}, {Console: true}, {Name: "tty2", Console: true},
		}})
		for range 2 {
			g.start(0, 300)
			g.silent(controlIn)
			g.say(noID, console.EventDeviceReady, 1)
			g.hear(
				[]byte("\x00\x00\x00\x00\x01\x00\x01\x00"),
				[]byte("\x01\x00\x00\x00\x01\x00\x01\x00"),
				[]byte("\x02\x00\x00\x00\x01\x00\x01\x00"),
			)
			g.silent(controlIn)
			g.say(0, console.EventPortReady, 1)
			g.hear(
				[]byte("\x00\x00\x00\x00\x04\x00\x01\x00"),
				[]byte("\x00\x00\x00\x00\x05\x00\x00\x00\x84\x00\x32\x00"), // columns, rows
				[]byte("\x00\x00\x00\x00\x06\x00\x01\x00"),
			)
			g.say(1, console.EventPortReady, 1)
			g.hear(
				[]byte("\x01\x00\x00\x00\x07\x00\x01\x00org.vole.agent"),
				[]byte("\x01\x00\x00\x00\x06\x00\x01\x00"),
			)
			g.say(2, console.EventPortReady, 1)
			g.hear(
				[]byte("\x02\x00\x00\x00\x04\x00\x01\x00"),
				[]byte("\x02\x00\x00\x00\x07\x00\x01\x00tty2"),
				[]byte("\x02\x00\x00\x00\x06\x00\x01\x00"),
			)
			g.say(2, console.EventPortReady, 1) // not a second time
			g.say(noID, console.EventDeviceReady, 1)
			require.NoError(t, g.Function.Pause(patient(t)))
			g.silent(controlIn)
			g.Function.Resume()
		}
	})
}

// TestReadyOrNot: a driver that is not ready, or could not make a port, is told
// nothing more, until it says otherwise.
func TestReadyOrNot(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true}, {Name: "a"}}})
		g.start(0, 64)
		g.say(noID, console.EventDeviceReady, 0)
		g.say(noID, console.EventDeviceReady, 1)
		g.hear(message(0, console.EventPortAdd, 1), message(1, console.EventPortAdd, 1))
		g.say(0, console.EventPortReady, 0)
		dev.Resize(80, 25)
		g.say(1, console.EventPortReady, 1)
		g.hear(message(1, console.EventPortName, 1, 'a'), message(1, console.EventPortOpen, 1))
		g.say(noID, console.EventDeviceReady, 0)
		g.say(0, console.EventPortReady, 1)
		require.NoError(t, g.Function.Pause(patient(t)))
		g.silent(controlIn)
		g.Function.Resume()
		g.say(noID, console.EventDeviceReady, 1)
		g.hear(message(0, console.EventConsolePort, 1), message(0, console.EventResize, 0, 80, 0, 25, 0), message(0, console.EventPortOpen, 1))
	})
}

// TestHostileControl: messages that make no sense are given back and counted, and
// what makes sense after them works.
func TestHostileControl(t *testing.T) {
	long := append(message(1, console.EventPortOpen, 1), make([]byte, 100_000)...)
	for _, tc := range []struct {
		name    string
		msg     []byte
		opened  []bool
		ignored uint64
	}{
		{"nothing", nil, nil, 1},
		{"too short", message(1, console.EventPortOpen, 1)[:7], nil, 1},
		{"unknown port", message(3, console.EventPortOpen, 1), nil, 1},
		{"huge port", message(1<<31, console.EventPortReady, 1), nil, 1},
		{"no port", message(noID, console.EventPortOpen, 1), nil, 1},
		{"add", message(1, console.EventPortAdd, 1), nil, 1},
		{"remove", message(1, console.EventPortRemove, 1), nil, 1},
		{"console", message(1, console.EventConsolePort, 1), nil, 1},
		{"resize", message(0, console.EventResize, 0, 1, 0, 1, 0), nil, 1},
		{"name", message(1, console.EventPortName, 1, []byte("../../etc/passwd")...), nil, 1},
		{"unknown event", message(1, 8, 1), nil, 1},
		{"last event", message(1, 0xffff, 0xffff), nil, 1},
		{"closed already", message(1, console.EventPortOpen, 0), nil, 0},
		{"any value is open", message(1, console.EventPortOpen, 0x8000), []bool{true}, 0},
		{"longer than a message", long, []bool{true}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				opened := new(calls)
				g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true}, {Name: "a", Open: opened.add}, {Name: "b"}}})
				g.start(0, 64)
				g.sayRaw(tc.msg)
				g.begin(3)
				require.NoError(t, g.Function.Pause(patient(t)))
				assert.Equal(t, tc.opened, opened.list())
				for _, c := range dev.Counters() {
					if c.Name == "control messages ignored" {
						assert.Equal(t, tc.ignored, c.Value)
					}
				}
				g.Function.Resume()
				g.say(1, console.EventPortOpen, 1)
				g.say(1, console.EventPortOpen, 1)
				g.say(1, console.EventPortOpen, 0)
				require.NoError(t, g.Function.Pause(patient(t)))
				assert.Equal(t, []bool{true, false}, opened.list())
			})
		})
	}
}

// TestControlFraming: a message split over buffers, and buffers that the device
// writes in the wrong queue (rule 13).
func TestControlFraming(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		opened := new(calls)
		g, _ := newGuest(t, open, console.Options{Ports: []console.Port{{Name: "a", Open: opened.add}}})
		g.start(0, 0)
		b := message(1, console.EventPortOpen, 1)
		spare := g.In(8)
		g.Queues[controlOut].Add(g.Out(b[:1]), g.Out(nil), g.Out(b[1:5]), g.Out(b[5:]), spare)
		g.Queues[controlOut].Kick()
		assert.Zero(t, g.Queues[controlOut].Next().Len)
		g.Queues[controlOut].Add(spare)
		g.Queues[controlOut].Kick()
		assert.Zero(t, g.Queues[controlOut].Next().Len)
		require.NoError(t, g.Function.Pause(patient(t)))
		assert.Equal(t, []bool{true}, opened.list())
		assert.Equal(t, strings.Repeat("\xaa", 8), string(g.Bytes(spare)))
		g.Function.Resume()

		// The other way: split, and a readable part that stays as it is.
		readable, first, rest := g.Out([]byte("mine")), g.In(3), g.In(100)
		g.say(noID, console.EventDeviceReady, 1)
		g.Queues[controlIn].Add(readable, first, rest)
		g.Queues[controlIn].Kick()
		assert.EqualValues(t, 8, g.Queues[controlIn].Next().Len)
		assert.Equal(t, message(1, console.EventPortAdd, 1), append(g.Bytes(first), g.Bytes(rest)[:5]...))
		assert.Equal(t, "mine", string(g.Bytes(readable)))
	})
}

// TestSmallControlBuffers: what has no room for any message comes back empty; a name
// that does not fit is left out, whole, and the next message uses the buffer.
func TestSmallControlBuffers(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Name: "abcdef"}}})
		g.start(0, 8)
		g.say(noID, console.EventDeviceReady, 1)
		g.hear(message(1, console.EventPortAdd, 1))
		g.say(1, console.EventPortReady, 1)
		g.hear(message(1, console.EventPortOpen, 1))
		c := dev.Counters()
		assert.EqualValues(t, 1, c[len(c)-1].Value)

		g.start(0, 0)
		tooSmall := g.In(7)
		g.post(controlIn, tooSmall)
		g.post(controlIn, g.Out(nil))
		g.say(noID, console.EventDeviceReady, 1)
		assert.Zero(t, g.Queues[controlIn].Next().Len)
		assert.Zero(t, g.Queues[controlIn].Next().Len)
		assert.Equal(t, strings.Repeat("\xaa", 7), string(g.Bytes(tooSmall)))
		g.post(controlIn, g.In(8))
		g.hear(message(1, console.EventPortAdd, 1))
	})
}

// TestEachPort: all ports that there can be, each with its own bytes.
func TestEachPort(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		var ports []console.Port
		var outs []*sink
		for id := range console.MaxPorts {
			outs = append(outs, newSink())
			ports = append(ports, console.Port{Console: id == 0, In: strings.NewReader(string(rune('A' + id))), Out: outs[id]})
		}
		g, _ := newGuest(t, open, console.Options{Ports: ports})
		g.start(0, 64)
		g.begin(console.MaxPorts)
		for id := range console.MaxPorts {
			in, _ := queues(id)
			g.post(in, g.In(8))
			g.say(uint32(id), console.EventPortOpen, 1)
			assert.Equal(t, string(rune('A'+id)), string(g.take(in)))
			g.write(id, []byte{byte('a' + id)})
		}
		for id, out := range outs {
			out.wait(t, string(rune('a'+id)))
		}
	})
}

// TestResize: by the configuration space with its interrupt for port 0 (rule 5),
// by messages for every console that the driver has; the driver that comes later
// finds the last size.
func TestResize(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{{Console: true}, {Console: true}, {Name: "a"}}})
		size := func() (b [4]byte) {
			g.Regs.ReadConfig(0, b[:])
			return b
		}
		dev.Resize(80, 25)
		assert.Equal(t, [4]byte{80, 0, 25, 0}, size())
		before := g.ConfigIRQ.Count()
		g.start(0, 64)
		g.ConfigIRQ.Wait(t, before) // Linux looks only then
		g.say(noID, console.EventDeviceReady, 1)
		g.hear(message(0, console.EventPortAdd, 1), message(1, console.EventPortAdd, 1), message(2, console.EventPortAdd, 1))
		g.say(1, console.EventPortReady, 1)
		g.hear(message(1, console.EventConsolePort, 1), message(1, console.EventPortOpen, 1))
		g.say(0, console.EventPortReady, 1)
		g.hear(message(0, console.EventConsolePort, 1), message(0, console.EventResize, 0, 80, 0, 25, 0), message(0, console.EventPortOpen, 1))

		generation := g.Regs.ConfigGeneration()
		before = g.ConfigIRQ.Count()
		dev.Resize(300, -1)
		g.ConfigIRQ.Wait(t, before)
		assert.NotEqual(t, generation, g.Regs.ConfigGeneration())
		assert.Equal(t, [4]byte{44, 1, 0, 0}, size())
		g.hear(message(0, console.EventResize, 0, 44, 1, 0, 0))
		dev.Resize(300, 0)
		dev.ResizePort(1, 1<<20, 3)
		g.hear(message(1, console.EventResize, 0, 0xff, 0xff, 3, 0))
		dev.ResizePort(2, 10, 10)
		dev.ResizePort(0, 9, 8)
		g.hear(message(0, console.EventResize, 0, 9, 0, 8, 0))

		// A paused guest learns the last of them when it goes on.
		require.NoError(t, g.Function.Pause(patient(t)))
		before = g.ConfigIRQ.Count()
		for n := range 100 {
			dev.Resize(n, n)
		}
		assert.Equal(t, before, g.ConfigIRQ.Count())
		g.silent(controlIn)
		g.Function.Resume()
		g.ConfigIRQ.Wait(t, before)
		g.hear(message(0, console.EventResize, 0, 99, 0, 99, 0))

		// What was not negotiated is not used (rule 3).
		g.Start(console.FeatureEmergWrite)
		before = g.ConfigIRQ.Count()
		dev.Resize(1, 1)
		require.NoError(t, g.Function.Pause(patient(t)))
		assert.Equal(t, before, g.ConfigIRQ.Count())
	})
}

// TestHostCloses: the end of a port that only gives is told, after its last byte.
func TestHostCloses(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		in, feed := io.Pipe()
		g, dev := newGuest(t, open, console.Options{Ports: []console.Port{
			{Name: "a", In: in, Closer: in},
			{Console: true, In: strings.NewReader("")},
			{Name: "b", In: strings.NewReader(""), Out: io.Discard},
		}})
		g.start(0, 64)
		g.begin(3)
		g.hearUntil(message(2, console.EventPortOpen, 1))
		_, err := feed.Write([]byte("the end"))
		require.NoError(t, err)
		require.NoError(t, feed.Close())
		g.say(1, console.EventPortOpen, 1)
		require.NoError(t, g.Function.Pause(patient(t)))
		g.silent(controlIn)
		g.Function.Resume()
		q, _ := queues(1)
		g.post(q, g.In(3))
		assert.Equal(t, "the end", string(g.read(1, 7)))
		g.hear(message(1, console.EventPortOpen, 0))

		g.start(0, 64) // the others are as open as they were
		g.begin(3)
		g.hearUntil(message(0, console.EventPortOpen, 1))
		g.hearUntil(message(1, console.EventPortName, 1, 'a'))
		g.hear(message(2, console.EventPortName, 1, 'b'), message(2, console.EventPortOpen, 1))
		require.NoError(t, dev.InErr(0))
	})
}
