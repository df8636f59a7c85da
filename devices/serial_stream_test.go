package devices

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// gate is a Writer that blocks until it is opened, one token for each write, and says when somebody is inside.
type gate struct {
	entered chan int
	open    chan struct{}
	mu      sync.Mutex
	bytes.Buffer
}

func newGate() *gate { return &gate{entered: make(chan int, 1000), open: make(chan struct{})} }

func (g *gate) Write(p []byte) (int, error) {
	g.entered <- len(p)
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Buffer.Write(p)
}

func sendAll(s *Serial, p []byte) {
	for i := range p {
		s.Write(regData, p[i:i+1])
	}
}

// TestSerialOutCoalesces: bytes that come one by one leave together, and soon.
func TestSerialOutCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		close(g.open)
		s := NewSerial(SerialConfig{Out: g})
		s.Start()
		start := time.Now()
		sendAll(s, []byte("login: "))
		assert.Equal(t, 7, <-g.entered)
		assert.LessOrEqual(t, time.Since(start), 2*time.Millisecond)

		// A steady trickle costs a write every few milliseconds.
		for range 1000 {
			out(s, regData, '.')
			time.Sleep(50 * time.Microsecond)
		}
		require.NoError(t, s.Drain(t.Context()))
		assert.Less(t, len(g.entered), 15)

		// A burst does not wait.
		time.Sleep(time.Second)
		for len(g.entered) > 0 {
			<-g.entered
		}
		start = time.Now()
		out(s, regData, 0)
		synctest.Wait() // the writer has begun to collect
		sendAll(s, make([]byte, txEnough-1))
		assert.Equal(t, txEnough, <-g.entered)
		assert.Zero(t, time.Since(start))
		require.NoError(t, s.Close())
		assert.Equal(t, 7+1000+txEnough, g.Len())
	})
}

func TestSerialDrainIsPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		s := NewSerial(SerialConfig{Out: &b})
		s.Start()
		start := time.Now()
		sendAll(s, []byte("Power down.\r\n"))
		require.NoError(t, s.Drain(t.Context()))
		assert.Zero(t, time.Since(start))
		assert.Equal(t, "Power down.\r\n", b.String())
		sendAll(s, []byte("more"))
		require.NoError(t, s.Close())
		assert.Zero(t, time.Since(start))
		assert.Equal(t, "Power down.\r\nmore", b.String())
	})
}

func TestSerialDrainErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := NewSerial(SerialConfig{Out: g})
		require.NoError(t, s.Drain(t.Context()), "nothing to write")
		out(s, regData, 'x')
		require.ErrorIs(t, s.Drain(t.Context()), ErrNotStarted)
		s.Start()
		s.Start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, s.Drain(ctx), context.DeadlineExceeded)
		close(g.open)
		require.NoError(t, s.Drain(t.Context()))
		require.NoError(t, s.Drain(ctx), "a done context doesn't matter when all is out")
		require.NoError(t, s.Close())
		require.NoError(t, s.Drain(t.Context()))
		s.Start()
	})
}

func TestSerialCloseUnstarted(t *testing.T) {
	s := NewSerial(SerialConfig{Out: io.Discard, In: bytes.NewReader(nil)})
	out(s, regData, 'x')
	require.ErrorIs(t, s.Close(), ErrUnflushed)
	require.ErrorIs(t, s.Close(), ErrUnflushed)
	require.ErrorIs(t, s.Drain(t.Context()), ErrUnflushed)
	require.NoError(t, NewSerial(SerialConfig{}).Close())
}

// TestSerialBackPressure: a full ring makes the vCPU wait, until there is room.
func TestSerialBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := NewSerial(SerialConfig{Out: g, OutBuffer: 10})
		s.Start()
		text := []byte("0123456789abcdefghij")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			sendAll(s, text)
		}()
		time.Sleep(time.Hour)
		assert.EqualValues(t, 10, s.Stats().Sent, "the byte that fills the ring is accepted before the wait")
		assert.Equal(t, lsrTHRE|lsrTEMT, int(in(s, regLSR)), "the status goes on saying yes")
		close(g.open)
		<-sent
		require.NoError(t, s.Drain(t.Context()))
		require.NoError(t, s.Close())
		assert.Equal(t, string(text), g.String())
		assert.Equal(t, SerialStats{Sent: 20, Written: 20}, s.Stats())
	})
}

