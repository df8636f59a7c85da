package block_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/block/blocktest"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestStuckRequestHoldsNoOther: while the only request of a queue is stuck, the
// driver is asked to ring for the next, with the event index and without
// (VIRTIO 1.2, section 2.7.7 and 2.7.10).
func TestStuckRequestHoldsNoOther(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for name, features := range map[string]uint64{
			"event index": 0,
			"flags":       virtio.FeatureIndirectDesc | block.FeatureFlush,
		} {
			t.Run(name, func(t *testing.T) {
				img := blocktest.NewFaulty(block.NewMemory(1 << 20))
				stuck := img.Add(blocktest.Fault{Ops: blocktest.Read, To: 512, Block: true})
				d := attach(t, open, img, block.Options{}, features)
				t.Cleanup(stuck.Release)
				r := d.begin(0, block.RequestIn, 0, nil, 512)
				<-stuck.Arrived()
				for i := range 20 {
					_, status := d.read(uint64(i+1), 512)
					assert.EqualValues(t, ok, status)
				}
				stuck.Release()
				assert.EqualValues(t, ok, r.end())
			})
		}
	})
}

// TestStuckWriteHoldsNoOther: a write that was expected to be quick, and so is at work
// where the queue is listened to, hangs. What was done before it is told, and what comes
// behind it is carried out, others like it too.
func TestStuckWriteHoldsNoOther(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := watch(0)
		d := attach(t, open, habitual{img}, block.Options{Workers: 4}, 0)
		habituate(t, d)
		stuck := img.Add(blocktest.Fault{Ops: blocktest.Write, To: 8192, Block: true})
		t.Cleanup(stuck.Release)
		page := pattern(4096, 1)
		quick := d.prepare(0, block.RequestOut, 64, page, 0)
		first := d.prepare(0, block.RequestOut, 0, page, 0)
		quick.queue.Kick()
		receive(t, stuck.Arrived())
		assert.EqualValues(t, ok, quick.end())
		second := d.begin(0, block.RequestOut, 8, page, 0)
		receive(t, stuck.Arrived())
		for i := range 20 {
			_, status := d.read(uint64(i+100), 512)
			assert.EqualValues(t, ok, status)
			assert.EqualValues(t, ok, d.write(uint64(i+100)*8, page))
		}
		stuck.Release()
		for range 2 {
			d.Queues[0].Next()
		}
		for _, r := range []*request{first, second} {
			assert.EqualValues(t, ok, d.Bytes(r.status)[0])
		}
		habituate(t, d)
	})
}
