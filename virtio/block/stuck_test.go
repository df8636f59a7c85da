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
