package vmm

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/boot/acpi"
	"github.com/vole-vmm/vole/devices"
	"github.com/vole-vmm/vole/kvm"
	"github.com/vole-vmm/vole/memory"
)

// createVM makes the VM, gives it its memory and makes its vCPUs. Memory comes
// before the irqchip: afterwards each region costs KVM milliseconds.
func (m *Machine) createVM(h *host) error {
	var err error
	if m.vm, err = h.sys.CreateVM(); err != nil {
		return fmt.Errorf("%w: %w", ErrKVM, err)
	}
	steps := []func() error{
		func() error { return m.vm.SetIdentityMapAddress(identityBase) },
		func() error { return m.vm.SetTSSAddress(tssBase) },
		m.mapMemory,
		m.vm.CreateIRQChip,
	}
	if m.cfg.PIT {
		steps = append(steps, func() error { return m.vm.CreatePIT2(kvm.PITConfig{}) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("%w: %w", ErrKVM, err)
		}
	}
	for id := range m.cfg.CPUs {
		c, err := m.vm.CreateVCPU(id)
		if err != nil {
			return fmt.Errorf("%w: vCPU %d of %d: %w", ErrKVM, id, m.cfg.CPUs, err)
		}
		m.vcpus = append(m.vcpus, &vcpu{m: m, id: id, kvm: c})
	}
	return nil
}

func (m *Machine) mapMemory() error {
	for i, r := range m.mem.Regions() {
		err := m.vm.SetMemoryRegion(kvm.MemoryRegion{Slot: uint32(i), GPA: r.GPA, Size: r.Size(), HVA: r.HostAddress()})
		if err != nil {
			return err
		}
	}
	return nil
}

// plugDevices puts the machine's own devices onto its buses.
func (m *Machine) plugDevices() error {
	serialIRQ, err := m.line(com1GSI)
	if err != nil {
		return err
	}
	powerIRQ, err := m.line(gedGSI)
	if err != nil {
		return err
	}
	m.console = newConsoleWatch(m.consoleEvent, m.times.sinceEntry)
	m.serial = devices.NewSerial(devices.SerialConfig{
		IRQ:    serialIRQ,
		Out:    m.cfg.ConsoleOut,
		In:     m.cfg.ConsoleIn,
		OnByte: m.console.add,
	})
	for _, d := range m.cfg.Devices {
		if c, ok := d.(ConsoleDevice); ok {
			c.Watch(m.console.addAll)
			m.consoles = append(m.consoles, c)
		}
	}
	m.power = devices.NewPower(m.event, powerIRQ)
	low, high := ramSizes(m.cfg.Memory)
	rtc := devices.NewRTC(devices.RTCConfig{LowMemory: low, HighMemory: high})

	m.ports, m.mmio = devices.NewBus("port"), devices.NewBus("memory")
	return errors.Join(
		m.ports.Add(com1Port, com1Size, "COM1", m.serial),
		m.ports.Add(i8042Port, i8042Size, "i8042", devices.NewI8042(m.event)),
		m.ports.Add(rtcPort, rtcSize, "RTC", rtc),
		m.ports.Add(debugExitPort, debugExitSize, "debug exit", devices.NewDebugExit(m.event)),
		m.ports.Add(pvpanicPort, pvpanicSize, "pvpanic", devices.NewPVPanic(m.event)),
		m.ports.Add(powerPort, powerSize, "ACPI power", m.power),
		m.mmio.Add(bootTimerBase, bootTimerSize, "boot timer", devices.NewBootTimer(m.event)),
		m.plugVirtio(),
	)
}

// arrange decides what depends on the host.
func (m *Machine) arrange(h *host) {
	rs := m.mem.Regions()
	m.window64 = window64For(rs[len(rs)-1].End(), physBits(h.cpu.supported))
	m.bellLength = bellWidth
	if h.anyLengthBells {
		m.bellLength = 0
	}
}

// bellWidth is the width of a driver's write to a doorbell on PCI (VIRTIO 1.2,
// section 4.1.5.2).
const bellWidth = 2

func (m *Machine) line(gsi uint32) (*irqLine, error) {
	l, err := newIRQLine(m.vm, gsi)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKVM, err)
	}
	m.lines = append(m.lines, l)
	return l, nil
}

// acpiTables describes the machine to its guest.
func (m *Machine) acpiTables() ([]byte, error) {
	d := acpi.Machine{
		LAPICBase:        lapicBase,
		IOAPICBase:       ioapicBase,
		SleepControlPort: powerPort + powerSleepControl,
		SleepStatusPort:  powerPort + powerSleepStatus,
		ResetPort:        powerPort + powerReset,
		ResetValue:       powerResetValue,
		Serial:           []acpi.Serial{{Port: com1Port, IRQ: com1GSI}},
		RTCPort:          rtcPort,
		PVPanicPort:      pvpanicPort,
	}
	d.GED.GSI, d.GED.Port = gedGSI, powerPort+powerEvents
	for id := range m.cfg.CPUs {
		d.CPUs = append(d.CPUs, acpi.CPU{UID: uint32(id), APICID: uint32(id)})
	}
	m.describeVirtio(&d)
	return acpi.Build(acpiBase, acpiSize, d)
}

