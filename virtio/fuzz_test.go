package virtio_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/mmio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

const (
	fuzzRAM  = 0x3000
	fuzzBase = 0x1000
)

// FuzzQueue drives an echo device with arbitrary guest memory, ring positions
// and a script of what the driver does. A model beside it, written from the
// specification alone, says which requests there are and which bytes may change.
func FuzzQueue(f *testing.F) {
	const desc, avail, used = 0x1000, 0x1400, 0x1600
	ring := func(descs ...virtiotest.Desc) []byte {
		var ram []byte
		for _, d := range descs {
			ram = binary.LittleEndian.AppendUint64(ram, d.Addr)
			ram = binary.LittleEndian.AppendUint32(ram, d.Len)
			ram = binary.LittleEndian.AppendUint16(ram, d.Flags)
			ram = binary.LittleEndian.AppendUint16(ram, d.Next)
		}
		return ram
	}
	echoed := ring(virtiotest.Desc{Addr: 0x2000, Len: 100, Flags: next, Next: 1}, virtiotest.Desc{Addr: 0x2100, Len: 50, Flags: next | write, Next: 2},
		virtiotest.Desc{Addr: 0x2200, Len: 60, Flags: write}, virtiotest.Desc{Addr: 0x1000, Len: 32, Flags: indirect})
	serveAll := []byte{opPublish, 0, opNotify, opServe, 3, opPublish, 3, opPublish, 1, opServe, 8}
	f.Add(echoed, uint16(64), uint16(desc), uint16(avail), uint16(used), uint8(0), serveAll)
	f.Add(echoed, uint16(4), uint16(desc), uint16(avail), uint16(used), uint8(1), serveAll)
	f.Add(echoed, uint16(2), uint16(desc), uint16(0x1022), uint16(0x1030), uint8(2), serveAll)
	f.Add(echoed, uint16(8), uint16(desc), uint16(avail), uint16(used), uint8(3),
		[]byte{opPublish, 0, opKeep, opPublish, 0, opKeep, opPause, opServe, 1, opRelease, opPause, opIndex, 0xff, 0xff, opServe, 1, opReset, opPublish, 2, opServe, 1})
	f.Add(echoed, uint16(16), uint16(desc), uint16(avail), uint16(used), uint8(3),
		[]byte{opDesc, 5, 0x00, 0x1e, 0x40, 0, 3, 6, opDesc, 6, 0x00, 0x10, 0xff, 0, 0, 1, opPublish, 5, opEvent, 0, 0, opServe, 1, opPoke, 0x00, 0x04, 7, opServe, 1})
	f.Add(bytes.Repeat([]byte{1, 0x20, 0, 0, 0, 0, 0, 0}, 200), uint16(32), uint16(0), uint16(0xffff), uint16(used), uint8(0), serveAll)
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, ram []byte, size, desc, avail, used uint16, features uint8, script []byte) {
		growth.Check(t)
		newFuzzed(t, ram, virtio.QueueConfig{Size: size, Desc: uint64(desc &^ 15), Avail: uint64(avail &^ 1), Used: uint64(used &^ 3)}, features).run(script)
	})
}

// What a driver does, each with its arguments behind it.
const (
	opPublish = iota // head
	opIndex          // avail.idx, 2
	opServe          // how many
	opKeep
	opRelease
	opDesc  // which, addr 2, len 2, flags, next
	opPoke  // offset in RAM 2, value
	opEvent // used_event, 2
	opReset
	opPause
	opNotify
	numOps
)

type span struct{ gpa, size uint64 }

// fuzzed is a device, its driver, and the model of its queue.
type fuzzed struct {
	*virtiotest.Echo
	t        *testing.T
	ram      []byte
	mem      *memory.Guest
	dev      *mmio.Device
	config   virtio.QueueConfig
	features uint64

	q              *virtio.Queue
	kept           []keptRequest
	popped, pushed int
	copied         uint64 // bytes, to bound the work of an input

	// The model.
	strict       bool // the used ring has its memory for itself
	next, seen   uint16
	done         uint16
	broken, held bool
}

type keptRequest struct {
	c    *virtio.Chain
	want request
}

// request is what the model makes of a chain.
type request struct {
	head          uint16
	out, in       []span
	outLen, inLen uint64
}

func (r request) len() uint32 { return uint32(min(r.outLen, r.inLen)) }

type noLine struct{}

func (noLine) Pulse() {}

func newFuzzed(t *testing.T, ram []byte, c virtio.QueueConfig, features uint8) *fuzzed {
	f := &fuzzed{Echo: virtiotest.NewEcho(t), t: t, ram: make([]byte, fuzzRAM), config: c, features: virtio.FeatureVersion1}
	copy(f.ram, ram)
	if features&1 != 0 {
		f.features |= virtio.FeatureEventIdx
	}
	if features&2 != 0 {
		f.features |= virtio.FeatureIndirectDesc
	}
	f.Sizes, f.Manual = []uint16{64}, true
	var err error
	f.mem, err = memory.FromBytes(memory.Region{GPA: fuzzBase, Mem: f.ram})
	require.NoError(t, err)
	f.dev, err = mmio.New(virtio.FunctionConfig{Device: f, Memory: f.mem}, noLine{})
	require.NoError(t, err)
	f.start()
	return f
}

