package pci

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// stateful is a machine with one function that has some of everything.
func stateful(t *testing.T) *bench {
	m := newMachine(t)
	f, src := NewFunction(testID), &fakeSource{}
	require.NoError(t, f.AddBAR(0, BAR{Size: 0x1000, Wide: true}))
	x, err := f.AddMSIX(3, 0, 0, 0x800, src)
	require.NoError(t, err)
	_, err = f.AddCapability(9, []byte{1, 2, 3, 4}, []byte{0, 0xff, 0x0f, 0})
	require.NoError(t, err)
	return &bench{machine: m, x: x, src: src, dev: m.plugIn(t, f), f: f}
}

func TestStateRoundTrip(t *testing.T) {
	a := stateful(t)
	a.aim(a.dev, 0x10)
	a.set(a.dev, 4, 2, 0x0406)
	a.set(a.dev, 0x10, 4, 0x00100000)
	a.set(a.dev, 0x4c, 4, 0xffffffff)
	a.set(a.dev, 0x50, 4, 0xffffffff)
	a.control(0x8000)
	a.entry(0, 0, 0xfee00000)
	a.entry(0, 8, 0x31)
	a.entry(0, 12, 0)
	a.x.Trigger(2)

	state := a.State()
	text, err := json.Marshal(state)
	require.NoError(t, err)
	var read HostState
	require.NoError(t, json.Unmarshal(text, &read))
	require.Equal(t, state, read, "plain data")

	b := stateful(t)
	b.control(0x8000)
	b.x.Trigger(0) // what was pending before is not the state's
	b.x.Trigger(1)
	b.src.take()
	require.NoError(t, b.SetState(read))
	assert.Equal(t, state, b.State())
	for reg := 0; reg < configSize; reg += 4 {
		require.Equal(t, a.get(a.dev, reg, 4), b.get(b.dev, reg, 4), "register %#x", reg)
	}
	assert.Equal(t, a.mem.ranges, b.mem.ranges)
	assert.Equal(t, map[uint64]uint64{0x4000100000: 0x1000}, b.mem.ranges)
	assert.Equal(t, []string{"0 program 0xfee00000 0x31", "0 unmask"}, b.src.take())
	assert.Equal(t, uint32(4), b.pba())
	assert.Equal(t, word(a.ports, 4), word(b.ports, 4), "the address register")
	b.entry(2, 12, 0)
	assert.Equal(t, 1, b.sent(2), "delivered after the restore")
	assert.Zero(t, b.sent(0)+b.sent(1))

	t.Run("back again", func(t *testing.T) {
		require.NoError(t, b.SetState(stateful(t).State()))
		assert.Empty(t, b.mem.ranges)
		assert.True(t, b.src.vectors[0].masked)
	})
	t.Run("a function by itself", func(t *testing.T) {
		c := stateful(t)
		require.NoError(t, c.f.SetState(a.f.State()))
		assert.Equal(t, a.f.State(), c.f.State())
		assert.Equal(t, a.mem.ranges, c.mem.ranges)
	})
	t.Run("a function that is not plugged", func(t *testing.T) {
		f, _, _ := vectors(t, 1)
		s := f.State()
		s.Command = 2
		require.NoError(t, f.SetState(s))
		assert.Equal(t, s, f.State())
	})
}

// TestStateForged: a state can't do what a guest could not.
func TestStateForged(t *testing.T) {
	b := stateful(t)
	s := b.State()
	s.Address = 0xffffffff
	f := &s.Functions[1]
	f.Command = 0xffff
	for i := range f.BARs {
		f.BARs[i] = 0xffffffff
	}
	for _, c := range f.Capabilities {
		for i := range c.Body {
			c.Body[i] = 0xff
		}
	}
	f.MSIX.Control = 0xffff
	for i := range f.MSIX.Table {
		f.MSIX.Table[i] = MSIXEntry{^uint64(0), ^uint32(0), ^uint32(0), true}
	}
	require.NoError(t, b.SetState(s))
	assert.Empty(t, b.mem.ranges)
	got := b.State()
	assert.Equal(t, uint32(0x80fffffc), got.Address)
	g := got.Functions[1]
	assert.Equal(t, uint16(0x0406), g.Command)
	assert.Equal(t, [6]uint32{0xfffff004, 0xffffffff}, g.BARs)
	assert.Equal(t, []byte{0, 0xff, 0x0f, 0}, g.Capabilities[1].Body)
	assert.Equal(t, uint16(0xc000), g.MSIX.Control)
	assert.Equal(t, MSIXEntry{^uint64(3), ^uint32(0), 1, true}, g.MSIX.Table[0])
}

func TestStateErrors(t *testing.T) {
	tests := []struct {
		name   string
		change func(*HostState)
		words  string
	}{
		{"a function less", func(s *HostState) { s.Functions = s.Functions[:1] }, "1 functions for 2"},
		{"a capability less", func(s *HostState) { s.Functions[1].Capabilities = nil }, "0 capabilities for 2"},
		{"elsewhere", func(s *HostState) { s.Functions[1].Capabilities[1].Offset++ }, "a capability of 4 bytes at 0x4d"},
		{"shorter", func(s *HostState) { s.Functions[1].Capabilities[1].Body = nil }, "a capability of 0 bytes"},
		{"no MSI-X", func(s *HostState) { s.Functions[1].MSIX = nil }, "MSI-X on one side"},
		{"MSI-X for the bridge", func(s *HostState) { s.Functions[0].MSIX = &MSIXState{} }, "device 0: MSI-X on one side"},
		{"vectors", func(s *HostState) { s.Functions[1].MSIX.Table = nil }, "0 MSI-X vectors for 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := stateful(t)
			before := b.State()
			s := b.State()
			s.Functions[0].Command = 2
			tt.change(&s)
			err := b.SetState(s)
			require.ErrorIs(t, err, ErrState)
			assert.ErrorContains(t, err, tt.words)
			assert.Equal(t, before, b.State(), "nothing has changed")
			if len(s.Functions) == 2 && s.Functions[0].MSIX == nil {
				assert.ErrorIs(t, b.f.SetState(s.Functions[1]), ErrState)
			}
		})
	}
}
