package devices

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// listeningPort returns a port with FIFOs and trigger level 14, whose receive interrupt is on and connected.
func listeningPort(irq Interrupt) *Serial {
	s := NewSerial(SerialConfig{IRQ: irq})
	out(s, regFCR, 0xc1)
	out(s, regMCR, mcrOUT2)
	out(s, regIER, ierRDA)
	return s
}

// feed puts input where the reader would put it.
func feed(s *Serial, text string) {
	s.mu.Lock()
	r := &s.rx
	if r.ring == nil {
		r.ring = make([]byte, SerialInBuffer)
	}
	for i := range len(text) {
		r.ring[(r.head+r.n)%len(r.ring)] = text[i]
		r.n++
	}
	r.arrive()
}

func TestSerialAfterReset(t *testing.T) {
	s := NewSerial(SerialConfig{})
	assert.EqualValues(t, 0, in(s, regData))
	assert.EqualValues(t, 0, in(s, regIER))
	assert.EqualValues(t, iirNone, in(s, regIIR))
	assert.EqualValues(t, 0, in(s, regLCR))
	assert.EqualValues(t, 0, in(s, regMCR))
	assert.EqualValues(t, lsrTHRE|lsrTEMT, in(s, regLSR))
	assert.EqualValues(t, externalLines, in(s, regMSR))
	assert.EqualValues(t, 0, in(s, regSCR))
	out(s, regLCR, lcrDLAB)
	assert.EqualValues(t, 12, in(s, 0), "9600 baud")
	assert.EqualValues(t, 0, in(s, 1))
}

// TestSerialBits writes all ones and all zeros and looks at what stays.
func TestSerialBits(t *testing.T) {
	tests := []struct {
		name string
		lcr  uint8
		reg  uint64
		want uint8
	}{
		{"DLL", lcrDLAB, 0, 0xff},
		{"DLM", lcrDLAB, 1, 0xff},
		{"IER", 0, regIER, 0x0f},
		{"LCR", 0, regLCR, 0xff},
		{"MCR", 0, regMCR, 0x1f},
		{"LSR", 0, regLSR, 0x60},
		{"SCR", 0, regSCR, 0xff},
		{"SCR with DLAB", lcrDLAB, regSCR, 0xff},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSerial(SerialConfig{})
			out(s, regLCR, tt.lcr)
			out(s, tt.reg, 0xff)
			assert.Equal(t, tt.want, in(s, tt.reg))
			out(s, tt.reg, 0)
			if tt.reg != regLSR {
				assert.EqualValues(t, 0, in(s, tt.reg))
			}
		})
	}
}

func TestSerialDLABHidesData(t *testing.T) {
	var sent []byte
	s := NewSerial(SerialConfig{OnByte: func(b byte) { sent = append(sent, b) }})
	out(s, regIER, ierRLS)
	out(s, regLCR, lcrDLAB|3)
	out(s, 0, 1)
	out(s, 1, 2)
	assert.EqualValues(t, 1, in(s, 0))
	assert.EqualValues(t, 2, in(s, 1))
	out(s, regLCR, 3)
	assert.EqualValues(t, ierRLS, in(s, regIER))
	assert.Empty(t, sent)
	out(s, regData, 'x')
	assert.Equal(t, "x", string(sent))
}

func TestSerialWideAccess(t *testing.T) {
	var sent []byte
	s := NewSerial(SerialConfig{OnByte: func(b byte) { sent = append(sent, b) }})
	s.Write(6, []byte{0xff, 0x42, 0xff, 0xff}) // MSR, SCR, and two bytes beyond
	p := []byte{0, 0, 0, 0}
	s.Read(6, p)
	assert.Equal(t, []byte{externalLines, 0x42, 0xff, 0xff}, p)
	s.Write(0, []byte{'a', ierTHRE})
	assert.Equal(t, "a", string(sent))
	assert.EqualValues(t, ierTHRE, in(s, regIER))
	for _, off := range []uint64{8, 1 << 32, ^uint64(0), ^uint64(0) - 3} {
		p := make([]byte, 8)
		s.Read(off, p)
		assert.Equal(t, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, p, "offset %#x", off)
		s.Write(off, []byte("12345678"))
	}
	s.Read(0, nil)
	s.Write(0, nil)
	assert.Equal(t, "a", string(sent))
}

func TestSerialFIFODetection(t *testing.T) {
	tests := []struct {
		name string
		fcr  uint8
		want uint8
	}{
		{"off", 0, 0x01},
		{"on", fcrEnable, 0xc1},
		{"64 bytes asked for", fcrEnable | 0x20, 0xc1},
		{"trigger without enable", 0xc0, 0x01},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSerial(SerialConfig{})
			out(s, regFCR, tt.fcr)
			assert.Equal(t, tt.want, in(s, regIIR))
		})
	}
}

