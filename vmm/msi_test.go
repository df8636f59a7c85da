package vmm

import (
	"log/slog"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/kvm"
)

// soon waits for what happens in a moment, and is not told.
func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); runtime.Gosched() {
		if time.Now().After(end) {
			require.Fail(t, "waited too long until "+what)
		}
	}
}

// requested reports whether a vCPU's local APIC has been asked for an interrupt.
func requested(t *testing.T, c *kvm.VCPU, vector int) bool {
	t.Helper()
	l, err := c.LAPIC()
	require.NoError(t, err)
	return l.Register(0x200+vector/32*16)&(1<<(vector%32)) != 0
}

// enableAPIC lets a vCPU's local APIC take interrupts.
func enableAPIC(t *testing.T, c *kvm.VCPU) {
	t.Helper()
	l, err := c.LAPIC()
	require.NoError(t, err)
	l.SetRegister(0xf0, 0x1ff) // spurious vector, enabled
	require.NoError(t, c.SetLAPIC(&l))
}

// routed is a VM with interrupt controllers, a vCPU and a router.
func routed(t *testing.T) (*msiRouter, *kvm.VCPU) {
	t.Helper()
	needKVM(t)
	sys, err := kvm.Open("")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, sys.Close()) })
	vm, err := sys.CreateVM()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, vm.Close()) })
	require.NoError(t, vm.CreateIRQChip())
	c, err := vm.CreateVCPU(0)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	enableAPIC(t, c)
	return newMSIRouter(vm, slog.New(slog.DiscardHandler)), c
}

func TestMSIVector(t *testing.T) {
	r, c := routed(t)
	before := owned(t)
	v, err := r.NewVector()
	require.NoError(t, err)
	send := func(vector uint32) { require.NoError(t, v.Program(lapicBase, vector)) }
	arrives := func(vector int) {
		t.Helper()
		soon(t, "the interrupt is there", func() bool { return requested(t, c, vector) })
	}

	assert.False(t, v.Pending(), "at first")
	v.Trigger()
	assert.True(t, v.Pending(), "it starts masked")
	send(0x51)
	assert.False(t, requested(t, c, 0x51))
	require.NoError(t, v.Mask(false))
	arrives(0x51)
	soon(t, "it is not pending any more", func() bool { return !v.Pending() })

	send(0x52)
	v.Trigger()
	arrives(0x52)
	require.NoError(t, v.Mask(false), "unmasked already")

	require.NoError(t, v.Mask(true))
	require.NoError(t, v.Mask(true), "masked already")
	send(0x53)
	v.Trigger()
	v.Trigger()
	assert.True(t, v.Pending())
	assert.True(t, v.Pending(), "looking does not take it")
	send(0x54)
	assert.False(t, requested(t, c, 0x53))
	require.NoError(t, v.Mask(false))
	arrives(0x54)
	assert.False(t, requested(t, c, 0x53), "the message is the one at the unmasking")

	require.NoError(t, v.Mask(true))
	v.Trigger()
	v.Clear()
	assert.False(t, v.Pending())
	v.Clear()
	send(0x55)
	require.NoError(t, v.Mask(false))
	v.Clear() // of no effect while it is unmasked
	send(0x56)
	v.Trigger()
	arrives(0x56)
	assert.False(t, requested(t, c, 0x55), "what was cleared is gone")

	require.NoError(t, v.Close(), "while it is unmasked")
	w, err := r.NewVector()
	require.NoError(t, err)
	require.NoError(t, w.Close(), "one that was never used")
	requireNothingLeft(t, before, 4)
}

// TestMSIRouter: messages do not displace each other, nor the pins of the
// interrupt controllers; and KVM's errors come back without a trace in the table.
func TestMSIRouter(t *testing.T) {
	r, c := routed(t)
	var vectors []pci.Vector
	for i := range 8 {
		v, err := r.NewVector()
		require.NoError(t, err)
		vectors = append(vectors, v)
		require.NoError(t, v.Program(lapicBase, uint32(0x60+i)))
		require.NoError(t, v.Mask(false))
	}
	vectors[3].Trigger()
	soon(t, "the interrupt is there", func() bool { return requested(t, c, 0x63) })
	for i := range 8 {
		assert.Equal(t, i == 3, requested(t, c, 0x60+i), "%d", i)
	}

	chip, err := r.vm.IRQChip(kvm.ChipIOAPIC)
	require.NoError(t, err)
	s := chip.IOAPIC()
	s.Redirection[com1GSI] = 0x71
	s.Redirection[ioapicPins-1] = 0x72
	chip.SetIOAPIC(s)
	require.NoError(t, r.vm.SetIRQChip(&chip))
	for gsi, vector := range map[uint32]int{com1GSI: 0x71, ioapicPins - 1: 0x72} {
		require.NoError(t, r.vm.IRQLine(gsi, true))
		soon(t, "the pin's interrupt is there", func() bool { return requested(t, c, vector) })
	}

	was := slices.Clone(r.routes)
	require.NoError(t, vectors[0].Program(lapicBase, 0x60), "nothing new")
	require.Error(t, r.set(maxRoutes+1, kvm.MSI{Address: lapicBase}))
	assert.Equal(t, was, r.routes)
	for _, v := range vectors {
		require.NoError(t, v.Close())
	}
}

func TestMSIVectorsRunOut(t *testing.T) {
	r := newMSIRouter(nil, slog.New(slog.DiscardHandler))
	r.next = maxRoutes - 1
	v, err := r.NewVector()
	require.NoError(t, err)
	for range 3 {
		_, err = r.NewVector()
		require.ErrorContains(t, err, "4072 interrupt messages are taken")
	}
	require.NoError(t, v.Close())
}
