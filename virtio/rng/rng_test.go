package rng_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/rng"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestEntropy: VIRTIO 1.2, section 5.4.6.
func TestEntropy(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, rng.New(nil))
		assert.Equal(t, virtio.TypeEntropy, d.Regs.Type())
		d.Start(0)
		q := d.Queues[0]
		for _, tc := range []struct {
			name string
			bufs []virtiotest.Buffer
			want uint32
		}{
			{"one buffer", []virtiotest.Buffer{d.In(64)}, 64},
			{"several", []virtiotest.Buffer{d.In(1), d.In(30), d.In(100)}, 131},
			{"the most", []virtiotest.Buffer{d.In(rng.MaxRequest)}, rng.MaxRequest},
			{"more than the most", []virtiotest.Buffer{d.In(rng.MaxRequest), d.In(8)}, rng.MaxRequest},
			{"only readable", []virtiotest.Buffer{d.Out([]byte("the device must not write this"))}, 0},
		} {
			before := d.QueueIRQ.Count()
			q.Add(tc.bufs...)
			q.Kick()
			assert.Equal(t, tc.want, q.Next().Len, tc.name)
			d.QueueIRQ.Wait(t, before)
			left := tc.want
			for _, b := range tc.bufs {
				got := d.Bytes(b)
				if !b.Write {
					assert.Equal(t, "the device must not write this", string(got))
					continue
				}
				n := min(left, b.Len)
				if n > 16 {
					assert.Less(t, bytes.Count(got[:n], []byte{0xaa}), int(n)/2, "%s: left as it was", tc.name)
				}
				assert.Equal(t, bytes.Repeat([]byte{0xaa}, int(b.Len-n)), got[n:], "%s: written beyond the length", tc.name)
				left -= n
			}
		}
	})
}

func TestSourceThatFails(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		source := io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(errors.New("no entropy")))
		d := open(t, rng.New(source))
		d.Start(0)
		q := d.Queues[0]
		q.Add(d.In(64))
		q.Kick()
		assert.EqualValues(t, 10, q.Next().Len)
		assert.NotZero(t, d.Regs.Status()&virtio.StatusNeedsReset, "or a pause could come before it")
		d.Start(0) // it can be tried again
		assert.Zero(t, d.Regs.Status()&virtio.StatusNeedsReset)
	})
}
