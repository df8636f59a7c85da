package virtio_test

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

const (
	next     = virtiotest.DescNext
	write    = virtiotest.DescWrite
	indirect = virtiotest.DescIndirect
)

// lives resets a device that has failed and uses it.
func lives(t *testing.T, d *virtiotest.Driver) {
	t.Helper()
	d.Start(0)
	assert.Equal(t, running, d.Regs.Status())
	echo(t, d, 0)
	echo(t, d, 1)
}

// TestRingLayout: VIRTIO 1.2, sections 2.6 and 2.7: sizes, alignment, and that
// each part is wholly in RAM.
func TestRingLayout(t *testing.T) {
	const end = virtiotest.RAMBase + virtiotest.RAM
	type config = virtio.QueueConfig
	good := config{Size: 64, Desc: 0x10000, Avail: 0x20000, Used: 0x30000}
	for _, tc := range []struct {
		name   string
		change func(*config)
		ok     bool
	}{
		{"as it should be", func(*config) {}, true},
		{"size 1", func(c *config) { c.Size = 1 }, true},
		{"size 0", func(c *config) { c.Size = 0 }, false},
		{"size 3", func(c *config) { c.Size = 3 }, false},
		{"size 63", func(c *config) { c.Size = 63 }, false},
		{"twice the largest size", func(c *config) { c.Size = 128 }, false},
		{"size 32768", func(c *config) { c.Size = 0x8000 }, false},
		{"size 65535", func(c *config) { c.Size = 0xffff }, false},
		{"descriptors at 8", func(c *config) { c.Desc += 8 }, false},
		{"descriptors at 1", func(c *config) { c.Desc++ }, false},
		{"available ring at 2", func(c *config) { c.Avail += 2 }, true},
		{"available ring at 1", func(c *config) { c.Avail++ }, false},
		{"used ring at 4", func(c *config) { c.Used += 4 }, true},
		{"used ring at 2", func(c *config) { c.Used += 2 }, false},
		{"descriptors at address 0", func(c *config) { c.Desc = 0 }, false},
		{"descriptors up to the end of RAM", func(c *config) { c.Desc = end - 64*16 }, true},
		{"descriptors over the end of RAM", func(c *config) { c.Desc = end - 63*16 }, false},
		{"descriptors that wrap", func(c *config) { c.Desc = 0xffff_ffff_ffff_fff0 }, false},
		{"descriptors above 4 GiB", func(c *config) { c.Desc |= 1 << 40 }, false},
		{"available ring up to the end of RAM", func(c *config) { c.Avail = end - (6 + 2*64) }, true},
		{"available ring without room for used_event", func(c *config) { c.Avail = end - (4 + 2*64) }, false},
		{"available ring that wraps", func(c *config) { c.Avail = 0xffff_ffff_ffff_fffe }, false},
		{"used ring up to the end of RAM", func(c *config) { c.Used = end - (8 + 8*64) }, true},
		{"used ring without room for avail_event", func(c *config) { c.Used = end - (4 + 8*64) }, false},
		{"used ring that wraps", func(c *config) { c.Used = 0xffff_ffff_ffff_fffc }, false},
		{"used ring behind RAM", func(c *config) { c.Used = end }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				e := virtiotest.NewEcho(t)
				d := open(t, e)
				d.Negotiate(0)
				c := good
				tc.change(&c)
				d.Regs.QueueSize(0, c.Size)
				d.Regs.QueueArea(0, virtio.AreaDesc, c.Desc)
				d.Regs.QueueArea(0, virtio.AreaAvail, c.Avail)
				d.Regs.QueueArea(0, virtio.AreaUsed, c.Used)
				d.Regs.SetQueueReady(0, true)
				d.DriverOK()
				if tc.ok {
					assert.Equal(t, running, d.Regs.Status())
					assert.Equal(t, 1, e.Activated())
					assert.Equal(t, int(c.Size), e.Activation().Queues[0].Size())
					return
				}
				assert.Equal(t, running|virtio.StatusNeedsReset, d.Regs.Status())
				assert.Zero(t, e.Activated(), "a device gets only queues that are whole")
				assert.Equal(t, 1, d.ConfigIRQ.Count())
				lives(t, d)
			})
		})
	}
}

