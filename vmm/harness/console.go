package harness

import (
	"bytes"
	"io"
	"sync"
)

// console sees everything that the guest's kernel prints.
type console struct {
	active func()
	oops   func(line string) // called at the first oops

	mu   sync.Mutex
	out  io.Writer // nil after its first error
	err  error
	line []byte
	seen bool
	// cause is the line in which the kernel said what happened, some lines ago.
	cause    string
	causeAge int
}

// causeLines is how many lines there may be between a cause and its oops.
const causeLines = 8

// maxLine is as much of a line as is looked at, in bytes.
const maxLine = 512

// Write never fails: a log that can't be written must not end the guest.
func (c *console) Write(p []byte) (int, error) {
	c.active()
	c.mu.Lock()
	if c.out != nil {
		if _, err := c.out.Write(p); err != nil {
			c.out, c.err = nil, err
		}
	}
	found := c.scan(p)
	c.mu.Unlock()
	if found != "" {
		c.oops(found)
	}
	return len(p), nil
}

// oopsed says whether the guest's kernel has.
func (c *console) oopsed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// failed is the log's error.
func (c *console) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// scan returns the line of the first oops if it ends in p.
func (c *console) scan(p []byte) (found string) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		c.line = append(c.line, part[:min(len(part), maxLine-len(c.line))]...)
		if i < 0 {
			return found
		}
		if !c.seen {
			found = c.look(c.line)
		}
		c.line = c.line[:0]
		p = p[i+1:]
	}
	return found
}

// look returns what an oops is called, if this line is the first one's.
func (c *console) look(line []byte) string {
	text := string(bytes.TrimSpace(withoutStamp(line)))
	c.causeAge++
	switch {
	case isOops(line):
		c.seen = true
		if c.cause != "" && c.causeAge <= causeLines {
			return c.cause + ": " + text
		}
		return text
	case isCause(line):
		c.cause, c.causeAge = text, 0
	}
	return ""
}

// isCause says whether a line is one by which the kernel says what is wrong before it
// oopses: "BUG: unable to handle page fault for address: ffffffffc0273780".
func isCause(line []byte) bool {
	text := withoutStamp(line)
	return len(text) < len(line) && (bytes.HasPrefix(text, []byte("BUG: ")) || bytes.HasPrefix(text, []byte("kernel BUG at ")))
}

// isOops says whether a line is the one that the kernel's die() begins with: what
// happened, and which one it is, as in "Oops: 0002 [#1] PREEMPT SMP". The kernel raises
// its console's level before, so that "quiet" does not hide it.
func isOops(line []byte) bool {
	text := withoutStamp(line)
	if len(text) == len(line) {
		return false
	}
	i := bytes.Index(text, []byte(" [#"))
	if i < 0 {
		return false
	}
	n := i + len(" [#")
	for n < len(text) && '0' <= text[n] && text[n] <= '9' {
		n++
	}
	return n > i+len(" [#") && n < len(text) && text[n] == ']'
}

// withoutStamp takes printk's "[   12.345678] " off a line.
func withoutStamp(line []byte) []byte {
	rest, ok := bytes.CutPrefix(line, []byte("["))
	if !ok {
		return line
	}
	i := bytes.IndexByte(rest, ']')
	if i < 0 {
		return line
	}
	for _, c := range rest[:i] {
		if c != ' ' && c != '.' && (c < '0' || c > '9') {
			return line
		}
	}
	return bytes.TrimPrefix(rest[i+1:], []byte(" "))
}
