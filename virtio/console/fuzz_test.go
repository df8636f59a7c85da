package console_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/console"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// The guest of FuzzDevice: what chains can reach, and apart from it the rings.
const (
	fuzzRAM    = 1 << 16
	ringsGPA   = 1 << 32
	ringsSize  = 2048 // of a queue
	ringAvail  = 512
	ringUsed   = 1024
	fuzzQueue  = 16 // descriptors
	fuzzChain  = 4  // descriptors of a chain
	fuzzPorts  = 3
	fuzzQueues = 2 * (fuzzPorts + 1)

	// fuzzPatience is less than the fuzzing engine's, which does not say what hangs.
	fuzzPatience = 8 * time.Second
)

var fuzzNames = [fuzzPorts]string{1: "agent", 2: "a-longer-name"}

// piece is a descriptor of the fuzz input.
type piece struct {
	addr, n int
	write   bool
}

// model is what the device ought to do, in the simplest words.
type model struct {
	ram       []byte
	multiport bool
	ready     bool
	cols      uint16
	rows      uint16
	ports     [fuzzPorts]modelPort
	waiting   [fuzzQueues][][]piece // chains that the device has no use for yet
	used      [fuzzQueues][]uint32  // the lengths of those that it has used
	broken    bool
}

type modelPort struct {
	added, ready, open, told bool
	console, size, name      bool
	in                       []byte // what the host sends and the guest has not got
	out                      []byte // what Out gets
	received                 int
}

func (m *model) reset(multiport bool) {
	for i := range m.ports {
		p := &m.ports[i]
		*p = modelPort{in: p.in, out: p.out, received: p.received, open: i == 0 && !multiport}
	}
	m.multiport, m.ready, m.broken = multiport, false, false
	m.waiting, m.used = [fuzzQueues][][]piece{}, [fuzzQueues][]uint32{}
}

// parts are a chain's bytes; ok is false if it breaks the queue.
func (m *model) parts(chain []piece) (out []byte, in []*byte, ok bool) {
	for i, p := range chain {
		if p.addr+p.n > len(m.ram) || i > 0 && chain[i-1].write && !p.write {
			return nil, nil, false
		}
		for j := p.addr; j < p.addr+p.n; j++ {
			if p.write {
				in = append(in, &m.ram[j])
			} else {
				out = append(out, m.ram[j])
			}
		}
	}
	return out, in, true
}

// settle does all that can be done.
func (m *model) settle() {
	for again := true; again && !m.broken; {
		again = false
		for id := range m.ports {
			rx, tx := queues(id)
			if id > 0 && !m.multiport {
				break
			}
			again = m.transmit(id, tx) || m.receive(id, rx) || again
		}
		if m.multiport {
			again = m.listen() || m.tell() || again
		}
	}
}

// first takes the oldest chain of a queue.
func (m *model) first(q int) (out []byte, in []*byte, ok bool) {
	out, in, ok = m.parts(m.waiting[q][0])
	if m.broken = m.broken || !ok; ok {
		m.waiting[q] = m.waiting[q][1:]
	}
	return out, in, ok
}

func (m *model) transmit(id, q int) bool {
	if len(m.waiting[q]) == 0 {
		return false
	}
	out, _, ok := m.first(q)
	if ok {
		m.ports[id].out = append(m.ports[id].out, out...)
		m.used[q] = append(m.used[q], 0)
	}
	return ok
}

func (m *model) receive(id, q int) bool {
	p := &m.ports[id]
	if len(m.waiting[q]) == 0 || !p.open || len(p.in) == 0 {
		return false
	}
	_, in, ok := m.first(q)
	if ok {
		n := min(len(in), len(p.in))
		for i := range n {
			*in[i] = p.in[i]
		}
		p.in = p.in[n:]
		p.received += n
		m.used[q] = append(m.used[q], uint32(n))
	}
	return ok
}

func (m *model) listen() bool {
	if len(m.waiting[controlOut]) == 0 {
		return false
	}
	b, _, ok := m.first(controlOut)
	if !ok {
		return false
	}
	m.used[controlOut] = append(m.used[controlOut], 0)
	if len(b) < 8 {
		return true
	}
	id, event, value := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]) != 0
	switch {
	case event == 0:
		m.ready = value
	case id >= fuzzPorts:
	case event == 3:
		p := &m.ports[id]
		if value && !p.ready {
			p.console, p.size, p.name, p.told = id == 0, id == 0 && m.cols|m.rows != 0, fuzzNames[id] != "", false
		}
		p.ready = value
	case event == 6:
		m.ports[id].open = value
	}
	return true
}

