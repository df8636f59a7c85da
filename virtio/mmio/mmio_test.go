package mmio_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/mmio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

const (
	ackDriver  = uint32(virtio.StatusAcknowledge | virtio.StatusDriver)
	featuresOK = ackDriver | uint32(virtio.StatusFeaturesOK)
	running    = featuresOK | uint32(virtio.StatusDriverOK)
)

func open(t *testing.T) (*virtiotest.Driver, *virtiotest.Echo, virtiotest.MMIORegisters) {
	t.Helper()
	e := virtiotest.NewEcho(t)
	d := virtiotest.OpenMMIO(t, e)
	return d, e, d.Regs.(virtiotest.MMIORegisters)
}

// TestIdentity: VIRTIO 1.2, section 4.2.2.1.
func TestIdentity(t *testing.T) {
	_, _, r := open(t)
	assert.EqualValues(t, 0x74726976, r.Get(mmio.MagicValue))
	assert.EqualValues(t, 2, r.Get(mmio.Version))
	assert.EqualValues(t, virtiotest.TypeEcho, r.Get(mmio.DeviceID))
	p := make([]byte, 4)
	r.Device.Read(mmio.MagicValue, p)
	assert.Equal(t, "virt", string(p))
	r.Device.Read(mmio.VendorID, p)
	assert.Equal(t, "VOLE", string(p))
	assert.Equal(t, "mmio", r.Transport())
}

// TestOnlyAlignedWords: VIRTIO 1.2, section 4.2.2.2: the registers are 32 bits
// wide; what else is done to them reads 0 and writes nothing.
func TestOnlyAlignedWords(t *testing.T) {
	_, _, r := open(t)
	r.Set(mmio.DeviceStatus, ackDriver)
	for off := uint64(0); off < mmio.Config; off++ {
		for _, n := range []int{1, 2, 3, 4, 8} {
			if n == 4 && off%4 == 0 || off+uint64(n) > mmio.Config {
				continue
			}
			p := make([]byte, n)
			for i := range p {
				p[i] = 0xee
			}
			r.Device.Read(off, p)
			assert.Equal(t, make([]byte, n), p, "%d bytes at %#x", n, off)
			for i := range p {
				p[i] = 0xff
			}
			r.Device.Write(off, p)
		}
	}
	assert.Equal(t, mmio.State{Function: virtio.State{
		Status: uint8(ackDriver), Device: virtiotest.EchoState{},
		Queues: []virtio.FunctionQueueState{{QueueConfig: virtio.QueueConfig{Size: 64}}, {QueueConfig: virtio.QueueConfig{Size: 64}}},
	}}, r.Device.State())
}

// TestDirections: VIRTIO 1.2, section 4.2.2, table 4.1: registers that are only
// written read 0, those that are only read take nothing, and what is not in the
// table is nothing.
func TestDirections(t *testing.T) {
	known := map[uint64]bool{
		mmio.MagicValue: true, mmio.Version: true, mmio.DeviceID: true, mmio.VendorID: true, mmio.DeviceFeatures: true,
		mmio.QueueNumMax: true, mmio.QueueReady: true, mmio.InterruptStatus: true, mmio.DeviceStatus: true, mmio.ConfigGeneration: true,
	}
	taken := map[uint64]bool{
		mmio.DeviceFeaturesSel: true, mmio.DriverFeatures: true, mmio.DriverFeaturesSel: true, mmio.QueueSel: true,
		mmio.QueueNum: true, mmio.QueueReady: true, mmio.QueueNotify: true, mmio.InterruptACK: true, mmio.DeviceStatus: true,
		mmio.QueueDescLow: true, mmio.QueueDescHigh: true, mmio.QueueDriverLow: true, mmio.QueueDriverHigh: true,
		mmio.QueueDeviceLow: true, mmio.QueueDeviceHigh: true,
	}
	d, _, r := open(t)
	d.Negotiate(0)
	for off := uint64(0); off < mmio.Config; off += 4 {
		was := r.Device.State()
		if !taken[off] {
			for _, v := range []uint32{0, 1, 0xffff_ffff} {
				r.Set(off, v)
			}
			assert.Equal(t, was, r.Device.State(), "%#x", off)
		}
		if off >= mmio.SHMLenLow && off <= mmio.SHMBaseHigh {
			assert.EqualValues(t, 0xffff_ffff, r.Get(off), "there is no shared memory region")
		} else if !known[off] {
			assert.Zero(t, r.Get(off), "%#x", off)
		}
	}
	r.Set(mmio.SHMSel, 1)
	assert.EqualValues(t, 0xffff_ffff, r.Get(mmio.SHMLenLow))
}