// initVCPUs gives every vCPU its CPUID and MSRs and the first one the state in
// which boot wants to enter the kernel; the others wait for INIT and SIPI.
func (m *Machine) initVCPUs(h *host) error {
	for _, c := range m.vcpus {
		if err := c.init(h, m.cfg.CPUs); err != nil {
			return fmt.Errorf("%w: vCPU %d: %w", ErrKVM, c.id, err)
		}
	}
	c := m.vcpus[0]
	if err := c.enterAt(m.entry); err != nil {
		return fmt.Errorf("%w: vCPU 0: %w", ErrKVM, err)
	}
	return nil
}

func (c *vcpu) init(h *host, n int) error {
	cpu := h.cpu
	if khz, err := c.kvm.TSCKHz(); err == nil { // else the guest finds it out itself
		cpu.tscKHz = int(khz)
	}
	cpuid := guestCPUID(cpu, c.id, n)
	if err := c.kvm.SetCPUID(cpuid); err != nil {
		return err
	}
	c.setXCR0(cpuid)
	if err := c.setMSRs(initialMSRs(cpuid)); err != nil {
		return err
	}
	return c.setLAPIC()
}

// fitsAddress checks that the processor's physical addresses reach all RAM.
func (m *Machine) fitsAddress(h *host) error {
	rs := m.mem.Regions()
	bits := physBits(h.cpu.supported)
	if end := rs[len(rs)-1].End(); end > 1<<bits {
		return fmt.Errorf("%w: %s of memory end at %#x, and this processor has %d bits of physical address", ErrKVM, size(m.cfg.Memory), end, bits)
	}
	return nil
}

// setXCR0 enables all the state components that CPUID offers, as firmware may.
// The guest's kernel does the same later. With XCR0 equal to the host's, KVM
// need not switch it at every entry and exit; and under a host that does not
// let KVM see the guest's XSETBV (QEMU's emulated SVM) KVM otherwise goes on
// with x87 state only, which breaks the guest.
func (c *vcpu) setXCR0(cpuid []kvm.CPUIDEntry) {
	for _, e := range cpuid {
		if e.Function != leafXSAVE || e.Index != 0 {
			continue
		}
		mask := uint64(e.EDX)<<32 | uint64(e.EAX)
		if err := c.kvm.SetXCRs([]kvm.XCR{{XCR: 0, Value: mask}}); err != nil {
			c.m.log.Debug("KVM refuses XCR0", "vcpu", c.id, "value", mask, "error", err)
		}
	}
}

// Architectural MSRs that firmware sets (Intel SDM volume 4).
const (
	msrMTRRPhysBase0 = 0x200
	msrMTRRPhysMask0 = 0x201
	msrPAT           = 0x277
	msrMTRRDefType   = 0x2ff
	msrMiscEnable    = 0x1a0
)

// initialMSR is an MSR's first value, and whether a guest can do without it.
type initialMSR struct {
	kvm.MSREntry
	needed bool
}

// initialMSRs is what firmware leaves behind on a processor with that CPUID: all
// memory is write-back but for the device hole from memory.LowTop to 4 GiB.
//
// Where CPUID offers MTRRs, their default type is needed: with MTRRs off, all
// memory is uncachable (SDM volume 3, section 12.11.2.1), and Linux leaves them
// off. The rest only makes a guest quicker, or is what a reset leaves.
func initialMSRs(cpuid []kvm.CPUIDEntry) []initialMSR {
	const (
		on        = 1 << 11
		writeBack = 6
		hole      = memory.HighStart - memory.LowTop
	)
	mtrr := slices.ContainsFunc(cpuid, func(e kvm.CPUIDEntry) bool { return e.Function == leafFeatures && e.EDX&edxMTRR != 0 })
	return []initialMSR{
		{kvm.MSREntry{Index: msrPAT, Data: 0x0007_0406_0007_0406}, false},
		{kvm.MSREntry{Index: msrMTRRPhysBase0, Data: memory.LowTop}, false}, // type 0: uncachable
		{kvm.MSREntry{Index: msrMTRRPhysMask0, Data: (1<<physBits(cpuid) - hole) | on}, false},
		{kvm.MSREntry{Index: msrMTRRDefType, Data: on | writeBack}, mtrr},
		{kvm.MSREntry{Index: msrMiscEnable, Data: 1}, false}, // fast string operations
	}
}

// physBits reads the width of a physical address from CPUID.
func physBits(cpuid []kvm.CPUIDEntry) uint32 {
	for _, e := range cpuid {
		if n := e.EAX & 0xff; e.Function == leafAddressSizes && n >= 36 && n <= 52 {
			return n
		}
	}
	return 36 // what a processor without that leaf has
}

