package fs_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"log"
	"log/slog"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// The guest of FuzzRequests: slots that each have what a request needs, and apart
// from them the rings.
const (
	fuzzSlots   = 8
	fuzzSide    = 16 << 10 // bytes for a request, and for its reply
	fuzzDescs   = 8        // of a slot, in each queue
	fuzzQueue   = fuzzSlots * fuzzDescs
	fuzzQueues  = 3
	fuzzRings   = 4096 // of a queue
	fuzzAvail   = fuzzQueue * 16
	fuzzUsed    = fuzzAvail + 512
	fuzzRingGPA = 1 << 32

	// fuzzPatience is less than the fuzzing engine's, which does not say what hangs.
	fuzzPatience = 8 * time.Second
)

type fuzzSlot struct {
	busy   bool
	queue  int
	opcode uint32
	out    int // bytes of the request
	in     int // bytes that a reply has room for
	sent   []byte
}

// fuzzGuest is used again for each input.
type fuzzGuest struct {
	t          *testing.T // of the input
	ram, rings []byte
	tree       *tree
	dev        *fs.Device
	f          *virtio.Function
	idx, seen  [fuzzQueues]uint16
	slots      [fuzzSlots]fuzzSlot
	raw        [fuzzQueues]int // chains of arbitrary descriptors under way
	dirty      bool            // what is in memory may be anything
	unique     uint64
	lines      *lineCount
}

// lineCount counts what is written to it.
type lineCount struct{ n atomic.Int64 }

func (l *lineCount) Write(p []byte) (int, error) {
	l.n.Add(1)
	return len(p), nil
}

type noInterrupts struct{}

func (noInterrupts) Queue(int) {}
func (noInterrupts) Config()   {}

func newFuzzGuest(f *testing.F) *fuzzGuest {
	g := &fuzzGuest{
		ram: make([]byte, 2*fuzzSlots*fuzzSide), rings: make([]byte, fuzzQueues*fuzzRings),
		tree: newTree(), lines: &lineCount{},
	}
	g.tree.options.EnableLocks = true
	g.tree.options.ExtraCapabilities = fuse.CAP_SETXATTR_EXT | fuse.CAP_HANDLE_KILLPRIV_V2
	mem, err := memory.FromBytes(memory.Region{GPA: 0, Mem: g.ram}, memory.Region{GPA: fuzzRingGPA, Mem: g.rings})
	require.NoError(f, err)
	g.dev, err = fs.New(g.tree, fs.Options{Tag: "fuzz", Queues: 2, Workers: 2, Logger: slog.New(slog.NewTextHandler(g.lines, nil))})
	require.NoError(f, err)
	g.f, err = virtio.NewFunction(virtio.FunctionConfig{Device: g.dev, Memory: mem, Interrupts: noInterrupts{}})
	require.NoError(f, err)
	log.SetOutput(g.lines) // the library's, of what must not get there
	f.Cleanup(func() {
		require.NoError(f, g.f.Close(bounded(f)))
		require.NoError(f, g.dev.Close())
		log.SetOutput(io.Discard)
	})
	return g
}

// start resets the device and negotiates everything.
func (g *fuzzGuest) start() {
	virtiotest.Reset(g.t, g.f)
	clear(g.rings)
	g.idx, g.seen, g.slots, g.raw, g.dirty = [fuzzQueues]uint16{}, [fuzzQueues]uint16{}, [fuzzSlots]fuzzSlot{}, [fuzzQueues]int{}, false
	s := virtio.StatusAcknowledge | virtio.StatusDriver
	g.f.SetStatus(s)
	g.f.SetDriverFeatures(0, uint32(g.f.DeviceFeatures()))
	g.f.SetDriverFeatures(1, uint32(g.f.DeviceFeatures()>>32))
	s |= virtio.StatusFeaturesOK
	g.f.SetStatus(s)
	for q := range uint32(fuzzQueues) {
		for area, off := range map[virtio.Area]uint32{virtio.AreaDesc: 0, virtio.AreaAvail: fuzzAvail, virtio.AreaUsed: fuzzUsed} {
			g.f.SetQueueArea(q, area, false, q*fuzzRings+off)
			g.f.SetQueueArea(q, area, true, 1)
		}
		g.f.SetQueueSize(q, fuzzQueue)
		g.f.SetQueueReady(q, true)
	}
	g.f.SetStatus(s | virtio.StatusDriverOK)
	require.Zero(g.t, g.f.Status()&virtio.StatusNeedsReset)
}

