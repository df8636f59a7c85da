package pci_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	vpci "github.com/vole-vmm/vole/virtio/pci"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// typed is an Echo that says it is something else.
type typed struct {
	*virtiotest.Echo
	is virtio.Type
}

func (d typed) Type() virtio.Type { return d.is }

// TestIdentity: VIRTIO 1.2, sections 4.1.2 and 4.1.2.1.
func TestIdentity(t *testing.T) {
	for _, tc := range []struct {
		is    virtio.Type
		class uint32
	}{
		{virtio.TypeNet, 0x020000}, {virtio.TypeBlock, 0x010000}, {virtio.TypeConsole, 0x078000},
		{virtio.TypeEntropy, 0x00ff00}, {virtio.TypeVsock, 0x028000}, {virtio.TypeFS, 0x018000},
		{virtiotest.TypeEcho, 0x00ff00},
	} {
		t.Run(tc.is.String(), func(t *testing.T) {
			e := virtiotest.NewEcho(t)
			r := openDevice(t, typed{e, tc.is}, e).r
			assert.EqualValues(t, 0x1af4, r.Config(0x00, 2), "vendor")
			assert.EqualValues(t, 0x1040+int(tc.is), r.Config(0x02, 2), "device")
			assert.GreaterOrEqual(t, r.Config(0x08, 1), uint32(1), "revision: a transitional device has 0")
			assert.Equal(t, tc.class, r.Config(0x08, 4)>>8)
			assert.EqualValues(t, 0x1af4, r.Config(0x2c, 2), "subsystem vendor")
			assert.GreaterOrEqual(t, r.Config(0x2e, 2), uint32(0x40), "subsystem: a legacy driver takes what is below")
			assert.Zero(t, r.Config(0x0e, 1), "header of type 0, one function")
			assert.Zero(t, r.Config(0x3d, 1), "no interrupt pin")
			assert.NotZero(t, r.Config(0x06, 2)&(1<<4), "there is a capability list")
			assert.Equal(t, "pci", r.Transport())
		})
	}
}

// TestCapabilities: VIRTIO 1.2, sections 4.1.4, 4.1.4.3.1, 4.1.4.4.1, 4.1.4.5.1,
// 4.1.4.6.1 and 4.1.4.9.1: each structure once, inside the BAR, aligned, over no
// other.
func TestCapabilities(t *testing.T) {
	c := open(t)
	type part struct {
		name       string
		base, size uint64
	}
	var order []uint8
	var parts []part
	for at := uint64(c.r.Config(0x34, 1)); at != 0; at = uint64(c.r.Config(at+1, 1)) {
		require.Zero(t, at%4)
		require.Less(t, len(order), 16, "the list has an end")
		if id := uint8(c.r.Config(at, 1)); id != capVendor {
			require.EqualValues(t, capMSIX, id)
			order = append(order, id)
			continue
		}
		kind := uint8(c.r.Config(at+3, 1))
		order = append(order, kind)
		want, ok := map[uint8]struct {
			length, align, offset, least uint32
		}{
			vpci.CapCommon: {16, 4, vpci.CommonOffset, 0x38},
			vpci.CapNotify: {20, 2, vpci.NotifyOffset, vpci.NotifyStride + 2},
			vpci.CapISR:    {16, 1, vpci.ISROffset, 1},
			vpci.CapDevice: {16, 4, vpci.DeviceOffset, virtiotest.EchoConfigSize},
			vpci.CapPCI:    {20, 1, 0, 0},
		}[kind]
		require.True(t, ok, "type %d", kind)
		name := fmt.Sprintf("type %d", kind)
		offset, length := c.r.Config(at+8, 4), c.r.Config(at+12, 4)
		assert.Equal(t, want.length, c.r.Config(at+2, 1), "%s: cap_len", name)
		assert.EqualValues(t, vpci.BARIndex, c.r.Config(at+4, 1), "%s: bar", name)
		assert.Zero(t, c.r.Config(at+5, 1), "%s: id", name)
		assert.Zero(t, c.r.Config(at+6, 2), "%s: padding", name)
		assert.Zero(t, offset%want.align, "%s: offset", name)
		assert.Equal(t, want.offset, offset, "%s: offset", name)
		assert.GreaterOrEqual(t, length, want.least, "%s: length", name)
		if kind == vpci.CapNotify {
			multiplier := c.r.Config(at+16, 4)
			assert.EqualValues(t, vpci.NotifyStride, multiplier)
			assert.Contains(t, []uint32{1, 4, 16, 64, 256, 1024, 4096}, multiplier, "an even power of 2")
		}
		if length > 0 {
			assert.Zero(t, offset%4096, "%s: a page of its own", name)
			parts = append(parts, part{name, uint64(offset), uint64(length)})
		}
	}
	assert.Equal(t, []uint8{vpci.CapCommon, vpci.CapNotify, vpci.CapISR, vpci.CapDevice, vpci.CapPCI, capMSIX}, order)

	vectors := uint64(c.r.Config(c.msix+2, 2)&0x7ff) + 1
	assert.EqualValues(t, 3, vectors, "one for each queue, one for the configuration")
	assert.Zero(t, c.r.Config(c.msix+4, 4)&7, "the table's BAR")
	assert.Zero(t, c.r.Config(c.msix+8, 4)&7, "the pending bits' BAR")
	parts = append(parts, part{"MSI-X table", c.table, entrySize * vectors}, part{"pending bits", c.pba, 8})
	for i, p := range parts {
		assert.LessOrEqual(t, p.base+p.size, uint64(barSize), p.name)
		for _, q := range parts[:i] {
			assert.True(t, p.base+p.size <= q.base || q.base+q.size <= p.base, "%s and %s", p.name, q.name)
		}
	}
}

