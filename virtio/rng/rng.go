// Package rng is the virtio entropy device (VIRTIO 1.2, section 5.4): one queue
// of buffers, which the host fills with random bytes.
package rng

import (
	"crypto/rand"
	"fmt"
	"io"
	"sync"

	"github.com/vole-vmm/vole/virtio"
)

// MaxRequest is the most that one request gets, in bytes. The driver asks again
// for more; so no request holds the device, or the host's generator, for long.
const MaxRequest = 4096

const queueSize = 64

// Device is an entropy device.
type Device struct {
	*virtio.ConfigSpace
	source io.Reader
	buf    [MaxRequest]byte // of the goroutine
	work   sync.WaitGroup
}

var _ virtio.Device = (*Device)(nil)

// State is the device's registers: there are none.
type State struct{}

// New returns a device that gives out what source reads; nil is the host's
// kernel. A source is read by one goroutine at a time.
func New(source io.Reader) *Device {
	if source == nil {
		source = rand.Reader
	}
	return &Device{ConfigSpace: new(virtio.ConfigSpace), source: source}
}

// Type implements virtio.Device.
func (*Device) Type() virtio.Type { return virtio.TypeEntropy }

// Features implements virtio.Device: there are none.
func (*Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device.
func (*Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// State implements virtio.Device.
func (*Device) State() any { return State{} }

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	if q := a.Queues[0]; q != nil {
		d.work.Go(func() { d.serve(q, a.Fail) })
	}
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() { d.work.Wait() }

func (d *Device) serve(q *virtio.Queue, fail func(error)) {
	c := virtio.NewChain(q)
	for q.Wait() {
		for q.Pop(c) {
			// A source that fails gives what it has: a request of 0 bytes would
			// make the driver ask again at once, for ever.
			n, err := io.ReadFull(d.source, d.buf[:min(c.WritableLen(), MaxRequest)])
			c.Write(d.buf[:n])
			if err != nil { // said before the request ends: a pause waits for both
				fail(fmt.Errorf("rng: read the source of entropy: %w", err))
			}
			q.Push(c)
			q.Signal()
			if err != nil {
				return
			}
		}
	}
}
