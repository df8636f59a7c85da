package virtio_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// over is a context that is done.
func over() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// patient is a context that a working device never outlasts.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// hold brings n requests of queue 0 in flight, where the device keeps them.
func hold(t *testing.T, d *virtiotest.Driver, e *virtiotest.Echo, n int) []virtiotest.Buffer {
	t.Helper()
	e.Hold()
	had := e.Held()
	var in []virtiotest.Buffer
	for range n {
		b := d.In(4)
		in = append(in, b)
		d.Queues[0].AddIndirect(d.Out([]byte("held")), b)
	}
	d.Regs.Notify(0)
	d.Until("the requests are in flight", func() bool { return e.Held() == had+n })
	return in
}

// TestResetWaitsForRequests: VIRTIO 1.2, section 2.4.1: the status reads 0 only
// when the device has stopped. After that no ring is accessed and no interrupt
// raised; what interrupts, queues and features were is gone. Elsewhere, a
// completion after the reset wrote to memory that was the driver's again.
func TestResetWaitsForRequests(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Start(0)
		in := hold(t, d, e, 64)
		q := d.Queues[0]

		d.Regs.SetStatus(0) // returns without the reset being complete
		assert.Equal(t, running, d.Regs.Status())
		assert.Zero(t, e.Resets())
		for _, v := range []uint8{virtio.StatusAcknowledge, ackDriver, featuresOK, running, running | virtio.StatusFailed} {
			d.Regs.SetStatus(v)
			assert.Equal(t, running, d.Regs.Status(), "no status is taken during a reset")
		}
		d.Regs.DriverFeatures(0)
		d.Regs.QueueSize(0, 1)
		assert.NotZero(t, d.Function.DriverFeatures())
		c, _ := d.Function.Queue(0)
		assert.EqualValues(t, 64, c.Size)
		assert.Equal(t, running, d.Function.State().Status, "it can be asked")
		n := d.ConfigIRQ.Count()
		e.Activation().Fail(assert.AnError)
		e.Activation().ConfigChanged()
		assert.Equal(t, n, d.ConfigIRQ.Count(), "nor a failure told")

		e.Release()
		d.Until("the device has reset", func() bool { return d.Regs.Status() == 0 })
		assert.EqualValues(t, 64, q.UsedIndex(), "the requests came to their end before")
		for _, b := range in {
			assert.Equal(t, "held", string(d.Bytes(b)))
		}
		assert.Equal(t, 1, e.Resets())

		after, queues, configs := d.Snapshot(), d.QueueIRQ.Count(), d.ConfigIRQ.Count()
		queue, config := d.Regs.Acknowledge()
		assert.False(t, queue, "no interrupt is left over")
		assert.False(t, config)
		for i := range 2 {
			assert.False(t, d.Regs.QueueReady(i))
			c, ready := d.Function.Queue(uint32(i))
			assert.Equal(t, virtio.QueueConfig{Size: 64}, c)
			assert.False(t, ready)
			d.Regs.Notify(i)
		}
		assert.Zero(t, d.Function.DriverFeatures())
		old := e.Activation().Queues[0]
		assert.False(t, old.Wait())
		assert.False(t, old.Pop(virtio.NewChain(old)))
		assert.False(t, old.Pending())
		select {
		case <-old.Stopped():
		default:
			assert.Fail(t, "the queue is not stopped")
		}
		assert.Equal(t, after, d.Snapshot())
		assert.Equal(t, queues, d.QueueIRQ.Count())
		assert.Equal(t, configs, d.ConfigIRQ.Count())

		d.Start(0)
		echo(t, d, 0)
	})
}

// TestResetWithInterruptPending: VIRTIO 1.2, sections 4.2.2.1 and 4.1.4.5.1.
func TestResetWithInterruptPending(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Start(0)
		echo(t, d, 0)
		d.QueueIRQ.Wait(t, 0)
		e.Activation().ConfigChanged()
		d.Reset()
		queue, config := d.Regs.Acknowledge()
		assert.False(t, queue)
		assert.False(t, config)
	})
}

// TestResetAtAnyTime: a reset is no more than the initial state, wherever it
// comes from.
func TestResetAtAnyTime(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		d.Reset()
		d.Regs.SetStatus(virtio.StatusAcknowledge)
		d.Reset()
		d.Negotiate(0)
		d.SetUp(1, 4)
		d.Reset()
		assert.False(t, d.Regs.QueueReady(1))
		d.Start(0)
		d.Function.Reset() // the machine's
		assert.Zero(t, d.Regs.Status())
		d.Start(0)
		echo(t, d, 1)
	})
}

