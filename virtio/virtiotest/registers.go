package virtiotest

import (
	"encoding/binary"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/mmio"
)

// Registers is what a driver does to a device, whatever the transport. Each
// method makes the accesses that a guest's driver makes for it.
type Registers interface {
	// Transport names the transport.
	Transport() string
	Type() virtio.Type
	Status() uint8
	SetStatus(v uint8)
	DeviceFeatures() uint64
	DriverFeatures(v uint64)
	// QueueMax is 0 for a queue that there is not.
	QueueMax(i int) uint16
	QueueSize(i int, n uint16)
	QueueArea(i int, a virtio.Area, gpa uint64)
	QueueReady(i int) bool
	SetQueueReady(i int, ready bool)
	Notify(i int)
	ReadConfig(off int, p []byte)
	WriteConfig(off int, p []byte)
	ConfigGeneration() uint32
	// Acknowledge does what an interrupt handler does first: it reads the
	// interrupt status and clears it.
	Acknowledge() (queue, config bool)
}

// MMIORegisters drives the registers of a device on the mmio transport.
type MMIORegisters struct{ Device *mmio.Device }

var _ Registers = MMIORegisters{}

// Get reads a 32-bit register.
func (r MMIORegisters) Get(off uint64) uint32 {
	var b [4]byte
	r.Device.Read(off, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// Set writes a 32-bit register.
func (r MMIORegisters) Set(off uint64, v uint32) {
	r.Device.Write(off, binary.LittleEndian.AppendUint32(nil, v))
}

// Transport implements Registers.
func (MMIORegisters) Transport() string { return "mmio" }

// Type implements Registers.
func (r MMIORegisters) Type() virtio.Type { return virtio.Type(r.Get(mmio.DeviceID)) }

// Status implements Registers.
func (r MMIORegisters) Status() uint8 { return uint8(r.Get(mmio.DeviceStatus)) }

// SetStatus implements Registers.
func (r MMIORegisters) SetStatus(v uint8) { r.Set(mmio.DeviceStatus, uint32(v)) }

// DeviceFeatures implements Registers.
func (r MMIORegisters) DeviceFeatures() uint64 {
	r.Set(mmio.DeviceFeaturesSel, 1)
	v := uint64(r.Get(mmio.DeviceFeatures)) << 32
	r.Set(mmio.DeviceFeaturesSel, 0)
	return v | uint64(r.Get(mmio.DeviceFeatures))
}

// DriverFeatures implements Registers.
func (r MMIORegisters) DriverFeatures(v uint64) {
	r.Set(mmio.DriverFeaturesSel, 1)
	r.Set(mmio.DriverFeatures, uint32(v>>32))
	r.Set(mmio.DriverFeaturesSel, 0)
	r.Set(mmio.DriverFeatures, uint32(v))
}

func (r MMIORegisters) selectQueue(i int) { r.Set(mmio.QueueSel, uint32(i)) }

// QueueMax implements Registers.
func (r MMIORegisters) QueueMax(i int) uint16 {
	r.selectQueue(i)
	return uint16(r.Get(mmio.QueueNumMax))
}

// QueueSize implements Registers.
func (r MMIORegisters) QueueSize(i int, n uint16) {
	r.selectQueue(i)
	r.Set(mmio.QueueNum, uint32(n))
}

// QueueArea implements Registers.
func (r MMIORegisters) QueueArea(i int, a virtio.Area, gpa uint64) {
	r.selectQueue(i)
	low := [...]uint64{virtio.AreaDesc: mmio.QueueDescLow, virtio.AreaAvail: mmio.QueueDriverLow, virtio.AreaUsed: mmio.QueueDeviceLow}[a]
	r.Set(low, uint32(gpa))
	r.Set(low+4, uint32(gpa>>32))
}

// QueueReady implements Registers.
func (r MMIORegisters) QueueReady(i int) bool {
	r.selectQueue(i)
	return r.Get(mmio.QueueReady) != 0
}

// SetQueueReady implements Registers.
func (r MMIORegisters) SetQueueReady(i int, ready bool) {
	r.selectQueue(i)
	v := uint32(0)
	if ready {
		v = 1
	}
	r.Set(mmio.QueueReady, v)
}

// Notify implements Registers.
func (r MMIORegisters) Notify(i int) { r.Set(mmio.QueueNotify, uint32(i)) }

// ReadConfig implements Registers.
func (r MMIORegisters) ReadConfig(off int, p []byte) { r.Device.Read(mmio.Config+uint64(off), p) }

// WriteConfig implements Registers.
func (r MMIORegisters) WriteConfig(off int, p []byte) { r.Device.Write(mmio.Config+uint64(off), p) }

// ConfigGeneration implements Registers.
func (r MMIORegisters) ConfigGeneration() uint32 { return r.Get(mmio.ConfigGeneration) }

// Acknowledge implements Registers.
func (r MMIORegisters) Acknowledge() (queue, config bool) {
	v := r.Get(mmio.InterruptStatus)
	r.Set(mmio.InterruptACK, v)
	return v&mmio.InterruptQueue != 0, v&mmio.InterruptConfig != 0
}
