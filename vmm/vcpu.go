package vmm

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/kvm"
)

// vcpu is one virtual CPU and the thread that runs it.
type vcpu struct {
	m       *Machine
	id      int
	kvm     *kvm.VCPU
	tid     atomic.Int64
	hits    [exitKinds]atomic.Uint64 // written by its own thread alone
	manners manners                  // of its own thread alone
	answer  atomic.Uint64            // to an inquiry: see dead.go
	haltRIP atomic.Uint64            // where it was found lifeless, 0 if it never started
}

// exitKind is a class of exits to user space, as the report counts them.
type exitKind int

const (
	exitPortIn exitKind = iota
	exitPortOut
	exitMMIORead
	exitMMIOWrite
	exitInterrupted
	exitOther
	exitKinds
)

var exitKindNames = [exitKinds]string{"port-in", "port-out", "mmio-read", "mmio-write", "interrupted", "other"}

func (c *vcpu) count(k exitKind) {
	h := &c.hits[k]
	h.Store(h.Load() + 1)
}

// kick makes the vCPU leave the guest, or not enter it. It is called under
// Machine.mu.
func (c *vcpu) kick() { kickThread(c.kvm, int(c.tid.Load())) }

// kickThread makes a vCPU leave the guest that the thread tid, if not 0, runs
// it in, and not enter it again.
func kickThread(c *kvm.VCPU, tid int) {
	c.SetImmediateExit(true)
	if tid > 0 {
		// A thread that has ended meanwhile does not mind.
		_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
	}
}

// loop runs the vCPU until the machine ends. It is a goroutine of its own.
func (c *vcpu) loop() {
	// Never unlocked: the thread ends with the goroutine.
	runtime.LockOSThread()
	defer c.m.gone()
	c.tid.Store(int64(unix.Gettid()))
	c.m.times.mark(MarkEntry)
	for {
		if c.m.gate.Load() != gateRun && !c.m.hold(c) {
			return
		}
		reason, err := c.kvm.Run()
		if err != nil {
			c.m.end(Exit{Reason: HostError, Err: fmt.Errorf("vmm: running vCPU %d: %w", c.id, err)})
			continue
		}
		c.handle(reason)
	}
}

// settle completes the access that the last exit was for, so that the vCPU's
// state is that between two instructions. KVM does it on the next entry; with
// immediate_exit it does only that.
func (c *vcpu) settle() {
	c.kvm.SetImmediateExit(true)
	// One instruction makes few exits: an access that is split in pages and
	// in pieces of 8 bytes.
	for range 16 {
		reason, err := c.kvm.Run()
		if err != nil || reason == kvm.ReasonInterrupted {
			break
		}
		c.handle(reason)
	}
	c.catchUp()
	// Only a guest with a kvm-clock can be told; it is to spare it soft
	// lockup reports.
	_ = c.kvm.KVMClockCtrl()
}

// handle serves one exit. It runs between any two instructions of the guest
// that leave it: no allocation, and no lock but the device's own.
func (c *vcpu) handle(reason kvm.Reason) {
	c.catchUp()
	switch reason {
	case kvm.ReasonIO:
		c.port()
	case kvm.ReasonMMIO:
		addr, write, data := c.kvm.MMIO()
		if write {
			c.count(exitMMIOWrite)
			c.m.mmio.Write(addr, data)
		} else {
			c.count(exitMMIORead)
			c.m.mmio.Read(addr, data)
		}
	case kvm.ReasonInterrupted, kvm.ReasonAgain:
		c.count(exitInterrupted)
		c.reply()
	default:
		c.count(exitOther)
		c.m.end(c.fatal(reason))
	}
}

func (c *vcpu) port() {
	port, out, size, count, data := c.kvm.IO()
	if out {
		c.count(exitPortOut)
	} else {
		c.count(exitPortIn)
	}
	if port >= com1Port && port < com1Port+com1Size {
		c.usesSerial(port-com1Port, out, size*count)
	}
	for i := range count {
		p := data[i*size : (i+1)*size]
		if out {
			c.m.ports.Write(uint64(port), p)
		} else {
			c.m.ports.Read(uint64(port), p)
		}
	}
}
