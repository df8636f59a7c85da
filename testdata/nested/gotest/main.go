// Command gotest runs `go test -json` with its arguments and prints what
// `go test` would, and one thing more: every test that was skipped, with its
// reason. Where CI is set, a test that skips although nothing excuses it is a
// failure. An excuse is a reason that begins with "only in make ", or a line of
// the file given by -excused: a regular expression that matches
// "package.Test: reason", with its own reason after a tab.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// module is cut off the names of packages in messages.
const module = "github.com/vole-vmm/vole/"

func main() {
	excused := flag.String("excused", "", "a file of skips that are no failure in CI")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: gotest [-excused FILE] -- ARGUMENTS OF go test")
		flag.PrintDefaults()
	}
	flag.Parse()
	code, err := run(*excused, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(excused string, args []string) (int, error) {
	allow, err := readExcused(excused)
	if err != nil {
		return 1, err
	}
	// An interrupt reaches `go test` too, as the terminal's; let it end first.
	// Caught and not ignored: that would be inherited.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	p := newPrinter(os.Stdout, allow)
	if err := p.read(out); err != nil {
		return 1, err
	}
	err = cmd.Wait()
	switch {
	case err != nil && cmd.ProcessState == nil:
		return 1, err
	case err != nil:
		return 1, nil
	}
	ci := os.Getenv("CI")
	if p.unexcused > 0 && ci != "" && ci != "0" && ci != "false" {
		fmt.Printf("FAIL: %d tests were skipped that should have run here\n", p.unexcused)
		return 1, nil
	}
	return 0, nil
}

// readExcused reads the file of excused skips.
func readExcused(path string) ([]*regexp.Regexp, error) {
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []*regexp.Regexp
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		expr, reason, _ := strings.Cut(line, "\t")
		if strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("%s: %q gives no reason after a tab", path, line)
		}
		re, err := regexp.Compile(expr)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		list = append(list, re)
	}
	return list, nil
}

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output, ImportPath string
}

// printer turns events into ordinary output.
type printer struct {
	w         io.Writer
	allow     []*regexp.Regexp
	packages  map[string]*pkg
	unexcused int
}

// pkg is what is known of a package whose tests run.
type pkg struct {
	order []string          // tests as they began
	out   map[string]string // by test; "" is the package's own
	how   map[string]string // results
	skips []string
}

func newPrinter(w io.Writer, allow []*regexp.Regexp) *printer {
	return &printer{w: w, allow: allow, packages: map[string]*pkg{}}
}

func (p *printer) read(r io.Reader) error {
	s := bufio.NewReader(r)
	for {
		line, err := s.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(p.w, line)
			} else {
				p.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the output of go test: %w", err)
		}
	}
}

func (p *printer) take(e event) {
	if e.Action == "build-output" {
		fmt.Fprint(p.w, e.Output)
		return
	}
	k := p.packages[e.Package]
	if k == nil {
		k = &pkg{out: map[string]string{}, how: map[string]string{}}
		p.packages[e.Package] = k
	}
	switch e.Action {
	case "run":
		if !slices.Contains(k.order, e.Test) { // it may run again in a fresh emulated host
			k.order = append(k.order, e.Test)
		}
	case "output":
		k.out[e.Test] += e.Output
	case "pass", "fail", "skip":
		if e.Test != "" {
			if e.Action == "skip" {
				p.skip(k, e)
			}
			// A failure remains one, also of a subtest that ran again in a fresh
			// emulated host.
			if k.how[e.Test] != "fail" {
				k.how[e.Test] = e.Action
			}
			if k.how[e.Test] != "fail" {
				delete(k.out, e.Test)
			}
			return
		}
		p.end(k, e)
		delete(p.packages, e.Package)
	}
}

// skip notes a test that was skipped, and whether that is excused.
func (p *printer) skip(k *pkg, e event) {
	reason := ""
	for line := range strings.Lines(k.out[e.Test]) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			reason = line
		}
	}
	// "file.go:12: reason"
	if _, after, ok := strings.Cut(reason, ".go:"); ok {
		if _, after, ok = strings.Cut(after, ": "); ok {
			reason = after
		}
	}
	text := strings.TrimPrefix(e.Package, module) + "." + e.Test + ": " + reason
	ok := strings.HasPrefix(reason, "only in make ")
	for _, re := range p.allow {
		ok = ok || re.MatchString(text)
	}
	if !ok {
		p.unexcused++
	}
	k.skips = append(k.skips, text)
}

// end prints a package that has ended.
func (p *printer) end(k *pkg, e event) {
	for _, s := range k.skips {
		fmt.Fprintln(p.w, "skipped:", s)
	}
	if e.Action == "fail" {
		for _, test := range k.order {
			if k.how[test] == "" || k.how[test] == "fail" {
				for line := range strings.Lines(k.out[test]) {
					if !strings.HasPrefix(line, "=== ") {
						fmt.Fprint(p.w, line)
					}
				}
			}
		}
	}
	for line := range strings.Lines(k.out[""]) {
		// Of a package that passes: its verdict and what the test rig says.
		if e.Action == "fail" || strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "?  ") ||
			strings.HasPrefix(line, "nested: ") || strings.HasPrefix(line, "coverage: ") {
			fmt.Fprint(p.w, line)
		}
	}
}
