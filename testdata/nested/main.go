package nested

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Options say what the tests need beside /dev/kvm.
type Options struct {
	// Assets are brought into the emulated host by name; see [Asset].
	Assets []string
	// Files are brought in too: files, or directories with all that is below
	// them. The package's own testdata directory always is.
	Files []string
	// Out are files and directories (relative ones to the package's directory)
	// that come back: what a test writes there is there afterwards.
	Out []string
	// Memory of the emulated host, as QEMU takes it; "" is DefaultMemory.
	Memory string
	// Modules are the modules that the emulated host loads; see Command.
	Modules []string
	// Disk is the size of a disk of the emulated host; see Command.
	Disk string
	// Quiet is the longest time that the tests may be silent; beyond it they are
	// made to dump their goroutines. 0 is DefaultQuiet.
	Quiet time.Duration

	stdin io.Reader         // of the tests; nil is empty
	began func(test string) // is told of each top-level test whose beginning has been read; must not block
}

// DefaultQuiet is the longest time without output of tests.
const DefaultQuiet = 5 * time.Minute

// maxLockups is how many emulated hosts may fail in a test run: lock up, fall
// silent or vanish, under tests that then run again in a fresh one.
const maxLockups = 3

// Main is what TestMain calls. It runs the tests where they can run: here if
// /dev/kvm boots a stock kernel, else in an emulated host. It does not return.
//
// Where neither can be had (the packages have not been fetched) it says so and
// runs nothing; that is a failure if CI or VOLE_REQUIRE_KVM is set.
func Main(m *testing.M, o Options) {
	RunIfInit()
	flag.Parse()
	if Inside() {
		os.Exit(m.Run())
	}
	emulate, why, err := useEmulated()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	for _, name := range o.Assets {
		var err error
		switch name {
		case AssetVole:
			err = buildVole()
		case AssetPeer:
			err = buildPeer()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	if !emulate || nothingToRun() {
		os.Exit(m.Run())
	}
	os.Exit(runTests(o, why))
}

// nothingToRun says whether the flags only list tests, or select none.
func nothingToRun() bool {
	if flagValue("test.list") != "" {
		return true
	}
	return flagValue("test.run") == "^$" && flagValue("test.bench") == "" && flagValue("test.fuzz") == ""
}

// flagValue is a flag's value as text, "" if there is no such flag.
func flagValue(name string) string {
	if f := flag.Lookup(name); f != nil {
		return f.Value.String()
	}
	return ""
}

// useEmulated decides between /dev/kvm and the emulated host, and says why.
func useEmulated() (bool, string, error) {
	switch mode := os.Getenv(envMode); mode {
	case "never":
		return false, "", nil
	case "always":
		return true, envMode + "=always", nil
	case "", "auto":
		why := CannotBoot()
		return why != "", why, nil
	default:
		return false, "", fmt.Errorf("nested: %s is %q, and it may be auto, always or never", envMode, mode)
	}
}

// CannotBoot says why /dev/kvm of this machine can't boot a stock kernel; it is
// "" if it can.
func CannotBoot() string {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	f.Close()
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(raw)) {
		if !strings.HasPrefix(line, "flags") {
			continue
		}
		for _, flag := range strings.Fields(line) {
			if flag == "vmx" || flag == "svm" {
				return ""
			}
		}
		break
	}
	return "/dev/kvm is there, but the CPU has neither VMX nor SVM"
}

// runTests runs the tests in emulated hosts and returns the exit code.
func runTests(o Options, why string) int {
	say := func(s string) { fmt.Fprintln(os.Stderr, "nested: "+strings.TrimPrefix(s, "nested: ")) }
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// `go test` sends SIGQUIT when its patience ends.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGQUIT)
	go func() {
		if _, ok := <-quit; ok {
			cancel(errTimeout)
		}
	}()

	cmd, end, err := testCommand(o)
	if err != nil {
		say(err.Error())
		return 2
	}
	verbose := flagValue("test.v")
	if verbose == "true" {
		say("emulated host: " + why)
		cmd.Note = say
	}
	t := newTracker(os.Stdout, verbose != "false", count())
	t.began = o.began
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.stdin, t, os.Stderr
	var lockups []string
	for {
		cmd.Args = append([]string{cmd.Args[0]}, childFlags(end, t.done())...)
		res, err := cmd.Run(ctx)
		if errors.Is(err, ErrNotFetched) {
			return unavailable(say, err)
		}
		inTime := end.IsZero() || time.Until(end) > 30*time.Second
		if errors.Is(err, ErrHost) && len(lockups) < maxLockups && inTime {
			lockups = append(lockups, fmt.Sprintf("rerun: %s during %s", strings.TrimPrefix(err.Error(), "nested: "), t.current()))
			say(fmt.Sprintf("%v; its console ends so:\n%s", err, indent(res.Console)))
			say("the tests that are left run again in a fresh host")
			t.hostEnded(true)
			continue
		}
		t.hostEnded(false)
		code := t.finish(res.Code)
		if err != nil {
			code = max(code, 1)
			say(fmt.Sprintf("%v; running: %s; its console ends so:\n%s", err, t.current(), indent(res.Console)))
		} else if res.Code > 128 {
			say(fmt.Sprintf("the tests were ended by signal %d; the host's console ends so:\n%s", res.Code-128, indent(res.Console)))
		}
		for _, l := range lockups {
			say(l)
		}
		return code
	}
}

// unavailable reports that no test can run.
func unavailable(say func(string), err error) int {
	if os.Getenv("VOLE_REQUIRE_KVM") != "" || isTrue(os.Getenv("CI")) {
		say("FAIL: no test ran: " + err.Error())
		return 1
	}
	say("SKIP: no test ran: " + err.Error())
	return 0
}

func isTrue(s string) bool { return s != "" && s != "0" && s != "false" }

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }

// count is how often each test runs.
func count() int {
	n := 1
	_, _ = fmt.Sscan(flagValue("test.count"), &n)
	return n
}

// testCommand describes this test binary as a command for the emulated host,
// and the time at which `go test` wants it ended (zero: never).
func testCommand(o Options) (*Command, time.Time, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("find this program: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("find the working directory: %w", err)
	}
	c := &Command{
		Args: []string{self}, Dir: dir, Assets: o.Assets, Files: o.Files, Memory: o.Memory, Modules: o.Modules, Disk: o.Disk, Quiet: o.Quiet,
	}
	if c.Quiet == 0 {
		c.Quiet = DefaultQuiet
	}
	if st, err := os.Stat("testdata"); err == nil && st.IsDir() {
		c.Files = append(c.Files, filepath.Join(dir, "testdata"))
	}
	for _, out := range append(outputFlags(dir), o.Out...) {
		if !filepath.IsAbs(out) {
			out = filepath.Join(dir, out)
		}
		c.Out = append(c.Out, filepath.Clean(out))
	}
	var end time.Time
	if limit, err := time.ParseDuration(flagValue("test.timeout")); err == nil && limit > 0 {
		end = time.Now().Add(limit)
		// The test binary ends itself at its own time; this is for one that doesn't.
		c.Deadline = end.Add(20 * time.Second)
	}
	return c, end, nil
}

// outputFlags lists the files that the flags make the test binary write.
func outputFlags(dir string) []string {
	var args []string
	flag.Visit(func(f *flag.Flag) { args = append(args, "-"+f.Name+"="+f.Value.String()) })
	return TestOutputs(dir, args)
}

// TestOutputs lists the absolute paths of files and directories that a test
// binary writes when it runs in dir with args, in the form that `go test` gives
// them: "-test.coverprofile=c.out".
func TestOutputs(dir string, args []string) []string {
	values := map[string]string{}
	for _, a := range args {
		name, value, ok := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if name, isTest := strings.CutPrefix(name, "test."); ok && isTest && value != "" {
			values[name] = value
		}
	}
	if d := values["outputdir"]; d != "" {
		dir = d
	}
	var out []string
	for _, name := range []string{"coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace", "gocoverdir", "testlogfile"} {
		path := values[name]
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		out = append(out, path)
	}
	return out
}

// childFlags are this process's flags as the tests in the emulated host get
// them, without the tests that are done. What go test passes for its own
// book-keeping is taken out.
func childFlags(end time.Time, done []string) []string {
	args := os.Args[1 : len(os.Args)-flag.NArg()]
	if n := len(args); n > 0 && args[n-1] == "--" {
		args = args[:n-1]
	}
	var out []string
	for _, a := range args {
		if !strings.Contains(a, "test.testlogfile=") {
			out = append(out, a)
		}
	}
	if flagValue("test.v") == "false" {
		out = append(out, "-test.v=true") // the tracker needs it
	}
	if !end.IsZero() {
		left := max(time.Until(end)-10*time.Second, 10*time.Second)
		out = append(out, "-test.timeout="+left.String())
	}
	if len(done) > 0 {
		// The flag's own value comes last: of several patterns the first one
		// that matches a test counts, also if it is one of subtests.
		skip := "^(" + strings.Join(done, "|") + ")$"
		if own := flagValue("test.skip"); own != "" {
			skip += "|" + own
		}
		out = append(out, "-test.skip="+skip)
	}
	return append(out, flag.Args()...)
}
