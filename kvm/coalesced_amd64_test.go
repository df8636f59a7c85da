package kvm

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type coalescedWrite struct {
	addr uint64
	data []byte
	pio  bool
}

func drainAll(c *VCPU) []coalescedWrite {
	var got []coalescedWrite
	c.DrainCoalesced(func(addr uint64, data []byte, pio bool) {
		got = append(got, coalescedWrite{addr, append([]byte(nil), data...), pio})
	})
	return got
}

func TestCoalesced(t *testing.T) {
	m := newMachine(t, realMode, []byte{
		0xba, 0x00, 0x06, // mov dx, 0x600
		0xb0, 0x11, // mov al, 0x11
		0xee,             // out dx, al
		0xa2, 0x80, 0x00, // mov [0x80], al
		0xb8, 0x34, 0x12, // mov ax, 0x1234
		0xef,             // out dx, ax
		0xa3, 0x82, 0x00, // mov [0x82], ax
		0xf4, // hlt
	})
	require.NoError(t, m.sys.Require(CapCoalescedMMIO, CapCoalescedPIO))
	pio := CoalescedZone{Addr: 0x600, Size: 2, PIO: true}
	mmio := CoalescedZone{Addr: testMMIO + 0x80, Size: 16}
	require.NoError(t, m.vm.RegisterCoalesced(pio))
	require.NoError(t, m.vm.RegisterCoalesced(mmio))

	m.requireReason(t, ReasonHLT)
	assert.Equal(t, []coalescedWrite{
		{0x600, []byte{0x11}, true},
		{testMMIO + 0x80, []byte{0x11}, false},
		{0x600, []byte{0x34, 0x12}, true},
		{testMMIO + 0x82, []byte{0x34, 0x12}, false},
	}, drainAll(m.cpu))
	assert.Empty(t, drainAll(m.cpu))

	require.NoError(t, m.vm.UnregisterCoalesced(pio))
	require.NoError(t, m.vm.UnregisterCoalesced(mmio))
	m.enter(t, m.cpu, realMode)
	m.requireReason(t, ReasonIO)
}

// A full ring makes the next write an exit, and nothing is lost or out of order
// while it goes round.
func TestCoalescedRingWraps(t *testing.T) {
	m := newMachine(t, realMode, []byte{
		0xba, 0x00, 0x06, // mov dx, 0x600
		0xef,       // out dx, ax
		0x40,       // inc ax
		0xeb, 0xfc, // jmp -4
	})
	require.NoError(t, m.vm.RegisterCoalesced(CoalescedZone{Addr: 0x600, Size: 2, PIO: true}))
	want := uint16(0)
	check := func(data []byte) {
		require.Len(t, data, 2)
		require.Equal(t, want, binary.LittleEndian.Uint16(data))
		want++
	}
	for range 5 {
		m.requireReason(t, ReasonIO)
		n := m.cpu.DrainCoalesced(func(addr uint64, data []byte, pio bool) { check(data) })
		assert.Positive(t, n)
		_, _, _, _, data := m.cpu.IO()
		check(data)
	}
	assert.Greater(t, want, uint16(4*(coalescedMax-1)))
}

func TestDrainDoesNotAllocate(t *testing.T) {
	m := newMachine(t, realMode, []byte{
		0xba, 0x00, 0x06, // mov dx, 0x600
		0xee,       // out dx, al
		0xb0, 0x01, // mov al, 1
		0xe6, 0xf4, // out 0xf4, al
		0xeb, 0xf9, // jmp -7
	})
	require.NoError(t, m.vm.RegisterCoalesced(CoalescedZone{Addr: 0x600, Size: 2, PIO: true}))
	sum := 0
	fn := func(addr uint64, data []byte, pio bool) { sum += len(data) }
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := m.cpu.Run(); err != nil {
			panic(err)
		}
		m.cpu.DrainCoalesced(fn)
	}))
	assert.Positive(t, sum)
}

func TestCoalescedRingIsBounded(t *testing.T) {
	mem := make([]byte, 3*pageSize)
	require.Nil(t, coalescedAt(mem, 0), "this KVM has none")
	require.Nil(t, coalescedAt(mem, 3), "outside the mapping")
	require.Nil(t, coalescedAt(mem, -1))
	r := coalescedAt(mem, 2)
	require.NotNil(t, r)

	n := 0
	count := func(addr uint64, data []byte, pio bool) { n += 1 + len(data) }
	for _, bad := range [][2]uint32{{0, ^uint32(0)}, {^uint32(0), 0}, {0, uint32(coalescedMax)}, {uint32(coalescedMax), 1}} {
		r.First, r.Last = bad[0], bad[1]
		assert.Zero(t, r.drain(count), "%v", bad)
	}
	assert.Zero(t, n)

	r.First, r.Last = uint32(coalescedMax)-1, 1
	r.Entries[coalescedMax-1].Len = ^uint32(0) // as long as an entry can be
	r.Entries[0].Len = 2
	assert.Equal(t, 2, r.drain(count))
	assert.Equal(t, 2+8+2, n)
	assert.EqualValues(t, 1, r.First)
}
