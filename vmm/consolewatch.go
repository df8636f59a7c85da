package vmm

import (
	"bytes"
	"sync"
	"time"
)

// tailSize is how much of the console is kept, in bytes.
const tailSize = 64 << 10

// maxLine is how much of a console line is looked at, in bytes. The kernel
// cuts its own records at about a thousand.
const maxLine = 1024

// consoleWatch sees every byte that the guest sends to its console: it keeps
// the last of them and recognises the kernel's words about its own end.
type consoleWatch struct {
	events func(consoleEvent)

	mu    sync.Mutex
	tail  []byte // ring; its tailSize bytes are allocated at once
	total uint64 // bytes ever seen
	line  []byte
	death deathWatch
}

// consoleEvent is something that the console's words say of the guest.
type consoleEvent struct {
	kind  consoleEventKind
	delay time.Duration // for consolePanic: how long the kernel says it waits
}

type consoleEventKind int

const (
	consoleFirstByte consoleEventKind = iota
	consoleInit                       // the kernel runs its init
	consolePanic                      // the kernel has panicked
	consoleRevived                    // it had not: somebody only printed such words
)

func newConsoleWatch(events func(consoleEvent)) *consoleWatch {
	return &consoleWatch{events: events, tail: make([]byte, 0, tailSize), line: make([]byte, 0, maxLine)}
}

// add takes one byte. It is called on a vCPU thread for every byte that the
// guest sends and does next to nothing for most.
func (w *consoleWatch) add(b byte) {
	w.mu.Lock()
	if len(w.tail) < tailSize {
		w.tail = append(w.tail, b)
	} else {
		w.tail[w.total%tailSize] = b
	}
	w.total++
	first := w.total == 1
	var ev consoleEvent
	var said bool
	switch {
	case b == '\n':
		ev, said = w.death.see(w.line)
		w.line = w.line[:0]
	case len(w.line) < maxLine:
		w.line = append(w.line, b)
	}
	w.mu.Unlock()
	if first {
		w.events(consoleEvent{kind: consoleFirstByte})
	}
	if said {
		w.events(ev)
	}
}

// last returns a copy of the console's last bytes, at most tailSize.
func (w *consoleWatch) last() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]byte, 0, len(w.tail))
	if w.total > uint64(len(w.tail)) {
		at := w.total % tailSize
		out = append(out, w.tail[at:]...)
		return append(out, w.tail[:at]...)
	}
	return append(out, w.tail...)
}

// panicked reports whether the last that the kernel said of itself is that it
// panicked.
func (w *consoleWatch) panicked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.death.panicked
}

// deathWatch recognises a kernel's panic among the lines of a console that
// user space writes to as well. A panic line looks as printk prints it, and is
// taken back by what a panicked kernel can't do: restart in order, or let user
// space print.
type deathWatch struct {
	panicked bool
	stamped  bool // the panic line bore a time stamp, so the kernel's others do
	over     bool // the panic's last line has been seen
}

var (
	wordsPanic     = []byte("Kernel panic - not syncing")
	wordsPanicEnd  = []byte("---[ end Kernel panic")
	wordsRestart   = []byte("reboot: Restarting system")
	wordsRebooting = []byte("Rebooting in ")
	wordsInit      = []byte("Run /")
	wordsAsInit    = []byte(" as init process")
)

// see looks at one line without its newline. The bool says whether the event
// means anything.
func (d *deathWatch) see(line []byte) (consoleEvent, bool) {
	line = bytes.TrimRight(line, "\r")
	if len(line) == 0 {
		return consoleEvent{}, false
	}
	text, stamped := kernelText(line, wordsPanic)
	switch {
	case text != nil:
		d.panicked, d.stamped, d.over = true, stamped, false
		return consoleEvent{kind: consolePanic}, true
	case bytes.HasSuffix(line, wordsAsInit) && bytes.Contains(line, wordsInit):
		return consoleEvent{kind: consoleInit}, true
	case !d.panicked:
		return consoleEvent{}, false
	}
	if text, _ := kernelText(line, wordsRestart); text != nil {
		d.panicked = false
		return consoleEvent{kind: consoleRevived}, true
	}
	if text, _ := kernelText(line, wordsRebooting); text != nil {
		if s, ok := leadingSeconds(text[len(wordsRebooting):]); ok {
			return consoleEvent{kind: consolePanic, delay: s}, true
		}
	}
	if text, _ := kernelText(line, wordsPanicEnd); text != nil {
		d.over = true
		return consoleEvent{}, false
	}
	if d.over && d.stamped && !hasStamp(line) {
		d.panicked = false
		return consoleEvent{kind: consoleRevived}, true
	}
	return consoleEvent{}, false
}

// kernelText finds words in line where printk would put them: at its start, or
// behind a time stamp. (User space may have left an unfinished line before the
// stamp.) It returns the line from the words on, nil if they aren't there.
func kernelText(line, words []byte) (text []byte, stamped bool) {
	i := bytes.Index(line, words)
	switch {
	case i < 0:
		return nil, false
	case i == 0:
		return line, false
	}
	before := line[:i]
	if n := len(before); n >= 3 && before[n-1] == ' ' && before[n-2] == ']' {
		if open := bytes.LastIndexByte(before, '['); open >= 0 && isStamp(before[open+1:n-2]) {
			return line[i:], true
		}
	}
	return nil, false
}

// hasStamp reports whether a line begins as printk begins its own: with a time
// in brackets, perhaps behind a level in angle brackets.
func hasStamp(line []byte) bool {
	if len(line) > 0 && line[0] == '<' {
		if i := bytes.IndexByte(line, '>'); i > 0 && i < 5 {
			line = line[i+1:]
		}
	}
	if len(line) == 0 || line[0] != '[' {
		return false
	}
	i := bytes.IndexByte(line, ']')
	return i > 0 && isStamp(line[1:i])
}

// isStamp accepts "    1.234567" and, with CONFIG_PRINTK_CALLER, "  T1" or
// " C0" as the second of two brackets.
func isStamp(b []byte) bool {
	b = bytes.TrimLeft(b, " ")
	if len(b) > 1 && (b[0] == 'T' || b[0] == 'C') {
		b = b[1:]
	}
	digits := 0
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c != '.':
			return false
		}
	}
	return digits > 0
}

// leadingSeconds reads "30 seconds..".
func leadingSeconds(b []byte) (time.Duration, bool) {
	n, digits := 0, 0
	for _, c := range b {
		if c < '0' || c > '9' || digits == 6 {
			break
		}
		n = n*10 + int(c-'0')
		digits++
	}
	if digits == 0 || !bytes.HasPrefix(b[digits:], []byte(" seconds")) {
		return 0, false
	}
	return time.Duration(n) * time.Second, true
}
