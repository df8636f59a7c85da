package virtio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/vole-vmm/vole/memory"
)

// resetPatience is how long a driver's reset holds the vCPU that asked for it
// while requests in flight end. After it the device is still resetting, and
// says so: its status does not read 0 until it has stopped (section 2.1.2).
const resetPatience = time.Second

// logInterval is how far apart log lines of one device are at least.
const logInterval = time.Second

// Interrupts is a transport's way to the driver. The methods may be called from
// any goroutine; they do not block and do not call the Function.
type Interrupts interface {
	// Queue sends a used buffer notification of queue i.
	Queue(i int)
	// Config sends a configuration change notification.
	Config()
}

// Area is a part of a queue in guest memory.
type Area int

// The parts of a split queue.
const (
	AreaDesc Area = iota
	AreaAvail
	AreaUsed
)

// FunctionConfig is what a Function is made of.
type FunctionConfig struct {
	Device     Device
	Memory     *memory.Guest
	Interrupts Interrupts
	// Logger receives a line when the device fails or is slow to reset, at most
	// one a second; nil is silent.
	Logger *slog.Logger
	// OnReset, if set, is called when a reset is complete, before the status
	// reads 0: the transport clears its own registers. It does not call the
	// Function.
	OnReset func()
}

// Function is the half of a virtio device that its type does not matter for:
// the registers that both transports have, the status machine, negotiation,
// and the life of the queues. A transport calls it on vCPU threads; all methods
// may be called from any goroutine.
type Function struct {
	dev     Device
	mem     *memory.Guest
	irq     Interrupts
	log     *slog.Logger
	onReset func()
	offered uint64
	most    []uint16
	bells   []*Doorbell

	mu     sync.Mutex
	regs   registers
	active []*Queue // of the Activation, nil before DRIVER_OK
	paused bool
	untold bool          // the configuration has changed while paused
	reset  chan struct{} // not nil while a reset is under way; closed at its end
	closed bool
	logged time.Time       // when a line was last logged
	ended  <-chan struct{} // closed when Close's reset is complete; not nil from Close on

	bellsClosed sync.Once
}

// registers is the state that the driver sees, apart from the device's own.
type registers struct {
	status   uint8
	features uint64
	queues   []queueRegisters
}

type queueRegisters struct {
	QueueConfig
	ready bool
}

// NewFunction makes the shared half of cfg.Device. The caller closes it.
func NewFunction(cfg FunctionConfig) (*Function, error) {
	f := &Function{
		dev: cfg.Device, mem: cfg.Memory, irq: cfg.Interrupts, log: cfg.Logger, onReset: cfg.OnReset,
		offered: cfg.Device.Features() | ringFeatures,
		most:    slices.Clone(cfg.Device.QueueSizes()),
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	for i, n := range f.most {
		if n == 0 || n > MaxQueueSize || n&(n-1) != 0 {
			return nil, errors.Join(fmt.Errorf("virtio: %v: queue %d has a size of %d, which is no power of two", f.dev.Type(), i, n), f.closeBells())
		}
		bell, err := f.newBell(i)
		if err != nil {
			return nil, errors.Join(err, f.closeBells())
		}
		f.bells = append(f.bells, bell)
	}
	f.regs = f.fresh()
	return f, nil
}

func (f *Function) newBell(i int) (*Doorbell, error) {
	if l, ok := f.dev.(Lending); ok && l.Lends(i) {
		return newDoorbell(0)
	}
	return NewDoorbell()
}

func (f *Function) closeBells() error {
	var errs []error
	f.bellsClosed.Do(func() {
		for _, b := range f.bells {
			errs = append(errs, b.Close())
		}
	})
	return errors.Join(errs...)
}

// fresh are the registers after a reset.
func (f *Function) fresh() registers {
	r := registers{queues: make([]queueRegisters, len(f.most))}
	for i, n := range f.most {
		r.queues[i].Size = n
	}
	return r
}

// Type is the device's type.
func (f *Function) Type() Type { return f.dev.Type() }

// DeviceFeatures are the feature bits on offer.
func (f *Function) DeviceFeatures() uint64 { return f.offered }

// DriverFeatures are the feature bits that the driver has acknowledged.
func (f *Function) DriverFeatures() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.regs.features
}

// SetDriverFeatures writes the 32 bits of the acknowledged features that begin
// at bit 32*sel. It has no effect before DRIVER, from FEATURES_OK on, and for a
// sel that there is not (rule 3).
func (f *Function) SetDriverFeatures(sel, v uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen() || sel > 1 {
		return
	}
	shift := 32 * sel
	f.regs.features = f.regs.features&^(0xffff_ffff<<shift) | uint64(v)<<shift
}

// frozen reports whether the features can't be written.
func (f *Function) frozen() bool {
	return f.reset != nil || f.regs.status&(StatusDriver|StatusFeaturesOK) != StatusDriver
}

// Status is the device status field.
func (f *Function) Status() uint8 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.regs.status
}

