package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// stopped is why vole ended a guest that had not ended by itself, and the exit code for that.
type stopped struct {
	code int
	why  string
}

func (s *stopped) Error() string { return s.why }

// signalNames are the signals that end a run.
var signalNames = map[os.Signal]string{
	syscall.SIGHUP: "SIGHUP", syscall.SIGINT: "SIGINT", syscall.SIGQUIT: "SIGQUIT", syscall.SIGTERM: "SIGTERM",
}

// signals is what a run does about signals, from watch to stop:
//
//   - SIGINT, SIGTERM, SIGHUP and SIGQUIT cancel the run with 128 and their number as the exit code
//     (SIGQUIT prints all goroutines first); the second of them gives the terminal back and ends
//     the process there and then. SIGHUP stays ignored where it was from the start.
//   - SIGUSR1 and SIGUSR2 are for the guest that runs: see [live].
//   - SIGTSTP and SIGCONT, where stdin is a terminal, give it back and take it again.
//   - SIGWINCH, where stdin is a terminal, tells a guest with a virtio console of its size.
//   - SIGPIPE, SIGTTIN and SIGTTOU are ignored: a broken stdout is the error that the write
//     returns, and a job in the background goes on running without the terminal.
type signals struct {
	ch   chan os.Signal
	done chan struct{}
}

// ignoreStops has to come before the first use of the terminal.
func ignoreStops() { signal.Ignore(syscall.SIGPIPE, syscall.SIGTTIN, syscall.SIGTTOU) }

// watchSignals begins. exit ends the process; it does not return.
func watchSignals(cancel context.CancelCauseFunc, term *terminal, guest *live, stderr io.Writer, log *slog.Logger, exit func(int)) *signals {
	s := &signals{ch: make(chan os.Signal, 8), done: make(chan struct{})}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		signal.Notify(s.ch, syscall.SIGHUP)
	}
	signal.Notify(s.ch, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
	if term != nil {
		signal.Notify(s.ch, syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGWINCH)
	}
	go func() {
		defer close(s.done)
		asked := false
		for sig := range s.ch {
			switch sig {
			case syscall.SIGTSTP:
				// What the default action would do, which can't be had back from
				// the Go runtime.
				if !orphaned() {
					term.leave()
					_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
				}
				continue
			case syscall.SIGUSR1:
				guest.resizeDisks(log)
				continue
			case syscall.SIGUSR2:
				guest.powerButton(log)
				continue
			case syscall.SIGWINCH:
				guest.resizeConsole(term)
				continue
			case syscall.SIGCONT:
				term.continued()
				guest.resizeConsole(term) // the foreground's group was told of a change meanwhile
				log.Debug("continued", "raw", term.isRaw())
				continue
			case syscall.SIGQUIT:
				fmt.Fprintf(stderr, "%s\n", allStacks())
			}
			code := 128 + int(sig.(syscall.Signal))
			if asked {
				term.release()
				exit(code)
			}
			asked = true
			cancel(&stopped{code, signalNames[sig]})
		}
	}()
	return s
}

// orphaned says whether the process group has nobody who could continue it: no member has a parent
// in another group of the session. The kernel drops SIGTSTP there. Only this process's line of
// parents is looked at.
func orphaned() bool {
	session, err := unix.Getsid(0)
	if err != nil {
		return true
	}
	group, parent := unix.Getpgrp(), os.Getppid()
	for parent > 0 {
		if sid, err := unix.Getsid(parent); err != nil || sid != session {
			return true
		}
		if pgid, err := unix.Getpgid(parent); err != nil || pgid != group {
			return err != nil
		}
		b, err := os.ReadFile("/proc/" + strconv.Itoa(parent) + "/stat")
		if err != nil {
			return true
		}
		n, ok := statField(b, 4) // ppid
		if !ok {
			return true
		}
		parent = int(n)
	}
	return true
}

// stop gives the signals back; the next one does what it does by default.
func (s *signals) stop() {
	signal.Stop(s.ch)
	close(s.ch)
	<-s.done
}

// allStacks is what the Go runtime prints on SIGQUIT.
func allStacks() []byte {
	buf := make([]byte, 1<<20)
	return buf[:runtime.Stack(buf, true)]
}
