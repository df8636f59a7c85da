package devices

const (
	// BootTimerSize is the size in bytes of the page that a [BootTimer] takes.
	BootTimerSize = 4096
	// BootTimerMagic is the byte that a guest writes to the first address of the page when it has come up.
	BootTimerMagic = 123
)

// BootTimer tells the machine when the guest's init has started. It has no registers and reads as all ones.
type BootTimer struct {
	sink Sink
}

// NewBootTimer returns a timer that sends [BootMark] to sink, each time that the guest writes [BootTimerMagic].
func NewBootTimer(sink Sink) *BootTimer { return &BootTimer{sink: sink} }

// Read implements [Handler].
func (d *BootTimer) Read(off uint64, p []byte) { fill(p, 0xff) }

// Write implements [Handler].
func (d *BootTimer) Write(off uint64, p []byte) {
	if off == 0 && len(p) > 0 && p[0] == BootTimerMagic {
		d.sink.send(BootMark, BootTimerMagic)
	}
}
