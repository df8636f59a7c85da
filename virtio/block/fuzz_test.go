package block_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/block/blocktest"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// The guest of FuzzBlock: what requests can reach, and apart from it the rings
// of one queue.
const (
	fuzzRAM   = 1 << 16
	fuzzDisk  = 96 << 10
	fuzzQueue = 16
	ringsGPA  = 1 << 32
	ringDesc  = 0
	ringAvail = 512
	ringUsed  = 1024
	ringsSize = 2048
	fuzzID    = "fuzz"
)

// interrupts wake who waits for the guest's device.
type interrupts chan struct{}

func (i interrupts) Queue(int) { i.Config() }

func (i interrupts) Config() {
	select {
	case i <- struct{}{}:
	default:
	}
}

// model is what a disk ought to do with a request, in the simplest words.
type model struct{ ram, disk []byte }

// piece is a descriptor of the fuzz input.
type piece struct {
	addr, n int
	write   bool
}

// request returns what becomes of a chain of pieces: whether its queue is broken,
// whether it has no status byte, and otherwise the length in the used ring.
func (m *model) request(chain []piece) (broken, noStatus bool, used int) {
	var out []byte
	var in []*byte
	for i, p := range chain {
		if p.addr+p.n > len(m.ram) || i > 0 && chain[i-1].write && !p.write {
			return true, false, 0
		}
		for j := p.addr; j < p.addr+p.n; j++ {
			if p.write {
				in = append(in, &m.ram[j])
			} else {
				out = append(out, m.ram[j])
			}
		}
	}
	if len(in) == 0 {
		return false, true, 0
	}
	data := in[:len(in)-1]
	status, filled := m.do(out, data)
	*in[len(in)-1] = status
	if filled == len(data) {
		filled++
	}
	return false, false, filled
}

// do carries out a request and returns its status and how many bytes it has put
// into in.
func (m *model) do(out []byte, in []*byte) (status byte, filled int) {
	if len(out) < 16 {
		return ioError, 0
	}
	kind, sector, out := binary.LittleEndian.Uint32(out), binary.LittleEndian.Uint64(out[8:]), out[16:]
	// part is the disk's bytes of n sectors, nil if they are not all there.
	part := func(sector, n uint64) []byte {
		have := uint64(len(m.disk) / 512)
		if sector > have || n > have-sector {
			return nil
		}
		return m.disk[sector*512 : (sector+n)*512 : (sector+n)*512]
	}
	fill := func(p []byte) int {
		n := min(len(p), len(in))
		for i := range n {
			*in[i] = p[i]
		}
		return n
	}
	switch kind {
	case 0: // in
		p := part(sector, uint64(len(in)/512))
		if len(in) == 0 || len(in)%512 != 0 || p == nil {
			return ioError, 0
		}
		return ok, fill(slices.Clone(p))
	case 1: // out
		p := part(sector, uint64(len(out)/512))
		if len(out) == 0 || len(out)%512 != 0 || p == nil {
			return ioError, 0
		}
		copy(p, out)
		return ok, 0
	case 4: // flush
		return ok, 0
	case 8: // get id
		return ok, fill(append([]byte(fuzzID), make([]byte, 20-len(fuzzID))...))
	case 11, 13: // discard, write zeroes
		most := 32
		if kind == 13 {
			most = 1
		}
		if len(out) == 0 || len(out)%16 != 0 || len(out) > most*16 {
			return ioError, 0
		}
		var todo [][]byte
		for ; len(out) > 0; out = out[16:] {
			n, flags := binary.LittleEndian.Uint32(out[8:]), binary.LittleEndian.Uint32(out[12:])
			if flags > 1 || flags == 1 && kind == 11 {
				return unsupported, 0
			}
			p := part(binary.LittleEndian.Uint64(out), uint64(n))
			if p == nil {
				return ioError, 0
			}
			todo = append(todo, p)
		}
		for _, p := range todo {
			clear(p)
		}
		return ok, 0
	}
	return unsupported, 0
}

// fuzzGuest is a disk and its guest, used again for each input.
type fuzzGuest struct {
	ram, rings []byte
	img        *block.Memory
	prompt     *blocktest.Hasty // img as the device has it, or nil
	f          *virtio.Function
	irq        interrupts
	idx        uint16
}

