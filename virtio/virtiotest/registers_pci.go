package virtiotest

import (
	"encoding/binary"
	"sync"
	"testing"

	"github.com/vole-vmm/vole/devices"
	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/virtio"
	vpci "github.com/vole-vmm/vole/virtio/pci"
)

// Where the host bridge of a test is.
const (
	ECAMBase   = 0xe000_0000
	window32   = 0xd000_0000
	window64   = 0x40_0000_0000
	windowSize = 0x1000_0000
)

// PCIRegisters drives a device on the PCI transport: configuration space by
// ECAM, the rest where its BAR is.
type PCIRegisters struct {
	Device *vpci.Device
	Host   *pci.Host
	Memory *devices.Bus // with the BAR, once memory decoding is on
	Slot   int
	// Vectors are the interrupts: the configuration's first, then the queues'.
	// The driver gives each its own.
	Vectors []*Vector
	base    uint64
}

var _ Registers = (*PCIRegisters)(nil)

// Vector is an MSI-X vector that counts what reaches the guest.
type Vector struct {
	*Counter
	mu      sync.Mutex
	masked  bool
	pending bool
	address uint64
	data    uint32
}

var _ pci.Vector = (*Vector)(nil)

// Program implements pci.Vector.
func (v *Vector) Program(addr uint64, data uint32) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.address, v.data = addr, data
	return nil
}

// Message is what the vector was last programmed with.
func (v *Vector) Message() (addr uint64, data uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.address, v.data
}

// Mask implements pci.Vector.
func (v *Vector) Mask(masked bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.masked = masked; !masked && v.pending {
		v.pending = false
		v.Pulse()
	}
	return nil
}

// Trigger implements pci.Vector.
func (v *Vector) Trigger() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.masked {
		v.pending = true
		return
	}
	v.Pulse()
}

// Pending implements pci.Vector.
func (v *Vector) Pending() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.pending
}

// Clear implements pci.Vector.
func (v *Vector) Clear() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pending = false
}

// Close implements pci.Vector.
func (*Vector) Close() error { return nil }

// vectorSource implements pci.VectorSource.
type vectorSource struct{ made []*Vector }

func (s *vectorSource) NewVector() (pci.Vector, error) {
	v := &Vector{Counter: NewCounter(), masked: true}
	s.made = append(s.made, v)
	return v, nil
}