// TestBrokenQueues: what no driver may do (VIRTIO 1.2, sections 2.7.5 to 2.7.6)
// ends in DEVICE_NEEDS_RESET, told once; nothing is taken, nothing written, and
// the device lives on after a reset.
func TestBrokenQueues(t *testing.T) {
	const all, noIndirect = 0, virtio.FeatureVersion1 | virtio.FeatureEventIdx
	type setup = func(d *virtiotest.Driver, q *virtiotest.Queue)
	// chain makes descriptors available that begin with the first.
	chain := func(descs ...virtiotest.Desc) setup {
		return func(_ *virtiotest.Driver, q *virtiotest.Queue) {
			for i, e := range descs {
				q.SetDesc(i, e)
			}
			q.Publish(0)
		}
	}
	// table does so with an indirect table, of which f changes the pointer.
	table := func(f func(*virtiotest.Desc), descs ...virtiotest.Desc) setup {
		return func(d *virtiotest.Driver, q *virtiotest.Queue) {
			e := virtiotest.Desc{Flags: indirect}
			e.Addr, e.Len = d.Table(descs...)
			f(&e)
			q.SetDesc(0, e)
			q.Publish(0)
		}
	}
	as := func(*virtiotest.Desc) {}
	const at, end = 0x400000, virtiotest.RAMBase + virtiotest.RAM
	ok := virtiotest.Desc{Addr: at, Len: 16, Flags: write}
	// row is a chain of n descriptors, of which the last one goes on at to.
	row := func(n int, to uint16) []virtiotest.Desc {
		descs := make([]virtiotest.Desc, n)
		for i := range descs {
			descs[i] = virtiotest.Desc{Addr: at, Len: 1, Flags: write | next, Next: uint16(i + 1)}
		}
		descs[n-1].Next = to
		return descs
	}
	// ended is one that ends.
	ended := func(n int) []virtiotest.Desc {
		descs := row(n, 0)
		descs[n-1].Flags = write
		return descs
	}
	// nested points to a table whose last descriptor points to a good one.
	nested := func(before ...virtiotest.Desc) setup {
		return func(d *virtiotest.Driver, q *virtiotest.Queue) {
			inner, size := d.Table(ok)
			e := virtiotest.Desc{Flags: indirect}
			e.Addr, e.Len = d.Table(append(before, virtiotest.Desc{Addr: inner, Len: size, Flags: indirect})...)
			q.SetDesc(0, e)
			q.Publish(0)
		}
	}
	for _, tc := range []struct {
		name  string
		want  uint64
		setup setup
	}{
		// Rule 10.
		{"idx jumps by one more than the size", all, func(_ *virtiotest.Driver, q *virtiotest.Queue) { q.SetAvailable(65) }},
		{"idx jumps far", all, func(_ *virtiotest.Driver, q *virtiotest.Queue) { q.SetAvailable(0x8000) }},
		{"idx goes back", all, func(_ *virtiotest.Driver, q *virtiotest.Queue) { q.SetAvailable(0xffff) }},
		{"head is the size", all, func(_ *virtiotest.Driver, q *virtiotest.Queue) { q.Publish(64) }},
		{"head is 65535", all, func(_ *virtiotest.Driver, q *virtiotest.Queue) { q.Publish(0xffff) }},
		// Rule 11.
		{"a descriptor is its own next", all, chain(virtiotest.Desc{Addr: at, Len: 1, Flags: next})},
		{"two descriptors are each other's next", all, chain(
			virtiotest.Desc{Addr: at, Len: 1, Flags: next | write, Next: 1}, virtiotest.Desc{Addr: at, Len: 1, Flags: next | write})},
		{"a chain that loops at its end", all, chain(row(64, 63)...)},
		{"next is the size", all, chain(virtiotest.Desc{Addr: at, Len: 1, Flags: next, Next: 64})},
		{"next is 65535", all, chain(virtiotest.Desc{Addr: at, Len: 1, Flags: next, Next: 0xffff})},
		{"a readable descriptor behind a writable one", all, chain(
			virtiotest.Desc{Addr: at, Len: 1, Flags: next | write, Next: 1}, virtiotest.Desc{Addr: at, Len: 1})},
		{"an empty writable one counts for the order", all, chain(
			virtiotest.Desc{Addr: at, Flags: next | write, Next: 1}, virtiotest.Desc{Addr: at, Len: 1})},
		{"buffer at address 0", all, chain(virtiotest.Desc{Len: 1, Flags: write})},
		{"buffer behind RAM", all, chain(virtiotest.Desc{Addr: end, Len: 1, Flags: write})},
		{"buffer over the end of RAM", all, chain(virtiotest.Desc{Addr: end - 15, Len: 16, Flags: write})},
		{"buffer that wraps", all, chain(virtiotest.Desc{Addr: 0xffff_ffff_ffff_fff8, Len: 16})},
		{"buffer that wraps to RAM", all, chain(virtiotest.Desc{Addr: 0xffff_ffff_ffff_f000, Len: 0xffff_0000})},
		{"buffer of 4 GiB", all, chain(virtiotest.Desc{Addr: at, Len: 0xffff_ffff, Flags: write})},
		{"a good buffer, then a bad one", all, chain(
			virtiotest.Desc{Addr: at, Len: 8, Flags: next | write, Next: 1}, virtiotest.Desc{Addr: end, Len: 8, Flags: write})},
		// Rule 12.
		{"indirect without the feature", noIndirect, table(as, ok)},
		{"indirect inside indirect", all, nested()},
		{"indirect inside indirect, later", all, nested(virtiotest.Desc{Addr: at, Len: 16, Flags: next, Next: 1})},
		{"indirect with NEXT", all, table(func(e *virtiotest.Desc) { e.Flags |= next; e.Next = 1 }, ok)},
		{"indirect of 0 bytes", all, table(func(e *virtiotest.Desc) { e.Len = 0 }, ok)},
		{"indirect of 15 bytes", all, table(func(e *virtiotest.Desc) { e.Len = 15 }, ok)},
		{"indirect of 17 bytes", all, table(func(e *virtiotest.Desc) { e.Len = 17 }, ok, ok)},
		{"indirect of 4 GiB", all, table(func(e *virtiotest.Desc) { e.Len = 0xffff_fff0 }, ok)},
		{"indirect behind RAM", all, table(func(e *virtiotest.Desc) { e.Addr = end }, ok)},
		{"indirect over the end of RAM", all, table(func(e *virtiotest.Desc) { e.Addr = end - 16; e.Len = 32 }, ok)},
		{"next behind an indirect table", all, table(as, virtiotest.Desc{Addr: at, Len: 1, Flags: next, Next: 1})},
		{"a loop in an indirect table", all, table(as, virtiotest.Desc{Addr: at, Len: 1, Flags: next})},
		{"an indirect chain longer than the queue", all, table(as, ended(65)...)},
		{"a chain that is too long with its indirect part", all, func(d *virtiotest.Driver, q *virtiotest.Queue) {
			for i, e := range row(63, 63) {
				q.SetDesc(i, e)
			}
			gpa, size := d.Table(ended(2)...)
			q.SetDesc(63, virtiotest.Desc{Addr: gpa, Len: size, Flags: indirect})
			q.Publish(0)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				e := virtiotest.NewEcho(t)
				d := open(t, e)
				d.Start(tc.want)
				q := d.Queues[0]
				tc.setup(d, q)
				before := d.Snapshot()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				allocated := m.TotalAlloc
				d.Regs.Notify(0)
				d.NeedsReset()
				runtime.ReadMemStats(&m)
				assert.Less(t, m.TotalAlloc-allocated, uint64(1<<20), "allocated at the guest's word")
				assert.Equal(t, 1, d.ConfigIRQ.Wait(t, 0))

				// Broken is broken: no further look at the queue, nothing told twice.
				aq := e.Activation().Queues[0]
				assert.False(t, aq.Pop(virtio.NewChain(aq)))
				assert.False(t, aq.Pending())
				assert.Zero(t, e.Popped())
				assert.True(t, bytes.Equal(before, d.Mem.Regions()[0].Mem), "guest memory has changed")
				echo(t, d, 1) // the other queue goes on
				lives(t, d)
			})
		})
	}
}

