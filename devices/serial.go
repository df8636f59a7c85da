package devices

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// SerialPorts is the number of ports that a [Serial] takes.
	SerialPorts = 8
	// SerialOutBuffer is the default of [SerialConfig.OutBuffer], in bytes.
	SerialOutBuffer = 64 << 10
	// SerialOutLimit bounds the bytes of output that a [Serial] holds under any circumstances.
	SerialOutLimit = 1 << 20
	// SerialInBuffer is how many bytes of input a [Serial] reads ahead.
	SerialInBuffer = 4 << 10
)

// closeGrace is how long [Serial.Close] waits for a stream, once to finish and once more to obey a deadline.
const closeGrace = 250 * time.Millisecond

// Errors of [Serial].
var (
	ErrNotStarted = errors.New("serial port not started")
	ErrUnflushed  = errors.New("output not written")
)

// SerialConfig says what a [Serial] is connected to. Every field may be left out.
type SerialConfig struct {
	// IRQ is the port's interrupt line.
	IRQ Interrupt

	// Out takes what the guest sends, in writes of up to 16 KiB, from one goroutine. It may block: the guest waits then.
	// After its first error it is not called again, and what the guest sends is thrown away.
	Out io.Writer
	// OutBuffer is how many bytes may wait for Out before the guest has to; 0 is SerialOutBuffer.
	OutBuffer int
	// OnByte sees every byte that the guest sends, in order, on the thread that calls Write or Send and under the port's
	// lock: it must be quick and must not call the port.
	OnByte func(b byte)

	// In gives what the guest receives. It is read from one goroutine, at most SerialInBuffer bytes ahead. Its end is the
	// end of input and nothing else.
	In io.Reader
}

// Serial is a 16550A UART (PC16550D data sheet). Its wire has no speed: a byte sent is gone at once, so THRE and TEMT
// are always set, and the receiver's character timeout has always passed. A byte that is not lost on the way to Out or
// from In is worth more here than a byte in time: the sender waits while Out is blocked, and input waits on the host
// until the guest listens and has room, so there is no overrun outside loopback mode.
//
// All methods may be called from any goroutine. Read and Send never wait; Write and WaitRoom only as described at Hold.
type Serial struct {
	irq    Interrupt
	onByte func(byte)
	in     io.Reader
	out    io.Writer

	// lsr is what a read of LSR returns, plus lsrSlow when such a read has side effects. Written under mu.
	lsr atomic.Uint32

	mu      sync.Mutex
	st      SerialState
	line    bool // the interrupt line is active
	started bool
	closing bool
	held    bool
	closed  chan struct{} // closed when Close has done its work
	err     error         // what Close returned

	tx serialTx
	rx serialRx
}

// SerialState is the registers of a [Serial], by their names in the data sheet. What waits on the host for Out or from
// In is not among them.
type SerialState struct {
	DLL, DLM uint8
	IER      uint8
	FCR      uint8 // FIFO enable, DMA mode and trigger level
	LCR      uint8
	MCR      uint8
	LSR      uint8 // only the error bits; the others follow from the rest
	MSR      uint8
	SCR      uint8

	THREPending bool     // the THRE interrupt has been raised and not been read or serviced
	RTSRaised   bool     // the guest has raised RTS at least once: from then on RTS is flow control
	RX          [16]byte // the receiver FIFO, oldest byte first; in 16450 mode RX[0] is RBR
	RXLen       uint8
	RXLoop      uint16 // bit n: RX[n] was sent by the guest itself, in loopback mode
}

// NewSerial returns a port in the state after reset. It accepts accesses at once and moves bytes after Start.
func NewSerial(cfg SerialConfig) *Serial {
	s := &Serial{irq: cfg.IRQ, onByte: cfg.OnByte, in: cfg.In, out: cfg.Out, closed: make(chan struct{})}
	s.st = SerialState{DLL: 12, MSR: externalLines}
	s.tx.init(s, cfg.OutBuffer)
	s.rx.init(s)
	s.settle()
	return s
}

// Start starts the goroutines that serve In and Out. A second call, or one after Close, does nothing.
func (s *Serial) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.closing {
		return
	}
	s.started = true
	if s.out != nil {
		s.tx.done = make(chan struct{})
		go s.tx.run()
	}
	if s.in != nil {
		s.rx.done = make(chan struct{})
		go s.rx.run()
	}
}

// Hold lets go of every vCPU that waits in Write or WaitRoom because Out is slow, and makes no further one wait; input
// stays where it is, so that the registers change only by the guest's own accesses. Bytes sent meanwhile are kept, up to
// SerialOutLimit in all: what a guest sends beyond that, while held, is thrown away and counted. Hold is for the moments
// in which vCPUs have to come back: before they are stopped for good or for a pause.
func (s *Serial) Hold() {
	s.mu.Lock()
	s.held = true
	s.settle()
	s.tx.moved.Broadcast()
	s.mu.Unlock()
}

