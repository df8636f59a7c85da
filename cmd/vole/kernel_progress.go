package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/boot/kernel/pull"
)

// pullView shows the progress of a pull: on a terminal in one line that is drawn over and over,
// elsewhere as a line for each step and, while one takes long, another now and then. There nothing is
// told of what is over at once: a name that leads nowhere is an error, and no more.
type pullView struct {
	w       io.Writer
	quiet   bool
	columns func() int // of the terminal; nil is none
	now     func() time.Time

	mu    sync.Mutex
	began time.Time   // the first line
	open  bool        // lines are written as they come
	held  string      // lines of the beginning, until then
	hold  *time.Timer // opens when no line comes to do it; nil where there is no clock
	last  pull.Progress
	at    time.Time // of the last line
	drawn int       // characters in the line that is drawn
}

const (
	holdFor     = time.Second
	redrawEvery = 100 * time.Millisecond
	repeatEvery = 10 * time.Second
	barWidth    = 20
)

func newPullView(stderr io.Writer, quiet bool) *pullView {
	v := &pullView{w: stderr, quiet: quiet, now: time.Now}
	v.hold = time.AfterFunc(holdFor, v.release)
	if fd := int(os.Stderr.Fd()); isTerminal(fd) && os.Getenv("TERM") != "dumb" {
		v.columns = func() int {
			w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
			if err != nil || w.Col == 0 {
				return 80
			}
			return int(w.Col)
		}
	}
	return v
}

// show is called for every little progress.
func (v *pullView) show(p pull.Progress) {
	if v.quiet {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	same := p.Step == v.last.Step && p.What == v.last.What
	wait := repeatEvery
	if v.columns != nil {
		wait = redrawEvery
	}
	now := v.now()
	if same && now.Sub(v.at) < wait {
		return
	}
	v.last, v.at = p, now
	if v.columns == nil {
		if v.began.IsZero() {
			v.began = now
		}
		v.held += fmt.Sprintf("vole: kernel: pull: %s\n", describeProgress(p, same))
		if v.open = v.open || now.Sub(v.began) >= holdFor; v.open {
			v.write()
		}
		return
	}
	// The last column stays empty: a full line would wrap.
	line := truncate(drawProgress(p), max(v.columns()-1, 0))
	width := utf8.RuneCountInString(line)
	fmt.Fprintf(v.w, "\r%s%s", line, strings.Repeat(" ", max(v.drawn-width, 0)))
	v.drawn = width
}

// release writes what was held back, and whatever comes.
func (v *pullView) release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = true
	v.write()
}

func (v *pullView) write() {
	_, _ = io.WriteString(v.w, v.held)
	v.held = ""
}

// clear takes the line away.
func (v *pullView) clear() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.held = ""
	if v.hold != nil {
		v.hold.Stop()
	}
	if v.drawn > 0 {
		fmt.Fprintf(v.w, "\r%s\r", strings.Repeat(" ", v.drawn))
		v.drawn = 0
	}
}

// stepWords say what a step does.
var stepWords = map[pull.Step]string{
	pull.StepWaiting:     "waiting for another vole",
	pull.StepLooking:     "looking for",
	pull.StepUpdating:    "updating package lists",
	pull.StepDownloading: "downloading",
	pull.StepUnpacking:   "unpacking",
	pull.StepIndexing:    "indexing",
	pull.StepExtracting:  "extracting the vmlinux of",
}

func stepText(p pull.Progress) string {
	words := stepWords[p.Step]
	if words == "" {
		words = string(p.Step)
	}
	return strings.TrimSpace(words + " " + oneLine(p.What))
}

// amount is how much is done, "12.3 of 26.7 MB".
func amount(p pull.Progress) string {
	switch {
	case p.Total <= 0 && p.Done <= 0:
		return ""
	case p.Step == pull.StepIndexing, p.What == "modules", p.Total <= 0 && p.Step == pull.StepUnpacking:
		if p.Total <= 0 {
			return fmt.Sprint(p.Done)
		}
		return fmt.Sprintf("%d of %d", p.Done, p.Total)
	case p.Total <= 0:
		return formatBytes(p.Done)
	}
	return formatBytes(p.Done) + " of " + formatBytes(p.Total)
}

// describeProgress is a line for where there is no terminal.
func describeProgress(p pull.Progress, again bool) string {
	text := stepText(p)
	switch done := amount(p); {
	case again && done != "":
		text += ": " + done
	case !again && p.Step == pull.StepDownloading && p.Total > 0:
		text += " (" + formatBytes(p.Total) + ")"
	case again:
		text += ": still"
	}
	return text
}

// drawProgress is a line for a terminal.
func drawProgress(p pull.Progress) string {
	text := stepText(p)
	done := amount(p)
	if done == "" {
		return text
	}
	if p.Total > 0 {
		part := float64(min(p.Done, p.Total)) / float64(p.Total)
		full := int(part * barWidth)
		text = fmt.Sprintf("[%s%s] %3.0f%% %s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), part*100, text)
	}
	return text + ", " + done
}

func truncate(s string, width int) string {
	n := 0
	for i := range s {
		if n == width {
			return s[:i]
		}
		n++
	}
	return s
}

// formatBytes is a size as people read it.
func formatBytes(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}
