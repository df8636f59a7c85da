package mmio_test

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/mmio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

const (
	fuzzRAM  = 0x2000
	fuzzBase = 0x1000
)

// access is 8 bytes of a script: what (1: bit 0 write, bits 1 to 3 the width),
// padding (1), offset (2), value (4).
const accessSize = 8

func write(off uint16, v uint32) []byte {
	b := []byte{1 | 4<<1, 0}
	b = binary.LittleEndian.AppendUint16(b, off)
	return binary.LittleEndian.AppendUint32(b, v)
}

// setUp are the accesses of a driver that starts queue 0.
func setUp(features uint32) (b []byte) {
	for _, a := range []struct {
		off uint16
		v   uint32
	}{
		{mmio.DeviceStatus, 0}, {mmio.DeviceStatus, ackDriver}, {mmio.DriverFeaturesSel, 1}, {mmio.DriverFeatures, 1},
		{mmio.DriverFeaturesSel, 0}, {mmio.DriverFeatures, features}, {mmio.DeviceStatus, featuresOK},
		{mmio.QueueSel, 0}, {mmio.QueueNum, 16}, {mmio.QueueDescLow, 0x1000}, {mmio.QueueDriverLow, 0x1200},
		{mmio.QueueDeviceLow, 0x1300}, {mmio.QueueReady, 1}, {mmio.DeviceStatus, running}, {mmio.QueueNotify, 0},
	} {
		b = append(b, write(a.off, a.v)...)
	}
	return b
}

// FuzzMMIO makes arbitrary accesses to the registers of an echo device, over
// arbitrary memory.
func FuzzMMIO(f *testing.F) {
	ram := make([]byte, 0x400)
	binary.LittleEndian.PutUint64(ram, 0x1800)
	binary.LittleEndian.PutUint32(ram[8:], 64)
	binary.LittleEndian.PutUint16(ram[12:], 1)
	binary.LittleEndian.PutUint16(ram[14:], 1)
	binary.LittleEndian.PutUint64(ram[16:], 0x1900)
	binary.LittleEndian.PutUint32(ram[24:], 64)
	binary.LittleEndian.PutUint16(ram[28:], 2)
	binary.LittleEndian.PutUint16(ram[0x202:], 3) // avail.idx
	f.Add(ram, setUp(0))
	f.Add(ram, append(setUp(1<<28|1<<29), setUp(0)...))
	f.Add(ram, append(setUp(1<<28|1<<29), write(mmio.QueueNum, 0)...))
	f.Add(ram, append(setUp(0), write(mmio.InterruptACK, 3)...))
	f.Add([]byte{}, append(setUp(0xffff_ffff), []byte{0, 0, 0x70, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0}...))
	f.Add(ram, append(setUp(0), write(mmio.Config+5, 1)...))
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, image, script []byte) {
		growth.Check(t)
		ram := make([]byte, fuzzRAM)
		copy(ram, image)
		mem, err := memory.FromBytes(memory.Region{GPA: fuzzBase, Mem: ram})
		require.NoError(t, err)
		e := virtiotest.NewEcho(t)
		d, err := mmio.New(virtio.FunctionConfig{Device: e, Memory: mem}, virtiotest.NewCounter())
		require.NoError(t, err)
		r := virtiotest.MMIORegisters{Device: d}
		for n := 0; len(script) >= accessSize && n < 256; n++ {
			what, off, v := script[0], uint64(binary.LittleEndian.Uint16(script[2:]))%mmio.Size, script[4:8:8]
			script = script[accessSize:]
			width := int(what >> 1 & 7)
			if width == 0 {
				width = 4
			}
			p := make([]byte, width)
			copy(p, v)
			was := uint8(r.Get(mmio.DeviceStatus))
			if what&1 == 0 {
				d.Read(off, p)
				if off < mmio.Config && (width != 4 || off%4 != 0) {
					require.Equal(t, make([]byte, width), p)
				}
				continue
			}
			d.Write(off, p)
			now := uint8(r.Get(mmio.DeviceStatus))
			if off == mmio.DeviceStatus && width == 4 && binary.LittleEndian.Uint32(p) == 0 {
				require.Zero(t, now, "after a reset")
				require.Zero(t, r.Get(mmio.InterruptStatus))
			} else {
				require.Equal(t, was, now&was, "a status bit was lost")
			}
			require.Zero(t, r.Get(mmio.InterruptStatus)&^(mmio.InterruptQueue|mmio.InterruptConfig))
			require.EqualValues(t, 0x74726976, r.Get(mmio.MagicValue))
			if e.Activated() == 0 {
				require.Zero(t, e.Popped())
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, d.Function().Close(ctx))
		require.Equal(t, e.Popped(), e.Pushed())
	})
}