// OpenPCI puts dev on the PCI transport, behind a host bridge of its own, with
// memory decoding and MSI-X on: what a guest's PCI core does before the driver.
func OpenPCI(tb testing.TB, dev virtio.Device) *Driver {
	tb.Helper()
	d := newDriver(tb)
	var src vectorSource
	card, err := vpci.New(d.config(dev), &src, nil)
	if err != nil {
		tb.Fatal(err)
	}
	bus := devices.NewBus("memory")
	host, err := pci.NewHost(pci.HostConfig{
		ECAMBase: ECAMBase, Buses: 1, Memory: bus,
		Window32: pci.Range{Base: window32, Size: windowSize}, Window64: pci.Range{Base: window64, Size: windowSize},
	})
	if err != nil {
		tb.Fatal(err)
	}
	slot, err := host.Plug(card.PCI())
	if err != nil {
		tb.Fatal(err)
	}
	r := &PCIRegisters{Device: card, Host: host, Memory: bus, Slot: slot, Vectors: src.made}
	r.enable(tb)
	d.Regs, d.Function = r, card.Function()
	d.ConfigIRQ = src.made[0].Counter
	if len(src.made) > 1 {
		d.QueueIRQ = src.made[1].Counter
	}
	d.vectors = func() { r.assign() }
	tb.Cleanup(func() {
		d.close()
		if err := host.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

const (
	pciCommand      = 0x04
	pciBAR0         = 0x10
	pciCapabilities = 0x34
	pciMSIX         = 0x11
)

// enable turns on memory decoding, bus mastering and MSI-X, with every vector
// unmasked.
func (r *PCIRegisters) enable(tb testing.TB) {
	tb.Helper()
	r.SetConfig(pciCommand, 2, 1<<1|1<<2)
	r.base = uint64(r.Config(pciBAR0, 4)&^0xf) | uint64(r.Config(pciBAR0+4, 4))<<32
	cap := r.Capability(func(id, _ uint8) bool { return id == pciMSIX })
	if cap == 0 {
		tb.Fatal("virtiotest: no MSI-X capability")
	}
	table := uint64(r.Config(cap+4, 4) &^ 7)
	for i := range r.Vectors {
		at := table + 16*uint64(i)
		r.Set(at, 4, 0xfee0_0000)
		r.Set(at+8, 4, uint32(0x40+i))
		r.Set(at+12, 4, 0)
	}
	r.SetConfig(cap+2, 2, 1<<15)
}

// assign gives the configuration vector 0 and each queue the one behind its
// number.
func (r *PCIRegisters) assign() {
	r.Set(vpci.ConfigMSIXVector, 2, 0)
	for i := range r.Device.Function().NumQueues() {
		r.selectQueue(i)
		r.Set(vpci.QueueMSIXVector, 2, uint32(i+1))
	}
}

// Config reads n bytes of configuration space.
func (r *PCIRegisters) Config(off uint64, n int) uint32 {
	var b [4]byte
	r.Host.ECAM().Read(uint64(r.Slot)<<15|off, b[:n])
	return binary.LittleEndian.Uint32(b[:])
}

// SetConfig writes n bytes of configuration space.
func (r *PCIRegisters) SetConfig(off uint64, n int, v uint32) {
	r.Host.ECAM().Write(uint64(r.Slot)<<15|off, binary.LittleEndian.AppendUint32(nil, v)[:n])
}

// Capability finds the first capability that match wants, given its id and, for
// a virtio one, its cfg_type; 0 is none.
func (r *PCIRegisters) Capability(match func(id, kind uint8) bool) uint64 {
	for at := uint64(r.Config(pciCapabilities, 1)); at != 0; at = uint64(r.Config(at+1, 1)) {
		if match(uint8(r.Config(at, 1)), uint8(r.Config(at+3, 1))) {
			return at
		}
	}
	return 0
}

// Get reads n bytes of the BAR.
func (r *PCIRegisters) Get(off uint64, n int) uint32 {
	var b [4]byte
	r.Memory.Read(r.base+off, b[:n])
	return binary.LittleEndian.Uint32(b[:])
}

// Set writes n bytes of the BAR.
func (r *PCIRegisters) Set(off uint64, n int, v uint32) {
	r.Memory.Write(r.base+off, binary.LittleEndian.AppendUint32(nil, v)[:n])
}

// Transport implements Registers.
func (*PCIRegisters) Transport() string { return "pci" }

// Type implements Registers.
func (r *PCIRegisters) Type() virtio.Type { return virtio.Type(r.Config(2, 2) - 0x1040) }

// Status implements Registers.
func (r *PCIRegisters) Status() uint8 { return uint8(r.Get(vpci.DeviceStatus, 1)) }

// SetStatus implements Registers.
func (r *PCIRegisters) SetStatus(v uint8) { r.Set(vpci.DeviceStatus, 1, uint32(v)) }

// DeviceFeatures implements Registers.
func (r *PCIRegisters) DeviceFeatures() uint64 {
	r.Set(vpci.DeviceFeatureSelect, 4, 1)
	v := uint64(r.Get(vpci.DeviceFeature, 4)) << 32
	r.Set(vpci.DeviceFeatureSelect, 4, 0)
	return v | uint64(r.Get(vpci.DeviceFeature, 4))
}

// DriverFeatures implements Registers.
func (r *PCIRegisters) DriverFeatures(v uint64) {
	for i := range uint32(2) {
		r.Set(vpci.DriverFeatureSelect, 4, i)
		r.Set(vpci.DriverFeature, 4, uint32(v>>(32*i)))
	}
}

func (r *PCIRegisters) selectQueue(i int) { r.Set(vpci.QueueSelect, 2, uint32(i)) }

// QueueMax implements Registers: before a driver has written it, the size is the
// largest.
func (r *PCIRegisters) QueueMax(i int) uint16 {
	r.selectQueue(i)
	return uint16(r.Get(vpci.QueueSize, 2))
}

// QueueSize implements Registers.
func (r *PCIRegisters) QueueSize(i int, n uint16) {
	r.selectQueue(i)
	r.Set(vpci.QueueSize, 2, uint32(n))
}

// QueueArea implements Registers.
func (r *PCIRegisters) QueueArea(i int, a virtio.Area, gpa uint64) {
	r.selectQueue(i)
	low := [...]uint64{virtio.AreaDesc: vpci.QueueDesc, virtio.AreaAvail: vpci.QueueDriver, virtio.AreaUsed: vpci.QueueDevice}[a]
	r.Set(low, 4, uint32(gpa))
	r.Set(low+4, 4, uint32(gpa>>32))
}

// QueueReady implements Registers.
func (r *PCIRegisters) QueueReady(i int) bool {
	r.selectQueue(i)
	return r.Get(vpci.QueueEnable, 2) != 0
}

// SetQueueReady implements Registers. This transport can't disable a queue, so
// that false changes nothing.
func (r *PCIRegisters) SetQueueReady(i int, ready bool) {
	r.selectQueue(i)
	v := uint32(0)
	if ready {
		v = 1
	}
	r.Set(vpci.QueueEnable, 2, v)
}

// Notify implements Registers: the address is that of the queue's
// queue_notify_off.
func (r *PCIRegisters) Notify(i int) {
	r.selectQueue(i)
	off := uint64(r.Get(vpci.QueueNotifyOff, 2))
	r.Set(vpci.NotifyOffset+off*vpci.NotifyStride, 2, uint32(i))
}

// ReadConfig implements Registers.
func (r *PCIRegisters) ReadConfig(off int, p []byte) {
	r.Memory.Read(r.base+vpci.DeviceOffset+uint64(off), p)
}

// WriteConfig implements Registers.
func (r *PCIRegisters) WriteConfig(off int, p []byte) {
	r.Memory.Write(r.base+vpci.DeviceOffset+uint64(off), p)
}

// ConfigGeneration implements Registers.
func (r *PCIRegisters) ConfigGeneration() uint32 { return r.Get(vpci.ConfigGeneration, 1) }

// Acknowledge implements Registers.
func (r *PCIRegisters) Acknowledge() (queue, config bool) {
	v := r.Get(vpci.ISROffset, 1)
	return v&1 != 0, v&2 != 0
}
