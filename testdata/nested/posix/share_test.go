package posix

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestShareOptions looks at a share with the options owner=7:8,xattr,locks=host, in which
// the host holds a lock on the file "locked".
func TestShareOptions(t *testing.T) {
	tag := os.Getenv("VOLE_POSIX_SHARE")
	if tag == "" {
		t.Skip("VOLE_POSIX_SHARE is not set")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount(tag, dir, "virtiofs", 0, ""))
	defer func() { assert.NoError(t, unix.Unmount(dir, 0)) }()

	owner := func(name string) [2]uint32 {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(dir, name), &st))
		return [2]uint32{st.Uid, st.Gid}
	}
	assert.Equal(t, [2]uint32{7, 8}, owner("locked"), "what is of vole's user")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "made"), nil, 0o644))
	require.NoError(t, unix.Chown(filepath.Join(dir, "made"), 7, 8))
	assert.Equal(t, [2]uint32{7, 8}, owner("made"))

	// POSIX ACLs, since not every file system of a host has attributes of users. Version 2:
	// the owner, user 9, the group, the mask, others.
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x09\x00\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")
	const name = "system.posix_acl_access"
	require.NoError(t, unix.Setxattr(filepath.Join(dir, "made"), name, acl, 0))
	got := make([]byte, 256)
	n, err := unix.Getxattr(filepath.Join(dir, "made"), name, got)
	require.NoError(t, err)
	assert.Equal(t, acl, got[:n])
	require.ErrorIs(t, unix.Setxattr(filepath.Join(dir, "made"), "trusted.overlay.opaque", []byte("y"), 0), unix.EOPNOTSUPP)

	open := func(name string) int {
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDWR|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		return fd
	}
	locked, made := open("locked"), open("made")
	defer unix.Close(locked)
	defer unix.Close(made)
	assert.ErrorIs(t, unix.Flock(locked, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	began := time.Now()
	assert.ErrorIs(t, unix.Flock(locked, unix.LOCK_EX), unix.ENOLCK, "a wait has a bound")
	assert.GreaterOrEqual(t, time.Since(began), 5*time.Second)
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	assert.ErrorIs(t, unix.FcntlFlock(uintptr(locked), unix.F_SETLK, &lk), unix.EAGAIN)
	assert.NoError(t, unix.Flock(made, unix.LOCK_EX|unix.LOCK_NB))
	assert.NoError(t, unix.FcntlFlock(uintptr(made), unix.F_SETLK, &lk))
	// The host looks at these locks until it has written this.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "holding"), nil, 0o644))
	assert.Eventually(t, func() bool { _, err := os.Stat(filepath.Join(dir, "seen")); return err == nil }, 60*time.Second, 100*time.Millisecond)
}