func TestSerialLoopbackModem(t *testing.T) {
	tests := []struct {
		name string
		mcr  uint8
		want uint8
	}{
		{"nothing", 0, 0},
		{"DTR is DSR", mcrDTR, msrDSR},
		{"RTS is CTS", mcrRTS, msrCTS},
		{"OUT1 is RI", mcrOUT1, msrRI},
		{"OUT2 is DCD", mcrOUT2, msrDCD},
		{"Linux's test", 0x0a, 0x90},
		{"all", 0x0f, 0xf0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSerial(SerialConfig{})
			out(s, regMCR, mcrLoop|tt.mcr)
			assert.Equal(t, tt.want, in(s, regMSR)&0xf0)
			out(s, regMCR, 0)
			assert.EqualValues(t, externalLines, in(s, regMSR)&0xf0)
		})
	}
}

func TestSerialModemDeltas(t *testing.T) {
	s := NewSerial(SerialConfig{})
	out(s, regMCR, mcrLoop)
	assert.EqualValues(t, 0x0b, in(s, regMSR), "CTS, DSR and DCD have gone")
	out(s, regMCR, mcrLoop|mcrRTS)
	assert.EqualValues(t, msrCTS|1, in(s, regMSR))
	assert.EqualValues(t, msrCTS, in(s, regMSR), "reading clears the deltas")
	out(s, regMCR, mcrLoop|mcrOUT1)
	assert.EqualValues(t, msrRI|1, in(s, regMSR), "RI coming is no delta")
	out(s, regMCR, mcrLoop|mcrDTR)
	assert.EqualValues(t, msrDSR|msrTERI|2, in(s, regMSR), "RI going is")

	out(s, regIER, ierMSI)
	out(s, regMCR, mcrLoop|mcrOUT2)
	assert.EqualValues(t, iirMSI, in(s, regIIR))
	assert.EqualValues(t, iirMSI, in(s, regIIR), "reading IIR does not clear it")
	in(s, regMSR)
	assert.EqualValues(t, iirNone, in(s, regIIR))
}

func TestSerialLoopbackData(t *testing.T) {
	var sent []byte
	irq := newEdges()
	s := NewSerial(SerialConfig{IRQ: irq, OnByte: func(b byte) { sent = append(sent, b) }})
	out(s, regFCR, fcrEnable)
	out(s, regIER, ierMask)
	out(s, regMCR, mcrLoop|mcrOUT2)
	in(s, regMSR)
	irq.take()
	for i := range 20 {
		out(s, regData, uint8(i))
	}
	assert.Zero(t, irq.take(), "in loopback the interrupt is disconnected")
	assert.EqualValues(t, iirFIFO|iirRLS, in(s, regIIR))
	assert.EqualValues(t, lsrTHRE|lsrTEMT|lsrOE|lsrDR, in(s, regLSR))
	assert.EqualValues(t, lsrTHRE|lsrTEMT|lsrDR, in(s, regLSR), "reading clears the overrun")
	assert.EqualValues(t, iirFIFO|iirRDA, in(s, regIIR))
	n := 0
	for ; in(s, regLSR)&lsrDR != 0; n++ {
		assert.EqualValues(t, n, in(s, regData))
	}
	assert.Equal(t, 16, n)
	assert.Empty(t, sent, "loopback sends nothing")

	out(s, regFCR, 0)
	out(s, regData, 1)
	out(s, regData, 2)
	assert.NotZero(t, in(s, regLSR)&lsrOE)
	assert.EqualValues(t, 2, in(s, regData), "without FIFOs the newer byte stays")
	assert.Zero(t, in(s, regLSR)&lsrDR)
}

func TestSerialInterruptPriority(t *testing.T) {
	s := NewSerial(SerialConfig{})
	out(s, regFCR, fcrEnable|1<<6) // trigger at 4
	out(s, regMCR, mcrLoop)        // modem deltas
	for range 17 {
		out(s, regData, 'x') // overrun
	}
	out(s, regIER, ierMask)
	iir := func() uint8 { return in(s, regIIR) &^ iirFIFO }
	assert.EqualValues(t, iirRLS, iir())
	in(s, regLSR)
	for range 13 {
		assert.EqualValues(t, iirRDA, iir())
		in(s, regData)
	}
	for range 3 {
		assert.EqualValues(t, iirTimeout, iir(), "below the trigger level")
		in(s, regData)
	}
	assert.EqualValues(t, iirTHRE, iir())
	assert.EqualValues(t, iirMSI, iir(), "reading it as the source has cleared THRE")
	in(s, regMSR)
	assert.EqualValues(t, iirNone, iir())
}

