package guests

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// envBuild tells the tests, in the emulated host too, where what TestExecBuild needs is:
// a buildStage in JSON.
const envBuild = "VOLE_BUILD_STAGE"

// buildStage is Go with vole's source and what that imports, and what a build made of it
// outside of any guest.
type buildStage struct {
	Root, GOROOT, Modules string // directories: vole's source, Go, the module cache
	Cache                 string // a build cache with all packages that aren't vole's
	Twin                  string // vole as it must come out
}

// buildFlags are what both builds are made with; their results are the same bytes then.
var buildFlags = []string{"build", "-trimpath", "-buildvcs=false", "-mod=readonly"}

// buildEnv is the environment of a build that reaches no network.
func (s buildStage) env(cache string) []string {
	return []string{
		"GOROOT=" + s.GOROOT, "GOMODCACHE=" + s.Modules, "GOCACHE=" + cache, "CGO_ENABLED=0", "GOFLAGS=", "GOENV=off", "GOWORK=off",
		"GOPROXY=off", "GOSUMDB=off", "GOTOOLCHAIN=local", "GOTELEMETRY=off",
	}
}

// wantsBuild says whether this run of tests has TestExecBuild in it: what that needs is
// large.
func wantsBuild() bool {
	flag.Parse()
	switch nested.CurrentSuite() {
	case nested.SuiteMatrix, nested.SuiteSoak:
	default:
		return false
	}
	pattern, _, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	ok, err := regexp.MatchString(pattern, "TestExecBuild")
	return ok && err == nil
}

// goList are what is of interest of a package.
type goList struct {
	ImportPath, Dir                                 string
	Standard                                        bool
	GoFiles, SFiles, HFiles, EmbedFiles, OtherFiles []string
	Module                                          *struct {
		Main bool
	}
}

// stageBuild makes a buildStage, outside of the emulated host, and returns the files that
// have to be brought there: of Go and of what vole imports no more than a build reads.
func stageBuild() (files []string, err error) {
	var s buildStage
	run := func(env []string, args ...string) []byte {
		if err != nil {
			return nil
		}
		cmd := exec.Command("go", args...)
		cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
		cmd.Dir = s.Root
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if e := cmd.Run(); e != nil {
			err = fmt.Errorf("go %.200s: %w\n%s", strings.Join(args, " "), e, &errs)
		}
		return bytes.TrimSpace(out.Bytes())
	}
	s.Root = filepath.Dir(string(run(nil, "env", "GOMOD")))
	s.GOROOT, s.Modules = string(run(nil, "env", "GOROOT")), string(run(nil, "env", "GOMODCACHE"))
	id := sha256.New()
	fmt.Fprintln(id, string(run(nil, "env", "GOVERSION", "GOAMD64", "GOEXPERIMENT")))
	cache, cerr := nested.CacheDir()
	sum, serr := os.ReadFile(filepath.Join(s.Root, "go.sum"))
	if err = errors.Join(err, cerr, serr); err != nil {
		return nil, err
	}
	id.Write(sum)
	s.Cache, s.Twin = filepath.Join(cache, fmt.Sprintf("gocache-%.12x", id.Sum(nil))), filepath.Join(cache, "bin", "vole-twin")

	dirs := []string{s.Cache, filepath.Join(s.GOROOT, "pkg", "include")}
	files = []string{filepath.Join(s.Root, "go.mod"), filepath.Join(s.Root, "go.sum"), filepath.Join(s.GOROOT, "bin", "go"), s.Twin}
	for _, name := range []string{"VERSION", "go.env", "src/go.mod", "src/go.sum", "src/vendor/modules.txt"} {
		files = append(files, filepath.Join(s.GOROOT, name))
	}
	for _, tool := range []string{"asm", "compile", "link"} {
		files = append(files, filepath.Join(s.GOROOT, "pkg", "tool", runtime.GOOS+"_"+runtime.GOARCH, tool))
	}
	build := slices.Clone(buildFlags) // of what is not vole's
	for in := json.NewDecoder(bytes.NewReader(run(nil, "list", "-deps", "-json", "./cmd/vole"))); ; {
		var p goList
		if e := in.Decode(&p); errors.Is(e, io.EOF) {
			break
		} else if e != nil {
			return nil, errors.Join(err, e)
		}
		for _, name := range slices.Concat(p.GoFiles, p.SFiles, p.HFiles, p.EmbedFiles, p.OtherFiles) {
			files = append(files, filepath.Join(p.Dir, name))
		}
		if (p.Standard || !p.Module.Main) && p.ImportPath != "unsafe" {
			build = append(build, p.ImportPath)
		}
	}
	for _, mod := range strings.Fields(string(run(nil, "list", "-m", "-f", "{{.GoMod}}", "all"))) {
		for _, ext := range []string{".mod", ".info", ".ziphash"} {
			path := strings.TrimSuffix(mod, ".mod") + ext
			if _, e := os.Stat(path); e == nil && strings.HasPrefix(path, s.Modules) {
				files = append(files, path)
			}
		}
	}
	if _, e := os.Stat(s.Cache); e != nil {
		old, _ := filepath.Glob(filepath.Join(cache, "gocache-*"))
		for _, dir := range old {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		part := filepath.Join(cache, "gocache-part") // until it is whole
		run([]string{"GOCACHE=" + part, "GOFLAGS="}, build...)
		if err == nil {
			err = os.Rename(part, s.Cache)
		}
	}
	run([]string{"GOFLAGS="}, append(slices.Clone(buildFlags), "-o", s.Twin, "./cmd/vole")...)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(s)
	return append(files, dirs...), errors.Join(err, os.Setenv(envBuild, string(raw)))
}

// TestExecBuild: Go builds vole in a guest, over vole's own shares, to the same bytes as
// here. Packages that aren't vole's are in the build cache, or it would take an hour in
// the emulated host.
func TestExecBuild(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	tools(t)
	var s buildStage
	require.NoError(t, json.Unmarshal([]byte(os.Getenv(envBuild)), &s))
	work := t.TempDir()
	cache, out := filepath.Join(work, "cache"), filepath.Join(work, "vole")
	require.NoError(t, os.CopyFS(cache, os.DirFS(s.Cache)))
	// Go throws away what nobody has used for days, and a copy was never used.
	require.NoError(t, os.WriteFile(filepath.Join(cache, "trim.txt"), fmt.Appendf(nil, "%d", time.Now().Unix()), 0o644))

	command := append([]string{filepath.Join(s.GOROOT, "bin", "go")}, buildFlags...)
	e := execVole(t, 0, []string{"--rw", work, "--cwd", s.Root, "-c", "2", "-m", "2G"}, append(command, "-v", "-o", out, "./cmd/vole")...)
	e.within(t, time.Hour)
	e.Env = append(e.Env, s.env(cache)...)
	begin := time.Now()
	r := e.result(t)
	t.Logf("%v: %d packages", time.Since(begin).Round(time.Second), strings.Count(r.stderr, "\n"))
	require.Equal(t, 0, r.code, r.stdout+r.stderr)
	assert.NotContains(t, "\n"+r.stderr, "\ngithub.com/spf13/", "what is not vole's was in the cache")

	want, err := exec.Command(s.Twin, "version").Output()
	require.NoError(t, err)
	got, err := exec.Command(out, "version").Output()
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got))
	assert.True(t, strings.HasPrefix(string(got), "vole "), "%s", got)
	twin, err := os.ReadFile(s.Twin)
	require.NoError(t, err)
	built, err := os.ReadFile(out)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(twin, built), "the same source and another binary: %d and %d bytes", len(twin), len(built))
}
