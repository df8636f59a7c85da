package net_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// The guest of the fuzz targets: what requests can reach, and apart from it the rings
// and tables of three queues.
const (
	fuzzRAM = 1 << 16
	// FuzzReceive has buffers that do not overlap, as many as fit.
	fuzzReceiveRAM = 1 << 18
	fuzzQueue      = 16
	ringsGPA       = 1 << 32
	ringDesc       = 0
	ringAvail      = 512
	ringUsed       = 1024
	ringTable      = 2048 // an indirect table of fuzzQueue for each head
	ringSize       = ringTable + fuzzQueue*fuzzQueue*16
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

// piece is a buffer of the fuzz input.
type piece struct {
	addr, n int
	write   bool
}

// fuzzGuest is a network device and its guest, used again for each input.
type fuzzGuest struct {
	ram, rings []byte
	b          *fake
	dev        *virtionet.Device
	f          *virtio.Function
	irq        interrupts
	idx        [3]uint16
	features   uint64
}

func newFuzzGuest(f *testing.F, ram int) *fuzzGuest {
	g := &fuzzGuest{ram: make([]byte, ram), rings: make([]byte, 3*ringSize), b: newFake(), irq: make(interrupts, 1)}
	mem, err := memory.FromBytes(memory.Region{GPA: 0, Mem: g.ram}, memory.Region{GPA: ringsGPA, Mem: g.rings})
	require.NoError(f, err)
	g.dev, err = virtionet.NewWithClock(g.b, virtionet.Options{MAC: guestMAC}, newClock())
	require.NoError(f, err)
	g.f, err = virtio.NewFunction(virtio.FunctionConfig{Device: g.dev, Memory: mem, Interrupts: g.irq})
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, g.f.Close(patient(f))) })
	return g
}

// start resets the device and negotiates those features of want that there are.
func (g *fuzzGuest) start(t *testing.T, want uint64) {
	virtiotest.Reset(t, g.f)
	g.b.set(func() {
		for i := range g.b.in {
			g.b.in[i], g.b.sent[i], g.b.news[i] = nil, nil, false
		}
	})
	clear(g.rings)
	clear(g.idx[:])
	g.features = want&g.f.DeviceFeatures() | virtio.FeatureVersion1 | virtio.FeatureIndirectDesc
	s := virtio.StatusAcknowledge | virtio.StatusDriver
	g.f.SetStatus(s)
	g.f.SetDriverFeatures(0, uint32(g.features))
	g.f.SetDriverFeatures(1, uint32(g.features>>32))
	s |= virtio.StatusFeaturesOK
	g.f.SetStatus(s)
	for i := range uint32(3) {
		g.f.SetQueueSize(i, fuzzQueue)
		for area, at := range map[virtio.Area]uint32{virtio.AreaDesc: ringDesc, virtio.AreaAvail: ringAvail, virtio.AreaUsed: ringUsed} {
			g.f.SetQueueArea(i, area, false, i*ringSize+at)
			g.f.SetQueueArea(i, area, true, 1)
		}
		g.f.SetQueueReady(i, true)
	}
	g.f.SetStatus(s | virtio.StatusDriverOK)
	require.Zero(t, g.f.Status()&virtio.StatusNeedsReset)
}

func (g *fuzzGuest) ring(q int) []byte { return g.rings[q*ringSize : (q+1)*ringSize] }

// add makes a chain available in a queue, by way of an indirect table.
func (g *fuzzGuest) add(q int, chain []piece) {
	r, head := g.ring(q), int(g.idx[q]%fuzzQueue)
	table := r[ringTable+head*fuzzQueue*16:]
	for i, p := range chain {
		var flags uint16
		if p.write {
			flags |= virtiotest.DescWrite
		}
		if i < len(chain)-1 {
			flags |= virtiotest.DescNext
		}
		b := table[16*i:]
		binary.LittleEndian.PutUint64(b, uint64(p.addr))
		binary.LittleEndian.PutUint32(b[8:], uint32(p.n))
		binary.LittleEndian.PutUint16(b[12:], flags)
		binary.LittleEndian.PutUint16(b[14:], uint16(i+1))
	}
	b := r[ringDesc+16*head:]
	binary.LittleEndian.PutUint64(b, ringsGPA+uint64(q*ringSize+ringTable+head*fuzzQueue*16))
	binary.LittleEndian.PutUint32(b[8:], uint32(16*len(chain)))
	binary.LittleEndian.PutUint16(b[12:], virtiotest.DescIndirect)
	// The entry may share a word with what the device loads.
	virtio.Store16(r, ringAvail+4+2*head, uint16(head))
	g.idx[q]++
	virtio.Publish(r[ringAvail:ringUsed], 0, g.idx[q])
	g.f.Notify(uint32(q))
}