// next is the next message, and what says that it was sent.
func (m *model) next() (b []byte, sent func()) {
	if !m.ready {
		return nil, nil
	}
	for id := range m.ports {
		if p := &m.ports[id]; !p.added {
			return message(uint32(id), 1, 1), func() { p.added = true }
		}
	}
	for id := range m.ports {
		p := &m.ports[id]
		switch {
		case !p.ready:
		case p.console:
			return message(uint32(id), 4, 1), func() { p.console = false }
		case p.size:
			b := message(uint32(id), 5, 0)
			b = binary.LittleEndian.AppendUint16(b, m.cols)
			return binary.LittleEndian.AppendUint16(b, m.rows), func() { p.size = false }
		case p.name:
			return message(uint32(id), 7, 1, []byte(fuzzNames[id])...), func() { p.name = false }
		case !p.told:
			return message(uint32(id), 6, 1), func() { p.told = true }
		}
	}
	return nil, nil
}

func (m *model) tell() bool {
	b, sent := m.next()
	if b == nil || len(m.waiting[controlIn]) == 0 {
		return false
	}
	_, in, ok := m.parts(m.waiting[controlIn][0])
	switch {
	case !ok:
		m.broken = true
		return false
	case len(in) >= len(b):
		for i, c := range b {
			*in[i] = c
		}
		m.used[controlIn] = append(m.used[controlIn], uint32(len(b)))
		sent()
	case len(in) >= 8:
		sent() // it is left out, and the buffer stays
		return true
	default:
		m.used[controlIn] = append(m.used[controlIn], 0)
	}
	m.waiting[controlIn] = m.waiting[controlIn][1:]
	return true
}

// feeder is an In that gives what it is fed, each piece to one Read, or to as many as it
// takes.
type feeder struct {
	bytes  chan []byte
	asking chan struct{} // one token: Read was called, and there is nothing left
	left   *[]byte       // of the last piece; Read's
}

func (f feeder) Read(p []byte) (int, error) {
	if len(*f.left) == 0 {
		f.asking <- struct{}{}
		b, ok := <-f.bytes
		if !ok {
			return 0, io.EOF
		}
		*f.left = b
	}
	n := copy(p, *f.left)
	*f.left = (*f.left)[n:]
	return n, nil
}

// feed returns when the reader has taken b and asks for more.
func (f feeder) feed(b []byte) {
	<-f.asking
	f.bytes <- b
	<-f.asking
	f.asking <- struct{}{}
}

// Close ends it.
func (f feeder) Close() error {
	close(f.bytes)
	return nil
}

// interrupts are not waited for: the driver looks at the rings.
type interrupts struct{}

func (interrupts) Queue(int) {}
func (interrupts) Config()   {}

// fuzzGuest is a device and its guest, used again for each input.
type fuzzGuest struct {
	ram, rings []byte
	dev        *console.Device
	f          *virtio.Function
	ins        [fuzzPorts]feeder
	outs       [fuzzPorts]*sink
	idx        [fuzzQueues]uint16
	fed        byte
	total      [fuzzPorts]int      // bytes ever fed
	stats      []console.PortStats // at the start of the input
}

func newFuzzGuest(f *testing.F) *fuzzGuest {
	g := &fuzzGuest{ram: make([]byte, fuzzRAM), rings: make([]byte, ringsSize*fuzzQueues)}
	mem, err := memory.FromBytes(memory.Region{GPA: 0, Mem: g.ram}, memory.Region{GPA: ringsGPA, Mem: g.rings})
	require.NoError(f, err)
	var ports []console.Port
	for id := range fuzzPorts {
		g.ins[id], g.outs[id] = feeder{make(chan []byte), make(chan struct{}, 1), new([]byte)}, newSink()
		ports = append(ports, console.Port{Console: id == 0, Name: fuzzNames[id], In: g.ins[id], Out: g.outs[id], Closer: g.ins[id]})
	}
	g.dev, err = console.New(console.Options{Ports: ports})
	require.NoError(f, err)
	g.f, err = virtio.NewFunction(virtio.FunctionConfig{Device: g.dev, Memory: mem, Interrupts: interrupts{}})
	require.NoError(f, err)
	f.Cleanup(func() {
		require.NoError(f, g.f.Close(patient(f)))
		require.NoError(f, g.dev.Close())
	})
	return g
}

