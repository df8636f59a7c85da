package devices

import "strconv"

// Handler answers the accesses to one range of a [Bus]. off is relative to the start of the range and p is the data, 1,
// 2, 4 or 8 bytes in the guest's (little-endian) order. Both methods are called on vCPU threads, possibly on several at
// once, and must not keep p.
type Handler interface {
	Read(off uint64, p []byte)
	Write(off uint64, p []byte)
}

// Interrupt is one edge-triggered interrupt line. Pulse may be called from any goroutine, must not block and should be
// cheap: it is called on the way back to the guest.
type Interrupt interface {
	Pulse()
}

// EventKind says what a guest asked the machine for.
type EventKind uint8

// The kinds of [Event].
const (
	Poweroff    EventKind = iota + 1 // ACPI S5 entered
	Reset                            // reset through the ACPI reset register or the i8042
	Panic                            // pvpanic: the guest's kernel has panicked
	CrashLoaded                      // pvpanic: it has panicked and a crash kernel takes over
	DebugExit                        // a write to the debug-exit port; Value is what was written
	BootMark                         // a write to the boot timer; Value is what was written
)

// String returns the kind in lower case.
func (k EventKind) String() string {
	switch k {
	case Poweroff:
		return "poweroff"
	case Reset:
		return "reset"
	case Panic:
		return "panic"
	case CrashLoaded:
		return "crash loaded"
	case DebugExit:
		return "debug exit"
	case BootMark:
		return "boot mark"
	}
	return "event " + strconv.Itoa(int(k))
}

// Event is a guest's message to the machine.
type Event struct {
	Kind  EventKind
	Value uint64
}

// Sink takes events. It is called on a vCPU thread, as often as the guest likes, and must not block.
type Sink func(Event)

// send delivers e, if anyone listens.
func (s Sink) send(kind EventKind, value uint64) {
	if s != nil {
		s(Event{Kind: kind, Value: value})
	}
}

// fill sets every byte of p to b.
func fill(p []byte, b byte) {
	for i := range p {
		p[i] = b
	}
}
