package acpi

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
)

const (
	pageSize = 4096
	// maxPhysical is the end of what x86-64 can address.
	maxPhysical = 1 << 52
	fourGiB     = 1 << 32
	maxPort     = 1 << 16
	maxUID8     = 254
	noID        = 0xffffffff
)

func (m *Machine) validate(base uint64, limit int) error {
	if base == 0 || base%tableAlign != 0 || base >= maxPhysical {
		return bad("the tables' address %#x is not a multiple of %d above 0 and below 2^52", base, tableAlign)
	}
	if limit < 0 || uint64(limit) > maxPhysical-base {
		return bad("the tables' limit of %d bytes at %#x is negative or ends above 2^52", limit, base)
	}
	for _, check := range []func() error{
		m.validateOEM, m.validateCPUs, m.validatePCI, m.validatePower, m.validatePorts, m.validateInterrupts,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return m.validateMemory(base, limit)
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMachine, fmt.Sprintf(format, args...))
}

func (m *Machine) validateOEM() error {
	for _, f := range []struct {
		field, value string
		max          int
	}{{"OEMID", m.OEMID, 6}, {"OEMTableID", m.OEMTableID, 8}} {
		if len(f.value) > f.max {
			return bad("%s %q has more than %d characters", f.field, f.value, f.max)
		}
		for i := range len(f.value) {
			if c := f.value[i]; c < 0x20 || c > 0x7e {
				return bad("%s %q is not printable ASCII", f.field, f.value)
			}
		}
	}
	return nil
}

func (m *Machine) validateCPUs() error {
	if n := len(m.CPUs); n < 1 || n > MaxCPUs {
		return bad("CPUs has %d entries, and 1 to %d are possible", n, MaxCPUs)
	}
	uids := make(map[uint32]int, len(m.CPUs))
	apicIDs := make(map[uint32]int, len(m.CPUs))
	for i, c := range m.CPUs {
		switch {
		case c.UID == noID:
			return bad("CPUs[%d].UID %#x stands for all CPUs", i, c.UID)
		case c.APICID == noID:
			return bad("CPUs[%d].APICID %#x stands for all CPUs", i, c.APICID)
		case c.APICID < firstX2APIC && c.UID > maxUID8:
			return bad("CPUs[%d].UID %d is above %d, which an APICID (%d) below %d does not allow",
				i, c.UID, maxUID8, c.APICID, firstX2APIC)
		}
		if j, ok := uids[c.UID]; ok {
			return bad("CPUs[%d].UID %d is that of CPUs[%d] too", i, c.UID, j)
		}
		if j, ok := apicIDs[c.APICID]; ok {
			return bad("CPUs[%d].APICID %d is that of CPUs[%d] too", i, c.APICID, j)
		}
		uids[c.UID], apicIDs[c.APICID] = i, i
	}
	return nil
}

func (m *Machine) validatePCI() error {
	p := m.PCI
	if p == nil {
		return nil
	}
	if p.Buses < 1 || p.Buses > MaxPCIBuses {
		return bad("PCI.Buses %d is not 1 to %d", p.Buses, MaxPCIBuses)
	}
	if n := uint64(ecamPerBus) << bits.Len(uint(p.Buses-1)); p.ECAMBase%n != 0 {
		return bad("PCI.ECAMBase %#x is not a multiple of %#x, as %d buses need", p.ECAMBase, n, p.Buses)
	}
	if p.ECAMBase == 0 || p.ECAMBase > fourGiB-p.ecamSize() {
		return bad("PCI.ECAMBase %#x: %d buses there do not lie between 0 and 4 GiB", p.ECAMBase, p.Buses)
	}
	if w := p.Window32; w.Size == 0 || w.Size >= fourGiB || w.Base > fourGiB-w.Size {
		return bad("PCI.Window32 of %#x bytes at %#x is empty or ends above 4 GiB", w.Size, w.Base)
	}
	return nil
}

func (m *Machine) validatePower() error {
	if (m.SleepControlPort == 0) != (m.SleepStatusPort == 0) {
		return bad("SleepControlPort %#x and SleepStatusPort %#x are useful only together",
			m.SleepControlPort, m.SleepStatusPort)
	}
	if (m.GED.GSI == 0) != (m.GED.Port == 0) {
		return bad("GED.GSI %d and GED.Port %#x are useful only together", m.GED.GSI, m.GED.Port)
	}
	if len(m.Serial) > MaxSerial {
		return bad("Serial has %d entries, and at most %d are possible", len(m.Serial), MaxSerial)
	}
	for i, s := range m.Serial {
		if s.Port == 0 {
			return bad("Serial[%d].Port is 0", i)
		}
	}
	return nil
}

// A span is a run of ports or of memory that one thing has for itself.
type span struct {
	base, size uint64
	what       string
}

