package pci_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices"
	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/virtio"
	vpci "github.com/vole-vmm/vole/virtio/pci"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestBARMovedWhileActive: PCI 3.0, section 6.2.5.1: a guest may do it; requests,
// notifications and interrupts go on at the new place, and the old one is empty.
func TestBARMovedWhileActive(t *testing.T) {
	for _, tc := range []struct {
		name string
		to   uint64
	}{
		{"up", 0x40_0800_0000},
		{"to the neighbour", 0x40_0000_8000},
		{"below 4 GiB", 0xd000_0000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := open(t)
			c.start()
			c.echo(0)
			from, memory := c.base(), c.r.Memory
			c.e.Hold()
			c.add(1)
			c.r.Notify(1)
			c.Until("a request is in flight", func() bool { return c.e.Held() == 1 })

			c.moveBAR(tc.to)
			require.Equal(t, tc.to, c.base())
			c.add(0)
			assert.False(t, memory.Write(from+vpci.NotifyOffset, []byte{0, 0}), "the old place")
			p := []byte{0}
			assert.False(t, memory.Read(from+vpci.DeviceStatus, p))
			assert.Equal(t, []byte{0xff}, p)

			c.r.Memory = shifted(t, memory, from, tc.to)
			assert.Equal(t, running, c.r.Status())
			assert.Contains(t, []int{2, 3}, c.e.Popped(), "the last may be taken without being told")
			c.e.Release()
			assert.EqualValues(t, 5, c.Queues[1].Next().Len, "what was in flight")
			c.r.Notify(0)
			assert.EqualValues(t, 5, c.Queues[0].Next().Len)
			c.rest()
			want := c.counts()
			c.mask(1, true)
			c.echo(0)
			assert.Equal(t, want, c.counts())
			assert.EqualValues(t, 1<<1, c.pending())
			c.mask(1, false)
			c.echo(1)
			want[1]++
			want[2]++
			assert.Equal(t, want, c.counts())

			c.moveBAR(from)
			c.r.Memory = memory
			c.echo(0)
		})
	}
}

// TestMemoryDecodingOff: PCI 3.0, section 6.2.2: the BAR does not answer; the
// device, which is not reset by that, goes on.
func TestMemoryDecodingOff(t *testing.T) {
	c := open(t)
	c.e.Hold()
	c.start()
	c.add(0)
	c.r.Notify(0)
	c.Until("a request is in flight", func() bool { return c.e.Held() == 1 })
	base, before := c.base(), c.r.Device.State()
	c.r.SetConfig(command, 2, masterOn)
	for off := uint64(0); off < barSize; off += 0x800 {
		p := []byte{0, 0, 0, 0}
		assert.False(t, c.r.Memory.Write(base+off, p), "%#x", off)
		assert.False(t, c.r.Memory.Read(base+off, p), "%#x", off)
		assert.Equal(t, []byte{0xff, 0xff, 0xff, 0xff}, p)
	}
	assert.Equal(t, before, c.r.Device.State())
	n := c.counts()
	c.e.Release()
	assert.EqualValues(t, 5, c.Queues[0].Next().Len)
	c.rest()
	assert.Equal(t, n[1]+1, c.r.Vectors[1].Count(), "an interrupt is no access to the BAR")
	c.r.SetConfig(command, 2, masterOn|memoryOn)
	c.echo(0)
}

// TestOnMap: what a machine binds doorbells by: each place is left before the
// next is told.
func TestOnMap(t *testing.T) {
	var told []string
	d, err := vpci.New(config(t, virtiotest.NewEcho(t)), new(source), func(base uint64, mapped bool) {
		told = append(told, fmt.Sprintf("%#x %v", base, mapped))
	})
	require.NoError(t, err)
	host, err := pci.NewHost(pci.HostConfig{
		ECAMBase: virtiotest.ECAMBase, Buses: 1, Memory: devices.NewBus("memory"), Window32: pci.Range{Base: 0xd000_0000, Size: 1 << 20},
	})
	require.NoError(t, err)
	slot, err := host.Plug(d.PCI())
	require.NoError(t, err)
	r := &virtiotest.PCIRegisters{Device: d, Host: host, Slot: slot}
	take := func() []string {
		defer func() { told = nil }()
		return told
	}
	assert.Empty(t, take())
	r.SetConfig(command, 2, memoryOn)
	assert.Equal(t, []string{"0xd0000000 true"}, take())
	r.SetConfig(bar0, 4, 0xd008_0000)
	assert.Equal(t, []string{"0xd0000000 false", "0xd0080000 true"}, take())
	r.SetConfig(bar0, 4, 0x1000_0000)
	assert.Equal(t, []string{"0xd0080000 false"}, take(), "out of the window")
	r.SetConfig(bar0, 4, 0xd000_0000)
	assert.Equal(t, []string{"0xd0000000 true"}, take())
	require.NoError(t, d.Function().Discard())
	require.NoError(t, host.Close())
	assert.Equal(t, []string{"0xd0000000 false"}, take())
}

