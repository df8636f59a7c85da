package vsock

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/virtio"
)

const (
	// DefaultMaxConns is how many connections there can be by default.
	DefaultMaxConns = 4096
	// LargestMaxConns is the most that can be asked for.
	LargestMaxConns = 1 << 16
	// MaxWindow is the most that a connection buffers for a host's reader, in
	// bytes: the credit that the guest is given. With many connections a new one
	// gets less.
	MaxWindow = 256 << 10
)

const (
	queueRX, queueTX, queueEvent, queues = 0, 1, 2, 3

	queueSize      = 128
	eventQueueSize = 16
	// moreResets is how many resets may wait for buffers besides one for each
	// connection.
	moreResets = 1024
)

// ErrConfig is what errors of New and ServeUnix about bad arguments wrap.
var ErrConfig = errors.New("vsock")

// ErrNoDriver says that no driver in the guest serves the device: it is not
// loaded yet, or any more.
var ErrNoDriver = errors.New("the guest has no driver for its vsock device")

// ErrTooMany says that there are as many connections as there can be.
var ErrTooMany = errors.New("too many vsock connections")

// Options are what a device is made of.
type Options struct {
	// CID is the guest's context id: 3 or more, and not 0xffffffff. On the host it
	// is just a number: each machine may have the same.
	CID uint32
	// MaxConns bounds the connections, of both directions and together with those
	// that are being made; 0 is DefaultMaxConns.
	MaxConns int
	// Path, if not empty, is served as by ServeUnix.
	Path string
	// Logger receives what goes wrong on the host, at most one line a second; nil
	// is silent.
	Logger *slog.Logger
}

// times are the waits that have a bound; tests have shorter ones.
type times struct {
	connect  time.Duration // for the guest's or a Unix socket's answer
	greeting time.Duration // for a Unix client's CONNECT line
	linger   time.Duration // for the guest's reset after both sides are shut
}

// config is the device's configuration space (5.10.4).
type config struct{ GuestCID uint64 }

// Device is a virtio socket device. All methods may be called from any
// goroutine, those of virtio.Device as that says.
type Device struct {
	*virtio.ConfigSpace
	cid     uint32
	max     int
	log     *slog.Logger
	times   times
	pool    chunkPool
	stats   counters
	start   time.Time
	logged  atomic.Int64 // when the next line may be logged, after start
	work    sync.WaitGroup
	dials   sync.WaitGroup // goroutines that connect to Unix sockets
	closing chan struct{}  // closed by Close
	events  atomic.Bool    // a TRANSPORT_RESET is to be told

	rxLock sync.Mutex // held by who sends
	rx     *rx        // nil while there is no driver

	// waiting is how many connections and resets are in line.
	waiting atomic.Int32

	mu        sync.Mutex // taken last: no other lock of the package but a poller's is taken under it
	closed    bool
	active    bool
	event     *virtio.Queue
	flows     map[*flow]struct{} // all that have something of the host's
	table     map[key]*flow      // those that the guest knows, or is being asked for
	line      line
	resets    resetList
	listeners map[uint32]*Listener
	nextPort  uint32
	unix      *unixServer
}

var (
	_ virtio.Device     = (*Device)(nil)
	_ virtio.Counting   = (*Device)(nil)
	_ virtio.Describing = (*Device)(nil)
)

// State is the device's registers.
type State struct {
	CID uint32
	// ResetEvent says that the driver is to be told of a TRANSPORT_RESET.
	ResetEvent bool
}

// New makes a device. Errors wrap ErrConfig.
func New(o Options) (*Device, error) {
	return newDevice(o, times{connect: 10 * time.Second, greeting: 30 * time.Second, linger: 8 * time.Second})
}

