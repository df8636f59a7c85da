package block_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/block/blocktest"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// coarse is an image with large blocks.
type coarse struct {
	*block.Memory
	logical, physical int
}

func (c coarse) BlockSize() (logical, physical int) { return c.logical, c.physical }

// TestConfigSpace: VIRTIO 1.2, section 5.2.4.
func TestConfigSpace(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, c := range []struct {
			name string
			img  block.Image
			o    block.Options
			want block.Config
		}{
			{"memory", block.NewMemory(mib), block.Options{}, block.Config{
				Capacity: 2048, SegMax: 510, BlockSize: 512, PhysicalBlockExp: 3, MinIOSize: 8, NumQueues: 1,
				DiscardSectorAlignment: 8,
			}},
			{"large blocks, several queues", coarse{block.NewMemory(mib), 4096, 4096}, block.Options{Queues: 4, QueueSize: 64}, block.Config{
				Capacity: 2048, SegMax: 62, BlockSize: 4096, PhysicalBlockExp: 0, MinIOSize: 1, NumQueues: 4,
				DiscardSectorAlignment: 8,
			}},
			{"small queue", coarse{block.NewMemory(512), 512, 512}, block.Options{QueueSize: 4}, block.Config{
				Capacity: 1, SegMax: 2, BlockSize: 512, PhysicalBlockExp: 0, MinIOSize: 1, NumQueues: 1,
				DiscardSectorAlignment: 1,
			}},
			{"physical smaller than logical", coarse{block.NewMemory(mib), 4096, 512}, block.Options{}, block.Config{
				Capacity: 2048, SegMax: 510, BlockSize: 4096, PhysicalBlockExp: 0, MinIOSize: 1, NumQueues: 1,
				DiscardSectorAlignment: 8,
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				d := attach(t, open, c.img, c.o, 0)
				assert.Equal(t, virtio.TypeBlock, d.Regs.Type())
				want := c.want
				want.SizeMax, want.Writeback = 1<<20, 1
				want.MaxDiscardSectors, want.MaxDiscardSeg = 4<<20, 32
				want.MaxWriteZeroesSectors, want.MaxWriteZeroesSeg, want.WriteZeroesMayUnmap = 256<<10, 1, 1
				assert.Equal(t, want, d.config())
				features := d.Regs.DeviceFeatures()
				for _, f := range []uint64{
					block.FeatureSizeMax, block.FeatureSegMax, block.FeatureBlockSize, block.FeatureTopology,
					block.FeatureFlush, block.FeatureDiscard, block.FeatureWriteZeroes,
				} {
					assert.NotZero(t, features&f, "%#x", f)
				}
				assert.Zero(t, features&block.FeatureReadOnly)
				assert.Equal(t, c.o.Queues > 1, features&block.FeatureMultiQueue != 0)

				// Rule 5: what is past the end reads as 0; nothing can be written.
				past := []byte{1, 2, 3, 4}
				d.Regs.ReadConfig(60, past)
				assert.Equal(t, make([]byte, 4), past)
				for i := range 64 {
					d.Regs.WriteConfig(i, []byte{0xff})
				}
				assert.Equal(t, want, d.config())
			})
		}
	})
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for _, c := range []struct {
		name, say string
		img       block.Image
		o         block.Options
	}{
		{"serial", "has 21 bytes", block.NewMemory(mib), block.Options{Serial: strings.Repeat("s", 21)}},
		{"queues", "65 queues", block.NewMemory(mib), block.Options{Queues: 65}},
		{"negative queues", "-1 queues", block.NewMemory(mib), block.Options{Queues: -1}},
		{"queue size", "power of two", block.NewMemory(mib), block.Options{QueueSize: 48}},
		{"tiny queue", "power of two", block.NewMemory(mib), block.Options{QueueSize: 2}},
		{"workers", "65 workers", block.NewMemory(mib), block.Options{Workers: 65}},
		{"negative workers", "-1 workers", block.NewMemory(mib), block.Options{Workers: -1}},
		{"empty", "0 bytes", block.NewMemory(0), block.Options{}},
		{"rate", "negative", block.NewMemory(mib), block.Options{Limits: virtio.Limits{Ops: virtio.Rate{PerSecond: -1}}}},
		{"block size 0", "blocks of 0", coarse{block.NewMemory(mib), 0, 512}, block.Options{}},
		{"block size 3000", "blocks of 512 and 3000", coarse{block.NewMemory(mib), 512, 3000}, block.Options{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := &closing{Image: c.img}
			if g, ok := c.img.(block.Geometry); ok {
				img.Geometry = g
			}
			c.o.Name = "vda"
			_, err := block.New(img, c.o)
			require.ErrorIs(t, err, block.ErrImage)
			assert.ErrorContains(t, err, c.say)
			assert.ErrorContains(t, err, "vda")
			assert.Equal(t, 1, img.closed, "the image belonged to New")
		})
	}
}

