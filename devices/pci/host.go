package pci

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vole-vmm/vole/devices"
)

// MaxDevices is the number of device numbers on the bus; the bridge itself has number 0.
const MaxDevices = 32

const (
	busSize      = 1 << 20 // bytes of ECAM for each bus
	deviceShift  = 15
	functionMask = 7 << 12
	maxBuses     = 256
	fourGiB      = 1 << 32
)

// bridgeID is that of the generic PCI Express host bridge in Red Hat's list of assigned IDs. No driver binds to it.
var bridgeID = ID{Vendor: 0x1b36, Device: 0x0008, Class: 0x060000, SubVendor: 0x1af4, SubDevice: 0x1100}

// Bus is where mapped BARs go. [devices.Bus] is one. Add must refuse a range that touches another one.
type Bus interface {
	Add(base, size uint64, name string, h devices.Handler) error
	Remove(base uint64) bool
}

// Range is Size bytes of guest-physical addresses from Base on.
type Range struct {
	Base, Size uint64
}

// holds reports whether [base, base+size) lies wholly inside r. size is not 0.
func (r Range) holds(base, size uint64) bool {
	return base >= r.Base && size <= r.Size && base-r.Base <= r.Size-size
}

func (r Range) overlaps(o Range) bool {
	return r.Size != 0 && o.Size != 0 && r.Base <= o.Base+(o.Size-1) && o.Base <= r.Base+(r.Size-1)
}

// HostConfig is where the bridge stands in the machine. It must agree with what ACPI tells the guest.
type HostConfig struct {
	ECAMBase uint64 // a multiple of 1 MiB; the owner puts [Host.ECAM] there
	Buses    int    // 1 to 256 bus numbers that ECAM covers; devices are on bus 0
	// Window32 and Window64 are where BARs may be: both are free of RAM. Window32 ends at 4 GiB or below; Window64 may be
	// empty.
	Window32, Window64 Range
	Memory             Bus
}

// Host is a host bridge and its root bus. Its methods, and those of the handlers that it hands out, may be called from
// any goroutine.
type Host struct {
	cfg     HostConfig
	slots   [MaxDevices]atomic.Pointer[Function]
	address atomic.Uint32 // of configuration mechanism 1

	mu     sync.Mutex
	plug   int    // the next device number
	next32 uint64 // the first address of each window that no BAR was given, relative to its base
	next64 uint64
}

// NewHost returns a bridge with nothing behind it.
func NewHost(cfg HostConfig) (*Host, error) {
	ecam := Range{cfg.ECAMBase, uint64(cfg.Buses) * busSize}
	switch {
	case cfg.Memory == nil:
		return nil, invalid("a host bridge without a memory bus")
	case cfg.Buses < 1 || cfg.Buses > maxBuses:
		return nil, invalid("%d buses: 1 to %d are possible", cfg.Buses, maxBuses)
	case cfg.ECAMBase%busSize != 0 || cfg.ECAMBase+ecam.Size < cfg.ECAMBase:
		return nil, invalid("ECAM for %d buses at %#x: a multiple of %#x is wanted", cfg.Buses, cfg.ECAMBase, busSize)
	case cfg.Window32.Size > fourGiB || cfg.Window32.Base > fourGiB-cfg.Window32.Size:
		return nil, invalid("the 32-bit window, %#x bytes at %#x, ends above 4 GiB", cfg.Window32.Size, cfg.Window32.Base)
	case cfg.Window64.Base+cfg.Window64.Size < cfg.Window64.Base:
		return nil, invalid("the 64-bit window, %#x bytes at %#x, wraps around", cfg.Window64.Size, cfg.Window64.Base)
	case cfg.Window32.holds(0, 1) || cfg.Window64.holds(0, 1):
		return nil, invalid("a window holds address 0, which is where an unassigned BAR is")
	case cfg.Window32.overlaps(cfg.Window64) || ecam.overlaps(cfg.Window32) || ecam.overlaps(cfg.Window64):
		return nil, invalid("ECAM and the windows overlap")
	}
	h := &Host{cfg: cfg}
	if _, err := h.Plug(NewFunction(bridgeID)); err != nil {
		return nil, err
	}
	return h, nil
}

