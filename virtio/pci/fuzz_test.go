package pci_test

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices"
	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	vpci "github.com/vole-vmm/vole/virtio/pci"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// A script is of accesses of 8 bytes: where and whether it writes (1), the width
// (1), the offset (2), the value (4).
const (
	accessSize = 8

	inECAM  = 0 // configuration space of the device
	inPorts = 1 // CF8 and CFC
	inBAR   = 2 // on the memory bus, where the registers say that the BAR is
	inBus   = 3 // configuration space of the whole bus
	writes  = 4
)

func access(where byte, width byte, off uint16, v uint32) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{where | writes, width}, off)
	return binary.LittleEndian.AppendUint32(b, v)
}

// step is a write to the BAR.
type step struct {
	off   uint16
	width byte
	v     uint32
}

// setUp is what a driver does that starts queue 0.
var setUp = []step{
	{vpci.DeviceStatus, 1, 0}, {vpci.DeviceStatus, 1, uint32(ackDriver)}, {vpci.DriverFeatureSelect, 4, 1}, {vpci.DriverFeature, 4, 1},
	{vpci.DriverFeatureSelect, 4, 0}, {vpci.DriverFeature, 4, 1 << 28}, {vpci.DeviceStatus, 1, uint32(featuresOK)},
	{vpci.QueueSelect, 2, 0}, {vpci.QueueSize, 2, 16}, {vpci.QueueDesc, 4, 0x1000}, {vpci.QueueDriver, 4, 0x1200},
	{vpci.QueueDevice, 4, 0x1300}, {vpci.QueueMSIXVector, 2, 1}, {vpci.ConfigMSIXVector, 2, 0}, {vpci.QueueEnable, 2, 1},
	{0x4000 + 12, 4, 0}, {0x4010 + 12, 4, 0}, {vpci.DeviceStatus, 1, uint32(running)}, {vpci.NotifyOffset, 2, 0},
}

// byBAR and byWindow are the two ways of a driver.
func byBAR(steps []step) []byte {
	b := access(inECAM, 2, command, memoryOn|masterOn)
	for _, s := range steps {
		b = append(b, access(inBAR, s.width, s.off, s.v)...)
	}
	return b
}

func byWindow(at uint16, steps []step) (b []byte) {
	for _, s := range steps {
		b = append(b, access(inECAM, 4, at+8, uint32(s.off))...)
		b = append(b, access(inPorts, 4, at+12, uint32(s.width))...)
		b = append(b, access(inECAM, 4, at+16, s.v)...)
	}
	return b
}

// FuzzPCI makes arbitrary accesses to configuration space and BAR of an echo
// device, over arbitrary memory.
func FuzzPCI(f *testing.F) {
	ram := make([]byte, 0x400)
	binary.LittleEndian.PutUint64(ram, 0x1800)
	binary.LittleEndian.PutUint32(ram[8:], 64)
	binary.LittleEndian.PutUint16(ram[12:], 1)
	binary.LittleEndian.PutUint16(ram[14:], 1)
	binary.LittleEndian.PutUint64(ram[16:], 0x1900)
	binary.LittleEndian.PutUint32(ram[24:], 64)
	binary.LittleEndian.PutUint16(ram[28:], 2)
	binary.LittleEndian.PutUint16(ram[0x202:], 3) // avail.idx
	var window, msix uint16
	{
		m := newFuzzed(f, ram)
		window = uint16(m.r.Capability(func(id, kind uint8) bool { return id == capVendor && kind == vpci.CapPCI }))
		msix = uint16(m.r.Capability(func(id, _ uint8) bool { return id == capMSIX }))
		m.close(f)
	}
	enable := access(inECAM, 2, msix+2, msixEnable)
	f.Add(ram, append(enable, byBAR(setUp)...))
	f.Add(ram, append(byBAR(setUp), enable...))
	f.Add(ram, byWindow(window, setUp))
	f.Add(ram, append(append(byBAR(setUp), access(inECAM, 4, bar0, 0x0001_0000)...), byBAR(setUp)...))
	f.Add(ram, append(byBAR(setUp[:len(setUp)-2]), access(inBAR, 2, vpci.NotifyOffset, 0)...))
	f.Add(ram, append(append(byBAR(setUp), access(inPorts, 2, msix+2, msixEnable|msixFunctionMask)...), []byte{inBAR, 8, 0, 0x60, 0, 0, 0, 0, inBAR, 1, 0, 0x10, 0, 0, 0, 0}...))
	f.Add([]byte{}, append(byBAR(setUp), access(inBAR, 4, vpci.DeviceOffset, 1)...))
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, image, script []byte) {
		growth.Check(t)
		m := newFuzzed(t, image)
		for n := 0; len(script) >= accessSize && n < 256; n++ {
			m.access(script[:accessSize])
			script = script[accessSize:]
			m.check(t)
		}
		m.close(t)
		require.Equal(t, m.e.Popped(), m.e.Pushed())
	})
}

