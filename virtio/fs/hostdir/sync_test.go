package hostdir_test

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// disks stand for the host's: they count what is synced.
type disks struct {
	t    testing.TB
	hold func() error // if not nil, what a syncfs waits for and returns

	mu             sync.Mutex
	devs           []uint64 // of the file systems synced
	all            int      // times that everything was
	inside, inMost int
}

// watchDisks has a share sync them.
func watchDisks(t testing.TB, c *client) *disks {
	d := &disks{t: t}
	c.fs.SetSync(d.syncfs, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.all++
	})
	return d
}

func (d *disks) syncfs(fd int) error {
	var st unix.Stat_t
	assert.NoError(d.t, unix.Fstat(fd, &st))
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	assert.NoError(d.t, err)
	assert.Zero(d.t, flags&unix.O_PATH, "syncfs(2) does not take O_PATH")
	d.mu.Lock()
	d.devs = append(d.devs, st.Dev)
	d.inside++
	d.inMost = max(d.inMost, d.inside)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.inside--
	}()
	if d.hold != nil {
		return d.hold()
	}
	return nil
}

// took returns what was synced since it was asked last.
func (d *disks) took() (devs []uint64, all int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	devs, all = d.devs, d.all
	d.devs, d.all = nil, 0
	return devs, all
}

func devOf(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Dev
}

// TestSyncFS: whatever the guest changes is synced once, and what it only reads is not.
func TestSyncFS(t *testing.T) {
	c := share(t, hostdir.Options{Xattr: true})
	d := watchDisks(t, c)
	c.put("file", "text")
	c.put("dir/other", "text")
	require.NoError(t, os.Mkdir(c.dir+"/empty", 0o755))
	file, dir := c.node("file"), c.node("dir")
	rw, ro := c.opened(file, unix.O_RDWR), c.opened(file, unix.O_RDONLY)
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, all := d.took()
	assert.Empty(t, devs, "nothing was changed")
	assert.Zero(t, all)

	set := func(in fuse.SetAttrInCommon) fuse.Status {
		in.InHeader = c.header(file)
		_, st := c.setattr(in)
		return st
	}
	h := c.header(file)
	for _, change := range []struct {
		name string
		do   func() fuse.Status
	}{
		{"write", func() fuse.Status { _, st := c.write(file, rw, 0, "x", 0); return st }},
		{"fallocate", func() fuse.Status {
			return c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: h, Fh: rw, Length: 100})
		}},
		{"copy_file_range", func() fuse.Status {
			_, st := c.fs.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: h, FhIn: ro, NodeIdOut: file, FhOut: rw, OffOut: 50, Len: 4})
			return st
		}},
		{"open with O_TRUNC", func() fuse.Status { _, st := c.open(file, unix.O_WRONLY|unix.O_TRUNC); return st }},
		{"chmod", func() fuse.Status { return set(fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o640}) }},
		{"size", func() fuse.Status { return set(fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE, Size: 7}) }},
		{"size of a handle", func() fuse.Status {
			return set(fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE | fuse.FATTR_FH, Fh: rw, Size: 8})
		}},
		{"times", func() fuse.Status { return set(fuse.SetAttrInCommon{Valid: fuse.FATTR_MTIME, Mtime: 1}) }},
		{"create", func() fuse.Status { _, st := c.create(dir, "created", unix.O_WRONLY, 0o644); return st }},
		{"tmpfile", func() fuse.Status {
			st := c.fs.Tmpfile(nil, &fuse.CreateIn{InHeader: c.header(dir), Flags: unix.O_RDWR, Mode: 0o600}, &fuse.CreateOut{})
			if st == enotsup {
				_, st = c.mkdir(dir, "in its place", 0o755)
			}
			return st
		}},
		{"mkdir", func() fuse.Status { _, st := c.mkdir(dir, "made", 0o755); return st }},
		{"mknod", func() fuse.Status { _, st := c.mknod(dir, "fifo", unix.S_IFIFO|0o644); return st }},
		{"symlink", func() fuse.Status { _, st := c.symlink(dir, "link", "text"); return st }},
		{"link", func() fuse.Status { _, st := c.link(file, dir, "same"); return st }},
		{"rename", func() fuse.Status { return c.rename(dir, "other", root, "another", 0) }},
		{"unlink", func() fuse.Status { return c.unlink(dir, "same") }},
		{"rmdir", func() fuse.Status { return c.rmdir(root, "empty") }},
		{"setxattr", func() fuse.Status {
			return c.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 1}, "user.a", []byte("1"))
		}},
		{"removexattr", func() fuse.Status { return c.fs.RemoveXAttr(nil, &h, "user.a") }},
	} {
		if st := change.do(); st != fuse.OK {
			assert.Equal(t, enotsup, st, change.name) // the host's file system has no such attributes
		}
		assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
		devs, all := d.took()
		assert.Equal(t, []uint64{devOf(t, c.dir)}, devs, change.name)
		assert.Zero(t, all, change.name)
		assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
		devs, _ = d.took()
		assert.Empty(t, devs, "nothing after %s", change.name)
	}

	// One round is for all that was changed before.
	_, st := c.write(file, rw, 0, "x", 0)
	require.Equal(t, fuse.OK, st)
	require.Equal(t, fuse.OK, c.unlink(dir, "link"))
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, _ = d.took()
	assert.Len(t, devs, 1)

	_, st = c.read(file, ro, 0, 10)
	require.Equal(t, fuse.OK, st)
	_, st = c.getattr(file)
	require.Equal(t, fuse.OK, st)
	_ = c.names(dir, 4096)
	c.release(file, c.opened(file, unix.O_RDWR))
	require.Equal(t, fuse.OK, c.fs.Fsync(nil, &fuse.FsyncIn{InHeader: h, Fh: rw}))
	require.Equal(t, fuse.OK, c.fs.Flush(nil, &fuse.FlushIn{InHeader: h, Fh: rw}))
	require.Equal(t, fuse.OK, c.fs.Access(nil, &fuse.AccessIn{InHeader: h, Mask: fuse.W_OK}))
	require.Equal(t, fuse.OK, c.fs.StatFs(nil, &h, &fuse.StatfsOut{}))
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, all = d.took()
	assert.Empty(t, devs, "nothing was changed")
	assert.Zero(t, all)
}

