package main

import (
	"bytes"
	"io"
	"os"
	"sync"
)

// newStderr is stderr, or f in its place, as a writer that nobody can hold up by not reading: what is
// not taken in time is lost. close gives back what it holds, not f.
func newStderr(f *os.File) (w io.Writer, close func()) {
	s, err := newStream(int(f.Fd()), os.O_WRONLY)
	if err != nil {
		return f, func() {}
	}
	return &boundedWriter{stream: s}, func() { _ = s.Close() }
}

// lineWriter is stderr for as long as the terminal may be raw: it gives each line the carriage
// return that the terminal then does not add.
type lineWriter struct {
	mu      sync.Mutex
	w       io.Writer
	release func()
	tty     bool // w is a terminal
	raw     func() bool
}

func newLineWriter(f *os.File, t *terminal) *lineWriter {
	l := &lineWriter{tty: isTerminal(int(f.Fd())), raw: t.isRaw}
	l.w, l.release = newStderr(f)
	return l
}

// close ends the use of stderr; what is written later is dropped.
func (l *lineWriter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = io.Discard
	l.release()
}

// Write writes p, which should be whole lines.
func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.tty || !l.raw() {
		return l.w.Write(p)
	}
	if _, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
