package agent

import (
	"errors"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// laidOver is a directory of the host, and the overlay that an agent makes of it: the
// share is mounted by this machine's kernel, which is the guest's here.
func laidOver(t *testing.T) (host, at string, told *atomic.Int32) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse here")
	}
	host, told = t.TempDir(), new(atomic.Int32)
	require.NoError(t, os.Chmod(host, 0o755))
	tmp := t.TempDir()
	if err := unix.Mount("tmpfs", tmp, "tmpfs", 0, ""); err != nil {
		t.Skipf("this host forbids mounts: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(tmp, unix.MNT_DETACH)) })
	for _, dir := range []string{"share", "upper", "work", "at"} {
		require.NoError(t, os.Mkdir(filepath.Join(tmp, dir), 0o755))
	}
	at = tmp + "/at"
	var r renewal
	f, err := hostdir.New(hostdir.Options{Dir: host, ReadOnly: true, Xattr: true, Changed: func() {
		told.Add(1)
		r.askFor(at)
	}})
	require.NoError(t, err)
	opts := f.MountOptions()
	opts.DirectMountStrict, opts.DirectMountFlags = true, syscall.MS_NODEV
	opts.AllowOther, opts.Options = true, []string{"default_permissions"}
	opts.Logger = log.New(io.Discard, "", 0)
	s, err := fuse.NewServer(f, tmp+"/share", opts)
	if err != nil {
		_ = f.Close()
		t.Skipf("this host forbids mounts of /dev/fuse: %v", err)
	}
	go s.Serve()
	require.NoError(t, s.WaitMount())
	t.Cleanup(func() {
		assert.NoError(t, s.Unmount())
		s.Wait()
		require.NoError(t, f.Close())
	})
	if err := layOver(tmp+"/share", tmp, at); err != nil {
		t.Skipf("no overlays of FUSE here: %v", err)
	}
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(at, 0)) })
	return host, at, told
}

const soon, often = 20 * time.Second, 50 * time.Millisecond

func TestOverlayFollowsTheHost(t *testing.T) {
	host, at, told := laidOver(t)
	put := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(host, name), []byte(text), 0o644))
	}
	replace := func(name, text string) {
		put("new", text)
		require.NoError(t, os.Rename(host+"/new", filepath.Join(host, name)))
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(at, name))
		var errno unix.Errno
		if errors.As(err, &errno) {
			return unix.ErrnoName(errno)
		}
		return string(b)
	}
	becomes := func(name, want string) {
		t.Helper()
		var got string
		if !assert.Eventually(t, func() bool { got = read(name); return got == want }, soon, often) {
			t.Fatalf("%s is %q, want %q", name, got, want)
		}
	}
	require.NoError(t, os.MkdirAll(host+"/dir/sub", 0o755))
	for _, name := range []string{"dir/file", "dir/gone", "dir/kind", "dir/sub/file", "dir/open", "dir/tool"} {
		put(name, "one")
		require.Equal(t, "one", read(name))
	}
	require.NoError(t, os.Symlink("file", host+"/dir/link"))
	require.Equal(t, "one", read("dir/link"))
	for _, name := range []string{"dir/later", "dir/sub/later", "dir/no/such"} {
		require.Equal(t, "ENOENT", read(name))
	}
	time.Sleep(1100 * time.Millisecond) // names are looked up anew from here on

	// A file that is replaced is never seen as anything else.
	var wrong []string
	for _, text := range []string{"two", "three", "four"} {
		time.Sleep(300 * time.Millisecond) // a close is told without being waited for
		replace("dir/file", text)
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(often) {
			if got := read("dir/file"); len(wrong) == 0 && !strings.Contains("one two three four", got) {
				wrong = append(wrong, got)
			}
		}
		require.Equal(t, text, read("dir/file"))
	}
	assert.Empty(t, wrong)
	assert.Zero(t, told.Load(), "nothing was to be told")

	put("dir/later", "here")
	put("dir/sub/later", "here")
	becomes("dir/later", "here")
	becomes("dir/sub/later", "here")

	require.NoError(t, os.Remove(host+"/dir/gone"))
	becomes("dir/gone", "ENOENT")
	put("dir/gone", "back")
	becomes("dir/gone", "back")

	require.NoError(t, os.Remove(host+"/dir/kind"))
	require.NoError(t, os.Mkdir(host+"/dir/kind", 0o755))
	becomes("dir/kind", "EISDIR")

	put("other", "other")
	require.NoError(t, os.Symlink("../other", host+"/new"))
	require.NoError(t, os.Rename(host+"/new", host+"/dir/link"))
	becomes("dir/link", "other")

	require.NoError(t, os.Rename(host+"/dir/sub", host+"/dir/old"))
	require.NoError(t, os.Mkdir(host+"/dir/sub", 0o755))
	put("dir/sub/file", "another")
	becomes("dir/sub/file", "another")

	// What has it open keeps it, and who opens it anew gets the new one later.
	file, err := os.Open(at + "/dir/open")
	require.NoError(t, err)
	replace("dir/open", "another")
	time.Sleep(1500 * time.Millisecond)
	read("dir/open")
	b, err := io.ReadAll(file)
	require.NoError(t, err)
	assert.Equal(t, "one", string(b))
	require.NoError(t, file.Close())
	becomes("dir/open", "another")

	// An overlay has a mode of its own.
	put("dir/tool", "#!/bin/sh\nexit 0\n")
	run := func() bool { return exec.Command("/bin/sh", "-c", "exec "+at+"/dir/tool").Run() == nil }
	require.False(t, run())
	require.NoError(t, os.Chmod(host+"/dir/tool", 0o755))
	require.Eventually(t, run, soon, often)

	// Where nothing changes for the guest nothing is told, and all is at rest.
	require.Equal(t, "ENOENT", read("dir/never"))
	time.Sleep(3 * time.Second)
	before := told.Load()
	put("dir/unasked", "x")
	for range 25 {
		require.Equal(t, "ENOENT", read("dir/never"))
		require.Equal(t, "four", read("dir/file"))
		time.Sleep(100 * time.Millisecond)
	}
	assert.Equal(t, before, told.Load())
}