// TestSyncFSOfTheHost: the system call takes what it is given.
func TestSyncFSOfTheHost(t *testing.T) {
	c := share(t, hostdir.Options{})
	_, st := c.mkdir(root, "dir", 0o755)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	require.NoError(t, c.fs.Close())
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil), "there is nothing to do")
}

// TestSyncFSReadOnly: where nothing can be changed nothing is synced, try as the guest may.
func TestSyncFSReadOnly(t *testing.T) {
	c := share(t, hostdir.Options{ReadOnly: true, Xattr: true})
	d := watchDisks(t, c)
	c.put("file", "text")
	file := c.node("file")
	fh, h := c.opened(file, unix.O_RDONLY), c.header(file)
	_, _ = c.write(file, fh, 0, "x", 0)
	_, _ = c.open(file, unix.O_RDONLY|unix.O_TRUNC)
	_, _ = c.create(root, "new", unix.O_WRONLY, 0o644)
	_, _ = c.mkdir(root, "new", 0o755)
	_, _ = c.setattr(fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_SIZE | fuse.FATTR_FH, Fh: fh})
	c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: h, Fh: fh, Length: 100})
	_, _ = c.fs.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: h, FhIn: fh, NodeIdOut: file, FhOut: fh, Len: 4})
	c.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 1}, "user.a", []byte("1"))
	c.unlink(root, "file")
	c.rename(root, "file", root, "other", 0)
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, all := d.took()
	assert.Empty(t, devs)
	assert.Zero(t, all)
}

