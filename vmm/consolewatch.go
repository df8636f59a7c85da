package vmm

import (
	"bytes"
	"strconv"
	"sync"
	"time"
)

// tailSize is how much of the console is kept, in bytes.
const tailSize = 64 << 10

// maxLine is how much of a console line is looked at, in bytes: its last. The
// kernel cuts its own records at about a thousand.
const maxLine = 2048

// consoleWatch sees every byte that the guest sends to its console: it keeps
// the last of them and recognises the kernel's words about its own end.
type consoleWatch struct {
	events func(consoleEvent)

	mu    sync.Mutex
	tail  []byte // ring; its tailSize bytes are allocated at once
	total uint64 // bytes ever seen
	line  []byte
	cr    bool // the last byte was a carriage return
	death deathWatch
}

// consoleEvent is something that the console's words say of the guest.
type consoleEvent struct {
	kind  consoleEventKind
	delay time.Duration // for consolePanic: how long the kernel says it waits
}

type consoleEventKind int

const (
	consoleFirstByte   consoleEventKind = iota
	consoleInit                         // the kernel runs its init
	consolePanic                        // the kernel has panicked
	consoleCrashKernel                  // it has, and a crash kernel runs in its place
	consoleRevived                      // it had not: somebody only printed such words
)

// newConsoleWatch returns a watch that calls events on the vCPU threads.
// running says for how long the guest has run.
func newConsoleWatch(events func(consoleEvent), running func() time.Duration) *consoleWatch {
	return &consoleWatch{
		events: events,
		tail:   make([]byte, 0, tailSize),
		line:   make([]byte, 0, maxLine),
		death:  deathWatch{running: running},
	}
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
	case b == '\r': // ends a line only if a newline follows
	default:
		if w.cr { // a progress bar begins anew
			w.line = w.line[:0]
		}
		if len(w.line) == maxLine {
			w.line = w.line[:copy(w.line, w.line[maxLine/2:])]
		}
		w.line = append(w.line, b)
	}
	w.cr = b == '\r'
	w.mu.Unlock()
	if first {
		w.events(consoleEvent{kind: consoleFirstByte})
	}
	if said {
		w.events(ev)
	}
}

// addAll is add for several bytes.
func (w *consoleWatch) addAll(p []byte) {
	for _, b := range p {
		w.add(b)
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
// user space writes to as well.
//
// A panic line looks as printk prints it: with a time stamp where the kernel's
// other lines bear one, and then with a time at which the guest can have
// printed it, which that of an old log mostly isn't. It is taken back by what a
// panicked kernel can't do: restart in order, print more lines of its own after
// the panic's last, or let user space print more than was on its way.
type deathWatch struct {
	running func() time.Duration

	stamps   bool // the kernel's lines bear time stamps
	panicked bool
	crash    bool // a crash kernel runs: it restarts in order, after the panic
	over     bool // the panic's last line has been seen
	after    int  // bytes without a time stamp since the panic
}

// afterlife is how many bytes of user space may still come out of the terminal
// driver's buffers after a panic.
const afterlife = 8 << 10

var (
	wordsPanic     = []byte("Kernel panic - not syncing")
	wordsPanicEnd  = []byte("---[ end Kernel panic")
	wordsRestart   = []byte("reboot: Restarting system")
	wordsRebooting = []byte("Rebooting in ")
	wordsVersion   = []byte("Linux version ")
	wordsInit      = []byte("Run /")
	wordsAsInit    = []byte(" as init process")
)

// see looks at one line without its newline. The bool says whether the event
// means anything.
func (d *deathWatch) see(line []byte) (consoleEvent, bool) {
	if len(line) == 0 {
		return consoleEvent{}, false
	}
	stamped := hasStamp(line)
	d.stamps = d.stamps || stamped
	switch text, at := kernelText(line, wordsPanic); {
	case text != nil && d.credible(at):
		d.panicked, d.over, d.after = true, false, 0
		return consoleEvent{kind: consolePanic}, true
	case bytes.HasSuffix(line, wordsAsInit) && bytes.Contains(line, wordsInit):
		return consoleEvent{kind: consoleInit}, true
	case !d.panicked:
		return consoleEvent{}, false
	}
	if text, _ := kernelText(line, wordsVersion); text != nil {
		d.crash = true
		return consoleEvent{kind: consoleCrashKernel}, true
	}
	if d.crash {
		return consoleEvent{}, false
	}
	if text, _ := kernelText(line, wordsRestart); text != nil {
		return d.revive()
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
	if !stamped {
		d.after += len(line)
	}
	if d.over && stamped || d.stamps && d.after > afterlife {
		return d.revive()
	}
	return consoleEvent{}, false
}

func (d *deathWatch) revive() (consoleEvent, bool) {
	d.panicked, d.over, d.after = false, false, 0
	return consoleEvent{kind: consoleRevived}, true
}

// slack is how far a kernel's clock and the host's may be apart.
const slack = 30 * time.Second

// credible reports whether the running kernel can have printed a panic line
// with the time stamp at; negative is none.
func (d *deathWatch) credible(at time.Duration) bool {
	if at < 0 {
		return !d.stamps
	}
	up := d.running()
	return at <= up+slack && at >= up-up/4-slack
}

// kernelText finds words in line where printk would put them: at its start, or
// behind a time stamp. (User space may have left an unfinished line before the
// stamp.) It returns the line from the words on, nil if they aren't there, and
// the time stamp, negative if there is none.
func kernelText(line, words []byte) (text []byte, at time.Duration) {
	i := bytes.Index(line, words)
	switch {
	case i < 0:
		return nil, -1
	case i == 0:
		return line, -1
	}
	// "[   12.345678] " or, with CONFIG_PRINTK_CALLER, "[   12.345678][    T1] ".
	before, ok := bytes.CutSuffix(line[:i], []byte("] "))
	if !ok {
		return nil, -1
	}
	if j := bytes.LastIndex(before, []byte("][")); j >= 0 && isCaller(before[j+2:]) {
		before = before[:j]
	}
	if open := bytes.LastIndexByte(before, '['); open >= 0 {
		if at, ok := stamp(before[open+1:]); ok {
			return line[i:], at
		}
	}
	return nil, -1
}

// hasStamp reports whether a line begins as printk begins its own: with a time
// in brackets, perhaps behind a level in angle brackets.
func hasStamp(line []byte) bool {
	if line[0] == '<' {
		if i := bytes.IndexByte(line, '>'); i > 0 && i < 5 {
			line = line[i+1:]
		}
	}
	if len(line) == 0 || line[0] != '[' {
		return false
	}
	i := bytes.IndexByte(line, ']')
	if i < 0 {
		return false
	}
	_, ok := stamp(line[1:i])
	return ok
}

// isCaller accepts "    T1" and " C0".
func isCaller(b []byte) bool {
	b = bytes.TrimLeft(b, " ")
	return len(b) > 1 && (b[0] == 'T' || b[0] == 'C') && len(bytes.Trim(b[1:], "0123456789")) == 0
}

// stamp reads "    1.234567", seconds since the kernel's start.
func stamp(b []byte) (time.Duration, bool) {
	whole, fraction, ok := bytes.Cut(bytes.TrimLeft(b, " "), []byte("."))
	if !ok || len(whole) == 0 || len(whole) > 9 || len(fraction) == 0 || len(bytes.Trim(fraction, "0123456789")) != 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(whole), 10, 32)
	return time.Duration(n) * time.Second, err == nil
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
