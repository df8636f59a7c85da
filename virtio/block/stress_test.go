package block_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/block/blocktest"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// watched is an image that is slow, and knows when nobody may use it any more.
type watched struct {
	*blocktest.Faulty
	memory  *block.Memory // what is under it
	slow    atomic.Int64  // nanoseconds that an operation takes longer
	closed  atomic.Bool
	late    atomic.Int64 // operations that began or ended while closed
	running atomic.Int64
}

func watch(slow time.Duration) *watched {
	m := block.NewMemory(mib)
	w := &watched{Faulty: blocktest.NewFaulty(m), memory: m}
	w.slow.Store(int64(slow))
	return w
}

func (w *watched) use(f func() (int, error)) (int, error) {
	w.running.Add(1)
	defer w.running.Add(-1)
	w.look()
	defer w.look()
	if slow := time.Duration(w.slow.Load()); slow > 0 {
		time.Sleep(slow) // what is being tested is that others wait for it
	}
	return f()
}

func (w *watched) look() {
	if w.closed.Load() {
		w.late.Add(1)
	}
}

func (w *watched) ReadvAt(bufs [][]byte, off int64) (int, error) {
	return w.use(func() (int, error) { return w.Faulty.ReadvAt(bufs, off) })
}

func (w *watched) WritevAt(bufs [][]byte, off int64) (int, error) {
	return w.use(func() (int, error) { return w.Faulty.WritevAt(bufs, off) })
}

func (w *watched) Flush() error {
	_, err := w.use(func() (int, error) { return 0, w.Faulty.Flush() })
	return err
}

// hasty is a watched image that can be asked not to wait.
type hasty struct {
	*watched
	prompt *blocktest.Hasty
}

func (h hasty) TryReadvAt(bufs [][]byte, off int64) (done bool) {
	_, _ = h.use(func() (int, error) {
		done = h.prompt.TryReadvAt(bufs, off)
		return 0, nil
	})
	return done
}

func (h hasty) TryWritevAt(bufs [][]byte, off int64) (done bool) {
	_, _ = h.use(func() (int, error) {
		done = h.prompt.TryWritevAt(bufs, off)
		return 0, nil
	})
	return done
}

// habitual is a watched image whose writes are quick by habit, and never said to be.
type habitual struct{ *watched }

func (habitual) Buffered() bool                     { return true }
func (habitual) TryReadvAt([][]byte, int64) bool    { return false }
func (h habitual) TryWritevAt([][]byte, int64) bool { return false }

// habituate has d's image, which is habitual, written until that is its habit.
func habituate(t testing.TB, d disk) {
	t.Helper()
	for range 64 {
		require.EqualValues(t, ok, d.write(0, make([]byte, 4096)))
	}
}

// eachKind runs f on both transports with a disk whose image is watched: one that may
// always wait, one that is asked not to at first, and one that has not waited of late.
func eachKind(t *testing.T, slow time.Duration, o block.Options, f func(t *testing.T, d disk, img *watched)) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		t.Run("waits", func(t *testing.T) {
			img := watch(slow)
			f(t, attach(t, open, img, o, 0), img)
		})
		t.Run("prompt", func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			img := watch(slow)
			h := blocktest.NewHasty(img.Faulty, seed)
			f(t, attach(t, open, hasty{img, h}, o, 0), img)
			tried, _ := h.Tried()
			assert.NotZero(t, tried)
		})
		t.Run("habit", func(t *testing.T) {
			img := watch(0)
			d := attach(t, open, habitual{img}, o, 0)
			habituate(t, d)
			img.slow.Store(int64(slow))
			f(t, d, img)
		})
	})
}

// inFlight makes n requests available: reads, writes and some flushes.
func inFlight(d disk, n int) []*request {
	var all []*request
	for i := range n {
		switch {
		case i%16 == 15:
			all = append(all, d.begin(0, block.RequestFlush, 0, nil, 0))
		case i%2 == 0:
			all = append(all, d.begin(0, block.RequestOut, uint64(i)*8, pattern(4096, byte(i)), 0))
		default:
			all = append(all, d.begin(0, block.RequestIn, uint64(i)*8, nil, 4096))
		}
	}
	return all
}