// TestSerialSend: Send is Write without the wait, and WaitRoom is the wait.
func TestSerialSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		irq := newEdges()
		s := NewSerial(SerialConfig{Out: g, OutBuffer: 4, IRQ: irq})
		s.Start()
		out(s, regMCR, mcrOUT2)
		out(s, regIER, ierTHRE)
		require.EqualValues(t, 1, irq.n.Load())
		require.EqualValues(t, iirTHRE, in(s, regIIR)&0x0f)
		for _, b := range []byte("abcd") {
			s.WaitRoom()
			assert.False(t, s.Crowded())
			s.Send(b)
		}
		assert.EqualValues(t, 2, irq.n.Load(), "the first byte raises the interrupt")
		assert.True(t, s.Crowded())
		s.Send('e')
		waited := make(chan struct{})
		wait := func() {
			s.WaitRoom()
			waited <- struct{}{}
		}
		still := func() bool {
			synctest.Wait()
			select {
			case <-waited:
				return false
			default:
				return true
			}
		}
		go wait()
		require.True(t, still())
		s.Hold()
		<-waited
		s.WaitRoom()
		s.Release()
		go wait()
		require.True(t, still())
		close(g.open)
		<-waited
		assert.False(t, s.Crowded())
		out(s, regLCR, lcrDLAB)
		s.Send(7)
		assert.EqualValues(t, 7, s.State().DLL)
		out(s, regLCR, 0)
		require.NoError(t, s.Drain(t.Context()))
		require.NoError(t, s.Close())
		assert.Equal(t, "abcde", g.String())
		s.Send('f')
		s.WaitRoom()
		assert.EqualValues(t, 1, s.Stats().Dropped)
	})
}

// TestSerialHold: waiting vCPUs come back, none waits while held, nothing is lost, and Release brings waiting back.
func TestSerialHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := NewSerial(SerialConfig{Out: g, OutBuffer: 4})
		s.Start()
		var wg sync.WaitGroup
		for range 3 { // vCPUs
			wg.Go(func() { sendAll(s, []byte("abcd")) })
		}
		synctest.Wait()
		s.Hold()
		wg.Wait()
		sendAll(s, make([]byte, 5000))
		s.Release()
		back := make(chan struct{})
		go func() {
			defer close(back)
			out(s, regData, 'z')
		}()
		synctest.Wait()
		select {
		case <-back:
			t.Error("Write did not wait after Release")
		default:
		}
		close(g.open)
		<-back
		require.NoError(t, s.Drain(t.Context()))
		require.NoError(t, s.Close())
		assert.Equal(t, 5013, g.Len())
		assert.EqualValues(t, 5013, s.Stats().Written)
	})
}

// TestSerialHoldLimit: a held port that is written to for ever keeps no more than its limit.
func TestSerialHoldLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := NewSerial(SerialConfig{Out: g})
		s.Start()
		s.Hold()
		text := testBytes(SerialOutLimit+100, 4)
		sendAll(s, text)
		assert.EqualValues(t, 100, s.Stats().Dropped)
		assert.Len(t, s.tx.ring, SerialOutLimit)
		close(g.open)
		require.NoError(t, s.Drain(t.Context()))
		require.NoError(t, s.Close())
		assert.True(t, bytes.Equal(text[:SerialOutLimit], g.Bytes()))
	})
}

func TestSerialHoldKeepsRegisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		irq := newEdges()
		s := NewSerial(SerialConfig{In: r, IRQ: irq})
		s.Start()
		out(s, regFCR, 0xc1)
		out(s, regMCR, mcrOUT2)
		out(s, regIER, ierRDA)
		s.Hold()
		before := s.State()
		_, err := io.WriteString(w, "x")
		require.NoError(t, err)
		synctest.Wait()
		assert.Equal(t, before, s.State())
		assert.Zero(t, irq.take())
		s.Release()
		assert.Equal(t, 1, irq.take())
		assert.EqualValues(t, 'x', in(s, regData))
		require.NoError(t, w.Close())
		require.NoError(t, s.Close())
	})
}

