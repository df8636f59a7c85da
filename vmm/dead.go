package vmm

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/kvm"
)

// A guest whose processors have all halted with their interrupts off is dead: only
// an NMI, an INIT or another processor could wake one, and nothing here sends
// them. A kernel's decompressor halts so when its payload is damaged, and says
// nothing on a serial port; so does what a user calls `halt`. KVM does not tell,
// and so a machine that has made no exit for a while has its vCPUs asked.

const (
	// stillness is how long a machine makes no exit before its vCPUs are asked.
	// Each time that they turn out to be alive doubles it, up to stillnessMax.
	stillness    = 2 * time.Second
	stillnessMax = time.Minute
	// answerTime is how long vCPUs have to answer. One that is dead waits in KVM
	// and answers at once.
	answerTime = 50 * time.Millisecond
)

var errDead = errors.New("every processor has halted with its interrupts off")

// deadError is errDead, and where they have: what a kernel's debug information makes
// lines of code of.
func (m *Machine) deadError() error {
	var at []string
	for _, c := range m.vcpus {
		if rip := c.haltRIP.Load(); rip != 0 {
			at = append(at, fmt.Sprintf("%#x", rip))
		}
	}
	if len(at) == 0 {
		return errDead
	}
	return fmt.Errorf("%w (rip %s)", errDead, strings.Join(at, ", "))
}

// Bits that say that a guest's rflags may be those of a guest of its own (Intel
// SDM volume 3, sections 2.3 and 2.5; AMD APM volume 2, section 3.1.7).
const (
	rflagsIF = 1 << 9
	cr4VMXE  = 1 << 13
	eferSVME = 1 << 12
)

// An answer is the inquiry's number and whether the vCPU is dead.
const (
	deadBit   = 1
	deadShift = 1
)

// vigil watches over a machine that stands still. It is supervise's alone.
type vigil struct {
	m      *Machine
	timer  timer
	period time.Duration
	exits  uint64 // at the last look
	asked  bool   // the answers are due
	found  int    // times in a row that they said dead
}

func (v *vigil) start() {
	v.period = v.m.stillness
	v.timer.set(v.period)
}

// look is called when the timer has fired. It reports whether the guest is dead.
func (v *vigil) look() bool {
	exits := v.m.exits()
	switch {
	case exits != v.exits:
		v.exits, v.asked, v.found, v.period = exits, false, 0, v.m.stillness
		v.timer.set(v.period)
		return false
	case v.asked && !v.m.dead():
		v.asked, v.found, v.period = false, 0, min(2*v.period, stillnessMax)
		v.timer.set(v.period)
		return false
	case v.asked:
		// Twice: one may have woken another before it halted itself.
		if v.found++; v.found == 2 {
			return true
		}
	}
	v.asked = true
	v.m.ask()
	v.timer.set(answerTime)
	return false
}

// exits counts the exits that the guest has caused.
func (m *Machine) exits() (n uint64) {
	for _, c := range m.vcpus {
		for k := range exitKinds {
			if k != exitInterrupted {
				n += c.hits[k].Load()
			}
		}
	}
	return n
}

// ask has every vCPU that is in KVM come out of it and answer.
func (m *Machine) ask() {
	m.inquiry.Add(1)
	for _, c := range m.vcpus {
		if tid := int(c.tid.Load()); tid > 0 {
			_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		}
	}
}

// dead reports whether every vCPU has answered the last inquiry, and that it is
// dead.
func (m *Machine) dead() bool {
	want := m.inquiry.Load()<<deadShift | deadBit
	for _, c := range m.vcpus {
		if c.answer.Load() != want {
			return false
		}
	}
	return true
}

// reply answers an inquiry, if there is one.
func (c *vcpu) reply() {
	n := c.m.inquiry.Load()
	if c.answer.Load()>>deadShift == n {
		return
	}
	a := n << deadShift
	if c.lifeless() {
		a |= deadBit
	}
	c.answer.Store(a)
}

// lifeless reports whether the vCPU can't go on by itself.
func (c *vcpu) lifeless() bool {
	state, err := c.kvm.MPState()
	if err != nil {
		return false
	}
	switch state {
	case kvm.MPUninitialized, kvm.MPInitReceived:
		c.haltRIP.Store(0)
		return true
	case kvm.MPHalted:
	default:
		return false
	}
	r, err := c.kvm.Regs()
	if err != nil || r.RFLAGS&rflagsIF != 0 {
		return false
	}
	c.haltRIP.Store(r.RIP)
	s, err := c.kvm.Sregs()
	return err == nil && s.CR4&cr4VMXE == 0 && s.EFER&eferSVME == 0
}