// Release ends a Hold.
func (s *Serial) Release() {
	s.mu.Lock()
	s.held = false
	s.receiveAndPulse()
}

// Drain waits until Out has taken all bytes that the guest had sent when Drain was called. The error is Out's first, the
// context's, or ErrNotStarted; ErrUnflushed when the port was closed before.
func (s *Serial) Drain(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.tx.moved.Broadcast()
		s.mu.Unlock()
	})
	defer stop()

	s.mu.Lock()
	defer s.mu.Unlock()
	target := s.tx.accepted
	s.tx.flush(target)
	for {
		switch {
		case s.tx.err != nil:
			return s.tx.err
		case s.tx.written >= target:
			return nil
		case s.tx.ended:
			return ErrUnflushed
		case !s.started:
			return ErrNotStarted
		case ctx.Err() != nil:
			return fmt.Errorf("%d bytes of console output are still to be written: %w", target-s.tx.written, context.Cause(ctx))
		}
		s.tx.moved.Wait()
	}
}

// Close stops the port's goroutines and returns when they have ended. Waiting vCPUs come back; the registers go on
// answering, what the guest sends is thrown away. What was still to be written is written first if Out takes it within
// a quarter of a second.
//
// A goroutine inside a blocked Out.Write or In.Read is freed by SetWriteDeadline or SetReadDeadline where the stream has
// it (the deadline is taken back afterwards). Where it has not, or doesn't obey, Close leaves the goroutine behind; it
// ends as soon as the call returns, and does no more than that. Bytes left over are ErrUnflushed.
func (s *Serial) Close() error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		<-s.closed
		return s.err
	}
	s.closing = true
	s.tx.flush(s.tx.accepted)
	s.tx.moved.Broadcast()
	s.rx.room.Broadcast()
	s.settle()
	s.mu.Unlock()

	s.rx.stop()
	s.tx.stop()

	s.mu.Lock()
	s.tx.ended = true
	s.tx.moved.Broadcast()
	if n := s.tx.accepted - s.tx.written; n > 0 && s.tx.err == nil && s.out != nil {
		s.err = fmt.Errorf("%d bytes of console output: %w", n, ErrUnflushed)
	}
	s.mu.Unlock()
	close(s.closed)
	return s.err
}

// OutErr returns the first error of Out, or nil.
func (s *Serial) OutErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tx.err
}

// InErr returns the error that ended the input, or nil: io.EOF is no error.
func (s *Serial) InErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rx.err
}

// SerialStats counts bytes.
type SerialStats struct {
	Sent     uint64 // by the guest
	Written  uint64 // of these, to Out
	Dropped  uint64 // of these, thrown away: no Out, Out failed, closed, or SerialOutLimit passed
	Received uint64 // from In into the guest's FIFO
}

// Stats returns the counts so far.
func (s *Serial) Stats() SerialStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SerialStats{
		Sent:     s.tx.accepted + s.tx.dropped,
		Written:  s.tx.written - s.tx.lost,
		Dropped:  s.tx.dropped + s.tx.lost,
		Received: s.rx.received,
	}
}

// State returns the registers. Hold first, and Drain if what the guest has sent is to be out.
func (s *Serial) State() SerialState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st
}

// SetState replaces the registers and the receiver FIFO, without the bits that they do not have; what waits on the host
// goes on waiting. If an interrupt is pending in the new state, it is raised anew.
func (s *Serial) SetState(st SerialState) {
	st.IER &= ierMask
	st.FCR &= fcrKeep
	if st.FCR&fcrEnable == 0 {
		st.FCR = 0
	}
	st.MCR &= mcrMask
	st.LSR &= lsrErrors

	s.mu.Lock()
	s.st = st
	s.st.RXLen = min(st.RXLen, s.rxSize())
	s.st.RXLoop &= 1<<s.st.RXLen - 1
	s.st.MSR = st.MSR&msrDeltas | s.lines()
	s.rx.polls = 0
	s.line = false
	s.receiveAndPulse()
}

// pulse raises the interrupt. It is called without the lock.
func (s *Serial) pulse() {
	if s.irq != nil {
		s.irq.Pulse()
	}
}

// within waits for done for at most d and reports whether it came.
func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// interrupt makes set, a SetReadDeadline or SetWriteDeadline, free the goroutine that closes done, and reports whether
// that worked.
func interrupt(set func(time.Time) error, done <-chan struct{}) bool {
	if set(time.Unix(1, 0)) != nil {
		return false
	}
	ended := within(done, closeGrace)
	if ended {
		_ = set(time.Time{})
	}
	return ended
}

// isDeadline reports whether err comes from interrupt.
func isDeadline(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