// overlap returns an error that names two spans with something in common. Spans
// do not wrap.
func overlap(kind string, spans []span) error {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.base, b.base) })
	for i := 1; i < len(spans); i++ {
		// Neighbours are enough: of any two that meet, some neighbours meet.
		if a, b := spans[i-1], spans[i]; a.base+a.size > b.base {
			return bad("%s and %s overlap: %#x bytes at %s %#x, and %#x at %#x",
				a.what, b.what, a.size, kind, a.base, b.size, b.base)
		}
	}
	return nil
}

func (m *Machine) validatePorts() error {
	var spans []span
	add := func(port uint16, size uint64, what string) {
		if port != 0 {
			spans = append(spans, span{uint64(port), size, what})
		}
	}
	add(m.SleepControlPort, 1, "SleepControlPort")
	add(m.SleepStatusPort, 1, "SleepStatusPort")
	add(m.ResetPort, 1, "ResetPort")
	add(m.GED.Port, 1, "GED.Port")
	add(m.RTCPort, rtcPorts, "RTCPort")
	add(m.PVPanicPort, pvpanicPorts, "PVPanicPort")
	for i, s := range m.Serial {
		add(s.Port, serialPorts, fmt.Sprintf("Serial[%d]", i))
	}
	if m.PCI != nil {
		add(pciConfigPort, pciConfigPorts, "the PCI configuration port")
	}
	for _, s := range spans {
		if s.base+s.size > maxPort {
			return bad("%s: %d ports at %#x end above 0xffff", s.what, s.size, s.base)
		}
	}
	return overlap("port", spans)
}

func (m *Machine) validateInterrupts() error {
	var used [IOAPICPins]string
	claim := func(gsi uint32, what string) error {
		if gsi >= IOAPICPins || gsi == 0 || gsi == 2 {
			return bad("%s %d is not a pin from 1 to %d other than 2", what, gsi, IOAPICPins-1)
		}
		if other := used[gsi]; other != "" {
			return bad("%s %d is that of %s too, and edge-triggered interrupts are not shared", what, gsi, other)
		}
		used[gsi] = what
		return nil
	}
	if m.GED.GSI != 0 {
		if err := claim(m.GED.GSI, "GED.GSI"); err != nil {
			return err
		}
	}
	for i, s := range m.Serial {
		if err := claim(uint32(s.IRQ), fmt.Sprintf("Serial[%d].IRQ", i)); err != nil {
			return err
		}
	}
	for i, v := range m.VirtioMMIO {
		if err := claim(v.GSI, fmt.Sprintf("VirtioMMIO[%d].GSI", i)); err != nil {
			return err
		}
	}
	return m.validateOverrides(used[:])
}

// validateOverrides takes the device on each pin. Linux sets up the target of an
// override at boot, and then refuses a device there that wants the pin to be
// edge-triggered, active high if the override says otherwise.
func (m *Machine) validateOverrides(devices []string) error {
	var sources [16]bool
	var targets [IOAPICPins]bool
	for i, o := range m.Overrides {
		switch {
		case o.Source == 0 || int(o.Source) >= len(sources):
			return bad("Overrides[%d].Source %d is not 1 to %d", i, o.Source, len(sources)-1)
		case o.GSI >= IOAPICPins:
			return bad("Overrides[%d].GSI %d is not below %d", i, o.GSI, IOAPICPins)
		case sources[o.Source]:
			return bad("Overrides[%d].Source %d is overridden twice", i, o.Source)
		case targets[o.GSI]:
			return bad("Overrides[%d].GSI %d is the target of two overrides", i, o.GSI)
		case (o.Level || o.ActiveLow) && devices[o.GSI] != "":
			return bad("Overrides[%d].GSI %d is that of %s, which is edge-triggered and active high", i, o.GSI, devices[o.GSI])
		}
		sources[o.Source], targets[o.GSI] = true, true
	}
	return nil
}

func (m *Machine) validateMemory(base uint64, limit int) error {
	spans := []span{
		{uint64(m.LAPICBase), pageSize, "LAPICBase"},
		{uint64(m.IOAPICBase), pageSize, "IOAPICBase"},
	}
	if p := m.PCI; p != nil {
		spans = append(spans,
			span{p.ECAMBase, p.ecamSize(), "PCI.ECAMBase"},
			span{p.Window32.Base, p.Window32.Size, "PCI.Window32"})
		if p.Window64.Size != 0 {
			spans = append(spans, span{p.Window64.Base, p.Window64.Size, "PCI.Window64"})
		}
	}
	for i, v := range m.VirtioMMIO {
		spans = append(spans, span{v.Base, v.Size, fmt.Sprintf("VirtioMMIO[%d]", i)})
	}
	for _, s := range spans {
		switch {
		case s.base == 0 || s.base%pageSize != 0:
			return bad("%s: address %#x is not a multiple of %d above 0", s.what, s.base, pageSize)
		case s.size == 0 || s.size%pageSize != 0:
			return bad("%s: size %#x is not a multiple of %d above 0", s.what, s.size, pageSize)
		case s.base >= maxPhysical || s.size > maxPhysical-s.base:
			return bad("%s: %#x bytes at %#x end above 2^52", s.what, s.size, s.base)
		}
	}
	return overlap("address", append(spans, span{base, uint64(limit), "the tables"}))
}
