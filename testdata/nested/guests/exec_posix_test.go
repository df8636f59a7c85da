package guests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestExecPosix: the tests of testdata/nested/posix on a share that `vole exec --rw`
// makes writable: what POSIX promises, and bytes written in every way read in every other.
//
// A share's options as well: whom files belong to, attributes, and locks that the host
// and the guest see of each other.
func TestExecPosix(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	posix, err := testsPath("posix")
	require.NoError(t, err)
	for _, turn := range []int{1, 2} {
		t.Run(strings.TrimPrefix(execPairs[turn].kernel, "kernel-"), func(t *testing.T) {
			t.Parallel()
			work := t.TempDir()
			shared := t.TempDir()
			locked, err := os.Create(filepath.Join(shared, "locked"))
			require.NoError(t, err)
			defer locked.Close()
			hold(t, locked)
			e := execVole(t, turn, []string{"--rw", work, "-c", "2", "--env", "VOLE_POSIX_DIR=" + work, "--env", "VOLE_POSIX_SHARE=opt", "--cwd", work,
				"--share", shared + ":opt,owner=7:8,xattr,locks=host"}, posix, "-test.v")
			e.within(t, shareBound)
			r0 := e.begin(t)
			if assert.Eventually(t, func() bool { _, err := os.Stat(filepath.Join(shared, "holding")); return err == nil }, shareBound, 100*time.Millisecond) {
				made, err := os.OpenFile(filepath.Join(shared, "made"), os.O_RDWR, 0)
				require.NoError(t, err)
				lk := unix.Flock_t{Type: unix.F_WRLCK}
				assert.ErrorIs(t, unix.Flock(int(made.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK, "the guest holds it")
				assert.ErrorIs(t, unix.FcntlFlock(made.Fd(), unix.F_OFD_SETLK, &lk), unix.EAGAIN, "the guest holds it")
				var st unix.Stat_t
				require.NoError(t, unix.Fstat(int(made.Fd()), &st))
				assert.EqualValues(t, os.Getuid(), st.Uid)
				require.NoError(t, made.Close())
				require.NoError(t, os.WriteFile(filepath.Join(shared, "seen"), nil, 0o644))
			}
			r := r0.wait()
			assert.Contains(t, r.stdout, "--- PASS: TestShareOptions", r.stdout)
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

// hold takes both kinds of locks of a file, until it is closed.
func hold(t *testing.T, f *os.File) {
	t.Helper()
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	require.NoError(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk))
}