// TestBAR: PCI 3.0, section 6.2.5.1: one of 32 KiB, in memory, 64 bits wide, not
// prefetchable since reading the ISR clears it.
func TestBAR(t *testing.T) {
	r := open(t).r
	assert.EqualValues(t, 2<<1, r.Config(bar0, 4)&0xf)
	for reg := uint64(bar0); reg < bar0+24; reg += 4 {
		r.SetConfig(reg, 4, 0xffff_ffff)
	}
	assert.EqualValues(t, 0xffff_ffff&^(barSize-1)|2<<1, r.Config(bar0, 4))
	assert.EqualValues(t, 0xffff_ffff, r.Config(bar0+4, 4))
	for reg := uint64(bar0 + 8); reg < bar0+24; reg += 4 {
		assert.Zero(t, r.Config(reg, 4), "there is no other")
	}
}

// register is one of struct virtio_pci_common_cfg.
type register struct {
	name  string
	off   uint64
	width int
	value uint32 // after furnish
	fixed bool   // read-only for the driver
}

// registers are all of them, in their order: no gap is between two.
var registers = []register{
	{"device_feature_select", vpci.DeviceFeatureSelect, 4, 1, false},
	{"device_feature", vpci.DeviceFeature, 4, 1, true},
	{"driver_feature_select", vpci.DriverFeatureSelect, 4, 1, false},
	{"driver_feature", vpci.DriverFeature, 4, 1, false},
	{"config_msix_vector", vpci.ConfigMSIXVector, 2, 2, false},
	{"num_queues", vpci.NumQueues, 2, 2, true},
	{"device_status", vpci.DeviceStatus, 1, uint32(featuresOK), false},
	{"config_generation", vpci.ConfigGeneration, 1, 1, true},
	{"queue_select", vpci.QueueSelect, 2, 1, false},
	{"queue_size", vpci.QueueSize, 2, 32, false},
	{"queue_msix_vector", vpci.QueueMSIXVector, 2, 1, false},
	{"queue_enable", vpci.QueueEnable, 2, 0, false},
	{"queue_notify_off", vpci.QueueNotifyOff, 2, 1, true},
	{"queue_desc, low", vpci.QueueDesc, 4, 0x89ab_cde0, false},
	{"queue_desc, high", vpci.QueueDesc + 4, 4, 0x0123_4567, false},
	{"queue_driver, low", vpci.QueueDriver, 4, 0x7654_3210, false},
	{"queue_driver, high", vpci.QueueDriver + 4, 4, 0xfedc_ba98, false},
	{"queue_device, low", vpci.QueueDevice, 4, 0xcafe_f00c, false},
	{"queue_device, high", vpci.QueueDevice + 4, 4, 0xdead_beef, false},
}

// furnish brings a device to where every register but queue_enable has a value.
func furnish(c *card) {
	c.Negotiate(0)
	c.e.Update(func([]byte) {})
	c.r.ConfigGeneration()
	c.selectQueue(1)
	for _, r := range registers {
		if !r.fixed && r.name != "device_status" && r.name != "driver_feature" && r.value != 0 {
			c.r.Set(r.off, r.width, r.value)
		}
	}
}

