package block_test

import (
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

// TestRateLimit: a request is served, and who has served it waits until its
// tokens are there before the next.
func TestRateLimit(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		at := newClock()
		img := &recorder{Memory: block.NewMemory(mib)}
		dev, err := block.NewWithClock(img, block.Options{
			Workers: 1,
			Limits:  virtio.Limits{Bytes: virtio.Rate{PerSecond: 4096}, Ops: virtio.Rate{PerSecond: 4}},
		}, at)
		require.NoError(t, err)
		d := started(t, open, dev, 0)
		assert.EqualValues(t, ok, d.write(0, make([]byte, 4096)))
		assert.Empty(t, at.asked, "the bucket was full")

		_, status := d.read(0, 2048)
		assert.EqualValues(t, ok, status)
		assert.Equal(t, time.Second/2, receive(t, at.asked), "by the bytes")
		r := d.begin(0, block.RequestGetID, 0, nil, 20)
		assert.EqualValues(t, 2, d.Queues[0].UsedIndex(), "the only worker waits")
		at.advance(time.Second / 2)
		assert.EqualValues(t, ok, r.end())

		at.advance(time.Hour)
		for range 4 {
			_, status := d.read(0, 512)
			assert.EqualValues(t, ok, status)
		}
		assert.Empty(t, at.asked)
		_, status = d.read(0, 512)
		assert.EqualValues(t, ok, status)
		assert.Equal(t, time.Second/4, receive(t, at.asked), "by the operations")
		at.advance(time.Second / 4)

		for _, c := range []struct {
			sector uint64
			n      int
		}{{mib / 512, 512}, {0, 100}} {
			_, status := d.read(c.sector, c.n)
			assert.EqualValues(t, ioError, status, "what never reaches the image costs nothing")
		}
		for range 10 {
			status, _ := d.do(block.RequestGetID, 0, nil, 20)
			assert.EqualValues(t, ok, status)
			status, _ = d.do(block.RequestDiscard, 0, ranges([3]uint64{mib / 512, 1, 0}), 0)
			assert.EqualValues(t, ioError, status)
		}
		assert.Empty(t, at.asked)

		// Zeroes are bytes, unless they may be holes.
		at.advance(time.Hour)
		for _, unmap := range []uint64{1, 0} {
			status, _ := d.do(block.RequestWriteZeroes, 0, ranges([3]uint64{0, 16, unmap}), 0)
			assert.EqualValues(t, ok, status)
		}
		assert.Equal(t, time.Second, receive(t, at.asked), "8 KiB, and the burst was 4")

		d.Reset()
		d.Start(0)
		assert.Equal(t, time.Second, receive(t, at.asked), "a reset pays no debt")
		img.take()
		r = d.begin(0, block.RequestIn, 0, nil, 512)
		assert.Zero(t, d.Queues[0].UsedIndex())
		at.advance(time.Second)
		assert.EqualValues(t, ok, r.end())
	})
}

