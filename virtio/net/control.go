package net

import (
	"encoding/binary"
	"fmt"

	"github.com/vole-vmm/vole/virtio"
)

// Classes and commands of the control queue (5.1.6.5).
const (
	controlRx             = 0
	controlRxPromiscuous  = 0
	controlRxAllMulticast = 1

	controlMAC      = 1
	controlMACTable = 0
	controlMACSet   = 1

	controlAnnounce    = 3
	controlAnnounceAck = 0

	controlMQ      = 4
	controlMQPairs = 0

	controlOK  = 0
	controlErr = 1
)

// control serves the control queue.
type control struct {
	d        *Device
	q        *virtio.Queue
	c        *virtio.Chain
	features uint64
	fail     func(error)
}

func (k *control) run() {
	for {
		for k.q.Pop(k.c) {
			if k.c.WritableLen() == 0 {
				k.fail(fmt.Errorf("net: %w: a command without a byte for its end", virtio.ErrBroken))
			} else {
				k.c.Write([]byte{k.command()})
			}
			k.q.Push(k.c)
			k.q.Signal()
		}
		if !k.q.Wait() {
			return
		}
	}
}

// command carries out what the chain says. Whatever is not as it should be, too
// short, too long or not negotiated, changes nothing.
func (k *control) command() uint8 {
	var op [2]byte
	if k.c.Read(op[:]) < len(op) {
		return controlErr
	}
	ok := false
	switch {
	case op == [2]byte{controlRx, controlRxPromiscuous} && k.features&FeatureCtrlRx != 0:
		ok = k.mode(func(s *State, on bool) { s.Promiscuous = on })
	case op == [2]byte{controlRx, controlRxAllMulticast} && k.features&FeatureCtrlRx != 0:
		ok = k.mode(func(s *State, on bool) { s.AllMulticast = on })
	case op == [2]byte{controlMAC, controlMACTable} && k.features&FeatureCtrlRx != 0:
		ok = k.table()
	case op == [2]byte{controlMAC, controlMACSet} && k.features&FeatureCtrlMACAddr != 0:
		ok = k.setMAC()
	case op == [2]byte{controlAnnounce, controlAnnounceAck} && k.features&FeatureGuestAnnounce != 0:
		k.announced()
		ok = true
	case op == [2]byte{controlMQ, controlMQPairs} && k.features&FeatureMQ != 0:
		ok = k.pairs()
	}
	if ok {
		return controlOK
	}
	return controlErr
}

// exactly reads all that is left of the command and reports whether it is as long
// as p.
func (k *control) exactly(p []byte) bool {
	return k.c.ReadableLen() == uint64(len(p)) && k.c.Read(p) == len(p)
}

// register changes registers and the filter with them.
func (k *control) register(change func(s *State)) {
	k.d.mu.Lock()
	defer k.d.mu.Unlock()
	change(&k.d.state)
	k.d.setFilter()
}

// mode is the commands with one byte that is on or off (5.1.6.5.1).
func (k *control) mode(set func(s *State, on bool)) bool {
	var b [1]byte
	if !k.exactly(b[:]) || b[0] > 1 {
		return false
	}
	k.register(func(s *State) { set(s, b[0] == 1) })
	return true
}

// table is VIRTIO_NET_CTRL_MAC_TABLE_SET (5.1.6.5.2).
func (k *control) table() bool {
	unicast, manyUnicast, ok := k.addresses()
	if !ok {
		return false
	}
	multicast, manyMulticast, ok := k.addresses()
	if !ok || k.c.ReadableLen() != 0 {
		return false
	}
	k.register(func(s *State) {
		s.Unicast, s.UnicastAll = unicast, manyUnicast
		s.Multicast, s.MulticastAll = multicast, manyMulticast
	})
	return true
}

// addresses reads one of the two parts of a table. More than maxFilter are many:
// these are passed over.
func (k *control) addresses() (list [][6]byte, many, ok bool) {
	var count [4]byte
	if k.c.Read(count[:]) < len(count) {
		return nil, false, false
	}
	n := uint64(binary.LittleEndian.Uint32(count[:]))
	if n > maxTable || n*6 > k.c.ReadableLen() {
		return nil, false, false
	}
	if n > maxFilter {
		k.skip(n * 6)
		return nil, true, true
	}
	list = make([][6]byte, n)
	for i := range list {
		k.c.Read(list[i][:])
	}
	return list, false, true
}

// skip passes over n bytes of the command.
func (k *control) skip(n uint64) {
	var b [4096]byte
	for n > 0 {
		m := k.c.Read(b[:min(n, uint64(len(b)))])
		n -= uint64(m)
	}
}

// setMAC is VIRTIO_NET_CTRL_MAC_ADDR_SET: the address counts for the filter, and is
// seen in the configuration space (5.1.6.5.2.2).
func (k *control) setMAC() bool {
	var mac [6]byte
	if !k.exactly(mac[:]) || checkMAC(mac[:]) != nil {
		return false
	}
	k.register(func(s *State) { s.MAC = mac })
	if k.features&FeatureMAC != 0 {
		k.d.Update(func(b []byte) { copy(b[configMAC:], mac[:]) })
	}
	return true
}

// announced is VIRTIO_NET_CTRL_ANNOUNCE_ACK (5.1.6.5.4).
func (k *control) announced() {
	k.d.mu.Lock()
	defer k.d.mu.Unlock()
	k.d.link.acknowledge()
	status := k.d.link.status()
	k.d.Update(func(b []byte) { putStatus(b, status) })
}

// pairs is VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET (5.1.6.5.6): when the command is used,
// queues that are not in use any more get no frame.
func (k *control) pairs() bool {
	var b [2]byte
	if !k.exactly(b[:]) {
		return false
	}
	n := int(binary.LittleEndian.Uint16(b[:]))
	// Only this goroutine and Reset, which joins it, change the queues.
	queues := k.d.queues
	if n < 1 || n > len(queues) {
		return false
	}
	for _, p := range queues[:n] {
		if p.rx == nil || p.tx == nil {
			return false // frames would come to nowhere
		}
	}
	was := k.d.state.Pairs
	use(queues, min(n, was))
	if err := k.d.backend.SetPairs(n); err != nil {
		use(queues, was)
		k.d.warn("pairs of queues", err)
		return false
	}
	use(queues, n)
	k.register(func(s *State) { s.Pairs = n })
	return true
}

// use opens the gates of the first n pairs and shuts the others.
func use(queues []*pairQueues, n int) {
	for i, p := range queues {
		p.rxGate.set(i < n)
		p.txGate.set(i < n)
		if p.rx != nil {
			p.rx.Wake()
		}
	}
}

// warn logs that the backend has failed.
func (d *Device) warn(what string, err error) {
	if held, ok := d.muffled.Pass(d.clock.Now()); ok {
		d.log.Warn("net: the backend has failed", "device", d.opts.Name, "what", what, "error", err, "unreported", held)
	}
}