func (f *fuzzed) regs() virtiotest.Registers { return virtiotest.MMIORegisters{Device: f.dev} }

func (f *fuzzed) start() {
	f.q, f.broken, f.next, f.seen, f.done = nil, false, 0, 0, 0
	r, before := f.regs(), bytes.Clone(f.ram)
	r.SetStatus(ackDriver)
	r.DriverFeatures(f.features)
	r.SetStatus(featuresOK)
	r.QueueSize(0, f.config.Size)
	r.QueueArea(0, virtio.AreaDesc, f.config.Desc)
	r.QueueArea(0, virtio.AreaAvail, f.config.Avail)
	r.QueueArea(0, virtio.AreaUsed, f.config.Used)
	r.SetQueueReady(0, true)
	r.SetStatus(running)
	n := uint64(f.config.Size)
	rings := []span{{f.config.Desc, 16 * n}, {f.config.Avail, 6 + 2*n}, {f.config.Used, 6 + 8*n}}
	good := n > 0 && n&(n-1) == 0 && n <= 64
	for _, s := range rings {
		good = good && f.mem.Contains(s.gpa, s.size)
	}
	require.Equal(f.t, good, r.Status() == running)
	require.Equal(f.t, !good, r.Status() == running|virtio.StatusNeedsReset)
	require.True(f.t, bytes.Equal(before, f.ram), "memory has changed before the first request")
	if !good {
		return
	}
	f.q = f.Activation().Queues[0]
	overlap := func(a, b span) bool { return a.gpa < b.gpa+b.size && b.gpa < a.gpa+a.size }
	f.strict = !overlap(rings[2], rings[0]) && !overlap(rings[2], rings[1])
}

// Reset ends what was kept, in place of the Echo's.
func (f *fuzzed) Reset() {
	for len(f.kept) > 0 {
		f.release()
	}
}

func (f *fuzzed) usedRing() span { return span{f.config.Used, 6 + 8*uint64(f.config.Size)} }

// changes runs step and checks that no more of the RAM than allowed has changed.
func (f *fuzzed) changes(step func(), allowed ...span) {
	before := bytes.Clone(f.ram)
	step()
	after := bytes.Clone(f.ram)
	for _, s := range allowed {
		copy(after[s.gpa-fuzzBase:][:s.size], before[s.gpa-fuzzBase:][:s.size])
	}
	require.True(f.t, bytes.Equal(before, after), "memory has changed that is not the device's to write")
}

func (f *fuzzed) at(gpa uint64, n int) []byte {
	b, err := f.mem.Slice(gpa, uint64(n))
	require.NoError(f.t, err)
	return b
}

func (f *fuzzed) u16(gpa uint64) uint16 { return binary.LittleEndian.Uint16(f.at(gpa, 2)) }

// expect says what the next Pop must find: a request, nothing, or a broken
// queue.
func (f *fuzzed) expect() (r request, ok, broken bool) {
	if f.held || f.broken {
		return r, false, false
	}
	if f.next == f.seen {
		idx := f.u16(f.config.Avail + 2)
		if idx-f.next > f.config.Size {
			return r, false, true
		}
		f.seen = idx
		if idx == f.next {
			return r, false, false
		}
	}
	if len(f.kept) >= int(f.config.Size) {
		return r, false, true
	}
	r.head = f.u16(f.config.Avail + 4 + 2*uint64(f.next%f.config.Size))
	ok = f.walk(&r)
	return r, ok, !ok
}

// walk follows the chain at r.head (VIRTIO 1.2, section 2.7.5).
func (f *fuzzed) walk(r *request) bool {
	table, entries, i := f.config.Desc, uint64(f.config.Size), uint64(r.head)
	inTable := false
	for n := 0; n < int(f.config.Size); {
		if i >= entries {
			return false
		}
		b := f.at(table+16*i, 16)
		s := span{binary.LittleEndian.Uint64(b), uint64(binary.LittleEndian.Uint32(b[8:]))}
		flags, to := binary.LittleEndian.Uint16(b[12:]), binary.LittleEndian.Uint16(b[14:])
		if !f.mem.Contains(s.gpa, s.size) {
			return false
		}
		if flags&indirect != 0 {
			if f.features&virtio.FeatureIndirectDesc == 0 || inTable || flags&next != 0 || s.size == 0 || s.size%16 != 0 {
				return false
			}
			table, entries, i, inTable = s.gpa, s.size/16, 0, true
			continue
		}
		n++
		if flags&write != 0 {
			r.in = append(r.in, s)
			r.inLen += s.size
		} else {
			if len(r.in) > 0 {
				return false
			}
			r.out = append(r.out, s)
			r.outLen += s.size
		}
		if flags&next == 0 {
			return r.outLen+r.inLen < 1<<32
		}
		i = uint64(to)
	}
	return false
}