// TestCommonRegisters: VIRTIO 1.2, sections 4.1.3.1 and 4.1.4.3: each register by
// accesses of its own width, 64-bit ones in two halves.
func TestCommonRegisters(t *testing.T) {
	c := open(t)
	furnish(c)
	end := uint64(0)
	for _, r := range registers {
		assert.Equal(t, end, r.off, r.name)
		end = r.off + uint64(r.width)
		assert.Equal(t, r.value, c.r.Get(r.off, r.width), r.name)
	}
	assert.EqualValues(t, 0x38, end)
	c.r.Set(vpci.QueueEnable, 2, 1)
	assert.EqualValues(t, 1, c.r.Get(vpci.QueueEnable, 2))
	q, ready := c.Function.Queue(1)
	assert.True(t, ready)
	assert.Equal(t, virtio.QueueConfig{Size: 32, Desc: 0x0123_4567_89ab_cde0, Avail: 0xfedc_ba98_7654_3210, Used: 0xdead_beef_cafe_f00c}, q)
}

// TestOtherWidthsAreNothing: VIRTIO 1.2, section 4.1.3.1: what is not a register's
// own width and place reads 0 and writes nothing; nor is there anything behind
// the structure.
func TestOtherWidthsAreNothing(t *testing.T) {
	own := map[uint64]int{}
	for _, r := range registers {
		own[r.off] = r.width
	}
	c := open(t)
	furnish(c)
	was := c.r.Device.State()
	base := c.base()
	for off := uint64(0); off < 0x60; off++ {
		for _, n := range []int{1, 2, 3, 4, 8, 16} {
			if own[off] == n {
				continue
			}
			p := make([]byte, n)
			for i := range p {
				p[i] = 0x5a
			}
			require.True(t, c.r.Memory.Read(base+off, p))
			require.Equal(t, make([]byte, n), p, "%d bytes at %#x", n, off)
			for _, v := range []byte{0, 1, 0xff} {
				for i := range p {
					p[i] = v
				}
				require.True(t, c.r.Memory.Write(base+off, p))
				require.Equal(t, was, c.r.Device.State(), "%d bytes of %#x at %#x", n, v, off)
			}
		}
	}
	for _, off := range []uint64{0xffe, vpci.ISROffset + 1, vpci.ISROffset + 4, vpci.NotifyOffset, 0x4000 + 3*entrySize, 0x5000, 0x6008, 0x7000} {
		p := []byte{1, 1, 1, 1}
		require.True(t, c.r.Memory.Read(base+off, p))
		assert.Equal(t, make([]byte, 4), p, "%#x", off)
	}
}

// TestReadOnlyRegisters: VIRTIO 1.2, section 4.1.4.3.
func TestReadOnlyRegisters(t *testing.T) {
	c := open(t)
	furnish(c)
	was := c.r.Device.State()
	for _, r := range registers {
		if r.fixed {
			for _, v := range []uint32{0, 7, 0xffff_ffff} {
				c.r.Set(r.off, r.width, v)
				assert.Equal(t, r.value, c.r.Get(r.off, r.width), r.name)
			}
		}
	}
	assert.Equal(t, was, c.r.Device.State())
}

// TestFeatureSelectors: VIRTIO 1.2, section 4.1.4.3.1: words of features that
// there are not read 0 and take nothing.
func TestFeatureSelectors(t *testing.T) {
	c := open(t)
	c.r.SetStatus(ackDriver)
	offered := c.r.DeviceFeatures()
	c.r.DriverFeatures(offered)
	for sel, want := range map[uint32]uint32{0: uint32(offered), 1: uint32(offered >> 32), 2: 0, 3: 0, 32: 0, 0x8000_0001: 0, 0xffff_ffff: 0} {
		c.r.Set(vpci.DeviceFeatureSelect, 4, sel)
		assert.Equal(t, want, c.r.Get(vpci.DeviceFeature, 4), "word %#x", sel)
		c.r.Set(vpci.DriverFeatureSelect, 4, sel)
		if sel > 1 {
			c.r.Set(vpci.DriverFeature, 4, 0xffff_ffff)
		}
		assert.Equal(t, want, c.r.Get(vpci.DriverFeature, 4), "word %#x", sel)
	}
	assert.Equal(t, offered, c.Function.DriverFeatures())
}

