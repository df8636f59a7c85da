package vmm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/kvm"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/mmio"
	vpci "github.com/vole-vmm/vole/virtio/pci"
	"github.com/vole-vmm/vole/virtio/rng"
)

// eachTransport runs f for each transport, as a subtest of its name.
func eachTransport(t *testing.T, f func(t *testing.T, tr Transport)) {
	needKVM(t)
	for i := range transports {
		t.Run(transports[i], func(t *testing.T) { f(t, Transport(i)) })
	}
}

// devicesOf are n entropy devices.
func devicesOf(n int) []virtio.Device {
	var list []virtio.Device
	for range n {
		list = append(list, rng.New(nil))
	}
	return list
}

// TestDevicesAreDescribed: a kernel learns of devices on MMIO from ACPI or from its
// command line, never from both.
func TestDevicesAreDescribed(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Cmdline: "quiet -- for init", Devices: devicesOf(3), Transport: tr})
		require.NoError(t, err)
		defer m.Close()
		tables, err := m.mem.Slice(acpiBase, acpiSize)
		require.NoError(t, err)
		low, err := m.mem.Slice(0, 1<<20)
		require.NoError(t, err)
		words := "virtio_mmio.device=4096@0xc0001000:6 virtio_mmio.device=4096@0xc0002000:7 virtio_mmio.device=4096@0xc0003000:9 quiet -- for init\x00"
		assert.Equal(t, tr == TransportMMIO, bytes.Contains(tables, []byte("LNRO0005")))
		assert.Equal(t, tr == TransportMMIOCommandLine, bytes.Contains(low, []byte(words)))
		assert.Equal(t, tr == TransportPCI, bytes.Contains(tables, []byte("MCFG")))
	})
}

func TestWindow64(t *testing.T) {
	for _, tc := range []struct {
		name string
		ram  uint64
		bits uint32
		want pci.Range
	}{
		{"little RAM", 4 << 20, 40, pci.Range{Base: 4 << 30, Size: 4 << 30}},
		{"RAM up to 4 GiB", 4 << 30, 40, pci.Range{Base: 4 << 30, Size: 4 << 30}},
		{"RAM above 4 GiB", 5<<30 + 4096, 40, pci.Range{Base: 6 << 30, Size: 4 << 30}},
		{"RAM that ends at a GiB", 6 << 30, 40, pci.Range{Base: 6 << 30, Size: 4 << 30}},
		{"it just fits", 4 << 20, 33, pci.Range{Base: 4 << 30, Size: 4 << 30}},
		{"32 bits", 4 << 20, 32, pci.Range{}},
		{"RAM up to the last GiB but three", 61 << 30, 36, pci.Range{}},
		{"RAM up to the last GiB but four", 60 << 30, 36, pci.Range{Base: 60 << 30, Size: 4 << 30}},
		{"52 bits", 512 << 30, 52, pci.Range{Base: 512 << 30, Size: 4 << 30}},
	} {
		t.Run(tc.name, func(t *testing.T) { assert.Equal(t, tc.want, window64For(tc.ram, tc.bits)) })
	}
}

// TestDevicesWithoutStart: a machine that never ran leaves nothing of its
// devices.
func TestDevicesWithoutStart(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		boot := func(n int) {
			m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Devices: devicesOf(n), Transport: tr})
			require.NoError(t, err)
			require.Len(t, m.virtio, n)
			require.NoError(t, m.Close())
		}
		boot(1)
		before := owned(t)
		for n := range 4 {
			boot(n)
		}
		requireNothingLeft(t, before, 4)
	})
}

// TestMostDevices: as many as there are slots for, and no more.
func TestMostDevices(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		n := tr.MaxDevices()
		cfg := Config{KernelImage: payload(powerOff(), spin), Memory: 4 << 20, Devices: devicesOf(n), Transport: tr}
		exit, m := run(t, cfg)
		assert.Equal(t, Poweroff, exit.Reason)
		assert.Len(t, m.virtio, n)
		before := owned(t)
		list, closed := closers(n + 1)
		cfg.Devices = list
		_, err := New(cfg)
		require.ErrorIs(t, err, ErrConfig)
		assert.ErrorContains(t, err, fmt.Sprintf("%d are too many: %v has room for %d", n+1, tr, n))
		closedOnce(t, closed)
		requireNothingLeft(t, before, 4)
	})
}