type closing struct {
	block.Image
	block.Geometry
	closed int
}

func (c *closing) Close() error {
	c.closed++
	return nil
}

// recorder writes down the changes of an image in the order of their ends.
type recorder struct {
	*block.Memory
	mu  sync.Mutex
	ops []string
}

func (r *recorder) note(op string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, op)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := r.ops
	r.ops = nil
	return ops
}

func (r *recorder) WritevAt(bufs [][]byte, off int64) (int, error) {
	defer r.note("write")
	return r.Memory.WritevAt(bufs, off)
}

func (r *recorder) Flush() error {
	defer r.note("flush")
	return r.Memory.Flush()
}

func (r *recorder) Discard(off, n int64) error {
	defer r.note("discard")
	return r.Memory.Discard(off, n)
}

func (r *recorder) WriteZeroes(off, n int64, unmap bool) error {
	if unmap {
		defer r.note("zero, unmap")
	} else {
		defer r.note("zero")
	}
	return r.Memory.WriteZeroes(off, n, unmap)
}

// TestFlush: VIRTIO 1.2, section 5.2.6.2: with FLUSH a write may be in a cache
// until a flush; without it, every change is on stable storage when it completes.
func TestFlush(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := &recorder{Memory: block.NewMemory(mib)}
		d := attach(t, open, img, block.Options{}, 0)
		all := func() []string {
			require.EqualValues(t, ok, d.write(0, make([]byte, 512)))
			status, _ := d.do(block.RequestDiscard, 0, ranges([3]uint64{0, 1, 0}, [3]uint64{8, 1, 0}), 0)
			require.EqualValues(t, ok, status)
			status, _ = d.do(block.RequestWriteZeroes, 0, ranges([3]uint64{0, 1, 0}), 0)
			require.EqualValues(t, ok, status)
			_, status = d.read(0, 512)
			require.EqualValues(t, ok, status)
			return img.take()
		}
		assert.Equal(t, []string{"write", "discard", "discard", "zero"}, all())
		status, r := d.do(block.RequestFlush, 0, nil, 0)
		assert.EqualValues(t, ok, status)
		assert.EqualValues(t, 1, r.len)
		assert.Equal(t, []string{"flush"}, img.take())

		d.Start(virtio.FeatureIndirectDesc | block.FeatureDiscard | block.FeatureWriteZeroes)
		assert.Equal(t, []string{"write", "flush", "discard", "discard", "flush", "zero", "flush"}, all())
		status, _ = d.do(block.RequestFlush, 0, nil, 0)
		assert.EqualValues(t, unsupported, status, "rule 3: what was not acknowledged is not used")
		assert.Empty(t, img.take(), "all is stable already")
	})
}

// TestFailedFlush: whoever asks for stable storage learns that there is none.
func TestFailedFlush(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := blocktest.NewFaulty(block.NewMemory(mib))
		d := attach(t, open, img, block.Options{}, 0)
		img.Add(blocktest.Fault{Ops: blocktest.Flush, Err: unix.EIO})
		assert.EqualValues(t, ok, d.write(0, make([]byte, 512)))
		for range 3 {
			status, _ := d.do(block.RequestFlush, 0, nil, 0)
			assert.EqualValues(t, ioError, status)
		}
		d.Start(virtio.FeatureIndirectDesc | block.FeatureDiscard | block.FeatureWriteZeroes)
		assert.EqualValues(t, ioError, d.write(0, make([]byte, 512)), "without FLUSH it is the write that fails")
		for _, kind := range []uint32{block.RequestDiscard, block.RequestWriteZeroes} {
			status, _ := d.do(kind, 0, ranges([3]uint64{0, 1, 0}), 0)
			assert.EqualValues(t, ioError, status)
		}
	})
}

