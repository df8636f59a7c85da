package guests

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// posixOpen is what a share does not promise: who opens a file that others replace all
// the time gets ESTALE when it has lost that race twice in a row, the second time after
// the guest's kernel has looked the name up anew. A share keeps no descriptor of files
// that aren't open, so that the replaced one is gone.
const posixOpen = "^TestPosix$/^OpenSymlinkRace$"

// TestExecPosix: the tests of testdata/nested/posix on a share that `vole exec --rw`
// makes writable: what POSIX promises, and bytes written in every way read in every other.
func TestExecPosix(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	posix, err := testsPath("posix")
	require.NoError(t, err)
	for _, turn := range []int{1, 2} {
		t.Run(strings.TrimPrefix(execPairs[turn].kernel, "kernel-"), func(t *testing.T) {
			t.Parallel()
			work := t.TempDir()
			e := execVole(t, turn, []string{"--rw", work, "-c", "2", "--env", "VOLE_POSIX_DIR=" + work, "--cwd", work}, posix, "-test.v", "-test.skip="+posixOpen)
			e.within(t, shareBound)
			r := e.result(t)
			assert.Equal(t, 0, r.code, r.stdout+r.stderr)
			assert.Empty(t, r.stderr)
			passed := strings.Count(r.stdout, "    --- PASS: TestPosix/")
			for _, l := range lines(r.stdout) {
				if strings.Contains(l, "--- SKIP") || strings.Contains(l, "_SEED") {
					t.Log(strings.TrimSpace(l))
				}
			}
			assert.GreaterOrEqual(t, passed, 25, r.stdout)
			assert.Contains(t, r.stdout, "--- PASS: TestExercise", r.stdout)
			assert.DirExists(t, filepath.Join(work, "TestExercise"), "it was on the share")
		})
	}
}
