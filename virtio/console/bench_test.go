package console_test

import (
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// BenchmarkDevice is the device alone: the driver is the benchmark's goroutine on a
// thread of its own, which looks at the used ring without a pause. At depth 1 an
// operation is the time from the kick to the used buffer, what Linux waits for with
// each 16 bytes of its console.
func BenchmarkDevice(b *testing.B) {
	for _, bc := range []struct {
		name  string
		out   bool
		size  int
		depth int
	}{
		{"console line", true, 16, 1},
		{"output", true, 4096, 1}, {"output", true, 4096, 16}, {"output", true, 32 << 10, 16},
		{"input", false, 4096, 1}, {"input", false, 4096, 16},
	} {
		b.Run(fmt.Sprintf("%s/%d bytes/depth %d", bc.name, bc.size, bc.depth), func(b *testing.B) {
			port := console.Port{Console: true}
			if bc.out {
				port.Out = io.Discard
			} else {
				in := &endless{stopped: make(chan struct{})}
				port = console.Port{Name: "a", In: in, Closer: in}
			}
			g, _ := newGuest(b, virtiotest.OpenMMIO, console.Options{Ports: []console.Port{port}, Multiport: true})
			g.start(0, 0)
			id := uint32(0)
			if port.Name != "" {
				id = 1
			}
			g.say(id, console.EventPortOpen, 1)
			queue, tx := queues(int(id))
			buf := g.In(bc.size)
			if bc.out {
				queue, buf = tx, g.Out(make([]byte, bc.size))
			}
			q, bell := g.Queues[queue], g.Function.Bell(queue)
			for i := range bc.depth {
				q.SetDesc(i, virtiotest.Chain(0, buf)[0])
			}
			kicks := 0
			submit := func(head int) {
				old := q.Available()
				q.Publish(uint16(head))
				if q.AvailEvent() == old {
					kicks++
					bell.Ring()
				}
			}
			for i := range bc.depth - 1 {
				submit(i)
			}
			next := bc.depth - 1
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			b.SetBytes(int64(bc.size))
			b.ReportAllocs()
			cpu := cpuTime(b)
			for b.Loop() {
				submit(next)
				u, ok := q.Poll()
				for !ok {
					u, ok = q.Poll()
				}
				next = int(u.Head)
			}
			b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(kicks)/float64(b.N), "kicks/op")
		})
	}
}

// cpuTime is what the process has used of all processors.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
