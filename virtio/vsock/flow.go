package vsock

import (
	"math"
	"sync"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/virtio"
)

// key names a connection: one end is the guest's, the other the host's.
type key struct{ guestPort, hostPort uint32 }

// state is how far a connection has come.
type state int

const (
	greeting  state = iota // a Unix client that has not said yet where to
	opening                // the guest has asked; a Unix socket is being connected to
	requested              // the guest is being asked
	open
	ended // the guest has or will get a reset, or has sent one
)

// What a connection has to say besides data, each at most once.
type pending uint8

const (
	sendRequest   pending = 1 << iota
	sendResponse          // the guest's request is accepted
	sendShutdown          // what is in ownShut
	sendUpdate            // credit, for which any packet will do
	sendReply             // credit that the guest has asked for
	sendCreditAsk         // that the guest tell its credit
)

// host is the host's end of a connection. The methods are called with the
// connection's lock held and do not block.
type host interface {
	// deliver takes data from the guest, which it must not keep, and returns how
	// much of it: what is left goes to the connection's buffer.
	deliver(vec [][]byte, n int) int
	// buffered says that there now is something in the buffer.
	buffered()
	// wants reports whether there may be data for the guest.
	wants() bool
	// send sends at most n bytes, in one or a few packets, and reports whether
	// that went on for lack of the guest's buffers.
	send(r *rx, n int) (sent int, starved bool)
	// stalled is called in place of send when the guest has given no credit. It
	// reports whether there is data that waits for some.
	stalled() bool
	// changed says that the state or what the guest has shut is another.
	changed()
	// abandon closes the host's end at once.
	abandon()
}

// flow is a connection as the guest sees it.
//
// Locks are taken in this order: Device.rxLock, flow.mu, Device.mu or a poller's.
type flow struct {
	d    *Device
	key  key
	host host

	mu    sync.Mutex
	state state
	err   error // why it has ended, if the guest has not shut its side before
	// established says that it was open once.
	established bool
	pending     pending
	timer       *time.Timer
	done        bool // the host's end is closed
	counted     bool // it is in Device.flows

	// The guest's buffer (5.10.6.3): free running counts, and its size.
	sent, peerFwd, peerAlloc uint32
	asked                    bool // for credit, since there was some
	// The host's: what was received and taken out, and what the guest knows of
	// the latter.
	window               uint32
	received, fwd, toldF uint32
	buf                  buffer

	peerShut, ownShut uint32

	place link // guarded by Device.mu
}

// windowOf is the credit of a connection that is the nth of those that there are:
// 1024 of them buffer 88 MiB at most, and DefaultMaxConns 136 MiB, if nobody on the
// host reads.
func windowOf(n int) uint32 {
	switch {
	case n <= 128:
		return MaxWindow
	case n <= 1024:
		return 64 << 10
	}
	return 16 << 10
}

// newFlow makes a connection that counts, unless there are too many. make gives
// its host's end.
func (d *Device) newFlow(s state, k key, make func(*flow) host) (*flow, error) {
	f := &flow{d: d, key: k, state: s, counted: true, established: s == open}
	f.host = make(f)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errClosed
	}
	if len(d.flows) >= d.max {
		return nil, ErrTooMany
	}
	if s, ok := f.host.(*sock); ok && !s.server.take() {
		return nil, ErrTooMany
	}
	d.flows[f] = struct{}{}
	f.window = windowOf(len(d.flows))
	return f, nil
}

// enter puts f into the table, unless there is no driver.
func (f *flow) enter() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.enterLocked()
}

func (f *flow) enterLocked() error {
	d := f.d
	switch {
	case d.closed:
		return errClosed
	case !d.active:
		return ErrNoDriver
	}
	if _, used := d.table[f.key]; used {
		return errInUse
	}
	d.table[f.key] = f
	return nil
}

