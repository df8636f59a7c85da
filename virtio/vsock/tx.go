package vsock

import (
	"errors"

	"github.com/vole-vmm/vole/virtio"
)

// pumpEvery is how many packets are taken from the guest before it is answered.
const pumpEvery = 32

// tx is the tx queue, the way from the guest, for the life of an activation. Its
// goroutine alone uses it.
type tx struct {
	d      *Device
	q      *virtio.Queue
	c      *virtio.Chain
	vec    [][]byte
	header [headerSize]byte
}

func newTX(d *Device, q *virtio.Queue) *tx {
	return &tx{d: d, q: q, c: virtio.NewChain(q), vec: make([][]byte, 0, q.Size())}
}

func (t *tx) run() {
	for ok := true; ok; ok = t.q.Wait() {
		for n := 1; t.q.Pop(t.c); n++ {
			t.packet(t.c)
			t.q.Push(t.c)
			if n%pumpEvery == 0 {
				t.q.Signal()
				t.d.pump(briefly)
			}
		}
		t.q.Signal()
		t.d.pump(briefly)
	}
}

// payload lists the places of the next n bytes of c, which has as many.
func (t *tx) payload(c *virtio.Chain, n int) [][]byte {
	clear(t.vec)
	t.vec = t.vec[:0]
	for _, b := range c.Readable() {
		if n == 0 {
			break
		}
		b = b[:min(len(b), n)]
		t.vec = append(t.vec, b)
		n -= len(b)
	}
	return t.vec
}

// packet takes a packet of the guest's.
func (t *tx) packet(c *virtio.Chain) {
	d := t.d
	if c.Read(t.header[:]) < headerSize {
		d.stats.badPackets.Add(1)
		return
	}
	h := decodeHeader(&t.header)
	if h.srcCID != uint64(d.cid) {
		d.stats.badPackets.Add(1)
		return
	}
	d.stats.receivedPackets.Add(1)
	if h.dstCID != HostCID || h.typ != typeStream {
		if h.op != opRST {
			d.refuse(&h)
		}
		return
	}
	d.mu.Lock()
	f := d.table[key{guestPort: h.srcPort, hostPort: h.dstPort}]
	d.mu.Unlock()
	switch {
	case f != nil:
		f.mu.Lock()
		f.receive(t, &h, c)
		f.mu.Unlock()
	case h.op == opRequest:
		if err := d.called(&h); err != nil {
			d.stats.refused.Add(1) // no more is known of it
			d.refuse(&h)
			if errors.Is(err, ErrTooMany) {
				d.warn("vsock: the guest has as many connections as it may", "connections", d.max)
			}
		}
	case h.op != opRST:
		d.refuse(&h)
	}
}

// refuse answers a packet with a reset.
func (d *Device) refuse(h *header) {
	d.addReset(reset{cid: h.dstCID, port: h.dstPort, guestPort: h.srcPort, typ: h.typ})
}

// called takes the guest's request for a connection.
func (d *Device) called(h *header) error {
	d.stats.fromGuest.Add(1)
	d.mu.Lock()
	l, server := d.listeners[h.dstPort], d.unix
	d.mu.Unlock()
	k := key{guestPort: h.srcPort, hostPort: h.dstPort}
	switch {
	case l != nil:
		f, err := d.newFlow(open, k, newConn)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.peerAlloc, f.peerFwd = h.bufAlloc, h.fwdCnt
		if err := f.enter(); err != nil {
			f.fail(err)
			return err
		}
		if !l.add(f.host.(*Conn)) {
			f.fail(errRefused)
			return errRefused
		}
		f.post(sendResponse)
		return nil
	case server != nil:
		f, err := d.newFlow(opening, k, newSock(server))
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.peerAlloc, f.peerFwd = h.bufAlloc, h.fwdCnt
		if err := f.enter(); err != nil {
			f.fail(err)
			return err
		}
		f.host.(*sock).dialing = true
		d.dials.Go(func() { server.connect(f) })
		return nil
	}
	return errRefused
}

// fail ends a connection that nobody has seen yet, and that counts nowhere.
func (f *flow) fail(err error) {
	f.state = greeting
	f.finish(err, false)
	f.host.abandon()
}
