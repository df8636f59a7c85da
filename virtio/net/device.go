package net

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vole-vmm/vole/virtio"
)

const (
	// QueueSize is the number of descriptors of each queue.
	QueueSize = 256
	// MaxPairs is the most pairs of queues that a device has.
	MaxPairs = 64
	// batchFrames is how many frames one turn of a queue moves at most: the driver
	// is told of them together, and a pause waits for them.
	batchFrames = 64
	// batchBytes ends one too: the driver is not to sleep while much is copied.
	batchBytes = 256 << 10
)

// ErrOptions is wrapped by the errors of New.
var ErrOptions = errors.New("net: the network device can't be made")

// Options are what a network device has besides its backend. The zero value is a
// good one.
type Options struct {
	// MAC is the address that the driver is given; nil is StableMAC of Name, which
	// then must be another for each device of a LAN.
	MAC HardwareAddr
	// Name stands in log lines and errors; "" is the backend's, if it is Named (a tap
	// has its interface's), or "net".
	Name string
	// MTU is the largest IP packet, in bytes, that the driver is told of; 0 is the
	// backend's, if it says. It can't be more than the backend's.
	MTU int
	// Pairs is the number of pairs of queues that are offered, at best one for each
	// vCPU; 0 is as many as the backend serves.
	Pairs int
	// RxLimits and TxLimits bound the rate at which the driver receives and sends;
	// the zero value is no bound. An operation is a frame. A frame over the limit
	// is late and not lost: what comes in waits with the backend, what goes out in
	// the driver's queue. A burst may exceed the limit by one frame of each pair.
	RxLimits, TxLimits virtio.Limits
	// Logger receives changes of the link and errors of the backend, at most a line a
	// second; nil is silent.
	Logger *slog.Logger
}

// Device is a network device: a virtio device on a [Backend]. Besides what
// virtio.Device says, SetLink, Stats and Counters may be called at any time from
// any goroutine.
type Device struct {
	*virtio.ConfigSpace
	backend  Backend
	carrier  carrier // the backend, if it serves the queues itself; else nil
	opts     Options
	features uint64 // on offer
	mac      [6]byte
	log      *slog.Logger
	clock    virtio.Clock
	rxLimit  *virtio.Limiter
	txLimit  *virtio.Limiter
	pairs    []pair
	work     sync.WaitGroup
	filter   atomic.Pointer[filter]
	muffled  virtio.Muffle

	link   link
	speaks bool // the backend is a LinkNotifier

	mu      sync.Mutex
	running uint64        // the features of the Activation
	changed func()        // of the Activation, nil before
	untold  bool          // the status has changed while there was no Activation
	state   State         // but for Status, which is in link
	queues  []*pairQueues // of the Activation
}

// pair is what a pair of queues has for as long as the device is there.
type pair struct{ rx, tx counters }

// pairQueues are those of an Activation.
type pairQueues struct {
	rx, tx *virtio.Queue
	// rxGate and txGate are held by the goroutine of the queue while it moves
	// frames, and by the control queue while it opens or shuts them.
	rxGate, txGate gate
}

// gate says whether a queue is in use.
type gate struct {
	sync.Mutex
	open bool
}

func (g *gate) set(open bool) {
	g.Lock()
	defer g.Unlock()
	g.open = open
}

var (
	_ virtio.Device  = (*Device)(nil)
	_ virtio.Lending = (*Device)(nil)
)

// State is the device's registers.
type State struct {
	MAC          [6]byte
	Status       uint16 // of the configuration space
	Pairs        int    // that the driver uses
	Promiscuous  bool
	AllMulticast bool
	// Unicast and Multicast are the addresses of the filter; nil with All is a
	// table that was too long.
	Unicast, Multicast       [][6]byte
	UnicastAll, MulticastAll bool
}

// New makes a network device on backend, which then belongs to it: Close closes
// it, and so does New when it fails. Errors wrap ErrOptions and name the device.
func New(backend Backend, o Options) (*Device, error) {
	d, err := newDevice(backend, o, virtio.NewClock())
	if err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	return d, nil
}