func (g *fuzzGuest) used(q int) uint16 { return virtio.Load16(g.ring(q), ringUsed+2) }

// element is an element of the used ring.
func (g *fuzzGuest) element(q int, at uint16) (head, n uint32) {
	b := g.ring(q)[ringUsed+4+8*(at%fuzzQueue):]
	return binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
}

func (g *fuzzGuest) broken() bool { return g.f.Status()&virtio.StatusNeedsReset != 0 }

// settle waits for what the device ought to do and then has it stand still.
func (g *fuzzGuest) settle(t *testing.T, what func() bool) {
	end := time.NewTimer(virtiotest.Patience)
	defer end.Stop()
	for !what() {
		select {
		case <-g.irq:
		case <-time.After(100 * time.Microsecond):
		case <-end.C:
			require.Fail(t, "the device does not do what it should")
		}
	}
	require.NoError(t, g.f.Pause(patient(t)))
	require.True(t, what(), "the device has done more than it should")
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

func (r *reader) bytes(n int) []byte {
	n = min(n, len(r.rest))
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// featureSets are what a driver may want.
var featureSets = []uint64{
	^uint64(0), noMerge, virtionet.FeatureMrgRxBuf, 0,
	^(virtionet.FeatureCsum | virtionet.FeatureGuestCsum), ^(virtionet.FeatureHostTSO4 | virtionet.FeatureGuestTSO4),
	^(virtio.FeatureEventIdx | virtionet.FeatureMTU), ^(virtionet.FeatureHostECN | virtionet.FeatureHostUSO | virtionet.FeatureGuestUSO4 | virtionet.FeatureGuestUSO6),
}

// chain reads a chain.
func (r *reader) chain() []piece {
	chain := make([]piece, 1+r.byte()%fuzzQueue)
	for i := range chain {
		chain[i] = piece{addr: r.word(), n: r.word()}
		switch r.byte() % 4 {
		case 1:
			chain[i].write = true
		case 2:
			chain[i].n %= 64
		case 3:
			chain[i].n %= 64
			chain[i].write = true
		}
	}
	return chain
}

// sound reports whether a chain keeps the rules of a queue.
func (g *fuzzGuest) sound(chain []piece) bool {
	for i, p := range chain {
		if p.addr+p.n > len(g.ram) || i > 0 && chain[i-1].write && !p.write {
			return false
		}
	}
	return true
}

func (g *fuzzGuest) readable(chain []piece) (b []byte) {
	for _, p := range chain {
		if !p.write {
			b = append(b, g.ram[p.addr:p.addr+p.n]...)
		}
	}
	return b
}

// sendModel is what becomes of what a driver sends, in the simplest words; nil is
// nothing.
func sendModel(b []byte, features uint64) []byte {
	has := func(f uint64) bool { return features&f == f }
	if len(b) < 12+14 || len(b) > 12+65550 {
		return nil
	}
	h, n := header(b[:12]), len(b)-12
	out := hdr{}
	if h.Flags&1 == 0 {
		if h.GSO != 0 {
			return nil
		}
		return append(out.bytes(), b[12:]...)
	}
	end := int(h.Start) + int(h.Offset) + 2
	if !has(virtionet.FeatureCsum) || h.Start < 14 || end > n {
		return nil
	}
	out.Flags, out.Start, out.Offset = 1, h.Start, h.Offset
	if h.GSO != 0 {
		want := map[uint8]uint64{
			1: virtionet.FeatureHostTSO4, 4: virtionet.FeatureHostTSO6, 5: virtionet.FeatureHostUSO,
			0x81: virtionet.FeatureHostTSO4 | virtionet.FeatureHostECN, 0x84: virtionet.FeatureHostTSO6 | virtionet.FeatureHostECN,
		}[h.GSO]
		if want == 0 || !has(want) || h.Size == 0 {
			return nil
		}
		out.GSO, out.Size = h.GSO, h.Size
		out.Len = uint16(min(max(int(h.Len), end), n, 65535))
	}
	return append(out.bytes(), b[12:]...)
}

// FuzzSend: whatever chains a driver sends, of them the frames go out that the model
// says, with the header that it says; nothing is written to the guest's memory.
func FuzzSend(f *testing.F) {
	seed := func(set byte, h hdr, n int, pieces ...piece) []byte {
		b := append([]byte{set, 1, 0, 0, 12}, h.bytes()...)
		b = append(b, byte(len(pieces)-1))
		for _, p := range pieces {
			b = binary.LittleEndian.AppendUint16(b, uint16(p.addr))
			b = binary.LittleEndian.AppendUint16(b, uint16(p.n))
			b = append(b, map[bool]byte{true: 1}[p.write])
		}
		return b
	}
	tso4 := hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}
	for set := range featureSets {
		f.Add(seed(byte(set), hdr{}, 0, piece{0, 72, false}))
		f.Add(seed(byte(set), tso4, 0, piece{0, 5, false}, piece{5, 7000, false}))
		f.Add(seed(byte(set), hdr{Flags: 1, Start: 34, Offset: 16}, 0, piece{0, 12, false}, piece{100, 50, false}))
	}
	f.Add(seed(0, hdr{}, 0, piece{0, 11, false}))
	f.Add(seed(0, hdr{}, 0, piece{0, 72, true}, piece{0, 72, false}))
	f.Add(seed(0, hdr{}, 0, piece{0xff00, 0x200, false}))
	f.Add(seed(0, tso4, 0, slices.Repeat([]piece{{0, 60000, false}}, 16)...))
	g := newFuzzGuest(f, fuzzRAM)
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, input []byte) {
		growth.Check(t)
		for i := range g.ram {
			g.ram[i] = byte(i >> 4)
		}
		r := &reader{rest: input}
		set := featureSets[int(r.byte())%len(featureSets)]
		g.start(t, set)
		for range 16 {
			if len(r.rest) == 0 {
				break
			}
			for range r.byte() % 4 {
				at := r.word()
				copy(g.ram[at:], r.bytes(int(r.byte())))
			}
			chain := r.chain()
			before := slices.Clone(g.ram)
			was, sent := g.used(1), len(g.b.took(0))
			var want []byte
			ok := g.sound(chain)
			if ok {
				want = sendModel(g.readable(chain), virtionet.Settle(g.features))
			}
			g.add(1, chain)
			if !ok {
				g.settle(t, g.broken)
				require.Equal(t, was, g.used(1))
				g.f.Resume()
				g.start(t, set)
				continue
			}
			g.settle(t, func() bool { return g.used(1) == was+1 })
			require.False(t, g.broken(), "%v", chain)
			_, n := g.element(1, was)
			require.Zero(t, n)
			took := g.b.took(0)[sent:]
			if want == nil {
				require.Empty(t, took, "%v", chain)
			} else {
				require.Len(t, took, 1, "%v", chain)
				require.True(t, bytes.Equal(want, took[0]), "%v", chain)
			}
			require.True(t, bytes.Equal(before, g.ram), "the guest's memory")
			g.f.Resume()
		}
	})
}

