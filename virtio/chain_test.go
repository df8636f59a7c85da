package virtio_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// manual opens an Echo whose queue 0 the test serves itself.
func manual(t testing.TB, open virtiotest.Opener, want uint64) (*virtiotest.Driver, *virtiotest.Queue, *virtio.Queue, *virtio.Chain) {
	t.Helper()
	e := virtiotest.NewEcho(t)
	e.Manual = true
	d := open(t, e)
	d.Start(want)
	q := e.Activation().Queues[0]
	return d, d.Queues[0], q, virtio.NewChain(q)
}

// TestFraming: VIRTIO 1.2, section 2.7.4.1: however a message is cut into
// descriptors, the device sees the same; sections 2.7.5.1 and 2.7.8.2: what it
// reads is not written, and the length is what was written.
func TestFraming(t *testing.T) {
	message := strings.Repeat("all the same, however it is cut. ", 8)
	cut := func(total, piece int) (sizes []int) {
		for ; total > 0; total -= piece {
			sizes = append(sizes, min(total, piece))
		}
		return sizes
	}
	for _, tc := range []struct{ out, in int }{{264, 264}, {1000, 1000}, {16, 100}, {100, 16}, {9, 10}, {264, 10}, {10, 300}} {
		for _, kind := range []string{"direct", "indirect", "direct then indirect"} {
			t.Run(fmt.Sprintf("%d and %d bytes %s", tc.out, tc.in, kind), func(t *testing.T) {
				virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
					d := open(t, virtiotest.NewEcho(t))
					d.Start(0)
					q := d.Queues[0]
					var bufs, outs, ins []virtiotest.Buffer
					rest := message
					for i, n := range cut(len(message), tc.out) {
						if i%5 == 3 {
							bufs = append(bufs, d.Out(nil)) // of 0 bytes
						}
						outs = append(outs, d.Out([]byte(rest[:n])))
						bufs = append(bufs, outs[len(outs)-1])
						rest = rest[n:]
					}
					for _, n := range cut(len(message)+7, tc.in) {
						ins = append(ins, d.In(n))
						bufs = append(bufs, ins[len(ins)-1])
					}
					var head uint16
					switch kind {
					case "direct":
						head = q.Add(bufs...)
					case "indirect":
						head = q.AddIndirect(bufs...)
					default: // section 2.7.5.3.2
						head = 7
						split := len(bufs) / 2
						direct := virtiotest.Chain(int(head), bufs[:split]...)
						for i, e := range direct {
							e.Flags |= next
							e.Next = head + uint16(i) + 1
							q.SetDesc(int(head)+i, e)
						}
						gpa, size := d.Table(virtiotest.Chain(0, bufs[split:]...)...)
						q.SetDesc(int(head)+split, virtiotest.Desc{Addr: gpa, Len: size, Flags: indirect})
						q.Publish(head)
					}
					q.Kick()
					assert.Equal(t, virtiotest.Used{Head: uint32(head), Len: uint32(len(message))}, q.Next())
					var got, sent []byte
					for _, b := range ins {
						got = append(got, d.Bytes(b)...)
					}
					for _, b := range outs {
						sent = append(sent, d.Bytes(b)...)
					}
					assert.Equal(t, message+strings.Repeat("\xaa", 7), string(got))
					assert.Equal(t, message, string(sent), "a readable buffer was written")
				})
			})
		}
	}
}

// TestWriteFlagOfAnIndirectDescriptor: VIRTIO 1.2, section 2.7.5.3.2: it means
// nothing. A table need not be aligned, and may be longer than its chain.
func TestWriteFlagOfAnIndirectDescriptor(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		d.Start(0)
		q := d.Queues[0]
		for _, flags := range []uint16{indirect, indirect | write} {
			out, in := d.Out([]byte("abc")), d.In(3)
			d.Alloc(1, 1)
			gpa, b := d.Alloc(16*100, 1)
			from, size := d.Table(virtiotest.Chain(0, out, in)...)
			table, err := d.Mem.Slice(from, uint64(size))
			require.NoError(t, err)
			copy(b, table)
			q.SetDesc(9, virtiotest.Desc{Addr: gpa, Len: 16 * 100, Flags: flags})
			q.Publish(9)
			q.Kick()
			assert.Equal(t, virtiotest.Used{Head: 9, Len: 3}, q.Next())
			assert.Equal(t, "abc", string(d.Bytes(in)))
		}
	})
}

