package devices

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// driver uses a port as Linux's 8250 driver does: it sets it up in the same order, and handles an interrupt by the same
// loop. It trusts in edges only.
type driver struct {
	t    testing.TB
	port Handler
	irq  *edges
	p    [1]byte

	mu   sync.Mutex // the port lock
	ier  uint8
	xmit []byte // at most 4 KiB, but in front of a flood
	wait []byte // what a process wants to write, once there is room in xmit
	got  []byte
	want int // bytes to receive
	bugs []string

	handled, spurious int
	cutOff            int // interrupts that the driver left although there was more to do
}

func (d *driver) in(reg uint64) uint8 {
	d.port.Read(reg, d.p[:])
	return d.p[0]
}

func (d *driver) out(reg uint64, v uint8) {
	d.p[0] = v
	d.port.Write(reg, d.p[:])
}

// probe finds out what the port is; it fails the test if that is not a 16550A without bugs.
func (d *driver) probe() {
	save := d.in(regIER)
	d.out(regIER, 0)
	require.Zero(d.t, d.in(regIER)&0x0f)
	d.out(regIER, 0x0f)
	require.EqualValues(d.t, 0x0f, d.in(regIER)&0x0f)
	d.out(regIER, save)

	mcr, lcr := d.in(regMCR), d.in(regLCR)
	d.out(regMCR, mcrLoop|0x0a)
	require.EqualValues(d.t, 0x90, d.in(regMSR)&0xf0)
	d.out(regMCR, mcr)
	d.out(regLCR, 0xbf)
	d.out(2, 0) // EFR of other chips
	d.out(regLCR, 0)
	d.out(regFCR, fcrEnable)
	require.EqualValues(d.t, 3, d.in(regIIR)>>6)

	d.out(regLCR, lcrDLAB)
	require.NotZero(d.t, d.in(2), "no EFR with DLAB")
	d.out(regLCR, 0xbf)
	require.NotZero(d.t, d.in(2), "no EFR in its bank")
	d.out(regLCR, 0)
	d.out(regFCR, fcrEnable|0x20)
	require.EqualValues(d.t, 6, d.in(regIIR)>>5, "no 64-byte FIFO")
	d.out(regFCR, fcrEnable)
	d.out(regIER, 0x40)
	require.Zero(d.t, d.in(regIER)&0x40, "no XScale")
	d.out(regIER, 0)
	require.Equal(d.t, 16, d.sizeFIFO())

	d.out(regLCR, lcr)
	d.out(regMCR, mcr)
	d.clearFIFOs()
	d.in(regData)
	d.out(regIER, 0)
}

func (d *driver) sizeFIFO() (n int) {
	lcr, mcr := d.in(regLCR), d.in(regMCR)
	d.out(regLCR, 0)
	d.out(regFCR, fcrEnable|fcrClearRX|4)
	d.out(regMCR, mcrLoop)
	for i := range 256 {
		d.out(regData, uint8(i))
	}
	for ; d.in(regLSR)&lsrDR != 0 && n < 256; n++ {
		d.in(regData)
	}
	d.out(regMCR, mcr)
	d.out(regLCR, lcr)
	return n
}

func (d *driver) clearFIFOs() {
	d.out(regFCR, fcrEnable)
	d.out(regFCR, fcrEnable|fcrClearRX|4)
	d.out(regFCR, 0)
}

func (d *driver) startup() {
	clear := func() {
		d.in(regLSR)
		d.in(regData)
		d.in(regIIR)
		d.in(regMSR)
	}
	d.clearFIFOs()
	clear()
	require.NotEqualValues(d.t, 0xff, d.in(regLSR))

	d.in(regLSR)
	d.out(regIER, ierTHRE)
	first := d.in(regIIR)
	d.out(regIER, 0)
	d.out(regIER, ierTHRE)
	second := d.in(regIIR)
	d.out(regIER, 0)
	require.Zero(d.t, first&iirNone)
	require.Zero(d.t, second&iirNone, "THRE is raised when enabled again")

	d.out(regLCR, 3)
	d.out(regMCR, mcrOUT2)
	d.out(regIER, ierTHRE)
	lsr, iir := d.in(regLSR), d.in(regIIR)
	d.out(regIER, 0)
	require.False(d.t, lsr&lsrTEMT != 0 && iir&iirNone != 0, "a THRE interrupt comes when enabled")
	clear()

	d.ier = ierRLS | ierRDA
	d.out(regIER, d.ier)
	d.out(regLCR, 3|lcrDLAB)
	d.out(0, 1)
	d.out(1, 0)
	d.out(regLCR, 3)
	d.out(regFCR, fcrEnable)
	d.out(regFCR, fcrEnable|2<<6)
	d.out(regMCR, mcrOUT2|mcrRTS|mcrDTR)
}