// TestSerialCloseFreesWaiters: Close ends a wait that nobody else would.
func TestSerialCloseFreesWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := NewSerial(SerialConfig{Out: g, OutBuffer: 4})
		s.Start()
		var wg sync.WaitGroup
		start := time.Now()
		wg.Go(func() {
			sendAll(s, []byte("abcdefgh"))
			assert.Zero(t, time.Since(start)-time.Hour, "waiters come back at once")
		})
		time.Sleep(time.Hour)
		require.ErrorIs(t, s.Close(), ErrUnflushed)
		assert.LessOrEqual(t, time.Since(start)-time.Hour, 2*closeGrace)
		wg.Wait()
		for range 100 {
			out(s, regData, 'x')
		}
		close(g.open)
		synctest.Wait()
		assert.Equal(t, "abcd", g.String())
		assert.EqualValues(t, 108, s.Stats().Sent)
	})
}

// TestSerialCloseLeavesWriter: the writer that is left behind ends when Out lets it, and writes nothing more.
func TestSerialCloseLeavesWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := NewSerial(SerialConfig{Out: g})
		s.Start()
		sendAll(s, make([]byte, 3*txChunk))
		synctest.Wait()
		inside := <-g.entered
		require.ErrorIs(t, s.Close(), ErrUnflushed)
		close(g.open)
		<-s.tx.done
		assert.Equal(t, inside, g.Len())
		assert.Empty(t, g.entered)
	})
}

// TestSerialRingGrows: held senders make the ring grow while its oldest bytes are being written and its newest have
// wrapped around.
func TestSerialRingGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		s := NewSerial(SerialConfig{Out: g, OutBuffer: 4})
		s.Start()
		s.Hold()
		text := testBytes(5000, 5)
		sendAll(s, text[:4]) // no more: from its limit on the writer may take them at any moment
		require.Equal(t, 4, <-g.entered)
		sendAll(s, text[4:204])
		g.open <- struct{}{}
		require.Equal(t, 200, <-g.entered)
		sendAll(s, text[204:])
		close(g.open)
		require.NoError(t, s.Drain(t.Context()))
		require.NoError(t, s.Close())
		assert.True(t, bytes.Equal(text, g.Bytes()))
	})
}

// deadliner is an Out that blocks until a deadline is set.
type deadliner struct {
	mu  sync.Mutex
	set []time.Time
	ch  chan struct{}
}

func (d *deadliner) Write(p []byte) (int, error) {
	<-d.ch
	return 0, os.ErrDeadlineExceeded
}

func (d *deadliner) SetWriteDeadline(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.set = append(d.set, t); len(d.set) == 1 {
		close(d.ch)
	}
	return nil
}

func TestSerialCloseUsesWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &deadliner{ch: make(chan struct{})}
		s := NewSerial(SerialConfig{Out: d})
		s.Start()
		sendAll(s, []byte("lost"))
		err := s.Close()
		require.ErrorIs(t, err, ErrUnflushed)
		assert.ErrorContains(t, err, "4 bytes")
		require.NoError(t, s.OutErr(), "the deadline was ours")
		require.Len(t, d.set, 2)
		assert.True(t, d.set[1].IsZero(), "the deadline is taken back")
	})
}

// TestSerialPipes runs on real pipes, full and empty, which have deadlines.
func TestSerialPipes(t *testing.T) {
	checkGoroutines(t)
	inR, inW, err := os.Pipe()
	require.NoError(t, err)
	outR, outW, err := os.Pipe()
	require.NoError(t, err)
	for _, f := range []*os.File{inR, inW, outR, outW} {
		defer f.Close()
	}
	s := NewSerial(SerialConfig{In: inR, Out: outW})
	s.Start()
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		sendAll(s, make([]byte, 1<<20)) // more than pipe and ring hold
	}()
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.tx.full() && s.tx.written > 0
	}, 10*time.Second, time.Millisecond)
	start := time.Now()
	require.ErrorIs(t, s.Close(), ErrUnflushed)
	<-blocked
	assert.Less(t, time.Since(start), 5*time.Second)
	require.NoError(t, s.InErr())
	require.NoError(t, s.OutErr())

	// The files are as they were.
	_, err = inW.WriteString("next")
	require.NoError(t, err)
	p := make([]byte, 4)
	_, err = io.ReadFull(inR, p)
	require.NoError(t, err)
	assert.Equal(t, "next", string(p))
}

