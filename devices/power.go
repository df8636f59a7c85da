package devices

import "sync"

// The ports of a [Power], relative to its base. The FADT and the DSDT name them.
const (
	PowerSleepControl = 0 // SLEEP_CONTROL_REG, ACPI 4.8.3.7
	PowerSleepStatus  = 1 // SLEEP_STATUS_REG, ACPI 4.8.3.7
	PowerReset        = 2 // RESET_REG, ACPI 4.8.3.6
	PowerEvent        = 4 // what has happened since the last read, for the Generic Event Device (ACPI 5.6.9)

	PowerPorts = 8
)

const (
	PowerResetValue  = 0x01 // RESET_VALUE of the FADT
	PowerSleepTypeS5 = 5    // SLP_TYP of the DSDT's \_S5
	PowerButtonEvent = 1    // bit of PowerEvent: the power button was pressed
)

const (
	sleepTypeShift = 2
	sleepTypeMask  = 7 << sleepTypeShift
	sleepEnable    = 1 << 5 // SLP_EN, write-only
	wakeStatus     = 1 << 7 // WAK_STS, write 1 to clear
)

// PowerState is what a [Power] remembers.
type PowerState struct {
	SleepControl uint8 // SLP_TYP as last written
	SleepStatus  uint8 // WAK_STS
	Events       uint8 // events that the guest has not read yet
}

// Power is the machine's ACPI hardware: the sleep registers, of which S5 is poweroff, the reset register, and the event
// byte behind the Generic Event Device. Its methods may be called from any goroutine.
type Power struct {
	sink Sink
	irq  Interrupt

	mu sync.Mutex
	st PowerState
}

// NewPower returns a device that sends [Poweroff] and [Reset] to sink and pulses irq (nil: none) on an event.
func NewPower(sink Sink, irq Interrupt) *Power {
	return &Power{sink: sink, irq: irq}
}

// PressPowerButton asks the guest to shut down. The guest does so only if it has loaded a driver for the button; until it
// has read the event, pressing again only repeats the interrupt.
func (d *Power) PressPowerButton() {
	d.mu.Lock()
	d.st.Events |= PowerButtonEvent
	d.mu.Unlock()
	if d.irq != nil {
		d.irq.Pulse()
	}
}

// Read implements [Handler]. Reading the event byte clears it.
func (d *Power) Read(off uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range p {
		switch off + uint64(i) {
		case PowerSleepControl:
			p[i] = d.st.SleepControl
		case PowerSleepStatus:
			p[i] = d.st.SleepStatus
		case PowerEvent:
			p[i] = d.st.Events
			d.st.Events = 0
		default:
			p[i] = 0
		}
	}
}

// Write implements [Handler].
func (d *Power) Write(off uint64, p []byte) {
	for i, v := range p {
		switch off + uint64(i) {
		case PowerSleepControl:
			d.sleep(v)
		case PowerSleepStatus:
			d.mu.Lock()
			d.st.SleepStatus &^= v & wakeStatus
			d.mu.Unlock()
		case PowerReset:
			if v == PowerResetValue {
				d.sink.send(Reset, 0)
			}
		}
	}
}

// sleep takes a write to the sleep control register. Of the sleep states only S5 exists; a guest that enters another one
// is awake again at once, since it waits for WAK_STS.
func (d *Power) sleep(v uint8) {
	d.mu.Lock()
	d.st.SleepControl = v & sleepTypeMask
	entered := v&sleepEnable != 0
	off := entered && v&sleepTypeMask == PowerSleepTypeS5<<sleepTypeShift
	if entered && !off {
		d.st.SleepStatus |= wakeStatus
	}
	d.mu.Unlock()
	if off {
		d.sink.send(Poweroff, 0)
	}
}

// State returns the registers.
func (d *Power) State() PowerState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.st
}

// SetState replaces the registers, without the bits that they do not have. An event still unread is announced again.
func (d *Power) SetState(st PowerState) {
	st.SleepControl &= sleepTypeMask
	st.SleepStatus &= wakeStatus
	st.Events &= PowerButtonEvent
	d.mu.Lock()
	d.st = st
	d.mu.Unlock()
	if st.Events != 0 && d.irq != nil {
		d.irq.Pulse()
	}
}