// TestQueueSelectorOutOfRange: VIRTIO 1.2, section 4.1.4.3.1: the size is 0, the
// vector NO_VECTOR, and no write has an effect.
func TestQueueSelectorOutOfRange(t *testing.T) {
	c := open(t)
	c.Negotiate(0)
	for _, sel := range []int{2, 3, 0x100, 0x7fff, 0xffff} {
		c.selectQueue(sel)
		was := c.r.Device.State()
		for _, r := range registers {
			if r.off > vpci.QueueSelect {
				c.r.Set(r.off, r.width, 1)
				want := uint32(0)
				if r.off == vpci.QueueMSIXVector {
					want = noVector
				}
				assert.Equal(t, want, c.r.Get(r.off, r.width), "%s of queue %d", r.name, sel)
			}
		}
		assert.EqualValues(t, sel, c.r.Get(vpci.QueueSelect, 2))
		assert.Equal(t, was, c.r.Device.State())
	}
}

// TestQueueSize: VIRTIO 1.2, section 4.1.4.3.1: the largest at first, then what
// was written; never something that is no power of two.
func TestQueueSize(t *testing.T) {
	c := open(t)
	c.Negotiate(0)
	c.selectQueue(1)
	assert.EqualValues(t, 64, c.r.Get(vpci.QueueSize, 2))
	for n, want := range map[uint32]uint32{1: 1, 2: 2, 32: 32, 64: 64, 0: 0, 3: 0, 63: 0, 0xffff: 0} {
		c.r.Set(vpci.QueueSize, 2, n)
		assert.Equal(t, want, c.r.Get(vpci.QueueSize, 2), "after %d", n)
	}
	c.selectQueue(0)
	assert.EqualValues(t, 64, c.r.Get(vpci.QueueSize, 2), "the other queue's")

	c.SetUp(0, 64)
	c.selectQueue(1)
	c.r.Set(vpci.QueueSize, 2, 3)
	c.r.Set(vpci.QueueEnable, 2, 1)
	c.DriverOK()
	assert.Equal(t, running|virtio.StatusNeedsReset, c.r.Status())
	assert.Zero(t, c.e.Activated())
}

// TestQueueEnable: VIRTIO 1.2, sections 4.1.4.3 and 4.1.4.3.2: 1 enables, nothing
// else does anything, and only a reset disables.
func TestQueueEnable(t *testing.T) {
	c := open(t)
	c.Negotiate(0)
	c.selectQueue(0)
	for _, v := range []uint32{0, 2, 3, 0x100, 0x101, 0xfffe, 0xffff} {
		c.r.Set(vpci.QueueEnable, 2, v)
		assert.Zero(t, c.r.Get(vpci.QueueEnable, 2), "after %#x", v)
	}
	for _, v := range []uint32{1, 0, 2, 0xffff} {
		c.r.Set(vpci.QueueEnable, 2, v)
		assert.EqualValues(t, 1, c.r.Get(vpci.QueueEnable, 2), "after %#x", v)
	}
	c.selectQueue(1)
	assert.Zero(t, c.r.Get(vpci.QueueEnable, 2))
	c.Reset()
	c.selectQueue(0)
	assert.Zero(t, c.r.Get(vpci.QueueEnable, 2))
}

// TestNotifyByAddress: VIRTIO 1.2, section 4.1.5.2: the address names the queue,
// whatever is written there in whatever width.
func TestNotifyByAddress(t *testing.T) {
	c := open(t)
	c.e.Manual = true
	c.start()
	base := c.base()
	for i := range 2 {
		c.selectQueue(i)
		off := vpci.NotifyOffset + uint64(c.r.Get(vpci.QueueNotifyOff, 2))*vpci.NotifyStride
		for _, n := range []int{1, 2, 4, 8} {
			p := make([]byte, n)
			p[0] = byte(1 - i)
			require.True(t, c.r.Memory.Write(base+off, p))
			assert.True(t, rung(t, c.Function.Bell(i)), "%d bytes for queue %d", n, i)
			assert.False(t, rung(t, c.Function.Bell(1-i)), "%d bytes for queue %d", n, i)
		}
	}
}

// TestNotificationsThatNameNoQueue: addresses between and behind those of the
// queues do nothing, nor does reading one.
func TestNotificationsThatNameNoQueue(t *testing.T) {
	c := open(t)
	c.e.Manual = true
	c.start()
	bell := c.Function.Bell(0)
	for off := uint64(0); off < 0x1000; off++ {
		if off != 0 && off != vpci.NotifyStride {
			c.r.Set(vpci.NotifyOffset+off, 1, 0)
		}
		c.r.Get(vpci.NotifyOffset+off, 1)
	}
	assert.False(t, rung(t, bell))
	assert.False(t, rung(t, c.Function.Bell(1)))
	c.r.Set(vpci.NotifyOffset+vpci.NotifyStride, 2, 0)
	assert.False(t, rung(t, bell))
	assert.True(t, rung(t, c.Function.Bell(1)))
}

