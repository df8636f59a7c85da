package devices

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzSerial accesses the port at random, two bytes an operation, and checks what must hold for any guest: what it sends
// arrives as sent, what it is sent arrives once and in order whatever it does to the FIFO, the interrupt line never
// rises without a pulse, and nothing pulses without end.
func FuzzSerial(f *testing.F) {
	f.Add([]byte{0x80, 9, 0x02, 0xc1, 0x04, 0x08, 0x01, 0x01, 0x45, 0, 0x40, 0, 0x00, 'x', 0x01, 0x03, 0x42, 0})
	f.Add([]byte{0x04, 0x10, 0x00, 1, 0x00, 2, 0x80, 40, 0x04, 0x0b, 0x01, 0x0f, 0x02, 0x07, 0x02, 0x00, 0x01, 0x01, 0x40, 0})
	f.Add([]byte{0x80, 3, 0x45, 0, 0x45, 0, 0x45, 0, 0x45, 0, 0x45, 0, 0x45, 0, 0x45, 0, 0x45, 0, 0x40, 0, 0x90, 0, 0x30, 0xff})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var written, seen, want bytes.Buffer
		irq := newEdges()
		s := NewSerial(SerialConfig{IRQ: irq, Out: &written, OnByte: func(b byte) { seen.WriteByte(b) }})
		s.Hold()
		s.Release()
		var fed, got byte // input has the top bit, and counts; what the guest sends has not
		received := func(v uint8) {
			if v&0x80 != 0 {
				require.Equal(t, 0x80|got&0x7f, v, "input lost, repeated or out of order")
				got++
			}
		}
		for ; len(ops) >= 2 && seen.Len() < SerialOutBuffer-16; ops = ops[2:] {
			op, off, v := ops[0]>>6, uint64(ops[0]&0x0f), ops[1]
			p := make([]byte, 1<<(ops[0]>>4&3))
			before, level := irq.n.Load(), s.line
			switch op {
			case 0:
				fill(p, v)
				if off == 0 {
					p[0] &= 0x7f
				}
				if off == 0 && s.st.LCR&lcrDLAB == 0 && s.st.MCR&mcrLoop == 0 {
					want.WriteByte(p[0])
				}
				s.Write(off, p)
			case 1:
				data := off == 0 && s.st.LCR&lcrDLAB == 0
				s.Read(off, p)
				if data {
					received(p[0])
				}
				if off == regLSR {
					require.EqualValues(t, lsrTHRE|lsrTEMT, p[0]&^(lsrDR|lsrOE))
				}
			case 2:
				if off&1 != 0 {
					s.Hold()
					s.SetState(s.State())
					s.Release()
					break
				}
				n := min(int(v), SerialInBuffer-s.rx.n)
				text := make([]byte, n)
				for i := range text {
					text[i] = 0x80 | fed&0x7f
					fed++
				}
				feed(s, string(text))
			}
			s.rx.burst = 0 // pacing is another test's
			pulses := irq.n.Load() - before
			require.LessOrEqual(t, pulses, int64(len(p)))
			if s.line && !level {
				require.NotZero(t, pulses, "the line rose without a pulse")
			}
			require.Equal(t, s.line, s.st.MCR&(mcrOUT2|mcrLoop) == mcrOUT2 && s.cause() != iirNone)
			require.EqualValues(t, s.status(), s.lsr.Load()&0xff)
		}

		// Whatever state it left the port in, a driver that sets it up gets what there is.
		for _, w := range [][2]uint8{{regLCR, 3}, {regIER, 0}, {regMCR, mcrOUT2 | mcrRTS}, {regFCR, fcrEnable | fcrClearRX}, {regIER, ierRDA}} {
			out(s, uint64(w[0]), w[1])
		}
		for in(s, regLSR)&lsrDR != 0 {
			received(in(s, regData))
			s.rx.burst = 0
		}
		require.Equal(t, fed, got, "input is left over")
		s.Start()
		require.NoError(t, s.Close())
		require.Equal(t, want.String(), seen.String())
		require.Equal(t, want.String(), written.String())
	})
}
