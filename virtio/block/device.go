package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/vole-vmm/vole/virtio"
)

const (
	// MaxSerial is the longest serial number, in bytes (VIRTIO 1.2, 5.2.6).
	MaxSerial = 20
	// DefaultQueueSize is the number of descriptors of each queue: a request of 1 MiB
	// in single pages needs 258, and would be two requests of a queue of 256.
	DefaultQueueSize = 512
	// DefaultWorkers is how many requests of a queue are worked on at a time.
	DefaultWorkers = 8
	// MaxQueues is the most queues that a disk has.
	MaxQueues = 64
	// MaxWorkers is the most workers that a disk has, over all queues. Each may be
	// a thread in a system call, and a Go program that needs more than 10000
	// threads is ended.
	MaxWorkers = 64
)

// Options are what a disk has besides its image. The zero value is a good one.
type Options struct {
	// Serial is what the guest finds in /sys/block/*/serial.
	Serial string
	// Queues is the number of queues, at best one for each vCPU; 0 is 1.
	Queues int
	// QueueSize is a power of two; 0 is DefaultQueueSize.
	QueueSize uint16
	// Workers is how many requests of a queue are worked on at a time; 0 is
	// DefaultWorkers. Each queue has at least one worker, and all of them together
	// not more than MaxWorkers: 16 queues have 4 each at most.
	Workers int
	// Limits bound the disk's rate; the zero value is no bound. Whatever reaches
	// the image is an operation, a FLUSH too and each range of a DISCARD; what is
	// read, written, and zeroed without UNMAP is bytes. A request that is answered
	// without the image, such as GET_ID or one that makes no sense, costs nothing.
	// A worker carries a request out and then waits for its tokens, so that what
	// waits is not in flight: a burst may exceed the limit by one request for each
	// worker, the rate over time does not.
	Limits virtio.Limits
	// Name stands in log lines and errors, "" is the serial. Logger receives the errors of
	// the image, at most one line a second; nil is silent.
	Name   string
	Logger *slog.Logger
}

// Device is a disk: a virtio device on an [Image]. Besides what virtio.Device
// says, Refresh may be called at any time.
type Device struct {
	*virtio.ConfigSpace
	img      Image
	opts     Options
	features uint64
	longest  uint64 // bytes of a transfer
	limiter  *virtio.Limiter
	clock    virtio.Clock
	log      *slog.Logger
	muffled  virtio.Muffle
	writes   habit

	refresh sync.Mutex // held by Refresh
	work    sync.WaitGroup

	mu      sync.Mutex
	changed func() // of the Activation, nil before
	untold  bool   // the size has changed while there was no Activation
}

var _ virtio.Device = (*Device)(nil)

// State is the device's registers: the size that the guest was told.
type State struct {
	Capacity uint64 // in sectors
}

// New makes a disk of img, which then belongs to it: Close closes an image that
// is an io.Closer, and so does New when it fails. Errors wrap ErrImage.
func New(img Image, o Options) (*Device, error) {
	d, err := newDevice(img, o, virtio.NewClock())
	if err != nil {
		return nil, errors.Join(err, closeImage(img))
	}
	return d, nil
}

