package guests

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestSecondRunBootsFromTheCache: the first run of a bzImage boots it as it is
// and fills the cache; the second boots what is there; --boot bzimage goes on
// with the bzImage, whose kernel can place itself at random. A vmlinux in the
// cache that is not what was put there is not booted, whether the cache sees
// that or only the loader.
func TestSecondRunBootsFromTheCache(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	for _, step := range []struct {
		name, protocol string
		args           []string
		cached, missed bool
		before         func(t *testing.T, vmlinux string)
	}{
		{"first", "bzimage-64", nil, false, true, nil},
		{"second", "pvh", nil, true, false, nil},
		{"as it is", "bzimage-64", []string{"--boot", "bzimage"}, false, false, nil},
		{"truncated", "bzimage-64", nil, false, true, func(t *testing.T, vmlinux string) {
			require.NoError(t, os.Truncate(vmlinux, 1<<20))
		}},
		{"mended", "pvh", nil, true, false, nil},
		{"no segments", "bzimage-64", nil, false, false, func(t *testing.T, vmlinux string) {
			overwrite(t, vmlinux, make([]byte, 4<<10), 64)
		}},
	} {
		if step.before != nil {
			found, err := filepath.Glob(filepath.Join(cache, "*.vmlinux"))
			require.NoError(t, err)
			require.Len(t, found, 1)
			step.before(t, found[0])
		}
		report := filepath.Join(t.TempDir(), "report.json")
		args := append([]string{"run", "-k", asset(t, nested.KernelDefault), "-m", "128M", "-a", "quiet", "--timeout", "2m", "--report", report}, step.args...)
		cmd := exec.Command(asset(t, nested.AssetVole), args...)
		cmd.Env = append(os.Environ(), "VOLE_CACHE="+cache)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", step.name, out)
		r := readReport(t, report)
		assert.Equal(t, step.protocol, r.Boot.Protocol, step.name)
		assert.Equal(t, step.cached, r.Boot.Cached, step.name)
		assert.Equal(t, step.missed, r.Boot.Missed, step.name)
	}
}

// overwrite changes a file at an offset, and neither its size nor its time.
func overwrite(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(b, off)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, os.Chtimes(path, time.Time{}, info.ModTime()))
}
