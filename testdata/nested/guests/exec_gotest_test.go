package guests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// testsPath is where the tests of a package of testdata/nested are put: there is no Go in
// the emulated host.
func testsPath(pkg string) (string, error) {
	dir, err := nested.CacheDir()
	return filepath.Join(dir, "bin", pkg+".test"), err
}

// buildTests builds them as `go test` does, outside of the emulated host, and returns
// where they are.
func buildTests(pkg string, flags ...string) (string, error) {
	path, err := testsPath(pkg)
	if err != nil || nested.Inside() {
		return path, err
	}
	args := slices.Concat([]string{"test", "-c", "-trimpath", "-o", path}, flags, []string{"github.com/vole-vmm/vole/testdata/nested/" + pkg})
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building testdata/nested/%s: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// execTestee prepares a run of them by `vole exec`, as `go test -exec` would: in the
// package's directory, which is a copy, with flags for files in another, work.
func execTestee(t *testing.T, turn int, flags ...string) (e *execed, pkg, work string) {
	t.Helper()
	testee, err := testsPath("testee")
	require.NoError(t, err)
	// TMPDIR may be in what the guest has its own of.
	pkg, work = t.TempDir(), inMemory(t, "/dev/shm")
	binary, err := os.ReadFile(testee)
	require.NoError(t, err)
	testee = filepath.Join(inMemory(t, "/run"), "testee.test")
	require.NoError(t, os.WriteFile(testee, binary, 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(pkg, "testdata"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(pkg, "testdata", "words"), []byte("words\n"), 0o644))
	for _, dir := range []string{"cover", "fuzz", "out"} {
		require.NoError(t, os.Mkdir(filepath.Join(work, dir), 0o755))
	}
	command := []string{testee, "-test.paniconexit0", "-test.timeout=10m0s"}
	for _, f := range flags {
		command = append(command, strings.ReplaceAll(f, "WORK", work))
	}
	e = execVole(t, turn, nil, command...)
	e.Dir = pkg
	return e, pkg, work
}

// TestExecGoTest: what a test binary leaves for "go test" comes back, and nothing else.
func TestExecGoTest(t *testing.T) {
	t.Run("results", func(t *testing.T) {
		t.Parallel()
		e, pkg, work := execTestee(t, 2, "-test.v=true", "-test.coverprofile=WORK/c.out", "-test.gocoverdir=WORK/cover",
			"-test.testlogfile=WORK/log", "-test.cpuprofile=cpu.out", "-test.outputdir=WORK/out", "-test.bench=.", "-test.benchtime=10x")
		e.Env = append(e.Env, "TESTEE=its environment")
		r := e.result(t)
		assert.Equal(t, 0, r.code, r.stdout+r.stderr)
		assert.Empty(t, r.stderr)
		for _, want := range []string{"--- PASS: TestSum", "--- PASS: TestFiles", "TESTEE=its environment", "BenchmarkSum", "PASS\ncoverage: 100.0% of statements\n"} {
			assert.Contains(t, r.stdout, want)
		}
		assert.Equal(t, []string{"testdata"}, names(t, pkg))
		assert.Equal(t, []string{"words"}, names(t, filepath.Join(pkg, "testdata")))
		for file, begins := range map[string]string{"c.out": "mode: set\n", "log": "# test log\n", "out/cpu.out": "\x1f\x8b"} {
			b, err := os.ReadFile(filepath.Join(work, file))
			if assert.NoError(t, err) {
				assert.True(t, strings.HasPrefix(string(b), begins), "%s: %.100q", file, b)
			}
		}
	})
	t.Run("a failing fuzz input", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		e, pkg, _ := execTestee(t, 0, "-test.run=^$", "-test.fuzz=^FuzzSum$", "-test.fuzztime=2m", "-test.fuzzminimizetime=1x",
			"-test.parallel=1", "-test.fuzzcachedir=WORK/fuzz")
		r := e.result(t)
		assert.Equal(t, 1, r.code, r.stdout+r.stderr)
		assert.Contains(t, r.stdout, "--- FAIL: FuzzSum")
		inputs, err := filepath.Glob(filepath.Join(pkg, "testdata/fuzz/FuzzSum/*"))
		require.NoError(t, err)
		require.Len(t, inputs, 1)
		b, err := os.ReadFile(inputs[0])
		require.NoError(t, err)
		assert.True(t, strings.HasPrefix(string(b), "go test fuzz v1\n[]byte("), string(b))
		assert.Contains(t, r.stdout, "testdata/fuzz/FuzzSum/"+filepath.Base(inputs[0]))
	})
	t.Run("SIGQUIT", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		t.Parallel()
		e, _, _ := execTestee(t, 1, "-test.run=TestWait")
		e.Env = append(e.Env, "TESTEE_WAIT=1")
		r := e.begin(t)
		require.True(t, r.out.until("waiting\n"), "%s", &r.errs)
		require.NoError(t, e.Process.Signal(syscall.SIGQUIT))
		res := r.wait()
		assert.Equal(t, 2, res.code)
		assert.Contains(t, res.stderr, "SIGQUIT: quit\n")
		assert.Contains(t, res.stderr, "testee.forever")
	})
}

// TestExecGoTestWhole: Go itself tests several packages at once by "vole exec", none of
// which finds anything in vole's cache; what it wants to have back it gets, and a test
// that fails fails.
func TestExecGoTestWhole(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	tools(t)
	work := t.TempDir()
	s, cache := staged(t, work)
	volesCache := filepath.Join(work, "vole")
	profile, tmp := filepath.Join(work, "profile"), mkdir(t, work, "tmp")
	program := fmt.Sprintf("%s exec -k %s --", asset(t, nested.AssetVole), asset(t, nested.KernelDefault))
	gotest := func(flags, packages []string, env ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(s.GOROOT, "bin", "go"),
			slices.Concat(testFlags, []string{"-exec", program, "-p", "4"}, flags, packages)...)
		cmd.Dir = s.Root
		cmd.Env = append(append(append(os.Environ(), "VOLE_CACHE="+volesCache, "PATH="+programs, "HOME="+work, "TMPDIR="+tmp), s.env(cache)...), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	begin := time.Now()
	out, err := gotest([]string{"-coverprofile", profile}, testedPackages)
	t.Logf("%v", time.Since(begin).Round(time.Second))
	require.NoError(t, err, out)
	for _, pkg := range testedPackages {
		assert.Contains(t, out, "\nok  \t"+pkg+"\t")
	}
	for _, want := range []string{"--- PASS: TestSum", "--- PASS: TestFiles", "--- SKIP: TestWait", "coverage: "} {
		assert.Contains(t, out, want)
	}
	assert.Equal(t, strings.Count(out, "vole: "), strings.Count(out, "vole: exec: unpacking the kernel into the cache"), "no other word of vole's: %s", out)
	b, err := os.ReadFile(profile)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(b), "mode: set\n"), "%.100s", b)
	for _, file := range []string{"/testee/doc.go:", "container/list/list.go:", "path/path.go:", "unicode/utf8/utf8.go:"} {
		assert.Contains(t, string(b), file)
	}
	left, err := filepath.Glob(filepath.Join(tmp, "*"))
	require.NoError(t, err)
	assert.Empty(t, left)

	out, err = gotest([]string{"-run=TestFiles", "-timeout=10m"}, testedPackages[:1], "TESTEE_FAIL=1")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, out)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Contains(t, out, "--- FAIL: TestFiles")
	assert.Contains(t, out, "FAIL\t"+testedPackages[0]+"\t")
}