// fuzzed is a machine with one device, which nothing has been done to.
type fuzzed struct {
	e    *virtiotest.Echo
	d    *vpci.Device
	r    *virtiotest.PCIRegisters
	src  *source
	maps map[uint64]int // as OnMap tells it, by base
}

func newFuzzed(tb testing.TB, image []byte) *fuzzed {
	ram := make([]byte, 0x2000)
	copy(ram, image)
	mem, err := memory.FromBytes(memory.Region{GPA: 0x1000, Mem: ram})
	require.NoError(tb, err)
	m := &fuzzed{e: virtiotest.NewEcho(tb), src: new(source), maps: map[uint64]int{}}
	m.d, err = vpci.New(virtio.FunctionConfig{Device: m.e, Memory: mem}, m.src, func(base uint64, mapped bool) {
		if mapped {
			m.maps[base]++
		} else {
			m.maps[base]--
		}
	})
	require.NoError(tb, err)
	bus := devices.NewBus("memory")
	host, err := pci.NewHost(pci.HostConfig{
		ECAMBase: virtiotest.ECAMBase, Buses: 1, Memory: bus,
		Window32: pci.Range{Base: 0xd000_0000, Size: 1 << 20}, Window64: pci.Range{Base: 0x40_0000_0000, Size: 1 << 20},
	})
	require.NoError(tb, err)
	slot, err := host.Plug(m.d.PCI())
	require.NoError(tb, err)
	m.r = &virtiotest.PCIRegisters{Device: m.d, Host: host, Memory: bus, Slot: slot}
	return m
}

func (m *fuzzed) access(a []byte) {
	off, p := uint64(binary.LittleEndian.Uint16(a[2:])), make([]byte, 1+(a[1]+7)%8)
	copy(p, a[4:])
	var h devices.Handler
	switch a[0] & 3 {
	case inECAM:
		h, off = m.r.Host.ECAM(), uint64(m.r.Slot)<<15|off&0xfff
	case inPorts:
		h = m.r.Host.Ports()
		h.Write(0, little(1<<31|uint32(m.r.Slot)<<11|uint32(off&0xfc), 4))
		off = 4 + off&3
	case inBAR:
		base := uint64(m.r.Config(bar0, 4)&^0xf) | uint64(m.r.Config(bar0+4, 4))<<32
		h = relay{m.r.Memory, base}
	case inBus:
		h, off = m.r.Host.ECAM(), off<<4
	}
	if a[0]&writes != 0 {
		h.Write(off, p)
	} else {
		h.Read(off, p)
	}
}

// check looks for what no access may lead to.
func (m *fuzzed) check(t *testing.T) {
	if m.e.Activated() == 0 {
		require.Zero(t, m.e.Popped(), "before DRIVER_OK")
	}
	require.EqualValues(t, 0x107e_1af4, m.r.Config(0, 4))
	s := m.d.State()
	require.Zero(t, s.ISR&^3)
	for _, v := range append(s.Vectors, s.ConfigVector) {
		require.True(t, v < 3 || v == noVector, "vector %#x", v)
	}
	if s.Function.Status&virtio.StatusFeaturesOK == 0 {
		require.False(t, s.Function.Queues[0].Ready || s.Function.Queues[1].Ready)
	}
	if s.Function.Status&virtio.StatusDriverOK != 0 {
		require.Equal(t, running, s.Function.Status&running)
		require.NotZero(t, s.Function.Features&virtio.FeatureVersion1)
		require.Zero(t, s.Function.Features&^m.d.Function().DeviceFeatures())
	}
	if m.r.Config(command, 2)&memoryOn == 0 {
		for base, n := range m.maps {
			require.Zero(t, n, "mapped at %#x", base)
		}
	}
	n := 0
	for base, mapped := range m.maps {
		require.Contains(t, []int{0, 1}, mapped, "at %#x", base)
		n += mapped
	}
	require.LessOrEqual(t, n, 1)
}

func (m *fuzzed) close(tb testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(tb, m.d.Function().Close(ctx))
	require.NoError(tb, m.r.Host.Close())
	require.Len(tb, m.src.made, 3)
	for _, v := range m.src.made {
		require.Equal(tb, 1, v.closed)
	}
	for base, n := range m.maps {
		require.Zero(tb, n, "mapped at %#x", base)
	}
}