// contained makes sure that of the guest's memory only what is the device's has
// changed.
func (g *fuzzGuest) contained(t *testing.T, mine []bool, before []byte) {
	for i, m := range mine {
		if !m && g.ram[i] != before[i] {
			require.Fail(t, "written", "byte %#x is not the device's", i)
		}
	}
}

// receiveModel follows what a driver has made available and what has come.
type receiveModel struct {
	features uint64
	room     []int    // bytes of the chains that are available
	frames   [][]byte // not yet delivered
	taken    bool     // the first of them was read and judged
	got      []delivery
}

// delivery is a frame that the driver has got, in so many chains.
type delivery struct {
	frame  []byte
	chains []int // the length of each
}

func (m *receiveModel) has(f uint64) bool { return m.features&f != 0 }

// judge reports whether a frame may reach the driver.
func (m *receiveModel) judge(b []byte) bool {
	if len(b) < 12+14 || len(b) > virtionet.MaxReceive {
		return false
	}
	h := header(b[:12])
	if h.Flags&1 != 0 && !m.has(virtionet.FeatureGuestCsum) {
		return false
	}
	switch h.GSO &^ 0x80 {
	case 0:
		return !m.has(virtionet.FeatureMTU) || len(b) <= 12+18+1500
	case 1:
		return m.has(virtionet.FeatureGuestTSO4)
	case 4:
		return m.has(virtionet.FeatureGuestTSO6)
	case 5:
		return m.has(virtionet.FeatureGuestUSO4 | virtionet.FeatureGuestUSO6)
	}
	return false
}