func TestSerialOutFails(t *testing.T) {
	checkGoroutines(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	require.NoError(t, r.Close())
	s := NewSerial(SerialConfig{Out: w, OutBuffer: 8})
	s.Start()
	sendAll(s, make([]byte, 1000))
	require.ErrorIs(t, s.Drain(t.Context()), syscall.EPIPE)
	require.ErrorIs(t, s.OutErr(), syscall.EPIPE)
	sendAll(s, make([]byte, 1000))
	assert.Equal(t, SerialStats{Sent: 2000, Dropped: 2000}, s.Stats())
	require.NoError(t, s.Close(), "the error was reported by OutErr")
}

// badWriter breaks the rules of io.Writer.
type badWriter func(p []byte) (int, error)

func (w badWriter) Write(p []byte) (int, error) { return w(p) }

func TestSerialBadWriters(t *testing.T) {
	full := errors.New("disk full")
	tests := []struct {
		name    string
		w       badWriter
		err     error
		written uint64
	}{
		{"short", func(p []byte) (int, error) { return 1, nil }, io.ErrShortWrite, 1},
		{"part and error", func(p []byte) (int, error) { return 2, full }, full, 2},
		{"too much", func(p []byte) (int, error) { return len(p) + 5, nil }, nil, 5},
		{"negative", func(p []byte) (int, error) { return -1, nil }, io.ErrShortWrite, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkGoroutines(t)
			s := NewSerial(SerialConfig{Out: tt.w})
			sendAll(s, []byte("hello"))
			s.Start()
			require.ErrorIs(t, s.Drain(t.Context()), tt.err)
			assert.Equal(t, SerialStats{Sent: 5, Written: tt.written, Dropped: 5 - tt.written}, s.Stats())
			require.NoError(t, s.Close())
		})
	}
}

type badReader func(p []byte) (int, error)

func (r badReader) Read(p []byte) (int, error) { return r(p) }

func TestSerialBadReaders(t *testing.T) {
	broken := errors.New("terminal gone")
	tests := []struct {
		name string
		r    badReader
		err  error
	}{
		{"end", func(p []byte) (int, error) { return 0, io.EOF }, nil},
		{"error", func(p []byte) (int, error) { return 0, broken }, broken},
		{"nothing for ever", func(p []byte) (int, error) { return 0, nil }, io.ErrNoProgress},
		{"too much", func(p []byte) (int, error) { return len(p) + 1, nil }, io.ErrNoProgress},
		{"negative", func(p []byte) (int, error) { return -1, nil }, io.ErrNoProgress},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkGoroutines(t)
			s := NewSerial(SerialConfig{In: tt.r})
			s.Start()
			<-s.rx.done
			require.ErrorIs(t, s.InErr(), tt.err)
			require.NoError(t, s.Close())
		})
	}
}

// TestSerialReadsAheadOnly: endless input that nobody takes is read as far as the buffer, and Close ends it there.
func TestSerialReadsAheadOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		s := NewSerial(SerialConfig{In: badReader(func(p []byte) (int, error) {
			k := min(len(p), 100)
			n += k
			return k, nil
		})})
		s.Start()
		synctest.Wait()
		assert.Equal(t, SerialInBuffer, n)
		require.NoError(t, s.Close())
	})
}

// TestSerialCloseLeavesReader: an In that can't be interrupted does not hold up Close.
func TestSerialCloseLeavesReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		s := NewSerial(SerialConfig{In: r})
		s.Start()
		synctest.Wait()
		start := time.Now()
		require.NoError(t, s.Close())
		assert.Zero(t, time.Since(start))
		_, err := io.WriteString(w, "late") // it takes what it waited for, and ends
		require.NoError(t, err)
		<-s.rx.done
		assert.Zero(t, s.Stats().Received)
	})
}

func TestSerialCloseDuringRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSerial(SerialConfig{In: bytes.NewReader(make([]byte, 64<<10))})
		s.Start()
		out(s, regIER, ierRDA)
		for !s.rx.resting {
			synctest.Wait()
			in(s, regData)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { assert.NoError(t, s.Close()) })
		}
		wg.Wait()
	})
}

// TestSerialConcurrent lets everything happen at once, for the race detector.
func TestSerialConcurrent(t *testing.T) {
	checkGoroutines(t)
	for range 20 {
		s := NewSerial(SerialConfig{IRQ: newEdges(), Out: io.Discard, OutBuffer: 64, In: bytes.NewReader(make([]byte, 1<<20)), OnByte: func(byte) {}})
		s.Start()
		var wg sync.WaitGroup
		for cpu := range 3 {
			wg.Go(func() {
				out(s, regFCR, 0xc1)
				out(s, regMCR, mcrOUT2|mcrRTS)
				for i := range 2000 {
					out(s, regIER, uint8(i)&ierMask)
					in(s, uint64(i+cpu)%8)
					in(s, regLSR)
					out(s, regData, uint8(i))
				}
			})
		}
		wg.Go(func() {
			for range 50 {
				s.Hold()
				s.SetState(s.State())
				s.Release()
				_ = s.Drain(t.Context())
				s.Stats()
			}
		})
		wg.Go(func() { _ = s.Close() })
		wg.Wait()
		require.NoError(t, s.Close())
	}
}

// TestSerialStreamAllocations: neither way allocates once it runs.
func TestSerialStreamAllocations(t *testing.T) {
	zero := badReader(func(p []byte) (int, error) { return len(p), nil })
	s := NewSerial(SerialConfig{IRQ: newEdges(), Out: io.Discard, In: zero, OnByte: func(byte) {}})
	s.Start()
	defer s.Close()
	out(s, regFCR, 0xc1)
	out(s, regMCR, mcrOUT2)
	out(s, regIER, ierRDA|ierTHRE)
	p := make([]byte, 1)
	assert.Zero(t, testing.AllocsPerRun(100_000, func() {
		s.Read(regLSR, p)
		s.Write(regData, p)
		s.Read(regIIR, p)
		s.Read(regData, p)
	}))
}

func BenchmarkSerialReadLSR(b *testing.B) {
	bus, _ := machineBus(b)
	p := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		bus.Read(0x3fd, p)
	}
}

func BenchmarkSerialWriteTHR(b *testing.B) {
	bus := NewBus("port")
	var last byte
	s := NewSerial(SerialConfig{Out: io.Discard, OnByte: func(v byte) { last = v }})
	require.NoError(b, bus.Add(0x3f8, SerialPorts, "com1", s))
	s.Start()
	defer s.Close()
	p := []byte{'x'}
	b.ReportAllocs()
	for b.Loop() {
		bus.Write(0x3f8, p)
	}
	_ = last
}

// BenchmarkSerialConsoleByte is what a byte costs that Linux prints: a read of LSR and a write of THR.
func BenchmarkSerialConsoleByte(b *testing.B) {
	s := NewSerial(SerialConfig{Out: io.Discard, OnByte: func(byte) {}})
	s.Start()
	defer s.Close()
	p := []byte{'x'}
	b.ReportAllocs()
	for b.Loop() {
		s.Read(regLSR, p)
		p[0] = 'x'
		s.Write(regData, p)
	}
}

func BenchmarkSerialReceive(b *testing.B) {
	s := NewSerial(SerialConfig{})
	out(s, regFCR, 0xc1)
	out(s, regIER, ierRDA)
	text := string(make([]byte, 1000))
	p := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		if s.rx.n == 0 {
			s.rx.resting, s.rx.burst = false, 0
			feed(s, text)
		}
		s.Read(regLSR, p)
		s.Read(regData, p)
	}
}