// newDisk makes a file of size bytes of the pattern, and opens it.
func newDisk(t *testing.T, size int) (string, *block.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, pattern(size, 0), 0o600))
	img, err := block.Open(block.OpenOptions{Path: path})
	require.NoError(t, err)
	return path, img.(*block.File)
}

// TestFlushOfDamagedFile: once a flush has failed, no later one succeeds.
func TestFlushOfDamagedFile(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		path, img := newDisk(t, mib)
		d := attach(t, open, img, block.Options{}, 0)
		flush := func() byte {
			status, _ := d.do(block.RequestFlush, 0, nil, 0)
			return status
		}
		assert.EqualValues(t, ok, flush())
		require.NoError(t, os.Truncate(path, mib/2))
		assert.EqualValues(t, ioError, flush())
		require.NoError(t, os.Truncate(path, mib))
		assert.EqualValues(t, ioError, flush(), "what was lost is not back")

		// A look at the sizes of all disks finds this one's as it was.
		irqs := d.ConfigIRQ.Count()
		require.NoError(t, d.dev.Refresh())
		assert.EqualValues(t, mib/512, d.config().Capacity)
		if d.Regs.Transport() == "pci" { // whose queues have a vector of their own
			assert.Equal(t, irqs, d.ConfigIRQ.Count(), "the guest was told nothing")
		}
		assert.EqualValues(t, ioError, flush(), "so that nothing has changed for it")
		assert.EqualValues(t, ioError, d.write(mib/512-8, make([]byte, 4096)), "there is a hole")
		_, status := d.read(mib/512-8, 4096)
		assert.EqualValues(t, ioError, status, "not zeroes")

		require.NoError(t, os.Truncate(path, mib/2))
		require.NoError(t, d.dev.Refresh())
		assert.EqualValues(t, mib/2/512, d.config().Capacity)
		assert.EqualValues(t, ok, flush(), "the disk that the guest knows is whole")
	})
}

