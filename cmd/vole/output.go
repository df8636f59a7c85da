package main

import (
	"errors"
	"os"
	"sync"
	"time"
)

// guestOutput is where the guest's console goes. Its first error, other than that of a deadline,
// ends the run: a guest whose output nobody can have is not run on unseen.
type guestOutput struct {
	name   string
	stream *stream     // nil until open, with --console
	file   *outputFile // that of --console, or nil
	failed func(error)

	writing  sync.Mutex // held by one of the two consoles that may write
	mu       sync.Mutex
	firstErr error
	inLine   bool // the last byte was not the end of a line
}

func (g *guestOutput) close() {
	switch {
	case g.file != nil:
		g.file.close()
	case g.stream != nil:
		_ = g.stream.Close()
	}
}

// Write waits until all of p is taken, or the deadline.
func (g *guestOutput) Write(p []byte) (int, error) {
	g.writing.Lock()
	defer g.writing.Unlock()
	n, err := g.stream.Write(p)
	if n > 0 {
		g.mu.Lock()
		g.inLine = p[n-1] != '\n'
		g.mu.Unlock()
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		g.mu.Lock()
		first := g.firstErr == nil
		if first {
			g.firstErr = err
		}
		g.mu.Unlock()
		if first {
			g.failed(err)
		}
	}
	return n, err
}

// SetWriteDeadline makes a Write that waits, and every later one, fail from t on.
func (g *guestOutput) SetWriteDeadline(t time.Time) error {
	if g.stream == nil {
		return nil
	}
	return g.stream.SetWriteDeadline(t)
}

// endLine lets vole's own words begin on a line of their own where the guest's came out on the same
// terminal.
func (g *guestOutput) endLine(stderr *lineWriter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inLine && g.file == nil && stderr.tty && isTerminal(int(os.Stdout.Fd())) {
		_, _ = stderr.Write([]byte("\n"))
		g.inLine = false
	}
}

// err is the first error of the output.
func (g *guestOutput) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.firstErr
}