// TestLongestChain: VIRTIO 1.2, section 2.7.5: as many descriptors as the queue
// has, in the table and in an indirect one.
func TestLongestChain(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		d.Start(0)
		q := d.Queues[0]
		var bufs []virtiotest.Buffer
		for range 32 {
			bufs = append(bufs, d.Out([]byte("x")))
		}
		for range 32 {
			bufs = append(bufs, d.In(1))
		}
		q.Add(bufs...)
		q.Kick()
		assert.EqualValues(t, 32, q.Next().Len)
		q.AddIndirect(bufs...)
		q.Kick()
		assert.EqualValues(t, 32, q.Next().Len)
		for i, e := range virtiotest.Chain(0, bufs[:63]...) {
			e.Flags |= next
			e.Next = uint16(i + 1)
			q.SetDesc(i, e)
		}
		gpa, size := d.Table(virtiotest.Chain(0, bufs[63:]...)...)
		q.SetDesc(63, virtiotest.Desc{Addr: gpa, Len: size, Flags: indirect})
		q.Publish(0)
		q.Kick()
		assert.EqualValues(t, 32, q.Next().Len)
		assert.Equal(t, running, d.Regs.Status())
	})
}

// TestSameBufferTwice: one piece of memory in several descriptors is the
// driver's affair; elsewhere it led to duplicated data.
func TestSameBufferTwice(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := open(t, virtiotest.NewEcho(t))
		d.Start(0)
		q := d.Queues[0]
		a, b, in := d.Out([]byte("aa")), d.Out([]byte("b")), d.In(6)
		q.Add(a, b, a, in)
		q.Kick()
		assert.EqualValues(t, 5, q.Next().Len)
		assert.Equal(t, "aabaa\xaa", string(d.Bytes(in)))

		half := in
		half.Len = 2
		q.Add(a, b, a, half, half, half)
		q.Kick()
		assert.EqualValues(t, 5, q.Next().Len, "five bytes were written, if over each other")
	})
}

// TestUsedElementComesBeforeIdx: VIRTIO 1.2, section 2.7.8.2: element, then
// release, then idx; and the ring goes round. A request that is finished first
// comes first, whatever the order in which they came.
func TestUsedElementComesBeforeIdx(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, _ := manual(t, open, 0)
		for range 40 {
			var heads []uint16
			var chains []*virtio.Chain
			for i := range 5 {
				heads = append(heads, q.Add(d.In(i+1)))
				c := virtio.NewChain(aq)
				require.True(t, aq.Pop(c))
				chains = append(chains, c)
			}
			for i := 4; i >= 0; i-- {
				at := q.UsedIndex()
				chains[i].Wrote(uint64(i))
				aq.Push(chains[i])
				assert.Equal(t, at+1, q.UsedIndex())
				assert.Equal(t, virtiotest.Used{Head: uint32(heads[i]), Len: uint32(i)}, q.Next())
			}
			aq.Signal()
		}
	})
}

