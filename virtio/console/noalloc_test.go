package console_test

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// endless is an In that has bytes whenever it is asked.
type endless struct{ stopped chan struct{} }

func (e *endless) Read(p []byte) (int, error) {
	select {
	case <-e.stopped:
		return 0, io.EOF
	default:
		return len(p), nil
	}
}

func (e *endless) Close() error {
	close(e.stopped)
	return nil
}

// TestNoAllocations: buffers and control messages go all the way, published, taken
// from the ring, carried out and found in the used ring, and nothing is allocated in
// the whole process meanwhile.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const unit, batch = 4096, 16
	in := &endless{stopped: make(chan struct{})}
	g, dev := newGuest(t, virtiotest.OpenMMIO, console.Options{Ports: []console.Port{
		{Console: true, Out: io.Discard}, {Name: "a", In: in, Out: io.Discard, Closer: in},
	}})
	dev.Watch(func([]byte) {})
	g.QueueIRQ.C = make(chan struct{}, 1)
	g.start(0, 0)
	end := time.NewTimer(virtiotest.Patience)
	defer end.Stop()
	_, out0 := queues(0)
	in1, out1 := queues(1)
	for _, tc := range []struct {
		name  string
		queue int
		buf   virtiotest.Buffer
	}{
		{"console output", out0, g.Out(make([]byte, 16))},
		{"output", out1, g.Out(make([]byte, unit))},
		{"control from the driver", controlOut, g.Out(message(1, console.EventPortOpen, 1))},
		{"input", in1, g.In(unit)},
	} {
		q, bell := g.Queues[tc.queue], g.Function.Bell(tc.queue)
		q.SetDesc(0, virtiotest.Chain(0, tc.buf)[0])
		once := func() {
			for range batch {
				q.Publish(0)
				bell.Ring()
				for _, ok := q.Poll(); !ok; _, ok = q.Poll() {
					select {
					case <-g.QueueIRQ.C:
					case <-end.C:
						t.Fatal("the requests do not end")
					}
				}
			}
		}
		assert.Zero(t, testing.AllocsPerRun(20, once), tc.name)
	}

	// Control messages to the driver: sizes, as a terminal is dragged.
	g.say(noID, console.EventDeviceReady, 1)
	for range 2 {
		g.post(controlIn, g.In(8))
		g.Queues[controlIn].Next()
	}
	g.say(0, console.EventPortReady, 1)
	for range 2 {
		g.post(controlIn, g.In(8))
		g.Queues[controlIn].Next()
	}
	q, bell := g.Queues[controlIn], g.Function.Bell(controlIn)
	q.SetDesc(0, virtiotest.Chain(0, g.In(64))[0])
	n := 0
	assert.Zero(t, testing.AllocsPerRun(20, func() {
		q.Publish(0)
		bell.Ring()
		n++
		dev.Resize(n, n)
		for _, ok := q.Poll(); !ok; _, ok = q.Poll() {
			select {
			case <-g.QueueIRQ.C:
			case <-end.C:
				t.Fatal("the messages do not come")
			}
		}
	}), "control to the driver")
}
