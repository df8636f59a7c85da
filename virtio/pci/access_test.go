package pci_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vole-vmm/vole/virtio"
	vpci "github.com/vole-vmm/vole/virtio/pci"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// window is a driver of VIRTIO_PCI_CAP_PCI_CFG, by one of the two ways into
// configuration space.
type window struct {
	at       uint64 // the capability
	get      func(off uint64, n int) uint32
	set      func(off uint64, n int, v uint32)
	bar      uint8
	dataSize int // of the accesses to pci_cfg_data; 0 is the access's own
}

func (w window) aim(off, n uint32) {
	w.set(w.at+4, 1, uint32(w.bar))
	w.set(w.at+8, 4, off)
	w.set(w.at+12, 4, n)
}

func (w window) size(n uint32) int {
	if w.dataSize != 0 {
		return w.dataSize
	}
	return int(n)
}

func (w window) read(off, n uint32) uint32 {
	w.aim(off, n)
	return w.get(w.at+16, w.size(n))
}

func (w window) write(off, n, v uint32) {
	w.aim(off, n)
	w.set(w.at+16, w.size(n), v)
}

// getPort and setPort are configuration accesses by ports CF8 and CFC.
func (c *card) getPort(off uint64, n int) uint32 {
	c.aimPorts(off)
	var b [4]byte
	c.r.Host.Ports().Read(4+off%4, b[:n])
	return binary.LittleEndian.Uint32(b[:])
}

func (c *card) setPort(off uint64, n int, v uint32) {
	c.aimPorts(off)
	c.r.Host.Ports().Write(4+off%4, little(v, n))
}

func (c *card) aimPorts(off uint64) {
	c.r.Host.Ports().Write(0, little(1<<31|uint32(c.r.Slot)<<11|uint32(off&0xfc), 4))
}

func (c *card) windows() map[string]window {
	at := c.capability(vpci.CapPCI)
	return map[string]window{
		"by ECAM":                  {at: at, get: c.r.Config, set: c.r.SetConfig},
		"by ports":                 {at: at, get: c.getPort, set: c.setPort},
		"by accesses of all bytes": {at: at, get: c.r.Config, set: c.r.SetConfig, dataSize: 4},
	}
}

// TestPCIConfigAccess: VIRTIO 1.2, section 4.1.4.9: every structure is reached,
// also where the BAR is not decoded.
func TestPCIConfigAccess(t *testing.T) {
	for name := range open(t).windows() {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			w := c.windows()[name]
			c.start()
			c.r.SetConfig(command, 2, 0)

			assert.EqualValues(t, 2, w.read(vpci.NumQueues, 2), "2 bytes of the common structure")
			assert.EqualValues(t, running, w.read(vpci.DeviceStatus, 1), "1 byte of it")
			w.write(vpci.DeviceFeatureSelect, 4, 1)
			assert.EqualValues(t, virtio.FeatureVersion1>>32, w.read(vpci.DeviceFeature, 4), "4 bytes of it")
			w.write(vpci.QueueSelect, 2, 1)
			assert.EqualValues(t, 1, c.r.Device.State().QueueSel)

			assert.EqualValues(t, 0x55667788, w.read(vpci.DeviceOffset, 4), "device configuration")
			assert.EqualValues(t, 0x99aa, w.read(vpci.DeviceOffset+10, 2))
			assert.EqualValues(t, 0xdd, w.read(vpci.DeviceOffset+12, 1))

			for i, n := range []uint32{1, 2, 4} {
				c.add(1)
				w.write(vpci.NotifyOffset+vpci.NotifyStride, n, 0)
				assert.EqualValues(t, 5, c.Queues[1].Next().Len, "notification of %d bytes", n)
				assert.Equal(t, i+1, c.e.Popped())
				c.rest()
				assert.EqualValues(t, 1, w.read(vpci.ISROffset, 1), "ISR")
				assert.Zero(t, w.read(vpci.ISROffset, 1), "reading clears it")
			}

			w.write(vpci.DeviceStatus, 1, 0)
			c.Until("the device has reset", func() bool { return w.read(vpci.DeviceStatus, 1) == 0 })
			assert.Equal(t, 1, c.e.Resets())
		})
	}
}