func (g *fuzzGuest) queue(q int) []byte { return g.rings[q*fuzzRings : (q+1)*fuzzRings] }

func (g *fuzzGuest) desc(q, i int, addr uint64, n uint32, flags, next uint16) {
	b := g.queue(q)[16*i:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

func (g *fuzzGuest) publish(q int, head uint16) {
	avail := g.queue(q)[fuzzAvail:]
	virtio.Store16(avail, 4+2*int(g.idx[q]%fuzzQueue), head)
	g.idx[q]++
	virtio.Publish(avail, 0, g.idx[q])
	g.f.Notify(uint32(q))
}

// sides are a slot's memory.
func (g *fuzzGuest) sides(i int) (out, in []byte) {
	b := g.ram[2*i*fuzzSide:]
	return b[:fuzzSide], b[fuzzSide : 2*fuzzSide]
}

// send makes a request of a slot, cut into pieces as the input says.
func (g *fuzzGuest) send(i, q int, message []byte, room int, cuts uint8) {
	out, in := g.sides(i)
	s := &g.slots[i]
	*s = fuzzSlot{busy: true, queue: q, out: copy(out, message), in: min(room, fuzzSide)}
	s.sent = bytes.Clone(out[:s.out])
	if s.out >= 8 {
		s.opcode = binary.LittleEndian.Uint32(out[4:])
	}
	for k := range in {
		in[k] = 0xaa
	}
	head, at := i*fuzzDescs, 0
	put := func(base, n, pieces int, flags uint16) {
		for k := range pieces {
			size := n / pieces
			if k == pieces-1 {
				size = n - k*size
			}
			g.desc(q, head+at, uint64(base+k*(n/pieces)), uint32(size), flags|virtiotest.DescNext, uint16(head+at+1))
			at++
		}
	}
	base := 2 * i * fuzzSide
	put(base, s.out, 1+int(cuts&3), 0)
	if s.in > 0 {
		put(base+fuzzSide, s.in, 1+int(cuts>>2&3), virtiotest.DescWrite)
	}
	last := g.queue(q)[16*(head+at-1)+12:]
	binary.LittleEndian.PutUint16(last, binary.LittleEndian.Uint16(last)&^virtiotest.DescNext)
	g.publish(q, uint16(head))
}

// poll takes what has ended, and checks it.
func (g *fuzzGuest) poll() {
	for q := range fuzzQueues {
		used := g.queue(q)[fuzzUsed:]
		for ; virtio.Load16(used, 2) != g.seen[q]; g.seen[q]++ {
			e := used[4+8*int(g.seen[q]%fuzzQueue):]
			head, n := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
			i := int(head) / fuzzDescs
			if head%fuzzDescs != 0 || !g.slots[i].busy || g.slots[i].queue != q {
				require.Positive(g.t, g.raw[q], "head %d of queue %d ended, which was not given", head, q)
				g.raw[q]--
				continue
			}
			g.check(i, int(n))
		}
	}
}

func (g *fuzzGuest) check(i, n int) {
	s := &g.slots[i]
	s.busy = false
	if g.dirty {
		return
	}
	require.LessOrEqual(g.t, n, s.in, "more was written than there was room for")
	out, in := g.sides(i)
	require.Equal(g.t, s.sent, out[:s.out], "the device wrote to a buffer that it reads")
	require.Equal(g.t, bytes.Repeat([]byte{0xaa}, fuzzSide-n), in[n:], "written beyond the length, or what was not told")
	if n == 0 {
		return
	}
	require.GreaterOrEqual(g.t, n, 16)
	require.EqualValues(g.t, n, binary.LittleEndian.Uint32(in), "the length of a reply")
	require.Equal(g.t, s.sent[8:16], in[8:16], "the reply is to another request")
	status := int32(binary.LittleEndian.Uint32(in[4:]))
	require.True(g.t, status <= 0 && status > -512, "a status of %d", status)
	if status != 0 {
		require.Equal(g.t, 16, n, "an error with data")
	}
}

// until polls until f holds.
func (g *fuzzGuest) until(what string, f func() bool) {
	end := time.Now().Add(fuzzPatience)
	for wait := time.Microsecond; ; wait = min(2*wait, time.Millisecond) {
		g.poll()
		if f() {
			return
		}
		if time.Now().After(end) {
			require.Fail(g.t, "waited too long until "+what, "%+v", g.slots)
		}
		time.Sleep(wait)
	}
}

// waiting are the slots whose requests have not ended, but those that may wait for
// a lock if locks is not set.
func (g *fuzzGuest) waiting(locks bool) (n int) {
	for _, s := range g.slots {
		if s.busy && (locks || s.opcode != opSetlkw) {
			n++
		}
	}
	return n
}

// bytesOf hands out an input.
type bytesOf []byte

func (b *bytesOf) next() byte {
	if len(*b) == 0 {
		return 0
	}
	c := (*b)[0]
	*b = (*b)[1:]
	return c
}

func (b *bytesOf) word() uint16 { return uint16(b.next()) | uint16(b.next())<<8 }

func (b *bytesOf) take(n int) []byte {
	n = min(n, len(*b))
	p := (*b)[:n]
	*b = (*b)[n:]
	return p
}

// Steps of an input, by the first byte modulo fuzzSteps.
const (
	stepRequest = iota // with a header as it should be
	stepBytes          // of arbitrary bytes
	stepMount
	stepScribble // over a request that may be under way
	stepPause
	stepReset
	stepChain // of arbitrary descriptors
	stepSettle
	fuzzSteps
)

func (g *fuzzGuest) step(in *bytesOf) {
	kind := in.next() % fuzzSteps
	free := -1
	for i := range g.slots {
		if !g.slots[i].busy {
			free = i
		}
	}
	broken := g.f.Status()&virtio.StatusNeedsReset != 0
	if broken || free < 0 && (kind == stepRequest || kind == stepBytes || kind == stepMount) {
		if broken || g.waiting(false) == 0 {
			g.start()
		} else {
			g.until("a request ends", func() bool { return g.waiting(false) < fuzzSlots })
		}
		return
	}
	g.unique++
	switch kind {
	case stepRequest:
		q, cuts, op, node := int(in.next()%fuzzQueues), in.next(), uint32(in.next()), uint64(in.next())
		room := int(in.word())
		body := in.take(int(in.word()) % fuzzSide)
		m := words(uint32(40+len(body)), op, g.unique, node, 0, 0, 0, 0, body)
		if op == opWrite && len(body) >= 40 && cuts&0x80 == 0 {
			binary.LittleEndian.PutUint32(m[56:], uint32(len(body)-40))
		}
		g.send(free, q, m, room, cuts)
	case stepBytes:
		q, cuts, room := int(in.next()%fuzzQueues), in.next(), int(in.word())
		g.send(free, q, in.take(int(in.word())%fuzzSide), room, cuts)
	case stepMount:
		g.send(free, 1, words(uint32(56), opInit, g.unique, uint64(0), 0, 0, 0, 0, 7, 36, 0, allFlags), 16+initOutSize, 0)
	case stepScribble:
		g.dirty = true
		at := int(in.word()) * 4 % len(g.ram)
		copy(g.ram[at:], in.take(int(in.next())))
	case stepPause:
		if g.waiting(true) > g.waiting(false) {
			break // a lock is waited for
		}
		require.NoError(g.t, g.f.Pause(bounded(g.t)))
		g.poll()
		require.Zero(g.t, g.tree.count(&g.tree.active))
		g.f.Resume()
	case stepReset:
		g.start()
		require.Zero(g.t, g.tree.count(&g.tree.active))
	case stepChain:
		q := int(in.next() % fuzzQueues)
		g.dirty = true
		for i := range 4 {
			addr := uint64(in.word()) * 8
			if in.next()%16 == 0 {
				addr |= fuzzRingGPA * uint64(in.next()%2)
			}
			// Behind the slots' own there is no room: those of a slot that is free.
			if free >= 0 {
				g.desc(q, free*fuzzDescs+i, addr, uint32(in.word()), uint16(in.next())&7, uint16(free*fuzzDescs+int(in.next()%8)))
			}
		}
		if free >= 0 {
			g.raw[q]++
			g.publish(q, uint16(free*fuzzDescs))
			g.until("it has ended or broken the queue", func() bool {
				return g.raw[q] == 0 || g.f.Status()&virtio.StatusNeedsReset != 0 || g.tree.count(&g.tree.active) > 0
			})
		}
	case stepSettle:
		g.until("all but locks have ended", func() bool { return g.waiting(false) == 0 })
	}
}

// FuzzRequests has a guest send requests of arbitrary bytes in arbitrary pieces and
// chains, change them while they are under way, and reset and pause the device: every
// request ends once, and a reply is what the protocol has for one.
func FuzzRequests(f *testing.F) {
	req := func(op, node byte, room int, body []byte) []byte {
		return append([]byte{stepRequest, 1, 5, op, node, byte(room), byte(room >> 8), byte(len(body)), byte(len(body) >> 8)}, body...)
	}
	all := func(list ...[]byte) []byte { return bytes.Join(list, nil) }
	mount, settle := []byte{stepMount}, []byte{stepSettle}
	create := req(opCreate, 1, 16+createSize, words(0, 0o644, 0, 0, "file"))
	f.Add(all(mount, settle, create, settle, req(opWrite, 2, 24, append(readIn(2, 0, 100), make([]byte, 100)...)), settle, req(opRead, 2, 1000, readIn(2, 0, 900))))
	f.Add(all(mount, settle, req(opReaddirplus, 1, 4112, readIn(1, 0, 4096)), req(opReaddir, 1, 4112, readIn(1, 0, 4096))))
	f.Add(all(mount, settle, create, settle, req(opSetlkw, 2, 16, lkIn(2, syscall.F_WRLCK)), req(opSetlkw, 2, 16, lkIn(2, syscall.F_WRLCK)), req(opDestroy, 0, 16, nil), settle, mount))
	f.Add(all(mount, settle, create, settle, req(opSetxattr, 2, 16, words(4, 0, "user.a", []byte("1234"))), req(opGetxattr, 2, 100, words(80, 0, "user.a")), []byte{stepReset}))
	f.Add(all(mount, settle, req(opSymlink, 1, 200, words("link", "target")), settle, req(opReadlink, 2, 4112, nil), []byte{stepPause, stepScribble, 1, 0, 3, 1, 2, 3}))
	f.Add(all(mount, settle, []byte{stepRequest, 0, 0, opBatchForget, 0, 0, 0, 24, 0}, words(1, 0, uint64(1), uint64(1)), []byte{stepRequest, 0, 0, opInterrupt, 0, 16, 0, 8, 0}, words(uint64(1))))
	f.Add(all([]byte{stepBytes, 1, 0, 100, 0, 60, 0}, make([]byte, 60), []byte{stepChain, 1, 0, 0, 1, 40, 0, 1, 1, 1, 0, 1, 100, 0, 2, 0}))
	f.Add(all(mount, settle, req(opIoctl, 1, 1000, words(uint64(1), 0, 1, uint64(0), 16, 32, make([]byte, 16))), req(52, 1, 400, make([]byte, 24)), req(47, 1, 40, make([]byte, 56))))
	f.Add(all(mount, settle, create, settle, req(opWrite, 2, 24, append(readIn(2, 0, 9), make([]byte, 9)...)), req(opSyncfs, 1, 16, words(uint64(0))), req(opSyncfs, 0, 16, words(uint64(1))), req(opDestroy, 0, 16, nil), req(opSyncfs, 1, 16, words(uint64(0)))))
	f.Add(all(mount, settle, req(opSyncfs, 1, 15, words(uint64(0))), req(opSyncfs, 1, 16, nil), []byte{stepPause}, req(opSyncfs, 1, 100, make([]byte, 64)), []byte{stepReset}))
	g := newFuzzGuest(f)
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, input []byte) {
		growth.Check(t)
		g.t = t
		g.start()
		g.tree.mu.Lock()
		g.tree.clear()
		g.tree.mu.Unlock()
		in := bytesOf(input)
		for range 64 {
			if len(in) == 0 {
				break
			}
			g.step(&in)
		}
		if g.f.Status()&virtio.StatusNeedsReset == 0 {
			g.until("all but locks have ended", func() bool { return g.waiting(false) == 0 })
		}
		virtiotest.Reset(t, g.f)
		require.Zero(t, g.tree.count(&g.tree.active))
		require.Zero(t, g.lines.n.Load(), "the library has found fault with something")
	})
}