// start resets the device and negotiates.
func (g *fuzzGuest) start(t *testing.T, features uint64) {
	virtiotest.Reset(t, g.f)
	clear(g.rings)
	g.idx = [fuzzQueues]uint16{}
	s := virtio.StatusAcknowledge | virtio.StatusDriver
	g.f.SetStatus(s)
	features |= virtio.FeatureVersion1
	g.f.SetDriverFeatures(0, uint32(features))
	g.f.SetDriverFeatures(1, uint32(features>>32))
	s |= virtio.StatusFeaturesOK
	g.f.SetStatus(s)
	for q := range uint32(fuzzQueues) {
		g.f.SetQueueSize(q, fuzzQueue)
		for area, at := range map[virtio.Area]uint32{virtio.AreaDesc: 0, virtio.AreaAvail: ringAvail, virtio.AreaUsed: ringUsed} {
			g.f.SetQueueArea(q, area, false, q*ringsSize+at)
			g.f.SetQueueArea(q, area, true, 1)
		}
		g.f.SetQueueReady(q, true)
	}
	g.f.SetStatus(s | virtio.StatusDriverOK)
	require.Zero(t, g.f.Status()&virtio.StatusNeedsReset)
}

// submit makes a chain available.
func (g *fuzzGuest) submit(q int, chain []piece) {
	rings := g.rings[q*ringsSize : (q+1)*ringsSize]
	slot := int(g.idx[q]%(fuzzQueue/fuzzChain)) * fuzzChain
	for i, p := range chain {
		var flags uint16
		if p.write {
			flags |= virtiotest.DescWrite
		}
		if i < len(chain)-1 {
			flags |= virtiotest.DescNext
		}
		b := rings[16*(slot+i):]
		binary.LittleEndian.PutUint64(b, uint64(p.addr))
		binary.LittleEndian.PutUint32(b[8:], uint32(p.n))
		binary.LittleEndian.PutUint16(b[12:], flags)
		binary.LittleEndian.PutUint16(b[14:], uint16(slot+i+1))
	}
	virtio.Store16(rings, ringAvail+4+2*int(g.idx[q]%fuzzQueue), uint16(slot))
	g.idx[q]++
	virtio.Publish(rings[ringAvail:ringUsed], 0, g.idx[q])
	g.f.Notify(uint32(q))
}

func (g *fuzzGuest) usedIndex(q int) uint16 { return virtio.Load16(g.rings, q*ringsSize+ringUsed+2) }

// check waits until the device has done what the model says, and pauses it to see
// that it has done nothing else.
func (g *fuzzGuest) check(t *testing.T, m *model) {
	m.settle()
	reached := func() bool {
		if m.broken {
			return g.f.Status()&virtio.StatusNeedsReset != 0
		}
		for q := range m.used {
			if int(g.usedIndex(q)) != len(m.used[q]) {
				return false
			}
		}
		for id, s := range g.dev.Stats() {
			if s.Received-g.stats[id].Received != uint64(m.ports[id].received) || s.Written-g.stats[id].Written != uint64(len(m.ports[id].out)) {
				return false
			}
		}
		return true
	}
	end := time.Now().Add(fuzzPatience)
	for n := 0; !reached(); n++ {
		if runtime.Gosched(); n > 1000 {
			time.Sleep(20 * time.Microsecond)
		}
		if time.Now().After(end) {
			require.Fail(t, "the device does not get there", "%+v\n%+v\nused %v", m.ports, g.dev.Stats(), m.used)
		}
	}
	require.NoError(t, g.f.Pause(patient(t)))
	defer g.f.Resume()
	if m.broken {
		return
	}
	require.True(t, reached(), "it has gone on")
	require.Zero(t, g.f.Status()&virtio.StatusNeedsReset)
	for q, lens := range m.used {
		for i, n := range lens {
			if i < len(lens)-fuzzQueue {
				continue
			}
			e := g.rings[q*ringsSize+ringUsed+4+8*(i%fuzzQueue):]
			require.Equal(t, n, binary.LittleEndian.Uint32(e[4:]), "queue %d, request %d", q, i)
		}
	}
	if !bytes.Equal(m.ram, g.ram) {
		require.Equal(t, m.ram, g.ram, "guest memory")
	}
	for id, out := range g.outs {
		require.True(t, bytes.Equal(m.ports[id].out, []byte(out.String())), "port %d's output", id)
	}
}