// TestFeatureSelectors: VIRTIO 1.2, section 4.2.2: words of features that there
// are not read 0 and take nothing.
func TestFeatureSelectors(t *testing.T) {
	_, _, r := open(t)
	r.Set(mmio.DeviceStatus, ackDriver)
	offered := r.DeviceFeatures()
	for sel, want := range map[uint32]uint32{0: uint32(offered), 1: uint32(offered >> 32), 2: 0, 3: 0, 32: 0, 0xffff_ffff: 0} {
		r.Set(mmio.DeviceFeaturesSel, sel)
		assert.Equal(t, want, r.Get(mmio.DeviceFeatures), "word %#x", sel)
		r.Set(mmio.DriverFeaturesSel, sel)
		r.Set(mmio.DriverFeatures, want)
	}
	for _, sel := range []uint32{2, 33, 0x8000_0000} {
		r.Set(mmio.DriverFeaturesSel, sel)
		r.Set(mmio.DriverFeatures, 0xffff_ffff)
	}
	assert.Equal(t, offered, r.Device.Function().DriverFeatures())
	r.Set(mmio.DeviceStatus, featuresOK)
	assert.Equal(t, featuresOK, r.Get(mmio.DeviceStatus))
}

// TestQueueSelector: VIRTIO 1.2, section 4.2.2: all 32 bits of it select.
func TestQueueSelector(t *testing.T) {
	d, _, r := open(t)
	d.Negotiate(0)
	for _, sel := range []uint32{2, 0x1_0000, 0x1_0001, 0xffff_ffff} {
		r.Set(mmio.QueueSel, sel)
		assert.Zero(t, r.Get(mmio.QueueNumMax))
		r.Set(mmio.QueueNum, 4)
		r.Set(mmio.QueueReady, 1)
		assert.Zero(t, r.Get(mmio.QueueReady))
		r.Set(mmio.QueueNotify, sel)
	}
	for i := range 2 {
		c, ready := d.Function.Queue(uint32(i))
		assert.False(t, ready)
		assert.EqualValues(t, 64, c.Size)
	}
}

// TestQueueReady: VIRTIO 1.2, sections 4.2.2 and 4.2.2.2: it reads what was
// written, a queue can be made not ready again before DRIVER_OK and then takes
// another size.
func TestQueueReady(t *testing.T) {
	d, e, r := open(t)
	d.Negotiate(0)
	d.SetUp(0, 64)
	assert.EqualValues(t, 1, r.Get(mmio.QueueReady))
	r.Set(mmio.QueueNum, 32)
	r.Set(mmio.QueueReady, 0)
	assert.Zero(t, r.Get(mmio.QueueReady))
	c, _ := d.Function.Queue(0)
	assert.EqualValues(t, 64, c.Size, "it was ready")
	r.Set(mmio.QueueNum, 8)
	r.Set(mmio.QueueReady, 1)
	d.SetUp(1, 64)
	r.Set(mmio.QueueReady, 0)
	d.DriverOK()
	assert.Equal(t, 8, e.Activation().Queues[0].Size())
	assert.True(t, e.Activation().Queues[1] == nil, "it is not ready any more")
}

// TestQueueSizesThatDontFit: VIRTIO 1.2, section 4.2.2.2: a size is not cut to
// 16 bits.
func TestQueueSizesThatDontFit(t *testing.T) {
	for _, n := range []uint32{0x1_0000, 0x1_0040, 0xffff_0040} {
		d, e, r := open(t)
		d.Negotiate(0)
		d.SetUp(0, 64)
		r.Set(mmio.QueueReady, 0)
		r.Set(mmio.QueueNum, n)
		r.Set(mmio.QueueReady, 1)
		d.DriverOK()
		assert.Equal(t, running|uint32(virtio.StatusNeedsReset), r.Get(mmio.DeviceStatus))
		assert.Zero(t, e.Activated())
	}
}

