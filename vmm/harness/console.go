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
}

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
		if !c.seen && isOops(c.line) {
			c.seen = true
			found = string(bytes.TrimSpace(withoutStamp(c.line)))
		}
		c.line = c.line[:0]
		p = p[i+1:]
	}
	return found
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