func TestSerialTriggerLevels(t *testing.T) {
	for i, level := range rxTriggers {
		s := NewSerial(SerialConfig{})
		out(s, regFCR, fcrEnable|uint8(i)<<6)
		out(s, regMCR, mcrLoop)
		in(s, regMSR)
		out(s, regIER, ierRDA)
		for n := uint8(1); n <= 16; n++ {
			out(s, regData, n)
			want := uint8(iirTimeout)
			if n >= level {
				want = iirRDA
			}
			assert.Equal(t, want|iirFIFO, in(s, regIIR), "%d bytes, trigger %d", n, level)
		}
	}
}

func TestSerialTHRE(t *testing.T) {
	irq := newEdges()
	s := NewSerial(SerialConfig{IRQ: irq})
	out(s, regMCR, mcrOUT2)
	iir := func() uint8 { return in(s, regIIR) }

	out(s, regIER, ierTHRE)
	assert.Equal(t, 1, irq.take(), "enabled while empty")
	assert.EqualValues(t, iirTHRE, iir())
	assert.EqualValues(t, iirNone, iir())

	out(s, regIER, ierTHRE)
	assert.EqualValues(t, iirNone, iir(), "already enabled")
	out(s, regIER, 0)
	out(s, regIER, ierTHRE)
	assert.Equal(t, 1, irq.take(), "enabled again")
	assert.EqualValues(t, iirTHRE, iir())

	for range 16 {
		out(s, regData, 'x')
	}
	assert.Equal(t, 1, irq.take(), "one edge for a burst")
	assert.EqualValues(t, iirTHRE, iir())
	out(s, regData, 'y')
	assert.Equal(t, 1, irq.take())

	out(s, regIER, 0)
	assert.EqualValues(t, iirNone, iir())
	out(s, regData, 'z')
	assert.Zero(t, irq.take(), "disabled")
}

// TestSerialTHREStaysBehindRX: reading IIR clears THRE only when THRE is what it names.
func TestSerialTHREStaysBehindRX(t *testing.T) {
	s := listeningPort(nil)
	out(s, regIER, ierRDA|ierTHRE)
	feed(s, "a")
	assert.EqualValues(t, iirFIFO|iirTimeout, in(s, regIIR))
	in(s, regData)
	assert.EqualValues(t, iirFIFO|iirTHRE, in(s, regIIR))
	assert.EqualValues(t, iirFIFO|iirNone, in(s, regIIR))
}

func TestSerialOUT2Gate(t *testing.T) {
	irq := newEdges()
	s := NewSerial(SerialConfig{IRQ: irq})
	out(s, regIER, ierTHRE)
	assert.Zero(t, irq.take())
	out(s, regMCR, mcrOUT2)
	assert.Equal(t, 1, irq.take(), "a pending interrupt comes when the gate opens")
	out(s, regMCR, 0)
	out(s, regMCR, mcrOUT2)
	assert.Equal(t, 1, irq.take(), "and again")
}

func TestSerialReceiveEdges(t *testing.T) {
	irq := newEdges()
	s := listeningPort(irq)
	feed(s, "ab")
	assert.Equal(t, 1, irq.take())
	assert.EqualValues(t, 'a', in(s, regData))
	assert.EqualValues(t, 'b', in(s, regData))
	assert.EqualValues(t, iirFIFO|iirNone, in(s, regIIR))
	feed(s, "c")
	assert.Equal(t, 1, irq.take())
	feed(s, "d")
	assert.Equal(t, 1, irq.take(), "the guest is reminded when more arrives")
	assert.EqualValues(t, 'c', in(s, regData))
	assert.EqualValues(t, 'd', in(s, regData))
	assert.Zero(t, irq.take())
}

// TestSerialRefill: a driver that reads until LSR has no data gets everything in one interrupt.
func TestSerialRefill(t *testing.T) {
	irq := newEdges()
	s := listeningPort(irq)
	text := "the quick brown fox jumps over the lazy dog"
	feed(s, text)
	var got []byte
	for in(s, regLSR)&lsrDR != 0 {
		got = append(got, in(s, regData))
	}
	assert.Equal(t, text, string(got))
	assert.Equal(t, 1, irq.take())
	assert.Zero(t, in(s, regLSR)&lsrOE)
}

func TestSerialRTS(t *testing.T) {
	s := listeningPort(nil)
	dr := func() bool { return in(s, regLSR)&lsrDR != 0 }
	feed(s, "a")
	assert.True(t, dr(), "RTS was never raised")
	in(s, regData)

	out(s, regMCR, mcrOUT2|mcrRTS)
	out(s, regMCR, mcrOUT2)
	feed(s, "b")
	assert.False(t, dr(), "RTS taken back")
	out(s, regMCR, mcrOUT2|mcrRTS)
	assert.True(t, dr())
	assert.EqualValues(t, 'b', in(s, regData))

	s = listeningPort(nil)
	out(s, regMCR, mcrLoop|mcrRTS)
	out(s, regMCR, 0)
	feed(s, "c")
	assert.True(t, dr(), "RTS in loopback is not on the wire")
	out(s, regMCR, mcrLoop)
	in(s, regData)
	feed(s, "d")
	assert.False(t, dr(), "in loopback the receiver is not connected")
	out(s, regMCR, 0)
	assert.True(t, dr())
}

