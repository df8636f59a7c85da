package kvm

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMemoryRegions(t *testing.T) {
	m := newVM(t)
	more := guestRAM(t, 8*pageSize)
	r := MemoryRegion{Slot: 1, GPA: 0x100000, Size: 8 * pageSize, HVA: AddressOf(more)}
	require.NoError(t, m.vm.SetMemoryRegion(r))

	clash := r
	clash.Slot = 2
	err := m.vm.SetMemoryRegion(clash)
	require.ErrorIs(t, err, unix.EEXIST)
	assert.ErrorContains(t, err, "slot 2, guest-physical 0x100000 + 0x8000")

	odd := r
	odd.Slot, odd.GPA = 3, 0x200001
	require.ErrorIs(t, m.vm.SetMemoryRegion(odd), unix.EINVAL)

	r.Size = 0
	require.NoError(t, m.vm.SetMemoryRegion(r))
	require.NoError(t, m.vm.SetMemoryRegion(clash), "the slot was not removed")
	assert.Zero(t, AddressOf(nil))
}

func TestReadonlyMemory(t *testing.T) {
	m := newMachine(t, protectedMode, []byte{
		0xa1, 0x00, 0x00, 0x10, 0x00, // mov eax, [0x100000]
		0xa3, 0x04, 0x00, 0x10, 0x00, // mov [0x100004], eax
		0xf4, // hlt
	})
	rom := guestRAM(t, pageSize)
	copy(rom, "vole")
	require.NoError(t, m.vm.SetMemoryRegion(MemoryRegion{Slot: 1, Flags: MemReadonly, GPA: 0x100000, Size: pageSize, HVA: AddressOf(rom)}))
	m.requireReason(t, ReasonMMIO)
	addr, write, data := m.cpu.MMIO()
	assert.EqualValues(t, 0x100004, addr)
	assert.True(t, write)
	assert.Equal(t, []byte("vole"), data)
	m.requireReason(t, ReasonHLT)
	assert.Equal(t, make([]byte, 4), rom[4:8])
}

func TestDirtyLog(t *testing.T) {
	m := newMachine(t, protectedMode, []byte{
		0xc6, 0x05, 0x00, 0x00, 0x10, 0x00, 1, // mov byte [0x100000], 1
		0xc6, 0x05, 0x00, 0x20, 0x14, 0x00, 1, // mov byte [0x142000], 1
		0xf4, // hlt
	})
	const pages = 70
	mem := guestRAM(t, pages*pageSize)
	require.NoError(t, m.vm.SetMemoryRegion(MemoryRegion{
		Slot: 1, Flags: MemLogDirtyPages, GPA: 0x100000, Size: pages * pageSize, HVA: AddressOf(mem),
	}))
	m.requireReason(t, ReasonHLT)

	bitmap := make([]uint64, 2)
	require.NoError(t, m.vm.DirtyLog(1, bitmap))
	assert.Equal(t, []uint64{1, 1 << (0x42 - 64)}, bitmap)
	require.NoError(t, m.vm.DirtyLog(1, bitmap))
	assert.Equal(t, []uint64{0, 0}, bitmap, "reading did not start anew")

	err := m.vm.DirtyLog(1, bitmap[:1])
	require.ErrorIs(t, err, ErrInvalid, "70 pages do not fit 64 bits")
	require.ErrorIs(t, m.vm.DirtyLog(7, bitmap), ErrInvalid)
	require.ErrorIs(t, m.vm.DirtyLog(0, bitmap), unix.ENOENT, "slot 0 is not logged")
	assert.Zero(t, testing.AllocsPerRun(20, func() {
		if err := m.vm.DirtyLog(1, bitmap); err != nil {
			panic(err)
		}
	}))
}

