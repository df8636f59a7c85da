package virtio_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

const (
	ackDriver  = virtio.StatusAcknowledge | virtio.StatusDriver
	featuresOK = ackDriver | virtio.StatusFeaturesOK
	running    = featuresOK | virtio.StatusDriverOK
)

// echo sends one request through queue i and checks the answer.
func echo(t *testing.T, d *virtiotest.Driver, i int) {
	t.Helper()
	q := d.Queues[i]
	out, in := d.Out([]byte("is anybody there?")), d.In(32)
	head := q.Add(out, in)
	q.Kick()
	assert.Equal(t, virtiotest.Used{Head: uint32(head), Len: out.Len}, q.Next())
	assert.Equal(t, "is anybody there?", string(d.Bytes(in)[:out.Len]))
	assert.EqualValues(t, 0xaa, d.Bytes(in)[out.Len], "written beyond the length")
}

// TestNothingIsConsumedBeforeDriverOK: VIRTIO 1.2, section 2.1.2.
func TestNothingIsConsumedBeforeDriverOK(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Regs.Notify(0)
		d.Negotiate(0)
		q := d.SetUp(0, 64)
		in := d.In(5)
		head := q.Add(d.Out([]byte("early")), in)
		before := d.Snapshot()
		for range 10 {
			d.Regs.Notify(0)
		}
		assert.Zero(t, e.Activated(), "no queue exists yet")
		assert.Zero(t, e.Popped())
		assert.Equal(t, before, d.Snapshot())
		assert.Zero(t, d.QueueIRQ.Count())

		d.DriverOK()
		assert.Equal(t, virtiotest.Used{Head: uint32(head), Len: 5}, q.Next())
		assert.Equal(t, "early", string(d.Bytes(in)))
	})
}

// TestDriverOKNeedsFeaturesOK: VIRTIO 1.2, section 3.1.1.
func TestDriverOKNeedsFeaturesOK(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Regs.SetStatus(ackDriver)
		d.Regs.SetStatus(ackDriver | virtio.StatusDriverOK)
		assert.Equal(t, ackDriver, d.Regs.Status())
		assert.Zero(t, e.Activated())
	})
}

// TestOffer: VIRTIO 1.2, sections 2.2.2 and 6.
func TestOffer(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		assert.Equal(t, virtiotest.TypeEcho, d.Regs.Type())
		assert.Equal(t, virtio.FeatureVersion1|virtio.FeatureEventIdx|virtio.FeatureIndirectDesc|virtiotest.EchoFeature, d.Regs.DeviceFeatures())
		assert.EqualValues(t, 64, d.Regs.QueueMax(0))
		assert.EqualValues(t, 64, d.Regs.QueueMax(1))
		assert.EqualValues(t, 0, d.Regs.QueueMax(2))
		assert.EqualValues(t, 2, d.Function.NumQueues())
	})
}

// TestFeaturesOK: VIRTIO 1.2, section 2.2.2: a set that the device can't work
// with leaves FEATURES_OK unset, and another one may follow.
func TestFeaturesOK(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  uint64
		ok   bool
	}{
		{"all", virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc | virtiotest.EchoFeature, true},
		{"VERSION_1 alone", virtio.FeatureVersion1, true},
		{"none", 0, false},
		{"no VERSION_1", virtio.FeatureEventIdx | virtiotest.EchoFeature, false},
		{"a device feature that is not offered", virtio.FeatureVersion1 | 1<<4, false},
		{"a ring feature that is not offered", virtio.FeatureVersion1 | 1<<34, false},
		{"the highest bit", virtio.FeatureVersion1 | 1<<63, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				d := open(t, virtiotest.NewEcho(t))
				d.Regs.SetStatus(ackDriver)
				d.Regs.DriverFeatures(tc.set)
				d.Regs.SetStatus(featuresOK)
				if tc.ok {
					assert.Equal(t, featuresOK, d.Regs.Status())
					return
				}
				assert.Equal(t, ackDriver, d.Regs.Status())
				d.Regs.DriverFeatures(virtio.FeatureVersion1)
				d.Regs.SetStatus(featuresOK)
				assert.Equal(t, featuresOK, d.Regs.Status(), "after a better choice")
			})
		})
	}
}

