package kvm

import (
	"reflect"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"github.com/stretchr/testify/assert"
)

// Another implementation of the same ABI agrees with ours where it is right.
func TestSizesAgainstGokvm(t *testing.T) {
	tests := []struct {
		name         string
		ours, theirs any
	}{
		{"memory region", userMemoryRegion{}, gokvm.UserspaceMemoryRegion{}},
		{"dirty log", dirtyLog{}, gokvm.DirtyLog{}},
		{"regs", Regs{}, gokvm.Regs{}},
		{"sregs", Sregs{}, gokvm.Sregs{}},
		{"segment", Segment{}, gokvm.Segment{}},
		{"descriptor table", DTable{}, gokvm.Descriptor{}},
		{"debug registers", DebugRegs{}, gokvm.DebugRegs{}},
		{"xcrs", xcrs{}, gokvm.XCRS{}},
		{"xcr", XCR{}, gokvm.XRC{}},
		{"CPUID entry", CPUIDEntry{}, gokvm.CPUIDEntry2{}},
		{"MSR entry", MSREntry{}, gokvm.MSREntry{}},
		{"irqchip", IRQChip{}, gokvm.IRQChip{}},
		{"PIT channel", PITChannel{}, gokvm.PITChannelState{}},
		{"PIT", PITState{}, gokvm.PITState2{}},
		{"LAPIC", LAPIC{}, gokvm.LAPICState{}},
		{"MP state", mpState{}, gokvm.MPState{}},
		{"vCPU events", Events{}, gokvm.VCPUEvents{}},
		{"clock", ClockData{}, gokvm.ClockData{}},
		{"translation", Translation{}, gokvm.Translation{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, reflect.TypeOf(tt.theirs).Size(), reflect.TypeOf(tt.ours).Size())
		})
	}
}

func TestIoctlNumbersAgainstGokvm(t *testing.T) {
	size := func(v any) uintptr { return reflect.TypeOf(v).Size() }
	assert.EqualValues(t, gokvm.IIO(0x80), kvmRun)
	assert.EqualValues(t, gokvm.IIOR(0x81, size(gokvm.Regs{})), kvmGetRegs)
	assert.EqualValues(t, gokvm.IIOW(0x84, size(gokvm.Sregs{})), kvmSetSregs)
	assert.EqualValues(t, gokvm.IIOWR(0x62, size(gokvm.IRQChip{})), kvmGetIRQChip)
	assert.EqualValues(t, gokvm.IIOW(0x46, size(gokvm.UserspaceMemoryRegion{})), kvmSetUserMemoryRegion)
}

// Where it is wrong we must differ: its routing entry lacks the union's tail, so
// that the kernel reads a second entry at the wrong place.
func TestGokvmRoutingEntryIsShort(t *testing.T) {
	assert.EqualValues(t, 24, reflect.TypeFor[gokvm.IRQRoutingEntry]().Size())
	assert.EqualValues(t, 48, reflect.TypeFor[irqRoutingEntry]().Size())
}

// Both read the same machine.
func TestGokvmReadsTheSameRegisters(t *testing.T) {
	m := newMachine(t, realMode, nil)
	want := Regs{RAX: 1, RBX: 2, RSI: 3, R8: 4, R15: 5, RIP: 6, RFLAGS: 2}
	assert.NoError(t, m.cpu.SetRegs(&want))
	got, err := gokvm.GetRegs(uintptr(m.cpu.fd))
	assert.NoError(t, err)
	assert.EqualValues(t, *got, gokvm.Regs{RAX: 1, RBX: 2, RSI: 3, R8: 4, R15: 5, RIP: 6, RFLAGS: 2})
}