// TestSyncFSMounts: only file systems are synced in which something was changed, wherever
// below the root they are mounted; and all of the host's, if one of them can't be reached.
func TestSyncFSMounts(t *testing.T) {
	needRoot(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	mount := func(to string) {
		t.Helper()
		if err := unix.Mount("tmpfs", to, "tmpfs", 0, ""); err != nil {
			t.Skipf("this host forbids mounts: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
	}
	require.NoError(t, os.MkdirAll(dir+"/a b", 0o755))
	mount(dir + "/a b")
	require.NoError(t, os.MkdirAll(dir+"/a b/w/deep", 0o755))
	mount(dir + "/a b/w/deep")
	c := share(t, hostdir.Options{Dir: dir, ReadOnly: true, Writable: []string{dir + "/a b/w"}})
	d := watchDisks(t, c)
	w, deep := c.node("a b/w"), c.node("a b/w/deep")
	first, second := devOf(t, dir+"/a b"), devOf(t, dir+"/a b/w/deep")

	out, st := c.create(w, "file", unix.O_RDWR, 0o644)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, all := d.took()
	assert.Equal(t, []uint64{first}, devs)
	assert.Zero(t, all)

	_, st = c.mkdir(deep, "dir", 0o755)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, all = d.took()
	assert.Equal(t, []uint64{second}, devs)
	assert.Zero(t, all)

	_, st = c.mkdir(deep, "another", 0o755)
	require.Equal(t, fuse.OK, st)
	_, st = c.write(out.NodeId, out.Fh, 0, "x", 0)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, all = d.took()
	assert.ElementsMatch(t, []uint64{first, second}, devs)
	assert.Zero(t, all)

	// A file that is open where something else is mounted by now.
	_, st = c.write(out.NodeId, out.Fh, 0, "y", 0)
	require.Equal(t, fuse.OK, st)
	mount(dir + "/a b")
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, all = d.took()
	assert.Empty(t, devs)
	assert.Equal(t, 1, all)
}

// TestSyncFSJoins: however many ask, one syncfs is under way at a time, and those who come
// during it share the next, which has what was written meanwhile.
func TestSyncFSJoins(t *testing.T) {
	c := share(t, hostdir.Options{})
	d := watchDisks(t, c)
	entered, gate := make(chan struct{}, 10), make(chan struct{})
	var over atomic.Bool
	d.hold = func() error {
		entered <- struct{}{}
		<-gate
		over.Store(true)
		return nil
	}
	_, st := c.mkdir(root, "a", 0o755)
	require.Equal(t, fuse.OK, st)
	var work sync.WaitGroup
	ask := func() {
		work.Go(func() {
			assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
			assert.True(t, over.Load(), "what was written before is not stable yet")
		})
	}
	ask()
	<-entered
	ask() // of what the round under way may have missed, or not
	require.Eventually(t, c.fs.SyncFollows, 20*time.Second, time.Millisecond)
	_, st = c.mkdir(root, "b", 0o755)
	require.Equal(t, fuse.OK, st)
	for range 100 {
		ask()
	}
	close(gate)
	work.Wait()
	devs, _ := d.took()
	assert.Len(t, devs, 2)
	assert.Equal(t, 1, d.inMost)
}

// TestSyncFSFails: the guest hears of it, and the next time it is tried again.
func TestSyncFSFails(t *testing.T) {
	c := share(t, hostdir.Options{})
	d := watchDisks(t, c)
	_, st := c.mkdir(root, "a", 0o755)
	require.Equal(t, fuse.OK, st)
	d.hold = func() error { return unix.EIO }
	for range 2 {
		assert.Equal(t, fuse.EIO, c.fs.SyncFS(nil))
	}
	d.hold = func() error { return unix.ENOSYS }
	assert.Equal(t, enotsup, c.fs.SyncFS(nil), "upon ENOSYS the guest would never ask again")
	d.hold = nil
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, _ := d.took()
	assert.Len(t, devs, 4)
	assert.Equal(t, fuse.OK, c.fs.SyncFS(nil))
	devs, _ = d.took()
	assert.Empty(t, devs)
}

// TestSyncFSHangs: a disk that does not answer holds up neither who has stopped waiting, nor
// the end of the session and of the share; and there is one thread in it, no more.
func TestSyncFSHangs(t *testing.T) {
	before := fds(t)
	f, err := hostdir.New(hostdir.Options{Dir: t.TempDir()})
	require.NoError(t, err)
	c := &client{t: t, fs: f, dir: f.Dir()}
	d := watchDisks(t, c)
	entered, gate := make(chan struct{}, 10), make(chan struct{})
	d.hold = func() error {
		entered <- struct{}{}
		<-gate
		return nil
	}
	answers := make(chan fuse.Status, 10)
	for i := range 5 {
		_, st := c.mkdir(root, string(rune('a'+i)), 0o755)
		require.Equal(t, fuse.OK, st)
		cancel := make(chan struct{})
		go func() { answers <- f.SyncFS(cancel) }()
		if i == 0 {
			<-entered
		}
		if i == 4 { // by Interrupt
			for len(answers) == 0 {
				f.Interrupt()
				time.Sleep(time.Millisecond) // nothing tells when it waits
			}
		}
		close(cancel)
		assert.Equal(t, fuse.EINTR, <-answers)
		f.Reset()
	}
	require.NoError(t, f.Close())
	devs, _ := d.took()
	assert.Len(t, devs, 1)
	close(gate)
	require.Eventually(t, func() bool { return fds(t) == before }, 20*time.Second, time.Millisecond)
	assert.Equal(t, 1, d.inMost)
}

func TestMountPoints(t *testing.T) {
	const text = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:25 / /srv rw - tmpfs tmpfs rw
31 30 0:26 / /srv/a\040b\134\011c rw - tmpfs tmpfs rw
32 30 0:27 / /srv2/a rw - tmpfs tmpfs rw
33 22 0:28 /x /srv/file\04 rw - tmpfs tmpfs rw
x 22 0:28 /x /srv/d rw - tmpfs tmpfs rw
34 30 0:26

`
	assert.Equal(t, map[uint64]string{31: "a b\\\tc", 33: `file\04`}, hostdir.MountPoints(text, "/srv"))
	assert.Equal(t, map[uint64]string{30: "srv", 31: "srv/a b\\\tc", 32: "srv2/a", 33: `srv/file\04`}, hostdir.MountPoints(text, "/"))
	assert.Empty(t, hostdir.MountPoints("", "/"))
}