func TestAddressesAndCaps(t *testing.T) {
	m := newVM(t,
		func(vm *VM) error { return vm.SetTSSAddress(0xfffbd000) },
		func(vm *VM) error { return vm.SetIdentityMapAddress(0xfffbc000) },
		(*VM).CreateIRQChip,
		func(vm *VM) error { return vm.CreatePIT2(PITConfig{Flags: PITSpeakerDummy}) },
	)
	require.Error(t, m.vm.CreateIRQChip(), "a second irqchip")
	require.ErrorIs(t, m.vm.EnableCap(CapX2APICAPI, 0, 1, 2, 3, 4, 5), ErrInvalid)
	require.NoError(t, m.vm.EnableCap(CapX2APICAPI, 0, 3))

	var missing *MissingError
	err := m.vm.EnableCap(Cap(100000), 0)
	require.ErrorAs(t, err, &missing)
	assert.Equal(t, Cap(100000), missing.Cap)

	_, err = m.vm.CreateVCPU(-1)
	require.ErrorIs(t, err, ErrInvalid)
	_, err = m.vm.CreateVCPU(1 << 20)
	require.ErrorIs(t, err, unix.EINVAL)
	m.addCPU(t, 0)
	_, err = m.vm.CreateVCPU(0)
	require.ErrorIs(t, err, unix.EEXIST)
}

func TestIRQChipState(t *testing.T) {
	m := newVM(t, (*VM).CreateIRQChip)
	chip, err := m.vm.IRQChip(ChipIOAPIC)
	require.NoError(t, err)
	s := chip.IOAPIC()
	assert.EqualValues(t, 0xfec00000, s.BaseAddress)
	assert.EqualValues(t, 1<<16, s.Redirection[4]&(1<<16), "pins are masked at reset")
	s.Redirection[4] = 0x31 | 1<<16
	s.ID = 2
	chip.SetIOAPIC(s)
	require.NoError(t, m.vm.SetIRQChip(&chip))
	chip, err = m.vm.IRQChip(ChipIOAPIC)
	require.NoError(t, err)
	assert.Equal(t, s.Redirection, chip.IOAPIC().Redirection)
	assert.EqualValues(t, 2, chip.IOAPIC().ID)

	pic, err := m.vm.IRQChip(ChipPICMaster)
	require.NoError(t, err)
	p := pic.PIC()
	p.IMR, p.IRQBase = 0xfb, 0x20
	pic.SetPIC(p)
	require.NoError(t, m.vm.SetIRQChip(&pic))
	pic, err = m.vm.IRQChip(ChipPICMaster)
	require.NoError(t, err)
	assert.Equal(t, p, pic.PIC())

	_, err = m.vm.IRQChip(9)
	require.ErrorIs(t, err, unix.EINVAL)
}

func TestPITState(t *testing.T) {
	m := newVM(t, (*VM).CreateIRQChip, func(vm *VM) error { return vm.CreatePIT2(PITConfig{}) })
	s, err := m.vm.PIT2()
	require.NoError(t, err)
	s.Channels[2].Mode, s.Channels[2].Gate = 3, 1
	require.NoError(t, m.vm.SetPIT2(&s))
	got, err := m.vm.PIT2()
	require.NoError(t, err)
	assert.EqualValues(t, 3, got.Channels[2].Mode)
	assert.EqualValues(t, 1, got.Channels[2].Gate)
}

// irr returns whether a vector waits in the local APIC's request register.
func irr(t *testing.T, cpu *VCPU, vector int) bool {
	t.Helper()
	l, err := cpu.LAPIC()
	require.NoError(t, err)
	return l.Register(0x200+vector/32*16)&(1<<(vector%32)) != 0
}

// apicMachine is a machine whose local APIC takes interrupts.
func apicMachine(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, realMode, []byte{0xf4}, (*VM).CreateIRQChip)
	l, err := m.cpu.LAPIC()
	require.NoError(t, err)
	l.SetRegister(0xf0, 0x1ff) // spurious vector, APIC enabled
	require.NoError(t, m.cpu.SetLAPIC(&l))
	return m
}

