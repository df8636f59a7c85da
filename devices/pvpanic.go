package devices

// The events of pvpanic, as bits of its one register (QEMU, docs/specs/pvpanic).
const (
	PVPanicPanicked    = 1 << 0
	PVPanicCrashLoaded = 1 << 1
)

// PVPanic is the one port through which a guest's kernel says that it has panicked. A read returns the events that it
// takes. It has no other register.
type PVPanic struct {
	sink Sink
}

// NewPVPanic returns a device that sends [Panic] and [CrashLoaded] to sink.
func NewPVPanic(sink Sink) *PVPanic { return &PVPanic{sink: sink} }

// Read implements [Handler].
func (d *PVPanic) Read(off uint64, p []byte) {
	fill(p, 0xff)
	if off == 0 && len(p) > 0 {
		p[0] = PVPanicPanicked | PVPanicCrashLoaded
	}
}

// Write implements [Handler]. When both bits are set the guest has panicked for good.
func (d *PVPanic) Write(off uint64, p []byte) {
	if off != 0 || len(p) == 0 {
		return
	}
	switch v := p[0]; {
	case v&PVPanicPanicked != 0:
		d.sink.send(Panic, uint64(v))
	case v&PVPanicCrashLoaded != 0:
		d.sink.send(CrashLoaded, uint64(v))
	}
}