// call asks the guest for a connection to port, from a port of the host's that is
// free. f.mu is held.
func (f *flow) call(port uint32) error {
	d := f.d
	d.mu.Lock()
	defer d.mu.Unlock()
	f.key.guestPort = port
	for {
		f.key.hostPort = d.nextPort
		if d.nextPort++; d.nextPort == math.MaxUint32 {
			d.nextPort = firstPort
		}
		if _, used := d.table[f.key]; !used { // there are fewer connections than ports
			break
		}
	}
	if err := f.enterLocked(); err != nil {
		return err
	}
	d.stats.toGuest.Add(1)
	f.state = requested
	f.pending |= sendRequest
	d.line.add(f, false)
	d.waiting.Add(1)
	return nil
}

// firstPort is the first port that a connection to the guest comes from. What is
// below is left to listeners.
const firstPort = 1 << 30

// post has something sent. The caller calls Device.pump when it has given up the
// lock.
func (f *flow) post(p pending) {
	f.pending |= p
	f.d.enqueue(f, false)
}

// credit is how many bytes the guest has room for.
func (f *flow) credit() uint32 {
	flying := f.sent - f.peerFwd
	if flying > f.peerAlloc {
		return 0
	}
	return f.peerAlloc - flying
}

// receive takes a packet of the guest's. c has its data.
func (f *flow) receive(t *tx, h *header, c *virtio.Chain) {
	if f.state == ended {
		if h.op != opRST {
			f.d.refuse(h)
		}
		return
	}
	f.peerAlloc, f.peerFwd = h.bufAlloc, h.fwdCnt
	switch {
	case h.op == opRST:
		err := syscall.ECONNRESET
		if f.state != open {
			err = syscall.ECONNREFUSED
		}
		f.finish(err, false)
		return
	case f.state == requested && h.op == opResponse:
		f.state, f.established = open, true
		f.stopTimer()
		f.host.changed()
		return
	case f.state != open && h.op == opCreditUpdate:
		return
	case f.state != open:
		f.finish(syscall.ECONNREFUSED, true)
		return
	}
	switch h.op {
	case opRW:
		f.data(t, h, c)
	case opCreditUpdate:
	case opCreditRequest:
		f.post(sendReply)
	case opShutdown:
		f.shutByPeer(h.flags & shutBoth)
	default:
		f.finish(syscall.ECONNRESET, true)
	}
	if f.state == open && f.credit() > 0 {
		f.asked = false
		if f.host.wants() {
			f.d.enqueue(f, false)
		}
	}
}

// data takes the data of a packet.
func (f *flow) data(t *tx, h *header, c *virtio.Chain) {
	if uint64(h.len) > c.ReadableLen() || f.peerShut&shutSend != 0 || h.len > f.window-(f.received-f.fwd) {
		f.finish(syscall.ECONNRESET, true)
		return
	}
	n := int(h.len)
	f.received += h.len
	f.d.stats.receivedBytes.Add(uint64(h.len))
	switch {
	case n == 0:
	case f.ownShut&shutReceive != 0:
		f.consumed(n) // it was under way when the guest was told
	default:
		vec := t.payload(c, n)
		k := f.host.deliver(vec, n)
		f.consumed(k)
		// deliver may have found that nobody is there any more.
		if k < n && f.ownShut&shutReceive != 0 {
			f.consumed(n - k)
		} else if k < n {
			f.buf.append(&f.d.pool, vec, k)
			f.host.buffered()
		}
	}
}

// consumed gives credit back to the guest, and tells it when it is a quarter of
// the window: so it always has three.
func (f *flow) consumed(n int) {
	f.fwd += uint32(n)
	if f.state == open && f.ownShut&shutReceive == 0 && f.pending&sendUpdate == 0 && f.fwd-f.toldF >= f.window/4 {
		f.post(sendUpdate)
	}
}

// drop gives up what is in the buffer.
func (f *flow) drop() {
	n := f.buf.n
	f.buf.discard(&f.d.pool, n)
	f.consumed(n)
}

// shutByPeer takes the guest's SHUTDOWN. One that is shut both ways ends: what it
// has sent is in the host's hands.
func (f *flow) shutByPeer(flags uint32) {
	if f.peerShut|flags == f.peerShut {
		return
	}
	f.peerShut |= flags
	if f.peerShut == shutBoth {
		f.finish(nil, true)
		return
	}
	f.host.changed()
}

