// Command stdlib runs tests of Go's standard library by `vole exec` and says which of
// them fail there and not elsewhere: it prints docs/exec-stdlib.md.
//
// Each package's tests run four times: on this machine; in the emulated host, by
// themselves; in a guest in it, by `vole exec`; and in one of QEMU there, as vimto and
// virtme-ng run it. What fails in vole's guest alone is vole's. The emulated host has
// busybox and a few files of this machine in /etc, and no Go.
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

var packages = []string{"os", "os/exec", "net", "syscall", "io/fs", "path/filepath"}

// reasons are why tests fail, where that is known, by package and test.
var reasons = map[string]string{
	"os.TestChdirAndGetwd":                    "there is no /usr/bin in the emulated host",
	"os.TestReaddirnamesOneAtATime":           "there is no /usr/bin in the emulated host",
	"net.TestSendfile":                        noNewton,
	"net.TestSendfileOnWriteTimeoutExceeded":  noNewton,
	"net.TestSendfileParts":                   noNewton,
	"net.TestSendfileSeeked":                  noNewton,
	"net.TestSendfileWithExactLimit":          noNewton,
	"net.TestSendfileWithLimitLargerThanFile": noNewton,
	"syscall.TestGroupCleanupUserNamespace":   "busybox's id prints no groups",
	"path/filepath.TestBug3486":               "Go's own tree is not in the emulated host as a whole",
}

const noNewton = "Go's src/testdata is not in the emulated host"

// bound is how long one package's tests may take, bootless.
const bound = 20 * time.Minute

func main() {
	nested.RunIfInit()
	dir := flag.String("dir", "", "a directory for test binaries and their output, which is kept (default: one that is not)")
	kernel := flag.String("kernel", nested.KernelCloud612, "the guest's kernel, as an asset")
	only := flag.Bool("report", false, "run nothing: print the page of what is in -dir")
	src := flag.String("inside", "", "run the tests of these sources: this is the emulated host, and -kernel a path")
	flag.Parse()
	err := error(nil)
	switch {
	case *src != "":
		err = insideAll(*dir, *src, *kernel)
	case *only:
		err = report(filepath.Join(*dir, "out"), *kernel)
	default:
		err = run(*dir, *kernel)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stdlib:", err)
		os.Exit(1)
	}
}

func run(dir, kernel string) error {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "vole-stdlib-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	out := filepath.Join(dir, "out")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(string(root)), "src")
	for _, pkg := range packages {
		binary := filepath.Join(dir, fileName(pkg)+".test")
		if _, err := os.Stat(binary); err == nil {
			continue
		}
		fmt.Fprintln(os.Stderr, "stdlib: building", pkg)
		cmd := exec.Command("go", "test", "-c", "-o", binary, pkg)
		cmd.Env, cmd.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go test -c %s: %w", pkg, err)
		}
	}
	for _, pkg := range packages {
		fmt.Fprintln(os.Stderr, "stdlib: here:", pkg)
		if err := here(dir, src, pkg); err != nil {
			return err
		}
	}
	if err := there(dir, src, kernel); err != nil {
		return err
	}
	return report(out, kernel)
}

func fileName(pkg string) string { return strings.ReplaceAll(pkg, "/", "_") }

// testFlags are those of every run.
var testFlags = []string{"-test.v", "-test.short", "-test.paniconexit0", "-test.timeout=" + (bound - time.Minute).String()}

// here runs a package's tests on this machine. That some fail is no error.
func here(dir, src, pkg string) error {
	return runTests(filepath.Join(dir, "out", fileName(pkg)+".here"), filepath.Join(src, pkg), []string{filepath.Join(dir, fileName(pkg)+".test")})
}

