package vmm

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/vole-vmm/vole/kvm"
)

// KVM can collect writes that need no answer, without an exit to user space. Two
// kinds are worth it:
//
// A kernel reads a register of PCI configuration space by two port accesses: it
// writes the address to CF8 and reads the data at CFC. With the first one
// collected, probing the bus takes half the exits.
//
// A driver of a serial port looks whether there is room, writes a byte or a FIFO's
// worth of them, and looks again, which is the exit that brings the bytes. So the
// bytes themselves need none. Only a guest that does so, and prints much, is served
// in that way: another's byte is on its way as soon as it is written.

const (
	// collectAfter is how often a vCPU looks for room and sends before KVM
	// collects what is sent.
	collectAfter = 64
	// serialFIFO is how many bytes a driver may send after one look (16550A).
	serialFIFO = 16
	// glanceMin and glanceMax are how often one looks after bytes that wait for
	// an exit: at first, and when the guest has left the port alone for long.
	glanceMin = 5 * time.Millisecond
	glanceMax = time.Second
	// collectPatience is how many glances in a row may find bytes that no exit
	// has brought. Such a guest waits for the interrupt that follows its byte,
	// and is better served byte by byte.
	collectPatience = 16
)

// collector is what the machine knows of the writes that KVM collects.
type collector struct {
	on      atomic.Bool   // KVM collects writes: see catchUp
	handled atomic.Uint64 // bytes of the console carried out

	serial  atomic.Bool   // the console's bytes are among them
	tried   sync.Once     // they have been asked for
	touched atomic.Bool   // the guest has used the port since the last glance
	asleep  atomic.Bool   // glances are rare
	wake    chan struct{} // capacity 1: glance often

	// Of supervise alone:
	period time.Duration
	seen   uint64 // handled at the last glance
	stuck  int    // glances in a row that found bytes waiting
}

// coalescePCI lets KVM collect the writes to the address register, where it can.
func (m *Machine) coalescePCI() {
	err := m.vm.RegisterCoalesced(kvm.CoalescedZone{Addr: pciPorts, Size: pciAddressSize, PIO: true})
	if err != nil {
		m.log.Debug("KVM does not collect writes to the PCI address register", "error", err)
		return
	}
	m.collector.on.Store(true)
}

// serialZone is the console's transmitter holding register.
var serialZone = kvm.CoalescedZone{Addr: com1Port, Size: 1, PIO: true}

// coalesceSerial lets KVM collect what the guest sends to its console, where it
// can.
func (m *Machine) coalesceSerial() {
	if err := m.vm.RegisterCoalesced(serialZone); err != nil {
		m.log.Debug("KVM does not collect the console's bytes", "error", err)
		return
	}
	m.collector.on.Store(true)
	m.collector.serial.Store(true)
	m.collector.rouse()
}

// rouse makes supervise glance often.
func (k *collector) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// catchUp carries out the writes that KVM has collected. It comes before
// anything that an exit asks for. The vCPU that brings the console's bytes waits
// here while their reader is slow, or at its next use of the port.
func (c *vcpu) catchUp() {
	k := &c.m.collector
	if !k.on.Load() {
		return
	}
	before := k.handled.Load()
	if c.kvm.DrainCoalesced(c.m.collected) > 0 && k.handled.Load() != before {
		c.m.serial.WaitRoom()
	}
}

// collected carries out one of them. It does not wait: the ring is locked.
func (m *Machine) collected(addr uint64, data []byte, pio bool) {
	switch {
	case !pio:
	case addr == com1Port && len(data) == 1:
		m.collector.handled.Add(1)
		m.serial.Send(data[0])
	default:
		m.ports.Write(addr, data)
	}
}

// usesSerial notes an exit for the console's port, before it is served.
func (c *vcpu) usesSerial(reg uint16, out bool, size int) {
	k := &c.m.collector
	if !k.serial.Load() {
		if c.manners.polite(reg, out, size) {
			k.tried.Do(c.m.coalesceSerial)
		}
		return
	}
	c.m.serial.WaitRoom()
	if !k.touched.Load() {
		k.touched.Store(true)
		if k.asleep.Load() {
			k.rouse()
		}
	}
}

// manners is how a vCPU uses the console's port.
type manners struct {
	looks int // looks for room that bytes followed
	sent  int // bytes since the last look
}

// polite takes an access and reports whether the driver is one that looks for room
// before it sends.
func (n *manners) polite(reg uint16, out bool, size int) bool {
	switch {
	case reg == com1Status && !out:
		n.sent = 0
	case reg == com1Data && out:
		if n.sent == 0 {
			n.looks++
		}
		if n.sent += size; n.sent > serialFIFO {
			n.looks = 0
		}
	}
	return n.looks >= collectAfter
}

// glance carries out what has waited since the last glance for an exit to bring
// it, and returns the time of the next one, 0 for none. A guest that uses the port
// carries its bytes along by itself: then there is nothing to do here. Nor while the
// console's reader is slow: the ring fills, and its guest waits.
func (m *Machine) glance() time.Duration {
	k := &m.collector
	if !k.serial.Load() {
		return 0
	}
	switch handled := k.handled.Load(); {
	case m.serial.Crowded():
	case handled != k.seen:
		k.seen, k.stuck = handled, 0
	case m.vcpus[0].kvm.DrainCoalesced(m.collected) == 0:
		k.stuck = 0
	default:
		k.seen = k.handled.Load()
		if k.stuck++; k.stuck >= collectPatience && m.leaveSerial() {
			return 0
		}
		k.touched.Store(true)
	}
	if k.touched.Swap(false) {
		k.period = glanceMin
	} else {
		k.period = min(2*k.period, glanceMax)
	}
	k.asleep.Store(k.period > glanceMin)
	return k.period
}

// leaveSerial gives the guest its exit for each byte back, and reports whether
// KVM agrees.
func (m *Machine) leaveSerial() bool {
	if err := m.vm.UnregisterCoalesced(serialZone); err != nil {
		m.log.Debug("KVM goes on to collect the console's bytes", "error", err)
		return false
	}
	m.log.Debug("the guest waits for the console's interrupts: its bytes are not collected any more")
	m.collector.serial.Store(false)
	m.vcpus[0].kvm.DrainCoalesced(m.collected) // what came before the zone was gone
	return true
}
