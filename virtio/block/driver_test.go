package block_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

const (
	ok          = block.StatusOK
	ioError     = block.StatusIOError
	unsupported = block.StatusUnsupported
)

// disk is a guest with a disk.
type disk struct {
	*virtiotest.Driver
	t   testing.TB
	dev *block.Device
}

// attach makes a disk of img that the driver has started with the features want,
// as in Driver.Start. It is closed when the test ends, by then it must be idle.
func attach(t testing.TB, open virtiotest.Opener, img block.Image, o block.Options, want uint64) disk {
	t.Helper()
	dev, err := block.New(img, o)
	require.NoError(t, err)
	return started(t, open, dev, want)
}

func started(t testing.TB, open virtiotest.Opener, dev *block.Device, want uint64) disk {
	t.Helper()
	t.Cleanup(func() { assert.NoError(t, dev.Close()) })
	d := disk{Driver: open(t, dev), t: t, dev: dev}
	d.Start(want)
	return d
}

// request is one in flight, with what comes back.
type request struct {
	d      disk
	queue  *virtiotest.Queue
	head   uint16
	in     virtiotest.Buffer
	status virtiotest.Buffer
	len    uint32 // of the used element
}

// begin submits a request with a header, data to read and n bytes to write,
// each in a descriptor of its own, behind an indirect one.
func (d disk) begin(queue int, kind uint32, sector uint64, out []byte, n int) *request {
	d.t.Helper()
	r := d.prepare(queue, kind, sector, out, n)
	r.queue.Kick()
	return r
}

// prepare is begin without the notification.
func (d disk) prepare(queue int, kind uint32, sector uint64, out []byte, n int) *request {
	d.t.Helper()
	r := &request{d: d, queue: d.Queues[queue], in: d.In(n), status: d.In(1)}
	bufs := []virtiotest.Buffer{d.Out(header(kind, sector))}
	if len(out) > 0 {
		bufs = append(bufs, d.Out(out))
	}
	if n > 0 {
		bufs = append(bufs, r.in)
	}
	r.head = r.queue.AddIndirect(append(bufs, r.status)...)
	return r
}

// end waits for the request, the only one of its queue in flight, and returns
// its status.
func (r *request) end() byte {
	r.d.t.Helper()
	u := r.queue.Next()
	require.EqualValues(r.d.t, r.head, u.Head)
	r.len = u.Len
	return r.d.Bytes(r.status)[0]
}

// data is what the device wrote to the request's buffer.
func (r *request) data() []byte { return r.d.Bytes(r.in) }

// do is begin and end.
func (d disk) do(kind uint32, sector uint64, out []byte, n int) (byte, *request) {
	d.t.Helper()
	r := d.begin(0, kind, sector, out, n)
	return r.end(), r
}

func (d disk) write(sector uint64, data []byte) byte {
	d.t.Helper()
	status, _ := d.do(block.RequestOut, sector, data, 0)
	return status
}

func (d disk) read(sector uint64, n int) ([]byte, byte) {
	d.t.Helper()
	status, r := d.do(block.RequestIn, sector, nil, n)
	return r.data(), status
}

// ranges is the data of DISCARD and WRITE_ZEROES: sector, sectors and flags of
// each.
func ranges(list ...[3]uint64) []byte {
	var b []byte
	for _, r := range list {
		b = binary.LittleEndian.AppendUint64(b, r[0])
		b = binary.LittleEndian.AppendUint32(b, uint32(r[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(r[2]))
	}
	return b
}

// config is the device's configuration space, as the driver reads it.
func (d disk) config() (c block.Config) {
	d.t.Helper()
	b := make([]byte, binary.Size(c))
	for i := range b {
		d.Regs.ReadConfig(i, b[i:i+1])
	}
	_, err := binary.Decode(b, binary.LittleEndian, &c)
	require.NoError(d.t, err)
	return c
}

// pattern is n bytes that tell where in the disk they belong.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8)*31 ^ seed
	}
	return b
}

// content is all of an image.
func content(t testing.TB, img block.Image) []byte {
	t.Helper()
	b := make([]byte, img.Size())
	n, err := img.ReadAt(b, 0)
	if err != io.EOF {
		require.NoError(t, err)
	}
	require.Len(t, b, n)
	return b
}

// patient is a context that a working device never outlasts.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// receive waits for what is sent or closed, with a bound.
func receive[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(virtiotest.Patience):
		require.Fail(t, "nothing has come")
	}
	return v
}

// clock is a time that moves when it is told to.
type clock struct {
	mu     sync.Mutex
	now    time.Duration
	timers map[chan time.Time]time.Duration
	asked  chan time.Duration
}

func newClock() *clock {
	return &clock{timers: map[chan time.Time]time.Duration{}, asked: make(chan time.Duration, 1000)}
}

func (c *clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) After(d time.Duration) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.timers[ch] = c.now + d
	c.asked <- d
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, ch)
	}
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	for ch, at := range c.timers {
		if at <= c.now {
			ch <- time.Time{}
			delete(c.timers, ch)
		}
	}
}

// lines keeps what was logged.
type lines struct {
	mu  sync.Mutex
	all []map[string]string
}

func (l *lines) logger() *slog.Logger { return slog.New(l) }

func (*lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler     { return l }
func (l *lines) WithGroup(string) slog.Handler          { return l }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	line := map[string]string{}
	r.Attrs(func(a slog.Attr) bool {
		line[a.Key] = a.Value.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, line)
	return nil
}

func (l *lines) get() []map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all
}