// TestFeaturesAreFrozen: VIRTIO 1.2, section 3.1.1: none is accepted after
// FEATURES_OK, and none counts that was written before DRIVER.
func TestFeaturesAreFrozen(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Regs.DriverFeatures(virtio.FeatureVersion1 | virtio.FeatureIndirectDesc)
		assert.Zero(t, d.Function.DriverFeatures(), "before DRIVER")
		d.Negotiate(virtio.FeatureVersion1 | virtiotest.EchoFeature)
		d.Regs.DriverFeatures(d.Regs.DeviceFeatures())
		d.Regs.DriverFeatures(0)
		d.SetUp(0, 8)
		d.DriverOK()
		d.Regs.DriverFeatures(1 << 63)
		assert.Equal(t, virtio.FeatureVersion1|virtiotest.EchoFeature, d.Function.DriverFeatures())
		assert.Equal(t, virtio.FeatureVersion1|virtiotest.EchoFeature, e.Activation().Features)
		assert.Equal(t, running, d.Regs.Status())
	})
}

// TestNegotiatesAgainAfterReset: VIRTIO 1.2, section 2.2.2: the same set, and
// from nothing.
func TestNegotiatesAgainAfterReset(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		for range 3 {
			d.Start(0)
			assert.Equal(t, d.Regs.DeviceFeatures(), e.Activation().Features)
			echo(t, d, 0)
			echo(t, d, 1)
			d.Reset()
			assert.Zero(t, d.Function.DriverFeatures())
			d.Regs.SetStatus(ackDriver)
			d.Regs.SetStatus(featuresOK)
			assert.Equal(t, ackDriver, d.Regs.Status(), "what was agreed on before the reset does not count")
		}
	})
}

// TestStatusBitsAreOnlyAdded: VIRTIO 1.2, section 2.1.1.
func TestStatusBitsAreOnlyAdded(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Regs.SetStatus(virtio.StatusAcknowledge)
		d.Regs.SetStatus(virtio.StatusDriver)
		assert.Equal(t, ackDriver, d.Regs.Status())
		d.Start(0)
		for v := 1; v < 256; v++ {
			if v == int(virtio.StatusFailed) {
				continue // said below
			}
			d.Regs.SetStatus(uint8(v) &^ virtio.StatusFailed)
			assert.Equal(t, running, d.Regs.Status()&running)
		}
		assert.Zero(t, d.Regs.Status()&virtio.StatusNeedsReset, "that bit is the device's")
		assert.Equal(t, 1, e.Activated())
		echo(t, d, 0)
		d.Regs.SetStatus(virtio.StatusFailed)
		assert.Equal(t, running|virtio.StatusFailed, d.Regs.Status()&(running|virtio.StatusFailed))
		d.Reset()
		d.Start(0)
		echo(t, d, 0)
	})
}

// TestQueueRegistersOutsideTheirWindow: VIRTIO 1.2, sections 3.1.1, 4.1.4.3.2
// and 4.2.2.2: they can be written between FEATURES_OK and DRIVER_OK only, and
// not while the queue is ready.
func TestQueueRegistersOutsideTheirWindow(t *testing.T) {
	scribble := func(d *virtiotest.Driver) {
		d.Regs.QueueSize(0, 2)
		d.Regs.QueueArea(0, virtio.AreaDesc, 0x123450)
		d.Regs.QueueArea(0, virtio.AreaAvail, 0x9876_0000_1234)
		d.Regs.QueueArea(0, virtio.AreaUsed, 0x55554)
	}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		fresh, ready := d.Function.Queue(0)
		assert.Equal(t, virtio.QueueConfig{Size: 64}, fresh)
		assert.False(t, ready)
		untouched := func(when string) {
			t.Helper()
			scribble(d)
			d.Regs.SetQueueReady(0, true)
			c, _ := d.Function.Queue(0)
			assert.Equal(t, fresh, c, when)
			assert.False(t, d.Regs.QueueReady(0), when)
		}
		untouched("at first")
		d.Regs.SetStatus(ackDriver)
		untouched("before FEATURES_OK")

		d.Negotiate(0)
		scribble(d)
		c, _ := d.Function.Queue(0)
		assert.Equal(t, virtio.QueueConfig{Size: 2, Desc: 0x123450, Avail: 0x9876_0000_1234, Used: 0x55554}, c)

		q := d.SetUp(0, 16)
		scribble(d)
		c, _ = d.Function.Queue(0)
		assert.Equal(t, q.Config, c, "while it is ready")
		assert.True(t, d.Regs.QueueReady(0))
		d.DriverOK()
		echo(t, d, 0)
	})
}

