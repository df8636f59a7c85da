package hostdir_test

import (
	"bytes"
	"fmt"
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

// command is a command in a directory. Between fork and exec this process may be
// held up, and it must not be by a file system that it serves itself.
func command(dir string, args ...string) *exec.Cmd {
	return exec.Command("/bin/sh", append([]string{"-c", `cd "$0" && exec "$@"`, dir}, args...)...)
}

// run runs a command of the host and returns what it said.
func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("no %s here", name)
	}
	out, err := command(dir, append([]string{name}, args...)...).CombinedOutput()
	require.NoError(t, err, "%s %q: %s", name, args, out)
	return string(out)
}

// source makes a repository of git to work with.
func source(t *testing.T) string {
	dir := t.TempDir()
	for i := range 120 {
		sub := fmt.Sprintf("%s/d%d/e%d", dir, i%10, i%3)
		require.NoError(t, os.MkdirAll(sub, 0o755))
		require.NoError(t, os.WriteFile(fmt.Sprintf("%s/f%d", sub, i), bytes.Repeat([]byte{byte(i), '\n'}, i*i*4), 0o644))
	}
	require.NoError(t, os.WriteFile(dir+"/run", []byte("#!/bin/sh\necho ran\n"), 0o755))
	require.NoError(t, os.Symlink("d1/e1", dir+"/link"))
	require.NoError(t, os.Symlink("/nowhere", dir+"/broken"))
	run(t, dir, "git", "init", "-q")
	run(t, dir, "git", "add", ".")
	run(t, dir, "git", "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "all")
	return dir
}

func TestToolsOverMount(t *testing.T) {
	from := source(t)
	for _, cache := range []hostdir.CacheMode{hostdir.CacheAuto, hostdir.CacheNone, hostdir.CacheAlways} {
		t.Run(cache.String(), func(t *testing.T) {
			host := t.TempDir()
			at, f := mount(t, hostdir.Options{Dir: host, Cache: cache, Xattr: true, Locks: hostdir.LocksHost})
			run(t, at, "git", "clone", "-q", "--no-hardlinks", from, "tree")
			require.Empty(t, run(t, at+"/tree", "git", "status", "--porcelain"))
			require.Empty(t, run(t, host+"/tree", "git", "status", "--porcelain"))
			require.Equal(t, "ran\n", run(t, at, at+"/tree/run"))
			run(t, at, "cp", "-a", "tree", "copy")
			run(t, at, "diff", "-r", "--no-dereference", host+"/tree", host+"/copy")
			run(t, at, "tar", "cf", "tree.tar", "tree")
			require.NoError(t, os.Mkdir(at+"/out", 0o755))
			run(t, at, "tar", "xpf", "tree.tar", "-C", "out")
			run(t, at, "diff", "-r", "--no-dereference", from, at+"/out/tree", "-x", ".git")
			run(t, at, "rm", "-r", "tree", "copy", "out")
			left, err := os.ReadDir(host)
			require.NoError(t, err)
			require.Len(t, left, 1)
			require.LessOrEqual(t, f.Stats().Open, 1024)
		})
	}
}

// A share that may not be written is a good lower layer of an overlay, whatever
// marks the host's own overlays have left in it.
func TestOverlayOverMount(t *testing.T) {
	host := t.TempDir()
	require.NoError(t, os.MkdirAll(host+"/dir/sub", 0o755))
	require.NoError(t, os.WriteFile(host+"/dir/file", []byte("host"), 0o644))
	require.NoError(t, os.WriteFile(host+"/dir/gone", []byte("host"), 0o644))
	at, _ := mount(t, hostdir.Options{Dir: host, ReadOnly: true, Xattr: true})
	for _, name := range []string{"trusted.overlay.opaque", "trusted.overlay.redirect"} {
		if err := unix.Setxattr(host+"/dir", name, []byte("y"), 0); err != nil {
			t.Logf("%s: %v", name, err)
		}
	}
	tmp := t.TempDir()
	if err := unix.Mount("tmpfs", tmp, "tmpfs", 0, ""); err != nil {
		t.Skipf("this host forbids mounts: %v", err)
	}
	defer unix.Unmount(tmp, unix.MNT_DETACH)
	for _, dir := range []string{"upper", "work", "at"} {
		require.NoError(t, os.Mkdir(tmp+"/"+dir, 0o755))
	}
	o := tmp + "/at"
	if err := unix.Mount("overlay", o, "overlay", 0, "lowerdir="+at+",upperdir="+tmp+"/upper,workdir="+tmp+"/work"); err != nil {
		t.Skipf("no overlays here: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(o, 0)) }()
	before := tree(t, host)
	require.NoError(t, os.WriteFile(o+"/dir/file", []byte("guest"), 0o644))
	require.NoError(t, os.Remove(o+"/dir/gone"))
	require.NoError(t, os.Mkdir(o+"/dir/gone", 0o755))
	require.NoError(t, os.WriteFile(o+"/dir/new", []byte("guest"), 0o644))
	require.NoError(t, os.Chmod(o+"/dir/sub", 0o700))
	require.NoError(t, os.RemoveAll(o+"/dir/gone"))
	b, err := os.ReadFile(o + "/dir/file")
	require.NoError(t, err)
	require.Equal(t, "guest", string(b))
	require.Equal(t, before, tree(t, host))
	require.ErrorIs(t, os.WriteFile(at+"/dir/file", nil, 0o644), unix.EROFS)
}

// A process of the guest gets what its user may, though root answers.
func TestUsersOverMount(t *testing.T) {
	host := t.TempDir()
	at, _ := mount(t, hostdir.Options{Dir: host, Xattr: true})
	for dir := at; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755)
	}
	require.NoError(t, os.WriteFile(host+"/secret", []byte("x"), 0o600))
	require.NoError(t, os.Mkdir(host+"/open", 0o777))
	require.NoError(t, os.Chmod(host+"/open", 0o777))
	require.NoError(t, os.WriteFile(host+"/listed", []byte("x"), 0o640))
	acl := aclBytes(aclEntry{1, 6, ^uint32(0)}, aclEntry{2, 4, 65534}, aclEntry{4, 0, ^uint32(0)}, aclEntry{16, 4, ^uint32(0)}, aclEntry{32, 0, ^uint32(0)})
	listed := unix.Setxattr(host+"/listed", "system.posix_acl_access", acl, 0) == nil
	as := func(script string) error {
		cmd := command(at, "/bin/sh", "-c", script)
		cmd.SysProcAttr = unprivileged(65534)
		out, err := cmd.CombinedOutput()
		t.Logf("%s: %s", script, out)
		return err
	}
	require.Error(t, as("cat secret"))
	require.Error(t, as("echo >>secret"))
	require.Error(t, as("touch new"))
	require.Error(t, as("chmod 777 secret"))
	require.NoError(t, as("echo mine >open/file && mkdir open/dir && chmod 4755 open/file && ln -s x open/link"))
	if listed {
		require.NoError(t, as("cat listed"))
	}
	var st unix.Stat_t
	for _, name := range []string{"file", "dir", "link"} {
		require.NoError(t, unix.Lstat(host+"/open/"+name, &st))
		require.EqualValues(t, 65534, st.Uid, name)
	}
	require.NoError(t, as("echo more >>open/file"))
	require.NoError(t, unix.Lstat(host+"/open/file", &st))
	require.EqualValues(t, 0o755, st.Mode&0o7777, "who writes loses the set-user-ID bit")
}