// neighbour plugs a second device into c's host and returns it with a driver,
// which has its own part of c's RAM.
func neighbour(t *testing.T, c *card) *card {
	t.Helper()
	e := virtiotest.NewEcho(t)
	src := new(source)
	d, err := vpci.New(virtio.FunctionConfig{Device: e, Memory: c.Mem}, src, nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Patience)
		defer cancel()
		assert.NoError(t, d.Function().Close(ctx))
	})
	slot, err := c.r.Host.Plug(d.PCI())
	require.NoError(t, err)
	driver, r := *c.Driver, *c.r
	n := &card{Driver: &driver, t: t, e: e, r: &r, msix: c.msix, table: c.table, pba: c.pba}
	n.Alloc(virtiotest.RAM/2, 16)
	n.Function, n.Regs = d.Function(), n.r
	r.Device, r.Slot, r.Vectors = d, slot, nil
	for _, v := range src.made {
		r.Vectors = append(r.Vectors, &v.Vector)
	}
	n.r.SetConfig(command, 2, memoryOn|masterOn)
	r.Memory = shifted(t, c.r.Memory, c.base(), n.base())
	for i := range r.Vectors {
		n.mask(i, false)
	}
	n.r.SetConfig(n.msix+2, 2, msixEnable)
	return n
}

// TestTwoDevices: behind one host bridge neither is seen in the other.
func TestTwoDevices(t *testing.T) {
	a := open(t)
	b := neighbour(t, a)
	require.NotEqual(t, a.base(), b.base())
	require.NotEqual(t, a.r.Slot, b.r.Slot)

	idle := b.r.Device.State()
	a.start()
	a.echo(0)
	a.changed()
	assert.Equal(t, idle, b.r.Device.State())
	assert.Equal(t, []int{0, 0, 0}, b.counts())

	busy, counts := a.r.Device.State(), a.counts()
	b.Negotiate(virtio.FeatureIndirectDesc)
	for i := range 2 {
		b.SetUp(i, 8)
		b.selectQueue(i)
		b.r.Set(vpci.QueueMSIXVector, 2, uint32(2-i))
	}
	b.r.Set(vpci.ConfigMSIXVector, 2, 0)
	b.r.SetStatus(running)
	b.echo(0)
	b.echo(1)
	b.echo(1)
	b.changed()
	assert.Equal(t, []int{1, 2, 1}, b.counts())
	assert.Equal(t, busy, a.r.Device.State())
	assert.Equal(t, counts, a.counts())

	b.r.SetConfig(b.msix+2, 2, msixEnable|msixFunctionMask)
	a.echo(1)
	counts[2]++
	assert.Equal(t, counts, a.counts())
	a.Reset()
	assert.Equal(t, running, b.r.Status())
	b.r.SetConfig(command, 2, 0)
	a.start()
	a.echo(0)
	b.r.SetConfig(command, 2, memoryOn)
	b.echo(1)
	b.r.SetConfig(b.msix+2, 2, msixEnable)
	assert.Equal(t, []int{1, 3, 1}, b.counts())
	b.Reset()
	a.echo(0)
}

// TestState: the transport's registers as a plain value, written and read back.
func TestState(t *testing.T) {
	c := open(t)
	none := []virtio.FunctionQueueState{{QueueConfig: virtio.QueueConfig{Size: 64}}, {QueueConfig: virtio.QueueConfig{Size: 64}}}
	assert.Equal(t, vpci.State{
		ConfigVector: noVector, Vectors: []uint16{noVector, noVector},
		Function: virtio.State{Queues: none, Device: virtiotest.EchoState{}},
	}, c.r.Device.State())

	c.Negotiate(virtio.FeatureIndirectDesc)
	c.SetUp(0, 8)
	c.DriverOK()
	c.echo(0)
	c.changed()
	c.e.Update(func([]byte) {})
	c.r.ConfigGeneration()
	c.r.Set(vpci.DeviceFeatureSelect, 4, 3)
	c.r.Set(vpci.DriverFeatureSelect, 4, 4)
	c.selectQueue(0xfffe)
	want := vpci.State{
		DeviceFeaturesSel: 3, DriverFeaturesSel: 4, QueueSel: 0xfffe, ConfigVector: 0, Vectors: []uint16{1, 2}, ISR: 3, ConfigGeneration: 1,
		Function: virtio.State{
			Status: running, Features: c.Features,
			Queues: []virtio.FunctionQueueState{
				{QueueConfig: c.Queues[0].Config, Ready: true, QueueState: virtio.QueueState{NextAvail: 1, NextUsed: 1}},
				none[1],
			},
			Device: virtiotest.EchoState{Popped: 1, Pushed: 1},
		},
	}
	s := c.r.Device.State()
	assert.Equal(t, want, s)
	gob.Register(virtiotest.EchoState{})
	var coded bytes.Buffer
	require.NoError(t, gob.NewEncoder(&coded).Encode(s))
	var back vpci.State
	require.NoError(t, gob.NewDecoder(&coded).Decode(&back))
	assert.Equal(t, want, back)

	s.Vectors[0] = 7
	assert.Equal(t, want, c.r.Device.State(), "it is a copy")
}

// TestBusStateRound: what the host bridge keeps of an active device, taken, lost
// and put back: place, decoding, vectors and what was pending in them.
func TestBusStateRound(t *testing.T) {
	c := open(t)
	c.start()
	c.moveBAR(0x40_0100_0000)
	memory := c.r.Memory
	c.r.Memory = shifted(t, memory, 0x40_0000_0000, 0x40_0100_0000)
	c.mask(1, true)
	c.echo(0)
	want := c.r.Host.State()

	c.r.Host.Reset()
	assert.Zero(t, c.r.Config(command, 2))
	assert.NotEqual(t, want, c.r.Host.State())
	require.NoError(t, c.r.Host.SetState(want))
	assert.Equal(t, want, c.r.Host.State())

	assert.Equal(t, running, c.r.Status(), "the reset was the bus's")
	n := c.counts()
	c.mask(1, false)
	n[1]++
	assert.Equal(t, n, c.counts(), "what was pending")
	c.echo(0)
	c.echo(1)
	n[1]++
	n[2]++
	assert.Equal(t, n, c.counts())
}
