package vsock

import (
	"fmt"
	"math"

	"github.com/vole-vmm/vole/virtio"
)

const (
	// batch is how many chains a socket's data is read into at a time.
	batch = 8
	// signalEvery is how many packets are sent before the driver is told.
	signalEvery = 8

	// turnPackets is how many packets a connection sends in its turn at most, however
	// small they are.
	turnPackets = 64

	// How many turns a call of pump takes. One that is not the rx queue's goroutine
	// has other things to do.
	briefly  = 16
	noBudget = math.MaxInt // of the queue's goroutine
)

// rx is the rx queue, the way to the guest, for the life of an activation. Who
// uses it holds Device.rxLock.
type rx struct {
	d      *Device
	q      *virtio.Queue
	fail   func(error)
	dead   bool // the driver's buffers are no good
	chains [batch]*virtio.Chain
	heads  [batch][]byte // where a chain's header goes
	rooms  [batch]int    // and how much data
	used   []*virtio.Chain
	iov    [][]byte // of capacity batch
	untold int      // packets since the last signal
	header [headerSize]byte
}

func newRX(d *Device, q *virtio.Queue, fail func(error)) *rx {
	r := &rx{d: d, q: q, fail: fail, iov: make([][]byte, 0, batch), used: make([]*virtio.Chain, 0, batch)}
	for i := range r.chains {
		r.chains[i] = virtio.NewChain(q)
	}
	return r
}

// pump sends what waits for the guest, unless somebody else is at it: they look
// again when they are done. It does not block, but for the queue's own goroutine:
// what woke that is not known to who is at it. It is called without locks.
func (d *Device) pump(budget int) {
	for d.waiting.Load() > 0 {
		if budget == noBudget {
			d.rxLock.Lock()
		} else if !d.rxLock.TryLock() {
			return
		}
		left := budget
		goOn := d.rx != nil && d.rx.run(&left)
		d.rxLock.Unlock()
		if !goOn {
			return
		}
		if budget != noBudget {
			budget = left
		}
	}
}

// run sends until nothing waits, and reports true then; false means that there
// are no buffers, or that the budget is used up and the queue's goroutine goes
// on.
func (r *rx) run(budget *int) bool {
	defer r.tell()
	for ; *budget > 0; *budget-- {
		reset, some, f := r.d.next(true)
		if f == nil && !some {
			return true
		}
		if some { // and then a connection: neither kind keeps the other waiting
			if !r.reset(&reset) {
				return false
			}
			_, _, f = r.d.next(false)
		}
		if f == nil {
			continue
		}
		f.mu.Lock()
		more, starved := f.turn(r)
		if more {
			r.d.enqueue(f, starved)
		}
		f.mu.Unlock()
		if starved {
			return false
		}
	}
	r.q.Wake()
	return false
}

// next looks at the first reset, if that may be, or takes the first connection in
// line. A connection is not put back: it may have ended meanwhile.
func (d *Device) next(resets bool) (r reset, some bool, f *flow) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if resets && d.resets.len() > 0 {
		return d.resets.peek(), true, nil
	}
	if f = d.line.first; f != nil {
		d.leaveLine(f)
	}
	return r, some, f
}

// reset sends the first reset.
func (r *rx) reset(x *reset) bool {
	h := header{
		srcCID: x.cid, srcPort: x.port, dstCID: uint64(r.d.cid), dstPort: x.guestPort,
		typ: x.typ, op: opRST, bufAlloc: x.bufAlloc, fwdCnt: x.fwdCnt,
	}
	c := r.chains[0]
	if !r.pop(c) {
		return false
	}
	h.encode(&r.header)
	c.Write(r.header[:])
	r.push(c)
	r.d.stats.resetsSent.Add(1)
	d := r.d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resets.pop()
	d.waiting.Add(-1)
	return true
}

// pop takes a chain that a packet fits into.
func (r *rx) pop(c *virtio.Chain) bool {
	if r.dead || !r.q.Pop(c) {
		return false
	}
	if c.WritableLen() >= headerSize {
		return true
	}
	r.dead = true
	r.fail(fmt.Errorf("vsock: %w: a buffer of %d bytes has no room for a packet", virtio.ErrBroken, c.WritableLen()))
	r.q.Push(c)
	r.q.Signal()
	return false
}