// TestQueueChangedAfterActivation: VIRTIO 1.2, section 4.2.2.2. Elsewhere, a new
// size of an active queue led to a division by zero and out of bounds.
func TestQueueChangedAfterActivation(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		d.Start(0)
		was := d.Function.State()
		for _, n := range []uint16{0, 1, 3, 32, 0xffff} {
			d.Regs.SetQueueReady(0, false)
			d.Regs.QueueSize(0, n)
			d.Regs.QueueArea(0, virtio.AreaUsed, 0xffff_ffff_ffff_fffc)
			d.Regs.QueueArea(0, virtio.AreaDesc, 0)
			d.Regs.SetQueueReady(0, true)
			d.Regs.SetQueueReady(1, false)
			echo(t, d, 0)
			echo(t, d, 1)
		}
		c, ready := d.Function.Queue(0)
		assert.True(t, ready)
		assert.Equal(t, was.Queues[0].QueueConfig, c)
		assert.Equal(t, running, d.Regs.Status())
	})
}

// TestQueueThatThereIsNot: a selector out of range reads as nothing and writes
// nowhere.
func TestQueueThatThereIsNot(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		d.Negotiate(0)
		for _, i := range []int{2, 3, 0x7fff, 0xffff} {
			d.Regs.QueueSize(i, 4)
			d.Regs.QueueArea(i, virtio.AreaAvail, 0x1000)
			d.Regs.SetQueueReady(i, true)
			d.Regs.Notify(i)
			assert.False(t, d.Regs.QueueReady(i))
			assert.Zero(t, d.Regs.QueueMax(i))
			c, ready := d.Function.Queue(uint32(i))
			assert.Zero(t, c)
			assert.False(t, ready)
		}
	})
}

// TestQueuesThatAreNotEnabled: VIRTIO 1.2, section 4.2.2.1: a queue that is not
// ready is not touched, and the others work.
func TestQueuesThatAreNotEnabled(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Negotiate(0)
		d.Regs.QueueSize(0, 64)
		d.Regs.QueueArea(0, virtio.AreaDesc, 0xffff_ffff_ffff_fff0)
		d.SetUp(1, 64)
		d.DriverOK()
		assert.True(t, e.Activation().Queues[0] == nil)
		assert.Equal(t, 64, e.Activation().Queues[1].Size())
		assert.Equal(t, 1, e.Activation().Queues[1].Index())
		d.Regs.Notify(0)
		echo(t, d, 1)
	})
}

// TestConfigSpace: VIRTIO 1.2, section 2.5.3: it is readable before FEATURES_OK;
// what is past its end reads 0 and takes no write.
func TestConfigSpace(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		read := func(off, n int) []byte {
			p := make([]byte, n)
			for i := range p {
				p[i] = 0x5a
			}
			d.Regs.ReadConfig(off, p)
			return p
		}
		assert.EqualValues(t, 0x55667788, binary.LittleEndian.Uint32(read(0, 4)))
		assert.EqualValues(t, 0x11223344, binary.LittleEndian.Uint32(read(4, 4)))
		assert.EqualValues(t, 0x99aabbcc, binary.LittleEndian.Uint32(read(8, 4)))
		assert.EqualValues(t, 0x99aa, binary.LittleEndian.Uint16(read(10, 2)))
		assert.Equal(t, []byte{0xdd}, read(12, 1))
		assert.Equal(t, []byte{0xdd, 0, 0, 0}, read(12, 4), "over the end")
		assert.Equal(t, []byte{0}, read(13, 1))
		assert.Equal(t, make([]byte, 8), read(16, 8))
		assert.Equal(t, make([]byte, 4), read(0xec0, 4))
		for off := 0; off < 64; off++ {
			d.Regs.WriteConfig(off, []byte{1})
		}
		d.Regs.WriteConfig(0xec0, []byte{1, 2, 3, 4})
		assert.EqualValues(t, 0x55667788, binary.LittleEndian.Uint32(read(0, 4)), "it is read-only")
		assert.Equal(t, make([]byte, 4), read(0xec0, 4))
	})
}