// closer is a device that counts how often it is closed.
type closer struct {
	*rng.Device
	sizes []uint16 // of the queues, if not nil
	n     atomic.Int64
	err   error
}

func (c *closer) Close() error {
	c.n.Add(1)
	return c.err
}

func (c *closer) QueueSizes() []uint16 {
	if c.sizes != nil {
		return c.sizes
	}
	return c.Device.QueueSizes()
}

func closers(n int) (list []virtio.Device, closed []*closer) {
	for range n {
		c := &closer{Device: rng.New(nil)}
		list, closed = append(list, c), append(closed, c)
	}
	return list, closed
}

func closedOnce(t *testing.T, closed []*closer) {
	t.Helper()
	for i, c := range closed {
		assert.EqualValues(t, 1, c.n.Load(), "device %d", i)
	}
}

// TestFailedNewClosesDevices: wherever it fails, and those that were not plugged
// too.
func TestFailedNewClosesDevices(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		for _, tc := range []struct {
			name string
			cfg  Config
			bad  bool // the second device can't be plugged
			want string
		}{
			{"nothing to boot", Config{}, false, "none named"},
			{"no such kernel", Config{Kernel: "/nonexistent"}, false, "no such file"},
			{"no kernel", Config{KernelImage: bytes.NewReader([]byte("not a kernel"))}, false, "kernel"},
			{"no such initrd", Config{KernelImage: payload(spin), Initrd: "/nonexistent"}, false, "no such file"},
			{"a command line that is too long", Config{KernelImage: payload(spin), Cmdline: string(bytes.Repeat([]byte("x"), 1<<20))}, false, "command line"},
			{"a device that can't be plugged", Config{KernelImage: payload(spin)}, true, "device 1 (rng): "},
		} {
			t.Run(tc.name, func(t *testing.T) {
				before := owned(t)
				list, closed := closers(3)
				if tc.bad {
					closed[1].sizes = []uint16{3}
				}
				closed[2].err = io.ErrNoProgress
				tc.cfg.Devices, tc.cfg.Transport, tc.cfg.Memory = list, tr, 4<<20
				_, err := New(tc.cfg)
				require.ErrorContains(t, err, tc.want)
				assert.ErrorIs(t, err, io.ErrNoProgress, "the device's own error")
				closedOnce(t, closed)
				requireNothingLeft(t, before, 4)
			})
		}
	})
}

// described is a device that says what it was made with.
type described struct{ virtio.Device }

func (described) Describe() map[string]any { return map[string]any{"path": "/x"} }

// TestReportOfDevices: a device says in a report what it likes to.
func TestReportOfDevices(t *testing.T) {
	plain := rng.New(nil)
	for want, d := range map[string]virtio.Device{
		`{"type":"rng"}`:                        plain,
		`{"type":"rng","config":{"path":"/x"}}`: described{plain},
	} {
		b, err := json.Marshal(reportDevice(d))
		require.NoError(t, err)
		assert.Equal(t, want, string(b))
	}
}

// TestCloseClosesDevices: once, however often it is called.
func TestCloseClosesDevices(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		for _, started := range []bool{false, true} {
			list, closed := closers(2)
			closed[1].err = io.ErrNoProgress
			m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Devices: list, Transport: tr})
			require.NoError(t, err)
			if started {
				require.NoError(t, m.Start())
			}
			assert.Zero(t, closed[0].n.Load())
			assert.ErrorIs(t, m.Close(), io.ErrNoProgress)
			assert.NoError(t, m.Close())
			closedOnce(t, closed)
		}
	})
}

// card reaches a device of a machine as a guest does, by the machine's buses.
type card struct {
	t    *testing.T
	m    *Machine
	pci  bool
	slot int
	base uint64
}

// reach makes a device's registers accessible. On PCI it moves the BAR to where a
// payload reaches it, below 4 GiB.
func reach(t *testing.T, m *Machine, slot int) *card {
	t.Helper()
	c := &card{t: t, m: m, pci: m.bridge != nil, slot: slot, base: mmioBase(slot)}
	if c.pci {
		c.base = pciWindow32 + uint64(slot)<<20
		at := ecamBase + uint64(slot+1)<<15
		c.put(at+0x04, 2, 1<<1|1<<2)
		c.put(at+0x10, 4, c.base)
		c.put(at+0x14, 4, 0)
	}
	require.Equal(t, virtio.TypeEntropy, m.virtio[slot].f.Type())
	require.NotEqualValues(t, 0xff, c.status(), "the registers are there")
	return c
}

