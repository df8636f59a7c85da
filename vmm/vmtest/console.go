package vmtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"sync"
)

const (
	// maxConsole is how much of a console is kept, in bytes.
	maxConsole = 4 << 20
	// maxMatch is how long a match of Expect may be at least.
	maxMatch = 64 << 10
)

// errConsoleEnd says that a machine has ended and its console with it.
var errConsoleEnd = errors.New("the guest has ended")

// console collects what a guest writes to its console, with lines that end with \n alone.
type console struct {
	line func(string) // gets each line; may be nil

	mu      sync.Mutex
	tees    []io.Writer
	text    []byte // the last of it
	before  int64  // how much came before text
	cursor  int64  // where the last match ends
	looked  int64  // up to where there was none after it
	cr      bool   // a \r has come that may be half of a line's end
	waiting bool
	more    chan struct{} // closed when something has come, if somebody waits
	partial []byte        // of a line for line
}

// Write never fails: a test's log must not end the guest.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := 0; i < len(c.tees); {
		if _, err := c.tees[i].Write(p); err != nil {
			c.tees = append(c.tees[:i:i], c.tees[i+1:]...)
			continue
		}
		i++
	}
	for _, b := range p {
		if c.cr && b != '\n' {
			c.text = append(c.text, '\r')
		}
		if c.cr = b == '\r'; !c.cr {
			c.text = append(c.text, b)
			c.log(b)
		}
	}
	if over := len(c.text) - 2*maxConsole; over > 0 {
		c.drop(len(c.text) - maxConsole)
	}
	if c.waiting {
		c.waiting = false
		close(c.more)
	}
	return len(p), nil
}

func (c *console) drop(n int) {
	c.text = append(c.text[:0], c.text[n:]...)
	c.before += int64(n)
}

// log passes lines on.
func (c *console) log(b byte) {
	switch {
	case c.line == nil:
	case b == '\n':
		c.line(string(c.partial))
		c.partial = c.partial[:0]
	case len(c.partial) < maxMatch:
		c.partial = append(c.partial, b)
	}
}

// flush passes on the line that has not ended.
func (c *console) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.line != nil && len(c.partial) > 0 {
		c.line(string(c.partial))
		c.partial = nil
	}
	c.line = nil
}

// String is all that is kept.
func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// tail is the last of it: at most so many lines and bytes.
func (c *console) tail(lines, size int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := bytes.TrimRight(c.text, "\n ")
	if len(b) > size {
		b = b[len(b)-size:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	for at := len(b); lines > 0; lines-- {
		at = bytes.LastIndexByte(b[:at], '\n')
		if at < 0 {
			return string(b)
		}
		if lines == 1 {
			b = b[at+1:]
		}
	}
	return string(b)
}

// expect waits for a match behind the last one and returns it with its submatches. ended
// is closed when nothing more comes.
func (c *console) expect(ctx context.Context, re *regexp.Regexp, ended <-chan struct{}) ([]string, error) {
	c.mu.Lock()
	c.looked = c.cursor // another expression may find what the last did not
	c.mu.Unlock()
	for over := false; ; {
		found, more := c.find(re)
		switch {
		case found != nil:
			return found, nil
		case over:
			return nil, errConsoleEnd
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		select {
		case <-more:
		case <-ended:
			over = true // once more: what came last
		case <-ctx.Done():
		}
	}
}

// find looks for a match in what has come; if there is none, more is closed when there is
// more to look at.
func (c *console) find(re *regexp.Regexp) (found []string, more <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := max(c.cursor, c.looked-maxMatch, c.before)
	window := c.text[from-c.before:]
	if loc := re.FindSubmatchIndex(window); loc != nil {
		for i := 0; i < len(loc); i += 2 {
			s := ""
			if loc[i] >= 0 {
				s = string(window[loc[i]:loc[i+1]])
			}
			found = append(found, s)
		}
		c.cursor = from + int64(loc[1])
		return found, nil
	}
	c.looked = c.before + int64(len(c.text))
	if !c.waiting {
		c.waiting, c.more = true, make(chan struct{})
	}
	return nil, c.more
}