// TestDiscardAndWriteZeroes: VIRTIO 1.2, section 5.2.6.
func TestDiscardAndWriteZeroes(t *testing.T) {
	const sectors = mib / 512
	type r = [3]uint64
	var many []r
	for i := range uint64(33) {
		many = append(many, r{i, 1, 0})
	}
	both := []uint32{block.RequestDiscard, block.RequestWriteZeroes}
	for _, c := range []struct {
		name  string
		kinds []uint32
		out   []byte
		want  byte
		ops   []string // of the image
	}{
		{"one", both[1:], ranges(r{8, 8, 0}), ok, []string{"zero"}},
		{"one discarded", both[:1], ranges(r{8, 8, 0}), ok, []string{"discard"}},
		{"unmap", both[1:], ranges(r{8, 8, 1}), ok, []string{"zero, unmap"}},
		{"two", both[:1], ranges(r{8, 8, 0}, r{32, 8, 0}), ok, slices.Repeat([]string{"discard"}, 2)},
		{"two ranges of zeroes", both[1:], ranges(r{8, 8, 0}, r{32, 8, 1}), ioError, nil},
		{"as many as allowed", both[:1], ranges(many[:32]...), ok, slices.Repeat([]string{"discard"}, 32)},
		{"all of the disk", both[1:], ranges(r{0, sectors, 0}), ok, []string{"zero"}},
		{"all of the disk discarded", both[:1], ranges(r{0, sectors, 0}), ok, []string{"discard"}},
		{"nothing", both, ranges(r{8, 0, 0}), ok, nil},
		{"nothing at the end", both, ranges(r{sectors, 0, 0}), ok, nil},
		{"nothing past the end", both, ranges(r{sectors + 1, 0, 0}), ioError, nil},
		{"one too many", both, ranges(many...), ioError, nil},
		{"no range", both, nil, ioError, nil},
		{"part of a range", both, ranges(r{8, 8, 0})[:15], ioError, nil},
		{"a range and a byte", both, append(ranges(r{8, 8, 0}), 0), ioError, nil},
		{"past the end", both, ranges(r{sectors, 1, 0}), ioError, nil},
		{"over the end", both, ranges(r{sectors - 1, 2, 0}), ioError, nil},
		{"the sum wraps", both, ranges(r{1<<64 - 1, 2, 0}), ioError, nil},
		{"the sum wraps in bytes", both, ranges(r{1 << 55, 8, 0}), ioError, nil},
		{"the largest", both, ranges(r{1<<64 - 1, 1<<32 - 1, 0}), ioError, nil},
		{"the second is bad: the first stays", both[:1], ranges(r{8, 8, 0}, r{sectors, 1, 0}), ioError, nil},
		{"the second has a flag: the first stays", both[:1], ranges(r{8, 8, 0}, r{0, 1, 2}), unsupported, nil},
		{"unknown flag", both, ranges(r{8, 8, 2}), unsupported, nil},
		{"all flags", both, ranges(r{8, 8, 1<<32 - 1}), unsupported, nil},
		{"discard has no unmap", both[:1], ranges(r{8, 8, 1}), unsupported, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				for _, kind := range c.kinds {
					img := &recorder{Memory: block.NewMemory(mib)}
					before := pattern(mib, 0)
					_, err := img.WriteAt(before, 0)
					require.NoError(t, err)
					d := attach(t, open, img, block.Options{}, 0)
					img.take()
					status, _ := d.do(kind, 1<<60, c.out, 0) // the header's sector means nothing
					assert.Equal(t, c.want, status)
					ops := img.take()
					assert.Equal(t, c.ops, ops)
					want := before
					if c.want == ok {
						for at := 0; at < len(c.out); at += 16 {
							from, n := int(c.out[at])+int(c.out[at+1])<<8, int(c.out[at+8])+int(c.out[at+9])<<8
							clear(want[from*512 : (from+n)*512])
						}
					} else {
						assert.Empty(t, ops)
					}
					assert.Equal(t, want, content(t, img))
					assert.Zero(t, d.Regs.Status()&virtio.StatusNeedsReset)
				}
			})
		})
	}
}

// TestRangeLimits: a range has at most as many sectors as the configuration says.
func TestRangeLimits(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := attach(t, open, block.NewMemory(3<<30), block.Options{}, 0)
		c := d.config()
		for kind, most := range map[uint32]uint64{
			block.RequestDiscard: uint64(c.MaxDiscardSectors), block.RequestWriteZeroes: uint64(c.MaxWriteZeroesSectors),
		} {
			status, _ := d.do(kind, 0, ranges([3]uint64{0, most, 0}), 0)
			assert.EqualValues(t, ok, status)
			status, _ = d.do(kind, 0, ranges([3]uint64{0, most + 1, 0}), 0)
			assert.EqualValues(t, ioError, status)
		}
	})
}

// TestHolesArePunched: on a file the storage really goes back to the host, with
// DISCARD and with WRITE_ZEROES that may unmap, and stays without.
func TestHolesArePunched(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, c := range []struct {
			name  string
			kind  uint32
			flags uint64
			freed bool
		}{
			{"discard", block.RequestDiscard, 0, true},
			{"write zeroes, unmap", block.RequestWriteZeroes, 1, true},
			{"write zeroes", block.RequestWriteZeroes, 0, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				path, img := newDisk(t, mib)
				require.NoError(t, img.Flush()) // the blocks are counted once they are allocated
				d := attach(t, open, img, block.Options{}, 0)
				allocated := func() int64 {
					var st unix.Stat_t
					require.NoError(t, unix.Stat(path, &st))
					assert.EqualValues(t, mib, st.Size)
					return st.Blocks * 512
				}
				before := allocated()
				require.GreaterOrEqual(t, before, int64(mib))
				status, _ := d.do(c.kind, 0, ranges([3]uint64{512, 1024, c.flags}), 0)
				require.EqualValues(t, ok, status)
				if c.freed {
					assert.LessOrEqual(t, allocated(), before-mib/2)
				} else {
					assert.GreaterOrEqual(t, allocated(), int64(mib))
				}
				want := pattern(mib, 0)
				clear(want[512*512 : 1536*512])
				assert.Equal(t, want, content(t, img))
			})
		}
	})
}

