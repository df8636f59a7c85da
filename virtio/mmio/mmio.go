// Package mmio is the virtio transport over memory-mapped registers, version 2
// (VIRTIO 1.2, section 4.2): one page of 32-bit registers, the configuration
// space behind them, and one interrupt line for everything.
//
// It leaves out the legacy interface, shared memory regions and queue reset.
package mmio

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/vole-vmm/vole/virtio"
)

// Size is the size of a register block, in bytes.
const Size = 0x1000

// Registers (section 4.2.2, table 4.1).
const (
	MagicValue        = 0x000
	Version           = 0x004
	DeviceID          = 0x008
	VendorID          = 0x00c
	DeviceFeatures    = 0x010
	DeviceFeaturesSel = 0x014
	DriverFeatures    = 0x020
	DriverFeaturesSel = 0x024
	QueueSel          = 0x030
	QueueNumMax       = 0x034
	QueueNum          = 0x038
	QueueReady        = 0x044
	QueueNotify       = 0x050
	InterruptStatus   = 0x060
	InterruptACK      = 0x064
	DeviceStatus      = 0x070
	QueueDescLow      = 0x080
	QueueDescHigh     = 0x084
	QueueDriverLow    = 0x090
	QueueDriverHigh   = 0x094
	QueueDeviceLow    = 0x0a0
	QueueDeviceHigh   = 0x0a4
	SHMSel            = 0x0ac
	SHMLenLow         = 0x0b0
	SHMBaseHigh       = 0x0bc
	ConfigGeneration  = 0x0fc
	Config            = 0x100
)

const (
	magic   = 0x74726976 // "virt"
	version = 2
	// vendor is what Linux shows as the vendor; it has no registry.
	vendor = 0x454c4f56 // "VOLE"
)

// Bits of InterruptStatus.
const (
	InterruptQueue  = 1 // used buffer notification
	InterruptConfig = 2 // configuration change notification
)

// Line is the device's interrupt: each Pulse is one edge. It may be called from
// any goroutine.
type Line interface{ Pulse() }

// Device is a virtio device on this transport. It is a handler for the bus: its
// Read and Write are called on vCPU threads, several at a time.
type Device struct {
	f    *virtio.Function
	line Line
	// What follows is the transport's state. The selectors belong to the driver,
	// which accesses them from one CPU at a time; atomics keep a driver that
	// does otherwise from harming anybody.
	deviceSel, driverSel, queueSel atomic.Uint32
	interrupts                     atomic.Uint32 // InterruptStatus
}

// State is the transport's registers.
type State struct {
	DeviceFeaturesSel, DriverFeaturesSel, QueueSel, InterruptStatus uint32
	Function                                                        virtio.State
}

// New puts the device of cfg on this transport; Interrupts and OnReset are
// filled in. The caller closes its Function.
func New(cfg virtio.FunctionConfig, line Line) (*Device, error) {
	d := &Device{line: line}
	cfg.Interrupts, cfg.OnReset = d, d.onReset
	f, err := virtio.NewFunction(cfg)
	if err != nil {
		return nil, err
	}
	d.f = f
	return d, nil
}

// Function is the half that the transports share.
func (d *Device) Function() *virtio.Function { return d.f }

// Queue implements virtio.Interrupts.
func (d *Device) Queue(int) { d.interrupt(InterruptQueue) }

// Config implements virtio.Interrupts.
func (d *Device) Config() { d.interrupt(InterruptConfig) }

func (d *Device) interrupt(bit uint32) {
	d.interrupts.Or(bit)
	d.line.Pulse()
}

func (d *Device) onReset() {
	d.deviceSel.Store(0)
	d.driverSel.Store(0)
	d.queueSel.Store(0)
	d.interrupts.Store(0)
}

// Read implements the bus's handler. Registers are 32 bits wide and aligned;
// any other access to them reads 0 (rule 7).
func (d *Device) Read(off uint64, p []byte) {
	if off >= Config {
		d.f.ReadConfig(uint32(off-Config), p)
		return
	}
	clear(p)
	if len(p) == 4 && off%4 == 0 {
		binary.LittleEndian.PutUint32(p, d.register(uint32(off)))
	}
}

func (d *Device) register(off uint32) uint32 {
	switch off {
	case MagicValue:
		return magic
	case Version:
		return version
	case DeviceID:
		return uint32(d.f.Type())
	case VendorID:
		return vendor
	case DeviceFeatures:
		if sel := d.deviceSel.Load(); sel <= 1 {
			return uint32(d.f.DeviceFeatures() >> (32 * sel))
		}
	case QueueNumMax:
		return uint32(d.f.QueueMax(d.queueSel.Load()))
	case QueueReady:
		if _, ready := d.f.Queue(d.queueSel.Load()); ready {
			return 1
		}
	case InterruptStatus:
		return d.interrupts.Load()
	case DeviceStatus:
		return uint32(d.f.Status())
	case ConfigGeneration:
		return d.f.ConfigGeneration()
	}
	if off >= SHMLenLow && off <= SHMBaseHigh {
		return 0xffff_ffff // no such region (section 4.2.2.1)
	}
	return 0
}

// Write implements the bus's handler. An access to a register that is not 32
// bits wide and aligned is dropped.
func (d *Device) Write(off uint64, p []byte) {
	if off >= Config {
		d.f.WriteConfig(uint32(off-Config), p)
		return
	}
	if len(p) != 4 || off%4 != 0 {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	sel := d.queueSel.Load()
	switch off {
	case DeviceFeaturesSel:
		d.deviceSel.Store(v)
	case DriverFeatures:
		d.f.SetDriverFeatures(d.driverSel.Load(), v)
	case DriverFeaturesSel:
		d.driverSel.Store(v)
	case QueueSel:
		d.queueSel.Store(v)
	case QueueNum:
		// A size that 16 bits don't hold is no size: 0 is refused later.
		if v > 0xffff {
			v = 0
		}
		d.f.SetQueueSize(sel, uint16(v))
	case QueueReady:
		d.f.SetQueueReady(sel, v&1 != 0)
	case QueueNotify:
		d.f.Notify(v)
	case InterruptACK:
		d.interrupts.And(^v)
	case DeviceStatus:
		// Only 0 resets, not bits that the status does not have.
		if s := uint8(v); s != 0 || v == 0 {
			d.f.SetStatus(s)
		}
	case QueueDescLow, QueueDescHigh:
		d.f.SetQueueArea(sel, virtio.AreaDesc, off == QueueDescHigh, v)
	case QueueDriverLow, QueueDriverHigh:
		d.f.SetQueueArea(sel, virtio.AreaAvail, off == QueueDriverHigh, v)
	case QueueDeviceLow, QueueDeviceHigh:
		d.f.SetQueueArea(sel, virtio.AreaUsed, off == QueueDeviceHigh, v)
	}
}

// State returns the registers. It is of use while the device is paused.
func (d *Device) State() State {
	return State{
		DeviceFeaturesSel: d.deviceSel.Load(), DriverFeaturesSel: d.driverSel.Load(),
		QueueSel: d.queueSel.Load(), InterruptStatus: d.interrupts.Load(),
		Function: d.f.State(),
	}
}