func TestSerialPolledReceive(t *testing.T) {
	s := NewSerial(SerialConfig{})
	feed(s, "hello, polling reader")
	for range rxPolls - 1 {
		require.Zero(t, in(s, regLSR)&lsrDR, "not listening yet")
	}
	var got []byte
	for in(s, regLSR)&lsrDR != 0 {
		got = append(got, in(s, regData))
	}
	assert.Equal(t, "hello, polling reader", string(got))
}

// TestSerialKeepsInputFromSetup: clearing the FIFO and stray reads don't lose input.
func TestSerialKeepsInputFromSetup(t *testing.T) {
	s := listeningPort(nil)
	feed(s, "poweroff\n")
	require.NotZero(t, in(s, regLSR)&lsrDR)
	out(s, regIER, 0)
	out(s, regFCR, fcrEnable)
	out(s, regFCR, fcrEnable|fcrClearRX|4)
	out(s, regFCR, 0)
	assert.Zero(t, in(s, regLSR)&lsrDR)
	in(s, regData)
	out(s, regFCR, 0xc1)
	out(s, regIER, ierRDA)
	var got []byte
	for in(s, regLSR)&lsrDR != 0 {
		got = append(got, in(s, regData))
	}
	assert.Equal(t, "poweroff\n", string(got))
	assert.EqualValues(t, 9, s.Stats().Received)
}

// TestSerialClearDropsLoopback: what the guest sent itself is gone after clearing, what came from outside is not.
func TestSerialClearDropsLoopback(t *testing.T) {
	s := listeningPort(nil)
	feed(s, "ab")
	out(s, regMCR, mcrLoop)
	out(s, regData, 'x')
	out(s, regData, 'y')
	out(s, regFCR, fcrEnable|fcrClearRX)
	assert.Zero(t, in(s, regLSR)&lsrDR)
	out(s, regMCR, 0)
	assert.EqualValues(t, 'a', in(s, regData))
	assert.EqualValues(t, 'b', in(s, regData))
	assert.Zero(t, in(s, regLSR)&lsrDR)
}

func TestSerialState(t *testing.T) {
	irq := newEdges()
	s := listeningPort(irq)
	out(s, regLCR, lcrDLAB)
	out(s, 0, 1)
	out(s, regLCR, 3)
	out(s, regSCR, 0x77)
	out(s, regMCR, mcrOUT2|mcrRTS|mcrDTR)
	feed(s, "snapshot")
	in(s, regData)
	st := s.State()

	other := newEdges()
	c := NewSerial(SerialConfig{IRQ: other})
	c.SetState(st)
	assert.Equal(t, st, c.State())
	assert.Equal(t, 1, other.take(), "a pending interrupt is raised anew")
	assert.EqualValues(t, iirFIFO|iirTimeout, in(c, regIIR))
	assert.EqualValues(t, 0x77, in(c, regSCR))
	var got []byte
	for in(c, regLSR)&lsrDR != 0 {
		got = append(got, in(c, regData))
	}
	assert.Equal(t, "napshot", string(got))

	c.SetState(SerialState{IER: 0xff, FCR: 0xfe, LCR: 0xff, MCR: 0xff, LSR: 0xff, MSR: 0xff, RXLen: 200, RXLoop: 0xffff})
	assert.Equal(t, SerialState{IER: 0x0f, LCR: 0xff, MCR: 0x1f, LSR: lsrOE, MSR: 0xff, RXLen: 1, RXLoop: 1}, c.State())
}

func TestSerialAllocations(t *testing.T) {
	bus, s := machineBus(t)
	s.onByte = func(byte) {}
	out(s, regMCR, mcrOUT2)
	p := make([]byte, 1)
	tests := []struct {
		name string
		f    func()
	}{
		{"read LSR", func() { bus.Read(0x3fd, p) }},
		{"write THR", func() { bus.Write(0x3f8, p) }},
		{"THRE interrupt", func() {
			p[0] = 0
			bus.Write(0x3f9, p)
			p[0] = ierTHRE
			bus.Write(0x3f9, p)
			bus.Read(0x3fa, p)
		}},
		{"miss", func() { bus.Read(0x80, p) }},
		{"RTC", func() { bus.Write(0x70, p[:1]); bus.Read(0x71, p) }},
		{"sleep status", func() { bus.Read(0x601, p) }},
	}
	for _, tt := range tests {
		assert.Zero(t, testing.AllocsPerRun(1000, tt.f), tt.name)
	}
}
