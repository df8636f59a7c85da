package kvm

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRegsRoundTrip(t *testing.T) {
	m := newMachine(t, realMode, nil)
	want := Regs{
		RAX: 1, RBX: 2, RCX: 3, RDX: 4, RSI: 5, RDI: 6, RSP: 7, RBP: 8,
		R8: 9, R9: 10, R10: 11, R11: 12, R12: 13, R13: 14, R14: 15, R15: 16,
		RIP: 0x1234, RFLAGS: 0x246,
	}
	require.NoError(t, m.cpu.SetRegs(&want))
	got, err := m.cpu.Regs()
	require.NoError(t, err)
	assert.Equal(t, want, got)

	s, err := m.cpu.Sregs()
	require.NoError(t, err)
	s.GDT = DTable{Base: 0x500, Limit: 0x27}
	s.CR2 = 0xdead000
	require.NoError(t, m.cpu.SetSregs(&s))
	again, err := m.cpu.Sregs()
	require.NoError(t, err)
	assert.Equal(t, s, again)

	s.EFER = 1 << 10 // LMA without paging
	s.CR0 |= 1 << 31 // PG without PE
	s.CR0 &^= 1
	require.ErrorIs(t, m.cpu.SetSregs(&s), unix.EINVAL)
}

func TestGuestComputes(t *testing.T) {
	m := newMachine(t, longMode, []byte{
		0x48, 0x01, 0xd8, // add rax, rbx
		0x48, 0x89, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, // mov [0x9000], rax
		0xf4, // hlt
	})
	r, err := m.cpu.Regs()
	require.NoError(t, err)
	r.RAX, r.RBX = 1<<40, 2
	require.NoError(t, m.cpu.SetRegs(&r))
	m.requireReason(t, ReasonHLT)
	r, err = m.cpu.Regs()
	require.NoError(t, err)
	assert.EqualValues(t, 1<<40|2, r.RAX)
	assert.EqualValues(t, testCode+12, r.RIP)
	assert.Equal(t, []byte{2, 0, 0, 0, 0, 1, 0, 0}, m.mem[0x9000:0x9008])

	tr, err := m.cpu.Translate(0xc0001234)
	require.NoError(t, err)
	assert.EqualValues(t, 1, tr.Valid)
	assert.EqualValues(t, 0xc0001234, tr.PhysicalAddress)
	tr, err = m.cpu.Translate(5 << 30) // not mapped
	require.NoError(t, err)
	assert.Zero(t, tr.Valid)
}

func TestCPUID(t *testing.T) {
	sys := openKVM(t)
	supported, err := sys.SupportedCPUID()
	require.NoError(t, err)
	require.NotEmpty(t, supported)
	assert.Equal(t, len(supported), cap(supported))
	leaf := func(entries []CPUIDEntry, function uint32) *CPUIDEntry {
		for i := range entries {
			if entries[i].Function == function {
				return &entries[i]
			}
		}
		t.Fatalf("no leaf %#x", function)
		return nil
	}
	sig := leaf(supported, 0x40000000)
	assert.EqualValues(t, 0x4b4d564b, sig.EBX, "KVMK of KVMKVMKVM")

	m := newMachine(t, realMode, []byte{
		0x66, 0xb8, 0x00, 0x00, 0x00, 0x80, // mov eax, 0x80000000
		0x0f, 0xa2, // cpuid
		0xf4, // hlt
	})
	mine := append([]CPUIDEntry(nil), supported...)
	ext := leaf(mine, 0x80000000)
	ext.EBX, ext.ECX = 0x656c6f76, 0x12345678
	require.NoError(t, m.cpu.SetCPUID(mine))
	got, err := m.cpu.CPUID()
	require.NoError(t, err)
	// A paravirtual KVM leaves out the leaves of what it has not: AMX and AVX10.
	had := got
	for _, m := range mine {
		if len(had) > 0 && had[0].Function == m.Function && had[0].Index == m.Index {
			had = had[1:]
			continue
		}
		assert.Contains(t, []uint32{0x1d, 0x1e, 0x24}, m.Function, "leaf %#x, %d", m.Function, m.Index)
	}
	assert.Empty(t, had, "leaves that nobody has set")
	assert.Equal(t, *ext, *leaf(got, 0x80000000))
	m.requireReason(t, ReasonHLT)
	r, err := m.cpu.Regs()
	require.NoError(t, err)
	assert.EqualValues(t, 0x656c6f76, r.RBX)
	assert.EqualValues(t, 0x12345678, r.RCX)
}

func TestCPUIDGrowsItsBuffer(t *testing.T) {
	m := newMachine(t, realMode, nil)
	many := make([]CPUIDEntry, cpuidGuess+20)
	for i := range many {
		many[i].Function = 0x1000 + uint32(i)
	}
	if err := m.cpu.SetCPUID(many); err != nil {
		// KVM before 5.10 stores at most 80 entries.
		require.ErrorIs(t, err, unix.E2BIG)
		t.Skip("this KVM takes fewer CPUID entries: ", err)
	}
	got, err := m.cpu.CPUID()
	require.NoError(t, err)
	assert.Equal(t, many, got)
}