// TestStatusIsCutToNoReset: VIRTIO 1.2, section 4.2.2: it is 0 that resets.
func TestStatusIsCutToNoReset(t *testing.T) {
	d, e, r := open(t)
	d.Start(0)
	for _, v := range []uint32{0x100, 0xffff_ff00} {
		r.Set(mmio.DeviceStatus, v)
		assert.Equal(t, running, r.Get(mmio.DeviceStatus))
	}
	assert.Zero(t, e.Resets())
	r.Set(mmio.DeviceStatus, 0)
	assert.Equal(t, 1, e.Resets())
}

// TestInterruptStatus: VIRTIO 1.2, section 4.2.2.1: a bit stands from the event
// until it is acknowledged, and each event is an edge.
func TestInterruptStatus(t *testing.T) {
	d, e, r := open(t)
	d.Start(0)
	assert.Zero(t, r.Get(mmio.InterruptStatus))
	e.Activation().ConfigChanged()
	assert.EqualValues(t, mmio.InterruptConfig, r.Get(mmio.InterruptStatus))
	assert.EqualValues(t, mmio.InterruptConfig, r.Get(mmio.InterruptStatus), "reading it is not acknowledging it")
	q := d.Queues[0]
	q.Add(d.In(1))
	q.Kick()
	assert.Equal(t, 2, d.QueueIRQ.Wait(t, 1))
	q.Next()
	assert.EqualValues(t, mmio.InterruptConfig|mmio.InterruptQueue, r.Get(mmio.InterruptStatus))
	r.Set(mmio.InterruptACK, 0)
	r.Set(mmio.InterruptACK, 0xffff_fffc)
	assert.EqualValues(t, mmio.InterruptConfig|mmio.InterruptQueue, r.Get(mmio.InterruptStatus))
	r.Set(mmio.InterruptACK, mmio.InterruptQueue)
	assert.EqualValues(t, mmio.InterruptConfig, r.Get(mmio.InterruptStatus))
	e.Activation().ConfigChanged()
	assert.Equal(t, 3, d.QueueIRQ.Count(), "an edge though the bit was set")
	r.Set(mmio.InterruptACK, 0xffff_ffff)
	assert.Zero(t, r.Get(mmio.InterruptStatus))
}

// TestResetClearsTheTransport: VIRTIO 1.2, section 4.2.2.1: InterruptStatus and
// ready bits; and the selectors.
func TestResetClearsTheTransport(t *testing.T) {
	d, e, r := open(t)
	fresh := r.Device.State()
	d.Start(0)
	e.Activation().ConfigChanged()
	r.Set(mmio.DeviceFeaturesSel, 1)
	r.Set(mmio.DriverFeaturesSel, 7)
	r.Set(mmio.QueueSel, 1)
	assert.EqualValues(t, 1, r.Get(mmio.QueueReady))
	s := r.Device.State()
	assert.Equal(t, []uint32{1, 7, 1, mmio.InterruptConfig}, []uint32{s.DeviceFeaturesSel, s.DriverFeaturesSel, s.QueueSel, s.InterruptStatus})
	r.Set(mmio.DeviceStatus, 0)
	assert.Equal(t, fresh, r.Device.State())
}

// TestConfigAccesses: VIRTIO 1.2, section 4.2.2.2: from 0x100 on, by bytes.
func TestConfigAccesses(t *testing.T) {
	_, _, r := open(t)
	want, err := binary.Append(nil, binary.LittleEndian, virtiotest.EchoConfig{Wide: 0x1122334455667788, Word: 0x99aabbcc, Byte: 0xdd})
	require.NoError(t, err)
	require.Len(t, want, virtiotest.EchoConfigSize)
	want = append(want, make([]byte, 16)...)
	for off := range 20 {
		for _, n := range []int{1, 2, 4, 8} {
			p := make([]byte, n)
			r.Device.Read(mmio.Config+uint64(off), p)
			assert.Equal(t, want[off:off+n], p, "%d bytes at %d", n, off)
		}
	}
	p := []byte{1, 2, 3, 4}
	r.Device.Read(mmio.Size-4, p)
	assert.Equal(t, make([]byte, 4), p)
	r.Device.Write(mmio.Size-4, p)
}

// TestNewFails: with what the Function says.
func TestNewFails(t *testing.T) {
	e := virtiotest.NewEcho(t)
	e.Sizes = []uint16{3}
	mem, err := memory.FromBytes()
	require.NoError(t, err)
	_, err = mmio.New(virtio.FunctionConfig{Device: e, Memory: mem}, virtiotest.NewCounter())
	assert.ErrorContains(t, err, "no power of two")
}