// pop takes a request, as the model says.
func (f *fuzzed) pop() (keptRequest, bool) {
	want, ok, broken := f.expect()
	c := virtio.NewChain(f.q)
	got := false
	f.changes(func() { got = f.q.Pop(c) }, f.usedRing())
	if !f.strict { // the device's own writes change what it reads
		if got {
			want = request{}
			f.popped++
			f.copied += min(c.ReadableLen(), c.WritableLen())
		}
		return keptRequest{c, want}, got
	}
	require.Equal(f.t, ok, got)
	if broken {
		f.broken = true
	}
	require.Equal(f.t, f.broken, f.regs().Status()&virtio.StatusNeedsReset != 0)
	if !ok {
		return keptRequest{}, false
	}
	f.popped++
	f.copied += uint64(want.len())
	f.next++
	require.Equal(f.t, want.outLen, c.ReadableLen())
	require.Equal(f.t, want.inLen, c.WritableLen())
	f.same(want.out, c.Readable())
	f.same(want.in, c.Writable())
	return keptRequest{c, want}, true
}

// same checks that buffers are the memory at spans.
func (f *fuzzed) same(spans []span, bufs [][]byte) {
	spans = slices.DeleteFunc(slices.Clone(spans), func(s span) bool { return s.size == 0 })
	require.Len(f.t, bufs, len(spans))
	for i, s := range spans {
		b := f.at(s.gpa, int(s.size))
		require.Len(f.t, bufs[i], len(b))
		require.Same(f.t, &b[0], &bufs[i][0])
	}
}

// finish echoes a request and gives it back.
func (f *fuzzed) finish(k keptRequest) {
	if !f.strict {
		virtiotest.EchoChain(k.c, make([]byte, 256))
		f.q.Push(k.c)
		f.q.Signal()
		f.pushed++
		return
	}
	f.changes(func() { virtiotest.EchoChain(k.c, make([]byte, 256)) }, k.want.in...)
	f.changes(func() {
		f.q.Push(k.c)
		f.q.Signal()
	}, f.usedRing())
	f.pushed++
	e := f.at(f.config.Used+4+8*uint64(f.done%f.config.Size), 8)
	f.done++
	require.Equal(f.t, uint32(k.want.head), binary.LittleEndian.Uint32(e))
	require.Equal(f.t, k.want.len(), binary.LittleEndian.Uint32(e[4:]))
	require.Equal(f.t, f.done, f.u16(f.config.Used+2))
}

func (f *fuzzed) release() {
	if len(f.kept) > 0 {
		k := f.kept[0]
		f.kept = f.kept[1:]
		f.finish(k)
	}
}

func (f *fuzzed) run(script []byte) {
	arg := func(n int) []byte {
		b := make([]byte, n)
		script = script[copy(b, script):]
		return b
	}
	for steps := 0; len(script) > 0 && steps < 200 && f.copied < 4<<20; steps++ {
		op := arg(1)[0] % numOps
		if f.q == nil && op != opReset && op != opPause && op != opNotify {
			continue
		}
		avail := f.config.Avail
		switch op {
		case opPublish:
			idx := f.u16(avail + 2)
			binary.LittleEndian.PutUint16(f.at(avail+4+2*uint64(idx%f.config.Size), 2), uint16(arg(1)[0]))
			binary.LittleEndian.PutUint16(f.at(avail+2, 2), idx+1)
		case opIndex:
			copy(f.at(avail+2, 2), arg(2))
		case opServe:
			for range arg(1)[0] % 70 {
				k, ok := f.pop()
				if !ok {
					break
				}
				f.finish(k)
			}
		case opKeep:
			if k, ok := f.pop(); ok {
				f.kept = append(f.kept, k)
			}
		case opRelease:
			f.release()
		case opDesc:
			a := arg(7)
			b := f.at(f.config.Desc+16*uint64(uint16(a[0])%f.config.Size), 16)
			clear(b)
			copy(b, a[1:3])
			copy(b[8:], a[3:5])
			b[12], b[14] = a[5], a[6]
		case opPoke:
			a := arg(3)
			f.ram[int(binary.LittleEndian.Uint16(a))%fuzzRAM] = a[2]
		case opEvent:
			copy(f.at(avail+4+2*uint64(f.config.Size), 2), arg(2))
		case opReset:
			virtiotest.Reset(f.t, f.regs())
			require.Empty(f.t, f.kept)
			f.start()
		case opPause:
			if f.held = !f.held; f.held {
				err := f.dev.Function().Pause(over())
				require.Equal(f.t, len(f.kept) > 0, err != nil)
			} else {
				f.dev.Function().Resume()
			}
		case opNotify:
			f.regs().Notify(0)
		}
	}
	require.NoError(f.t, f.dev.Function().Close(patient(f.t)))
	require.Equal(f.t, f.popped, f.pushed, "a request was not given back")
	if f.q != nil {
		f.changes(func() { require.False(f.t, f.q.Pop(virtio.NewChain(f.q))) })
	}
}
