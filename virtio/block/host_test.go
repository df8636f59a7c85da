package block

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// withTmpfs runs test with a tmpfs of its own, which nobody else sees and
// which is gone afterwards. test must not call FailNow.
func withTmpfs(t *testing.T, options string, test func(dir string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	dir := t.TempDir()
	var mounted error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and end the thread with its name space
		mounted = unix.Unshare(unix.CLONE_NEWNS)
		if mounted == nil {
			mounted = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if mounted == nil {
			mounted = unix.Mount("tmpfs", dir, "tmpfs", 0, options)
		}
		if mounted == nil {
			test(dir)
		}
	}()
	<-done
	if mounted != nil {
		t.Skip("no mounts here: ", mounted)
	}
}

// asNobody runs test on a thread without root's rights to files. test must not
// call FailNow.
func asNobody(t *testing.T, test func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		test()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		test()
	}()
	<-done
}

// loopDevice makes a block device of path.
func loopDevice(t *testing.T, path string, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a block device")
	}
	out, err := exec.Command("losetup", append(args, "--find", "--show", path)...).Output()
	if err != nil {
		t.Skip("no loop device here: ", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	return dev
}

// reachable lets everybody into the directory that t.TempDir made.
func reachable(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
}
