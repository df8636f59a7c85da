package devices

// DebugExitPorts is the number of ports that a [DebugExitPort] takes: room for the widest write.
const DebugExitPorts = 4

// DebugExitPort ends the machine with a value of the guest's choosing: the value is what 1, 2 or 4 bytes written to its
// first port say. It has no registers and reads as all ones.
type DebugExitPort struct {
	sink Sink
}

// NewDebugExit returns a port that sends [DebugExit] to sink.
func NewDebugExit(sink Sink) *DebugExitPort { return &DebugExitPort{sink: sink} }

// Read implements [Handler].
func (d *DebugExitPort) Read(off uint64, p []byte) { fill(p, 0xff) }

// Write implements [Handler].
func (d *DebugExitPort) Write(off uint64, p []byte) {
	if off != 0 || len(p) == 0 || len(p) > DebugExitPorts {
		return
	}
	var value uint64
	for i, v := range p {
		value |= uint64(v) << (8 * i)
	}
	d.sink.send(DebugExit, value)
}
