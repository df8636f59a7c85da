// Command stdlib runs tests of Go's standard library by `vole exec` and says which of
// them fail there and not elsewhere: it prints docs/exec-stdlib.md.
//
// Each package's tests run four times: by `go test` on this machine; by `go test` in the
// emulated host, and by `go test -exec "vole exec --"` there; and in a guest of QEMU there,
// as vimto and virtme-ng run it. What fails in vole's guest alone is vole's. The emulated
// host has busybox, a few files of this machine in /etc, and Go with a build cache, or the
// compiler would take an hour there. Arguments are packages to test instead.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/testdata/nested/qemuexec"
)

// packages are those that are tested: these, or those that are named.
var packages = []string{"os", "os/exec", "net", "syscall", "io/fs", "path/filepath"}

// reasons are why tests fail, where that is known, by package and test.
var reasons = map[string]string{
	"os/exec.TestAbsPathExec":               noGofmt,
	"os/exec.TestAbsPathExec/modified":      noGofmt,
	"syscall.TestGroupCleanupUserNamespace": "busybox's id prints no groups",
}

const noGofmt = "gofmt is not in the emulated host"

// bound is how long one package's tests may take, bootless.
const bound = 20 * time.Minute

func main() {
	nested.RunIfInit()
	dir := flag.String("dir", "", "a directory for test binaries and their output, which is kept (default: one that is not)")
	kernel := flag.String("kernel", nested.KernelCloud612, "the guest's kernel, as an asset")
	short := flag.Bool("short", false, "leave out what the tests call long")
	only := flag.Bool("report", false, "run nothing: print the page of what is in -dir")
	goroot := flag.String("inside", "", "run the tests of this Go: this is the emulated host, and -kernel a path")
	flag.Parse()
	if flag.NArg() > 0 {
		packages = flag.Args()
	}
	r := runner{dir: *dir, kernel: *kernel, goroot: *goroot, short: *short}
	err := error(nil)
	switch {
	case *goroot != "":
		err = r.insideAll()
	case *only:
		err = r.report()
	default:
		err = r.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stdlib:", err)
		os.Exit(1)
	}
}

// runner runs the tests.
type runner struct {
	dir    string // test binaries, the build cache, and in out the tests' output
	kernel string // an asset's name; in the emulated host the image's path
	goroot string
	short  bool
}

func (r *runner) run() error {
	if r.dir == "" {
		tmp, err := os.MkdirTemp("", "vole-stdlib-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		r.dir = tmp
	}
	dir, err := filepath.Abs(r.dir)
	if err != nil {
		return err
	}
	r.dir = dir
	if err := os.MkdirAll(filepath.Join(dir, "out"), 0o755); err != nil {
		return err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	r.goroot = strings.TrimSpace(string(root))
	for _, pkg := range packages {
		fmt.Fprintln(os.Stderr, "stdlib: here:", pkg)
		// Fills the build cache as well.
		cmd := exec.Command(r.goTool(), "test", "-c", "-o", r.binary(pkg), pkg)
		cmd.Env, cmd.Stderr = r.env(), os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go test -c %s: %w", pkg, err)
		}
		if err := r.goTest("here", pkg); err != nil {
			return err
		}
	}
	if err := r.there(); err != nil {
		return err
	}
	return r.report()
}

func fileName(pkg string) string { return strings.ReplaceAll(pkg, "/", "_") }

func (r *runner) binary(pkg string) string { return filepath.Join(r.dir, fileName(pkg)+".test") }
func (r *runner) out(kind, pkg string) string {
	return filepath.Join(r.dir, "out", fileName(pkg)+"."+kind)
}
func (r *runner) sources(pkg string) string { return filepath.Join(r.goroot, "src", pkg) }
func (r *runner) goTool() string            { return filepath.Join(r.goroot, "bin", "go") }

// env is the environment of Go, which reaches no network.
func (r *runner) env() []string {
	return append(os.Environ(), "GOROOT="+r.goroot, "GOCACHE="+filepath.Join(r.dir, "gocache"), "CGO_ENABLED=0", "GOFLAGS=", "GOENV=off",
		"GOWORK=off", "GOPROXY=off", "GOSUMDB=off", "GOTOOLCHAIN=local", "GOTELEMETRY=off")
}

// shortOf says whether a package's long tests are left out: those of net look for names
// in the Internet, which none of these has, for a quarter of an hour.
func (r *runner) shortOf(pkg string) bool { return r.short || pkg == "net" }

// timeout is the tests' own.
const timeout = bound - time.Minute

// goTest runs a package's tests by `go test`. That some fail is no error.
func (r *runner) goTest(kind, pkg string, flags ...string) error {
	f, err := os.Create(r.out(kind, pkg))
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), bound+5*time.Minute) // the linker's
	defer cancel()
	args := slices.Concat([]string{"test", "-v", "-count=1", "-vet=off", "-timeout=" + timeout.String()}, flags)
	if r.shortOf(pkg) {
		args = append(args, "-short")
	}
	cmd := exec.CommandContext(ctx, r.goTool(), append(args, pkg)...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = filepath.Join(r.goroot, "src"), r.env(), f, f
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); cmd.Process == nil {
		return err
	}
	return nil
}

