package pci_test

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices"
	"github.com/vole-vmm/vole/virtio"
	vpci "github.com/vole-vmm/vole/virtio/pci"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// Registers of configuration space (PCI 3.0, section 6.1) and of MSI-X (section
// 6.8.2).
const (
	command   = 0x04
	bar0      = 0x10
	memoryOn  = 1 << 1
	masterOn  = 1 << 2
	capVendor = 0x09
	capMSIX   = 0x11

	msixEnable       = 1 << 15
	msixFunctionMask = 1 << 14
	entrySize        = 16
	entryControl     = 12
	entryMasked      = 1

	barSize  = 0x8000
	noVector = 0xffff
)

const (
	ackDriver  = virtio.StatusAcknowledge | virtio.StatusDriver
	featuresOK = ackDriver | virtio.StatusFeaturesOK
	running    = featuresOK | virtio.StatusDriverOK
)

// card is an Echo on the transport, with its driver.
type card struct {
	*virtiotest.Driver
	t *testing.T
	e *virtiotest.Echo
	r *virtiotest.PCIRegisters

	msix       uint64 // the capability's offset
	table, pba uint64 // in the BAR
}

func open(t *testing.T) *card {
	t.Helper()
	e := virtiotest.NewEcho(t)
	return openDevice(t, e, e)
}

// openDevice is open for dev, which has e in it.
func openDevice(t *testing.T, dev virtio.Device, e *virtiotest.Echo) *card {
	t.Helper()
	d := virtiotest.OpenPCI(t, dev)
	c := &card{Driver: d, t: t, e: e, r: d.Regs.(*virtiotest.PCIRegisters)}
	c.msix = c.r.Capability(func(id, _ uint8) bool { return id == capMSIX })
	require.NotZero(t, c.msix)
	c.table, c.pba = uint64(c.r.Config(c.msix+4, 4)&^7), uint64(c.r.Config(c.msix+8, 4)&^7)
	return c
}

// start starts the device without the event index: each request is told.
func (c *card) start() { c.Start(virtio.FeatureIndirectDesc) }

// capability is the offset of the virtio capability of a kind.
func (c *card) capability(kind uint8) uint64 {
	c.t.Helper()
	at := c.r.Capability(func(id, k uint8) bool { return id == capVendor && k == kind })
	require.NotZero(c.t, at, "capability of type %d", kind)
	return at
}

func (c *card) base() uint64 {
	return uint64(c.r.Config(bar0, 4)&^0xf) | uint64(c.r.Config(bar0+4, 4))<<32
}

// moveBAR writes a place of the BAR, as a guest does it.
func (c *card) moveBAR(to uint64) {
	c.r.SetConfig(bar0, 4, uint32(to))
	c.r.SetConfig(bar0+4, 4, uint32(to>>32))
}

// shifted is memory in which what is on real at to is found at from.
func shifted(t *testing.T, real *devices.Bus, from, to uint64) *devices.Bus {
	t.Helper()
	b := devices.NewBus("shifted")
	require.NoError(t, b.Add(from, barSize, "shifted", relay{real, to}))
	return b
}

type relay struct {
	bus *devices.Bus
	to  uint64
}

func (r relay) Read(off uint64, p []byte)  { r.bus.Read(r.to+off, p) }
func (r relay) Write(off uint64, p []byte) { r.bus.Write(r.to+off, p) }

// selectQueue writes the queue selector.
func (c *card) selectQueue(i int) { c.r.Set(vpci.QueueSelect, 2, uint32(i)) }

// rest waits until every interrupt of what was served has been raised.
func (c *card) rest() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), virtiotest.Patience)
	defer cancel()
	require.NoError(c.t, c.Function.Pause(ctx))
	c.Function.Resume()
}

// add makes a request of queue i that the device does not hear of.
func (c *card) add(i int) {
	c.t.Helper()
	c.Queues[i].Add(c.Out([]byte("hello")), c.In(5))
}

// echo has one request of queue i served, interrupt included.
func (c *card) echo(i int) {
	c.t.Helper()
	c.add(i)
	c.r.Notify(i)
	assert.EqualValues(c.t, 5, c.Queues[i].Next().Len)
	c.rest()
}

// counts are the interrupts of each vector.
func (c *card) counts() []int {
	var n []int
	for _, v := range c.r.Vectors {
		n = append(n, v.Count())
	}
	return n
}

// mask writes the control dword of a vector's entry.
func (c *card) mask(v int, on bool) {
	control := uint32(0)
	if on {
		control = entryMasked
	}
	c.r.Set(c.table+uint64(v)*entrySize+entryControl, 4, control)
}

// pending are the first 32 pending bits.
func (c *card) pending() uint32 { return c.r.Get(c.pba, 4) }

// changed raises a configuration change interrupt.
func (c *card) changed() { c.e.Activation().ConfigChanged() }

func little(v uint32, n int) []byte { return binary.LittleEndian.AppendUint32(nil, v)[:n] }