// TestConfigGenerationDoesNotWrap: VIRTIO 1.2, section 4.1.4.3.1: the register is
// a byte; the value has to differ after 256 changes too.
func TestConfigGenerationDoesNotWrap(t *testing.T) {
	c := open(t)
	for _, n := range []int{1, 255, 256, 512, 1024} {
		before := c.r.ConfigGeneration()
		assert.Equal(t, before, c.r.ConfigGeneration(), "nothing has changed")
		for range n {
			c.e.Update(func(b []byte) { b[0]++ })
		}
		assert.NotEqual(t, before, c.r.ConfigGeneration(), "after %d changes", n)
	}
}

// TestMostQueues: as many as there is room for in the tables, each with its own
// notification address and vector; and one more is refused.
func TestMostQueues(t *testing.T) {
	const most = 511
	e := virtiotest.NewEcho(t)
	e.Sizes = make([]uint16, most)
	for i := range e.Sizes {
		e.Sizes[i] = 2
	}
	c := openDevice(t, e, e)
	assert.EqualValues(t, most, c.r.Get(vpci.NumQueues, 2))
	c.start()
	for _, i := range []int{0, 255, most - 1} {
		before := c.r.Vectors[i+1].Count()
		c.echo(i)
		assert.Equal(t, before+1, c.r.Vectors[i+1].Count())
	}
	c.mask(most, true)
	c.echo(most - 1)
	assert.EqualValues(t, 0x80, c.r.Get(c.pba+most/8, 1))

	e = virtiotest.NewEcho(t)
	e.Sizes = append(c.e.Sizes, 2)
	fds := eventfds(t)
	_, err := vpci.New(config(t, e), new(source), nil)
	assert.ErrorContains(t, err, "at most 511 have room")
	assert.Equal(t, fds, eventfds(t))
}

// source makes vectors until it has made limit of them, if that is not 0.
type source struct {
	limit int
	made  []*closing
}

// closing is a vector that counts how often it is closed.
type closing struct {
	virtiotest.Vector
	closed int
}

func (v *closing) Close() error {
	v.closed++
	return nil
}

var errSpent = errors.New("no vector is left")

func (s *source) NewVector() (pci.Vector, error) {
	if s.limit != 0 && len(s.made) == s.limit {
		return nil, errSpent
	}
	v := &closing{Vector: virtiotest.Vector{Counter: virtiotest.NewCounter()}}
	s.made = append(s.made, v)
	return v, v.Mask(true)
}

func config(t *testing.T, dev virtio.Device) virtio.FunctionConfig {
	t.Helper()
	mem, err := memory.FromBytes(memory.Region{GPA: 0x1000, Mem: make([]byte, 0x1000)})
	require.NoError(t, err)
	return virtio.FunctionConfig{Device: dev, Memory: mem}
}

// TestNewFails: with what it is that fails, and nothing left of the rest.
func TestNewFails(t *testing.T) {
	fds := eventfds(t)
	e := virtiotest.NewEcho(t)
	src := &source{limit: 2}
	_, err := vpci.New(config(t, e), src, nil)
	require.ErrorIs(t, err, errSpent)
	assert.ErrorContains(t, err, "type 62 on PCI")
	for i, v := range src.made {
		assert.Equal(t, 1, v.closed, "vector %d", i)
	}
	e.Sizes = []uint16{3}
	_, err = vpci.New(config(t, e), new(source), nil)
	assert.ErrorContains(t, err, "no power of two")
	assert.Equal(t, fds, eventfds(t))
}

// eventfds counts the process's eventfds.
func eventfds(t *testing.T) int {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	n := 0
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.Contains(to, "eventfd") {
			n++
		}
	}
	return n
}

// TestDeviceConfig: VIRTIO 1.2, section 4.1.3.1: by bytes, in any width.
func TestDeviceConfig(t *testing.T) {
	c := open(t)
	want, err := binary.Append(nil, binary.LittleEndian, virtiotest.EchoConfig{Wide: 0x1122334455667788, Word: 0x99aabbcc, Byte: 0xdd})
	require.NoError(t, err)
	want = append(want, make([]byte, 16)...)
	for off := range 20 {
		for _, n := range []int{1, 2, 4, 8} {
			p := make([]byte, n)
			c.r.ReadConfig(off, p)
			assert.Equal(t, want[off:off+n], p, "%d bytes at %d", n, off)
		}
	}
}
