package main

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/vmm/harness"
)

// execFiles are the standard files of vole that become the command's.
type execFiles struct {
	in, out, err *stream // nil for /dev/null and what was closed
	shown        *stream // the terminal, where one of them is one
	onTerminal   [3]bool
	typed        *typeahead // of in, if that is the terminal
	quit         func()     // Ctrl-] three times
}

// open takes hold of them.
func (f *execFiles) open(s *execSession) (err error) {
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	for i, one := range []struct {
		name string
		file *os.File
		flag int
		dst  **stream
	}{
		{"stdin", os.Stdin, os.O_RDONLY, &f.in}, {"stdout", os.Stdout, os.O_WRONLY, &f.out}, {"stderr", os.Stderr, os.O_WRONLY, &f.err},
	} {
		fd := int(one.file.Fd())
		if isNull(fd) {
			continue
		}
		f.onTerminal[i] = isTerminal(fd)
		if *one.dst, err = newStream(fd, one.flag); err != nil {
			return fmt.Errorf("%s: %w", one.name, err)
		}
	}
	// The guest has one terminal. What is another one here, as after >/dev/pts/7, is a
	// stream like any.
	var seat uint32
	for i, file := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		switch fd := int(file.Fd()); {
		case !f.onTerminal[i]:
		case f.shown == nil:
			if f.shown, err = newStream(fd, os.O_WRONLY); err != nil {
				return fmt.Errorf("the terminal: %w", err)
			}
			seat = terminalNumber(fd)
		case terminalNumber(fd) != seat:
			f.onTerminal[i] = false
		}
	}
	if f.onTerminal[0] && s.term != nil {
		f.in.hold = func() bool { return !s.term.enter() }
	}
	f.quit = func() { s.cancel(&stopped{codeInterrupted, "Ctrl-] three times"}) }
	return nil
}

// terminalNumber tells terminals apart; /dev/tty is the one that it stands for.
func terminalNumber(fd int) uint32 {
	n, _ := unix.IoctlGetUint32(fd, unix.TIOCGDEV)
	return n
}

// isNull says whether nothing can be read from and written to a descriptor.
func isNull(fd int) bool {
	var st, null unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return true
	}
	return unix.Stat(os.DevNull, &null) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == null.Rdev
}

// audience is told of what comes of the command, and when who takes it keeps that waiting.
type audience interface {
	Await()
	Awaited()
}

// connect makes them the command's.
func (f *execFiles) connect(c *remote.Cmd, a audience) {
	if f.in != nil && !f.onTerminal[0] {
		c.Stdin = f.in
	}
	if f.out != nil && !f.onTerminal[1] {
		c.Stdout = &activeWriter{f.out, a}
	}
	if f.err != nil && !f.onTerminal[2] {
		c.Stderr = &activeWriter{f.err, a}
		if c.Stdout != nil && harness.SameFile(os.Stdout, os.Stderr) {
			c.Stderr = c.Stdout // what is written to both keeps its order
		}
	}
	if f.shown == nil {
		return
	}
	c.Terminal = &remote.Terminal{Rows: 24, Cols: 80, Files: f.onTerminal, Out: &activeWriter{f.shown, a}}
	if rows, cols, ok := f.size(); ok {
		c.Terminal.Rows, c.Terminal.Cols = rows, cols
	}
	if f.onTerminal[0] {
		f.typed = newTypeahead(&escapeWatch{in: f.in, quit: f.quit})
		c.Terminal.In = f.typed
	}
}

// size is that of the terminal's window; one without a size has none.
func (f *execFiles) size() (rows, cols uint16, ok bool) {
	if f.shown == nil {
		return 0, 0, false
	}
	w, err := unix.IoctlGetWinsize(f.shown.fd, unix.TIOCGWINSZ)
	if err != nil || w.Row == 0 || w.Col == 0 {
		return 0, 0, false
	}
	return w.Row, w.Col, true
}

func (f *execFiles) close() {
	if f.typed != nil {
		f.typed.stop()
		f.typed = nil
	}
	for _, s := range []**stream{&f.in, &f.out, &f.err, &f.shown} {
		if *s != nil {
			_ = (*s).Close()
			*s = nil
		}
	}
}

// activeWriter tells of what is written.
type activeWriter struct {
	w *stream
	a audience
}

// SetWriteDeadline is that of the stream.
func (a *activeWriter) SetWriteDeadline(t time.Time) error { return a.w.SetWriteDeadline(t) }

func (a *activeWriter) Write(p []byte) (int, error) {
	a.a.Await()
	defer a.a.Awaited()
	return a.w.Write(p)
}

// ctrlBracket ends the guest when it is typed escapeCount times within escapeTime.
const (
	ctrlBracket = 0x1d
	escapeCount = 3
	escapeTime  = time.Second
)

// escapeWatch passes on everything that is typed, and sees the escape in it.
type escapeWatch struct {
	in   deadlineReader
	quit func()

	count int
	first time.Time
}

// SetReadDeadline is that of the terminal.
func (e *escapeWatch) SetReadDeadline(t time.Time) error { return e.in.SetReadDeadline(t) }

func (e *escapeWatch) Read(p []byte) (int, error) {
	n, err := e.in.Read(p)
	e.see(p[:n], time.Now())
	return n, err
}

func (e *escapeWatch) see(p []byte, now time.Time) {
	if bytes.IndexByte(p, ctrlBracket) < 0 {
		if len(p) > 0 {
			e.count = 0
		}
		return
	}
	for _, b := range p {
		if b != ctrlBracket {
			e.count = 0
			continue
		}
		if e.count == 0 || now.Sub(e.first) > escapeTime {
			e.count, e.first = 0, now
		}
		if e.count++; e.count == escapeCount {
			e.quit()
		}
	}
}