func (c *card) put(addr uint64, n int, v uint64) {
	require.True(c.t, c.m.mmio.Write(addr, binary.LittleEndian.AppendUint64(nil, v)[:n]), "%#x", addr)
}

func (c *card) get(addr uint64, n int) uint64 {
	var b [8]byte
	c.m.mmio.Read(addr, b[:n])
	return binary.LittleEndian.Uint64(b[:])
}

func (c *card) status() uint8 {
	if c.pci {
		return uint8(c.get(c.base+vpci.DeviceStatus, 1))
	}
	return uint8(c.get(c.base+mmio.DeviceStatus, 4))
}

func (c *card) setStatus(v uint8) {
	if c.pci {
		c.put(c.base+vpci.DeviceStatus, 1, uint64(v))
	} else {
		c.put(c.base+mmio.DeviceStatus, 4, uint64(v))
	}
}

// Where the test puts queue 0, and what a request asks for.
const (
	ringBase   = 0x20_0000
	ringAvail  = ringBase + 0x100
	ringUsed   = ringBase + 0x200
	ringBuffer = ringBase + 0x1000
	ringBytes  = 64
	ringVector = 0x41
)

// start starts the device with one request in queue 0, of which it is not told.
func (c *card) start() {
	c.t.Helper()
	ring := []byte{16: 0}
	binary.LittleEndian.PutUint64(ring, ringBuffer)
	binary.LittleEndian.PutUint32(ring[8:], ringBytes)
	binary.LittleEndian.PutUint16(ring[12:], 2) // for the device to write
	c.ram(ringBase, ring)
	c.ram(ringAvail, []byte{0, 0, 1, 0, 0, 0})

	c.setStatus(0)
	c.setStatus(virtio.StatusAcknowledge | virtio.StatusDriver)
	if c.pci {
		for _, w := range [][3]uint64{
			{vpci.DriverFeatureSelect, 4, 1}, {vpci.DriverFeature, 4, virtio.FeatureVersion1 >> 32},
			{vpci.DeviceStatus, 1, 3 | uint64(virtio.StatusFeaturesOK)}, {vpci.QueueSize, 2, 8},
			{vpci.QueueDesc, 4, ringBase}, {vpci.QueueDriver, 4, ringAvail}, {vpci.QueueDevice, 4, ringUsed},
			{vpci.QueueMSIXVector, 2, 1}, {vpci.QueueEnable, 2, 1},
			{0x4010, 4, lapicBase}, {0x4018, 4, ringVector}, {0x401c, 4, 0},
		} {
			c.put(c.base+w[0], int(w[1]), w[2])
		}
		at := ecamBase + uint64(c.slot+1)<<15
		for cap := c.get(at+0x34, 1); cap != 0; cap = c.get(at+cap+1, 1) {
			if c.get(at+cap, 1) == 0x11 {
				c.put(at+cap+2, 2, 1<<15)
			}
		}
	} else {
		for _, w := range [][2]uint64{
			{mmio.DriverFeaturesSel, 1}, {mmio.DriverFeatures, virtio.FeatureVersion1 >> 32},
			{mmio.DeviceStatus, 3 | uint64(virtio.StatusFeaturesOK)}, {mmio.QueueNum, 8},
			{mmio.QueueDescLow, ringBase}, {mmio.QueueDriverLow, ringAvail}, {mmio.QueueDeviceLow, ringUsed}, {mmio.QueueReady, 1},
		} {
			c.put(c.base+w[0], 4, w[1])
		}
		chip, err := c.m.vm.IRQChip(kvm.ChipIOAPIC)
		require.NoError(c.t, err)
		s := chip.IOAPIC()
		s.Redirection[c.m.cfg.Transport.mmioGSI(c.slot)] = ringVector
		chip.SetIOAPIC(s)
		require.NoError(c.t, c.m.vm.SetIRQChip(&chip))
	}
	c.setStatus(c.status() | virtio.StatusDriverOK)
	require.EqualValues(c.t, 0xf, c.status())
}

func (c *card) ram(gpa uint64, p []byte) {
	c.t.Helper()
	b, err := c.m.mem.Slice(gpa, uint64(len(p)))
	require.NoError(c.t, err)
	copy(b, p)
}

