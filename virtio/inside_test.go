package virtio

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/memory"
)

// TestNeedEvent: VIRTIO 1.2, section 2.7.7.2, against the meaning spelt out: one
// of the entries from old up to now was put where event says.
func TestNeedEvent(t *testing.T) {
	for _, old := range []uint16{0, 1, 0x7ffe, 0x7fff, 0x8000, 0xfff0, 0xfffe, 0xffff} {
		for n := range uint16(40) {
			for around := -5; around < 50; around++ {
				event := old + uint16(around)
				want := false
				for i := range n {
					want = want || old+i == event
				}
				if got := needEvent(event, old+n, old); got != want {
					t.Fatalf("from %d to %d, event %d: %v", old, old+n, event, got)
				}
			}
		}
		assert.True(t, needEvent(old+MaxQueueSize-1, old+MaxQueueSize, old))
		assert.False(t, needEvent(old+MaxQueueSize, old+MaxQueueSize, old))
	}
}

// TestFieldsInOneWord: the fields of 16 bits that share a word with others.
func TestFieldsInOneWord(t *testing.T) {
	b := make([]byte, 16)
	for off := 0; off < 16; off += 2 {
		for i := range b {
			b[i] = 0xee
		}
		Store16(b, off, 0x1234)
		assert.EqualValues(t, 0x1234, Load16(b, off))
		assert.Equal(t, []byte{0x34, 0x12}, b[off:off+2])
		assert.Equal(t, 14, bytes.Count(b, []byte{0xee}))
	}
	Publish(b, 0x0001, 0xabcd)
	assert.Equal(t, []byte{1, 0, 0xcd, 0xab, 0xee}, b[:5])
}

// TestHostMappingThatIsNotAligned: atomic accesses need what the driver can't
// promise.
func TestHostMappingThatIsNotAligned(t *testing.T) {
	mem, err := memory.FromBytes(memory.Region{GPA: 0x1000, Mem: make([]byte, 0x2001)[1:]})
	require.NoError(t, err)
	_, err = newQueue(3, QueueConfig{Size: 4, Desc: 0x1000, Avail: 0x2000, Used: 0x2100}, 64, 0, mem)
	assert.ErrorContains(t, err, "not aligned")
	assert.NotErrorIs(t, err, ErrBroken, "it is not the driver's fault")
	_, err = newQueue(3, QueueConfig{Size: 5}, 64, 0, mem)
	assert.ErrorIs(t, err, ErrBroken)
	assert.ErrorContains(t, err, "queue 3")
	_, err = newQueue(3, QueueConfig{Size: 4, Desc: 0x9000}, 64, 0, mem)
	assert.ErrorIs(t, err, memory.ErrRange)
}

// TestDoorbell: an eventfd, which KVM rings as well as Ring, and which counts
// several rings as one.
func TestDoorbell(t *testing.T) {
	d, err := NewDoorbell()
	require.NoError(t, err)
	for range 3 {
		d.Ring()
		_, err := unix.Write(d.FD(), []byte{1, 0, 0, 0, 0, 0, 0, 0})
		require.NoError(t, err)
		assert.True(t, d.wait())
	}
	ended := make(chan bool)
	for range 3 {
		go func() { ended <- d.wait() }()
	}
	require.NoError(t, d.Close())
	for range 3 {
		assert.False(t, <-ended)
	}
	d.Ring()
	assert.False(t, d.wait())
}

// idle is a device without queues to serve.
type idle struct {
	ConfigSpace
	a Activation
}

func (*idle) Type() Type           { return TypeBalloon }
func (*idle) Features() uint64     { return 0 }
func (*idle) QueueSizes() []uint16 { return []uint16{4} }
func (*idle) Reset()               {}
func (*idle) State() any           { return nil }
func (d *idle) Activate(a Activation) error {
	d.a = a
	return nil
}

type counts struct{ queues, configs int }

func (c *counts) Queue(int) { c.queues++ }
func (c *counts) Config()   { c.configs++ }