// inside runs a package's tests in the emulated host, without and with a guest.
func (r *runner) inside(pkg string) error {
	vole, err := nested.Asset(nested.AssetVole)
	if err != nil {
		return err
	}
	fmt.Println("host:", pkg)
	if err := r.goTest("host", pkg); err != nil {
		return err
	}
	fmt.Println("guest:", pkg)
	program := vole + " exec -k " + r.kernel + " -m 1G -c 2 --boot-timeout 5m --"
	if err := r.goTest("guest", pkg, "-exec", program); err != nil {
		return err
	}
	fmt.Println("qemu:", pkg)
	return r.inQEMU(pkg)
}

// inQEMU runs them in a guest of QEMU.
func (r *runner) inQEMU(pkg string) error {
	scratch, err := os.MkdirTemp("", "qemu")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	busybox, err := nested.Asset(nested.AssetBusybox)
	if err != nil {
		return err
	}
	q := qemuexec.QEMU{Machine: "q35", Share: qemuexec.Virtiofsd, Kernel: r.kernel, Initrd: filepath.Join(scratch, "initrd"), Memory: "1G", CPUs: 2, Scratch: scratch}
	if err := qemuexec.WriteInitrd(q.Initrd, r.kernel, busybox, q.Share); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	args := []string{r.binary(pkg), "-test.v", "-test.paniconexit0", "-test.timeout=" + timeout.String()}
	if r.shortOf(pkg) {
		args = append(args, "-test.short")
	}
	result, err := q.Run(ctx, qemuexec.Command{Args: args, Dir: r.sources(pkg)})
	if err != nil {
		result.Output = fmt.Appendf(result.Output, "\nstdlib: %v\n", err) // what has not ended is missing
	}
	return os.WriteFile(r.out("qemu", pkg), result.Output, 0o644)
}

// insideAll is what the emulated host runs: its user's surroundings, and the packages.
func (r *runner) insideAll() error {
	busybox, err := nested.Asset(nested.AssetBusybox)
	if err != nil {
		return err
	}
	for _, dir := range []string{"/bin", "/usr/bin"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if out, err := exec.Command(busybox, "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox --install: %w: %s", err, out)
	}
	if err := os.MkdirAll("/tmp", 0o1777); err != nil {
		return err
	}
	if err := os.Chmod("/tmp", 0o777|os.ModeSticky); err != nil {
		return err
	}
	for name, value := range map[string]string{"PATH": "/bin:/usr/bin", "HOME": "/root", "VOLE_CACHE": "/tmp/cache"} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	for _, pkg := range packages {
		if err := r.inside(pkg); err != nil {
			return err
		}
	}
	return nil
}