// TestQueues: every queue serves the same disk.
func TestQueues(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := attach(t, open, block.NewMemory(mib), block.Options{Queues: 8, QueueSize: 16, Workers: 2}, 0)
		require.Len(t, d.Queues, 8)
		var writes []*request
		for i := range d.Queues {
			writes = append(writes, d.begin(i, block.RequestOut, uint64(i), pattern(512, byte(i)), 0))
		}
		for _, r := range writes {
			assert.EqualValues(t, ok, r.end())
		}
		for i := range d.Queues {
			from := (i + 3) % 8
			r := d.begin(i, block.RequestIn, uint64(from), nil, 512)
			assert.EqualValues(t, ok, r.end())
			assert.Equal(t, pattern(512, byte(from)), r.data())
		}
	})
}

// TestQueuesWithoutMultiQueue: VIRTIO 1.2, section 5.2.2: without VIRTIO_BLK_F_MQ
// there is one queue. Others that a driver sets up all the same are left alone
// (rule 3), and harm neither a pause nor a reset.
func TestQueuesWithoutMultiQueue(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		const plain = virtio.FeatureIndirectDesc | block.FeatureFlush
		d := attach(t, open, block.NewMemory(mib), block.Options{Queues: 3}, plain)
		require.Len(t, d.Queues, 3)
		for range 2 {
			waiting := d.begin(1, block.RequestIn, 0, nil, 512)
			d.begin(2, block.RequestOut, 8, pattern(512, 3), 0)
			for range 20 {
				r := d.begin(0, block.RequestIn, 8, nil, 512)
				require.EqualValues(t, ok, r.end())
				require.True(t, bytes.Equal(make([]byte, 512), r.data()), "nobody has written")
			}
			require.NoError(t, d.Function.Pause(patient(t)))
			d.Function.Resume()
			_, status := d.read(0, 512)
			assert.EqualValues(t, ok, status)
			assert.Zero(t, d.Queues[1].UsedIndex())
			assert.Zero(t, d.Queues[2].UsedIndex())
			assert.True(t, bytes.Equal(bytes.Repeat([]byte{0xaa}, 512), waiting.data()))
			assert.Zero(t, d.Regs.Status()&virtio.StatusNeedsReset)
			d.Start(plain)
		}
		d.Start(plain | block.FeatureMultiQueue)
		r := d.begin(2, block.RequestIn, 0, nil, 512)
		assert.EqualValues(t, ok, r.end(), "with the feature they work")
	})
}

// TestOnlyAnotherQueueWithoutMultiQueue: a driver that has enabled the wrong queue
// has a disk that does nothing.
func TestOnlyAnotherQueueWithoutMultiQueue(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		dev, err := block.New(block.NewMemory(mib), block.Options{Queues: 2})
		require.NoError(t, err)
		before := runtime.NumGoroutine()
		d := disk{Driver: open(t, dev), t: t, dev: dev}
		d.Negotiate(virtio.FeatureIndirectDesc)
		d.SetUp(1, 8)
		d.DriverOK()
		assert.LessOrEqual(t, runtime.NumGoroutine(), before, "nobody serves it")
		d.begin(1, block.RequestIn, 0, nil, 512)
		require.NoError(t, d.Function.Pause(patient(t)))
		assert.Zero(t, d.Queues[1].UsedIndex())
	})
}

// TestSomeQueues: a driver need not enable every queue.
func TestSomeQueues(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		dev, err := block.New(block.NewMemory(mib), block.Options{Queues: 4})
		require.NoError(t, err)
		d := disk{Driver: open(t, dev), t: t, dev: dev}
		d.Negotiate(0)
		d.SetUp(2, 8)
		d.DriverOK()
		r := d.begin(2, block.RequestIn, 0, nil, 512)
		assert.EqualValues(t, ok, r.end())
		d.Regs.Notify(0)
		r = d.begin(2, block.RequestIn, 0, nil, 512)
		assert.EqualValues(t, ok, r.end())
	})
}

