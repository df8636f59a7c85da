package hostdir_test

import (
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// mount mounts a share with the kernel of this machine in the guest's part and
// returns where.
func mount(t testing.TB, o hostdir.Options) (string, *hostdir.FS) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse here")
	}
	f, err := hostdir.New(o)
	require.NoError(t, err)
	at := filepath.Join(t.TempDir(), "mnt")
	require.NoError(t, os.Mkdir(at, 0o755))
	opts := f.MountOptions()
	opts.DirectMountStrict = true
	opts.DirectMountFlags = syscall.MS_NODEV
	opts.AllowOther = true
	opts.Options = []string{"default_permissions"}
	opts.MaxWrite = 1 << 20
	opts.Logger = log.New(io.Discard, "", 0)
	opts.FsName, opts.Name = "hostdir", "hostdir"
	s, err := fuse.NewServer(f, at, opts)
	if err != nil {
		_ = f.Close()
		if os.IsPermission(err) {
			t.Skipf("this host forbids mounts: %v", err)
		}
		t.Fatal(err)
	}
	go s.Serve()
	require.NoError(t, s.WaitMount())
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
		s.Wait()
		require.NoError(t, f.Close())
	})
	return at, f
}

// run runs a command of the host and returns what it said.
func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("no %s here", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %q: %s", name, args, out)
	return string(out)
}

func TestToolsOverMount(t *testing.T) {
	for _, cache := range []hostdir.CacheMode{hostdir.CacheAuto, hostdir.CacheNone, hostdir.CacheAlways} {
		t.Run(cache.String(), func(t *testing.T) {
			host := t.TempDir()
			at, f := mount(t, hostdir.Options{Dir: host, Cache: cache, Xattr: true})
			repo, err := filepath.Abs("../../..")
			require.NoError(t, err)
			// -c: whoever owns the checkout.
			run(t, at, "git", "-c", "safe.directory=*", "clone", "-q", "--no-hardlinks", repo, "vole")
			require.Empty(t, run(t, at+"/vole", "git", "status", "--porcelain"))
			run(t, at, "cp", "-a", "vole", "copy")
			run(t, at, "diff", "-r", "--no-dereference", host+"/vole", host+"/copy")
			run(t, at, "tar", "cf", "vole.tar", "vole")
			require.NoError(t, os.Mkdir(at+"/out", 0o755))
			run(t, at, "tar", "xpf", "vole.tar", "-C", "out")
			run(t, at, "diff", "-r", "--no-dereference", host+"/vole", at+"/out/vole")
			require.Empty(t, run(t, host+"/out/vole", "git", "-c", "core.trustctime=false", "status", "--porcelain"))
			run(t, at, "rm", "-r", "vole", "copy", "out")
			left, err := os.ReadDir(host)
			require.NoError(t, err)
			require.Len(t, left, 1)
			s := f.Stats()
			t.Logf("%+v", s)
			require.LessOrEqual(t, s.Open, 1024)
		})
	}
}
