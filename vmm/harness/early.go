package harness

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Endings returns a context that the signals that end a process cancel from now on,
// instead of ending it, until stop is called. Those stay ignored that are.
func Endings(parent context.Context) (ctx context.Context, stop context.CancelFunc) {
	sigs := []os.Signal{syscall.SIGQUIT, syscall.SIGTERM}
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if !signal.Ignored(s) { // by nohup, or a script's job in the background
			sigs = append(sigs, s)
		}
	}
	return signal.NotifyContext(parent, sigs...)
}

// MaxEarlySignals is how many signals [EarlySignals] keeps.
const MaxEarlySignals = 16

// EarlySignals keeps signals for a command until its guest is up, as a program that is
// just being started has them kept by its kernel. The zero value is ready for use, by
// any number of goroutines.
type EarlySignals struct {
	mu      sync.Mutex
	up      bool
	pending []syscall.Signal
}

// Pass sends a signal by to, at once or when the guest is up. Of too many the last are
// dropped.
func (e *EarlySignals) Pass(sig syscall.Signal, to func(syscall.Signal) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.up {
		_ = to(sig)
	} else if len(e.pending) < MaxEarlySignals {
		e.pending = append(e.pending, sig)
	}
}

// Send is called when the guest is up, and sends what was kept.
func (e *EarlySignals) Send(to func(syscall.Signal) error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.up = true
	for _, sig := range e.pending {
		_ = to(sig)
	}
	e.pending = nil
}