// there runs all of them in an emulated host, without and with a guest.
func (r *runner) there() error {
	if os.Getenv("VOLE_BIN") == "" {
		return fmt.Errorf("VOLE_BIN is not set: `make build` makes bin/vole")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	image, err := nested.Asset(r.kernel)
	if err != nil {
		return err
	}
	c := nested.Command{
		Args:   append([]string{self, "-dir", r.dir, "-inside", r.goroot, "-kernel", image, fmt.Sprintf("-short=%t", r.short)}, packages...),
		Assets: []string{nested.AssetVole, nested.AssetBusybox, nested.AssetDrivers, nested.AssetQEMU, r.kernel},
		Stdout: os.Stderr, Stderr: os.Stderr,
		Note: func(s string) { fmt.Fprintln(os.Stderr, "stdlib:", s) },
	}
	for _, pkg := range packages {
		c.Files = append(c.Files, r.binary(pkg))
		for _, kind := range []string{"host", "guest", "qemu"} {
			c.Out = append(c.Out, r.out(kind, pkg))
		}
	}
	c.Files = append(c.Files, r.goTool(), filepath.Join(r.dir, "gocache"))
	for _, name := range []string{"VERSION", "go.env", "lib", "src", "test", "pkg/include"} {
		c.Files = append(c.Files, filepath.Join(r.goroot, name))
	}
	for _, tool := range []string{"asm", "compile", "link", "vet"} {
		c.Files = append(c.Files, filepath.Join(r.goroot, "pkg", "tool", runtime.GOOS+"_"+runtime.GOARCH, tool))
	}
	for _, name := range []string{"passwd", "group", "hosts", "services", "protocols", "nsswitch.conf", "localtime"} {
		if file := filepath.Join("/etc", name); exists(file) {
			c.Files = append(c.Files, file)
		}
	}
	// Its output directory is made by what comes first into it.
	c.Files = append(c.Files, r.out("here", packages[0]))
	result, err := c.Run(context.Background())
	if err == nil && result.Code != 0 {
		err = fmt.Errorf("code %d in the emulated host", result.Code)
	}
	return err
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

var resultLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)

// results are the ends of tests by their names.
func results(file string) (map[string]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	ends := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if m := resultLine.FindStringSubmatch(line); m != nil {
			ends[m[2]] = m[1]
		}
	}
	return ends, nil
}

// report prints the page.
func (r *runner) report() error {
	without := "of net the short ones"
	if r.short {
		without = "`-short`"
	}
	fmt.Printf("# Go's standard library under `go test -exec \"vole exec --\"`\n\n"+
		"Made by `go run ./testdata/nested/stdlib` with %s and a guest of %s (2 vCPUs, 1 GiB, user root).\n"+
		"Each package's tests (%s) ran by `go test` on a machine; by `go test` in the emulated host\n"+
		"([testing.md](testing.md)), which has busybox and Go; by `go test -exec \"vole exec --\"` in that; and in a guest of\n"+
		"QEMU there as vimto and virtme-ng run it: q35, the root by virtiofsd, an overlay over it. Numbers are tests with\n"+
		"their subtests.\n\n"+
		"| package | here: passed, failed, skipped | emulated host | `vole exec` | QEMU |\n| --- | --- | --- | --- | --- |\n",
		runtime.Version(), strings.TrimPrefix(r.kernel, "kernel-"), without)
	var rows []string
	for _, pkg := range packages {
		line := "| " + pkg
		all := map[string]map[string]string{}
		for _, kind := range []string{"here", "host", "guest", "qemu"} {
			ends, err := results(r.out(kind, pkg))
			if err != nil {
				return err
			}
			all[kind] = ends
			n := map[string]int{}
			for _, how := range ends {
				n[how]++
			}
			line += fmt.Sprintf(" | %d, %d, %d", n["PASS"], n["FAIL"], n["SKIP"])
		}
		fmt.Println(line + " |")
		names := map[string]bool{}
		for _, ends := range all {
			for name, how := range ends {
				if how == "FAIL" {
					names[name] = true
				}
			}
		}
		for name := range all["here"] {
			if all["host"][name] != "" && (all["guest"][name] == "" || all["qemu"][name] == "") {
				names[name] = true // it has not ended
			}
		}
		var list []string
		for name := range names {
			list = append(list, name)
		}
		slices.Sort(list)
		for _, name := range list {
			rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |", pkg, name,
				word(all["here"][name]), word(all["host"][name]), word(all["guest"][name]), word(all["qemu"][name]), cmp.Or(reasons[pkg+"."+name], "?")))
		}
	}
	if len(rows) == 0 {
		fmt.Printf("\nNone failed anywhere.\n")
		return nil
	}
	fmt.Printf("\nTests that failed anywhere:\n\n| package | test | here | emulated host | `vole exec` | QEMU | reason |\n| --- | --- | --- | --- | --- | --- | --- |\n%s\n", strings.Join(rows, "\n"))
	return nil
}

func word(how string) string {
	switch how {
	case "PASS":
		return "passes"
	case "FAIL":
		return "**fails**"
	case "SKIP":
		return "skips"
	}
	return "-"
}
