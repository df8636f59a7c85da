package nested

import (
	"bytes"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// tracker reads the verbose output of a test binary, so that after a lockup of
// the emulated host only the tests that are left run again, and prints it as
// the flags want it: verbose, or only what concerns failures.
type tracker struct {
	mu      sync.Mutex
	w       io.Writer
	verbose bool
	count   int               // results that a test gives before it is done: -test.count
	began   func(test string) // may be nil; see Options

	line    []byte         // the unfinished line
	held    []byte         // not verbose: output of tests that have not ended yet
	bad     bool           // what is held has a failure
	settled bool           // all of what is held has ended; results of subtests may follow
	running []string       // top-level tests begun and not ended
	results map[string]int // results of top-level tests
	bench   string         // the benchmark that runs
	failed  bool           // in any host
	verdict []byte         // the line PASS or FAIL and what follows it
	werr    error
}

func newTracker(w io.Writer, verbose bool, count int) *tracker {
	return &tracker{w: w, verbose: verbose, count: count, results: map[string]int{}}
}

// marker begins a line of the framework's own where -test.v=test2json.
const marker = 0x16

var (
	beginLine  = regexp.MustCompile(`^=== RUN\s+([^\s/]+)$`)
	stateLine  = regexp.MustCompile(`^=== (RUN|PAUSE|CONT|NAME)\s`)
	resultLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP|BENCH): (\S+)`)
	benchLine  = regexp.MustCompile(`^(Benchmark[^\s/-]+)\S*(\s+\d)?`)
)

// Write takes the test binary's output. Its error is that of the writer below.
func (t *tracker) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			t.line = append(t.line, rest...)
			break
		}
		t.take(append(t.line, rest[:i+1]...))
		t.line = t.line[:0]
		rest = rest[i+1:]
	}
	return len(p), t.werr
}

// take handles one line, which ends in a newline unless it is the last.
func (t *tracker) take(line []byte) {
	text := strings.TrimRight(string(line), "\r\n")
	// -test.v=test2json marks the framework's own lines, also in mid-line.
	if i := strings.LastIndexByte(text, marker); i >= 0 {
		text = text[i+1:]
	}
	if t.settled {
		if strings.HasPrefix(text, " ") && resultLine.MatchString(text) {
			if t.verbose {
				t.write(line)
			} else {
				t.held = append(t.held, line...)
			}
			return
		}
		t.release(t.bad)
	}
	if t.verdict != nil || (len(t.running) == 0 && (text == "PASS" || text == "FAIL")) {
		t.failed = t.failed || text == "FAIL"
		t.verdict = append(t.verdict, line...)
		return
	}
	if m := beginLine.FindStringSubmatch(text); m != nil {
		if strings.HasPrefix(m[1], "Benchmark") {
			t.benchmark(m[1])
		} else if !slices.Contains(t.running, m[1]) {
			t.running = append(t.running, m[1])
			if t.began != nil {
				t.began(m[1])
			}
		}
	} else if m := benchLine.FindStringSubmatch(text); m != nil {
		t.benchmark(m[1])
		if !t.verbose && m[2] == "" {
			return
		}
	}
	t.print(line, text)
	if m := resultLine.FindStringSubmatch(text); m != nil {
		t.result(m[1], m[2], text)
	}
}

// result notes the end of a test.
func (t *tracker) result(how, name, text string) {
	if how == "FAIL" {
		t.failed, t.bad = true, true
	}
	if how == "BENCH" || strings.HasPrefix(text, " ") || strings.Contains(name, "/") {
		return
	}
	t.results[name]++
	t.running = slices.DeleteFunc(t.running, func(s string) bool { return s == name })
	t.settled = len(t.running) == 0
}

// benchmark notes that a benchmark runs; the one before it is done.
func (t *tracker) benchmark(name string) {
	if t.bench != "" && t.bench != name {
		t.results[t.bench] = t.count
	}
	t.bench = name
}

func (t *tracker) print(line []byte, text string) {
	switch {
	case t.verbose:
		t.write(line)
	case stateLine.MatchString(text):
	case len(t.running) > 0:
		t.held = append(t.held, line...)
	default:
		t.write(line)
	}
}

// release prints or drops what is held.
func (t *tracker) release(show bool) {
	if show {
		t.write(t.held)
	}
	t.held, t.bad, t.settled = t.held[:0], false, false
}

func (t *tracker) write(p []byte) {
	if _, err := t.w.Write(p); err != nil && t.werr == nil {
		t.werr = err
	}
}

// hostEnded notes that no more output comes from this host. again says that
// the tests that have not ended run again in another one.
func (t *tracker) hostEnded(again bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.line) > 0 {
		t.take(append(t.line, '\n'))
		t.line = t.line[:0]
	}
	if again {
		t.release(t.bad)
		t.running, t.bench, t.verdict = nil, "", nil
	}
}

// current names what was running last, for messages.
func (t *tracker) current() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case len(t.running) > 0:
		return strings.Join(t.running, " ")
	case t.bench != "":
		return t.bench
	}
	return "no test"
}

// done lists the top-level tests that need not run again, sorted.
func (t *tracker) done() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for name, n := range t.results {
		if n >= t.count {
			names = append(names, regexp.QuoteMeta(name))
		}
	}
	slices.Sort(names)
	return names
}

// finish prints the rest and turns the last host's exit code into that of all.
func (t *tracker) finish(code int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.release(code != 0 || t.bad)
	if t.failed && code == 0 {
		code = 1
		t.verdict = bytes.Replace(t.verdict, []byte("PASS\n"), []byte("FAIL\n"), 1)
	}
	t.write(t.verdict)
	return code
}
