package net_test

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// guestMAC is the address of the devices here.
var guestMAC = virtionet.HardwareAddr{0x52, 0, 0, 0, 0, 1}

// nic is a guest with a network device.
type nic struct {
	*virtiotest.Driver
	t   testing.TB
	dev *virtionet.Device
}

// attach makes a device on backend that the driver has started with the features
// want, as in Driver.Start.
func attach(t testing.TB, open virtiotest.Opener, backend virtionet.Backend, o virtionet.Options, want uint64) nic {
	t.Helper()
	if o.MAC == nil {
		o.MAC = guestMAC
	}
	dev, err := virtionet.New(backend, o)
	require.NoError(t, err)
	return started(t, open, dev, want)
}

func started(t testing.TB, open virtiotest.Opener, dev *virtionet.Device, want uint64) nic {
	t.Helper()
	t.Cleanup(func() { assert.NoError(t, dev.Close()) })
	n := nic{Driver: open(t, dev), t: t, dev: dev}
	n.Start(want)
	return n
}

func (n nic) rx(pair int) *virtiotest.Queue { return n.Queues[2*pair] }
func (n nic) tx(pair int) *virtiotest.Queue { return n.Queues[2*pair+1] }

// control is the control queue.
func (n nic) control() *virtiotest.Queue {
	if n.Features&virtionet.FeatureMQ == 0 {
		return n.Queues[2]
	}
	return n.Queues[len(n.Queues)-1]
}

// post gives the device buffers to receive into, each of the given size.
func (n nic) post(pair int, sizes ...int) []virtiotest.Buffer {
	n.t.Helper()
	var bufs []virtiotest.Buffer
	for _, s := range sizes {
		b := n.In(s)
		n.rx(pair).Add(b)
		bufs = append(bufs, b)
	}
	n.rx(pair).Kick()
	return bufs
}

// got waits for a received frame: its header and what follows, from buffers that
// are used in their order.
func (n nic) got(pair int, bufs *[]virtiotest.Buffer) (header, frame []byte) {
	n.t.Helper()
	var all []byte
	for i, count := 0, 1<<16; i < count; i++ {
		u := n.rx(pair).Next()
		require.NotEmpty(n.t, *bufs)
		all = append(all, n.Bytes((*bufs)[0])[:u.Len]...)
		*bufs = (*bufs)[1:]
		if len(all) >= virtionet.HeaderSize {
			count = int(binary.LittleEndian.Uint16(all[10:]))
		}
	}
	require.GreaterOrEqual(n.t, len(all), virtionet.HeaderSize)
	return all[:virtionet.HeaderSize], all[virtionet.HeaderSize:]
}

// send sends pieces as one chain and waits until it is used.
func (n nic) send(pair int, pieces ...[]byte) {
	n.t.Helper()
	var bufs []virtiotest.Buffer
	for _, p := range pieces {
		bufs = append(bufs, n.Out(p))
	}
	head := n.tx(pair).AddIndirect(bufs...)
	n.tx(pair).Kick()
	u := n.tx(pair).Next()
	require.EqualValues(n.t, head, u.Head)
	require.Zero(n.t, u.Len)
}

// command sends a command and returns its end.
func (n nic) command(class, command byte, data ...byte) byte {
	n.t.Helper()
	ack := n.In(1)
	n.control().AddIndirect(n.Out([]byte{class, command}), n.Out(data), ack)
	n.control().Kick()
	require.EqualValues(n.t, 1, n.control().Next().Len)
	return n.Bytes(ack)[0]
}

// config is the configuration space, as the driver reads it.
func (n nic) config() (c virtionet.Config) {
	n.t.Helper()
	b := make([]byte, binary.Size(c))
	for i := range b {
		n.Regs.ReadConfig(i, b[i:i+1])
	}
	_, err := binary.Decode(b, binary.LittleEndian, &c)
	require.NoError(n.t, err)
	return c
}

// hdr is a virtio_net_hdr_v1.
type hdr struct {
	Flags, GSO                        uint8
	Len, Size, Start, Offset, Buffers uint16
}

func (h hdr) bytes() []byte {
	b, err := binary.Append(nil, binary.LittleEndian, h)
	if err != nil {
		panic(err)
	}
	return b
}

func header(b []byte) (h hdr) {
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		panic(err)
	}
	return h
}

// frame is n bytes to an address, whose rest tells frames apart.
func frame(to virtionet.HardwareAddr, n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8)*31 ^ seed
	}
	copy(b, to)
	return b
}

// incoming is a frame with a header of zeroes before it, as a backend gives it.
func incoming(f []byte) []byte { return append(make([]byte, virtionet.HeaderSize), f...) }

// patient is a context that a working device never outlasts.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Patience)
	t.Cleanup(cancel)
	return ctx
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

// receive waits for what is sent, with a bound.
func receive[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(virtiotest.Patience):
		require.Fail(t, "nothing has come")
	}
	return v
}

// quiet makes sure that nothing is used for a moment in which much could be.
func quiet(t testing.TB, q *virtiotest.Queue) {
	t.Helper()
	before := q.UsedIndex()
	assert.Never(t, func() bool { return q.UsedIndex() != before }, 30*time.Millisecond, time.Millisecond)
}

// counts waits until a number, or several, of the device's are as wanted: it
// publishes them after the batch, a moment after the driver has its frame.
func counts[T comparable](n nic, want T, of func(virtionet.Stats) T) {
	n.t.Helper()
	assert.Eventually(n.t, func() bool { return of(n.dev.Stats()) == want }, virtiotest.Patience, time.Millisecond, "%+v, and not %+v", of(n.dev.Stats()), want)
}

func received(s virtionet.Stats) uint64      { return s.Received }
func receivedBytes(s virtionet.Stats) uint64 { return s.ReceivedBytes }
func sent(s virtionet.Stats) uint64          { return s.Sent }
func sentBytes(s virtionet.Stats) uint64     { return s.SentBytes }

func notReceived(s virtionet.Stats) virtionet.ReceiveDropped { return s.ReceiveDropped }
func notSent(s virtionet.Stats) virtionet.SendDropped        { return s.SendDropped }