// SetStatus takes the driver's write of the status field: 0 resets, everything
// else adds bits (rule 4). FEATURES_OK stays unset where the features are not a
// subset of those offered or lack VERSION_1; DRIVER_OK activates the device.
func (f *Function) SetStatus(v uint8) {
	if v == 0 {
		f.Reset()
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reset != nil || f.closed {
		return
	}
	// The device's own bit is not the driver's to set.
	added := v &^ f.regs.status &^ StatusNeedsReset
	if added&StatusFeaturesOK != 0 && !f.acceptable(v) {
		added &^= StatusFeaturesOK
	}
	f.regs.status |= added &^ StatusDriverOK
	if added&StatusDriverOK != 0 && f.regs.status&StatusFeaturesOK != 0 {
		f.regs.status |= StatusDriverOK
		f.activate()
	}
}

// acceptable reports whether FEATURES_OK may be set.
func (f *Function) acceptable(v uint8) bool {
	return v&StatusDriver != 0 && f.regs.features&^f.offered == 0 && f.regs.features&FeatureVersion1 != 0
}

// activate makes the queues and starts the device. It is called under f.mu.
func (f *Function) activate() {
	queues := make([]*Queue, len(f.most))
	for i, r := range f.regs.queues {
		if !r.ready {
			continue
		}
		q, err := newQueue(i, r.QueueConfig, f.most[i], f.regs.features, f.mem)
		if err != nil {
			f.failLocked(err)
			return
		}
		q.bell = f.bells[i]
		q.raise = func() { f.irq.Queue(i) }
		q.fail = f.fail
		q.held = f.paused
		queues[i] = q
	}
	f.active = queues
	err := f.dev.Activate(Activation{
		Features: f.regs.features, Queues: slices.Clone(queues),
		ConfigChanged: f.configChanged, Fail: f.fail,
	})
	if err != nil {
		f.failLocked(err)
	}
}

// configChanged tells a driver that is there, while paused at Resume.
func (f *Function) configChanged() {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.reset != nil || f.regs.status&StatusDriverOK == 0:
	case f.paused:
		f.untold = true
	default:
		f.irq.Config()
	}
}

func (f *Function) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failLocked(err)
}

// failLocked sets NEEDS_RESET and says so once (rule 6).
func (f *Function) failLocked(err error) {
	if f.reset != nil || f.regs.status&StatusNeedsReset != 0 {
		return
	}
	f.regs.status |= StatusNeedsReset
	f.warn("virtio device needs reset", "reason", err.Error())
	if f.regs.status&StatusDriverOK != 0 {
		f.irq.Config()
	}
}

// warn logs a line of what a guest may bring about again and again: it may break
// a queue, reset and break it again, for ever. It is called under f.mu.
func (f *Function) warn(msg string, args ...any) {
	if now := time.Now(); now.Sub(f.logged) >= logInterval {
		f.logged = now
		f.log.With("type", f.dev.Type().String()).Warn(msg, args...)
	}
}

// NumQueues is the number of queues.
func (f *Function) NumQueues() int { return len(f.most) }

// QueueMax is the largest size of queue i, 0 if there is no such queue.
func (f *Function) QueueMax(i uint32) uint16 {
	if uint64(i) >= uint64(len(f.most)) {
		return 0
	}
	return f.most[i]
}

// Queue returns what is set up for queue i, and whether it is ready. A queue
// that there is not has only zeros.
func (f *Function) Queue(i uint32) (QueueConfig, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if uint64(i) >= uint64(len(f.regs.queues)) {
		return QueueConfig{}, false
	}
	r := f.regs.queues[i]
	return r.QueueConfig, r.ready
}

// queue returns the registers of queue i if they may be written: between
// FEATURES_OK and DRIVER_OK (rule 4).
func (f *Function) queue(i uint32) *queueRegisters {
	if f.reset != nil || f.regs.status&(StatusFeaturesOK|StatusDriverOK) != StatusFeaturesOK || uint64(i) >= uint64(len(f.regs.queues)) {
		return nil
	}
	return &f.regs.queues[i]
}

// SetQueueSize sets the size of queue i. Like all of a queue's registers it can
// be written between FEATURES_OK and DRIVER_OK, while the queue is not ready.
func (f *Function) SetQueueSize(i uint32, n uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.queue(i); r != nil && !r.ready {
		r.Size = n
	}
}

// SetQueueArea sets the low or high 32 bits of an address of queue i.
func (f *Function) SetQueueArea(i uint32, a Area, high bool, v uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.queue(i)
	if r == nil || r.ready {
		return
	}
	p := [...]*uint64{AreaDesc: &r.Desc, AreaAvail: &r.Avail, AreaUsed: &r.Used}[a]
	if high {
		*p = *p&0xffff_ffff | uint64(v)<<32
	} else {
		*p = *p&^0xffff_ffff | uint64(v)
	}
}

// SetQueueReady makes queue i part of the next activation, or not.
func (f *Function) SetQueueReady(i uint32, ready bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.queue(i); r != nil {
		r.ready = ready
	}
}

