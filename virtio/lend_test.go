package virtio_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// lender is a device that lends its only queue.
type lender struct {
	*virtio.ConfigSpace
	w worker
	q *virtio.Queue
}

func newLender(t testing.TB) *lender {
	space, err := virtio.NewConfigSpace(struct{}{})
	require.NoError(t, err)
	return &lender{ConfigSpace: space}
}

func (*lender) Type() virtio.Type    { return virtio.TypeEntropy }
func (*lender) Features() uint64     { return 0 }
func (*lender) QueueSizes() []uint16 { return []uint16{16} }
func (*lender) Lends(queue int) bool { return queue == 0 }
func (*lender) State() any           { return nil }
func (l *lender) Reset()             { _ = l.q.TakeBack() }

func (l *lender) Activate(a virtio.Activation) error {
	l.q = a.Queues[0]
	l.w.q = l.q
	return l.q.Lend(&l.w)
}

// worker is one that uses requests, of no bytes, when it is told to.
type worker struct {
	q *virtio.Queue

	mu       sync.Mutex
	next     uint16
	running  bool
	starts   []uint16
	startErr error
	stopErr  error
	atStop   func()
}

func (w *worker) Start(next uint16) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts = append(w.starts, next)
	if w.startErr == nil {
		w.next, w.running = next, true
	}
	return w.startErr
}

func (w *worker) Stop() (uint16, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.atStop != nil {
		w.atStop()
	}
	w.running = false
	return w.next, w.stopErr
}

func (w *worker) runs() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running
}

// use takes n requests and uses all but the last ones.
func (w *worker) use(n, keep int) {
	_, avail, used := w.q.Rings()
	size := uint16(w.q.Size())
	idx := virtio.Load16(used, 2)
	for i := range n {
		head := virtio.Load16(avail, 4+2*int(w.next%size))
		w.next++
		if i >= n-keep {
			continue
		}
		virtio.Store16(used, 4+8*int(idx%size), head)
		virtio.Store16(used, 8+8*int(idx%size), 0)
		idx++
	}
	virtio.Publish(used, 0, idx)
	w.q.Raise()
}

// TestLend: a queue that is lent is served by the worker and by nobody else; a pause
// stops it where it is, the end of it starts it there; a reset stops it for good.
func TestLend(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		l := newLender(t)
		d := open(t, l)
		d.Start(0)
		assert.ErrorContains(t, l.q.Lend(&l.w), "lent already")
		q := d.Queues[0]
		for range 5 {
			q.Add(d.In(8))
		}
		assert.False(t, l.q.Pop(virtio.NewChain(l.q)))
		assert.False(t, l.q.Pending())
		irqs := d.QueueIRQ.Count()
		l.w.use(3, 0)
		d.QueueIRQ.Wait(t, irqs)
		for range 3 {
			q.Next()
		}

		ctx := context.Background()
		raised := d.QueueIRQ.Count()
		l.w.atStop = l.q.Raise // the last word
		require.NoError(t, d.Function.Pause(ctx))
		assert.False(t, l.w.runs())
		assert.Equal(t, raised+1, d.QueueIRQ.Count())
		assert.Equal(t, virtio.QueueState{NextAvail: 3, NextUsed: 3}, d.Function.State().Queues[0].QueueState)
		require.NoError(t, d.Function.Pause(ctx), "again")
		d.Function.Resume()
		assert.True(t, l.w.runs())

		// What the worker took and did not use is taken again.
		l.w.use(2, 1)
		q.Next()
		require.NoError(t, d.Function.Pause(ctx))
		assert.Equal(t, virtio.QueueState{NextAvail: 4, NextUsed: 4}, d.Function.State().Queues[0].QueueState)
		d.Function.Resume()
		l.w.use(1, 0)
		q.Next()
		assert.Equal(t, []uint16{0, 3, 4}, l.w.starts)

		// A driver that writes over the used ring's idx has nobody go astray but itself.
		_, _, used := l.q.Rings()
		virtio.Publish(used, 0, 1000)
		require.NoError(t, d.Function.Pause(ctx))
		assert.Equal(t, virtio.QueueState{NextAvail: 5, NextUsed: 1000}, d.Function.State().Queues[0].QueueState)
		d.Function.Resume()

		d.Reset()
		assert.False(t, l.w.runs())
		assert.NoError(t, l.q.TakeBack(), "again")
		d.Start(0)
		assert.True(t, l.w.runs())
		assert.Equal(t, []uint16{0, 3, 4, 5, 0}, l.w.starts)
	})
}

// TestLendWhilePaused: the worker waits for the end of the pause, or for ever.
func TestLendWhilePaused(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		l := newLender(t)
		d := open(t, l)
		require.NoError(t, d.Function.Pause(context.Background()))
		d.Start(0)
		assert.Empty(t, l.w.starts)
		d.Reset()
		d.Start(0)
		d.Function.Resume()
		assert.True(t, l.w.runs())
		assert.Len(t, l.w.starts, 1)
		require.NoError(t, d.Function.Pause(context.Background()))
		d.Reset()
		d.Function.Resume()
		assert.False(t, l.w.runs())
	})
}

// TestLendFails: a worker that can't start breaks the device, until its reset, and one
// that can't stop fails the pause.
func TestLendFails(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		l := newLender(t)
		l.w.startErr = errors.New("not today")
		d := open(t, l)
		d.Start(0)
		d.NeedsReset()
		l.w.startErr = nil
		d.Start(0)
		require.NoError(t, d.Function.Pause(context.Background()))
		l.w.startErr = errors.New("not today")
		d.Function.Resume()
		d.NeedsReset()
		l.w.startErr = nil
		d.Start(0)
		l.w.stopErr = errors.New("not now")
		err := d.Function.Pause(context.Background())
		assert.ErrorIs(t, err, l.w.stopErr)
		assert.ErrorContains(t, err, "queue 0")
		d.Function.Resume()
	})
}

// TestLentBell: the doorbell of a lent queue is an eventfd that nobody but the worker
// reads, and the end of a pause rings it: something may have been made available.
func TestLentBell(t *testing.T) {
	l := newLender(t)
	d := virtiotest.OpenMMIO(t, l)
	d.Start(0)
	rings := func() uint64 {
		fds := []unix.PollFd{{Fd: int32(l.q.BellFD()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
			return 0
		}
		var b [8]byte
		_, err := unix.Read(l.q.BellFD(), b[:])
		require.NoError(t, err)
		return uint64(b[0])
	}
	assert.EqualValues(t, 1, rings())
	d.Function.Notify(0)
	d.Function.Notify(0)
	assert.EqualValues(t, 2, rings())
	require.NoError(t, d.Function.Pause(context.Background()))
	assert.Zero(t, rings())
	d.Function.Resume()
	assert.NotZero(t, rings())
	flags, err := unix.FcntlInt(uintptr(l.q.BellFD()), unix.F_GETFL, 0)
	require.NoError(t, err)
	assert.Zero(t, flags&unix.O_NONBLOCK, "else it would be in the poller")
}
