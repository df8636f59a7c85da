package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/vole-vmm/vole/boot/acpi"
	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/kvm"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/mmio"
	vpci "github.com/vole-vmm/vole/virtio/pci"
)

// Transport is how the guest reaches the virtio devices.
type Transport int

const (
	// TransportPCI puts them on a PCI bus: distribution kernels have that
	// driver built in more often.
	TransportPCI Transport = iota
	// TransportMMIO gives each a page of registers, which ACPI names to the
	// guest.
	TransportMMIO
	// TransportMMIOCommandLine does so on the kernel's command line, for kernels
	// without ACPI; they need CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES, which
	// distributions leave out.
	TransportMMIOCommandLine
)

var transports = []string{TransportPCI: "pci", TransportMMIO: "mmio", TransportMMIOCommandLine: "mmio-cmdline"}

func (t Transport) String() string {
	if t < 0 || int(t) >= len(transports) {
		return fmt.Sprintf("Transport(%d)", int(t))
	}
	return transports[t]
}

// ParseTransport is the inverse of Transport.String.
func ParseTransport(s string) (Transport, error) {
	for i, name := range transports {
		if s == name {
			return Transport(i), nil
		}
	}
	return 0, fmt.Errorf("transport %q is not one of %s", s, strings.Join(transports, ", "))
}

// MaxDevices is how many virtio devices a machine can have: on PCI the bridge
// takes a number of its own, on MMIO each device needs an interrupt pin, and a
// kernel without ACPI knows the first sixteen.
func (t Transport) MaxDevices() int {
	switch t {
	case TransportMMIO:
		return mmioSlots
	case TransportMMIOCommandLine:
		return len(legacyGSIs)
	}
	return pci.MaxDevices - 1
}

// mmioGSI is the interrupt of an MMIO slot.
func (t Transport) mmioGSI(slot int) uint32 {
	if t == TransportMMIOCommandLine {
		return legacyGSIs[slot]
	}
	return mmioFirstGSI + uint32(slot)
}

// deviceWords are what the kernel's command line begins with, so that the kernel
// finds the devices: before the "--" that it may have.
func (c *Config) deviceWords() string {
	var words strings.Builder
	if c.Transport == TransportMMIOCommandLine {
		for slot := range c.Devices {
			fmt.Fprintf(&words, "virtio_mmio.device=%d@%#x:%d ", mmio.Size, mmioBase(slot), c.Transport.mmioGSI(slot))
		}
	}
	return words.String()
}

// drainPatience bounds the wait for requests in flight when the machine pauses
// or ends: a backend that hangs must not hang the machine.
const drainPatience = 10 * time.Second

// ErrBusy reports that a device had requests in flight for longer than the
// machine waits: its backend hangs.
var ErrBusy = errors.New("vmm: a device does not come to rest")

// plugged is a virtio device in its slot.
type plugged struct {
	f *virtio.Function
	// card is its half in PCI; nil on MMIO.
	card *pci.Function
}

// plugVirtio puts the configured devices onto their transport.
func (m *Machine) plugVirtio() error {
	if len(m.cfg.Devices) == 0 {
		return nil
	}
	if m.cfg.Transport == TransportPCI {
		if err := m.addBridge(); err != nil {
			return err
		}
	}
	for i, dev := range m.cfg.Devices {
		var err error
		if m.cfg.Transport == TransportPCI {
			err = m.plugPCI(dev)
		} else {
			err = m.plugMMIO(i, dev)
		}
		if err != nil {
			return fmt.Errorf("vmm: device %d (%v): %w", i, dev.Type(), err)
		}
	}
	return nil
}

// addBridge makes the PCI host bridge.
func (m *Machine) addBridge() error {
	host, err := pci.NewHost(pci.HostConfig{
		ECAMBase: ecamBase, Buses: pciBuses, Memory: m.mmio,
		Window32: pci.Range{Base: pciWindow32, Size: pciWindow32Size},
		Window64: m.window64,
	})
	if err != nil {
		return fmt.Errorf("vmm: %w", err)
	}
	m.bridge, m.router = host, newMSIRouter(m.vm, m.log)
	m.coalescePCI()
	return errors.Join(
		m.mmio.Add(ecamBase, host.ECAMSize(), "PCI configuration", host.ECAM()),
		m.ports.Add(pciPorts, pciPortsSize, "PCI configuration", host.Ports()),
	)
}

// window64For is where 64-bit BARs are: above all RAM, within the processor's
// physical addresses; empty if there is no room.
func window64For(ramEnd uint64, physBits uint32) pci.Range {
	const align = 1 << 30
	base := (max(ramEnd, 1<<32) + align - 1) &^ (align - 1)
	if base+pciWindow64Size > 1<<physBits {
		return pci.Range{}
	}
	return pci.Range{Base: base, Size: pciWindow64Size}
}