func newDevice(backend Backend, o Options, clock virtio.Clock) (*Device, error) {
	if n, ok := backend.(Named); ok && o.Name == "" {
		o.Name = n.Name()
	}
	if o.Name == "" {
		o.Name = "net"
	}
	if o.MAC == nil {
		o.MAC = StableMAC(o.Name)
	}
	if o.Pairs == 0 {
		o.Pairs = min(backend.MaxPairs(), MaxPairs)
	}
	largest := backend.MTU()
	if o.MTU == 0 {
		o.MTU = min(largest, MaxMTU)
	}
	refuse := func(err error) error { return fmt.Errorf("%w: %s: %w", ErrOptions, o.Name, err) }
	if err := checkMAC(o.MAC); err != nil {
		return nil, refuse(err)
	}
	switch {
	case o.Pairs < 1 || o.Pairs > MaxPairs:
		return nil, refuse(fmt.Errorf("%d pairs of queues: 1 to %d are possible", o.Pairs, MaxPairs))
	case o.Pairs > backend.MaxPairs():
		return nil, refuse(fmt.Errorf("%d pairs of queues: its backend serves %d at most", o.Pairs, backend.MaxPairs()))
	case o.MTU != 0 && (o.MTU < MinMTU || o.MTU > MaxMTU):
		return nil, refuse(fmt.Errorf("an MTU of %d: %d to %d are possible", o.MTU, MinMTU, MaxMTU))
	case largest != 0 && o.MTU > largest:
		return nil, refuse(fmt.Errorf("an MTU of %d: its backend carries packets of %d bytes at most", o.MTU, largest))
	}
	carrier, _ := backend.(carrier)
	if carrier != nil && (o.RxLimits != virtio.Limits{} || o.TxLimits != virtio.Limits{}) {
		return nil, refuse(errors.New("rate limits: the host's kernel, which moves its frames, keeps none"))
	}
	rx, err := virtio.NewLimiter(o.RxLimits, clock)
	if err != nil {
		return nil, refuse(fmt.Errorf("receiving: %w", err))
	}
	tx, err := virtio.NewLimiter(o.TxLimits, clock)
	if err != nil {
		return nil, refuse(fmt.Errorf("sending: %w", err))
	}
	d := &Device{
		backend: backend, carrier: carrier, opts: o, mac: [6]byte(o.MAC), log: o.Logger, clock: clock, rxLimit: rx, txLimit: tx,
		pairs:    make([]pair, o.Pairs),
		features: settle(backend.Features() & offloads),
	}
	d.features |= FeatureMAC | FeatureMrgRxBuf | FeatureStatus | FeatureCtrlVQ | FeatureCtrlMACAddr | FeatureGuestAnnounce
	if carrier == nil {
		d.features |= FeatureCtrlRx // who sees no frames can't filter them
	}
	if o.MTU != 0 {
		d.features |= FeatureMTU
	}
	if o.Pairs > 1 {
		d.features |= FeatureMQ
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.ConfigSpace, err = virtio.NewConfigSpace(Config{MAC: d.mac, Status: StatusLinkUp, MaxPairs: uint16(o.Pairs), MTU: uint16(o.MTU)})
	if err != nil {
		return nil, fmt.Errorf("net: %w", err)
	}
	d.link.init()
	d.fresh()
	if n, ok := backend.(LinkNotifier); ok {
		d.speaks = true
		n.NotifyLink(d.backendLink)
	}
	return d, nil
}

// fresh makes the registers those after a reset. It is called under mu, or before
// anybody knows the device.
func (d *Device) fresh() {
	d.state = State{MAC: d.mac, Pairs: 1, Promiscuous: true}
	d.setFilter()
}

// Type implements virtio.Device.
func (*Device) Type() virtio.Type { return virtio.TypeNet }

// Features implements virtio.Device.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes implements virtio.Device: receiveq and transmitq of each pair, then
// the control queue (5.1.2).
func (d *Device) QueueSizes() []uint16 {
	return slices.Repeat([]uint16{QueueSize}, 2*len(d.pairs)+1)
}

// Lends implements virtio.Lending: with vhost all but the control queue, which is the
// last with MQ and the third without. The third may be either.
func (d *Device) Lends(queue int) bool {
	return d.carrier != nil && queue < 2*len(d.pairs) && queue != 2
}

// MAC is the address that the driver was given. It stays, whatever address the
// driver sets.
func (d *Device) MAC() HardwareAddr { return slices.Clone(d.opts.MAC) }

// State implements virtio.Device.
func (d *Device) State() any {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.state
	s.Unicast, s.Multicast = slices.Clone(s.Unicast), slices.Clone(s.Multicast)
	s.Status = d.link.status()
	return s
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	features := settle(a.Features)
	if err := d.backend.Start(features); err != nil {
		return fmt.Errorf("net: %s: %w", d.opts.Name, err)
	}
	// Without MQ there is one pair, and the control queue is behind that (5.1.2).
	n := 1
	if features&FeatureMQ != 0 {
		n = len(d.pairs)
	}
	queues := make([]*pairQueues, n)
	for i := range queues {
		queues[i] = &pairQueues{rx: a.Queues[2*i], tx: a.Queues[2*i+1]}
	}
	queues[0].rxGate.open, queues[0].txGate.open = true, true
	d.mu.Lock()
	d.running, d.changed, d.queues = features, a.ConfigChanged, queues
	d.setFilter()
	untold := d.untold
	d.untold = false
	d.mu.Unlock()
	if untold {
		// The driver may have read the status before it changed. Here, on the way
		// to DRIVER_OK, nothing can be told yet.
		d.work.Go(a.ConfigChanged)
	}
	if d.carrier != nil {
		if err := d.carrier.carry(queues, features, a.Fail); err != nil {
			return fmt.Errorf("net: %s: %w", d.opts.Name, err)
		}
	}
	for i, p := range queues {
		if d.carrier != nil {
			break
		}
		if p.rx != nil {
			d.work.Go(newReceiver(d, i, p, features).run)
		}
		if p.tx != nil {
			d.work.Go(newSender(d, i, p, features).run)
		}
	}
	if q := a.Queues[2*n]; q != nil && features&FeatureCtrlVQ != 0 {
		d.work.Go((&control{d: d, q: q, c: virtio.NewChain(q), features: features, fail: a.Fail}).run)
	}
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.mu.Lock()
	d.changed = nil
	d.mu.Unlock()
	d.backend.Stop()
	d.work.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running, d.queues = 0, nil
	d.fresh()
	d.link.acknowledge()
	status := d.link.status()
	d.Update(func(b []byte) {
		copy(b[configMAC:], d.mac[:])
		putStatus(b, status)
	})
}

// Close closes the backend. The device is not in use any more.
func (d *Device) Close() error { return d.backend.Close() }

// setFilter makes the filter that the registers describe. It is called under mu.
func (d *Device) setFilter() {
	s := &d.state
	f := &filter{
		mac:       address(s.MAC),
		all:       s.Promiscuous || d.running&FeatureCtrlRx == 0,
		unicast:   addresses{all: s.UnicastAll},
		multicast: addresses{all: s.AllMulticast || s.MulticastAll},
	}
	for _, m := range s.Unicast {
		f.unicast.list = append(f.unicast.list, address(m))
	}
	for _, m := range s.Multicast {
		f.multicast.list = append(f.multicast.list, address(m))
	}
	d.filter.Store(f)
}
