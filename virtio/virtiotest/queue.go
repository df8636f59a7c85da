package virtiotest

import (
	"encoding/binary"

	"github.com/vole-vmm/vole/virtio"
)

// Flags of a descriptor and of the rings (VIRTIO 1.2, sections 2.7.5 to 2.7.8).
const (
	DescNext     = 1
	DescWrite    = 2
	DescIndirect = 4

	AvailNoInterrupt = 1
	UsedNoNotify     = 1
)

// Desc is a descriptor as it stands in a table.
type Desc struct {
	Addr  uint64
	Len   uint32
	Flags uint16
	Next  uint16
}

// Buffer is a piece of a request in guest RAM.
type Buffer struct {
	GPA   uint64
	Len   uint32
	Write bool // the device writes it
}

// Used is what the device says of a request.
type Used struct {
	Head uint32
	Len  uint32
}

// Queue is the driver's half of a split queue. One goroutine uses it.
type Queue struct {
	d      *Driver
	Index  int
	Config virtio.QueueConfig

	desc, avail, used []byte
	free              []uint16
	chains            map[uint16][]uint16 // descriptors of the chains in flight, by head
	idx               uint16              // avail.idx
	flags             uint16              // avail.flags
	seen              uint16              // of the used ring
	kicked            uint16              // idx at the last Kick

	// Quiet stops Poll and Next from asking for the next interrupt.
	Quiet bool
}

func (d *Driver) newQueue(i int, n uint16) *Queue {
	d.tb.Helper()
	q := &Queue{d: d, Index: i, Config: virtio.QueueConfig{Size: n}, chains: map[uint16][]uint16{}}
	size := int(n)
	q.Config.Desc, q.desc = d.Alloc(16*size, 16)
	q.Config.Avail, q.avail = d.Alloc(6+2*size, 4)
	q.Config.Used, q.used = d.Alloc(6+8*size, 4)
	clear(q.desc)
	clear(q.avail)
	clear(q.used)
	for j := range n {
		q.free = append(q.free, n-1-j)
	}
	return q
}

// Out puts data into guest RAM, for the device to read.
func (d *Driver) Out(data []byte) Buffer {
	d.tb.Helper()
	gpa, b := d.Alloc(max(len(data), 1), 16)
	copy(b, data)
	return Buffer{GPA: gpa, Len: uint32(len(data))}
}

// In takes n bytes of guest RAM, for the device to write. They hold 0xaa.
func (d *Driver) In(n int) Buffer {
	d.tb.Helper()
	gpa, b := d.Alloc(max(n, 1), 16)
	for i := range b {
		b[i] = 0xaa
	}
	return Buffer{GPA: gpa, Len: uint32(n), Write: true}
}

// Bytes are a buffer's bytes, as they are in guest RAM.
func (d *Driver) Bytes(b Buffer) []byte {
	d.tb.Helper()
	p, err := d.Mem.Slice(b.GPA, uint64(b.Len))
	if err != nil {
		d.tb.Fatal(err)
	}
	return p
}

// SetDesc writes a descriptor of the queue's table, whatever it means.
func (q *Queue) SetDesc(i int, d Desc) { putDesc(q.desc, i, d) }

func putDesc(table []byte, i int, d Desc) {
	b := table[16*i : 16*i+16]
	binary.LittleEndian.PutUint64(b, d.Addr)
	binary.LittleEndian.PutUint32(b[8:], d.Len)
	binary.LittleEndian.PutUint16(b[12:], d.Flags)
	binary.LittleEndian.PutUint16(b[14:], d.Next)
}

// Table writes a table of descriptors into guest RAM, as indirect ones point to.
func (d *Driver) Table(descs ...Desc) (gpa uint64, size uint32) {
	d.tb.Helper()
	gpa, b := d.Alloc(16*len(descs), 16)
	for i, e := range descs {
		putDesc(b, i, e)
	}
	return gpa, uint32(16 * len(descs))
}

// Chain turns buffers into descriptors that follow each other from first on.
func Chain(first int, bufs ...Buffer) []Desc {
	out := make([]Desc, len(bufs))
	for i, b := range bufs {
		out[i] = Desc{Addr: b.GPA, Len: b.Len}
		if b.Write {
			out[i].Flags = DescWrite
		}
		if i < len(bufs)-1 {
			out[i].Flags |= DescNext
			out[i].Next = uint16(first + i + 1)
		}
	}
	return out
}