// ReadConfig reads the device's configuration space.
func (f *Function) ReadConfig(off uint32, p []byte) { f.dev.ReadConfig(off, p) }

// WriteConfig writes the device's configuration space.
func (f *Function) WriteConfig(off uint32, p []byte) { f.dev.WriteConfig(off, p) }

// ConfigGeneration is the generation of the configuration space.
func (f *Function) ConfigGeneration() uint32 { return f.dev.ConfigGeneration() }

// Notify rings the bell of queue i, if there is one: what an ioeventfd does
// without an exit to user space.
func (f *Function) Notify(i uint32) {
	if uint64(i) < uint64(len(f.bells)) {
		f.bells[i].Ring()
	}
}

// Bell is the doorbell of queue i. It lasts as long as the Function.
func (f *Function) Bell(i int) *Doorbell { return f.bells[i] }

// Reset stops the device and brings all registers to their first values
// (rule 1). Requests in flight are waited for; if that takes more than
// resetPatience, Reset returns and the device goes on resetting: until it has
// ended the status does not read 0 and nothing can be written.
func (f *Function) Reset() {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return
	}
	done := f.beginReset()
	f.mu.Unlock()
	select {
	case <-done:
		return
	default:
	}
	t := time.NewTimer(resetPatience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		f.mu.Lock()
		defer f.mu.Unlock()
		f.warn("virtio device is slow to reset: requests are in flight")
	}
}

// beginReset starts a reset unless one is under way, and returns what is closed
// at its end. It is called under f.mu.
func (f *Function) beginReset() <-chan struct{} {
	if f.reset != nil {
		return f.reset
	}
	done := make(chan struct{})
	f.untold = false // the next driver reads it
	if f.active == nil {
		f.endReset()
		close(done)
		return done
	}
	f.reset = done
	active := f.active
	for _, q := range active {
		if q != nil {
			q.stop()
		}
	}
	go func() {
		f.dev.Reset()
		f.mu.Lock()
		defer f.mu.Unlock()
		f.reset, f.active = nil, nil
		f.endReset()
		close(done)
	}()
	return done
}

func (f *Function) endReset() {
	f.regs = f.fresh()
	if f.onReset != nil {
		f.onReset()
	}
}

// Pause stops the device from taking requests and waits until none is in flight
// and the driver was told of each: then nothing changes, neither in guest memory
// nor in the transport's registers. The error is ctx's; the device
// is paused all the same. A reset while paused is carried out, an activation
// waits with its requests for Resume, and so does the word of a change of the
// configuration space.
func (f *Function) Pause(ctx context.Context) error {
	f.mu.Lock()
	f.paused = true
	active, reset := f.active, f.reset
	f.mu.Unlock()
	if reset != nil {
		select {
		case <-reset:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("virtio: %v: resetting: %w", f.dev.Type(), ctx.Err())
		}
	}
	var errs []error
	for _, q := range active {
		if q != nil {
			errs = append(errs, q.hold(ctx))
		}
	}
	return errors.Join(errs...)
}

// Resume ends a Pause.
func (f *Function) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = false
	for _, q := range f.active {
		if q == nil {
			continue
		}
		if err := q.release(); err != nil {
			f.failLocked(err)
		}
	}
	if f.untold {
		f.untold = false
		f.irq.Config()
	}
}

// Close resets the device for good and waits for its end, at most until ctx is
// done: then the error says so, and the device may still write to guest memory.
// A later Close waits again; once one has returned nil it is over.
func (f *Function) Close(ctx context.Context) error {
	f.mu.Lock()
	if !f.closed {
		f.ended = f.beginReset()
		f.closed = true
	}
	ended := f.ended
	f.mu.Unlock()
	if ended == nil { // discarded
		return nil
	}
	select {
	case <-ended:
		return f.closeBells()
	default:
	}
	select {
	case <-ended:
		return f.closeBells()
	case <-ctx.Done():
		return fmt.Errorf("virtio: %v: requests are still in flight: %w", f.dev.Type(), ctx.Err())
	}
}

// Discard closes a Function that no driver has reached.
func (f *Function) Discard() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return f.closeBells()
}

// State is a Function's registers, for a machine that stands still.
type State struct {
	Status   uint8
	Features uint64
	Queues   []FunctionQueueState
	Device   any // the device's own
}

// FunctionQueueState is a queue as it was set up, and where it stands.
type FunctionQueueState struct {
	QueueConfig
	Ready bool
	QueueState
}

// State returns the registers. It is of use while the device is paused.
func (f *Function) State() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := State{Status: f.regs.status, Features: f.regs.features, Device: f.dev.State()}
	for i, r := range f.regs.queues {
		qs := FunctionQueueState{QueueConfig: r.QueueConfig, Ready: r.ready}
		if f.active != nil && f.active[i] != nil {
			qs.QueueState = f.active[i].State()
		}
		s.Queues = append(s.Queues, qs)
	}
	return s
}