// Plug gives f the next device number and its BARs addresses: wide ones in the 64-bit window while that has room, the
// others in the 32-bit one, each at a multiple of its size. Memory decoding is off, as after a reset. The error is
// [ErrNoSpace] when numbers or addresses have run out, [ErrPlugged] when f is on a bus; f is then as before.
func (h *Host) Plug(f *Function) (device int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := f.building("plug"); err != nil {
		return 0, err
	}
	if h.plug == MaxDevices {
		return 0, fmt.Errorf("pci: plug: %d device numbers are taken: %w", MaxDevices, ErrNoSpace)
	}
	next32, next64 := h.next32, h.next64
	var at [numBARs]uint64
	for i, b := range f.bars {
		if b == nil {
			continue
		}
		var ok bool
		if b.Wide {
			at[i], ok = take(h.cfg.Window64, &next64, b.Size)
		}
		if !ok {
			at[i], ok = take(h.cfg.Window32, &next32, b.Size)
		}
		if !ok {
			return 0, fmt.Errorf("pci: plug: BAR %d of %#x bytes does not fit into the windows: %w", i, b.Size, ErrNoSpace)
		}
	}
	h.next32, h.next64 = next32, next64
	device = h.plug
	h.plug++
	for i, b := range f.bars {
		if b != nil {
			f.place(b, at[i])
			b.Name = fmt.Sprintf("PCI 00:%02x.0 BAR %d %s", device, i, b.Name)
		}
	}
	f.initial = f.regs
	f.mu, f.host = &h.mu, h
	h.slots[device].Store(f)
	return device, nil
}

// take returns the next multiple of size in w and moves next behind it.
func take(w Range, next *uint64, size uint64) (base uint64, ok bool) {
	base = (w.Base + *next + size - 1) &^ (size - 1)
	if base < w.Base || !w.holds(base, size) {
		return 0, false
	}
	*next = base - w.Base + size
	return base, true
}

// functions calls do for everything on the bus, in order. The caller holds the lock.
func (h *Host) functions(do func(*Function)) {
	for i := range h.plug {
		do(h.slots[i].Load())
	}
}

// Reset puts the bus back to how it was when everything had just been plugged: decoding off, BARs at their first
// addresses, capabilities and MSI-X as new.
func (h *Host) Reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.address.Store(0)
	h.functions(func(f *Function) {
		f.regs = f.initial
		f.unmap(nil)
	})
	h.functions(func(f *Function) {
		if f.msix != nil {
			f.msix.Reset()
		}
	})
}

// Close takes every BAR off the memory bus and closes every function. The vCPUs and the goroutines of the devices must
// have ended. The errors of all functions are joined.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	h.functions(func(f *Function) {
		f.regs[regCommand] &^= commandMemory
		f.unmap(nil)
		errs = append(errs, f.Close())
	})
	return errors.Join(errs...)
}

// decodes reports whether the bridge passes all of [base, base+size) down.
func (h *Host) decodes(base, size uint64) bool {
	return h.cfg.Window32.holds(base, size) || h.cfg.Window64.holds(base, size)
}

// remap brings the memory bus in line with the registers of f. Where a BAR of f was, one that had been refused may now
// fit, of whatever function. The caller holds the lock.
func (h *Host) remap(f *Function) {
	freed := false
	f.unmap(&freed)
	if freed {
		h.functions((*Function).mapAll)
	} else {
		f.mapAll()
	}
}

// wants returns where b is to be on the memory bus, if anywhere. The caller holds the lock.
func (f *Function) wants(b *bar) (base uint64, ok bool) {
	if f.regs[regCommand]&commandMemory == 0 {
		return 0, false
	}
	base = f.address(b)
	return base, f.host.decodes(base, b.Size)
}

// unmap takes the BARs off the bus that are not to be where they are, and sets freed if there was one.
func (f *Function) unmap(freed *bool) {
	for i, b := range f.bars {
		if b == nil || !b.mapped {
			continue
		}
		if base, ok := f.wants(b); ok && base == b.base {
			continue
		}
		if f.OnMap != nil {
			f.OnMap(i, b.base, false)
		}
		f.host.cfg.Memory.Remove(b.base)
		b.mapped = false
		if freed != nil {
			*freed = true
		}
	}
}

// mapAll puts the BARs on the bus that are to be there. One that the bus refuses, since something else is there, stays
// off it: that is the guest's doing, and no error of the host's.
func (f *Function) mapAll() {
	for i, b := range f.bars {
		if b == nil || b.mapped {
			continue
		}
		base, ok := f.wants(b)
		if !ok || f.host.cfg.Memory.Add(base, b.Size, b.Name, b.handler) != nil {
			continue
		}
		b.base, b.mapped = base, true
		if f.OnMap != nil {
			f.OnMap(i, base, true)
		}
	}
}
