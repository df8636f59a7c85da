package gotest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want map[string]string
	}{
		"none":             {nil, map[string]string{}},
		"a program":        {[]string{"-test.run=x"}, map[string]string{}},
		"with =":           {[]string{"p", "-test.coverprofile=c.out", "--test.timeout=1m"}, map[string]string{"coverprofile": "c.out", "timeout": "1m"}},
		"as two words":     {[]string{"p", "-test.run", "X", "-test.v", "-test.cpuprofile", "p.out"}, map[string]string{"run": "X", "v": "true", "cpuprofile": "p.out"}},
		"not of the tests": {[]string{"p", "-test.v", "--", "-test.trace=t"}, map[string]string{"v": "true"}},
		"behind -args":     {[]string{"p", "-args", "-test.trace=t"}, map[string]string{}},
		"behind a word":    {[]string{"p", "word", "-test.trace=t"}, map[string]string{}},
		"others":           {[]string{"p", "-update", "-x.trace=t", "-test.trace=t"}, map[string]string{"trace": "t"}},
		"nothing behind":   {[]string{"p", "-test.trace"}, map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tc.want, Flags(tc.args))
		})
	}
}

// devices are a guest's own.
func devices(dir string) string {
	if dir == "/dev" || strings.HasPrefix(dir, "/dev/") {
		return "/dev"
	}
	return ""
}

func TestScratch(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	pkg, out, cover := filepath.Join(top, "pkg"), filepath.Join(top, "out"), filepath.Join(top, "cover")
	for _, d := range []string{pkg, out, cover, filepath.Join(out, "sub")} {
		require.NoError(t, os.Mkdir(d, 0o777))
	}
	require.NoError(t, os.Symlink(out, filepath.Join(top, "link")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(out, "fifo"), 0o666))
	require.NoError(t, os.Symlink("/dev/null", filepath.Join(cover, "null")))
	require.NoError(t, os.WriteFile(filepath.Join(out, "old"), nil, 0o666))
	t.Chdir(pkg)
	for name, tc := range map[string]struct {
		args  []string
		cover string
		want  []string
	}{
		"nothing":                {[]string{"p", "-test.v=true"}, "", nil},
		"any program's coverage": {[]string{"p"}, cover, []string{cover}},
		"a test's coverage": {
			[]string{"p", "-test.gocoverdir=" + cover, "-test.coverprofile=" + out + "/c.out"}, "", []string{cover, out},
		},
		"a profile here":           {[]string{"p", "-test.cpuprofile=p.out"}, "", []string{pkg}},
		"a profile below":          {[]string{"p", "-test.outputdir=" + out, "-test.trace=sub/t"}, "", []string{out, out + "/sub"}},
		"by a link":                {[]string{"p", "-test.testlogfile=../link/log"}, "", []string{out}},
		"one twice":                {[]string{"p", "-test.testlogfile=../out/log", "-test.trace=../out/t"}, "", []string{out}},
		"missing":                  {[]string{"p", "-test.gocoverdir=/nowhere/at/all", "-test.outputdir=/nowhere"}, "/nowhere", nil},
		"a file":                   {[]string{"p", "-test.gocoverdir=/dev/null"}, "", nil},
		"the guest's own":          {[]string{"p", "-test.cpuprofile=/dev/null", "-test.trace=/dev/stdout", "-test.memprofile=/dev/new", "-test.gocoverdir=/dev/"}, "/dev", nil},
		"below the guest's own":    {[]string{"p", "-test.cpuprofile=null", "-test.outputdir=/dev", "-test.fuzzcachedir=/dev/fuzz"}, "", nil},
		"no regular file":          {[]string{"p", "-test.cpuprofile=" + out + "/fifo", "-test.trace=" + cover + "/null", "-test.blockprofile=" + out}, "", nil},
		"a profile of before":      {[]string{"p", "-test.cpuprofile=" + out + "/old"}, "", []string{out}},
		"never the whole of it":    {[]string{"p", "-test.coverprofile=/c.out"}, "", nil},
		"what the tests are given": {[]string{"p", "--", "-test.coverprofile=" + out + "/c.out"}, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(tc.args, tc.cover, devices)
			assert.Equal(t, tc.want, s.Dirs())
			s.Remove()
		})
	}
}

func TestScratchOfFuzzing(t *testing.T) {
	pkg, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	t.Chdir(pkg)
	args := []string{"p", "-test.fuzz=FuzzX"}

	s := New(args, "", devices)
	assert.Equal(t, []string{filepath.Join(pkg, "testdata/fuzz")}, s.Dirs())
	s.Remove()
	assert.NoDirExists(t, "testdata", "nothing came of it")

	s = New(args, "", devices)
	require.NoError(t, os.WriteFile("testdata/fuzz/found", nil, 0o666))
	s.Remove()
	assert.FileExists(t, "testdata/fuzz/found")

	require.NoError(t, os.Remove("testdata/fuzz/found"))
	s = New(args, "", devices)
	s.Remove()
	assert.DirExists(t, "testdata/fuzz", "it was there before")

	require.NoError(t, os.RemoveAll("testdata"))
	require.NoError(t, os.WriteFile("testdata", nil, 0o666))
	s = New(args, "", devices)
	assert.Empty(t, s.Dirs(), "it can't be made")
	s.Remove()
	assert.FileExists(t, "testdata")
}