// step does what can be done.
func (m *receiveModel) step() {
	for len(m.frames) > 0 && len(m.room) > 0 {
		f := m.frames[0]
		if !m.taken && !m.judge(f) {
			m.frames = m.frames[1:]
			continue
		}
		var chains []int
		left := len(f)
		for _, room := range m.room {
			chains = append(chains, min(room, left))
			if left -= min(room, left); left == 0 || !m.has(virtionet.FeatureMrgRxBuf) {
				break
			}
		}
		switch {
		case left == 0:
			m.got = append(m.got, delivery{f, chains})
			m.room = m.room[len(chains):]
		case m.has(virtionet.FeatureMrgRxBuf) && len(m.room) < fuzzQueue:
			m.taken = true // it waits for more
			return
		}
		m.frames, m.taken = m.frames[1:], false
	}
}

// FuzzReceive: whatever buffers a driver makes available and whatever a backend gives,
// the frames reach the driver, or don't, as the model says: in that order, in so many
// chains, with these lengths and these bytes, as long as no buffers overlap. Nothing is
// written that is not the device's.
func FuzzReceive(f *testing.F) {
	frames := func(sizes ...int) (b []byte) {
		for _, s := range sizes {
			b = append(b, 1, 0, 0)
			b = binary.LittleEndian.AppendUint16(b, uint16(s))
		}
		return b
	}
	buffers := func(pieces ...piece) []byte {
		b := []byte{0, byte(len(pieces) - 1)}
		for _, p := range pieces {
			b = binary.LittleEndian.AppendUint16(b, uint16(p.addr))
			b = binary.LittleEndian.AppendUint16(b, uint16(p.n))
			b = append(b, 1)
		}
		return b
	}
	for set := range 2 * len(featureSets) {
		s := []byte{byte(set%len(featureSets)) | byte(set/len(featureSets))<<7}
		f.Add(slices.Concat(s, buffers(piece{0, 1526, true}), frames(60)))
		f.Add(slices.Concat(s, frames(60, 1514, 100), buffers(piece{0, 1526, true}), buffers(piece{2000, 5, true}, piece{3000, 2000, true})))
		f.Add(slices.Concat(s, buffers(piece{0, 100, true}), frames(300), buffers(piece{200, 100, true}), buffers(piece{300, 200, true}), buffers(piece{600, 200, true})))
		f.Add(slices.Concat(s, bytes.Repeat(buffers(piece{0, 20, true}), 16), frames(1000, 60)))
		f.Add(slices.Concat(s, buffers(piece{0, 0, true}), frames(60), buffers(piece{0xfff0, 60, true})))
	}
	g := newFuzzGuest(f, fuzzReceiveRAM)
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, input []byte) {
		growth.Check(t)
		r := &reader{rest: input}
		set := r.byte()
		wild := set&0x80 != 0 // buffers anywhere
		// A reset first: the input before may have left something to do.
		g.start(t, featureSets[int(set)%len(featureSets)])
		for i := range g.ram {
			g.ram[i] = byte(i >> 4)
		}
		shadow := slices.Clone(g.ram)
		m := &receiveModel{features: virtionet.Settle(g.features)}
		mine := make([]bool, fuzzReceiveRAM) // the device's to write
		var posted [][]piece
		done, at, next := 0, uint16(0), 0
		for seed := range byte(32) {
			if len(r.rest) == 0 {
				break
			}
			if r.byte()%2 == 0 && len(m.room) < fuzzQueue {
				chain := r.chain()
				for i := range chain {
					if !wild {
						chain[i].addr, next = next, next+chain[i].n
					}
				}
				g.f.Resume()
				g.add(0, chain)
				if !g.sound(chain) {
					if len(m.frames) > 0 && len(m.room) == 0 { // otherwise nobody need look
						g.settle(t, g.broken)
					}
					g.f.Resume()
					return
				}
				room := 0
				for _, p := range chain {
					if p.write {
						room += p.n
						for j := p.addr; j < p.addr+p.n; j++ {
							mine[j] = true
						}
					}
				}
				posted = append(posted, chain)
				m.room = append(m.room, room)
			} else {
				h := hdr{}
				if kind := r.byte(); kind != 0 {
					h = hdr{Flags: kind & 7, GSO: r.byte(), Size: 1}
				} else {
					r.byte()
				}
				in := append(h.bytes(), frame(guestMAC, r.word(), seed)...)
				m.frames = append(m.frames, in)
				g.f.Resume()
				g.b.put(0, in)
			}
			m.step()
			want := at
			for _, d := range m.got[done:] {
				want += uint16(len(d.chains))
			}
			left := len(m.frames)
			if m.taken {
				left--
			}
			if wild {
				// What a frame says may be written over by its own end: no model.
				require.NoError(t, g.f.Pause(patient(t)))
				g.contained(t, mine, shadow)
				continue
			}
			g.settle(t, func() bool { return g.used(0) == want && g.b.waiting(0) == left })
			require.False(t, g.broken())
			for ; done < len(m.got); done++ {
				d := m.got[done]
				var in []byte
				for _, n := range d.chains {
					head, used := g.element(0, at)
					require.EqualValues(t, at%fuzzQueue, head)
					require.EqualValues(t, n, used)
					at++
					for _, p := range posted[0] {
						if !p.write {
							continue
						}
						in = append(in, g.ram[p.addr:p.addr+p.n]...)
					}
					posted = posted[1:]
				}
				clean := slices.Clone(d.frame)
				clean[0] &= 3
				if m.features&virtionet.FeatureGuestCsum == 0 {
					clean[0] = 0
				}
				binary.LittleEndian.PutUint16(clean[10:], uint16(len(d.chains)))
				require.True(t, bytes.Equal(clean, in[:len(clean)]), "the frame")
			}
			g.contained(t, mine, shadow)
		}
		g.f.Resume()
	})
}