// still asserts that nothing changes any more: not the image, not the guest's
// memory, no interrupt. What the guest does to its memory now would also be a
// race with a device that still does.
func still(t *testing.T, d disk, img *watched, then func()) {
	t.Helper()
	img.closed.Store(true)
	assert.Zero(t, img.running.Load(), "no operation of the image is under way")
	ram, data, irqs := d.Snapshot(), content(t, img.Faulty), d.QueueIRQ.Count()+d.ConfigIRQ.Count()
	for i := range d.Queues {
		d.Regs.Notify(i)
	}
	then()
	for range 100 {
		runtime.Gosched()
	}
	assert.True(t, bytes.Equal(ram, d.Snapshot()), "guest memory is as it was")
	assert.True(t, bytes.Equal(data, content(t, img.Faulty)), "the image is as it was")
	assert.Equal(t, irqs, d.QueueIRQ.Count()+d.ConfigIRQ.Count())
	assert.Zero(t, img.late.Load())
	img.closed.Store(false)
}

var crews = map[string]int{"fewer workers than requests": 8, "as many": 64, "one": 1}

// eachCrew runs f as eachKind does, for several numbers of workers.
func eachCrew(t *testing.T, slow time.Duration, f func(t *testing.T, d disk, img *watched)) {
	for name, workers := range crews {
		t.Run(name, func(t *testing.T) { eachKind(t, slow, block.Options{Workers: workers}, f) })
	}
}

// TestResetWithRequestsInFlight: rule 1: once the status reads 0, the device is
// done with the memory and the image.
func TestResetWithRequestsInFlight(t *testing.T) {
	eachCrew(t, time.Millisecond, func(t *testing.T, d disk, img *watched) {
		for range 3 {
			inFlight(d, 64)
			queues := d.Queues
			d.Reset()
			d.Queues = queues
			still(t, d, img, func() {})
			d.Start(0)
			_, status := d.read(0, 512)
			assert.EqualValues(t, ok, status)
		}
	})
}

// TestPauseWithRequestsInFlight: what is in flight ends and is told, what is not
// begun waits for Resume; nothing is lost and nothing done twice.
func TestPauseWithRequestsInFlight(t *testing.T) {
	eachCrew(t, time.Millisecond, func(t *testing.T, d disk, img *watched) {
		for range 3 {
			all := inFlight(d, 64)
			ends := map[uint32]*request{}
			for _, r := range all {
				ends[uint32(r.head)] = r
			}
			require.NoError(t, d.Function.Pause(patient(t)))
			done := d.Queues[0].UsedIndex()
			still(t, d, img, func() {
				s := d.Function.State()
				assert.Equal(t, done, s.Queues[0].NextUsed)
				assert.Equal(t, done, s.Queues[0].NextAvail, "none is in flight")
			})
			d.Function.Resume()
			for range all {
				u := d.Queues[0].Next()
				r := ends[u.Head]
				require.NotNil(t, r, "ended once")
				delete(ends, u.Head)
				assert.EqualValues(t, ok, d.Bytes(r.status)[0])
			}
		}
	})
}

// TestCloseWithRequestsInFlight: nothing is written after Close returns, and no
// goroutine is left.
func TestCloseWithRequestsInFlight(t *testing.T) {
	eachCrew(t, time.Millisecond, func(t *testing.T, d disk, img *watched) {
		before := runtime.NumGoroutine()
		inFlight(d, 64)
		d.Until("some have ended", func() bool { return d.Queues[0].UsedIndex() > 0 })
		require.NoError(t, d.Function.Close(patient(t)))
		still(t, d, img, func() { d.Regs.SetStatus(0); d.Regs.SetStatus(virtio.StatusAcknowledge) })
		// The workers were there before: at least one of them is gone.
		d.Until("the goroutines are gone", func() bool { return runtime.NumGoroutine() < before })
	})
}

// TestNoGoroutineLeft: after any number of activations there are no more
// goroutines than before the first.
func TestNoGoroutineLeft(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		before := runtime.NumGoroutine()
		dev, err := block.New(block.NewMemory(mib), block.Options{Queues: 4})
		require.NoError(t, err)
		d := disk{Driver: open(t, dev), t: t, dev: dev}
		for range 20 {
			d.Start(0)
			inFlight(d, 20)
			d.Reset()
			// What ends is unscheduled a moment after it is joined.
			d.Until("the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
		}
		d.Start(0)
		require.NoError(t, d.Function.Close(patient(t)))
		d.Until("the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
	})
}

