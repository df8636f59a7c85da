package console

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vole-vmm/vole/virtio"
)

// closeGrace is how long Close waits for a stream, once to finish and once more
// after it was interrupted.
const closeGrace = 250 * time.Millisecond

// ErrUnflushed reports that a port's Out has not taken all that the guest sent.
var ErrUnflushed = errors.New("console: output not written")

// The configuration space (VIRTIO 1.2, 5.3.4).
const (
	offColumns   = 0
	offRows      = 2
	offEmergency = 8
)

type configLayout struct {
	Columns, Rows uint16
	MaxPorts      uint32
	EmergencyByte uint32
}

// Device is a console device. Besides what virtio.Device says, its methods may be
// called from any goroutine, at any time.
type Device struct {
	*virtio.ConfigSpace
	features uint64
	ports    []*port // by number; the conf of a port 0 that there is not is nil
	order    []*port // as in Options
	log      *slog.Logger
	speak    chan struct{} // one token: there may be something to tell the driver
	closing  chan struct{}
	closed   chan struct{}
	closeErr error // valid once closed is closed
	work     sync.WaitGroup

	ignored atomic.Uint64 // control messages that made no sense
	unsaid  atomic.Uint64 // control messages that did not fit the driver's buffers

	// mu is held while nothing is called that takes another lock, but the
	// configuration space's.
	mu      sync.Mutex
	ready   bool   // the driver takes control messages
	changed func() // of the Activation, nil if it does not want to know the size
	begun   bool   // Close was called
}

var (
	_ virtio.Device   = (*Device)(nil)
	_ virtio.Counting = (*Device)(nil)
	_ io.Closer       = (*Device)(nil)
)

// port is a port of a device.
type port struct {
	conf *Port // nil for a port 0 that is no port, whose queues a guest may use all the same
	what string
	in   input
	out  output
	said dialog
	// consumed is how many bytes of the oldest chain in the transmit queue were
	// taken already.
	consumed atomic.Uint64
	isOpen   bool // as told to Open; only of the goroutine that calls it
}

// State is the device's registers. What waits on the host for a port's Out, or for
// the guest to read it, is not among them.
type State struct {
	Columns, Rows uint16 // of the first console
	Ready         bool   // the driver takes control messages
	Ports         []PortState
}

// PortState is what is known of a port, in the order of the numbers.
type PortState struct {
	Added, Ready bool   // by control messages
	GuestOpen    bool   // the guest has opened it
	HostOpen     bool   // the guest was told that the host has
	Consumed     uint64 // bytes of the oldest chain of its transmit queue
}