const (
	msrSysenterCS = 0x174
	msrSysenterSP = 0x175
	msrSysenterIP = 0x176
	msrNone       = 0xdead0000 // no processor has it
)

func TestMSRs(t *testing.T) {
	m := newMachine(t, realMode, nil)
	require.NoError(t, m.cpu.SetMSRs(nil))
	require.NoError(t, m.cpu.SetMSRs([]MSREntry{
		{Index: msrSysenterCS, Data: 8},
		{Index: msrSysenterSP, Data: 0x9000},
		{Index: msrSysenterIP, Data: 0xa000},
	}))
	got, err := m.cpu.GetMSRs(msrSysenterIP, msrSysenterCS)
	require.NoError(t, err)
	assert.Equal(t, []MSREntry{{Index: msrSysenterIP, Data: 0xa000}, {Index: msrSysenterCS, Data: 8}}, got)

	var refused *MSRError
	err = m.cpu.SetMSRs([]MSREntry{
		{Index: msrSysenterCS, Data: 0x10},
		{Index: msrNone, Data: 7},
		{Index: msrSysenterSP, Data: 0xb000},
	})
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, MSRError{Op: "KVM_SET_MSRS", Index: msrNone, Entry: MSREntry{Index: msrNone, Data: 7}, Done: 1}, *refused)

	got, err = m.cpu.GetMSRs(msrSysenterCS, msrSysenterSP, msrNone, msrSysenterIP)
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, []MSREntry{{Index: msrSysenterCS, Data: 0x10}, {Index: msrSysenterSP, Data: 0x9000}}, got,
		"before the refused entry all are written, after it none")
	assert.EqualValues(t, msrNone, refused.Index)
	assert.Equal(t, 2, refused.Done)
}

func TestMSRsBeyondOneIoctl(t *testing.T) {
	m := newMachine(t, realMode, nil)
	const n = 2*msrChunk + 10
	write := make([]MSREntry, n)
	read := make([]uint32, n)
	for i := range write {
		write[i] = MSREntry{Index: msrSysenterCS + uint32(i%3), Data: uint64(i)}
		read[i] = write[i].Index
	}
	require.NoError(t, m.cpu.SetMSRs(write))
	got, err := m.cpu.GetMSRs(read...)
	require.NoError(t, err)
	require.Len(t, got, n)
	assert.Equal(t, write[n-3:], got[n-3:])

	write[msrChunk+5].Index = msrNone
	var refused *MSRError
	require.ErrorAs(t, m.cpu.SetMSRs(write), &refused)
	assert.Equal(t, msrChunk+5, refused.Done)
	read[msrChunk+5] = msrNone
	got, err = m.cpu.GetMSRs(read...)
	require.ErrorAs(t, err, &refused)
	assert.Len(t, got, msrChunk+5)
	assert.Equal(t, msrChunk+5, refused.Done)
}

func TestMSRLists(t *testing.T) {
	m := newMachine(t, realMode, nil)
	indices, err := m.sys.MSRIndices()
	require.NoError(t, err)
	assert.Contains(t, indices, uint32(msrSysenterCS))

	features, err := m.sys.FeatureMSRs()
	if err != nil {
		var missing *MissingError
		require.ErrorAs(t, err, &missing)
		t.Skip(err)
	}
	require.NotEmpty(t, features)
	got, err := m.sys.ReadFeatureMSRs(features...)
	require.NoError(t, err)
	assert.Len(t, got, len(features))
	var refused *MSRError
	got, err = m.sys.ReadFeatureMSRs(features[0], msrNone)
	require.ErrorAs(t, err, &refused)
	assert.Len(t, got, 1)
}

func TestFPURoundTrip(t *testing.T) {
	m := newMachine(t, realMode, nil)
	f, err := m.cpu.FPU()
	require.NoError(t, err)
	f.FCW = 0x27f
	f.XMM[3] = [16]uint8{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	require.NoError(t, m.cpu.SetFPU(&f))
	got, err := m.cpu.FPU()
	require.NoError(t, err)
	f.MXCSR, got.MXCSR = 0, 0 // KVM leaves it out
	assert.Equal(t, f, got)
}

func TestXSAVERoundTrip(t *testing.T) {
	m := newMachine(t, longMode, nil)
	area, err := m.cpu.XSAVE()
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(area), xsaveSize)
	// XMM3 in the legacy region, and XSTATE_BV, whose bit 1 says that SSE holds:
	// Intel SDM, volume 1, "Format of an FXSAVE Area" and "XSAVE Header".
	xmm3 := area[160+3*16 : 160+4*16]
	copy(xmm3, "0123456789abcdef")
	area[512] |= 2
	require.NoError(t, m.cpu.SetXSAVE(area))
	got, err := m.cpu.XSAVE()
	require.NoError(t, err)
	assert.Equal(t, area, got)
	f, err := m.cpu.FPU()
	require.NoError(t, err)
	assert.Equal(t, xmm3, f.XMM[3][:])

	require.ErrorIs(t, m.cpu.SetXSAVE(area[:len(area)-1]), ErrInvalid)
	require.ErrorIs(t, m.cpu.SetXSAVE(nil), ErrInvalid)
}