func TestInterruptRoutes(t *testing.T) {
	m := apicMachine(t)
	vectorMSI := func(v uint32) MSI { return MSI{Address: 0xfee00000, Data: v} }

	delivered, err := m.vm.SignalMSI(vectorMSI(0x41))
	require.NoError(t, err)
	assert.True(t, delivered)
	assert.True(t, irr(t, m.cpu, 0x41))
	delivered, err = m.vm.SignalMSI(MSI{Address: 0xfee00000 | 9<<12, Data: 0x42})
	require.NoError(t, err)
	assert.False(t, delivered, "there is no APIC 9")

	// GSI 5 to a pin of the IOAPIC, 24 and 25 out as MSIs.
	require.NoError(t, m.vm.SetGSIRouting([]IRQRoute{
		ChipRoute(5, ChipIOAPIC, 5),
		MSIRoute(24, vectorMSI(0x51)),
		MSIRoute(25, vectorMSI(0x52)),
	}))
	chip, err := m.vm.IRQChip(ChipIOAPIC)
	require.NoError(t, err)
	s := chip.IOAPIC()
	s.Redirection[5] = 0x61 // unmasked, edge, physical to APIC 0
	chip.SetIOAPIC(s)
	require.NoError(t, m.vm.SetIRQChip(&chip))

	require.NoError(t, m.vm.IRQLine(5, true))
	require.NoError(t, m.vm.IRQLine(5, false))
	assert.True(t, irr(t, m.cpu, 0x61), "through the IOAPIC")
	require.NoError(t, m.vm.IRQLine(24, true))
	assert.True(t, irr(t, m.cpu, 0x51), "as an MSI")

	efd := eventFD(t)
	require.NoError(t, m.vm.AssignIRQFD(IRQFD{FD: efd, GSI: 25}))
	err = m.vm.AssignIRQFD(IRQFD{FD: efd, GSI: 25})
	require.ErrorIs(t, err, unix.EBUSY)
	_, err = unix.Write(efd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	require.NoError(t, err)
	assert.True(t, irr(t, m.cpu, 0x52), "through the irqfd")
	require.NoError(t, m.vm.DeassignIRQFD(efd, 25))

	resample := eventFD(t)
	require.NoError(t, m.vm.AssignIRQFD(IRQFD{FD: efd, GSI: 5, Flags: IRQFDResample, ResampleFD: resample}))
	require.NoError(t, m.vm.DeassignIRQFD(efd, 5))

	require.ErrorIs(t, m.vm.AssignIRQFD(IRQFD{FD: -1, GSI: 5}), unix.EBADF)
	require.ErrorIs(t, m.vm.SetGSIRouting([]IRQRoute{ChipRoute(1, 77, 0)}), unix.EINVAL)
	require.NoError(t, m.vm.SetGSIRouting(nil))
}

func TestIRQRouteEntry(t *testing.T) {
	assert.Equal(t, irqRoutingEntry{GSI: 7, Type: irqRoutingIRQChip, U: [8]uint32{2, 9}},
		ChipRoute(7, ChipIOAPIC, 9).entry())
	assert.Equal(t, irqRoutingEntry{GSI: 30, Type: irqRoutingMSI, U: [8]uint32{0xfee01000, 0x12, 0x34}},
		MSIRoute(30, MSI{Address: 0x12fee01000, Data: 0x34}).entry())
}

func TestIOEventFD(t *testing.T) {
	m := newMachine(t, realMode, []byte{
		0xba, 0x00, 0x05, // mov dx, 0x500
		0xb8, 0x07, 0x00, // mov ax, 7
		0xef,             // out dx, ax: matches
		0xb8, 0x08, 0x00, // mov ax, 8
		0xef,             // out dx, ax: other data
		0xa3, 0x40, 0x00, // mov [0x40], ax: memory, any length
		0xf4, // hlt
	})
	pio, mmio := eventFD(t), eventFD(t)
	port := IOEventFD{Addr: 0x500, Len: 2, FD: pio, Flags: IOEventFDPIO | IOEventFDDatamatch, DataMatch: 7}
	require.NoError(t, m.vm.AssignIOEventFD(port))
	require.ErrorIs(t, m.vm.AssignIOEventFD(port), unix.EEXIST)
	notify := IOEventFD{Addr: testMMIO + 0x40, FD: mmio}
	require.NoError(t, m.vm.AssignIOEventFD(notify))

	m.requireReason(t, ReasonIO)
	_, _, _, _, data := m.cpu.IO()
	assert.Equal(t, []byte{8, 0}, data)
	m.requireReason(t, ReasonHLT)
	assert.EqualValues(t, 1, eventCount(t, pio))
	assert.EqualValues(t, 1, eventCount(t, mmio))

	require.NoError(t, m.vm.DeassignIOEventFD(port))
	require.NoError(t, m.vm.DeassignIOEventFD(notify))
	require.ErrorIs(t, m.vm.DeassignIOEventFD(port), unix.ENOENT)
	require.ErrorIs(t, m.vm.AssignIOEventFD(IOEventFD{Addr: 0x500, Len: 3, FD: pio, Flags: IOEventFDPIO}), unix.EINVAL)
}