func newFuzzGuest(f *testing.F, prompt bool) *fuzzGuest {
	g := &fuzzGuest{ram: make([]byte, fuzzRAM), rings: make([]byte, ringsSize), img: block.NewMemory(fuzzDisk), irq: make(interrupts, 1)}
	mem, err := memory.FromBytes(memory.Region{GPA: 0, Mem: g.ram}, memory.Region{GPA: ringsGPA, Mem: g.rings})
	require.NoError(f, err)
	img := block.Image(g.img)
	if prompt {
		g.prompt = blocktest.NewHasty(blocktest.NewFaulty(img), 0)
		img = g.prompt
	}
	dev, err := block.New(img, block.Options{Serial: fuzzID, QueueSize: fuzzQueue, Workers: 2})
	require.NoError(f, err)
	g.f, err = virtio.NewFunction(virtio.FunctionConfig{Device: dev, Memory: mem, Interrupts: g.irq})
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, g.f.Close(patient(f))) })
	return g
}

// start resets the device and negotiates everything.
func (g *fuzzGuest) start(t *testing.T) {
	virtiotest.Reset(t, g.f)
	clear(g.rings)
	g.idx = 0
	s := virtio.StatusAcknowledge | virtio.StatusDriver
	g.f.SetStatus(s)
	g.f.SetDriverFeatures(0, uint32(g.f.DeviceFeatures()))
	g.f.SetDriverFeatures(1, uint32(g.f.DeviceFeatures()>>32))
	s |= virtio.StatusFeaturesOK
	g.f.SetStatus(s)
	for area, at := range map[virtio.Area]uint32{virtio.AreaDesc: ringDesc, virtio.AreaAvail: ringAvail, virtio.AreaUsed: ringUsed} {
		g.f.SetQueueArea(0, area, false, at)
		g.f.SetQueueArea(0, area, true, 1)
	}
	g.f.SetQueueReady(0, true)
	g.f.SetStatus(s | virtio.StatusDriverOK)
	require.Zero(t, g.f.Status()&virtio.StatusNeedsReset)
}

// run submits a chain and waits until it has ended or broken the device. The
// device is paused then.
func (g *fuzzGuest) run(t *testing.T, chain []piece) (needsReset bool, used virtiotest.Used, ended bool) {
	for i, p := range chain {
		var flags uint16
		if p.write {
			flags |= virtiotest.DescWrite
		}
		if i < len(chain)-1 {
			flags |= virtiotest.DescNext
		}
		b := g.rings[ringDesc+16*i:]
		binary.LittleEndian.PutUint64(b, uint64(p.addr))
		binary.LittleEndian.PutUint32(b[8:], uint32(p.n))
		binary.LittleEndian.PutUint16(b[12:], flags)
		binary.LittleEndian.PutUint16(b[14:], uint16(i+1))
	}
	at := g.idx % fuzzQueue
	binary.LittleEndian.PutUint16(g.rings[ringAvail+4+2*at:], 0)
	binary.LittleEndian.PutUint16(g.rings[ringAvail+4+2*fuzzQueue:], g.idx) // used_event
	g.idx++
	virtio.Publish(g.rings[ringAvail:ringUsed], 0, g.idx)
	g.f.Notify(0)
	g.f.Resume()
	end := time.NewTimer(virtiotest.Patience)
	defer end.Stop()
	for !ended && !needsReset {
		select {
		case <-g.irq:
		case <-end.C:
			require.Fail(t, "a request does not end", "%v", chain)
		}
		ended = virtio.Load16(g.rings, ringUsed+2) == g.idx
		needsReset = g.f.Status()&virtio.StatusNeedsReset != 0
	}
	require.NoError(t, g.f.Pause(patient(t)))
	// Whoever has no status byte is told of before it ends.
	ended = virtio.Load16(g.rings, ringUsed+2) == g.idx
	needsReset = g.f.Status()&virtio.StatusNeedsReset != 0
	b := g.rings[ringUsed+4+8*at:]
	return needsReset, virtiotest.Used{Head: binary.LittleEndian.Uint32(b), Len: binary.LittleEndian.Uint32(b[4:])}, ended
}

// reader takes an input apart; after its end everything is 0.
type reader struct{ rest []byte }