func newDevice(o Options, t times) (*Device, error) {
	if o.MaxConns == 0 {
		o.MaxConns = DefaultMaxConns
	}
	switch {
	case o.CID < 3 || o.CID == 0xffff_ffff:
		return nil, fmt.Errorf("%w: a CID of %d is reserved: the guest's is 3 or more, and less than 4294967295", ErrConfig, o.CID)
	case o.MaxConns < 1 || o.MaxConns > LargestMaxConns:
		return nil, fmt.Errorf("%w: %d connections at most: 1 to %d are possible", ErrConfig, o.MaxConns, LargestMaxConns)
	}
	space, err := virtio.NewConfigSpace(config{GuestCID: uint64(o.CID)})
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	d := &Device{
		ConfigSpace: space, cid: o.CID, max: o.MaxConns, log: o.Logger, times: t, start: time.Now(),
		closing: make(chan struct{}), flows: map[*flow]struct{}{}, table: map[key]*flow{},
		listeners: map[uint32]*Listener{}, nextPort: firstPort,
	}
	d.resets.most = moreResets + o.MaxConns
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if o.Path != "" {
		if err := d.ServeUnix(o.Path); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Type implements virtio.Device.
func (*Device) Type() virtio.Type { return virtio.TypeVsock }

// Features implements virtio.Device.
func (*Device) Features() uint64 { return FeatureStream }

// QueueSizes implements virtio.Device.
func (*Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize, eventQueueSize} }

// State implements virtio.Device.
func (d *Device) State() any { return State{CID: d.cid, ResetEvent: d.events.Load()} }

// CID is the guest's context id.
func (d *Device) CID() uint32 { return d.cid }

// Activate implements virtio.Device. A driver that has not enabled both the rx and
// the tx queue is refused.
func (d *Device) Activate(a virtio.Activation) error {
	rxq, txq, eventq := a.Queues[queueRX], a.Queues[queueTX], a.Queues[queueEvent]
	if rxq == nil || txq == nil {
		return fmt.Errorf("vsock: %w: the driver has not enabled both data queues", virtio.ErrBroken)
	}
	// Nobody sends yet: the last Reset has taken d.rx away.
	d.rxLock.Lock()
	d.rx = newRX(d, rxq, a.Fail)
	d.rxLock.Unlock()
	d.mu.Lock()
	d.active = !d.closed
	d.event = eventq
	d.mu.Unlock()
	d.work.Go(func() {
		for rxq.Wait() {
			d.pump(noBudget)
		}
	})
	t := newTX(d, txq)
	d.work.Go(t.run)
	if eventq != nil {
		d.work.Go(func() { d.tell(eventq, a.Fail) })
	}
	return nil
}

// Reset implements virtio.Device: every connection ends, listeners stay.
func (d *Device) Reset() {
	d.work.Wait()
	d.rxLock.Lock()
	d.rx = nil
	d.rxLock.Unlock()
	d.mu.Lock()
	d.active, d.event = false, nil
	d.mu.Unlock()
	d.endAll()
	d.mu.Lock()
	d.waiting.Add(-int32(d.resets.clear()))
	d.mu.Unlock()
}

// endAll ends all connections as far as the guest is concerned. It is told
// nothing.
func (d *Device) endAll() {
	for _, f := range d.all() {
		f.mu.Lock()
		if f.state != greeting {
			f.finish(syscall.ECONNRESET, false)
		}
		f.mu.Unlock()
	}
}

// all lists the connections.
func (d *Device) all() []*flow {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.flows))
}

// TransportReset is for a guest that goes on somewhere else, from a snapshot:
// every connection ends, and the driver is told so by an event (5.10.6.7), now or
// as soon as it can be.
func (d *Device) TransportReset() {
	d.endAll()
	d.events.Store(true)
	d.mu.Lock()
	q := d.event
	d.mu.Unlock()
	if q != nil {
		q.Wake()
	}
}

// tell sends the event, when there is one and a buffer for it.
func (d *Device) tell(q *virtio.Queue, fail func(error)) {
	c := virtio.NewChain(q)
	for ok := true; ok; ok = q.Wait() {
		for d.events.Load() && q.Pop(c) {
			if c.WritableLen() < 4 {
				fail(fmt.Errorf("vsock: %w: an event buffer of %d bytes", virtio.ErrBroken, c.WritableLen()))
			} else {
				c.Write([]byte{byte(eventTransportReset), 0, 0, 0})
				d.events.Store(false)
			}
			q.Push(c)
			q.Signal()
		}
	}
}

// Close ends all connections and listeners, removes the Unix socket, and waits
// for every goroutine. The machine has closed the device's Function before. A Conn
// can still be read to the end of what had come.
func (d *Device) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed, d.active = true, false
	server := d.unix
	var listeners []*Listener
	for _, l := range d.listeners {
		listeners = append(listeners, l)
	}
	d.mu.Unlock()
	close(d.closing)
	var err error
	for _, l := range listeners {
		_ = l.Close()
	}
	if server != nil {
		err = server.close()
	}
	for _, f := range d.all() {
		f.mu.Lock()
		f.finish(syscall.ECONNRESET, true)
		if s, ok := f.host.(*sock); ok {
			s.abandon() // a Conn is its user's, who may still read what has come
		}
		f.mu.Unlock()
	}
	d.dials.Wait()
	if server != nil {
		err = errors.Join(err, server.poll.close())
	}
	return err
}

// warn logs, at most once a second.
func (d *Device) warn(msg string, args ...any) {
	now := int64(time.Since(d.start))
	next := d.logged.Load()
	if now >= next && d.logged.CompareAndSwap(next, now+int64(time.Second)) {
		d.log.Warn(msg, append(args, "cid", d.cid)...)
	}
}
