package pull

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A disk that is full is the host's error, and nothing is kept on it.
func TestPullOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=128k,mode=0700"); err != nil {
		t.Skipf("this host forbids mounts: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(disk, unix.MNT_DETACH)) }()
	f := serve(t)
	body := data(512<<10, 1)
	f.bodies["/x.deb"] = body
	big := writeFile(t, filepath.Join(t.TempDir(), "big.deb"),
		debOf(t, ".xz", tarball(t, append(kernelFiles(testRelease), entry{"lib/modules/" + testRelease + "/kernel/big.ko", string(make([]byte, 512<<10)), ""})...)))
	for name, src := range map[string]string{
		"a download": f.URL + "/x.deb#sha256=" + sumOf(body),
		"a package":  big,
	} {
		t.Run(name, func(t *testing.T) {
			opt := testOptions(t)
			opt.Dir = filepath.Join(disk, "a", "pulled")
			_, err := Pull(t.Context(), source(t, src), opt)
			require.ErrorIs(t, err, unix.ENOSPC)
			assert.NotErrorIs(t, err, ErrArchive)
			assert.NotErrorIs(t, err, ErrNotFound)
			assert.Empty(t, entries(t, disk), "something is left")
		})
	}
}
