package pci_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices"
	"github.com/vole-vmm/vole/devices/pci"
	vpci "github.com/vole-vmm/vole/virtio/pci"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestVectorRegisters: VIRTIO 1.2, section 4.1.5.1.2.1: they are unmapped at
// first, take each vector of the table, and read back NO_VECTOR for any other.
func TestVectorRegisters(t *testing.T) {
	c := open(t)
	for _, r := range []struct {
		name  string
		off   uint64
		queue int
	}{
		{"configuration", vpci.ConfigMSIXVector, 0},
		{"queue 0", vpci.QueueMSIXVector, 0},
		{"queue 1", vpci.QueueMSIXVector, 1},
	} {
		t.Run(r.name, func(t *testing.T) {
			c.selectQueue(r.queue)
			assert.EqualValues(t, noVector, c.r.Get(r.off, 2), "at first")
			for _, v := range []uint32{0, 1, 2, noVector} {
				c.r.Set(r.off, 2, v)
				assert.Equal(t, v, c.r.Get(r.off, 2))
			}
			for _, v := range []uint32{3, 4, 0x7ff, 0x800, 0x8000, 0xfffe} {
				c.r.Set(r.off, 2, 1)
				c.r.Set(r.off, 2, v)
				assert.EqualValues(t, noVector, c.r.Get(r.off, 2), "there is no vector %d", v)
			}
			c.r.Set(r.off, 2, 2)
		})
	}
	s := c.r.Device.State()
	assert.EqualValues(t, 2, s.ConfigVector)
	assert.Equal(t, []uint16{2, 2}, s.Vectors, "each has its own")
}

// TestAnyEventToAnyVector: VIRTIO 1.2, section 4.1.5.1.2.1, with vectors shared
// and changed while the device runs.
func TestAnyEventToAnyVector(t *testing.T) {
	c := open(t)
	c.start()
	for v := range 3 {
		c.r.Set(vpci.ConfigMSIXVector, 2, uint32(v))
		for i := range 2 {
			c.selectQueue(i)
			c.r.Set(vpci.QueueMSIXVector, 2, uint32(v))
		}
		want := c.counts()
		want[v] += 3
		c.echo(0)
		c.echo(1)
		c.changed()
		assert.Equal(t, want, c.counts(), "vector %d", v)
	}
}

// TestNoVectorRaisesNothing: VIRTIO 1.2, section 4.1.5.1.2: an event that is not
// mapped is silent, and the others are not.
func TestNoVectorRaisesNothing(t *testing.T) {
	c := open(t)
	c.start()
	for _, v := range []uint32{noVector, 3, 0x8000} {
		c.selectQueue(0)
		c.r.Set(vpci.QueueMSIXVector, 2, v)
		want := c.counts()
		c.echo(0)
		assert.Equal(t, want, c.counts(), "queue 0 with %#x", v)
		c.echo(1)
		c.changed()
		want[0]++
		want[2]++
		assert.Equal(t, want, c.counts())
	}
	c.selectQueue(0)
	c.r.Set(vpci.QueueMSIXVector, 2, 1)
	c.r.Set(vpci.ConfigMSIXVector, 2, noVector)
	want := c.counts()
	c.changed()
	assert.Equal(t, want, c.counts(), "the configuration")
	c.echo(0)
	want[1]++
	assert.Equal(t, want, c.counts(), "nothing was kept for later")
	assert.Zero(t, c.pending())
}