// TestScratchThatIsTooMuch: a profile is no reason to make a home writable.
func TestScratchThatIsTooMuch(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	home, work := filepath.Join(top, "home"), filepath.Join(top, "home", "work")
	require.NoError(t, os.MkdirAll(work, 0o777))
	require.NoError(t, os.Symlink(home, filepath.Join(top, "link")))
	t.Chdir(home)
	for name, tc := range map[string]struct {
		home  string
		args  []string
		cover string
		want  []string
		left  []string
	}{
		"a profile":              {home, []string{"-test.trace=" + home + "/t"}, "", nil, []string{home}},
		"a profile around it":    {home, []string{"-test.trace=" + top + "/t"}, "", nil, []string{top}},
		"a profile at the top":   {home, []string{"-test.trace=/t"}, "", nil, []string{"/"}},
		"a profile below it":     {home, []string{"-test.trace=" + work + "/t"}, "", []string{work}, nil},
		"by links":               {top + "/link", []string{"-test.trace=../link/t"}, "", nil, []string{home}},
		"two":                    {home, []string{"-test.trace=t", "-test.cpuprofile=c"}, "", nil, []string{home}},
		"coverage":               {home, []string{"-test.gocoverdir=" + top}, home, nil, []string{home, top}},
		"of go test in it":       {home, []string{"-test.trace=t", "-test.outputdir=" + home}, "", nil, []string{home}},
		"nothing goes there":     {home, []string{"-test.trace=" + work + "/t", "-test.outputdir=" + home}, "", []string{work}, nil},
		"artifacts are narrower": {home, []string{"-test.artifacts=true", "-test.outputdir=" + home}, "", []string{home + "/_artifacts"}, nil},
		"no home":                {"", []string{"-test.trace=t"}, "", []string{home}, nil},
		"a home that is none":    {"home", []string{"-test.trace=t"}, "", []string{home}, nil},
		"a home that is missing": {top + "/missing", []string{"-test.trace=" + top + "/t"}, "", nil, []string{top}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("HOME", tc.home)
			s := New(append([]string{"p"}, tc.args...), tc.cover, devices)
			assert.Equal(t, tc.want, s.Dirs())
			assert.Equal(t, tc.left, s.Left())
			s.Remove()
		})
	}
}

// TestScratchIsMade: what a test binary makes for itself has to be there before the guest
// is, and is gone if nothing came of it.
func TestScratchIsMade(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	t.Chdir(top)
	cache := filepath.Join(top, "cache")
	require.NoError(t, os.Mkdir(cache, 0o777))
	for name, tc := range map[string]struct {
		args []string
		want string
		gone string // the outermost that is made
	}{
		"the fuzz cache":     {[]string{"-test.fuzzcachedir=" + cache + "/fuzz/example.org/p"}, cache + "/fuzz/example.org/p", cache + "/fuzz"},
		"artifacts":          {[]string{"-test.artifacts=true", "-test.outputdir=" + cache}, cache + "/_artifacts", cache + "/_artifacts"},
		"artifacts, by hand": {[]string{"-test.artifacts"}, top + "/_artifacts", top + "/_artifacts"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"p"}, tc.args...)
			s := New(args, "", devices)
			assert.Contains(t, s.Dirs(), tc.want)
			assert.DirExists(t, tc.want)
			s.Remove()
			assert.NoDirExists(t, tc.gone, "nothing came of it")
			assert.DirExists(t, cache, "it was there before")

			s = New(args, "", devices)
			require.NoError(t, os.WriteFile(filepath.Join(tc.want, "found"), nil, 0o666))
			s.Remove()
			assert.FileExists(t, filepath.Join(tc.want, "found"))
			require.NoError(t, os.RemoveAll(tc.gone))
		})
	}

	for _, args := range [][]string{{"p", "-test.artifacts=false"}, {"p", "-test.artifacts", "-test.outputdir=missing"}} {
		s := New(args, "", devices)
		assert.Empty(t, s.Dirs(), args)
		assert.NoDirExists(t, "missing", "a test binary does not make it either")
		s.Remove()
	}
}

// TestScratchThatCanNotBeMade leaves the rest as it is.
func TestScratchThatCanNotBeMade(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	t.Chdir(top)
	require.NoError(t, os.WriteFile("file", nil, 0o666))
	s := New([]string{"p", "-test.fuzz=FuzzX", "-test.fuzzcachedir=" + top + "/file/p", "-test.artifacts"}, "", devices)
	assert.ElementsMatch(t, []string{top + "/testdata/fuzz", top + "/_artifacts"}, s.Dirs())
	assert.DirExists(t, "testdata/fuzz")
	s.Remove()
	assert.NoDirExists(t, "testdata")
	assert.NoDirExists(t, "_artifacts")
}