// New makes a device. What the ports are connected to belongs to the caller, but for
// their Closers, which the device's Close closes, and so does New when it fails.
// Errors wrap ErrOptions.
func New(o Options) (*Device, error) {
	if err := o.validate(); err != nil {
		for _, p := range o.Ports {
			err = errors.Join(err, p.close())
		}
		return nil, err
	}
	d := &Device{
		log: o.Logger, speak: make(chan struct{}, 1),
		closing: make(chan struct{}), closed: make(chan struct{}),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	o.Ports = append([]Port(nil), o.Ports...)
	of := map[*Port]*port{}
	for id, conf := range number(o.Ports) {
		p := d.newPort(id, conf)
		d.ports = append(d.ports, p)
		of[conf] = p
	}
	for i := range o.Ports {
		d.order = append(d.order, of[&o.Ports[i]])
	}
	if first := d.ports[0]; first.conf != nil {
		d.features |= FeatureSize | FeatureEmergWrite
		first.said.cols, first.said.rows = uint16(o.Columns), uint16(o.Rows)
	}
	if len(d.ports) > 1 || o.Multiport || d.ports[0].conf.Name != "" {
		d.features |= FeatureMultiport
	}
	space, err := virtio.NewConfigSpace(configLayout{Columns: uint16(o.Columns), Rows: uint16(o.Rows), MaxPorts: uint32(len(d.ports))})
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	d.ConfigSpace = space
	return d, nil
}

func (d *Device) newPort(id int, conf *Port) *port {
	p := &port{conf: conf, what: fmt.Sprintf("port %d", id)}
	if conf != nil && conf.Name != "" {
		p.what = fmt.Sprintf("port %q", conf.Name)
	}
	p.in.init(conf, d.closing, func(open bool) { d.setHost(p, open) }, func(err error) { d.failed(p, "input", err) })
	p.out.init(conf, func(err error) { d.failed(p, "output", err) })
	p.said.hostOpen = true
	if conf != nil {
		if s, ok := conf.In.(*socket); ok {
			p.said.hostOpen = false
			s.connected = p.in.host
		}
	}
	return p
}

func (d *Device) failed(p *port, way string, err error) {
	d.log.Warn("console: a stream has failed", "port", p.what, "stream", way, "error", err)
}

// opened tells the port's owner that the guest has opened or closed it.
func (p *port) opened(open bool) {
	if p.conf == nil || open == p.isOpen {
		return
	}
	p.isOpen = open
	if p.conf.Open != nil {
		p.conf.Open(open)
	}
}

func (p *Port) close() error {
	if p.Closer == nil {
		return nil
	}
	return p.Closer.Close()
}

// Type implements virtio.Device.
func (*Device) Type() virtio.Type { return virtio.TypeConsole }

// Features implements virtio.Device.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes implements virtio.Device: the receive and transmit queue of port 0,
// those for control messages, and those of the other ports (5.3.2).
func (d *Device) QueueSizes() []uint16 {
	sizes := []uint16{dataQueue, dataQueue}
	if d.features&FeatureMultiport == 0 {
		return sizes
	}
	sizes = append(sizes, controlQueue, controlQueue)
	for range d.ports[1:] {
		sizes = append(sizes, dataQueue, dataQueue)
	}
	return sizes
}

// firstQueue is the receive queue of a port.
func firstQueue(id int) int {
	if id == 0 {
		return 0
	}
	return 2*id + 2
}

// State implements virtio.Device.
func (d *Device) State() any {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := State{Columns: d.ports[0].said.cols, Rows: d.ports[0].said.rows, Ready: d.ready}
	for _, p := range d.ports {
		g := &p.said
		s.Ports = append(s.Ports, PortState{
			Added: g.added, Ready: g.ready, GuestOpen: g.guestOpen, HostOpen: g.toldOpen, Consumed: p.consumed.Load(),
		})
	}
	return s
}

// WriteConfig implements virtio.Device: the low byte of an emergency write is port
// 0's output, whatever state the device is in (5.3.5.1).
func (d *Device) WriteConfig(off uint32, b []byte) {
	if d.features&FeatureEmergWrite == 0 || off > offEmergency || uint64(offEmergency-off) >= uint64(len(b)) {
		return
	}
	d.ports[0].out.emergency(b[offEmergency-off])
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	for _, p := range d.ports {
		p.in.start()
		p.out.begin()
	}
	d.mu.Lock()
	if a.Features&FeatureSize != 0 {
		d.changed = a.ConfigChanged
		// Linux looks at the size when it is told of a change, and not before.
		if g := &d.ports[0].said; g.cols|g.rows != 0 {
			d.work.Go(a.ConfigChanged)
		}
	}
	d.mu.Unlock()
	multiport := a.Features&FeatureMultiport != 0
	for id, p := range d.ports {
		if id > 0 && !multiport {
			break
		}
		if q := a.Queues[firstQueue(id)]; q != nil && p.conf != nil {
			d.work.Go(func() { p.in.receive(q) })
		}
		if q := a.Queues[firstQueue(id)+1]; q != nil {
			d.work.Go(func() { p.transmit(q) })
		}
	}
	if !multiport {
		// There is no word for it: port 0 is open from now on.
		p := d.ports[0]
		d.mu.Lock()
		p.said.guestOpen = true
		d.mu.Unlock()
		p.in.setOpen(true)
		d.work.Go(func() { p.opened(true) })
		return nil
	}
	if q := a.Queues[2]; q != nil {
		d.work.Go(func() { d.tell(q) })
	}
	if q := a.Queues[3]; q != nil {
		d.work.Go(func() { d.listen(q) })
	}
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.mu.Lock()
	d.changed = nil
	d.mu.Unlock()
	d.work.Wait()
	d.mu.Lock()
	d.ready = false
	for _, p := range d.ports {
		p.said.reset()
	}
	d.mu.Unlock()
	for _, p := range d.ports {
		p.consumed.Store(0)
		p.in.setOpen(false)
		p.opened(false)
	}
}

// Resize tells the guest the size of the first console's window, in characters;
// a guest that is not there yet learns it when it comes, one that is paused when it
// goes on. Numbers beyond 0 to 65535 are brought into that range; 0 means that the
// size is not known.
func (d *Device) Resize(columns, rows int) {
	p := d.ports[0]
	if p.conf == nil {
		return
	}
	if changed := d.resize(p, columns, rows); changed != nil {
		changed()
	}
}

// ResizePort is Resize for a port by its place in Options. One that is no
// console has no size.
func (d *Device) ResizePort(i, columns, rows int) {
	switch p := d.order[i]; {
	case p == d.ports[0]:
		d.Resize(columns, rows)
	case p.conf.Console:
		d.resize(p, columns, rows)
	}
}

// resize changes a console's size and returns what tells the driver that the
// configuration space has changed, if it is to be told.
func (d *Device) resize(p *port, columns, rows int) (changed func()) {
	cols, lines := uint16(min(max(columns, 0), 0xffff)), uint16(min(max(rows, 0), 0xffff))
	d.mu.Lock()
	defer d.mu.Unlock()
	g := &p.said
	if g.cols == cols && g.rows == lines {
		return nil
	}
	g.cols, g.rows = cols, lines
	g.size = true
	token(d.speak)
	if p != d.ports[0] {
		return nil
	}
	d.Update(func(b []byte) {
		binary.LittleEndian.PutUint16(b[offColumns:], cols)
		binary.LittleEndian.PutUint16(b[offRows:], lines)
	})
	return d.changed
}

// Watch has f see every byte that the guest sends to the first console, in order,
// before Out does and also where there is none. It is called with a few bytes up to
// OutBuffer at a time, on the goroutine of the queue or a vCPU's, under a lock: it
// must be quick, must not keep the slice, and must not call the device. Watch is
// called before the guest runs; without a console it does nothing.
func (d *Device) Watch(f func([]byte)) {
	if d.ports[0].conf == nil {
		return
	}
	o := &d.ports[0].out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watch = f
}

// Drain waits until the Outs of all consoles have taken what the guest has sent
// before, as far as the device has taken it from the guest's queues. The error is an
// Out's first, or ctx's, or wraps ErrUnflushed after Close. Other ports are not
// waited for: those at their other end may never read.
func (d *Device) Drain(ctx context.Context) error {
	var errs []error
	for _, p := range d.ports {
		if p.conf != nil && p.conf.Console {
			errs = append(errs, p.out.drain(ctx))
		}
	}
	return errors.Join(errs...)
}

// OutErr returns the first error of the Out of a port, by its place in Options.
func (d *Device) OutErr(i int) error {
	o := &d.order[i].out
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// InErr returns the error that ended the In of a port, by its place in Options, or
// nil: io.EOF is no error.
func (d *Device) InErr(i int) error {
	in := &d.order[i].in
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.err
}
