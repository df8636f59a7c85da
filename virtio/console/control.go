package console

import (
	"encoding/binary"

	"github.com/vole-vmm/vole/virtio"
)

// Events of control messages (VIRTIO 1.2, 5.3.6.2).
const (
	EventDeviceReady = 0 // VIRTIO_CONSOLE_DEVICE_READY, from the driver
	EventPortAdd     = 1 // VIRTIO_CONSOLE_DEVICE_ADD, to the driver
	EventPortRemove  = 2 // VIRTIO_CONSOLE_DEVICE_REMOVE, never sent
	EventPortReady   = 3 // VIRTIO_CONSOLE_PORT_READY, from the driver
	EventConsolePort = 4 // VIRTIO_CONSOLE_CONSOLE_PORT, to the driver
	EventResize      = 5 // VIRTIO_CONSOLE_RESIZE, to the driver
	EventPortOpen    = 6 // VIRTIO_CONSOLE_PORT_OPEN, both ways
	EventPortName    = 7 // VIRTIO_CONSOLE_PORT_NAME, to the driver
)

const (
	controlSize = 8 // id, event, value
	resizeSize  = 4 // columns, rows
)

// dialog is what the two sides have said of a port by control messages. It keeps
// what is still to be said as what differs, not as a queue of messages: so it is
// bounded, and a guest that takes no messages holds up nothing. Everything in it is
// guarded by the device's mu.
type dialog struct {
	// What the port is, whatever the driver knows.
	cols, rows uint16
	hostOpen   bool

	// Of the activation.
	added     bool // the driver was told that the port exists
	ready     bool // the driver said that it has it
	guestOpen bool // the driver said that it has opened it
	console   bool // it is still to be told: that it is a console,
	size      bool // its size,
	name      bool // its name,
	reopened  bool // that the host has closed the port since it was told that it is open
	toldOpen  bool // the driver believes that the host has opened it
}

// reset forgets what was said.
func (g *dialog) reset() {
	*g = dialog{cols: g.cols, rows: g.rows, hostOpen: g.hostOpen}
}

// next writes what is to be said next to b, which has room for the longest message,
// marks it as said and returns its length; 0 if there is nothing.
func (g *dialog) next(id int, name string, b []byte) int {
	switch {
	case !g.added:
		g.added = true
		return put(b, id, EventPortAdd, 1)
	case !g.ready:
		return 0
	case g.console:
		g.console = false
		return put(b, id, EventConsolePort, 1)
	case g.size:
		g.size = false
		n := put(b, id, EventResize, 0)
		binary.LittleEndian.PutUint16(b[n:], g.cols)
		binary.LittleEndian.PutUint16(b[n+2:], g.rows)
		return n + resizeSize
	case g.name:
		g.name = false
		n := put(b, id, EventPortName, 1)
		return n + copy(b[n:], name)
	case g.toldOpen && (g.reopened || !g.hostOpen):
		g.toldOpen, g.reopened = false, false
		return put(b, id, EventPortOpen, 0)
	case !g.toldOpen && g.hostOpen:
		g.toldOpen, g.reopened = true, false
		return put(b, id, EventPortOpen, 1)
	}
	return 0
}

// put writes a message without more behind it.
func put(b []byte, id int, event, value uint16) int {
	binary.LittleEndian.PutUint32(b, uint32(id))
	binary.LittleEndian.PutUint16(b[4:], event)
	binary.LittleEndian.PutUint16(b[6:], value)
	return controlSize
}

// message writes the next message of any port to b, as next does; with peek
// nothing is marked.
func (d *Device) message(b []byte, peek bool) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ready {
		return 0
	}
	for _, adding := range [...]bool{true, false} { // all ports first
		for id, p := range d.ports {
			if p.conf == nil || p.said.added == adding {
				continue
			}
			g := p.said
			if n := g.next(id, p.conf.Name, b); n > 0 {
				if !peek {
					p.said = g
				}
				return n
			}
		}
	}
	return 0
}

// setHost says whether the host's side of a port is open.
func (d *Device) setHost(p *port, open bool) {
	d.mu.Lock()
	g := &p.said
	g.reopened = g.reopened || g.hostOpen && !open
	g.hostOpen = open
	d.mu.Unlock()
	token(d.speak)
}

// tell serves the control receive queue: it sends what the driver does not know
// yet.
func (d *Device) tell(q *virtio.Queue) {
	c := virtio.NewChain(q)
	b := make([]byte, controlSize+MaxName)
	for {
		switch d.tellOne(q, c, b) {
		case given:
			q.Signal()
		case noBuffer:
			if !q.Wait() {
				return
			}
		case nothing:
			select {
			case <-d.speak:
			case <-q.Stopped():
				return
			}
		}
	}
}

func (d *Device) tellOne(q *virtio.Queue, c *virtio.Chain, b []byte) gift {
	if d.message(b, true) == 0 {
		return nothing
	}
	if !q.Pop(c) {
		return noBuffer
	}
	if c.WritableLen() < controlSize {
		q.Push(c) // no message fits
		return given
	}
	switch n := d.message(b, false); {
	case n == 0: // it has become untrue meanwhile
		q.Unpop(1)
	case uint64(n) > c.WritableLen():
		// Only a name or a size is longer than the rest, and half of one is wrong.
		d.unsaid.Add(1)
		q.Unpop(1)
	default:
		c.Write(b[:n])
		q.Push(c)
	}
	return given
}

// listen serves the control transmit queue.
func (d *Device) listen(q *virtio.Queue) {
	c := virtio.NewChain(q)
	b := make([]byte, controlSize)
	for q.Wait() {
		for q.Pop(c) {
			// Carried out before the driver gets its buffer back: it may rely on
			// that a port that it has closed gets nothing more, and the machine on
			// that in a pause the port's owner has heard all.
			if p, open := d.hear(b[:c.Read(b)]); p != nil {
				p.opened(open)
			}
			q.Push(c)
			q.Signal()
		}
	}
}

// hear carries out a message of the driver. If that has opened or closed a port,
// it returns the port and which. What is wrong or makes no sense is counted.
func (d *Device) hear(b []byte) (changed *port, open bool) {
	if len(b) < controlSize {
		d.ignored.Add(1)
		return nil, false
	}
	id := binary.LittleEndian.Uint32(b)
	event := binary.LittleEndian.Uint16(b[4:])
	value := binary.LittleEndian.Uint16(b[6:]) != 0
	if event == EventDeviceReady { // for no port
		d.mu.Lock()
		d.ready = value
		d.mu.Unlock()
		token(d.speak)
		return nil, false
	}
	if uint64(id) >= uint64(len(d.ports)) || d.ports[id].conf == nil {
		d.ignored.Add(1)
		return nil, false
	}
	p := d.ports[id]
	switch event {
	case EventPortReady:
		d.mu.Lock()
		p.said.setReady(value, p.conf)
		d.mu.Unlock()
		token(d.speak)
	case EventPortOpen:
		d.mu.Lock()
		was := p.said.guestOpen
		p.said.guestOpen = value
		d.mu.Unlock()
		p.in.setOpen(value)
		if was != value {
			return p, value
		}
	default:
		d.ignored.Add(1)
	}
	return nil, false
}

// setReady takes the driver's word that it has the port, or that it could not make
// it. What a ready port is to be told is told once.
func (g *dialog) setReady(ready bool, conf *Port) {
	if ready && !g.ready {
		g.console = conf.Console
		g.size = conf.Console && g.cols|g.rows != 0
		g.name = conf.Name != ""
		g.toldOpen, g.reopened = false, false
	}
	g.ready = ready
}
