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

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// envGo tells the tests, in the emulated host too, where Go is: a goStage in JSON.
const envGo = "VOLE_GO_STAGE"

// goStage is Go with vole's source and what that imports, for TestExecBuild, and what a
// build made of it outside of any guest; and with what testedPackages import.
type goStage struct {
	Root, GOROOT, Modules string // directories: vole's source, Go, the module cache
	Cache                 string // a build cache with all packages that aren't vole's
	Twin                  string // vole as it must come out
}

// buildFlags are what both builds are made with; their results are the same bytes then.
var buildFlags = []string{"build", "-trimpath", "-buildvcs=false", "-mod=readonly"}

// buildEnv is the environment of a build that reaches no network.
func (s goStage) env(cache string) []string {
	return []string{
		"GOROOT=" + s.GOROOT, "GOMODCACHE=" + s.Modules, "GOCACHE=" + cache, "CGO_ENABLED=0", "GOFLAGS=", "GOENV=off", "GOWORK=off",
		"GOPROXY=off", "GOSUMDB=off", "GOTOOLCHAIN=local", "GOTELEMETRY=off",
	}
}

// testedPackages are what TestExecGoTestWhole tests, by `go test` with these flags.
var (
	testedPackages = []string{"github.com/vole-vmm/vole/testdata/nested/testee", "container/list", "path", "unicode/utf8"}
	testFlags      = []string{"test", "-trimpath", "-mod=readonly", "-vet=off", "-count=1", "-v", "-covermode=set", "-coverpkg=" + strings.Join(testedPackages, ",")}
)

// wantsGo says whether this run of tests has one in it that needs Go, which is large.
func wantsGo() bool {
	flag.Parse()
	switch nested.CurrentSuite() {
	case nested.SuiteMatrix, nested.SuiteSoak:
	default:
		return false
	}
	pattern, _, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	return slices.ContainsFunc([]string{"TestExecBuild", "TestExecGoTestWhole"}, func(name string) bool {
		ok, err := regexp.MatchString(pattern, name)
		return ok && err == nil
	})
}

// goList are what is of interest of a package.
type goList struct {
	ImportPath, Dir                                 string
	ForTest                                         string
	Standard                                        bool
	GoFiles, SFiles, HFiles, EmbedFiles, OtherFiles []string
	TestGoFiles, XTestGoFiles                       []string
	Module                                          *struct {
		Main bool
	}
}

// stageGo makes a goStage, outside of the emulated host, and returns the files that
// have to be brought there: of Go and of what vole imports no more than a build reads.
func stageGo() (files []string, err error) {
	var s goStage
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
	fmt.Fprintln(id, testFlags)
	s.Cache, s.Twin = filepath.Join(cache, fmt.Sprintf("gocache-%.12x", id.Sum(nil))), filepath.Join(cache, "bin", "vole-twin")

	dirs := []string{s.Cache, filepath.Join(s.GOROOT, "pkg", "include")}
	files = []string{filepath.Join(s.Root, "go.mod"), filepath.Join(s.Root, "go.sum"), filepath.Join(s.GOROOT, "bin", "go"), s.Twin}
	for _, name := range []string{"VERSION", "go.env", "src/go.mod", "src/go.sum", "src/vendor/modules.txt"} {
		files = append(files, filepath.Join(s.GOROOT, name))
	}
	for _, tool := range []string{"asm", "compile", "cover", "link", "vet"} {
		files = append(files, filepath.Join(s.GOROOT, "pkg", "tool", runtime.GOOS+"_"+runtime.GOARCH, tool))
	}
	build := slices.Clone(buildFlags) // of what is not vole's
	packages := func(list []byte, each func(p *goList)) {
		for in := json.NewDecoder(bytes.NewReader(list)); err == nil; {
			var p goList
			e := in.Decode(&p)
			if errors.Is(e, io.EOF) {
				return
			}
			if err = e; err == nil {
				each(&p)
			}
		}
	}
	bring := func(p *goList, names ...[]string) {
		for _, name := range slices.Concat(names...) {
			files = append(files, filepath.Join(p.Dir, name))
		}
	}
	packages(run(nil, "list", "-deps", "-json", "./cmd/vole"), func(p *goList) {
		bring(p, p.GoFiles, p.SFiles, p.HFiles, p.EmbedFiles, p.OtherFiles)
		if (p.Standard || !p.Module.Main) && p.ImportPath != "unsafe" {
			build = append(build, p.ImportPath)
		}
	})
	packages(run(nil, append([]string{"list", "-deps", "-test", "-cover", "-json"}, testedPackages...)...), func(p *goList) {
		if p.ForTest != "" || strings.HasSuffix(p.ImportPath, ".test") {
			return // made of the others
		}
		bring(p, p.GoFiles, p.SFiles, p.HFiles, p.EmbedFiles, p.OtherFiles)
		if slices.Contains(testedPackages, p.ImportPath) {
			bring(p, p.TestGoFiles, p.XTestGoFiles)
			if _, e := os.Stat(filepath.Join(p.Dir, "testdata")); e == nil {
				files = append(files, filepath.Join(p.Dir, "testdata"))
			}
		}
	})
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
		env := []string{"GOCACHE=" + part, "GOFLAGS="}
		run(env, build...)
		run(env, slices.Concat(testFlags, []string{"-run=^$"}, testedPackages)...)
		if err == nil {
			err = os.Rename(part, s.Cache)
		}
	}
	run([]string{"GOFLAGS="}, append(slices.Clone(buildFlags), "-o", s.Twin, "./cmd/vole")...)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(s)
	return append(files, dirs...), errors.Join(err, os.Setenv(envGo, string(raw)))
}

// staged is Go, in the emulated host, and a copy of its build cache below work.
func staged(t *testing.T, work string) (s goStage, cache string) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(os.Getenv(envGo)), &s))
	cache = filepath.Join(work, "cache")
	require.NoError(t, os.CopyFS(cache, os.DirFS(s.Cache)))
	// Go throws away what nobody has used for days, and a copy was never used.
	require.NoError(t, os.WriteFile(filepath.Join(cache, "trim.txt"), fmt.Appendf(nil, "%d", time.Now().Unix()), 0o644))
	return s, cache
}
