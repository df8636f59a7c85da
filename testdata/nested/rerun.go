package nested

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// DefaultRounds is how often a test that fails in the emulated host runs:
// now and then a guest dies there without fault of its own.
const DefaultRounds = 3

// Names of the environment variables about rounds. envRound is set in the
// emulated host.
const (
	envRerun = "VOLE_NESTED_RERUN"
	envRound = "VOLE_NESTED_ROUND"
)

// marker begins a line of the framework's own where -test.v=test2json.
const marker = 0x16

// rounds is how often a test runs that fails each time. A run that has more to
// give than results, or that ends at the first failure, is never repeated.
func (o Options) rounds(rerun string) int {
	switch {
	case rerun == "0", flagValue("test.bench") != "", flagValue("test.fuzz") != "", flagValue("test.failfast") == "true":
		return 1
	case o.Rounds > 0:
		return o.Rounds
	}
	return DefaultRounds
}

// failure is a test or a subtest that failed.
type failure struct {
	name  string
	line  []byte // its result as it was printed
	host  int    // where it failed last
	times int    // hosts in which it failed
	open  bool   // it may yet pass in a later host
	lost  bool   // it has failed for good
}

// begin notes that a host starts, and in which round: the last one's failures
// are final, those of the others are pending.
func (t *tracker) begin(round, rounds int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.host++
	t.round, t.rounds = round, rounds
}

// judge notes a result and returns the line to print for it: a failure that is
// pending is no result yet to who reads the output.
func (t *tracker) judge(line []byte, text string) []byte {
	m := resultLine.FindStringSubmatch(text)
	if m == nil || m[1] == "BENCH" {
		return line
	}
	how, name := m[1], m[2]
	var f *failure
	if i := slices.IndexFunc(t.failures, func(f *failure) bool { return f.name == name }); i >= 0 {
		f = t.failures[i]
	}
	earlier := f != nil && f.open && f.host < t.host
	switch {
	case how == "FAIL":
		if f == nil {
			f = &failure{name: name}
			t.failures = append(t.failures, f)
		}
		if f.host != t.host {
			f.host, f.times = t.host, f.times+1
		}
		f.open, f.lost = t.round < t.rounds, t.round >= t.rounds
		t.failed = t.failed || f.lost
		delete(t.passed, name)
		if f.lost {
			return line
		}
	case how == "SKIP" && earlier: // it has not passed, so it stays pending
		t.bad = true
	default:
		if earlier {
			f.open = false
		}
		t.passed[name] = f == nil || !f.open
		return line
	}
	var own, out []byte
	if i := bytes.LastIndexByte(line, marker); i >= 0 {
		if own = line[i:]; i > 0 {
			out = append(slices.Clone(line[:i]), '\n')
		}
		out = fmt.Appendf(out, "%c=== NAME  %s\n", marker, name)
	}
	if how == "FAIL" {
		f.line = slices.Clone(line)
		if own != nil {
			f.line = slices.Clone(own)
		}
	}
	return fmt.Appendf(out, "nested: round %d of %d: %s\n", t.round, t.rounds, text)
}

// apart makes test2json take what follows for the package's own.
func (t *tracker) apart() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.marked {
		t.write(fmt.Appendf(nil, "%c=== NAME  \n", marker))
	}
}

// again prepares the next round and returns the tests that it is for, without
// those that failed because of their subtests. There are none if nothing is
// pending or the tests did not run to their end.
func (t *tracker) again() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.verdict == nil {
		return nil
	}
	names := leaves(t.names(func(f *failure) bool { return f.open }))
	for _, name := range names {
		top, _, _ := strings.Cut(name, "/")
		delete(t.results, top)
		t.partly[top] = true
	}
	if len(names) > 0 && t.first == nil {
		t.first = t.verdict
	}
	return names
}

// doneSubtests are the -test.skip patterns of subtests that have passed, of
// tests that run again because of others. What has not run yet will run.
func (t *tracker) doneSubtests() []string {
	open := t.names(func(f *failure) bool { return f.open })
	above := func(a, b string) bool { return strings.HasPrefix(b, a+"/") }
	var out, taken []string
	for _, name := range slices.Sorted(maps.Keys(t.passed)) {
		top, _, sub := strings.Cut(name, "/")
		covers := func(other string) bool { return above(name, other) }
		covered := func(other string) bool { return above(other, name) }
		if !sub || !t.passed[name] || !t.partly[top] || slices.ContainsFunc(open, covers) || slices.ContainsFunc(taken, covered) {
			continue
		}
		taken = append(taken, name)
		elems := strings.Split(name, "/")
		for i, e := range elems {
			elems[i] = "^" + regexp.QuoteMeta(e) + "$"
		}
		out = append(out, strings.Join(elems, "/"))
	}
	return out
}

// mended says, after finish, which tests failed at first and passed later; ""
// if none.
func (t *tracker) mended() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lost := t.names(func(f *failure) bool { return f.lost })
	names := slices.DeleteFunc(leaves(t.names(func(f *failure) bool { return !f.lost })), func(name string) bool {
		return slices.ContainsFunc(lost, func(l string) bool { return strings.HasPrefix(l, name+"/") })
	})
	if len(names) == 0 {
		return ""
	}
	for _, f := range t.failures {
		if i := slices.Index(names, f.name); i >= 0 {
			names[i] = fmt.Sprintf("%s (%d)", f.name, f.times)
		}
	}
	tests := "tests"
	if len(names) == 1 {
		tests = "test"
	}
	return fmt.Sprintf("%d %s failed at first and passed when run again: %s", len(names), tests, strings.Join(names, ", "))
}

// names lists the failures that are as wanted, in their order.
func (t *tracker) names(want func(*failure) bool) []string {
	var names []string
	for _, f := range t.failures {
		if want(f) {
			names = append(names, f.name)
		}
	}
	return names
}

// leaves leaves out the tests that have a subtest in the list.
func leaves(names []string) []string {
	var out []string
	for _, name := range names {
		if !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, name+"/") }) {
			out = append(out, name)
		}
	}
	return out
}