// FuzzControl: whatever commands there are, each ends with a word that is one of two,
// and one that fails changes nothing.
func FuzzControl(f *testing.F) {
	add := func(set, class, command byte, data ...byte) {
		f.Add(append([]byte{set, 8, class, command, byte(len(data))}, data...))
	}
	for set := range featureSets {
		add(byte(set), 0, 0, 0)
		add(byte(set), 0, 1, 1)
		add(byte(set), 1, 1, 2, 3, 4, 5, 6, 7)
		add(byte(set), 1, 0, 1, 0, 0, 0, 2, 3, 4, 5, 6, 7, 1, 0, 0, 0, 3, 3, 4, 5, 6, 7)
		add(byte(set), 1, 0, 255, 255, 255, 255, 0)
		add(byte(set), 3, 0)
		add(byte(set), 4, 0, 1, 0)
	}
	g := newFuzzGuest(f, fuzzRAM)
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, input []byte) {
		growth.Check(t)
		clear(g.ram)
		r := &reader{rest: input}
		set := featureSets[int(r.byte())%len(featureSets)]
		g.start(t, set)
		for range 16 {
			if len(r.rest) == 0 {
				break
			}
			cut := int(r.byte())
			op := r.bytes(2)
			data := append(slices.Clone(op), r.bytes(int(r.byte()))...)
			copy(g.ram[1000:], data)
			cut = min(cut, len(data))
			chain := []piece{{1000, cut, false}, {1000 + cut, len(data) - cut, false}, {5000, 1, true}}
			if len(data)%7 == 6 {
				chain = chain[:2] // no word is possible
			}
			before := g.dev.State()
			was := g.used(2)
			g.add(2, chain)
			if g.features&virtionet.FeatureCtrlVQ == 0 {
				g.settle(t, func() bool { return g.used(2) == was })
				g.f.Resume()
				return
			}
			g.settle(t, func() bool { return g.used(2) == was+1 })
			_, n := g.element(2, was)
			if len(chain) == 2 {
				require.True(t, g.broken())
				require.Zero(t, n)
				g.f.Resume()
				g.start(t, set)
				continue
			}
			require.False(t, g.broken())
			require.EqualValues(t, 1, n)
			switch ack := g.ram[5000]; ack {
			case 0:
			case 1:
				require.Equal(t, before, g.dev.State())
			default:
				require.Fail(t, "not an end", "%d", ack)
			}
			g.f.Resume()
		}
	})
}