// TestPause: what is in flight ends, nothing new is taken, and the wait is
// bounded. Elsewhere, requests were served while paused.
func TestPause(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Start(0)
		hold(t, d, e, 8)
		err := d.Function.Pause(over())
		require.ErrorIs(t, err, context.Canceled)
		assert.ErrorContains(t, err, "queue 0")

		paused := make(chan error)
		go func() { paused <- d.Function.Pause(patient(t)) }()
		e.Release()
		require.NoError(t, <-paused)
		assert.EqualValues(t, 8, d.Queues[0].UsedIndex())

		before := d.Snapshot()
		queues, at := d.QueueIRQ.Count(), d.Function.State()
		q := e.Activation().Queues[0]
		d.Regs.Notify(0)
		assert.False(t, q.Pending())
		assert.False(t, q.Pop(virtio.NewChain(q)), "while paused")
		assert.Equal(t, before, d.Snapshot())
		in := d.In(3)
		d.Queues[0].Add(d.Out([]byte("now")), in)
		d.Regs.Notify(0)
		d.Regs.Notify(1)
		assert.False(t, q.Pop(virtio.NewChain(q)), "while paused")
		require.NoError(t, d.Function.Pause(over()), "again, with nothing in flight")
		assert.Equal(t, at, d.Function.State())
		assert.Equal(t, queues, d.QueueIRQ.Count())
		assert.Equal(t, 8, e.Popped())

		d.Function.Resume()
		for range 8 {
			d.Queues[0].Next()
		}
		assert.EqualValues(t, 3, d.Queues[0].Next().Len, "without another notification")
		assert.Equal(t, "now", string(d.Bytes(in)))
		echo(t, d, 1)
	})
}

// TestPauseWaitsForTheInterrupt: a request is over when the driver was told, or
// a state that is saved after Pause would lack the interrupt.
func TestPauseWaitsForTheInterrupt(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		between, on := make(chan struct{}), make(chan struct{})
		e := virtiotest.NewEcho(t)
		e.BeforeSignal = func() {
			close(between)
			<-on
		}
		d := open(t, e)
		d.Start(0)
		q := d.Queues[0]
		q.Add(d.Out([]byte("x")), d.In(1))
		q.Kick()
		<-between
		assert.EqualValues(t, 1, q.UsedIndex())
		assert.ErrorIs(t, d.Function.Pause(over()), context.Canceled)
		close(on)
		require.NoError(t, d.Function.Pause(patient(t)))
		assert.Equal(t, 1, d.QueueIRQ.Count())
		queue, _ := d.Regs.Acknowledge()
		assert.True(t, queue)
	})
}

// TestConfigChangeWhilePaused: it is told at Resume, once, unless there was a
// reset.
func TestConfigChangeWhilePaused(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Start(0)
		require.NoError(t, d.Function.Pause(over()))
		n := d.ConfigIRQ.Count()
		for range 3 {
			e.Activation().ConfigChanged()
		}
		assert.Equal(t, n, d.ConfigIRQ.Count())
		_, config := d.Regs.Acknowledge()
		assert.False(t, config, "no register has changed")
		d.Function.Resume()
		assert.Equal(t, n+1, d.ConfigIRQ.Count())
		_, config = d.Regs.Acknowledge()
		assert.True(t, config)
		d.Function.Resume()
		assert.Equal(t, n+1, d.ConfigIRQ.Count(), "once")

		require.NoError(t, d.Function.Pause(over()))
		e.Activation().ConfigChanged()
		d.Start(0)
		d.Function.Resume()
		assert.Equal(t, n+1, d.ConfigIRQ.Count(), "the driver has read it since")
	})
}

// TestActivationWhilePaused: it waits with its requests for Resume.
func TestActivationWhilePaused(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		require.NoError(t, d.Function.Pause(over()))
		d.Start(0)
		q := d.Queues[0]
		q.Add(d.Out([]byte("x")), d.In(1))
		d.Regs.Notify(0)
		aq := e.Activation().Queues[0]
		assert.False(t, aq.Pop(virtio.NewChain(aq)))
		assert.Zero(t, q.UsedIndex())
		d.Function.Resume()
		assert.EqualValues(t, 1, q.Next().Len)
	})
}