func newDevice(img Image, o Options, clock virtio.Clock) (*Device, error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.QueueSize == 0 {
		o.QueueSize = DefaultQueueSize
	}
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if o.Name == "" {
		o.Name = o.Serial
	}
	if o.Name == "" {
		o.Name = "disk"
	}
	name := o.Name
	switch {
	case len(o.Serial) > MaxSerial:
		return nil, refuse(name, nil, "the serial %q has %d bytes: at most %d have room", o.Serial, len(o.Serial), MaxSerial)
	case o.Queues < 1 || o.Queues > MaxQueues:
		return nil, refuse(name, nil, "%d queues: 1 to %d are possible", o.Queues, MaxQueues)
	case o.QueueSize < 4 || o.QueueSize&(o.QueueSize-1) != 0 || o.QueueSize > virtio.MaxQueueSize:
		return nil, refuse(name, nil, "a queue size of %d: a power of two from 4 to %d is wanted", o.QueueSize, virtio.MaxQueueSize)
	case o.Workers < 1 || o.Workers > MaxWorkers:
		return nil, refuse(name, nil, "%d workers: 1 to %d are possible", o.Workers, MaxWorkers)
	case img.Size() <= 0 || img.Size()%SectorSize != 0:
		return nil, refuse(name, nil, "a size of %d bytes is no multiple of %d", img.Size(), SectorSize)
	}
	limiter, err := virtio.NewLimiter(o.Limits, clock)
	if err != nil {
		return nil, refuse(name, err, "%v", err)
	}
	if g, ok := img.(Geometry); ok {
		logical, physical := g.BlockSize()
		if !goodBlock(logical) || !goodBlock(physical) {
			return nil, refuse(name, nil, "blocks of %d and %d bytes: powers of two from %d on are possible", logical, physical, SectorSize)
		}
	}
	config, features := describe(img, o.Queues, o.QueueSize)
	space, err := virtio.NewConfigSpace(config)
	if err != nil {
		return nil, fmt.Errorf("block: %w", err)
	}
	d := &Device{ConfigSpace: space, img: img, opts: o, features: features, longest: uint64(config.SegMax) * uint64(config.SizeMax), limiter: limiter, clock: clock, log: o.Logger}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if l, ok := img.(Locking); ok && !l.Locked() {
		d.log.Warn("disk: the file system can't lock the image: other processes can open and write it meanwhile", "disk", o.Name)
	}
	return d, nil
}

func goodBlock(n int) bool { return n >= SectorSize && n&(n-1) == 0 }

func closeImage(img Image) error {
	if c, ok := img.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Type implements virtio.Device.
func (*Device) Type() virtio.Type { return virtio.TypeBlock }

// Features implements virtio.Device.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, d.opts.Queues)
	for i := range sizes {
		sizes[i] = d.opts.QueueSize
	}
	return sizes
}

// State implements virtio.Device.
func (d *Device) State() any { return State{Capacity: d.capacity()} }

func (d *Device) capacity() uint64 {
	var b [8]byte
	d.ReadConfig(0, b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// Refresh looks again how large the image is and tells the guest, one that is
// paused when it goes on. A disk whose image can't say keeps its size. It may be
// called from any goroutine.
func (d *Device) Refresh() error {
	d.refresh.Lock()
	defer d.refresh.Unlock()
	r, ok := d.img.(Refresher)
	if !ok {
		return nil
	}
	size, err := r.Refresh()
	if err != nil {
		return err
	}
	sectors := uint64(size) / SectorSize
	if sectors == d.capacity() {
		return nil
	}
	d.Update(func(b []byte) { binary.LittleEndian.PutUint64(b, sectors) })
	d.mu.Lock()
	changed := d.changed
	d.untold = changed == nil
	d.mu.Unlock()
	if changed != nil {
		changed()
	}
	return nil
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	d.changed = a.ConfigChanged
	if d.untold {
		// The driver may have read the size before it changed. Here, on the way
		// to DRIVER_OK, nothing can be told yet.
		d.untold = false
		d.work.Go(a.ConfigChanged)
	}
	d.mu.Unlock()
	debt := d.limiter.Debt()
	for i, q := range a.Queues {
		// Without MQ there is one queue (5.2.2), whatever the driver has enabled.
		if q == nil || i > 0 && a.Features&FeatureMultiQueue == 0 {
			continue
		}
		c, p := &virtio.Crew{Late: func() { d.late(q) }}, virtio.NewPace(q)
		for range max(1, min(d.opts.Workers, MaxWorkers/d.opts.Queues)) {
			w := newWorker(d, q, c, p, a)
			w.debt = debt
			d.work.Go(w.run)
		}
	}
	return nil
}

// late is called when a write that was to be quick holds who listens to q: what else it
// has done is told, and writes are left to workers again.
func (d *Device) late(q *virtio.Queue) {
	d.writes.broken()
	q.Signal()
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.mu.Lock()
	d.changed = nil
	d.mu.Unlock()
	d.work.Wait()
}

// Close closes the image. The device is not in use any more.
func (d *Device) Close() error { return closeImage(d.img) }

// failed logs that the image has failed a request.
func (d *Device) failed(what string, sector uint64, err error) {
	if held, ok := d.muffled.Pass(d.clock.Now()); ok {
		d.log.Warn("disk: request failed", "disk", d.opts.Name, "request", what, "sector", sector, "error", err, "unreported", held)
	}
}
