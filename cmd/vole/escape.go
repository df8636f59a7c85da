package main

import (
	"io"
	"time"
)

// ctrlA introduces a command to vole in what is typed on a raw terminal.
const ctrlA = 0x01

// escapeHelp is what Ctrl-a h says.
const escapeHelp = `
Ctrl-a x  end the guest at once and leave (exit code 130)
Ctrl-a a  send Ctrl-a to the guest (also Ctrl-a Ctrl-a)
Ctrl-a h  this help
`

// deadlineReader is input whose wait can be ended.
type deadlineReader interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

// escapeReader passes on what is typed and takes out the Ctrl-a commands. A Ctrl-a followed by any
// other key is dropped with that key.
type escapeReader struct {
	in   deadlineReader
	quit func() // Ctrl-a x; the reader is at its end afterwards
	help func() // Ctrl-a h

	pending bool // the last byte was Ctrl-a
	ended   bool
}

// SetReadDeadline is that of the terminal.
func (e *escapeReader) SetReadDeadline(t time.Time) error { return e.in.SetReadDeadline(t) }

// Read returns what is left of the next input; it does not return before there is something.
func (e *escapeReader) Read(p []byte) (int, error) {
	for len(p) > 0 && !e.ended {
		n, err := e.in.Read(p)
		n = e.filter(p[:n])
		if n > 0 || err != nil {
			return n, err
		}
	}
	if e.ended {
		return 0, io.EOF
	}
	return 0, nil
}

// filter works in place, for a command is never shorter than what it sends, and returns how many
// bytes are left.
func (e *escapeReader) filter(p []byte) int {
	n := 0
	for _, b := range p {
		if !e.pending {
			if b == ctrlA {
				e.pending = true
				continue
			}
			p[n] = b
			n++
			continue
		}
		e.pending = false
		switch b {
		case 'x', 'X':
			e.ended = true
			e.quit()
			return n
		case 'h', 'H', '?':
			e.help()
		case 'a', ctrlA:
			p[n] = ctrlA
			n++
		}
	}
	return n
}