func runTests(out, cwd string, args []string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	args = append(args, testFlags...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = cwd, f, f
	cmd.WaitDelay = time.Minute
	if err := cmd.Run(); cmd.Process == nil {
		return err
	}
	return nil
}

// inside runs a package's tests in the emulated host, without and with a guest.
func inside(dir, src, image, pkg string) error {
	vole, err := nested.Asset(nested.AssetVole)
	if err != nil {
		return err
	}
	test := filepath.Join(dir, fileName(pkg)+".test")
	for _, way := range []struct {
		kind string
		args []string
	}{
		{"host", []string{test}},
		{"guest", []string{vole, "exec", "-k", image, "-m", "1G", "-c", "2", "--boot-timeout", "5m", "--", test}},
	} {
		fmt.Printf("%s: %s\n", way.kind, pkg)
		if err := runTests(filepath.Join(dir, "out", fileName(pkg)+"."+way.kind), filepath.Join(src, pkg), way.args); err != nil {
			return err
		}
	}
	fmt.Printf("qemu: %s\n", pkg)
	return inQEMU(dir, filepath.Join(src, pkg), image, pkg)
}

// inQEMU runs them in a guest of QEMU.
func inQEMU(dir, cwd, image, pkg string) error {
	scratch, err := os.MkdirTemp("", "qemu")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	busybox, err := nested.Asset(nested.AssetBusybox)
	if err != nil {
		return err
	}
	q := qemuexec.QEMU{Machine: "q35", Share: qemuexec.Virtiofsd, Kernel: image, Initrd: filepath.Join(scratch, "initrd"), Memory: "1G", CPUs: 2, Scratch: scratch}
	if err := qemuexec.WriteInitrd(q.Initrd, image, busybox, q.Share); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	r, err := q.Run(ctx, qemuexec.Command{Args: append([]string{filepath.Join(dir, fileName(pkg)+".test")}, testFlags...), Dir: cwd})
	if err != nil {
		r.Output = fmt.Appendf(r.Output, "\nstdlib: %v\n", err) // what has not ended is missing
	}
	return os.WriteFile(filepath.Join(dir, "out", fileName(pkg)+".qemu"), r.Output, 0o644)
}

// insideAll is what the emulated host runs: its user's surroundings, and the packages.
func insideAll(dir, src, image string) error {
	busybox, err := nested.Asset(nested.AssetBusybox)
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/bin", 0o755); err != nil {
		return err
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
		if err := inside(dir, src, image, pkg); err != nil {
			return err
		}
	}
	return nil
}

// there runs all of them in an emulated host, without and with a guest.
func there(dir, src, kernel string) error {
	if os.Getenv("VOLE_BIN") == "" {
		return fmt.Errorf("VOLE_BIN is not set: `make build` makes bin/vole")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	image, err := nested.Asset(kernel)
	if err != nil {
		return err
	}
	out := filepath.Join(dir, "out")
	c := nested.Command{
		Args:   []string{self, "-dir", dir, "-inside", src, "-kernel", image},
		Assets: []string{nested.AssetVole, nested.AssetBusybox, nested.AssetDrivers, nested.AssetQEMU, kernel},
		Stdout: os.Stderr, Stderr: os.Stderr,
		Note: func(s string) { fmt.Fprintln(os.Stderr, "stdlib:", s) },
	}
	for _, pkg := range packages {
		c.Files = append(c.Files, filepath.Join(dir, fileName(pkg)+".test"))
		for _, kind := range []string{"host", "guest", "qemu"} {
			c.Out = append(c.Out, filepath.Join(out, fileName(pkg)+"."+kind))
		}
	}
	for _, tree := range []string{"os", "syscall", "io", "path", "net/testdata"} {
		c.Files = append(c.Files, filepath.Join(src, tree))
	}
	for _, name := range []string{"passwd", "group", "hosts", "services", "protocols", "nsswitch.conf", "localtime"} {
		if file := filepath.Join("/etc", name); exists(file) {
			c.Files = append(c.Files, file)
		}
	}
	// Its output directory is made by what comes first into it.
	c.Files = append(c.Files, filepath.Join(out, fileName(packages[0])+".here"))
	r, err := c.Run(context.Background())
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("code %d in the emulated host", r.Code)
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
func report(out, kernel string) error {
	fmt.Printf("# Go's standard library under `vole exec`\n\n"+
		"Made by `go run ./testdata/nested/stdlib` with %s and a guest of %s (2 vCPUs, 1 GiB, user root).\n"+
		"Each package's tests (`-test.short`) ran on a machine, in the emulated host ([testing.md](testing.md)), which has\n"+
		"busybox and no Go, by `vole exec` in that, and in a guest of QEMU there as vimto and virtme-ng run it: q35, the\n"+
		"root by virtiofsd, an overlay over it. Numbers are tests with their subtests.\n\n"+
		"| package | here: passed, failed, skipped | emulated host | `vole exec` | QEMU |\n| --- | --- | --- | --- | --- |\n", runtime.Version(), strings.TrimPrefix(kernel, "kernel-"))
	var rows []string
	for _, pkg := range packages {
		line := "| " + pkg
		all := map[string]map[string]string{}
		for _, kind := range []string{"here", "host", "guest", "qemu"} {
			ends, err := results(filepath.Join(out, fileName(pkg)+"."+kind))
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
