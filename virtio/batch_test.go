package virtio_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestUnpop: a device that took more than it needs puts it back, in order, and is
// idle then.
func TestUnpop(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, _ := manual(t, open, 0)
		var heads []uint32
		for range 3 {
			heads = append(heads, uint32(q.Add(d.In(8))))
		}
		chains := []*virtio.Chain{virtio.NewChain(aq), virtio.NewChain(aq), virtio.NewChain(aq)}
		for range 100 { // more often than the ring is long
			for _, c := range chains {
				require.True(t, aq.Pop(c))
			}
			assert.False(t, aq.Pop(virtio.NewChain(aq)))
			aq.Unpop(3)
		}
		assert.True(t, aq.Pending())
		require.NoError(t, d.Function.Pause(patient(t)), "nothing is in flight")
		d.Function.Resume()

		for _, c := range chains {
			require.True(t, aq.Pop(c))
		}
		aq.Unpop(2)
		chains[0].Write([]byte("12345678"))
		aq.Push(chains[0])
		aq.Signal()
		assert.Equal(t, virtiotest.Used{Head: heads[0], Len: 8}, q.Next())
		for _, want := range heads[1:] {
			require.True(t, aq.Pop(chains[0]))
			aq.Push(chains[0])
			aq.Signal()
			assert.Equal(t, want, q.Next().Head)
		}
		assert.False(t, aq.Pending())
	})
}

// TestUnpopEndsAWait: a pause that waits for requests goes on when they are put back.
func TestUnpopEndsAWait(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, c := manual(t, open, 0)
		q.Add(d.In(8))
		require.True(t, aq.Pop(c))
		paused := make(chan error, 1)
		go func() { paused <- d.Function.Pause(patient(t)) }()
		aq.Unpop(1)
		require.NoError(t, <-paused)
		assert.False(t, aq.Pop(c), "it is paused")
		d.Function.Resume()
		assert.True(t, aq.Pop(c))
		aq.Push(c)
		aq.Signal()
	})
}

// TestPushAll: VIRTIO 1.2, section 5.1.6.4: the buffers of one frame come into sight
// together.
func TestPushAll(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, _ := manual(t, open, 0)
		for round := range 100 {
			var heads []uint32
			var chains []*virtio.Chain
			for i := range 5 {
				heads = append(heads, uint32(q.Add(d.In(8))))
				c := virtio.NewChain(aq)
				require.True(t, aq.Pop(c))
				c.Write([]byte("12345678")[:i])
				chains = append(chains, c)
			}
			before := q.UsedIndex()
			aq.PushAll(chains)
			require.Equal(t, before+5, q.UsedIndex(), "round %d", round)
			aq.Signal()
			for i, head := range heads {
				require.Equal(t, virtiotest.Used{Head: head, Len: uint32(i)}, q.Next())
			}
		}
	})
}
