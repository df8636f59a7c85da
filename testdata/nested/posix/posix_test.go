package posix

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tested is a new directory in the one that is tested.
func tested(t *testing.T) string {
	t.Helper()
	home := os.Getenv("VOLE_POSIX_DIR")
	if home == "" {
		return t.TempDir()
	}
	dir := filepath.Join(home, filepath.Base(t.Name()))
	require.NoError(t, os.Mkdir(dir, 0o755))
	return dir
}

// broken are posixtest's tests that its authors leave out themselves.
var broken = []string{"FcntlFlockLocksFile"}

func device(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Dev
}

func TestPosix(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		if slices.Contains(broken, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := tested(t)
			if name == "OpenSymlinkRace" && device(t, dir) == device(t, "/etc/passwd") {
				t.Skip("it tells a link that was followed by another device")
			}
			posixtest.All[name](t, dir)
		})
	}
}