// TestResetOfHangingBackend: section 2.1.2: the reset returns, so that the vCPU
// goes on, but the status reads 0 only when the device has stopped.
func TestResetOfHangingBackend(t *testing.T) {
	eachKind(t, 0, block.Options{}, func(t *testing.T, d disk, img *watched) {
		hang := img.Add(blocktest.Fault{Ops: blocktest.All, Block: true})
		t.Cleanup(hang.Release)
		inFlight(d, 64)
		for range block.DefaultWorkers {
			<-hang.Arrived()
		}
		start := time.Now()
		d.Regs.SetStatus(0)
		assert.Less(t, time.Since(start), virtiotest.Patience/2, "it does not wait for ever")
		assert.NotZero(t, d.Regs.Status())
		assert.EqualValues(t, block.DefaultWorkers, img.running.Load())
		d.Regs.SetStatus(virtio.StatusAcknowledge)
		assert.NotEqual(t, virtio.StatusAcknowledge, d.Regs.Status(), "it is still resetting")
		hang.Release()
		d.Until("the device has reset", func() bool { return d.Regs.Status() == 0 })
		assert.Zero(t, img.running.Load())
		assert.Equal(t, block.DefaultWorkers, hang.Hits(), "what was not begun is not begun any more")
		d.Start(0)
		_, status := d.read(0, 512)
		assert.EqualValues(t, ok, status)
	})
}

// TestCloseOfHangingBackend: Close and Pause wait no longer than they are told
// to; a second Close waits for the end.
func TestCloseOfHangingBackend(t *testing.T) {
	eachKind(t, 0, block.Options{}, func(t *testing.T, d disk, img *watched) {
		hang := img.Add(blocktest.Fault{Ops: blocktest.All, Block: true})
		t.Cleanup(hang.Release)
		inFlight(d, 64)
		<-hang.Arrived()
		short := func() context.Context {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			t.Cleanup(cancel)
			return ctx
		}
		assert.ErrorIs(t, d.Function.Pause(short()), context.DeadlineExceeded)
		assert.ErrorIs(t, d.Function.Close(short()), context.DeadlineExceeded)
		hang.Release()
		require.NoError(t, d.Function.Close(patient(t)))
		still(t, d, img, func() {})
	})
}

// TestCloseOfImageWithRequestsHanging: whoever gives up waiting may close the
// disk: calls in flight come to an end by themselves and harm nothing.
func TestCloseOfImageWithRequestsHanging(t *testing.T) {
	eachKind(t, 0, block.Options{}, func(t *testing.T, d disk, img *watched) {
		hang := img.Add(blocktest.Fault{Ops: blocktest.All, Block: true})
		inFlight(d, 8)
		<-hang.Arrived()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		assert.ErrorIs(t, d.Function.Close(ctx), context.Canceled)
		require.NoError(t, d.dev.Close())
		require.NoError(t, d.Function.Close(patient(t)))
	})
}

// TestEverythingAtOnce: pauses, resizes and resets in no order while requests go
// on; what has ended well is what was asked for.
func TestEverythingAtOnce(t *testing.T) {
	eachKind(t, 0, block.Options{Queues: 2, Workers: 4}, func(t *testing.T, d disk, img *watched) {
		stop, stopped := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; stop.Err() == nil; i++ {
				if i%2 == 0 {
					assert.NoError(t, d.Function.Pause(patient(t)))
					d.Function.Resume()
				} else {
					img.memory.Resize(mib + int64(i%7)*4096)
					assert.NoError(t, d.dev.Refresh())
				}
				runtime.Gosched()
			}
		}()
		for round := range 20 {
			for i := range 30 {
				sector, data := uint64(i*8), pattern(4096, byte(round+i))
				require.EqualValues(t, ok, d.write(sector, data))
				r := d.begin(1, block.RequestIn, sector, nil, 4096)
				require.EqualValues(t, ok, r.end())
				require.True(t, bytes.Equal(data, r.data()))
			}
			if round%4 == 3 {
				inFlight(d, 32)
				d.Start(0)
			}
		}
		stopped()
		<-done
	})
}