// fuzzReader takes an input apart; after its end everything is 0.
type fuzzReader struct{ rest []byte }

func (r *fuzzReader) byte() byte {
	if len(r.rest) == 0 {
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *fuzzReader) chain() []piece {
	c := make([]piece, 1+r.byte()%fuzzChain)
	for i := range c {
		c[i].addr = int(r.byte())<<8 | int(r.byte())
		c[i].n = int(r.byte())
		if flags := r.byte(); flags&1 != 0 {
			c[i].write = true
		} else if flags&2 != 0 {
			c[i].n *= 256 // longer than a buffer, in a chain of several
		}
	}
	return c
}

// Operations of an input.
const (
	opControl = iota // a message of the driver: 8 bytes
	opRaw            // a chain on any queue: queue, chain
	opFeed           // port, n
	opResize         // columns, rows
	opReset          // features
	opEmergency
	opRoom // buffers for messages and input, as a driver gives them
	numOps
)

// FuzzDevice: arbitrary chains in all queues, messages, input, sizes and resets have
// the effect that the model says on guest memory, used rings and outputs, and no
// other; nothing panics, hangs, or stays behind.
func FuzzDevice(f *testing.F) {
	ready := []byte{opControl, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0}
	say := func(id, event, value byte) []byte { return []byte{opControl, id, 0, 0, 0, event, 0, value, 0} }
	f.Add(slices.Concat([]byte{3, opRoom, 0}, ready, []byte{opRoom, 0}, say(0, 3, 1), say(1, 3, 1), say(2, 3, 1), []byte{opRoom, 0, opRoom, 0},
		say(1, 6, 1), []byte{opFeed, 1, 100, opResize, 80, 25, opRoom, 0}, say(1, 6, 0), []byte{opFeed, 1, 9}, say(1, 6, 1)))
	f.Add([]byte{1, opFeed, 0, 10, opRaw, 0, 0, 0x10, 0, 20, 1, opRaw, 1, 2, 0, 0, 200, 2, 1, 1, 200, 2, 9, 9, 200, 2, opEmergency, 'x'})
	f.Add(slices.Concat([]byte{3}, ready, []byte{opRaw, 2, 1, 0x20, 0, 3, 1, 0x30, 0, 5, 1, opRaw, 2, 0, 0x20, 0, 7, 1, opReset, 1, opReset, 3}, ready))
	f.Add([]byte{3, opRaw, 3, 2, 0, 0, 3, 0, 1, 0, 0, 0, 2, 0, 5, 0, opRaw, 7, 0, 0xff, 0xff, 2, 0})
	f.Add([]byte{3, opRaw, 5, 3, 0, 0, 255, 2, 0, 0, 255, 2, 0, 0, 255, 2, 0, 0, 255, 2, opRaw, 5, 1, 0, 0, 1, 1, 0, 0, 1, 0})
	f.Add(slices.Concat([]byte{2}, say(2, 6, 1), say(9, 6, 1), say(1, 1, 1), say(1, 2, 1), say(0, 0, 0), []byte{opFeed, 2, 255, opRaw, 6, 1, 0, 0, 0, 1, 5, 5, 200, 1, opRaw, 6, 0, 1, 0, 99, 1}))
	// One after the other: the ring is full across its end, so that the next Read has room
	// for a byte, also when the guest has taken everything.
	for _, n := range []int{8, 17, 1} {
		f.Add(append([]byte{0}, bytes.Repeat([]byte{opFeed, 0, 255}, n)...))
	}
	g := newFuzzGuest(f)
	var growth virtiotest.Growth
	f.Fuzz(func(t *testing.T, input []byte) {
		growth.Check(t)
		g.run(t, input)
	})
}

// run carries out an input.
func (g *fuzzGuest) run(t *testing.T, input []byte) {
	for i := range g.ram {
		g.ram[i] = byte(i>>4) ^ byte(i)
	}
	g.begin()
	r := &fuzzReader{rest: input}
	features := uint64(r.byte()) & 7
	m := &model{ram: slices.Clone(g.ram)}
	restart := func() {
		g.start(t, features)
		m.reset(features&console.FeatureMultiport != 0)
	}
	restart()
	for range 24 {
		if len(r.rest) == 0 {
			break
		}
		switch r.byte() % numOps {
		case opControl:
			b := make([]byte, 8)
			for i := range b {
				b[i] = r.byte()
			}
			copy(g.ram[0x8000:], b)
			copy(m.ram[0x8000:], b)
			g.try(m, controlOut, []piece{{0x8000, 8, false}})
		case opRaw:
			g.try(m, int(r.byte()%fuzzQueues), r.chain())
		case opFeed:
			g.feed(m, int(r.byte()%fuzzPorts), int(r.byte()))
		case opResize:
			cols, rows := uint16(r.byte()), uint16(r.byte())
			if cols != m.cols || rows != m.rows {
				m.cols, m.rows, m.ports[0].size = cols, rows, true
			}
			g.dev.Resize(int(cols), int(rows))
		case opReset:
			features = uint64(r.byte()) & 7
			restart()
		case opEmergency:
			b := r.byte()
			g.f.WriteConfig(8, []byte{b, 1, 2, 3})
			m.ports[0].out = append(m.ports[0].out, b)
		case opRoom:
			g.try(m, controlIn, []piece{{0x9000, 64, true}})
			for id := range fuzzPorts {
				rx, _ := queues(id)
				g.try(m, rx, []piece{{0xa000 + 0x1000*id, 50, true}, {0xd000 + 0x1000*id, 50, true}})
			}
		}
		g.check(t, m)
		if m.broken {
			// What other queues have done before that is not known.
			copy(m.ram, g.ram)
			g.rest(m)
			restart()
		}
	}
	// What the guest has not taken would be there in the next input.
	features = console.FeatureMultiport
	restart()
	for id := range uint32(fuzzPorts) {
		b := message(id, console.EventPortOpen, 1)
		copy(g.ram[0x8000:], b)
		copy(m.ram[0x8000:], b)
		g.try(m, controlOut, []piece{{0x8000, 8, false}})
		g.check(t, m)
		rx, _ := queues(int(id))
		g.try(m, rx, []piece{{0, 0x2000, true}}) // 24 operations feed less
		g.check(t, m)
	}
}

// begin forgets what came out in inputs before.
func (g *fuzzGuest) begin() {
	g.stats = g.dev.Stats()
	for _, out := range g.outs {
		out.mu.Lock()
		out.buf.Reset()
		out.mu.Unlock()
	}
	g.dev.Resize(0, 0)
}

// try submits a chain, unless the queue has no room for it.
func (g *fuzzGuest) try(m *model, q int, chain []piece) {
	if len(m.waiting[q]) < fuzzQueue/fuzzChain {
		m.waiting[q] = append(m.waiting[q], chain)
		g.submit(q, chain)
		m.settle()
	}
}

// feed gives a port n bytes of input, fewer where the device's buffer ends, so that
// one Read takes them all.
func (g *fuzzGuest) feed(m *model, id, n int) {
	size := console.InBuffer
	if id == 0 {
		size = console.ConsoleInBuffer
	}
	n = min(n, size-g.total[id]%size, size-1-len(m.ports[id].in))
	if n == 0 {
		return
	}
	g.total[id] += n
	b := make([]byte, n)
	for i := range b {
		g.fed++
		b[i] = g.fed
	}
	g.ins[id].feed(b)
	m.ports[id].in = append(m.ports[id].in, b...)
}

// rest lets the model know what a device has done whose queue was broken meanwhile.
func (g *fuzzGuest) rest(m *model) {
	for id, s := range g.dev.Stats() {
		p := &m.ports[id]
		n := int(s.Received-g.stats[id].Received) - p.received
		p.in = p.in[n:]
		p.received += n
	}
}