// TestTotalLength: VIRTIO 1.2, section 2.7.5.2: less than 4 GiB in one chain.
func TestTotalLength(t *testing.T) {
	for _, tc := range []struct {
		name string
		last uint32
		ok   bool
	}{
		{"one byte less", 1<<20 - 1, true},
		{"4 GiB", 1 << 20, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				e := virtiotest.NewEcho(t)
				e.Sizes, e.Manual = []uint16{4096}, true
				d := open(t, e)
				d.Start(0)
				q := d.Queues[0]
				for i := range 4096 {
					q.SetDesc(i, virtiotest.Desc{Addr: virtiotest.RAMBase, Len: 1 << 20, Flags: next, Next: uint16(i + 1)})
				}
				q.SetDesc(4095, virtiotest.Desc{Addr: virtiotest.RAMBase, Len: tc.last})
				q.Publish(0)
				aq := e.Activation().Queues[0]
				c := virtio.NewChain(aq)
				assert.Equal(t, tc.ok, aq.Pop(c))
				if tc.ok {
					assert.EqualValues(t, 0xffff_ffff, c.ReadableLen())
					aq.Push(c)
					aq.Signal()
				} else {
					assert.Equal(t, running|virtio.StatusNeedsReset, d.Regs.Status())
				}
			})
		})
	}
}

