package guests

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// envExecSoak is how many commands of each kind are run, instead of 500.
const envExecSoak = "VOLE_EXEC_SOAK"

// The commands of the soak: those that succeed and those that fail with random codes,
// half of each kind one after the other, on a terminal, and half four at a time. Every
// code is right, and nothing is left of any. They are four tests, as an emulated host
// that locks up has a test run again.

func TestSoakExecTrue(t *testing.T)        { soakExec(t, succeeds, inTurn) }
func TestSoakExecTrueAtOnce(t *testing.T)  { soakExec(t, succeeds, fourAtOnce) }
func TestSoakExecCodes(t *testing.T)       { soakExec(t, fails, inTurn) }
func TestSoakExecCodesAtOnce(t *testing.T) { soakExec(t, fails, fourAtOnce) }

func succeeds(*rand.Rand) int     { return 0 }
func fails(random *rand.Rand) int { return 1 + random.IntN(255) }

// soakExec runs commands whose codes are as code says.
func soakExec(t *testing.T, code func(*rand.Rand) int, run func(t *testing.T, codes []int)) {
	nested.RequireSuite(t, nested.SuiteSoak)
	count := 500
	if s := os.Getenv(envExecSoak); s != "" {
		var err error
		count, err = strconv.Atoi(s)
		require.NoError(t, err, envExecSoak)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	codes := make([]int, count/2)
	for i := range codes {
		codes[i] = code(random)
	}
	for turn := range execPairs { // fills what is kept
		assert.Equal(t, result{}, execSoak(t, turn, "true").result(t))
	}
	before := leftovers(t)
	run(t, codes)
	assert.Equal(t, before, leftovers(t))
}

func inTurn(t *testing.T, codes []int) {
	for i, code := range codes {
		// A subtest, so that its terminal goes with it.
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			e := execSoak(t, i, command(code))
			var out bytes.Buffer
			e.Stdout = &out
			p := newTerminal(t)
			p.start(e.Cmd)
			assert.Equal(t, code, p.wait(), p.out)
			assert.Empty(t, out.String())
		})
	}
}

func fourAtOnce(t *testing.T, codes []int) {
	var all sync.WaitGroup
	next := make(chan int)
	for range 4 {
		all.Go(func() {
			for i := range next {
				e := execSoak(t, i, command(codes[i]))
				out, err := e.CombinedOutput()
				if code := e.ProcessState.ExitCode(); code != codes[i] || len(out) > 0 {
					t.Errorf("%d: code %d, not %d (%v): %s", i, code, codes[i], err, out)
				}
				progress(t, i, len(codes))
			}
		})
	}
	for i := range codes {
		next <- i
	}
	close(next)
	all.Wait()
}

// command is what ends with a code.
func command(code int) string {
	if code == 0 {
		return "true"
	}
	return fmt.Sprintf("exit %d", code)
}

func execSoak(t testing.TB, turn int, script string) *execed {
	e := execVole(t, turn, nil, "sh", "-c", script)
	e.Env = append(e.Env, "TMPDIR="+os.TempDir()) // leftovers looks there
	return e
}

func progress(t testing.TB, i, count int) {
	if (i+1)%10 == 0 || i+1 == count {
		t.Logf("%d of %d", i+1, count)
	}
}

// leftovers is what a vole that ended may have left: processes, files, sockets, and
// descriptors of this process.
func leftovers(t testing.TB) map[string]any {
	t.Helper()
	processes := []string{}
	stats, err := filepath.Glob("/proc/[0-9]*/comm")
	require.NoError(t, err)
	for _, path := range stats {
		if name, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(name), "vole") {
			processes = append(processes, filepath.Base(filepath.Dir(path)))
		}
	}
	files := []string{}
	for _, dir := range []string{os.TempDir(), cacheDir(t)} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "Test") {
				return fs.SkipDir // of tests
			}
			files = append(files, path)
			return nil
		})
		require.NoError(t, err)
	}
	slices.Sort(files)
	sockets, err := os.ReadFile("/proc/net/unix")
	require.NoError(t, err)
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return map[string]any{
		"processes": processes, "files": slices.Compact(files), "sockets": bytes.Count(sockets, []byte("\n")), "descriptors": len(fds),
	}
}

// cacheDir is the cache that the tests share.
func cacheDir(t testing.TB) string {
	t.Helper()
	return cacheWith(t, asset(t, nested.KernelDefault)).Dir()
}