// TestResize: VIRTIO 1.2, sections 2.5 and 5.2.5: the size of a running disk
// changes, with the generation, and the driver is told.
func TestResize(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		path, img := newDisk(t, mib)
		d := attach(t, open, img, block.Options{}, 0)
		last := uint64(mib / 512)
		require.NoError(t, os.Truncate(path, 2*mib))
		_, status := d.read(last, 512)
		assert.EqualValues(t, ioError, status, "nobody has looked yet")
		generation, irqs := d.Regs.ConfigGeneration(), d.ConfigIRQ.Count()

		require.NoError(t, d.dev.Refresh())
		d.ConfigIRQ.Wait(t, irqs)
		_, config := d.Regs.Acknowledge()
		assert.True(t, config)
		assert.NotEqual(t, generation, d.Regs.ConfigGeneration())
		assert.EqualValues(t, 2*mib/512, d.config().Capacity)
		assert.Equal(t, block.State{Capacity: 2 * mib / 512}, d.dev.State())
		assert.EqualValues(t, ok, d.write(last, pattern(512, 9)))
		got, status := d.read(last, 512)
		assert.EqualValues(t, ok, status)
		assert.Equal(t, pattern(512, 9), got)

		generation, irqs = d.Regs.ConfigGeneration(), d.ConfigIRQ.Count()
		require.NoError(t, d.dev.Refresh())
		assert.Equal(t, generation, d.Regs.ConfigGeneration(), "nothing new")
		assert.Equal(t, irqs, d.ConfigIRQ.Count())

		require.NoError(t, os.Truncate(path, mib/2))
		require.NoError(t, d.dev.Refresh())
		assert.EqualValues(t, mib/2/512, d.config().Capacity)
		_, status = d.read(last, 512)
		assert.EqualValues(t, ioError, status, "smaller")
		_, status = d.read(0, 512)
		assert.EqualValues(t, ok, status)

		require.NoError(t, os.Truncate(path, 1000))
		generation = d.Regs.ConfigGeneration()
		assert.ErrorIs(t, d.dev.Refresh(), block.ErrImage)
		assert.Equal(t, generation, d.Regs.ConfigGeneration(), "an impossible size changes nothing")
		assert.EqualValues(t, mib/2/512, d.config().Capacity)
	})
}

// TestResizeBeforeDriver: a size that changes before DRIVER_OK, perhaps after the
// driver has read it, is told then.
func TestResizeBeforeDriver(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := block.NewMemory(mib)
		dev, err := block.New(img, block.Options{})
		require.NoError(t, err)
		d := disk{Driver: open(t, dev), t: t, dev: dev}
		d.Negotiate(0)
		assert.EqualValues(t, mib/512, d.config().Capacity)
		img.Resize(2 * mib)
		require.NoError(t, dev.Refresh())
		assert.Zero(t, d.ConfigIRQ.Count())
		d.SetUp(0, 16)
		d.DriverOK()
		d.ConfigIRQ.Wait(t, 0)
		assert.EqualValues(t, 2*mib/512, d.config().Capacity)
		n := d.ConfigIRQ.Count()
		d.Start(0)
		_, status := d.read(2*mib/512-1, 512)
		assert.EqualValues(t, ok, status)
		if d.Regs.Transport() == "pci" { // whose queues have a vector of their own
			assert.Equal(t, n, d.ConfigIRQ.Count(), "once")
		}
	})
}

// TestResizeUnderLoad: requests and sizes change at the same time; the driver
// reads the size as one with the generation.
func TestResizeUnderLoad(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := block.NewMemory(mib)
		d := attach(t, open, img, block.Options{}, 0)
		var work sync.WaitGroup
		for i := range 2 {
			work.Go(func() {
				for j := range 50 {
					img.Resize(int64(1+(i+j)%3) * mib)
					assert.NoError(t, d.dev.Refresh())
				}
			})
		}
		for range 100 {
			_, status := d.read(0, 4096)
			assert.EqualValues(t, ok, status)
		}
		work.Wait()
		assert.EqualValues(t, img.Size()/512, d.config().Capacity, "the last size is the one that is told")
	})
}