// setMSRs sets a vCPU's MSRs. One that KVM refuses is an error that names it if
// it is needed, and otherwise only noted.
func (c *vcpu) setMSRs(list []initialMSR) error {
	for _, msr := range list {
		err := c.kvm.SetMSRs([]kvm.MSREntry{msr.MSREntry})
		var refused *kvm.MSRError
		switch {
		case errors.As(err, &refused) && !msr.needed:
			c.m.log.Debug("KVM refuses an MSR", "vcpu", c.id, "error", err)
		case err != nil:
			return err
		}
	}
	return nil
}

// Local APIC registers (Intel SDM volume 3, section 11.4).
const (
	lapicLVT1   = 0x360
	deliveryNMI = 4 << 8
)

// setLAPIC connects LINT1 to NMI, as the MADT says.
func (c *vcpu) setLAPIC() error {
	l, err := c.kvm.LAPIC()
	if err != nil {
		return err
	}
	l.SetRegister(lapicLVT1, deliveryNMI)
	return c.kvm.SetLAPIC(&l)
}

// Bits of the control registers (Intel SDM volume 3, section 2.5) and of EFER.
const (
	cr0PE = 1 << 0
	cr0MP = 1 << 1
	cr0ET = 1 << 4
	cr0NE = 1 << 5
	cr0WP = 1 << 16
	cr0PG = 1 << 31

	cr4PAE = 1 << 5

	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsReserved = 1 << 1
)

// enterAt puts the vCPU into the state in which boot wants to enter the
// kernel.
func (c *vcpu) enterAt(e boot.Entry) error {
	s, err := c.kvm.Sregs()
	if err != nil {
		return err
	}
	code := kvm.Segment{Selector: boot.SelectorCode, Limit: 0xffff_ffff, Type: 0xb, Present: 1, S: 1, G: 1, DB: 1}
	data := kvm.Segment{Selector: boot.SelectorData, Limit: 0xffff_ffff, Type: 3, Present: 1, S: 1, G: 1, DB: 1}
	tss := kvm.Segment{Selector: boot.SelectorTSS, Limit: boot.TSSLimit, Type: 0xb, Present: 1}
	s.CR0, s.CR4, s.EFER = cr0PE|cr0ET|cr0NE, 0, 0
	if e.Long {
		code.L, code.DB = 1, 0
		s.CR0 |= cr0MP | cr0WP | cr0PG
		s.CR3, s.CR4, s.EFER = e.CR3, cr4PAE, eferLME|eferLMA
	}
	s.CS, s.TR = code, tss
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.GDT = kvm.DTable{Base: e.GDTBase, Limit: e.GDTLimit}
	s.IDT = kvm.DTable{}
	if err := c.kvm.SetSregs(&s); err != nil {
		return err
	}
	return c.kvm.SetRegs(&kvm.Regs{RIP: e.RIP, RBX: e.RBX, RSI: e.RSI, RSP: e.RSP, RFLAGS: rflagsReserved})
}

// fatal is how the machine ends at an exit that can't be gone on from.
func (c *vcpu) fatal(reason kvm.Reason) Exit {
	at := func(err error) error {
		// KVM on SVM resets a vCPU that has shut down: then there is no place
		// to tell.
		if r, rerr := c.kvm.Regs(); rerr == nil && !(reason == kvm.ReasonShutdown && r.RIP == resetRIP) {
			return fmt.Errorf("vmm: vCPU %d at RIP %#x: %w", c.id, r.RIP, err)
		}
		return fmt.Errorf("vmm: vCPU %d: %w", c.id, err)
	}
	switch reason {
	case kvm.ReasonShutdown:
		r := c.m.deathOr(TripleFault)
		if r == Panic {
			return Exit{Reason: Panic}
		}
		return Exit{Reason: r, Err: at(errTripleFault)}
	case kvm.ReasonSystemEvent:
		switch e := c.kvm.SystemEvent(); e.Type {
		case kvm.SystemEventShutdown:
			return Exit{Reason: Poweroff}
		case kvm.SystemEventReset:
			return Exit{Reason: c.m.deathOr(Reset)}
		case kvm.SystemEventCrash:
			return Exit{Reason: Panic}
		}
	case kvm.ReasonInternalError:
		return Exit{Reason: TripleFault, Err: at(c.kvm.InternalError())}
	case kvm.ReasonFailEntry:
		return Exit{Reason: TripleFault, Err: at(c.kvm.FailEntry())}
	}
	return Exit{Reason: TripleFault, Err: at(fmt.Errorf("KVM can't go on: %v", reason))}
}

// resetRIP is where a processor starts after a reset.
const resetRIP = 0xfff0

var errTripleFault = errors.New("triple fault")

// ramSizes splits the RAM as the RTC's memory bytes tell it: below and above
// the device hole, in bytes.
func ramSizes(total uint64) (low, high uint64) {
	low = min(total, memory.LowTop)
	return low, total - low
}