// TestFailureIsLoggedOnce: one line for each time the device fails.
func TestFailureIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	dev, irq, resets := &idle{}, &counts{}, 0
	f, err := NewFunction(FunctionConfig{
		Device: dev, Interrupts: irq, OnReset: func() { resets++ },
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.NoError(t, err)
	lines := []int{1: 1, 2: 1, 3: 2} // no two within a second
	for n := 1; n <= 3; n++ {
		if n == 3 {
			f.logged = f.logged.Add(-logInterval)
		}
		f.SetStatus(0)
		f.SetStatus(StatusAcknowledge | StatusDriver)
		f.SetDriverFeatures(1, 1)
		f.SetStatus(StatusAcknowledge | StatusDriver | StatusFeaturesOK)
		f.SetStatus(StatusAcknowledge | StatusDriver | StatusFeaturesOK | StatusDriverOK)
		for range 3 {
			dev.a.Fail(errors.New("the balloon has burst"))
		}
		assert.Equal(t, lines[n], strings.Count(log.String(), "\n"))
		assert.Equal(t, n, irq.configs)
		assert.Equal(t, n, resets)
	}
	assert.Contains(t, log.String(), "type=balloon")
	assert.Contains(t, log.String(), "the balloon has burst")
	require.NoError(t, f.Close(context.Background()))
	assert.Equal(t, 4, resets)
}

// hanging is a device whose reset lasts until it is released.
type hanging struct {
	idle
	released chan struct{}
}

func (h *hanging) Reset() { <-h.released }

// TestSlowResetIsLoggedOnce: however many vCPUs wait for one, and however often
// they ask.
func TestSlowResetIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	dev := &hanging{released: make(chan struct{})}
	f, err := NewFunction(FunctionConfig{Device: dev, Interrupts: &counts{}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	f.SetStatus(StatusAcknowledge | StatusDriver)
	f.SetDriverFeatures(1, 1)
	f.SetStatus(StatusAcknowledge | StatusDriver | StatusFeaturesOK)
	f.SetStatus(StatusAcknowledge | StatusDriver | StatusFeaturesOK | StatusDriverOK)
	var vCPUs sync.WaitGroup
	for range 8 {
		vCPUs.Go(func() { f.SetStatus(0) })
	}
	vCPUs.Wait()
	assert.Equal(t, 1, strings.Count(log.String(), "slow to reset"))
	close(dev.released)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, f.Close(ctx))
}

// TestPauseWaitsForTheFailure: a queue that breaks while it is being held is not
// idle before everything that this changes has been.
func TestPauseWaitsForTheFailure(t *testing.T) {
	mem, err := memory.FromBytes(memory.Region{GPA: 0x1000, Mem: make([]byte, 0x1000)})
	require.NoError(t, err)
	q, err := newQueue(0, QueueConfig{Size: 4, Desc: 0x1000, Avail: 0x1100, Used: 0x1200}, 64, 0, mem)
	require.NoError(t, err)
	failing, on := make(chan struct{}), make(chan struct{})
	q.fail = func(error) {
		close(failing)
		<-on
	}
	Store16(q.avail, ringIdx, 5)
	popped := make(chan bool)
	go func() { popped <- q.Pop(NewChain(q)) }()
	<-failing
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, q.hold(ctx), context.Canceled)
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	held := make(chan error)
	go func() { held <- q.hold(ctx) }()
	close(on)
	assert.NoError(t, <-held, "whoever waits is told")
	assert.False(t, <-popped)
}

// TestDiscard: a Function whose transport could not be made leaves nothing.
func TestDiscard(t *testing.T) {
	f, err := NewFunction(FunctionConfig{Device: &idle{}})
	require.NoError(t, err)
	bell := f.Bell(0)
	require.NoError(t, f.Discard())
	assert.False(t, bell.wait())
	f.SetStatus(StatusAcknowledge)
	assert.Zero(t, f.Status())
	require.NoError(t, f.Close(context.Background()))
	require.NoError(t, f.Discard())
}