// take gets n free descriptors.
func (q *Queue) take(n int) []uint16 {
	q.d.tb.Helper()
	if n > len(q.free) {
		q.d.tb.Fatalf("virtiotest: %d descriptors wanted, %d are free", n, len(q.free))
	}
	at := len(q.free) - n
	ids := make([]uint16, n)
	for i := range ids {
		ids[i] = q.free[len(q.free)-1-i]
	}
	q.free = q.free[:at]
	return ids
}

// Add makes a request of the buffers available and returns its head. The device
// learns of it by Kick.
func (q *Queue) Add(bufs ...Buffer) uint16 {
	q.d.tb.Helper()
	ids := q.take(len(bufs))
	for i, e := range Chain(0, bufs...) {
		if e.Flags&DescNext != 0 {
			e.Next = ids[i+1]
		}
		q.SetDesc(int(ids[i]), e)
	}
	q.chains[ids[0]] = ids
	q.Publish(ids[0])
	return ids[0]
}

// AddIndirect is Add by way of an indirect table.
func (q *Queue) AddIndirect(bufs ...Buffer) uint16 {
	q.d.tb.Helper()
	ids := q.take(1)
	gpa, size := q.d.Table(Chain(0, bufs...)...)
	q.SetDesc(int(ids[0]), Desc{Addr: gpa, Len: size, Flags: DescIndirect})
	q.chains[ids[0]] = ids
	q.Publish(ids[0])
	return ids[0]
}

// Publish puts a head into the available ring and moves its index.
func (q *Queue) Publish(head uint16) {
	// The entry may share a word with used_event, which the device loads.
	virtio.Store16(q.avail, 4+2*int(q.idx%q.Config.Size), head)
	q.SetAvailable(q.idx + 1)
}

// SetAvailable sets the available ring's index, to any value.
func (q *Queue) SetAvailable(idx uint16) {
	q.idx = idx
	virtio.Publish(q.avail, q.flags, idx)
}

// Available is the available ring's index.
func (q *Queue) Available() uint16 { return q.idx }

// NoInterrupt sets or clears VIRTQ_AVAIL_F_NO_INTERRUPT.
func (q *Queue) NoInterrupt(on bool) {
	if q.flags = 0; on {
		q.flags = AvailNoInterrupt
	}
	virtio.Publish(q.avail, q.flags, q.idx)
}

// UsedEvent asks for an interrupt once the used ring's index passes idx. It is
// of use with the event index feature only.
func (q *Queue) UsedEvent(idx uint16) {
	virtio.Store16(q.avail, 4+2*int(q.Config.Size), idx)
	virtio.Publish(q.avail, q.flags, q.idx) // the full barrier behind it
}

// AvailEvent is the index at which the device wants to be notified.
func (q *Queue) AvailEvent() uint16 { return virtio.Load16(q.used, 4+8*int(q.Config.Size)) }

// UsedFlags are the device's flags.
func (q *Queue) UsedFlags() uint16 { return virtio.Load16(q.used, 0) }

// UsedIndex is the used ring's index.
func (q *Queue) UsedIndex() uint16 { return virtio.Load16(q.used, 2) }

// Kick notifies the device, if it wants to be notified of what was made
// available since the last Kick, and reports whether it did.
func (q *Queue) Kick() bool {
	old := q.kicked
	q.kicked = q.idx
	want := q.UsedFlags()&UsedNoNotify == 0
	if q.d.Features&virtio.FeatureEventIdx != 0 {
		want = q.idx-q.AvailEvent()-1 < q.idx-old
	}
	if want {
		q.d.Regs.Notify(q.Index)
	}
	return want
}

// Poll takes the next used element if there is one, and asks to be interrupted
// for the one after it.
func (q *Queue) Poll() (Used, bool) {
	if q.UsedIndex() == q.seen {
		return Used{}, false
	}
	b := q.used[4+8*int(q.seen%q.Config.Size):]
	u := Used{Head: binary.LittleEndian.Uint32(b), Len: binary.LittleEndian.Uint32(b[4:])}
	q.seen++
	if !q.Quiet && q.d.Features&virtio.FeatureEventIdx != 0 {
		q.UsedEvent(q.seen)
	}
	if ids, ok := q.chains[uint16(u.Head)]; ok {
		delete(q.chains, uint16(u.Head))
		q.free = append(q.free, ids...)
	}
	return u, true
}

// Next waits for the next used element.
func (q *Queue) Next() Used {
	q.d.tb.Helper()
	var u Used
	q.d.until("a request is used", func() (ok bool) {
		u, ok = q.Poll()
		return ok
	})
	return u
}