// stopping is an image on which zeroes are slow: between pieces, the test acts.
type stopping struct {
	*block.Memory
	pieces chan [2]int64
	next   chan struct{}
}

func (s *stopping) WriteZeroes(off, n int64, unmap bool) error {
	s.pieces <- [2]int64{off, n}
	<-s.next
	return nil
}

func (s *stopping) Discard(off, n int64) error { return s.WriteZeroes(off, n, true) }

// activated is a disk whose queues the test can see.
type activated struct {
	*block.Device
	virtio.Activation
}

func (a *activated) Features() uint64 { return a.Device.Features() }

func (a *activated) Activate(to virtio.Activation) error {
	a.Activation = to
	return a.Device.Activate(to)
}

// TestZeroesStop: a reset waits for a piece of what is to be zeroed or discarded
// and not for all of it, with a rate limit and without.
func TestZeroesStop(t *testing.T) {
	const most, piece = 128 * mib, 4 * mib
	for name, limits := range map[string]virtio.Limits{"no limit": {}, "limit": {Ops: virtio.Rate{PerSecond: 1 << 40}}} {
		t.Run(name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				img := &stopping{Memory: block.NewMemory(256 * mib), pieces: make(chan [2]int64), next: make(chan struct{})}
				dev, err := block.New(img, block.Options{Limits: limits})
				require.NoError(t, err)
				watched := &activated{Device: dev}
				d := disk{Driver: open(t, watched), t: t, dev: dev}
				d.Start(0)

				r := d.begin(0, block.RequestWriteZeroes, 0, ranges([3]uint64{8, most / 512, 0}), 0)
				end := int64(8 * 512)
				for end < 8*512+most {
					got := receive(t, img.pieces)
					assert.Equal(t, end, got[0])
					end += got[1]
					assert.True(t, end%piece == 0 || end == 8*512+most, "pieces end where coarse blocks do")
					assert.LessOrEqual(t, got[1], int64(piece))
					img.next <- struct{}{}
				}
				assert.Equal(t, int64(8*512+most), end)
				assert.EqualValues(t, ok, r.end())

				for kind, out := range map[uint32][]byte{
					block.RequestWriteZeroes: ranges([3]uint64{0, most / 512, 0}),
					block.RequestDiscard:     ranges([3]uint64{0, 8, 0}, [3]uint64{8, 8, 0}, [3]uint64{16, 8, 0}),
				} {
					d.begin(0, kind, 0, out, 0)
					receive(t, img.pieces)
					reset := make(chan struct{})
					stopped := watched.Queues[0].Stopped()
					go func() {
						defer close(reset)
						d.Regs.SetStatus(0)
					}()
					receive(t, stopped)
					img.next <- struct{}{}
					select {
					case <-reset:
					case <-img.pieces:
						assert.Fail(t, "the next piece is begun")
						img.next <- struct{}{}
						go func() { // let it end
							for range img.pieces {
								img.next <- struct{}{}
							}
						}()
						<-reset
					case <-time.After(virtiotest.Patience):
						require.Fail(t, "the reset does not end")
					}
					d.Start(0)
				}
			})
		})
	}
}

// TestWorkersAreBounded: a disk has so many threads in system calls at most,
// however many queues there are.
func TestWorkersAreBounded(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		dev, err := block.New(block.NewMemory(mib), block.Options{Queues: 64, QueueSize: 16})
		require.NoError(t, err)
		d := disk{Driver: open(t, dev), t: t, dev: dev}
		before := runtime.NumGoroutine()
		d.Start(0)
		assert.LessOrEqual(t, runtime.NumGoroutine()-before, block.MaxWorkers)
		for i := range d.Queues {
			r := d.begin(i, block.RequestIn, 0, nil, 512)
			assert.EqualValues(t, ok, r.end())
		}
	})
}