// shut tells the guest that the host will not send or receive any more.
func (f *flow) shut(flags uint32) {
	if f.state != open || f.ownShut|flags == f.ownShut {
		return
	}
	f.ownShut |= flags
	f.post(sendShutdown)
	if f.ownShut == shutBoth {
		f.within(f.d.times.linger, func() { f.finish(nil, true) })
	}
}

// within has then called with the lock held after d, unless stopTimer comes
// before.
func (f *flow) within(d time.Duration, then func()) {
	f.stopTimer()
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		f.mu.Lock()
		if f.timer == t {
			then()
		}
		f.mu.Unlock()
		f.d.pump(briefly)
	})
	f.timer = t
}

func (f *flow) stopTimer() {
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
}

// finish ends the connection as far as the guest is concerned, with a reset for
// it if rst. What it has sent before can still be read.
func (f *flow) finish(err error, rst bool) {
	if f.state == ended {
		return
	}
	if f.state == requested || f.state == opening {
		f.d.stats.refused.Add(1)
	}
	known := f.state != greeting && f.pending&sendRequest == 0
	f.state, f.err, f.pending = ended, err, 0
	f.stopTimer()
	d := f.d
	d.mu.Lock()
	if d.table[f.key] == f {
		delete(d.table, f.key)
	}
	d.leaveLine(f)
	d.mu.Unlock()
	if rst && known {
		d.addReset(reset{
			cid: HostCID, port: f.key.hostPort, guestPort: f.key.guestPort, typ: typeStream,
			bufAlloc: f.window, fwdCnt: f.fwd,
		})
	}
	f.host.changed()
	f.release()
}

// closed says that the host's end is closed.
func (f *flow) closed() {
	f.done = true
	f.drop()
	f.release()
}

// release forgets a connection that both ends are done with.
func (f *flow) release() {
	if f.state != ended || !f.done || !f.counted {
		return
	}
	f.counted = false
	if _, ok := f.host.(*sock); ok {
		unixConns.Add(-1)
	}
	d := f.d
	d.mu.Lock()
	delete(d.flows, f)
	d.mu.Unlock()
}

// quantum is how many bytes a connection sends in its turn.
const quantum = 64 << 10

// turn sends what the connection has to say. More means that there is more to
// send, starved that there are no buffers for it.
func (f *flow) turn(r *rx) (more, starved bool) {
	if f.state != requested && f.state != open {
		return false, false
	}
	for _, c := range [...]struct {
		p  pending
		op uint16
	}{{sendRequest, opRequest}, {sendResponse, opResponse}, {sendReply, opCreditUpdate}} {
		if f.pending&c.p != 0 {
			if !r.control(f, c.op, 0) {
				return true, true
			}
			f.pending &^= c.p
		}
	}
	if f.state == open && f.ownShut&shutSend == 0 && f.peerShut&shutReceive == 0 {
		left := quantum
		for i := 0; i < turnPackets && left > 0 && f.host.wants(); i++ {
			n := int(min(f.credit(), quantum))
			if n == 0 {
				break
			}
			sent, starved := f.host.send(r, min(n, left))
			if starved {
				return true, true
			}
			left -= sent
		}
		switch {
		case f.state != open || !f.host.wants():
		case f.credit() > 0:
			more = true
		case !f.asked && f.host.stalled():
			f.asked = true
			f.pending |= sendCreditAsk
		}
	}
	if f.pending&sendShutdown != 0 {
		if !r.control(f, opShutdown, f.ownShut) {
			return true, true
		}
		f.pending &^= sendShutdown
	}
	for _, c := range [...]struct {
		p  pending
		op uint16
	}{{sendCreditAsk, opCreditRequest}, {sendUpdate, opCreditUpdate}} {
		if f.pending&c.p != 0 {
			if !r.control(f, c.op, 0) {
				return true, true
			}
			f.pending &^= c.p
		}
	}
	return more, false
}