func (r *reader) byte() byte {
	if len(r.rest) == 0 {
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) word() int { return int(r.byte()) | int(r.byte())<<8 }

// next puts bytes where the input wants them and returns a chain.
func (r *reader) next(ram []byte) []piece {
	for range r.byte() % 4 {
		at, n := r.word(), int(r.byte())
		n = min(n, len(ram)-at, len(r.rest))
		copy(ram[at:], r.rest[:n])
		r.rest = r.rest[n:]
	}
	chain := make([]piece, 1+r.byte()%fuzzQueue)
	for i := range chain {
		chain[i] = piece{addr: r.word(), n: r.word()}
		if flags := r.byte(); flags&1 != 0 {
			chain[i].write = true
			if flags&2 != 0 { // whole sectors more often than chance has it
				chain[i].n = chain[i].n / 512 * 512
			}
		} else if flags&2 != 0 {
			chain[i].n = chain[i].n/512*512 + 16
		}
	}
	return chain
}

// seed is an input of one request.
func seed(kind uint32, sector uint64, data []byte, pieces ...piece) []byte {
	h := append(header(kind, sector), data...)
	b := append([]byte{1, 0, 0, byte(len(h))}, h...)
	b = append(b, byte(len(pieces)-1))
	for _, p := range pieces {
		b = binary.LittleEndian.AppendUint16(b, uint16(p.addr))
		b = binary.LittleEndian.AppendUint16(b, uint16(p.n))
		flags := byte(0)
		if p.write {
			flags = 1
		}
		b = append(b, flags)
	}
	return b
}

// FuzzBlock: arbitrary chains and headers do to the guest's memory and to the
// image what the model says, and nothing else; nothing panics or hangs. prompt is 0 for
// an image that may always wait, else the seed of one that is asked not to at first.
func FuzzBlock(f *testing.F) {
	add := func(input []byte) {
		for prompt := range uint8(6) {
			f.Add(prompt, input)
		}
	}
	head := piece{0, 16, false}
	status := piece{0x8000, 1, true}
	add(slices.Concat(
		seed(1, 3, nil, head, piece{0x1000, 1024, false}, status),
		seed(0, 3, nil, head, piece{0x2000, 1024, true}, status),
		seed(4, 0, nil, head, status),
		seed(8, 0, nil, head, piece{0x3000, 20, true}, status)))
	add(seed(0, 1<<55, nil, head, piece{0x2000, 513, true}))
	add(seed(1, 190, nil, piece{0, 7, false}, piece{7, 9 + 512*3, false}, status))
	add(seed(11, 0, ranges([3]uint64{3, 4, 0}, [3]uint64{100, 92, 0}), piece{0, 48, false}, status))
	add(seed(13, 0, ranges([3]uint64{3, 4, 1}, [3]uint64{190, 3, 0}), piece{0, 48, false}, status))
	add(seed(13, 0, ranges([3]uint64{3, 4, 2}), piece{0, 32, false}, status))
	add(seed(77, 0, nil, head, status))
	add(seed(0, 0, nil, head))
	add(seed(0, 0, nil, piece{0, 8, false}, status))
	add(seed(0, 0, nil, head, status, head))
	add(seed(0, 0, nil, head, piece{0xfff0, 512, true}))
	add(seed(0, 0, nil, head, piece{0, 512, true}, piece{100, 512, true}, piece{0, 1, true}))
	waits, tries := newFuzzGuest(f, false), newFuzzGuest(f, true)
	first := pattern(fuzzDisk, 0x11)
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, prompt uint8, input []byte) {
		growth.Check(t)
		g := waits
		if prompt > 0 {
			g = tries
			g.prompt.Seed(uint64(prompt))
		}
		for i := range g.ram {
			g.ram[i] = byte(i >> 4)
		}
		_, err := g.img.WriteAt(first, 0)
		require.NoError(t, err)
		g.start(t)
		m := &model{disk: slices.Clone(first)}
		r := &reader{rest: input}
		for range 16 {
			if len(r.rest) == 0 {
				break
			}
			chain := r.next(g.ram)
			m.ram = slices.Clone(g.ram)
			broken, noStatus, used := m.request(chain)
			needsReset, got, ended := g.run(t, chain)
			require.Equal(t, broken || noStatus, needsReset, "%v", chain)
			require.Equal(t, !broken, ended, "%v", chain)
			if ended {
				require.Equal(t, virtiotest.Used{Head: 0, Len: uint32(used)}, got, "%v", chain)
			}
			if !bytes.Equal(m.ram, g.ram) {
				require.Equal(t, m.ram, g.ram, "guest memory after %v", chain)
			}
			if disk := content(t, g.img); !bytes.Equal(m.disk, disk) {
				require.Equal(t, m.disk, disk, "the image after %v", chain)
			}
			if needsReset {
				g.f.Resume()
				g.start(t)
			}
		}
		g.f.Resume()
	})
}