// TestMoreInFlightThanDescriptors: a driver that offers a descriptor that the
// device still has, over and over, gets no more requests than there can be.
func TestMoreInFlightThanDescriptors(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Sizes = []uint16{8, 8}
		d := open(t, e)
		d.Start(0)
		hold(t, d, e, 8)
		assert.Equal(t, running, d.Regs.Status())
		q := d.Queues[0]
		for range 8 {
			q.Publish(0)
		}
		d.Regs.Notify(0)
		d.NeedsReset()
		assert.Equal(t, 8, e.Held())
		e.Release()
		d.Until("what was in flight has ended", func() bool { return q.UsedIndex() == 8 })
		lives(t, d)
	})
}

// TestBothQueuesBroken: a device says once that it needs a reset.
func TestBothQueuesBroken(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Manual = true
		d := open(t, e)
		d.Start(0)
		for i := range 2 {
			d.Queues[i].Publish(0xffff)
			q := e.Activation().Queues[i]
			for range 3 {
				assert.False(t, q.Pop(virtio.NewChain(q)))
			}
		}
		assert.Equal(t, running|virtio.StatusNeedsReset, d.Regs.Status())
		assert.Equal(t, 1, d.ConfigIRQ.Count())
	})
}

// TestLargestQueue: VIRTIO 1.2, section 2.7: 32768 descriptors, all available at
// once, are told from none.
func TestLargestQueue(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Sizes = []uint16{virtio.MaxQueueSize}
		d := open(t, e)
		d.Start(0)
		q := d.Queues[0]
		in := d.In(1)
		for round := range 3 {
			for i := range virtio.MaxQueueSize {
				q.SetDesc(i, virtiotest.Desc{Addr: in.GPA, Len: 1, Flags: write})
				q.Publish(uint16(i))
			}
			d.Regs.Notify(0)
			for i := range virtio.MaxQueueSize {
				if u := q.Next(); u.Head != uint32(i) {
					t.Fatalf("round %d: head %d instead of %d", round, u.Head, i)
				}
			}
		}
		assert.Equal(t, running, d.Regs.Status())
	})
}

// TestSmallestQueue: VIRTIO 1.2, section 2.7: one descriptor.
func TestSmallestQueue(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Sizes = []uint16{1, 1}
		d := open(t, e)
		d.Start(0)
		q := d.Queues[0]
		for range 100 {
			q.AddIndirect(d.In(3))
			q.Kick()
			assert.Zero(t, q.Next().Len)
			assert.Equal(t, running, d.Regs.Status())
		}
	})
}

// TestEntriesAreLoadedOnce: VIRTIO 1.2, section 2.7.13.3: what stands in the
// available ring before idx moves is not looked at, and a request keeps what
// its descriptors said when it was taken. Elsewhere, a header was read twice.
func TestEntriesAreLoadedOnce(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Manual = true
		d := open(t, e)
		d.Start(0)
		q, aq := d.Queues[0], e.Activation().Queues[0]
		c := virtio.NewChain(aq)
		avail, _ := d.Mem.Slice(q.Config.Avail, 6+2*64)
		for i := range 64 {
			binary.LittleEndian.PutUint16(avail[4+2*i:], 0xffff)
		}
		assert.False(t, aq.Pop(c), "idx has not moved")
		assert.Equal(t, running, d.Regs.Status())

		out, in := d.Out([]byte("what was meant")), d.In(14)
		gpa, size := d.Table(virtiotest.Chain(0, out, in)...)
		q.SetDesc(5, virtiotest.Desc{Addr: gpa, Len: size, Flags: indirect})
		q.Publish(5)
		assert.True(t, aq.Pop(c))

		q.SetDesc(5, virtiotest.Desc{Addr: 0xffff_ffff_ffff_0000, Len: 0xffff_ffff, Flags: next, Next: 0xffff})
		table, _ := d.Mem.Slice(gpa, uint64(size))
		for i := range table {
			table[i] = 0xff
		}
		binary.LittleEndian.PutUint16(avail[4:], 0x7777)
		virtiotest.EchoChain(c, make([]byte, 3))
		aq.Push(c)
		aq.Signal()
		assert.Equal(t, virtiotest.Used{Head: 5, Len: 14}, q.Next())
		assert.Equal(t, "what was meant", string(d.Bytes(in)))
		assert.Equal(t, running, d.Regs.Status())
	})
}