func (r *rx) push(c *virtio.Chain) {
	r.used = append(r.used[:0], c)
	r.pushUsed()
}

func (r *rx) pushUsed() {
	r.q.PushAll(r.used)
	r.d.stats.sentPackets.Add(uint64(len(r.used)))
	if r.untold += len(r.used); r.untold >= signalEvery {
		r.tell()
	}
}

func (r *rx) tell() {
	r.untold = 0
	r.q.Signal()
}

// encode makes the header of a packet of f's. What f owes in credit is told by
// it.
func (r *rx) encode(f *flow, op uint16, flags uint32, n int) {
	f.toldF = f.fwd
	f.pending &^= sendUpdate
	h := header{
		srcCID: HostCID, srcPort: f.key.hostPort, dstCID: uint64(r.d.cid), dstPort: f.key.guestPort,
		len: uint32(n), typ: typeStream, op: op, flags: flags, bufAlloc: f.window, fwdCnt: f.fwd,
	}
	h.encode(&r.header)
}

// control sends a packet without data.
func (r *rx) control(f *flow, op uint16, flags uint32) bool {
	c := r.chains[0]
	if !r.pop(c) {
		return false
	}
	r.encode(f, op, flags, 0)
	c.Write(r.header[:])
	r.push(c)
	return true
}

// copy sends bytes of p, as many as fit into one packet.
func (r *rx) copy(f *flow, p []byte) (n int, starved bool) {
	if !r.pop(r.chains[0]) {
		return 0, true
	}
	n = int(min(uint64(len(p)), r.space()))
	r.copied(f, p[:n])
	return n, false
}

// space is how much data the first chain has room for.
func (r *rx) space() uint64 { return r.chains[0].WritableLen() - headerSize }

// copied sends p, for which there is space, in the first chain. Where there is no
// space it is a packet of credit.
func (r *rx) copied(f *flow, p []byte) {
	op := opRW
	if len(p) == 0 {
		op = opCreditUpdate
	}
	c := r.chains[0]
	r.encode(f, op, 0, len(p))
	c.Write(r.header[:])
	c.Write(p)
	f.sent += uint32(len(p))
	r.d.stats.sentBytes.Add(uint64(len(p)))
	r.push(c)
}

// take pops up to most chains with room for n bytes of data in all, and puts the
// places of the data into r.iov, without those of the headers. It returns how
// many chains it has popped and how many bytes have room: 0 if the first is one
// for copied, which then is the only one.
func (r *rx) take(n, most int) (chains, room int) {
	r.iov = r.iov[:0]
	for chains < most && room < n && len(r.iov) < cap(r.iov) {
		c := r.chains[chains]
		if !r.pop(c) {
			break
		}
		chains++
		w := c.Writable()
		if len(w[0]) < headerSize || c.WritableLen() == headerSize {
			if chains > 1 {
				r.q.Unpop(1)
				chains--
			}
			break
		}
		r.heads[chains-1] = w[0][:headerSize]
		c.Wrote(headerSize)
		before := room
		for _, b := range c.Writable() {
			if room == n || len(r.iov) == cap(r.iov) {
				break
			}
			b = b[:min(len(b), n-room)]
			r.iov = append(r.iov, b)
			room += len(b)
		}
		r.rooms[chains-1] = room - before
	}
	return chains, room
}

// filled pushes the first of the chains taken, into which n bytes were read, and
// puts the others back.
func (r *rx) filled(f *flow, chains, n int) {
	r.used = r.used[:0]
	for i := range chains {
		if n == 0 {
			r.q.Unpop(chains - i)
			break
		}
		k := min(n, r.rooms[i])
		n -= k
		r.encode(f, opRW, 0, k)
		copy(r.heads[i], r.header[:])
		r.chains[i].Wrote(uint64(k))
		f.sent += uint32(k)
		r.d.stats.sentBytes.Add(uint64(k))
		r.used = append(r.used, r.chains[i])
	}
	clear(r.iov)
	if len(r.used) > 0 {
		r.pushUsed()
	}
}
