package console_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// Queues of a device with control messages.
const (
	controlIn  = 2
	controlOut = 3
)

// queues are the receive and transmit queue of a port.
func queues(id int) (in, out int) {
	if id == 0 {
		return 0, 1
	}
	return 2*id + 2, 2*id + 3
}

// guest is a driver for a console device.
type guest struct {
	*virtiotest.Driver
	t      testing.TB
	posted map[int]map[uint32]virtiotest.Buffer // by queue and head
}

// newGuest puts a device on a transport.
func newGuest(t testing.TB, open virtiotest.Opener, o console.Options) (*guest, *console.Device) {
	t.Helper()
	dev, err := console.New(o)
	require.NoError(t, err)
	closeWith(t, dev)
	return &guest{Driver: open(t, dev), t: t}, dev
}

// closeWith closes dev after the driver that is opened for it next.
func closeWith(t testing.TB, dev *console.Device) {
	t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			assert.ErrorIs(t, err, console.ErrUnflushed)
		}
	})
}

// start starts the device and gives it buffers for control messages, of size each;
// 0 is none.
func (g *guest) start(features uint64, size int) {
	g.t.Helper()
	g.Start(features)
	g.posted = map[int]map[uint32]virtiotest.Buffer{}
	if len(g.Queues) > controlIn && size > 0 {
		for range 8 {
			g.post(controlIn, g.In(size))
		}
	}
}

// post makes a buffer available.
func (g *guest) post(q int, bufs ...virtiotest.Buffer) {
	g.t.Helper()
	if g.posted[q] == nil {
		g.posted[q] = map[uint32]virtiotest.Buffer{}
	}
	g.posted[q][uint32(g.Queues[q].Add(bufs...))] = bufs[0]
	g.Queues[q].Kick()
}

// take waits for the next buffer that the device has filled, and makes it
// available again.
func (g *guest) take(q int) []byte {
	g.t.Helper()
	return g.taken(q, g.Queues[q].Next())
}

func (g *guest) taken(q int, u virtiotest.Used) []byte {
	g.t.Helper()
	b, ok := g.posted[q][u.Head]
	require.True(g.t, ok, "queue %d: %d was not made available", q, u.Head)
	delete(g.posted[q], u.Head)
	require.LessOrEqual(g.t, u.Len, b.Len)
	data := bytes.Clone(g.Bytes(b)[:u.Len])
	g.post(q, b)
	return data
}

// read takes what port id receives until it has n bytes.
func (g *guest) read(id, n int) []byte {
	g.t.Helper()
	in, _ := queues(id)
	var all []byte
	for len(all) < n {
		all = append(all, g.take(in)...)
	}
	return all
}

// write sends data to port id in buffers of at most size bytes and waits until the
// device has taken them.
func (g *guest) write(id int, data []byte) {
	g.t.Helper()
	_, out := queues(id)
	g.Queues[out].Add(g.Out(data))
	g.Queues[out].Kick()
	require.Zero(g.t, g.Queues[out].Next().Len, "the device writes nothing there")
}

// say sends a control message.
func (g *guest) say(id uint32, event, value uint16) {
	g.t.Helper()
	g.sayRaw(message(id, event, value))
}

func (g *guest) sayRaw(b []byte) {
	g.t.Helper()
	g.Queues[controlOut].Add(g.Out(b))
	g.Queues[controlOut].Kick()
	require.Zero(g.t, g.Queues[controlOut].Next().Len)
}

// hear waits for the next control messages and compares them.
func (g *guest) hear(want ...[]byte) {
	g.t.Helper()
	for _, w := range want {
		require.Equal(g.t, w, g.take(controlIn))
	}
}

// silent asserts that the device has no more to say: it has settled all that came
// before a pause.
func (g *guest) silent(q int) {
	g.t.Helper()
	u, ok := g.Queues[q].Poll()
	require.False(g.t, ok, "queue %d: %+v", q, u)
}

// message is a control message.
func message(id uint32, event, value uint16, rest ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, id)
	b = binary.LittleEndian.AppendUint16(b, event)
	b = binary.LittleEndian.AppendUint16(b, value)
	return append(b, rest...)
}

// noID is what Linux sends where the number is unused.
const noID = ^uint32(0)

// begin does what a driver does first, up to that the port is ready and its own
// messages have come.
func (g *guest) begin(ports int) {
	g.t.Helper()
	g.say(noID, console.EventDeviceReady, 1)
	var ids []uint32
	for range ports {
		added := g.take(controlIn)
		require.EqualValues(g.t, console.EventPortAdd, added[4])
		ids = append(ids, binary.LittleEndian.Uint32(added))
	}
	for _, id := range ids {
		g.say(id, console.EventPortReady, 1)
	}
}

// hearUntil takes control messages until want comes.
func (g *guest) hearUntil(want []byte) {
	g.t.Helper()
	for !bytes.Equal(want, g.take(controlIn)) {
	}
}

// sink is an Out that keeps what it gets.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
	n   chan struct{}
}

func newSink() *sink { return &sink{n: make(chan struct{}, 1)} }

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.n <- struct{}{}:
	default:
	}
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// wait waits until the sink has want, and nothing else.
func (s *sink) wait(t testing.TB, want string) {
	t.Helper()
	end := time.NewTimer(virtiotest.Patience)
	defer end.Stop()
	for len(s.String()) < len(want) {
		select {
		case <-s.n:
		case <-end.C:
			require.Equal(t, want, s.String())
		}
	}
	require.Equal(t, want, s.String())
}

// gate is an Out that blocks until it is opened, and says when somebody is inside.
type gate struct {
	*sink
	entered, open chan struct{}
	once          sync.Once
}

func newGate() *gate {
	return &gate{sink: newSink(), entered: make(chan struct{}, 1<<16), open: make(chan struct{})}
}

func (g *gate) Write(p []byte) (int, error) {
	g.entered <- struct{}{}
	<-g.open
	return g.sink.Write(p)
}

func (g *gate) Close() error {
	g.once.Do(func() { close(g.open) })
	return nil
}

// counted is an In that counts what is read of it.
type counted struct {
	io.Reader
	mu sync.Mutex
	n  int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
	return n, err
}

func (c *counted) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// silence is an In that gives nothing until it is closed.
type silence struct {
	ended chan struct{}
	once  sync.Once
}

func newSilence() *silence { return &silence{ended: make(chan struct{})} }

func (s *silence) Read([]byte) (int, error) {
	<-s.ended
	return 0, io.EOF
}

func (s *silence) Close() error {
	s.once.Do(func() { close(s.ended) })
	return nil
}

func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// calls records calls of Port.Open.
type calls struct {
	mu  sync.Mutex
	all []bool
}

func (c *calls) add(open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, open)
}

func (c *calls) list() []bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]bool(nil), c.all...)
}

// nothingLeft asserts, when the test ends, that no goroutine is left that was not
// there before.
func nothingLeft(t testing.TB) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		end := time.Now().Add(virtiotest.Patience)
		for runtime.NumGoroutine() > before {
			if time.Now().After(end) {
				buf := make([]byte, 1<<16)
				t.Errorf("%d goroutines, and there were %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// pattern is n bytes that do not repeat soon.
func pattern(n int, seed uint32) []byte {
	b := make([]byte, n)
	x := seed*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

var _ virtio.Device = (*console.Device)(nil)
