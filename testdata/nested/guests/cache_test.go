package guests

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestSecondRunBootsFromTheCache: the first run of a bzImage boots it as it is
// and fills the cache; the second boots what is there; --boot bzimage goes on
// with the bzImage, whose kernel can place itself at random.
func TestSecondRunBootsFromTheCache(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	for _, step := range []struct {
		name, protocol string
		args           []string
		cached, missed bool
	}{
		{"first", "bzimage-64", nil, false, true},
		{"second", "pvh", nil, true, false},
		{"as it is", "bzimage-64", []string{"--boot", "bzimage"}, false, false},
	} {
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
