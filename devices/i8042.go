package devices

// I8042Ports is the number of ports that an [I8042] takes, from 0x60 on.
const I8042Ports = 5

const (
	i8042PortB   = 1 // port 0x61, system control port B: not the controller's, but among its ports
	i8042Command = 4 // port 0x64, status when read

	i8042PulseReset = 0xfe   // command: pulse output line 0, which resets the CPU
	portBTimer2Out  = 1 << 5 // output of timer 2; bits 6 and 7 (bus and memory errors) stay clear
)

// I8042 is the reset line of a keyboard controller, for `reboot=k`, and nothing more. Status reads 0: the input buffer is
// empty, so a reset command is sent at once. There is no keyboard and no self test, and the FADT says so, so that no
// driver spends its time on a probe. It has no registers.
type I8042 struct {
	sink Sink
}

// NewI8042 returns a controller that sends [Reset] to sink.
func NewI8042(sink Sink) *I8042 { return &I8042{sink: sink} }

// Read implements [Handler].
func (d *I8042) Read(off uint64, p []byte) {
	for i := range p {
		switch off + uint64(i) {
		case i8042PortB:
			p[i] = portBTimer2Out
		case i8042Command:
			p[i] = 0
		default:
			p[i] = 0xff
		}
	}
}

// Write implements [Handler].
func (d *I8042) Write(off uint64, p []byte) {
	for i, v := range p {
		if off+uint64(i) == i8042Command && v == i8042PulseReset {
			d.sink.send(Reset, 0)
		}
	}
}