// TestLengthIsNeverOverstated: VIRTIO 1.2, section 2.7.8.2: len counts from the
// first writable byte on and only what was written.
func TestLengthIsNeverOverstated(t *testing.T) {
	for _, tc := range []struct {
		name  string
		work  func(t *testing.T, c *virtio.Chain)
		want  uint32
		bytes string // of two buffers of 4 and 5
	}{
		{"nothing", func(*testing.T, *virtio.Chain) {}, 0, "........."},
		{"all", func(t *testing.T, c *virtio.Chain) {
			assert.Equal(t, 9, c.Write([]byte("123456789abc")), "there is room for no more")
			assert.Zero(t, c.Write([]byte("d")))
		}, 9, "123456789"},
		{"in steps", func(t *testing.T, c *virtio.Chain) {
			assert.Equal(t, 3, c.Write([]byte("123")))
			assert.EqualValues(t, 6, c.WritableLen())
			assert.Equal(t, 2, c.Write([]byte("45")))
			assert.EqualValues(t, 4, c.WritableLen())
		}, 5, "12345...."},
		{"in place", func(t *testing.T, c *virtio.Chain) {
			w := c.Writable()
			require.Len(t, w, 2)
			copy(w[0], "1234")
			copy(w[1], "56")
			c.Wrote(6)
			require.Len(t, c.Writable(), 1)
			assert.Len(t, c.Writable()[0], 3)
		}, 6, "123456..."},
		{"more than there is", func(t *testing.T, c *virtio.Chain) {
			c.Wrote(1 << 40)
			assert.Zero(t, c.WritableLen())
			assert.Empty(t, c.Writable())
		}, 9, "........."},
		{"a trailer behind all", func(t *testing.T, c *virtio.Chain) {
			tr := c.Trailer(1)
			require.Len(t, tr, 1)
			assert.EqualValues(t, 8, c.WritableLen())
			assert.Equal(t, 8, c.Write([]byte("123456789")))
			tr[0] = 'T'
			c.WroteTrailer(1)
		}, 9, "12345678T"},
		{"a trailer behind a gap", func(t *testing.T, c *virtio.Chain) {
			tr := c.Trailer(2)
			require.Len(t, tr, 2)
			c.Write([]byte("12345"))
			copy(tr, "TT")
			c.WroteTrailer(2)
		}, 5, "12345..TT"},
		{"a trailer that is a whole buffer", func(t *testing.T, c *virtio.Chain) {
			tr := c.Trailer(5)
			require.Len(t, tr, 5)
			assert.Len(t, c.Writable(), 1)
			c.Wrote(4)
			copy(tr, "TTTTT")
			c.WroteTrailer(5)
		}, 9, "....TTTTT"},
		{"a trailer that is in two buffers", func(t *testing.T, c *virtio.Chain) {
			assert.Nil(t, c.Trailer(6))
			assert.EqualValues(t, 9, c.WritableLen(), "and nothing is cut off")
		}, 0, "........."},
		{"no room for a trailer any more", func(t *testing.T, c *virtio.Chain) {
			c.Wrote(9)
			assert.Nil(t, c.Trailer(1))
		}, 9, "........."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				d, q, aq, c := manual(t, open, 0)
				in := []virtiotest.Buffer{d.In(4), d.In(5)}
				copy(d.Bytes(in[0]), "....")
				copy(d.Bytes(in[1]), ".....")
				q.Add(in...)
				require.True(t, aq.Pop(c))
				assert.Empty(t, c.Readable())
				tc.work(t, c)
				aq.Push(c)
				aq.Signal()
				assert.Equal(t, tc.want, q.Next().Len)
				assert.Equal(t, tc.bytes, string(d.Bytes(in[0]))+string(d.Bytes(in[1])))
			})
		})
	}
}

// TestReading: VIRTIO 1.2, section 2.7.4: over the ends of buffers, never into
// the writable ones.
func TestReading(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, c := manual(t, open, 0)
		q.Add(d.Out([]byte("a header over ")), d.Out(nil), d.Out([]byte("two buffers")), d.In(10))
		require.True(t, aq.Pop(c))
		assert.Len(t, c.Readable(), 2)
		assert.EqualValues(t, 25, c.ReadableLen())
		p := make([]byte, 18)
		assert.Equal(t, 18, c.Read(p))
		assert.Equal(t, "a header over two ", string(p))
		assert.EqualValues(t, 7, c.ReadableLen())
		assert.Equal(t, "buffers", string(bytes.Join(c.Readable(), nil)))
		assert.Equal(t, 7, c.Read(p))
		assert.Zero(t, c.Read(p))
		assert.Zero(t, c.Read(nil))
		assert.Empty(t, c.Readable())
		assert.EqualValues(t, 10, c.WritableLen())
		aq.Push(c)
		aq.Signal()
		assert.Zero(t, q.Next().Len)
	})
}

// TestNoAllocation: a request costs none, once the chain is there.
func TestNoAllocation(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, c := manual(t, open, 0)
		gpa, size := d.Table(virtiotest.Chain(0, d.Out(make([]byte, 16)), d.In(512), d.In(1))...)
		q.SetDesc(0, virtiotest.Desc{Addr: gpa, Len: size, Flags: indirect})
		buf := make([]byte, 64)
		assert.Zero(t, testing.AllocsPerRun(200, func() {
			q.Publish(0)
			if !aq.Pop(c) {
				t.Error("nothing popped")
			}
			c.Trailer(1)
			virtiotest.EchoChain(c, buf)
			aq.Push(c)
			aq.Signal()
			aq.Pop(c)
			q.Poll()
		}))
	})
}
