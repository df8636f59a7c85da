package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/virtio"
)

// BARIndex is the BAR in which a device has all of its registers.
const BARIndex = 0

// What is where in the BAR. Each part that a driver maps has pages of its own.
const (
	CommonOffset = 0x0000
	ISROffset    = 0x1000
	DeviceOffset = 0x2000 // the configuration space of the type
	NotifyOffset = 0x3000
	tableOffset  = 0x4000
	pbaOffset    = 0x6000
	barSize      = 0x8000

	partSize = 0x1000
	// NotifyStride is how far the notification addresses of two queues are
	// apart (notify_off_multiplier), in bytes.
	NotifyStride = 4
	isrSize      = 1
)

// maxQueues is bounded by the page of notification addresses and by the table
// of vectors, of which there is one more.
const maxQueues = (pbaOffset-tableOffset)/16 - 1

// Configuration structure types (section 4.1.4).
const (
	CapCommon = 1
	CapNotify = 2
	CapISR    = 3
	CapDevice = 4
	CapPCI    = 5
)

const (
	vendor      = 0x1af4
	deviceBase  = 0x1040 // plus the type
	subsystem   = 0x40   // section 4.1.2.1: at least that, plus the type
	revision    = 1
	capVendor   = 0x09 // PCI_CAP_ID_VNDR
	capHeader   = 2    // the id and the link, which no body has
	noVector    = 0xffff
	isrQueue    = 1
	isrConfig   = 2
	accessBytes = 4 // the widest access by way of VIRTIO_PCI_CAP_PCI_CFG
)

// classes are what lspci shows; drivers look at the device ID.
var classes = map[virtio.Type]uint32{
	virtio.TypeNet: 0x020000, virtio.TypeBlock: 0x010000, virtio.TypeConsole: 0x078000,
	virtio.TypeVsock: 0x028000, virtio.TypeFS: 0x018000,
}

const otherClass = 0x00ff00

// Device is a virtio device on this transport.
type Device struct {
	f    *virtio.Function
	fn   *pci.Function
	msix *pci.MSIX

	// What follows is the transport's state. The selectors belong to the driver,
	// which accesses them from one CPU at a time; atomics keep a driver that
	// does otherwise from harming anybody.
	deviceSel, driverSel, queueSel atomic.Uint32
	configVector                   atomic.Uint32
	vectors                        []atomic.Uint32 // by queue
	isr                            atomic.Uint32
	generation                     generation
}

// State is the transport's registers. Those of PCI are with the host bridge.
type State struct {
	DeviceFeaturesSel, DriverFeaturesSel uint32
	QueueSel                             uint16
	ConfigVector                         uint16
	Vectors                              []uint16
	ISR                                  uint8
	ConfigGeneration                     uint8 // as the driver last read it
	Function                             virtio.State
}

// New puts the device of cfg on this transport; Interrupts and OnReset are
// filled in. vectors makes the interrupts, one for each queue and one for the
// configuration. onMap, if not nil, hears where the BAR is: see
// [pci.Function.OnMap]. The caller plugs PCI into a host bridge, and closes
// Function and then PCI.
func New(cfg virtio.FunctionConfig, vectors pci.VectorSource, onMap func(base uint64, mapped bool)) (*Device, error) {
	d := &Device{}
	cfg.Interrupts, cfg.OnReset = d, d.onReset
	f, err := virtio.NewFunction(cfg)
	if err != nil {
		return nil, err
	}
	d.f = f
	d.vectors = make([]atomic.Uint32, f.NumQueues())
	if err := d.describe(vectors, onMap); err != nil {
		return nil, errors.Join(fmt.Errorf("virtio: %v on PCI: %w", f.Type(), err), f.Discard())
	}
	d.onReset()
	return d, nil
}

