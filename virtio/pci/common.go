package pci

import (
	"encoding/binary"
	"sync"

	"github.com/vole-vmm/vole/virtio"
)

// Fields of struct virtio_pci_common_cfg (section 4.1.4.3).
const (
	DeviceFeatureSelect = 0x00 // 32 bits, as the next three
	DeviceFeature       = 0x04
	DriverFeatureSelect = 0x08
	DriverFeature       = 0x0c
	ConfigMSIXVector    = 0x10 // 16 bits, as the next
	NumQueues           = 0x12
	DeviceStatus        = 0x14 // 8 bits, as the next
	ConfigGeneration    = 0x15
	QueueSelect         = 0x16 // 16 bits, as the next five
	QueueSize           = 0x18
	QueueMSIXVector     = 0x1a
	QueueEnable         = 0x1c
	QueueNotifyOff      = 0x1e
	QueueDesc           = 0x20 // 64 bits, in two accesses, as the next two
	QueueDriver         = 0x28
	QueueDevice         = 0x30
	commonSize          = 0x38
)

// width is the size of the field at an offset, 0 if none begins there. A 64-bit
// field is two of 32 bits: a driver accesses it so (section 4.1.3.1).
func width(off uint64) int {
	switch {
	case off%4 == 0 && (off < ConfigMSIXVector || off >= QueueDesc && off < commonSize):
		return 4
	case off == DeviceStatus || off == ConfigGeneration:
		return 1
	case off%2 == 0 && off >= ConfigMSIXVector && off < QueueDesc:
		return 2
	}
	return 0
}

// readCommon reads a field by its own width. Any other access reads 0; p is
// clear.
func (d *Device) readCommon(off uint64, p []byte) {
	if len(p) != width(off) {
		return
	}
	v := d.common(off)
	switch len(p) {
	case 1:
		p[0] = uint8(v)
	case 2:
		binary.LittleEndian.PutUint16(p, uint16(v))
	case 4:
		binary.LittleEndian.PutUint32(p, v)
	}
}

func (d *Device) common(off uint64) uint32 {
	sel := d.queueSel.Load()
	switch off {
	case DeviceFeatureSelect:
		return d.deviceSel.Load()
	case DeviceFeature:
		if s := d.deviceSel.Load(); s <= 1 {
			return uint32(d.f.DeviceFeatures() >> (32 * s))
		}
	case DriverFeatureSelect:
		return d.driverSel.Load()
	case DriverFeature:
		if s := d.driverSel.Load(); s <= 1 {
			return uint32(d.f.DriverFeatures() >> (32 * s))
		}
	case ConfigMSIXVector:
		return d.configVector.Load()
	case NumQueues:
		return uint32(d.f.NumQueues())
	case DeviceStatus:
		return uint32(d.f.Status())
	case ConfigGeneration:
		return uint32(d.generation.show(d.f.ConfigGeneration()))
	case QueueSelect:
		return sel
	case QueueMSIXVector:
		if sel < uint32(len(d.vectors)) {
			return d.vectors[sel].Load()
		}
		return noVector
	}
	if off < QueueSize || sel >= uint32(len(d.vectors)) {
		return 0 // also the size of a queue that there is not (rule 8)
	}
	q, ready := d.f.Queue(sel)
	switch off {
	case QueueSize:
		if q.Size&(q.Size-1) != 0 {
			return 0 // it is to be a power of two or nothing
		}
		return uint32(q.Size)
	case QueueEnable:
		if ready {
			return 1
		}
		return 0
	case QueueNotifyOff:
		return sel
	}
	v := [...]uint64{q.Desc, q.Avail, q.Used}[(off-QueueDesc)/8]
	return uint32(v >> (8 * (off & 4)))
}

// writeCommon writes a field by its own width. Any other access is dropped.
func (d *Device) writeCommon(off uint64, p []byte) {
	if len(p) != width(off) {
		return
	}
	var v uint32
	switch len(p) {
	case 1:
		v = uint32(p[0])
	case 2:
		v = uint32(binary.LittleEndian.Uint16(p))
	case 4:
		v = binary.LittleEndian.Uint32(p)
	}
	sel := d.queueSel.Load()
	switch off {
	case DeviceFeatureSelect:
		d.deviceSel.Store(v)
	case DriverFeatureSelect:
		d.driverSel.Store(v)
	case DriverFeature:
		d.f.SetDriverFeatures(d.driverSel.Load(), v)
	case ConfigMSIXVector:
		d.configVector.Store(d.vector(v))
	case DeviceStatus:
		d.f.SetStatus(uint8(v))
	case QueueSelect:
		d.queueSel.Store(v)
	case QueueSize:
		d.f.SetQueueSize(sel, uint16(v))
	case QueueMSIXVector:
		if sel < uint32(len(d.vectors)) {
			d.vectors[sel].Store(d.vector(v))
		}
	case QueueEnable:
		// Only 1 has a meaning: a queue is disabled by a reset.
		if v == 1 {
			d.f.SetQueueReady(sel, true)
		}
	}
	if off >= QueueDesc {
		area := [...]virtio.Area{virtio.AreaDesc, virtio.AreaAvail, virtio.AreaUsed}[(off-QueueDesc)/8]
		d.f.SetQueueArea(sel, area, off&4 != 0, v)
	}
}

// vector is what a vector register holds after a write of v: NO_VECTOR tells the
// driver that there is no such vector (section 4.1.5.1.2).
func (d *Device) vector(v uint32) uint32 {
	if v >= uint32(d.msix.Len()) {
		return noVector
	}
	return v
}

// generation is config_generation. Its byte counts the reads that found a change
// since the one before, not the changes, so that 256 of those don't look like
// none (section 4.1.4.3.1).
type generation struct {
	mu    sync.Mutex
	seen  uint32 // the device's
	shown uint8
}

// show returns the byte for the device's generation now.
func (g *generation) show(now uint32) uint8 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now != g.seen {
		g.seen = now
		g.shown++
	}
	return g.shown
}
