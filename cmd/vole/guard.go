package main

import (
	"encoding/json"
	"os"
	"os/signal"
	"syscall"
)

// guardName is argv[0] of the terminal guard.
const guardName = "vole: terminal guard"

// guardPipe is the descriptor on which the guard hears from vole.
const guardPipe = 3

// guard is a process that gives the terminal back its settings when vole dies without doing so
// itself: killed by SIGKILL, or by a panic on a goroutine with no chance to clean up (any panic
// outside the main goroutine, a fatal error of the Go runtime). It is this binary again, holds the
// terminal and the read end of a pipe, and acts when the pipe's other end is gone. It exists only
// while stdin is a raw terminal.
type guard struct {
	pipe *os.File
	pid  int
}

// startGuard starts the guard for the terminal tty.
func startGuard(tty int) (*guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	const closed = ^uintptr(0)
	pid, err := syscall.ForkExec("/proc/self/exe", []string{guardName}, &syscall.ProcAttr{
		Files: []uintptr{0: uintptr(tty), 1: closed, 2: closed, guardPipe: r.Fd()},
		Env:   []string{"GOMAXPROCS=1"},
		// Its own group, so that a signal to vole's whole group leaves it alive.
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		w.Close()
		return nil, &os.PathError{Op: "exec", Path: "/proc/self/exe", Err: err}
	}
	return &guard{pipe: w, pid: pid}, nil
}

// tell gives the guard the settings to restore and those it may replace; the last ones count.
func (g *guard) tell(m modes) {
	if g == nil {
		return
	}
	// A guard that is gone can't be told; vole itself still restores.
	_ = json.NewEncoder(g.pipe).Encode(m)
}

// stop ends the guard without its doing anything, and waits until it is gone.
func (g *guard) stop() {
	if g == nil {
		return
	}
	_ = syscall.Kill(g.pid, syscall.SIGKILL)
	for {
		if _, err := syscall.Wait4(g.pid, nil, 0, nil); err != syscall.EINTR {
			break
		}
	}
	g.pipe.Close()
}

// isGuard says whether this process was started by startGuard.
func isGuard(args []string) bool { return len(args) == 1 && args[0] == guardName }

// guardMain is the guard: it waits for the other end of its pipe to go away and then restores the
// terminal on descriptor 0.
func guardMain() int {
	// SIGTTOU ignored is what lets it set a terminal it is not in the foreground of.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGTSTP,
		syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGPIPE)
	in := json.NewDecoder(os.NewFile(guardPipe, "pipe"))
	var last modes
	told := false
	for {
		var m modes
		if err := in.Decode(&m); err != nil {
			break
		}
		last, told = m, true
	}
	if !told {
		return codeHost
	}
	last.restoreIfRaw(0)
	return codeOK
}
