package virtiotest

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vole-vmm/vole/virtio"
)

// TypeEcho is the device type of an Echo, which the specification gives nobody.
const TypeEcho virtio.Type = 0x3e

// EchoConfig is the configuration space of an Echo.
type EchoConfig struct {
	Wide uint64
	Word uint32
	Byte uint8
}

// EchoConfigSize is the size of EchoConfig in the configuration space, in bytes.
const EchoConfigSize = 13

// EchoFeature is the feature bit that an Echo offers of its own.
const EchoFeature uint64 = 1 << 3

// Echo is a device for the tests of queues and transports: it copies what a
// request has for the device to read to what it has for it to write, until
// either ends. The fields are set before the device is used; its methods may be
// called from any goroutine.
type Echo struct {
	*virtio.ConfigSpace
	// Sizes are the largest sizes of the queues; nil is two of 64.
	Sizes []uint16
	// Workers is how many goroutines serve each queue; 0 is one.
	Workers int
	// Manual leaves the queues to the test: no goroutine serves them.
	Manual bool
	// Refuse is what Activate returns.
	Refuse error
	// BeforeSignal, if set, is called between Push and Signal.
	BeforeSignal func()

	work                               sync.WaitGroup
	popped, pushed, activated, resetAt atomic.Int64

	mu         sync.Mutex
	empty      sync.Cond // on mu: nothing is held
	holding    bool
	held       []heldRequest
	activation virtio.Activation
}

type heldRequest struct {
	q *virtio.Queue
	c *virtio.Chain
}

// EchoState is an Echo's State.
type EchoState struct{ Popped, Pushed int64 }

var _ virtio.Device = (*Echo)(nil)

// NewEcho returns an Echo with two queues of 64, each with one goroutine.
func NewEcho(tb testing.TB) *Echo {
	tb.Helper()
	space, err := virtio.NewConfigSpace(EchoConfig{Wide: 0x1122334455667788, Word: 0x99aabbcc, Byte: 0xdd})
	if err != nil {
		tb.Fatal(err)
	}
	e := &Echo{ConfigSpace: space, Sizes: []uint16{64, 64}, Workers: 1}
	e.empty.L = &e.mu
	return e
}

// Type implements virtio.Device.
func (*Echo) Type() virtio.Type { return TypeEcho }

// Features implements virtio.Device.
func (*Echo) Features() uint64 { return EchoFeature }

// QueueSizes implements virtio.Device.
func (e *Echo) QueueSizes() []uint16 { return e.Sizes }

// State implements virtio.Device.
func (e *Echo) State() any { return EchoState{Popped: e.popped.Load(), Pushed: e.pushed.Load()} }

// Popped is how many requests were taken, ever.
func (e *Echo) Popped() int { return int(e.popped.Load()) }

// Pushed is how many requests were given back, ever.
func (e *Echo) Pushed() int { return int(e.pushed.Load()) }

// Activated is how many times the device was started.
func (e *Echo) Activated() int { return int(e.activated.Load()) }

// Resets is how many times a reset of the started device was complete.
func (e *Echo) Resets() int { return int(e.resetAt.Load()) }

// Activation is the last one.
func (e *Echo) Activation() virtio.Activation {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.activation
}

// Activate implements virtio.Device.
func (e *Echo) Activate(a virtio.Activation) error {
	e.activated.Add(1)
	e.mu.Lock()
	e.activation = a
	e.mu.Unlock()
	if e.Refuse != nil {
		return e.Refuse
	}
	for _, q := range a.Queues {
		if q == nil || e.Manual {
			continue
		}
		for range max(e.Workers, 1) {
			e.work.Go(func() { e.serve(q) })
		}
	}
	return nil
}

// Reset implements virtio.Device: it waits until what is held is released.
func (e *Echo) Reset() {
	e.work.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.held) > 0 {
		e.empty.Wait()
	}
	e.resetAt.Add(1)
}

func (e *Echo) serve(q *virtio.Queue) {
	c := virtio.NewChain(q)
	buf := make([]byte, 4096)
	for q.Wait() {
		for q.Pop(c) {
			e.popped.Add(1)
			if q.Pending() && e.Workers > 1 {
				q.Wake()
			}
			if e.keep(q, c) {
				c = virtio.NewChain(q)
				continue
			}
			e.finish(q, c, buf)
		}
	}
}

// keep holds a request back if that is asked for.
func (e *Echo) keep(q *virtio.Queue, c *virtio.Chain) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.holding {
		e.held = append(e.held, heldRequest{q, c})
	}
	return e.holding
}

func (e *Echo) finish(q *virtio.Queue, c *virtio.Chain, buf []byte) {
	EchoChain(c, buf)
	e.pushed.Add(1)
	q.Push(c)
	if e.BeforeSignal != nil {
		e.BeforeSignal()
	}
	q.Signal()
}

// EchoChain copies what c has to read to what it has to write, by way of buf.
func EchoChain(c *virtio.Chain, buf []byte) {
	for c.WritableLen() > 0 {
		n := c.Read(buf[:min(uint64(len(buf)), c.WritableLen())])
		if n == 0 {
			return
		}
		c.Write(buf[:n])
	}
}

// Hold keeps the requests that come from now on in flight until Release.
func (e *Echo) Hold() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holding = true
}

// Held is how many requests are held.
func (e *Echo) Held() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.held)
}

// Release ends a Hold: it carries out what was held, the last request first, on
// the goroutine that calls it.
func (e *Echo) Release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holding = false
	buf := make([]byte, 4096)
	for i := len(e.held) - 1; i >= 0; i-- {
		e.finish(e.held[i].q, e.held[i].c, buf)
	}
	e.held = nil
	e.empty.Broadcast()
}
