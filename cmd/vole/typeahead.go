package main

import (
	"bytes"
	"io"
	"os"
	"sync"
	"time"
)

// Bounds of what is typed ahead, in bytes.
const (
	typeaheadMax  = 1 << 20
	typeaheadKeep = 64 << 10 // a larger buffer is given back once it is empty
)

// typeahead keeps what is typed until the guest takes it, so that the terminal is read also while
// the guest takes nothing: without that, Ctrl-a x behind a few unread kilobytes would not be seen.
// Beyond typeaheadMax the terminal waits; nothing is dropped.
//
// It outlives the machines of a run that restarts. Read is for one goroutine at a time.
type typeahead struct {
	in   deadlineReader
	done chan struct{} // closed when the terminal is read no more

	mu       sync.Mutex
	cond     sync.Cond // anything below changed
	started  bool
	buf      bytes.Buffer
	err      error // of in, once buf is empty
	stopped  bool
	deadline time.Time
	timer    *time.Timer
}

// newTypeahead will read in from the first Read on. The caller stops it.
func newTypeahead(in deadlineReader) *typeahead {
	a := &typeahead{in: in, done: make(chan struct{})}
	a.cond.L = &a.mu
	return a
}

func (a *typeahead) fill() {
	defer close(a.done)
	p := make([]byte, 4096)
	for {
		n, err := a.in.Read(p)
		a.mu.Lock()
		a.buf.Write(p[:n])
		if a.err = err; err == nil && a.stopped {
			a.err = os.ErrClosed
		}
		a.cond.Broadcast()
		for a.err == nil && a.buf.Len() >= typeaheadMax {
			if a.cond.Wait(); a.stopped {
				a.err = os.ErrClosed
			}
		}
		end := a.err != nil
		a.mu.Unlock()
		if end {
			return
		}
	}
}

// Read waits for something typed.
func (a *typeahead) Read(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.started && !a.stopped {
		a.started = true
		go a.fill()
	}
	for {
		switch {
		case !a.deadline.IsZero() && !time.Now().Before(a.deadline):
			return 0, os.ErrDeadlineExceeded
		case a.buf.Len() > 0:
			n, _ := a.buf.Read(p)
			if a.buf.Len() == 0 && a.buf.Cap() > typeaheadKeep {
				a.buf = bytes.Buffer{}
			}
			a.cond.Broadcast()
			return n, nil
		case a.err != nil:
			return 0, a.err
		}
		a.cond.Wait()
	}
}

// SetReadDeadline ends a Read that waits, and every later one, from t on; what is typed meanwhile is
// kept. The zero time takes it away. Safe from any goroutine.
func (a *typeahead) SetReadDeadline(t time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	a.deadline = t
	if !t.IsZero() {
		a.timer = time.AfterFunc(time.Until(t), func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.cond.Broadcast()
		})
	}
	a.cond.Broadcast()
	return nil
}

// stop ends the reading of the terminal and waits until that has ended. A Read gets io.EOF.
func (a *typeahead) stop() {
	a.mu.Lock()
	a.stopped = true
	started := a.started
	a.cond.Broadcast()
	a.mu.Unlock()
	if started {
		_ = a.in.SetReadDeadline(time.Now())
		<-a.done
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = io.EOF
	a.cond.Broadcast()
}
