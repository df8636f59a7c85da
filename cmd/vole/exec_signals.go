package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/vole-vmm/vole/vmm/harness"
)

// endingSignals end the guest the third time: a command may ignore them.
const endingSignals = 3

// watchSignals passes signals on to the command until stop:
//
//   - SIGINT, SIGTERM, SIGHUP and SIGQUIT go to the command. Before the guest has come up, and the
//     third time, they end it, with 128 and their number as the exit code.
//   - SIGUSR1 and SIGUSR2 go to the command; a few wait for the guest to come up.
//   - SIGTSTP and SIGCONT, where stdin is a terminal, give it back and take it again; SIGWINCH tells
//     the command of its window.
func (s *execSession) watchSignals(m *harness.Machine) *signals {
	w := &signals{ch: s.signals, done: make(chan struct{})}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		signal.Notify(w.ch, syscall.SIGHUP)
	}
	if !signal.Ignored(syscall.SIGINT) { // a job in the background of a script
		signal.Notify(w.ch, syscall.SIGINT)
	}
	signal.Notify(w.ch, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGWINCH)
	if s.term != nil {
		signal.Notify(w.ch, syscall.SIGTSTP, syscall.SIGCONT)
	}
	go func() {
		defer close(w.done)
		count := 0
		for sig := range w.ch {
			switch sig {
			case syscall.SIGTSTP:
				if !orphaned() {
					s.term.leave()
					_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
				}
			case syscall.SIGCONT:
				s.term.continued()
				s.resize()
			case syscall.SIGWINCH:
				s.resize()
			case syscall.SIGUSR1, syscall.SIGUSR2:
				s.early.Pass(sig.(syscall.Signal), s.cmd.Signal)
			default:
				number := sig.(syscall.Signal)
				count++
				if err := s.cmd.Signal(number); err == nil && count < endingSignals {
					continue
				}
				if count > endingSignals {
					// What is to end it all hangs itself.
					fmt.Fprintf(s.stderr, "%s\n", allStacks())
					s.term.release()
					os.Exit(128 + int(number))
				}
				s.cancel(&stopped{128 + int(number), signalNames[sig]})
			}
		}
	}()
	return w
}

// catchEarly has the signals noted that would do nothing at all before watchSignals: the
// runtime of Go drops them. Others end this process, rightly so.
func (s *execSession) catchEarly() {
	s.signals = make(chan os.Signal, harness.MaxEarlySignals)
	signal.Notify(s.signals, syscall.SIGUSR1, syscall.SIGUSR2)
}

// resize tells the command the size of its terminal's window.
func (s *execSession) resize() {
	if rows, cols, ok := s.files.size(); ok {
		_ = s.cmd.Resize(rows, cols)
	}
}