func (m *Machine) function(dev virtio.Device) virtio.FunctionConfig {
	return virtio.FunctionConfig{Device: dev, Memory: m.mem, Logger: m.log}
}

func (m *Machine) plugPCI(dev virtio.Device) error {
	var d *vpci.Device
	d, err := vpci.New(m.function(dev), m.router, func(base uint64, mapped bool) { m.bindBells(d, base, mapped) })
	if err != nil {
		return err
	}
	m.virtio = append(m.virtio, plugged{f: d.Function(), card: d.PCI()})
	_, err = m.bridge.Plug(d.PCI())
	return err
}

// bindBells lets KVM ring the doorbells of a device whose BAR is at base, or
// no longer. Without that the writes come to the device as exits.
func (m *Machine) bindBells(d *vpci.Device, base uint64, mapped bool) {
	for i := range d.Function().NumQueues() {
		e := kvm.IOEventFD{
			Addr: base + vpci.NotifyOffset + uint64(i)*vpci.NotifyStride, Len: m.bellLength, FD: d.Function().Bell(i).FD(),
		}
		m.bind(e, mapped)
	}
}

// bind makes or ends a binding. What KVM refuses costs exits, no more.
func (m *Machine) bind(e kvm.IOEventFD, on bool) {
	do, verb := m.vm.DeassignIOEventFD, "unbind"
	if on {
		do, verb = m.vm.AssignIOEventFD, "bind"
	}
	if err := do(e); err != nil {
		m.log.Debug("KVM does not "+verb+" a doorbell", "address", e.Addr, "error", err)
	}
}

func (m *Machine) plugMMIO(slot int, dev virtio.Device) error {
	line, err := m.line(m.cfg.Transport.mmioGSI(slot))
	if err != nil {
		return err
	}
	d, err := mmio.New(m.function(dev), line)
	if err != nil {
		return err
	}
	m.virtio = append(m.virtio, plugged{f: d.Function()})
	base := mmioBase(slot)
	for i := range d.Function().NumQueues() {
		m.bind(kvm.IOEventFD{
			Addr: base + mmio.QueueNotify, Len: 4, FD: d.Function().Bell(i).FD(),
			Flags: kvm.IOEventFDDatamatch, DataMatch: uint64(i),
		}, true)
	}
	return m.mmio.Add(base, mmio.Size, fmt.Sprintf("virtio-mmio slot %d", slot), d)
}

// describeVirtio adds the transport to the ACPI tables.
func (m *Machine) describeVirtio(d *acpi.Machine) {
	if m.bridge != nil {
		d.PCI = &acpi.PCI{
			ECAMBase: ecamBase, Buses: pciBuses,
			Window32: acpi.Window{Base: pciWindow32, Size: pciWindow32Size},
			Window64: acpi.Window{Base: m.window64.Base, Size: m.window64.Size},
		}
		return
	}
	if m.cfg.Transport == TransportMMIOCommandLine {
		return
	}
	for slot := range m.virtio {
		d.VirtioMMIO = append(d.VirtioMMIO, acpi.MMIO{Base: mmioBase(slot), Size: mmio.Size, GSI: m.cfg.Transport.mmioGSI(slot)})
	}
}

// pauseDevices stops the devices from taking requests and waits for those in
// flight. ctx ends the wait early.
func (m *Machine) pauseDevices(ctx context.Context) error {
	return m.each(ctx, func(ctx context.Context, p plugged) error { return p.f.Pause(ctx) })
}

// each calls do for all devices at the same time, so that one that hangs costs the
// others nothing, and waits for all, at most for the machine's patience.
func (m *Machine) each(ctx context.Context, do func(context.Context, plugged) error) error {
	ctx, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	errs := make([]error, len(m.virtio))
	var all sync.WaitGroup
	for i, p := range m.virtio {
		all.Go(func() { errs[i] = do(ctx, p) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return nil
}

func (m *Machine) resumeDevices() {
	for _, p := range m.virtio {
		p.f.Resume()
	}
}

// restDevices ends what the devices do, for good. An error means that one of
// them may still write to guest memory, which then must not be unmapped.
func (m *Machine) restDevices() error {
	return m.each(context.Background(), func(ctx context.Context, p plugged) error { return p.f.Close(ctx) })
}

// closeCards gives back the interrupts of the devices, after restDevices.
func (m *Machine) closeCards() error {
	var errs []error
	for _, p := range m.virtio {
		if p.card != nil {
			errs = append(errs, p.card.Close())
		}
	}
	return errors.Join(errs...)
}

// closeDevices closes the devices, once.
func (m *Machine) closeDevices() error {
	m.mu.Lock()
	list := m.cfg.Devices
	m.cfg.Devices = nil
	m.mu.Unlock()
	return closeAll(list)
}

// closeAll closes the devices that can be closed.
func closeAll(devices []virtio.Device) error {
	var errs []error
	for _, d := range devices {
		if c, ok := d.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
