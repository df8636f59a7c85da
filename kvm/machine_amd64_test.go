package kvm

import (
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Where the test machines have what.
const (
	testRAM    = 64 << 10
	testCode   = 0x1000
	testStack  = 0x8000
	testTables = 0x2000 // PML4, PDPT, two PDs
	testPort   = 0x3f8
	testMMIO   = 0xc0000000
)

// mode is the processor mode in which a payload starts.
type mode int

const (
	realMode mode = iota
	protectedMode
	longMode
)

// machine is a VM with one vCPU and 64 KiB of RAM, and the test's thread locked.
type machine struct {
	sys *System
	vm  *VM
	cpu *VCPU
	mem []byte
}

// guestRAM maps anonymous memory that the test's end unmaps.
func guestRAM(t testing.TB, size int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(mem)) })
	return mem
}

// newVM returns a VM with RAM in slot 0, and what setup does to it. The caller's
// goroutine stays on its thread until the test ends.
func newVM(t testing.TB, setup ...func(*VM) error) *machine {
	t.Helper()
	m := &machine{sys: openKVM(t)}
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	m.mem = guestRAM(t, testRAM)
	var err error
	m.vm, err = m.sys.CreateVM()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.vm.Close()) })
	require.NoError(t, m.vm.SetMemoryRegion(MemoryRegion{Size: testRAM, HVA: AddressOf(m.mem)}))
	for _, f := range setup {
		require.NoError(t, f(m.vm))
	}
	return m
}

func (m *machine) addCPU(t testing.TB, id int) *VCPU {
	t.Helper()
	cpu, err := m.vm.CreateVCPU(id)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cpu.Close()) })
	return cpu
}

// newMachine returns a machine that will run code in the given mode.
func newMachine(t testing.TB, md mode, code []byte, setup ...func(*VM) error) *machine {
	t.Helper()
	m := newVM(t, setup...)
	copy(m.mem[testCode:], code)
	m.cpu = m.addCPU(t, 0)
	m.enter(t, m.cpu, md)
	return m
}

// enter points a vCPU at the payload.
func (m *machine) enter(t testing.TB, cpu *VCPU, md mode) {
	t.Helper()
	s, err := cpu.Sregs()
	require.NoError(t, err)
	flat := Segment{Limit: 0xffffffff, Present: 1, S: 1, G: 1, DB: 1, Type: 3, Selector: 0x10}
	switch md {
	case realMode:
		s.CS.Base, s.CS.Selector = 0, 0
		// DS reaches the MMIO range, which real mode cannot address by itself.
		s.DS.Base, s.DS.Selector = testMMIO, 0
	case protectedMode, longMode:
		s.DS, s.ES, s.FS, s.GS, s.SS = flat, flat, flat, flat, flat
		s.CS = flat
		s.CS.Type, s.CS.Selector = 11, 8
		s.CR0 |= 1 // PE
	}
	if md == longMode {
		put := func(at int, v uint64) { binary.LittleEndian.PutUint64(m.mem[at:], v) }
		// 2 MiB pages for the first GiB and the fourth, where the MMIO is.
		put(testTables, testTables+0x1000|3)
		for i, gib := range []int{0, 3} {
			pd := testTables + 0x2000 + 0x1000*i
			put(testTables+0x1000+8*gib, uint64(pd)|3)
			for j := range 512 {
				put(pd+8*j, uint64(gib)<<30|uint64(j)<<21|0x83)
			}
		}
		s.CS.L, s.CS.DB = 1, 0
		s.CR3 = testTables
		s.CR4 |= 1 << 5                      // PAE
		s.CR0 |= 1 << 31                     // PG
		s.EFER |= 1<<8 | 1<<10               // LME, LMA
		cpuid, err := m.sys.SupportedCPUID() // long mode must be there
		require.NoError(t, err)
		require.NoError(t, cpu.SetCPUID(cpuid))
	}
	// No interrupt table: the first fault becomes a triple one.
	s.IDT = DTable{}
	require.NoError(t, cpu.SetSregs(&s))
	require.NoError(t, cpu.SetRegs(&Regs{RIP: testCode, RSP: testStack, RFLAGS: 2}))
}

// run runs the vCPU until it comes back for a real reason.
func (m *machine) run(t testing.TB) Reason {
	t.Helper()
	for {
		r, err := m.cpu.Run()
		require.NoError(t, err)
		if r != ReasonInterrupted && r != ReasonAgain {
			return r
		}
	}
}

// requireReason runs the vCPU and fails unless it comes back for want.
func (m *machine) requireReason(t testing.TB, want Reason) {
	t.Helper()
	got := m.run(t)
	if got == ReasonInternalError {
		t.Fatalf("want %v, got %v: %v", want, got, m.cpu.InternalError())
	}
	require.Equal(t, want, got, "want %v, got %v", want, got)
}