// TestConfigGeneration: VIRTIO 1.2, sections 2.5 and 2.5.3; the driver hears of
// a change only while it is there (section 2.1.2).
func TestConfigGeneration(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		g := d.Regs.ConfigGeneration()
		assert.Equal(t, g, d.Regs.ConfigGeneration())
		d.Start(0)
		for i := range 300 {
			e.Update(func(b []byte) { binary.LittleEndian.PutUint64(b, uint64(i)) })
			assert.NotEqual(t, g, d.Regs.ConfigGeneration())
			g = d.Regs.ConfigGeneration()
		}
		n := d.ConfigIRQ.Count()
		e.Activation().ConfigChanged()
		assert.Equal(t, n+1, d.ConfigIRQ.Count())
		_, config := d.Regs.Acknowledge()
		assert.True(t, config)
		_, config = d.Regs.Acknowledge()
		assert.False(t, config)

		changed := e.Activation().ConfigChanged
		d.Reset()
		changed()
		assert.Equal(t, n+1, d.ConfigIRQ.Count(), "nobody is there to be told")
	})
}

// TestNeedsReset: VIRTIO 1.2, section 2.1.2: with DRIVER_OK, a configuration
// change notification follows; here once, however often the device fails.
func TestNeedsReset(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Start(0)
		n := d.ConfigIRQ.Count()
		for range 3 {
			e.Activation().Fail(errors.New("the bits have run out"))
			assert.Equal(t, running|virtio.StatusNeedsReset, d.Regs.Status())
			assert.Equal(t, n+1, d.ConfigIRQ.Count())
		}
		_, config := d.Regs.Acknowledge()
		assert.True(t, config)
		d.Regs.SetStatus(running)
		assert.Equal(t, running|virtio.StatusNeedsReset, d.Regs.Status(), "only a reset clears it")

		d.Start(0)
		assert.Equal(t, running, d.Regs.Status())
		echo(t, d, 0)
		e.Activation().Fail(errors.New("again"))
		assert.Equal(t, running|virtio.StatusNeedsReset, d.Regs.Status())
	})
}

// TestActivationThatFails: VIRTIO 1.2, section 2.1.2.
func TestActivationThatFails(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Refuse = errors.New("not today")
		d := open(t, e)
		d.Start(0)
		assert.Equal(t, running|virtio.StatusNeedsReset, d.Regs.Status())
		assert.Equal(t, 1, d.ConfigIRQ.Count())
		e.Refuse = nil
		d.Start(0)
		echo(t, d, 0)
	})
}

// TestDeviceWithABadQueueSize: sizes are the device type's own mistake.
func TestDeviceWithABadQueueSize(t *testing.T) {
	for _, n := range []uint16{0, 3, 63, 0xc000} {
		e := virtiotest.NewEcho(t)
		e.Sizes = []uint16{64, n}
		_, err := virtio.NewFunction(virtio.FunctionConfig{Device: e})
		require.Error(t, err)
		assert.ErrorContains(t, err, "queue 1")
	}
	_, err := virtio.NewConfigSpace(map[string]int{})
	assert.Error(t, err, "not of fixed size")
}

func TestTypeNames(t *testing.T) {
	assert.Equal(t, "block", virtio.TypeBlock.String())
	assert.Equal(t, "type 62", virtiotest.TypeEcho.String())
}