// TestResetWhilePaused: it is carried out, and what follows it is paused too.
func TestResetWhilePaused(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Start(0)
		require.NoError(t, d.Function.Pause(over()))
		d.Start(0)
		assert.Equal(t, 1, e.Resets())
		aq := e.Activation().Queues[0]
		d.Queues[0].Add(d.In(1))
		assert.False(t, aq.Pop(virtio.NewChain(aq)))
		d.Function.Resume()
		d.Queues[0].Next()
	})
}

// TestPauseDuringReset: it waits for the reset, at most until its context ends.
func TestPauseDuringReset(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Start(0)
		hold(t, d, e, 1)
		d.Regs.SetStatus(0)
		assert.ErrorIs(t, d.Function.Pause(over()), context.Canceled)
		e.Release()
		require.NoError(t, d.Function.Pause(patient(t)))
		assert.Zero(t, d.Regs.Status())
		d.Function.Resume()
		d.Start(0)
		echo(t, d, 0)
	})
}

// eventfds counts the process's eventfds.
func eventfds(t *testing.T) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	n := 0
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.Contains(to, "eventfd") {
			n++
		}
	}
	return n
}

// TestCloseWithRequestsInFlight: Close is bounded, says that it was, and can be
// called again; once it has returned nil nothing is written.
func TestCloseWithRequestsInFlight(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		fds := eventfds(t)
		d := open(t, e)
		d.Start(0)
		hold(t, d, e, 64)
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		require.ErrorIs(t, d.Function.Close(ctx), context.DeadlineExceeded)
		require.ErrorIs(t, d.Function.Close(over()), context.Canceled, "they are in flight still")
		e.Release()
		require.NoError(t, d.Function.Close(patient(t)))
		assert.Equal(t, 64, e.Pushed())
		assert.Equal(t, 1, e.Resets())

		after, queues := d.Snapshot(), d.QueueIRQ.Count()
		d.Regs.Notify(0)
		d.Regs.SetStatus(ackDriver)
		d.Regs.SetStatus(0)
		d.Function.Reset()
		d.Function.Resume()
		require.NoError(t, d.Function.Pause(over()))
		assert.Zero(t, d.Regs.Status(), "it is closed for good")
		assert.Equal(t, after, d.Snapshot())
		assert.Equal(t, queues, d.QueueIRQ.Count())
		q := e.Activation().Queues[0]
		assert.False(t, q.Wait())
		require.NoError(t, d.Function.Close(over()), "closing again is harmless")
		assert.LessOrEqual(t, eventfds(t), fds, "an eventfd is left")
	})
}

// TestCloseEndsEveryWorker: all goroutines that wait for one queue.
func TestCloseEndsEveryWorker(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Workers = 8
		d := open(t, e)
		d.Start(0)
		for range 20 {
			for range 20 {
				d.Queues[0].Add(d.Out([]byte("x")), d.In(1))
			}
			d.Queues[0].Kick()
			for range 20 {
				d.Queues[0].Next()
			}
		}
		require.NoError(t, d.Function.Pause(patient(t)))
		require.NoError(t, d.Function.Close(patient(t)))
		assert.Equal(t, 400, e.Pushed())
	})
}

// TestCloseBeforeTheDriver: a device that was never used, or only negotiated.
func TestCloseBeforeTheDriver(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Negotiate(0)
		require.NoError(t, d.Function.Close(over()))
		assert.Zero(t, e.Resets())
		assert.Zero(t, d.Regs.Status())
		d.Regs.SetStatus(virtio.StatusAcknowledge)
		assert.Zero(t, d.Regs.Status())
	})
}

// TestState: the registers as a plain value, with each queue's position.
func TestState(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		assert.Equal(t, virtio.State{
			Queues: []virtio.FunctionQueueState{{QueueConfig: virtio.QueueConfig{Size: 64}}, {QueueConfig: virtio.QueueConfig{Size: 64}}},
			Device: virtiotest.EchoState{},
		}, d.Function.State())

		d.Negotiate(0)
		d.SetUp(0, 4)
		d.DriverOK()
		for range 7 {
			echo(t, d, 0)
		}
		require.NoError(t, d.Function.Pause(patient(t)))
		assert.Equal(t, virtio.State{
			Status: running, Features: d.Features,
			Queues: []virtio.FunctionQueueState{
				{QueueConfig: d.Queues[0].Config, Ready: true, QueueState: virtio.QueueState{NextAvail: 7, NextUsed: 7}},
				{QueueConfig: virtio.QueueConfig{Size: 64}},
			},
			Device: virtiotest.EchoState{Popped: 7, Pushed: 7},
		}, d.Function.State())
	})
}