func TestXCRs(t *testing.T) {
	m := newMachine(t, longMode, nil)
	regs, err := m.cpu.XCRs()
	require.NoError(t, err)
	if len(regs) == 0 {
		t.Skip("this host has no XSAVE")
	}
	assert.EqualValues(t, 1, regs[0].Value&1, "x87 is always on in XCR0")
	require.NoError(t, m.cpu.SetXCRs([]XCR{{XCR: 0, Value: 3}}))
	regs, err = m.cpu.XCRs()
	require.NoError(t, err)
	assert.EqualValues(t, 3, regs[0].Value)
	require.ErrorIs(t, m.cpu.SetXCRs(make([]XCR, maxXCRs+1)), ErrInvalid)
}

func TestLAPICAndMPState(t *testing.T) {
	m := newMachine(t, realMode, []byte{0xf4}, (*VM).CreateIRQChip)
	l, err := m.cpu.LAPIC()
	require.NoError(t, err)
	assert.EqualValues(t, 0x14, l.Register(0x30)&0xff, "version")
	l.SetRegister(0x350, 0x400) // LVT LINT0: NMI
	require.NoError(t, m.cpu.SetLAPIC(&l))
	l, err = m.cpu.LAPIC()
	require.NoError(t, err)
	assert.EqualValues(t, 0x400, l.Register(0x350)&0x700)
	assert.Zero(t, l.Register(1)|l.Register(-16)|l.Register(1024))
	l.SetRegister(1024, 1)

	state, err := m.cpu.MPState()
	require.NoError(t, err)
	assert.Equal(t, MPRunnable, state)
	ap := m.addCPU(t, 1)
	state, err = ap.MPState()
	require.NoError(t, err)
	assert.Equal(t, MPUninitialized, state)
	require.NoError(t, ap.SetMPState(MPHalted))
	state, err = ap.MPState()
	require.NoError(t, err)
	assert.Equal(t, MPHalted, state)
	assert.Equal(t, 1, ap.ID())
}

// An AP that waits for its SIPI leaves Run by a kick, with nothing to handle.
func TestKickAWaitingAP(t *testing.T) {
	m := newVM(t, (*VM).CreateIRQChip)
	m.addCPU(t, 0)
	ap := m.addCPU(t, 1)
	tid, pid := unix.Gettid(), unix.Getpid()
	for range 5 {
		kicked := make(chan error, 1)
		go func() {
			ap.SetImmediateExit(true)
			kicked <- unix.Tgkill(pid, tid, unix.SIGURG)
		}()
		for done := false; !done; {
			r, err := ap.Run()
			require.NoError(t, err)
			require.Contains(t, []Reason{ReasonInterrupted, ReasonAgain}, r)
			select {
			case err := <-kicked:
				require.NoError(t, err)
				done = true
			default:
			}
		}
		ap.SetImmediateExit(false)
	}
}

func TestEventsAndDebugRegs(t *testing.T) {
	m := newMachine(t, realMode, nil)
	e, err := m.cpu.Events()
	require.NoError(t, err)
	e.NMI.Pending, e.NMI.Masked = 1, 1
	e.Flags = EventNMIPendingValid
	require.NoError(t, m.cpu.SetEvents(&e))
	e, err = m.cpu.Events()
	require.NoError(t, err)
	assert.EqualValues(t, 1, e.NMI.Pending)
	assert.EqualValues(t, 1, e.NMI.Masked)

	d, err := m.cpu.DebugRegs()
	require.NoError(t, err)
	assert.EqualValues(t, 0x400, d.DR7)
	d.DB = [4]uint64{0x10, 0x20, 0x30, 0x40}
	require.NoError(t, m.cpu.SetDebugRegs(&d))
	got, err := m.cpu.DebugRegs()
	require.NoError(t, err)
	assert.Equal(t, d, got)
}

func TestTSCAndClock(t *testing.T) {
	m := newMachine(t, realMode, nil)
	kHz, err := m.cpu.TSCKHz()
	require.NoError(t, err)
	assert.Greater(t, kHz, uint32(100_000))
	require.NoError(t, m.cpu.SetTSCKHz(kHz))
	require.ErrorIs(t, m.cpu.KVMClockCtrl(), ErrNoGuestClock)

	// PVM answers the VM's question, but takes no value.
	var missing *MissingError
	vmkHz, err := m.vm.TSCKHz()
	if err != nil {
		require.ErrorAs(t, err, &missing)
	} else {
		assert.Equal(t, kHz, vmkHz)
	}
	if err := m.vm.SetTSCKHz(kHz); err != nil {
		require.ErrorAs(t, err, &missing)
		assert.Equal(t, CapVMTSCControl, missing.Cap)
	}

	require.NoError(t, m.vm.SetClock(&ClockData{Clock: 1_000_000_000_000}))
	a, err := m.vm.Clock()
	require.NoError(t, err)
	b, err := m.vm.Clock()
	require.NoError(t, err)
	assert.GreaterOrEqual(t, a.Clock, uint64(1_000_000_000_000))
	assert.GreaterOrEqual(t, b.Clock, a.Clock)
}
