package main

import (
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func isTerminal(fd int) bool { return term.IsTerminal(fd) }

// terminal is the terminal on stdin, raw while the guest has it. All methods are safe from any
// goroutine and may be called on a nil terminal (stdin is something else), which does nothing.
//
// It is only touched from the foreground: a job in the background leaves the settings to whoever
// has the terminal, and becomes raw when it is brought forward.
type terminal struct {
	fd    int
	guard *guard

	mu    sync.Mutex
	raw   bool
	left  bool // until continued
	ended bool // for good
	modes modes
}

// modes are the terminal's settings outside vole and under it.
type modes struct {
	Saved, Raw unix.Termios
}

// openTerminal returns nil if fd is not a terminal. SIGTTIN and SIGTTOU have to be ignored by then.
func openTerminal(fd int) *terminal {
	if !isTerminal(fd) {
		return nil
	}
	return &terminal{fd: fd}
}

// size is that of the terminal's window, in characters; a terminal that does not know has none.
func (t *terminal) size() (columns, rows int, ok bool) {
	if t == nil {
		return 0, 0, false
	}
	w, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ)
	if err != nil || w.Col == 0 || w.Row == 0 {
		return 0, 0, false
	}
	return int(w.Col), int(w.Row), true
}

// enter makes the terminal raw if this process is in its foreground and reports whether it is raw
// now. It starts the guard first, the first time.
func (t *terminal) enter() bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left || t.ended || !t.foreground() {
		return false
	}
	if t.raw {
		return true
	}
	saved, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	if err != nil {
		return false
	}
	if t.modes.Raw != (unix.Termios{}) && *saved == t.modes.Raw {
		// Nobody has touched what vole left: a SIGCONT without need, or after SIGSTOP.
		saved = &t.modes.Saved
	}
	raw := *saved
	makeRaw(&raw)
	t.modes = modes{Saved: *saved, Raw: raw}
	if t.guard == nil {
		// A guard that can't be started costs the restoration after SIGKILL and after a
		// panic outside the main goroutine, nothing else.
		t.guard, _ = startGuard(t.fd)
	}
	t.guard.tell(t.modes)
	if _, err := term.MakeRaw(t.fd); err != nil {
		return false
	}
	if now, err := unix.IoctlGetTermios(t.fd, unix.TCGETS); err == nil && *now != raw {
		t.modes.Raw = *now
		t.guard.tell(t.modes)
	}
	t.raw = true
	return true
}

// leave gives the terminal back the settings it had, until continued.
func (t *terminal) leave() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = true
	t.restore()
}

// restore gives the terminal back its settings; the lock is held.
func (t *terminal) restore() {
	if !t.raw {
		return
	}
	t.raw = false
	if t.foreground() {
		_ = unix.IoctlSetTermios(t.fd, unix.TCSETS, &t.modes.Saved)
		return
	}
	t.modes.restoreIfRaw(t.fd)
}

// release is leave for good: it ends the guard as well.
func (t *terminal) release() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.restore()
	t.ended = true
	t.guard.stop()
	t.guard = nil
}

// continued is what SIGCONT asks for: the settings may be anyone's by now.
func (t *terminal) continued() {
	if t == nil {
		return
	}
	t.mu.Lock()
	t.raw, t.left = false, false
	t.mu.Unlock()
	t.enter()
}

// isRaw says whether lines on this terminal need a carriage return.
func (t *terminal) isRaw() bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.raw
}

// foreground says whether this process may use the terminal. A terminal that is not the controlling
// one has no foreground and may always be used.
func (t *terminal) foreground() bool {
	pgrp, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	if err != nil {
		return true
	}
	return pgrp == unix.Getpgrp()
}

// restoreIfRaw puts the saved settings back unless somebody else has changed them since.
func (m modes) restoreIfRaw(fd int) {
	now, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil && *now == m.Raw {
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, &m.Saved)
	}
}

// makeRaw is what term.MakeRaw makes of the settings, for the guard to know them before they are
// in force.
func makeRaw(t *unix.Termios) {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CSIZE | unix.PARENB
	t.Cflag |= unix.CS8
	t.Cc[unix.VMIN] = 1
	t.Cc[unix.VTIME] = 0
}