// TestMSIXStartsMasked: PCI 3.0, sections 6.8.2.3 and 6.8.2.9: disabled, and every
// vector masked; so a device whose driver forgets that is silent.
func TestMSIXStartsMasked(t *testing.T) {
	src := new(source)
	d, err := vpci.New(config(t, virtiotest.NewEcho(t)), src, nil)
	require.NoError(t, err)
	host, err := pci.NewHost(pci.HostConfig{
		ECAMBase: virtiotest.ECAMBase, Buses: 1, Memory: devices.NewBus("memory"), Window32: pci.Range{Base: 0xd000_0000, Size: 1 << 20},
	})
	require.NoError(t, err)
	slot, err := host.Plug(d.PCI())
	require.NoError(t, err)
	r := &virtiotest.PCIRegisters{Device: d, Host: host, Slot: slot}
	assert.Zero(t, r.Config(command, 2), "memory decoding is off, and the device no master")
	at := r.Capability(func(id, _ uint8) bool { return id == capMSIX })
	assert.EqualValues(t, 2, r.Config(at+2, 2), "the table's size less one, not enabled, function not masked")

	table := uint64(r.Config(at+4, 4))
	entry := func(i int) (p [entrySize]byte) {
		require.True(t, d.PCI().ReadBAR(vpci.BARIndex, table+uint64(i)*entrySize, p[:]))
		return p
	}
	for i := range 3 {
		assert.Equal(t, [entrySize]byte{entryControl: entryMasked}, entry(i), "entry %d", i)
	}
	d.Config()
	d.Queue(0)
	r.SetConfig(at+2, 2, msixEnable)
	d.PCI().WriteBAR(vpci.BARIndex, vpci.ConfigMSIXVector, little(0, 2))
	d.Config()
	var pba [8]byte
	require.True(t, d.PCI().ReadBAR(vpci.BARIndex, uint64(r.Config(at+8, 4)), pba[:]))
	assert.Equal(t, [8]byte{1}, pba, "held back")
	for i, v := range src.made {
		assert.Zero(t, v.Count(), "vector %d", i)
	}
	require.NoError(t, d.Function().Discard())
	require.NoError(t, host.Close())
	for i, v := range src.made {
		assert.Equal(t, 1, v.closed, "vector %d", i)
	}
}

// TestVectorMask: PCI 3.0, sections 6.8.2.9 and 6.8.3.5: a masked vector holds one
// interrupt back, shows it, and lets it go; the others are free.
func TestVectorMask(t *testing.T) {
	c := open(t)
	c.start()
	c.mask(1, true)
	want := c.counts()
	for range 3 {
		c.echo(0)
	}
	assert.Equal(t, want, c.counts())
	assert.EqualValues(t, 1<<1, c.pending())
	c.echo(1)
	c.changed()
	want[0]++
	want[2]++
	assert.Equal(t, want, c.counts())
	assert.EqualValues(t, 1<<1, c.pending())

	c.mask(1, false)
	want[1]++
	assert.Equal(t, want, c.counts(), "one for all that were held back")
	assert.Zero(t, c.pending())
	c.echo(0)
	want[1]++
	assert.Equal(t, want, c.counts())
}

// TestMessageChangedWhileMasked: PCI 3.0, section 6.8.2: what was held back goes
// out with the message that the entry has then.
func TestMessageChangedWhileMasked(t *testing.T) {
	c := open(t)
	c.start()
	addr, data := c.r.Vectors[1].Message()
	assert.EqualValues(t, 0xfee0_0000, addr)
	assert.EqualValues(t, 0x41, data)
	c.mask(1, true)
	c.echo(0)
	entry := c.table + entrySize
	c.r.Set(entry, 4, 0xfee0_1000)
	c.r.Set(entry+4, 4, 1)
	c.r.Set(entry+8, 4, 0x77)
	n := c.r.Vectors[1].Count()
	c.mask(1, false)
	addr, data = c.r.Vectors[1].Message()
	assert.EqualValues(t, 0x1_fee0_1000, addr)
	assert.EqualValues(t, 0x77, data)
	assert.Equal(t, n+1, c.r.Vectors[1].Count())
}

// TestFunctionMask: PCI 3.0, section 6.8.2.3: it masks all vectors at once, and
// leaves those masked that are so by themselves.
func TestFunctionMask(t *testing.T) {
	c := open(t)
	c.start()
	c.mask(2, true)
	c.r.SetConfig(c.msix+2, 2, msixEnable|msixFunctionMask)
	want := c.counts()
	c.echo(0)
	c.echo(1)
	c.changed()
	assert.Equal(t, want, c.counts())
	assert.EqualValues(t, 1<<0|1<<1|1<<2, c.pending())
	c.r.SetConfig(c.msix+2, 2, msixEnable)
	want[0]++
	want[1]++
	assert.Equal(t, want, c.counts())
	assert.EqualValues(t, 1<<2, c.pending())
	c.mask(2, false)
	want[2]++
	assert.Equal(t, want, c.counts())
}