// send gives the driver more to transmit.
func (d *driver) send(p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.xmit)+len(p) == 0 {
		return
	}
	d.xmit = append(d.xmit, p...)
	if d.ier&ierTHRE == 0 {
		d.ier |= ierTHRE
		d.out(regIER, d.ier)
	}
}

// print is what the console does: it sends by polling, with the interrupts off.
func (d *driver) print(p string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out(regIER, 0)
	for i := range len(p) {
		for d.in(regLSR)&lsrTHRE == 0 {
		}
		d.out(regData, p[i])
	}
	d.out(regIER, d.ier)
}

// interrupt handles one edge.
func (d *driver) interrupt() {
	for pass := 0; ; pass++ {
		if pass == 512 {
			d.cutOff++
			return
		}
		iir := in(d.port, regIIR)
		if iir&iirNone != 0 {
			if pass == 0 {
				d.spurious++
			}
			d.handled++
			return
		}
		d.mu.Lock()
		lsr := d.in(regLSR)
		for n := 0; lsr&lsrDR != 0 && n < 256; n++ {
			if lsr&lsrOE != 0 {
				d.bugs = append(d.bugs, "overrun")
			}
			d.got = append(d.got, d.in(regData))
			lsr = d.in(regLSR)
		}
		d.in(regMSR)
		if lsr&lsrTHRE != 0 && d.ier&ierTHRE != 0 {
			n := min(len(d.xmit), 16)
			for _, v := range d.xmit[:n] {
				d.out(regData, v)
			}
			if d.xmit = d.xmit[n:]; len(d.xmit) == 0 {
				d.ier &^= ierTHRE
				d.out(regIER, d.ier)
			}
		}
		d.mu.Unlock()
	}
}

// run handles interrupts until everything is sent and received.
func (d *driver) run(idle time.Duration) {
	for {
		d.mu.Lock()
		n := min(4096-min(len(d.xmit), 4096), len(d.wait))
		more := d.wait[:n]
		d.wait = d.wait[n:]
		done := len(d.xmit)+n == 0 && len(d.got) >= d.want
		d.mu.Unlock()
		d.send(more)
		if done {
			return
		}
		select {
		case <-d.irq.latch:
			d.interrupt()
		case <-time.After(idle):
			d.bugs = append(d.bugs, "an interrupt was lost")
			return
		}
	}
}

// slowWriter takes its time, once in a while.
type slowWriter struct {
	bytes.Buffer
	pause func() time.Duration
}

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(w.pause())
	return w.Buffer.Write(p)
}

// chunkReader returns input in pieces of changing size, with pauses in between.
type chunkReader struct {
	io.Reader
	pause func() time.Duration
	size  func() int
}

func (r *chunkReader) Read(p []byte) (int, error) {
	time.Sleep(r.pause())
	return r.Reader.Read(p[:min(len(p), r.size())])
}

func testBytes(n int, seed uint64) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = rng.Read(p)
	return p
}

