package devices

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// in and out are port accesses of one byte.
func in(h Handler, off uint64) uint8 {
	p := []byte{0x5a}
	h.Read(off, p)
	return p[0]
}

func out(h Handler, off uint64, v uint8) { h.Write(off, []byte{v}) }

// edges counts pulses, and holds one for a driver to wait for, as an interrupt controller does.
type edges struct {
	n     atomic.Int64
	latch chan struct{}
}

func newEdges() *edges { return &edges{latch: make(chan struct{}, 1)} }

func (e *edges) Pulse() {
	e.n.Add(1)
	select {
	case e.latch <- struct{}{}:
	default:
	}
}

// take returns the pulses since the last call.
func (e *edges) take() int {
	select {
	case <-e.latch:
	default:
	}
	return int(e.n.Swap(0))
}

// log is a Sink that remembers.
type log struct {
	mu     sync.Mutex
	events []Event
}

func (l *log) sink(e Event) {
	l.mu.Lock()
	l.events = append(l.events, e)
	l.mu.Unlock()
}

func (l *log) take() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.events
	l.events = nil
	return e
}

// checkGoroutines fails the test if goroutines of this package outlive it.
func checkGoroutines(t testing.TB) {
	t.Cleanup(func() {
		var left string
		require.Eventually(t, func() bool {
			buf := make([]byte, 1<<20)
			left = ""
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "devices.(*serial") {
					left += g + "\n\n"
				}
			}
			return left == ""
		}, 5*time.Second, time.Millisecond, "goroutines left behind")
		if left != "" {
			t.Log(left)
		}
	})
}