// TestMSIXDisabled: VIRTIO 1.2, section 4.1.4.5.1: nothing is sent nor kept, and
// the ISR tells.
func TestMSIXDisabled(t *testing.T) {
	c := open(t)
	c.start()
	c.r.Acknowledge()
	c.r.SetConfig(c.msix+2, 2, 0)
	want := c.counts()
	c.echo(0)
	c.changed()
	assert.EqualValues(t, 3, c.r.Get(vpci.ISROffset, 1))
	c.r.SetConfig(c.msix+2, 2, msixEnable)
	assert.Zero(t, c.pending())
	assert.Equal(t, want, c.counts())
	c.echo(0)
	want[1]++
	assert.Equal(t, want, c.counts())
}

// TestISR: VIRTIO 1.2, sections 4.1.4.5 and 4.1.4.5.1: a bit for each kind of
// event, and reading clears both.
func TestISR(t *testing.T) {
	c := open(t)
	c.start()
	isr := func() uint32 { return c.r.Get(vpci.ISROffset, 1) }
	assert.Zero(t, isr())
	c.echo(0)
	assert.EqualValues(t, 1, isr())
	assert.Zero(t, isr(), "reading clears it")
	c.changed()
	assert.EqualValues(t, 2, isr())
	assert.Zero(t, isr())
	c.echo(1)
	c.changed()
	for _, v := range []uint32{0, 1, 3, 0xff} {
		c.r.Set(vpci.ISROffset, 1, v) // it is read-only
	}
	for off := uint64(1); off < 16; off++ {
		assert.Zero(t, c.r.Get(vpci.ISROffset+off, 1))
	}
	assert.EqualValues(t, 3, c.r.Device.State().ISR)
	assert.EqualValues(t, 3, isr())
	assert.Zero(t, isr())
}

// TestResetClearsTheTransport: VIRTIO 1.2, sections 2.4.1, 4.1.4.3.1 and
// 4.1.5.1.2.1: selectors, vectors, ISR, queues, and the interrupts that wait in
// the MSI-X table, which itself is PCI's and stays.
func TestResetClearsTheTransport(t *testing.T) {
	c := open(t)
	fresh := c.r.Device.State()
	c.start()
	c.mask(1, true)
	c.r.SetConfig(c.msix+2, 2, msixEnable)
	c.echo(0)
	c.changed()
	c.r.Set(vpci.DeviceFeatureSelect, 4, 1)
	c.r.Set(vpci.DriverFeatureSelect, 4, 7)
	c.selectQueue(1)
	s := c.r.Device.State()
	assert.Equal(t, []uint32{1, 7}, []uint32{s.DeviceFeaturesSel, s.DriverFeaturesSel})
	assert.Equal(t, []uint16{1, 0, 1, 2}, append([]uint16{s.QueueSel, s.ConfigVector}, s.Vectors...))
	assert.EqualValues(t, 3, s.ISR)
	assert.EqualValues(t, 1<<1, c.pending())
	pciState := c.r.Device.PCI().State()
	want := c.counts()

	c.r.SetStatus(0)
	c.Until("the device has reset", func() bool { return c.r.Status() == 0 })
	fresh.Function.Device = c.e.State()
	assert.Equal(t, fresh, c.r.Device.State())
	assert.Zero(t, c.pending())
	c.mask(1, false)
	assert.Equal(t, want, c.counts(), "nothing from before the reset")
	pciState.MSIX.Table[1].Pending, pciState.MSIX.Table[1].Control = false, 0
	assert.Equal(t, pciState, c.r.Device.PCI().State())

	c.start()
	c.echo(0)
	want[1]++
	assert.Equal(t, want, c.counts())
}