// TestSerialLinuxDriver moves up to 1 MiB each way at once, in time that is not real, with several speeds of the host.
func TestSerialLinuxDriver(t *testing.T) {
	const mib = 1 << 20
	never := func() time.Duration { return 0 }
	now := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	upTo := func(d time.Duration) func() time.Duration {
		return func() time.Duration {
			mu.Lock()
			defer mu.Unlock()
			return time.Duration(now.Int64N(int64(d)))
		}
	}
	tests := []struct {
		name     string
		size     int
		outPause func() time.Duration
		inPause  func() time.Duration
		inSize   func() int
		buffer   int
		flood    bool // xmit is filled as fast as it empties
	}{
		{"fast host", mib, never, never, func() int { return 4096 }, 0, false},
		{"slow output", mib, upTo(20 * time.Millisecond), never, func() int { return 4096 }, 0, false},
		{"tiny output buffer", mib / 8, upTo(time.Millisecond), never, func() int { return 4096 }, 16, false},
		{"one byte at a time", mib / 8, never, never, func() int { return 1 }, 0, false},
		{"odd pieces", mib / 8, upTo(time.Millisecond), upTo(time.Millisecond), func() int { return 777 }, 100, false},
		{"flood", mib / 8, never, never, func() int { return 4096 }, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				input, output := testBytes(tt.size, 1), testBytes(tt.size, 2)
				w := &slowWriter{pause: tt.outPause}
				irq := newEdges()
				var seen bytes.Buffer
				s := NewSerial(SerialConfig{
					IRQ: irq, Out: w, OutBuffer: tt.buffer,
					OnByte: func(b byte) { seen.WriteByte(b) },
					In:     &chunkReader{bytes.NewReader(input), tt.inPause, tt.inSize},
				})
				s.Start()
				d := &driver{t: t, port: s, irq: irq, want: tt.size}
				d.probe()
				d.startup()
				if tt.flood {
					d.send(output)
				} else {
					d.wait = output
				}
				d.run(time.Second)
				require.NoError(t, s.Drain(t.Context()))
				require.NoError(t, s.Close())

				assert.Empty(t, d.bugs)
				assert.Equal(t, tt.flood, d.cutOff > 0, "the driver left %d times before it had finished", d.cutOff)
				assert.True(t, bytes.Equal(input, d.got), "received as sent")
				assert.True(t, bytes.Equal(output, w.Bytes()), "written as sent")
				assert.True(t, bytes.Equal(output, seen.Bytes()), "seen as sent")
				assert.Equal(t, SerialStats{Sent: uint64(tt.size), Written: uint64(tt.size), Received: uint64(tt.size)}, s.Stats())
				assert.LessOrEqual(t, d.spurious, d.handled/2+2, "spurious interrupts of %d", d.handled)
				t.Logf("%d interrupts, %d spurious, %d pulses", d.handled, d.spurious, irq.n.Load())
			})
		})
	}
}

// TestSerialConsoleBetweenInterrupts prints by polling while the interrupt-driven side sends: neither stalls the other.
func TestSerialConsoleBetweenInterrupts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slowWriter{pause: func() time.Duration { return 0 }}
		irq := newEdges()
		s := NewSerial(SerialConfig{IRQ: irq, Out: w})
		s.Start()
		d := &driver{t: t, port: s, irq: irq}
		d.probe()
		d.startup()
		d.send(bytes.Repeat([]byte{'.'}, 4000))
		go func() {
			for range 100 {
				d.print("0123456789")
				time.Sleep(time.Microsecond)
			}
		}()
		d.run(time.Second)
		time.Sleep(time.Second)
		require.NoError(t, s.Drain(t.Context()))
		require.NoError(t, s.Close())
		assert.Empty(t, d.bugs)
		assert.Equal(t, 5000, w.Len())
	})
}

// TestSerialFlowControl lowers RTS in the middle of endless input: nothing comes until it is raised.
func TestSerialFlowControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		input := testBytes(64<<10, 3)
		irq := newEdges()
		s := NewSerial(SerialConfig{IRQ: irq, In: bytes.NewReader(input)})
		s.Start()
		d := &driver{t: t, port: s, irq: irq}
		d.probe()
		d.startup()
		for len(d.got) < len(input) {
			d.out(regMCR, mcrOUT2|mcrDTR)
			for d.in(regLSR)&lsrDR != 0 {
				d.got = append(d.got, d.in(regData))
			}
			time.Sleep(time.Second)
			require.Zero(t, d.in(regLSR)&lsrDR, "RTS is low")
			d.out(regMCR, mcrOUT2|mcrDTR|mcrRTS)
			d.want = min(len(d.got)+4096, len(input))
			d.run(time.Second)
		}
		require.NoError(t, s.Close())
		assert.Empty(t, d.bugs)
		assert.True(t, bytes.Equal(input, d.got))
	})
}

// TestSerialPacing: a driver that reads for as long as there is data must get out of its interrupt handler.
func TestSerialPacing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSerial(SerialConfig{In: bytes.NewReader(make([]byte, 100<<10))})
		s.Start()
		out(s, regFCR, 0xc1)
		out(s, regIER, ierRDA)
		total, longest := 0, 0
		for total < 100<<10 {
			n := 0
			for ; in(s, regLSR)&lsrDR != 0; n++ {
				in(s, regData)
				synctest.Wait() // the reader has read on
			}
			total += n
			longest = max(longest, n)
			time.Sleep(rxRestMin)
			synctest.Wait()
		}
		assert.LessOrEqual(t, longest, rxBurst+16)
		assert.GreaterOrEqual(t, longest, rxBurst)
		require.NoError(t, s.Close())
	})
}
