package virtio_test

import (
	"testing"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// requests prepares n requests of three descriptors, as a disk's: a header, data
// and a status byte. It returns their heads.
func requests(d *virtiotest.Driver, q *virtiotest.Queue, n int, viaTable bool) []uint16 {
	var heads []uint16
	for i := range n {
		bufs := []virtiotest.Buffer{d.Out(make([]byte, 16)), d.In(4096), d.In(1)}
		head := uint16(i)
		if viaTable {
			gpa, size := d.Table(virtiotest.Chain(0, bufs...)...)
			q.SetDesc(i, virtiotest.Desc{Addr: gpa, Len: size, Flags: indirect})
		} else {
			head *= 3
			for j, e := range virtiotest.Chain(int(head), bufs...) {
				q.SetDesc(int(head)+j, e)
			}
		}
		heads = append(heads, head)
	}
	return heads
}

// BenchmarkChain is what a queue costs for each request: it is made available,
// taken, given back, told and seen by the driver. No data is moved.
func BenchmarkChain(b *testing.B) {
	for _, bc := range []struct {
		name     string
		features uint64
		table    bool
		batch    int
	}{
		{"direct", 0, false, 1},
		{"indirect", 0, true, 1},
		{"direct, batch of 32", 0, false, 32},
		{"indirect, batch of 32", 0, true, 32},
		{"indirect, batch of 32, no event index", plain, true, 32},
	} {
		b.Run(bc.name, func(b *testing.B) {
			e := virtiotest.NewEcho(b)
			e.Manual, e.Sizes = true, []uint16{128}
			d := virtiotest.OpenMMIO(b, e)
			d.Start(bc.features)
			q, aq := d.Queues[0], e.Activation().Queues[0]
			heads := requests(d, q, bc.batch, bc.table)
			c := virtio.NewChain(aq)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				q.Publish(heads[n])
				if n++; n < bc.batch {
					continue
				}
				for range n {
					if !aq.Pop(c) {
						b.Fatal("no request")
					}
					c.Wrote(4097)
					aq.Push(c)
				}
				aq.Signal()
				for range n {
					q.Poll()
				}
				n = 0
			}
		})
	}
}

// BenchmarkKickToInterrupt is the time from the doorbell of an idle queue, as an
// ioeventfd rings it, over its goroutine to the interrupt of the request.
func BenchmarkKickToInterrupt(b *testing.B) {
	for _, bc := range []struct {
		name     string
		features uint64
	}{{"event index", 0}, {"flag", plain}} {
		b.Run(bc.name, func(b *testing.B) {
			e := virtiotest.NewEcho(b)
			d := virtiotest.OpenMMIO(b, e)
			d.QueueIRQ.C = make(chan struct{}, 1)
			d.Start(bc.features)
			q := d.Queues[0]
			head := requests(d, q, 1, true)[0]
			bell := d.Function.Bell(0)
			b.ReportAllocs()
			for b.Loop() {
				q.Publish(head)
				bell.Ring()
				<-d.QueueIRQ.C
				if _, ok := q.Poll(); !ok {
					b.Fatal("an interrupt without a request")
				}
			}
		})
	}
}
