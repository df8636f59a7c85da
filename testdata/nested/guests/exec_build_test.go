package guests

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestExecBuild: Go builds vole in a guest, over vole's own shares, to the same bytes as
// here. Packages that aren't vole's are in the build cache, or it would take an hour in
// the emulated host.
func TestExecBuild(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	tools(t)
	work := t.TempDir()
	s, cache := staged(t, work)
	out := filepath.Join(work, "vole")

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
