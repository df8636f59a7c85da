package virtiotest

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/mmio"
)

// Patience bounds every wait of this package.
const Patience = 20 * time.Second

// RAM is how much memory a driver's guest has, in bytes. It lies from RAMBase
// on, so that address 0 is none.
const (
	RAM     = 16 << 20
	RAMBase = 0x1000
)

// Driver is a guest with one virtio device and the driver for it. Unless it says
// otherwise a method is for the test's goroutine.
type Driver struct {
	tb  testing.TB
	Mem *memory.Guest
	// Regs are the device's registers, for accesses that no driver would make.
	Regs Registers
	// Function is the device as the machine sees it.
	Function *virtio.Function
	// Features are those that were negotiated.
	Features uint64
	// Queues are those that Start has set up.
	Queues []*Queue
	// QueueIRQ counts the interrupts of queue 0, ConfigIRQ those for changes of
	// the configuration. On mmio, whose one line is for everything, both count
	// every edge.
	QueueIRQ, ConfigIRQ *Counter

	ram     []byte
	next    uint64
	vectors func() // assigns MSI-X vectors, where there are such
}

// Opener makes a driver for a device that no driver has touched yet. The device
// is closed when the test ends.
type Opener func(testing.TB, virtio.Device) *Driver

// Each runs f for each transport, as a subtest of its name.
func Each(t *testing.T, f func(t *testing.T, open Opener)) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) { f(t, tr.open) })
	}
}

var transports = []struct {
	name string
	open Opener
}{
	{"mmio", OpenMMIO},
	{"pci", OpenPCI},
}

// OpenMMIO puts dev on the mmio transport.
func OpenMMIO(tb testing.TB, dev virtio.Device) *Driver {
	tb.Helper()
	d := newDriver(tb)
	line := NewCounter()
	d.QueueIRQ, d.ConfigIRQ = line, line
	m, err := mmio.New(d.config(dev), line)
	if err != nil {
		tb.Fatal(err)
	}
	d.Regs, d.Function = MMIORegisters{m}, m.Function()
	tb.Cleanup(d.close)
	return d
}

func newDriver(tb testing.TB) *Driver {
	tb.Helper()
	ram := make([]byte, RAM)
	mem, err := memory.FromBytes(memory.Region{GPA: RAMBase, Mem: ram})
	if err != nil {
		tb.Fatal(err)
	}
	return &Driver{tb: tb, Mem: mem, ram: ram, next: RAMBase}
}

func (d *Driver) config(dev virtio.Device) virtio.FunctionConfig {
	return virtio.FunctionConfig{Device: dev, Memory: d.Mem, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

func (d *Driver) close() {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := d.Function.Close(ctx); err != nil {
		d.tb.Error(err)
	}
}

// Alloc takes n bytes of guest RAM, aligned to align, a power of two.
func (d *Driver) Alloc(n, align int) (gpa uint64, b []byte) {
	d.tb.Helper()
	gpa = (d.next + uint64(align) - 1) &^ (uint64(align) - 1)
	b, err := d.Mem.Slice(gpa, uint64(n))
	if err != nil {
		d.tb.Fatalf("virtiotest: the guest's RAM is used up: %v", err)
	}
	d.next = gpa + uint64(n)
	return gpa, b
}

// Negotiate resets the device, acknowledges it and agrees on those of want that
// the device offers, and on VERSION_1; want 0 is all. It fails the test if the
// device does not agree.
func (d *Driver) Negotiate(want uint64) {
	d.tb.Helper()
	d.Reset()
	d.Regs.SetStatus(virtio.StatusAcknowledge)
	d.Regs.SetStatus(virtio.StatusAcknowledge | virtio.StatusDriver)
	offered := d.Regs.DeviceFeatures()
	if want == 0 {
		want = offered
	}
	d.Features = offered & (want | virtio.FeatureVersion1)
	d.Regs.DriverFeatures(d.Features)
	d.Regs.SetStatus(d.Regs.Status() | virtio.StatusFeaturesOK)
	if d.Regs.Status()&virtio.StatusFeaturesOK == 0 {
		d.tb.Fatalf("virtiotest: the device does not take features %#x of %#x", d.Features, offered)
	}
}

// Reset writes 0 to the status and waits until it reads 0.
func (d *Driver) Reset() {
	d.tb.Helper()
	d.Regs.SetStatus(0)
	d.until("the device has reset", func() bool { return d.Regs.Status() == 0 })
	d.Queues = nil
}

// Start does all of the initialisation (VIRTIO 1.2, section 3.1): want as in
// Negotiate, every queue at its largest size.
func (d *Driver) Start(want uint64) {
	d.tb.Helper()
	d.Negotiate(want)
	for i := 0; d.Regs.QueueMax(i) > 0; i++ {
		d.SetUp(i, d.Regs.QueueMax(i))
	}
	d.DriverOK()
}

// SetUp makes queue i with n descriptors and enables it.
func (d *Driver) SetUp(i int, n uint16) *Queue {
	d.tb.Helper()
	q := d.newQueue(i, n)
	d.Regs.QueueSize(i, n)
	d.Regs.QueueArea(i, virtio.AreaDesc, q.Config.Desc)
	d.Regs.QueueArea(i, virtio.AreaAvail, q.Config.Avail)
	d.Regs.QueueArea(i, virtio.AreaUsed, q.Config.Used)
	d.Regs.SetQueueReady(i, true)
	for len(d.Queues) <= i {
		d.Queues = append(d.Queues, nil)
	}
	d.Queues[i] = q
	return q
}

// DriverOK sets the bit that starts the device, with its interrupts connected.
func (d *Driver) DriverOK() {
	if d.vectors != nil {
		d.vectors()
	}

	d.Regs.SetStatus(d.Regs.Status() | virtio.StatusDriverOK)
}

// NeedsReset waits until the device says DEVICE_NEEDS_RESET.
func (d *Driver) NeedsReset() {
	d.tb.Helper()
	d.until("the device needs a reset", func() bool { return d.Regs.Status()&virtio.StatusNeedsReset != 0 })
}

// until waits for a condition that other goroutines bring about.
func (d *Driver) until(what string, f func() bool) {
	d.tb.Helper()
	if !poll(f) {
		d.tb.Fatalf("virtiotest: waited %v until %s", Patience, what)
	}
}

// poll looks for a condition until it holds or patience ends. What it waits for
// need not raise an interrupt, so there is nothing to block on.
func poll(f func() bool) bool {
	end := time.Now().Add(Patience)
	for wait := time.Microsecond; !f(); wait = min(2*wait, time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(wait)
	}
	return true
}