// kick is what a guest does to notify queue 0 and to wait for the first used
// element.
func (c *card) kick() []byte {
	di := func(addr uint32) []byte { return binary.LittleEndian.AppendUint32([]byte{0xbf}, addr) } // mov edi
	notify := slices.Concat(di(uint32(c.base+mmio.QueueNotify)), []byte{0xc7, 0x07, 0, 0, 0, 0})   // mov dword [rdi], 0
	if c.pci {
		notify = slices.Concat(di(uint32(c.base+vpci.NotifyOffset)), []byte{0x66, 0xc7, 0x07, 0, 0}) // mov word [rdi], 0
	}
	return slices.Concat(notify, di(ringUsed+2), []byte{0x66, 0x83, 0x3f, 1, 0x75, 0xfa}) // cmp word [rdi], 1; jne
}

// TestRequestByDoorbell: a guest's notification comes to the device without an
// exit, its bytes into the guest's memory, and the interrupt to its APIC.
func TestRequestByDoorbell(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		source := bytes.NewReader(bytes.Repeat([]byte{0x5a}, ringBytes))
		list := []virtio.Device{rng.New(nil), rng.New(source)}
		const slot = 1
		room := bytes.Repeat([]byte{0x90}, 64) // the payload: where the device is, is known later
		m, err := New(Config{KernelImage: payload(room), Memory: 4 << 20, Devices: list, Transport: tr})
		require.NoError(t, err)
		defer m.Close()
		enableAPIC(t, m.vcpus[0].kvm)
		c := reach(t, m, slot)
		c.start()
		c.ram(payloadBase, slices.Concat(c.kick(), debugExit(7), spin))
		require.NoError(t, m.Start())
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		exit, err := m.Wait(ctx)
		require.NoError(t, err)
		assert.Equal(t, Exit{Reason: DebugExit, Code: 7}, exit)
		b, err := m.mem.Slice(ringBuffer, ringBytes+1)
		require.NoError(t, err)
		assert.Equal(t, append(bytes.Repeat([]byte{0x5a}, ringBytes), 0), b)
		assert.Zero(t, m.Report().Exits["mmio-write"], "the notification is no exit")
		soon(t, "the interrupt is there", func() bool { return requested(t, m.vcpus[0].kvm, ringVector) })
	})
}

// TestPauseWithDevices: what comes while the machine is paused is served when it
// goes on.
func TestPauseWithDevices(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Devices: devicesOf(1), Transport: tr})
		require.NoError(t, err)
		defer m.Close()
		c := reach(t, m, 0)
		require.NoError(t, m.Start())
		require.NoError(t, m.Pause())
		c.start()
		bell := m.virtio[0].f.Bell(0)
		bell.Ring()
		require.NoError(t, m.Pause(), "again")
		used, err := m.mem.Slice(ringUsed, 4)
		require.NoError(t, err)
		assert.Equal(t, []byte{0, 0, 0, 0}, used)
		require.NoError(t, m.Resume())
		soon(t, "the request is used", func() bool { return virtio.Load16(used, 2) == 1 })
		require.NoError(t, m.Resume(), "again")
		require.NoError(t, m.Pause())
		require.NoError(t, m.Close(), "of a paused machine")
	})
}

// TestDevicesInAnyOrder throws every call at machines with devices at once, with
// a guest that resets and starts one of them meanwhile; nothing may hang, race,
// panic or be left.
func TestDevicesInAnyOrder(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		before := owned(t)
		for seed := range uint64(6) {
			list, closed := closers(2)
			m, err := New(Config{KernelImage: payload(ticker), Memory: 4 << 20, CPUs: 2, ConsoleOut: io.Discard, Devices: list, Transport: tr})
			require.NoError(t, err)
			c := reach(t, m, 1)
			var wg sync.WaitGroup
			for g := range uint64(3) {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, g))
					for range 30 {
						switch r.IntN(8) {
						case 0, 1:
							_ = m.Start()
						case 2, 3:
							_ = m.Pause()
						case 4, 5:
							_ = m.Resume()
						case 6:
							m.Report()
						case 7:
							if r.IntN(20) == 0 {
								_ = m.Kill()
							}
						}
					}
				})
			}
			for range 10 {
				c.setStatus(0)
				c.setStatus(virtio.StatusAcknowledge | virtio.StatusDriver)
				m.virtio[1].f.Bell(0).Ring()
			}
			wg.Wait()
			_ = m.Start()
			for range 2 {
				wg.Go(func() { assert.NoError(t, m.Close()) })
			}
			wg.Wait()
			closedOnce(t, closed)
		}
		requireNothingLeft(t, before, 8)
	})
}