// TestRateLimitOfOperations: what reaches the image is an operation, whatever it is
// and however it ends; of a DISCARD each range.
func TestRateLimitOfOperations(t *testing.T) {
	type r = [3]uint64
	for _, c := range []struct {
		name     string
		kind     uint32
		out      []byte
		n        int
		features uint64
		ops      time.Duration
		fault    blocktest.Op
	}{
		{"read", block.RequestIn, nil, 512, 0, 1, 0},
		{"write", block.RequestOut, make([]byte, 512), 0, 0, 1, 0},
		{"write through", block.RequestOut, make([]byte, 512), 0, virtio.FeatureIndirectDesc, 1, 0},
		{"failed read", block.RequestIn, nil, 512, 0, 1, blocktest.Read},
		{"flush", block.RequestFlush, nil, 0, 0, 1, 0},
		{"failed flush", block.RequestFlush, nil, 0, 0, 1, blocktest.Flush},
		{"write zeroes", block.RequestWriteZeroes, ranges(r{0, 8, 1}), 0, 0, 1, 0},
		{"write no zeroes", block.RequestWriteZeroes, ranges(r{0, 0, 1}), 0, 0, 1, 0},
		{"discard", block.RequestDiscard, ranges(r{0, 8, 0}), 0, 0, 1, 0},
		{"failed discard", block.RequestDiscard, ranges(r{0, 8, 0}), 0, 0, 1, blocktest.Discard},
		{"discard three ranges", block.RequestDiscard, ranges(r{0, 8, 0}, r{8, 8, 0}, r{16, 8, 0}), 0, 0, 3, 0},
		{"discard one and nothing", block.RequestDiscard, ranges(r{0, 8, 0}, r{8, 0, 0}), 0, 0, 1, 0},
		{"discard nothing", block.RequestDiscard, ranges(r{0, 0, 0}, r{0, 0, 0}), 0, 0, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				at := newClock()
				img := blocktest.NewFaulty(block.NewMemory(mib))
				img.Add(blocktest.Fault{Ops: c.fault, Err: unix.EIO})
				dev, err := block.NewWithClock(img, block.Options{
					Workers: 1, Limits: virtio.Limits{Ops: virtio.Rate{PerSecond: 1, Burst: 1}},
				}, at)
				require.NoError(t, err)
				d := started(t, open, dev, c.features)
				want := byte(ok)
				if c.fault != 0 {
					want = ioError
				}
				for i := range 3 {
					status, _ := d.do(c.kind, 0, c.out, c.n)
					assert.Equal(t, want, status)
					if debt := time.Duration(i+1)*c.ops - 1; debt > 0 {
						assert.Equal(t, min(debt, c.ops)*time.Second, receive(t, at.asked))
						at.advance(min(debt, c.ops) * time.Second)
					}
				}
			})
		})
	}
}

// TestRateLimitOverTime: with several workers each may be a request ahead; the
// rate holds all the same.
func TestRateLimitOverTime(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		at := newClock()
		const workers, burst, each = 4, 4, time.Second / 4
		dev, err := block.NewWithClock(block.NewMemory(mib), block.Options{
			Workers: workers, Limits: virtio.Limits{Ops: virtio.Rate{PerSecond: 4, Burst: burst}},
		}, at)
		require.NoError(t, err)
		d := started(t, open, dev, 0)
		for range 40 {
			d.begin(0, block.RequestIn, 0, nil, 512)
		}
		for range workers {
			receive(t, at.asked)
		}
		assert.EqualValues(t, burst+workers, d.Queues[0].UsedIndex())
		for i := range 10 {
			at.advance(each)
			assert.Equal(t, workers*each, receive(t, at.asked))
			assert.EqualValues(t, burst+workers+i+1, d.Queues[0].UsedIndex(), "one more")
		}
	})
}

// TestPauseWithADebt: what is owed to the rate limit is not in flight.
func TestPauseWithADebt(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := attach(t, open, block.NewMemory(mib), block.Options{
			Limits: virtio.Limits{Bytes: virtio.Rate{PerSecond: 1024, Burst: 1024}},
		}, 0)
		var all []*request
		for range block.DefaultWorkers + 4 {
			all = append(all, d.begin(0, block.RequestIn, 0, nil, 31<<10)) // 30 s too much
		}
		d.Until("every worker has served", func() bool { return d.Queues[0].UsedIndex() == block.DefaultWorkers })
		start := time.Now()
		require.NoError(t, d.Function.Pause(patient(t)))
		assert.EqualValues(t, ok, d.Bytes(all[0].status)[0])
		d.Function.Resume()
		require.NoError(t, d.Function.Pause(patient(t)))
		require.NoError(t, d.Function.Close(patient(t)))
		assert.Less(t, time.Since(start), virtiotest.Patience/2)
		assert.EqualValues(t, block.DefaultWorkers, d.Queues[0].UsedIndex())
	})
}