// describe makes the PCI function: header, BAR, capabilities, vectors.
func (d *Device) describe(vectors pci.VectorSource, onMap func(uint64, bool)) error {
	if n := d.f.NumQueues(); n > maxQueues {
		return fmt.Errorf("%d queues: at most %d have room", n, maxQueues)
	}
	t := d.f.Type()
	class, ok := classes[t]
	if !ok {
		class = otherClass
	}
	d.fn = pci.NewFunction(pci.ID{
		Vendor: vendor, Device: deviceBase + uint16(t), Revision: revision, Class: class,
		SubVendor: vendor, SubDevice: subsystem + uint16(t),
	})
	if onMap != nil {
		d.fn.OnMap = func(_ int, base uint64, mapped bool) { onMap(base, mapped) }
	}
	if err := d.fn.AddBAR(BARIndex, pci.BAR{Size: barSize, Wide: true, Name: "virtio " + t.String(), Handler: d}); err != nil {
		return err
	}
	notify := binary.LittleEndian.AppendUint32(nil, NotifyStride)
	for _, c := range []struct {
		kind         uint8
		offset, size uint32
		more         []byte
	}{
		{CapCommon, CommonOffset, commonSize, nil},
		{CapNotify, NotifyOffset, partSize, notify},
		{CapISR, ISROffset, isrSize, nil},
		{CapDevice, DeviceOffset, partSize, nil},
	} {
		if _, err := d.fn.AddCapability(capVendor, capBody(c.kind, c.offset, c.size, c.more), nil); err != nil {
			return err
		}
	}
	if err := d.addAccess(); err != nil {
		return err
	}
	msix, err := d.fn.AddMSIX(d.f.NumQueues()+1, BARIndex, tableOffset, pbaOffset, vectors)
	d.msix = msix
	return err
}

// capBody is struct virtio_pci_cap (section 4.1.4) behind its first two bytes.
func capBody(kind uint8, offset, size uint32, more []byte) []byte {
	b := []byte{uint8(capHeader + 14 + len(more)), kind, BARIndex, 0, 0, 0}
	b = binary.LittleEndian.AppendUint32(b, offset)
	b = binary.LittleEndian.AppendUint32(b, size)
	return append(b, more...)
}

// Function is the half that the transports share.
func (d *Device) Function() *virtio.Function { return d.f }

// PCI is the function to plug into a host bridge.
func (d *Device) PCI() *pci.Function { return d.fn }

// Queue implements virtio.Interrupts.
func (d *Device) Queue(i int) {
	d.isr.Or(isrQueue)
	d.msix.Trigger(uint16(d.vectors[i].Load()))
}

// Config implements virtio.Interrupts.
func (d *Device) Config() {
	d.isr.Or(isrConfig)
	d.msix.Trigger(uint16(d.configVector.Load()))
}

// onReset clears what the driver has set. The MSI-X table is PCI's and stays;
// what waits in it from before does not.
func (d *Device) onReset() {
	d.deviceSel.Store(0)
	d.driverSel.Store(0)
	d.queueSel.Store(0)
	d.configVector.Store(noVector)
	for i := range d.vectors {
		d.vectors[i].Store(noVector)
	}
	d.isr.Store(0)
	d.msix.ClearPending()
}

// Read implements the BAR's handler.
func (d *Device) Read(off uint64, p []byte) {
	clear(p)
	switch in := off % partSize; off - in {
	case CommonOffset:
		d.readCommon(in, p)
	case ISROffset:
		if in == 0 {
			p[0] = uint8(d.isr.Swap(0)) // reading clears it
		}
	case DeviceOffset:
		d.f.ReadConfig(uint32(in), p)
	}
}

// Write implements the BAR's handler.
func (d *Device) Write(off uint64, p []byte) {
	switch in := off % partSize; off - in {
	case CommonOffset:
		d.writeCommon(in, p)
	case DeviceOffset:
		d.f.WriteConfig(uint32(in), p)
	case NotifyOffset:
		// What is written does not matter: the address names the queue.
		if in%NotifyStride == 0 {
			d.f.Notify(uint32(in / NotifyStride))
		}
	}
}

// State returns the registers. It is of use while the device is paused.
func (d *Device) State() State {
	s := State{
		DeviceFeaturesSel: d.deviceSel.Load(), DriverFeaturesSel: d.driverSel.Load(),
		QueueSel: uint16(d.queueSel.Load()), ConfigVector: uint16(d.configVector.Load()),
		ISR: uint8(d.isr.Load()), Function: d.f.State(),
	}
	d.generation.mu.Lock()
	s.ConfigGeneration = d.generation.shown
	d.generation.mu.Unlock()
	for i := range d.vectors {
		s.Vectors = append(s.Vectors, uint16(d.vectors[i].Load()))
	}
	return s
}