// TestPCIConfigAccessThatIsNone: VIRTIO 1.2, section 4.1.4.9.1: what a driver must
// not ask for reads 0 and does nothing.
func TestPCIConfigAccessThatIsNone(t *testing.T) {
	for _, tc := range []struct {
		name   string
		bar    uint8
		off, n uint32
	}{
		{"no length", 0, vpci.DeviceFeature, 0},
		{"3 bytes", 0, vpci.DeviceFeature, 3},
		{"5 bytes", 0, vpci.DeviceFeature, 5},
		{"8 bytes", 0, vpci.QueueDesc, 8},
		{"a length that is cut to 4", 0, vpci.DeviceFeature, 0x104},
		{"all ones", 0, 0xffff_ffff, 0xffff_ffff},
		{"2 bytes, misaligned", 0, vpci.NumQueues - 1, 2},
		{"4 bytes, misaligned by 1", 0, vpci.DeviceOffset + 1, 4},
		{"4 bytes, misaligned by 2", 0, vpci.DeviceOffset + 2, 4},
		{"behind the BAR", 0, barSize, 4},
		{"far behind the BAR", 0, 0xffff_fffc, 4},
		{"the last byte and beyond", 0, barSize - 1, 2},
		{"the BAR's upper half", 1, vpci.DeviceFeature, 4},
		{"BAR 2", 2, vpci.DeviceFeature, 4},
		{"BAR 5", 5, vpci.DeviceFeature, 4},
		{"BAR 6", 6, vpci.DeviceFeature, 4},
		{"BAR 255", 255, vpci.DeviceFeature, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := open(t)
			c.start()
			c.echo(0) // leaves the ISR set
			w := c.windows()["by accesses of all bytes"]
			w.bar = tc.bar
			was := c.r.Device.State()
			assert.Zero(t, w.read(tc.off, tc.n))
			for _, v := range []uint32{0, 1, 0xffff_ffff} {
				w.write(tc.off, tc.n, v)
			}
			assert.Zero(t, w.read(tc.off, tc.n))
			assert.Equal(t, was, c.r.Device.State())
			assert.Equal(t, tc.off, c.r.Config(w.at+8, 4), "the registers hold what was written")
			assert.Equal(t, tc.n, c.r.Config(w.at+12, 4))
			assert.EqualValues(t, tc.bar, c.r.Config(w.at+4, 1))
		})
	}
}

// TestPCIConfigAccessInPieces: VIRTIO 1.2, section 4.1.4.9: an access counts once,
// at the first byte of pci_cfg_data; parts of it reach nothing.
func TestPCIConfigAccessInPieces(t *testing.T) {
	c := open(t)
	c.start()
	c.echo(0)
	w := c.windows()["by ECAM"]
	w.aim(vpci.ISROffset, 1)
	for off := uint64(17); off < 20; off++ {
		assert.Zero(t, c.r.Config(w.at+off, 1))
	}
	w.aim(vpci.ISROffset, 4)
	assert.Zero(t, c.r.Config(w.at+16, 1), "1 byte of 4")
	assert.Zero(t, c.r.Config(w.at+16, 2), "2 bytes of 4")
	assert.Zero(t, c.r.Config(w.at+18, 2), "the last 2")
	assert.EqualValues(t, 1, c.r.Device.State().ISR, "nothing has read it")
	assert.EqualValues(t, 1, c.r.Config(w.at+16, 4))
	assert.Zero(t, c.r.Device.State().ISR)

	w.aim(vpci.DeviceFeatureSelect, 4)
	for off := uint64(16); off < 20; off++ {
		c.r.SetConfig(w.at+off, 1, 1)
	}
	assert.Zero(t, c.r.Device.State().DeviceFeaturesSel)
}

// TestPCIConfigCapabilityIsFixed: VIRTIO 1.2, section 4.1.4.9: bar, offset and
// length are the driver's, and nothing else of any capability is.
func TestPCIConfigCapabilityIsFixed(t *testing.T) {
	c := open(t)
	free := map[uint64]bool{c.msix + 3: true} // enable and function mask
	at := c.capability(vpci.CapPCI)
	for off := at + 4; off < at+20; off++ {
		free[off] = off == at+4 || off >= at+8
	}
	for off := uint64(0x40); off < 0x100; off++ {
		if !free[off] {
			was := c.r.Config(off, 1)
			c.r.SetConfig(off, 1, ^was)
			assert.Equal(t, was, c.r.Config(off, 1), "%#x", off)
		}
	}
	assert.Equal(t, virtiotest.TypeEcho, c.r.Type())
}
