package vmtest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/vmm/harness"
	"github.com/vole-vmm/vole/vmm/harness/gotest"
)

const (
	// endingSignals end the guest the third time: a test may ignore them.
	endingSignals = 3
	// minDump and maxDump bound how long a test may take to dump its goroutines: `go
	// test` waits for a tenth of -timeout, five seconds at least, and then kills.
	minDump = 4 * time.Second
	maxDump = time.Minute
)

// stopped is a signal that has ended a run.
type stopped struct {
	code int
	why  string
}

func (s *stopped) Error() string { return s.why }

// dumpBound is how long the tests may take to end by SIGQUIT.
func dumpBound(timeout string) time.Duration {
	d, err := time.ParseDuration(timeout)
	if err != nil || d <= 0 {
		return maxDump
	}
	return min(max(d/10-time.Second, minDump), maxDump)
}

// watchSignals passes signals on to the tests until stop is called. SIGUSR1 and SIGUSR2
// wait for the guest to come up. Before that, and the third time, the others end it. SIGQUIT, by which `go test` ends a test that
// takes too long, ends it as well if the tests do not end in time.
func (r *mainRun) watchSignals(m *harness.Machine) (stop func()) {
	ch := make(chan os.Signal, 8)
	sigs := []os.Signal{syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2}
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if !signal.Ignored(s) { // by nohup, or a script's job in the background
			sigs = append(sigs, s)
		}
	}
	signal.Notify(ch, sigs...)
	done, joined := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(joined)
		var late <-chan time.Time
		for count := 0; ; {
			select {
			case <-done:
				return
			case <-late:
				r.cancel(&stopped{2, "SIGQUIT, and the tests do not end"})
				late = nil
			case sig := <-ch:
				number := sig.(syscall.Signal)
				if number == syscall.SIGUSR1 || number == syscall.SIGUSR2 {
					r.early.Pass(number, r.cmd.Signal)
					continue
				}
				err := r.cmd.Signal(number)
				if number == syscall.SIGQUIT && late == nil {
					late = time.After(dumpBound(gotest.Flags(r.args)["timeout"]))
				}
				count++
				if err == nil && count < endingSignals {
					continue
				}
				if count > endingSignals {
					// What is to end it all hangs itself.
					fmt.Fprintf(r.stderr, "%s\n", allStacks())
					os.Exit(128 + int(number))
				}
				r.cancel(&stopped{128 + int(number), number.String()})
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
		<-joined
	}
}

// greet has the signals sent that wait for the guest to be up. What it returns joins that.
func (r *mainRun) greet(ctx context.Context, m *harness.Machine) (join func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := m.Guest().Ready(ctx); err == nil {
			r.early.Send(r.cmd.Signal)
		}
	}()
	return func() { cancel(); <-done }
}

// allStacks are the stacks of all goroutines here.
func allStacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}
