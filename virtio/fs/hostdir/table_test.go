package hostdir_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

func TestForgetCounts(t *testing.T) {
	c := share(t, hostdir.Options{})
	c.put("dir/file", "text")
	base := c.fs.Stats().Inodes
	dir := c.node("dir")
	file := c.node("dir/file") // dir: 2, file: 1
	assert.Equal(t, base+2, c.fs.Stats().Inodes)
	c.fs.Forget(dir, 1)
	c.fs.Forget(dir, 1)
	_, st := c.getattr(dir)
	assert.Equal(t, fuse.OK, st, "the file's path still leads through it")
	c.fs.Forget(file, 1)
	assert.Equal(t, base, c.fs.Stats().Inodes)
	for _, id := range []uint64{dir, file, 0, 99, math.MaxUint64} {
		_, st := c.getattr(id)
		assert.Equal(t, estale, st)
		c.fs.Forget(id, 1)
		c.fs.Forget(id, math.MaxUint64)
	}
	c.fs.Forget(root, math.MaxUint64)
	_, st = c.getattr(root)
	assert.Equal(t, fuse.OK, st)

	// Numbers are not used twice, and a count that is too large is cut.
	again := c.node("dir/file")
	assert.Greater(t, again, file)
	c.node("dir/file")
	c.fs.Forget(again, math.MaxUint64)
	_, st = c.getattr(again)
	assert.Equal(t, estale, st)
	c.walk("dir")

	// An open file is not forgotten before it is closed.
	file = c.node("dir/file")
	fh := c.opened(file, unix.O_RDONLY)
	c.fs.Forget(file, 1)
	text, st := c.read(file, fh, 0, 10)
	assert.Equal(t, fuse.OK, st)
	assert.Equal(t, "text", text)
	c.release(file, fh)
	_, st = c.getattr(file)
	assert.Equal(t, estale, st)
}

func TestReset(t *testing.T) {
	c := share(t, hostdir.Options{Locks: hostdir.LocksHost})
	c.put("dir/file", "text")
	old := c.walk("dir/file")
	fh := c.opened(old.NodeId, unix.O_RDWR)
	dh := c.opendir(c.node("dir"))
	require.Equal(t, fuse.OK, c.fs.SetLk(nil, &fuse.LkIn{InHeader: c.header(old.NodeId), Fh: fh, Owner: 7, Lk: fuse.FileLock{End: 5, Typ: unix.F_WRLCK}}))
	before := c.fs.Stats()
	assert.Equal(t, 3, before.Handles)
	c.fs.Reset()
	assert.Equal(t, hostdir.Stats{Inodes: 1}, c.fs.Stats())
	for _, id := range []uint64{old.NodeId, c.node("dir")} {
		_, st := c.read(id, fh, 0, 1)
		assert.Equal(t, fuse.EBADF, st)
		_, st = c.readdir(id, dh, 0, 4096)
		assert.Equal(t, fuse.EBADF, st)
	}
	_, st := c.getattr(old.NodeId)
	assert.Equal(t, estale, st)
	now := c.walk("dir/file")
	assert.NotEqual(t, old.NodeId, now.NodeId)
	assert.NotEqual(t, old.Generation, now.Generation)
	assert.NotEqual(t, fh, c.opened(now.NodeId, unix.O_RDONLY))
	require.NoError(t, c.fs.Close())
	_, st = c.getattr(root)
	assert.Equal(t, fuse.Status(unix.ENOTCONN), st)
	_, st = c.lookup(root, "dir")
	assert.Equal(t, fuse.Status(unix.ENOTCONN), st)
	c.fs.Reset()
}

func TestLimits(t *testing.T) {
	c := share(t, hostdir.Options{Limits: hostdir.Limits{MaxInodes: 50, MaxHandles: 32}})
	for i := range 100 {
		c.put(fmt.Sprintf("d/f%d", i), "text")
	}
	d := c.node("d")
	var nodes []uint64
	for i := range 100 {
		out, st := c.lookup(d, fmt.Sprintf("f%d", i))
		if i < 48 { // the root, d
			require.Equal(t, fuse.OK, st)
			nodes = append(nodes, out.NodeId)
		} else {
			require.Equal(t, enfile, st)
		}
	}
	_, st := c.create(d, "new", unix.O_WRONLY, 0o644)
	assert.Equal(t, enfile, st)
	dh := c.opendir(d)
	_, outs, st := c.readdirplus(d, dh, 0, 1<<16)
	assert.Equal(t, fuse.OK, st)
	assert.Len(t, outs, 103)
	assert.Equal(t, 50, c.fs.Stats().Inodes)
	known := 0
	for _, out := range outs {
		if out.NodeId != 0 {
			known++
		}
	}
	assert.Equal(t, 48, known)
	var fhs []uint64
	for {
		out, st := c.open(nodes[0], unix.O_RDONLY)
		if st != fuse.OK {
			assert.Equal(t, enfile, st)
			break
		}
		fhs = append(fhs, out.Fh)
	}
	assert.Len(t, fhs, 31)
	assert.Equal(t, 32, c.fs.Stats().Handles)
	c.release(nodes[0], fhs[0])
	c.opened(nodes[0], unix.O_RDONLY)
}

// TestSharedLimit: all shares together leave half of the descriptors alone.
func TestSharedLimit(t *testing.T) {
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	less := old
	less.Cur = 256
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &less))
	var shares []*client
	for range 2 {
		c := share(t, hostdir.Options{})
		c.put("file", "text")
		shares = append(shares, c)
	}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	opened := 0
	for ; opened < 300; opened++ {
		c := shares[opened%2]
		if _, st := c.open(c.node("file"), unix.O_RDONLY); st != fuse.OK {
			assert.Equal(t, enfile, st)
			break
		}
	}
	assert.Equal(t, 128, opened)
	shares[0].fs.Reset()
	c := shares[1]
	_, st := c.open(c.node("file"), unix.O_RDONLY)
	assert.Equal(t, fuse.OK, st, "the other share's are free")
}

// A handle is good for its own node, until it is released, once.
func TestHandles(t *testing.T) {
	c := share(t, hostdir.Options{})
	c.put("a", "aaaa")
	c.put("b", "bbbb")
	c.put("d/x", "")
	a, b, d := c.node("a"), c.node("b"), c.node("d")
	fh, dh := c.opened(a, unix.O_RDWR), c.opendir(d)
	bad := func(node, fh uint64) {
		t.Helper()
		_, st := c.read(node, fh, 0, 4)
		assert.Equal(t, fuse.EBADF, st)
		_, st = c.write(node, fh, 0, "x", 0)
		assert.Equal(t, fuse.EBADF, st)
		_, st = c.readdir(node, fh, 0, 4096)
		assert.Equal(t, fuse.EBADF, st)
		assert.Equal(t, fuse.EBADF, c.fs.Flush(nil, &fuse.FlushIn{InHeader: c.header(node), Fh: fh}))
		assert.Equal(t, fuse.EBADF, c.fs.Fsync(nil, &fuse.FsyncIn{InHeader: c.header(node), Fh: fh}))
		assert.Equal(t, fuse.EBADF, c.fs.FsyncDir(nil, &fuse.FsyncIn{InHeader: c.header(node), Fh: fh}))
		assert.Equal(t, fuse.EBADF, c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: c.header(node), Fh: fh, Length: 1}))
		assert.Equal(t, fuse.EBADF, c.fs.Lseek(nil, &fuse.LseekIn{InHeader: c.header(node), Fh: fh, Whence: unix.SEEK_DATA}, &fuse.LseekOut{}))
		assert.Equal(t, fuse.EBADF, c.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: c.header(a), Flags_: fuse.FUSE_GETATTR_FH, Fh_: 12345}, &fuse.AttrOut{}))
		c.release(node, fh)
		c.releasedir(node, fh)
	}
	bad(b, fh)
	bad(b, dh)
	bad(root, fh)
	bad(a, 0)
	bad(a, math.MaxUint64)
	_, st := c.read(d, dh, 0, 4)
	assert.Equal(t, fuse.EBADF, st)
	_, st = c.readdir(a, fh, 0, 4096)
	assert.Equal(t, fuse.EBADF, st)
	c.releasedir(a, fh)
	c.release(d, dh)
	text, st := c.read(a, fh, 1, 100)
	assert.Equal(t, fuse.OK, st)
	assert.Equal(t, "aaa", text)
	for _, off := range []uint64{4, 1 << 40, math.MaxInt64} {
		text, st = c.read(a, fh, off, 10)
		assert.Equal(t, fuse.OK, st)
		assert.Empty(t, text)
	}
	_, st = c.read(a, fh, math.MaxInt64+1, 1)
	assert.Equal(t, fuse.EINVAL, st)
	_, st = c.write(a, fh, math.MaxUint64, "x", 0)
	assert.Equal(t, fuse.EINVAL, st)
	_, st = c.write(a, fh, math.MaxInt64, "xy", 0)
	assert.NotEqual(t, fuse.OK, st)
	c.release(a, fh)
	bad(a, fh)
}

// A directory that lost its descriptor is found again by its path, also after
// the guest has moved those above it, and only if it is still the same one.
func TestPathsOfEvictedDirectories(t *testing.T) {
	c := share(t, hostdir.Options{Limits: hostdir.Limits{MaxOpen: 1}})
	churn := func() {
		for i := range 200 {
			out, st := c.lookup(root, fmt.Sprintf("n%d", i))
			require.Equal(t, fuse.OK, st)
			_, st = c.getattr(out.NodeId)
			require.Equal(t, fuse.OK, st)
		}
		require.LessOrEqual(t, c.fs.Stats().Open, 32)
	}
	for i := range 200 {
		require.NoError(t, os.Mkdir(fmt.Sprintf("%s/n%d", c.dir, i), 0o755))
	}
	deep := "a" + strings.Repeat("/"+strings.Repeat("d", 200), 30) // longer than PATH_MAX
	at := c.dir
	dir, err := unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for name := range strings.SplitSeq(deep, "/") {
		require.NoError(t, unix.Mkdirat(dir, name, 0o755))
		next, err := unix.Openat(dir, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(dir))
		dir = next
	}
	require.NoError(t, unix.Close(dir))
	bottom := c.node(deep)
	churn()
	out, st := c.create(bottom, "file", unix.O_RDWR, 0o644)
	require.Equal(t, fuse.OK, st)
	_, st = c.write(out.NodeId, out.Fh, 0, "text", 0)
	require.Equal(t, fuse.OK, st)
	c.release(out.NodeId, out.Fh)
	churn()
	at2, st := c.getattr(out.NodeId)
	require.Equal(t, fuse.OK, st)
	require.EqualValues(t, 4, at2.Size)

	churn()
	require.Equal(t, fuse.OK, c.rename(root, "a", c.node("n7"), "moved", 0))
	churn()
	fh := c.opened(out.NodeId, unix.O_RDONLY)
	text, st := c.read(out.NodeId, fh, 0, 10)
	require.Equal(t, fuse.OK, st)
	require.Equal(t, "text", text)
	c.release(out.NodeId, fh)

	churn()
	// The host's move is not known here: the guest has to look again.
	require.NoError(t, os.Rename(c.dir+"/n7/moved", c.dir+"/elsewhere"))
	require.NoError(t, os.Mkdir(c.dir+"/n7/moved", 0o755))
	_, st = c.getattr(bottom)
	assert.Equal(t, estale, st)
	moved := c.node("elsewhere")
	_, st = c.getattr(bottom)
	assert.Equal(t, fuse.OK, st)
	require.Equal(t, fuse.OK, c.rename(root, "elsewhere", root, "a", 0))
	_, st = c.getattr(moved)
	assert.Equal(t, fuse.OK, st)
	// Something else in its place is not it.
	churn()
	require.NoError(t, os.Rename(c.dir+"/a", c.dir+"/b"))
	require.NoError(t, os.Symlink("b", c.dir+"/a"))
	_, st = c.getattr(moved)
	assert.Equal(t, estale, st)
	_, st = c.mkdir(moved, "x", 0o755)
	assert.Equal(t, estale, st)
	_, st = c.getattr(bottom)
	assert.Equal(t, estale, st, "a link on the way is not followed, wherever it leads")
	require.NoError(t, os.Remove(c.dir+"/a"))
	require.NoError(t, os.Mkdir(c.dir+"/a", 0o755))
	_, st = c.getattr(moved)
	assert.Equal(t, estale, st)
	_, st = c.create(moved, "x", unix.O_WRONLY, 0o644)
	assert.Equal(t, estale, st)
	require.NoError(t, os.WriteFile(c.dir+"/n1/f", nil, 0o644))
	f := c.node("n1/f")
	require.NoError(t, os.Rename(c.dir+"/n1/f", c.dir+"/n2/f"))
	require.NoError(t, os.WriteFile(c.dir+"/n1/f", nil, 0o644))
	for _, st := range []fuse.Status{
		func() fuse.Status { _, st := c.getattr(f); return st }(),
		func() fuse.Status { _, st := c.open(f, unix.O_RDWR|unix.O_TRUNC); return st }(),
		func() fuse.Status {
			_, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(f), Valid: fuse.FATTR_MODE})
			return st
		}(),
	} {
		assert.Equal(t, estale, st, "another file under its name")
	}
}

// Who looks at a node while the guest moves it finds it.
func TestRenamesUnderWay(t *testing.T) {
	c := share(t, hostdir.Options{Limits: hostdir.Limits{MaxOpen: 1}})
	c.put("a/d/file", "text")
	for i := range 40 {
		require.NoError(t, os.MkdirAll(fmt.Sprintf("%s/n%d", c.dir, i), 0o755))
	}
	file, dir := c.node("a/d/file"), c.node("a/d")
	a := c.node("a")
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for range 1000 {
			assert.Equal(t, fuse.OK, c.rename(root, "a", root, "b", 0))
			assert.Equal(t, fuse.OK, c.rename(dir, "file", a, "other", 0))
			assert.Equal(t, fuse.OK, c.rename(root, "b", root, "a", 0))
			assert.Equal(t, fuse.OK, c.rename(a, "other", dir, "file", 0))
		}
	})
	for i := range 3000 {
		for _, id := range []uint64{file, dir, a} {
			_, st := c.getattr(id)
			require.Equal(t, fuse.OK, st)
		}
		fh := c.opened(file, unix.O_RDONLY)
		c.release(file, fh)
		n, st := c.lookup(root, fmt.Sprintf("n%d", i%40))
		require.Equal(t, fuse.OK, st)
		_, st = c.getattr(n.NodeId)
		require.Equal(t, fuse.OK, st)
	}
}

func TestHardLinks(t *testing.T) {
	c := share(t, hostdir.Options{})
	c.put("a/one", "text")
	require.NoError(t, os.Mkdir(c.dir+"/b", 0o755))
	one := c.walk("a/one")
	two, st := c.link(one.NodeId, c.node("b"), "two")
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, one.NodeId, two.NodeId)
	assert.EqualValues(t, 2, two.Nlink)
	for i := range 20 {
		out, st := c.link(one.NodeId, c.node("b"), fmt.Sprintf("more%d", i))
		require.Equal(t, fuse.OK, st)
		require.Equal(t, one.NodeId, out.NodeId)
	}
	require.Equal(t, fuse.OK, c.unlink(c.node("a"), "one"))
	for i := range 20 {
		require.Equal(t, fuse.OK, c.unlink(c.node("b"), fmt.Sprintf("more%d", i)))
		if _, st := c.getattr(one.NodeId); st != fuse.OK {
			// With more names than are kept it has to be looked up again.
			assert.Equal(t, estale, st)
			assert.Equal(t, one.NodeId, c.walk("b/two").NodeId)
		}
	}
	at, st := c.getattr(one.NodeId)
	require.Equal(t, fuse.OK, st)
	assert.EqualValues(t, 1, at.Nlink)
	require.Equal(t, fuse.OK, c.rename(c.node("b"), "two", root, "three", 0))
	require.Equal(t, fuse.OK, c.rename(root, "three", c.node("a"), "four", unix.RENAME_NOREPLACE))
	c.put("five", "other")
	five := c.node("five")
	require.Equal(t, eexist, c.rename(root, "five", c.node("a"), "four", unix.RENAME_NOREPLACE))
	require.Equal(t, fuse.OK, c.rename(root, "five", c.node("a"), "four", unix.RENAME_EXCHANGE))
	for node, want := range map[uint64]string{one.NodeId: "text", five: "other"} {
		fh := c.opened(node, unix.O_RDONLY)
		text, st := c.read(node, fh, 0, 10)
		assert.Equal(t, fuse.OK, st)
		assert.Equal(t, want, text)
		c.release(node, fh)
	}
	assert.Equal(t, fuse.EINVAL, c.rename(root, "five", root, "six", unix.RENAME_WHITEOUT))
	_, st = c.link(c.node("a"), root, "dir")
	assert.Equal(t, fuse.EPERM, st)
}

// A number that the host gives to another file does not make that the old node.
func TestNumbersUsedAgain(t *testing.T) {
	c := share(t, hostdir.Options{})
	var old fuse.EntryOut
	for i := range 200 {
		c.put("file", fmt.Sprint(i))
		out := c.walk("file")
		if out.Ino == old.Ino {
			assert.NotEqual(t, old.NodeId, out.NodeId)
			_, st := c.getattr(old.NodeId)
			assert.Equal(t, estale, st)
			_, st = c.open(old.NodeId, unix.O_RDONLY)
			assert.Equal(t, estale, st)
			return
		}
		old = out
		require.NoError(t, os.Remove(c.dir+"/file"))
	}
	t.Log("this file system uses no number twice")
}

func TestDirectories(t *testing.T) {
	const many = 800
	c := share(t, hostdir.Options{})
	want := make([]string, 0, many)
	for i := range many {
		name := fmt.Sprintf("%d%s", i, strings.Repeat("n", i%250))
		c.put("d/"+name, "")
		want = append(want, name)
	}
	want = sorted(want)
	d := c.node("d")
	for _, size := range []int{512, 4096, 1 << 15, 1 << 20} {
		assert.Equal(t, want, sorted(c.names(d, size)), "buffers of %d", size)
	}
	// Any offset that was given leads to the same place again, and what is there
	// all the time is listed once.
	fh := c.opendir(d)
	entries, st := c.readdir(d, fh, 0, 1<<20)
	require.Equal(t, fuse.OK, st)
	require.NotEmpty(t, entries)
	for _, i := range []int{5, 0, 300, 20, len(entries) - 2} {
		if i >= len(entries)-1 {
			continue
		}
		next, st := c.readdir(d, fh, entries[i].Off, 4096)
		require.Equal(t, fuse.OK, st)
		require.NotEmpty(t, next)
		assert.Equal(t, entries[i+1].Name, next[0].Name)
	}
	dots := map[string]uint64{}
	for _, e := range entries {
		if e.Name == "." || e.Name == ".." {
			dots[e.Name] = e.Ino
		}
	}
	self, _ := c.getattr(d)
	above, _ := c.getattr(root)
	assert.Equal(t, map[string]uint64{".": self.Ino, "..": above.Ino}, dots)
	// The root's own .. is the root: no number from outside.
	rh := c.opendir(root)
	top, st := c.readdir(root, rh, 0, 4096)
	require.Equal(t, fuse.OK, st)
	for _, e := range top {
		if e.Name == ".." {
			assert.Equal(t, above.Ino, e.Ino)
		}
	}
	c.releasedir(root, rh)
	for _, off := range []uint64{math.MaxInt64 + 1, math.MaxUint64} {
		_, st = c.readdir(d, fh, off, 4096)
		assert.Equal(t, fuse.EINVAL, st)
	}
	for _, off := range []uint64{1, 12345, math.MaxInt64} { // none that was given
		_, _ = c.readdir(d, fh, off, 4096)
	}
	tiny, st := c.readdir(d, fh, 0, 8)
	assert.Equal(t, fuse.OK, st)
	assert.Empty(t, tiny)

	// With lookups: each is counted.
	base := c.fs.Stats().Inodes
	var nodes []uint64
	seen := 0
	for off := uint64(0); ; {
		entries, outs, st := c.readdirplus(d, fh, off, 4096)
		require.Equal(t, fuse.OK, st)
		if len(entries) == 0 {
			break
		}
		for i, e := range entries {
			off = e.Off
			seen++
			if e.Name == "." || e.Name == ".." {
				assert.Zero(t, outs[i].NodeId)
				continue
			}
			require.NotZero(t, outs[i].NodeId)
			assert.Equal(t, e.Ino, outs[i].Ino)
			nodes = append(nodes, outs[i].NodeId)
		}
	}
	assert.Equal(t, many+2, seen)
	assert.Equal(t, base+many, c.fs.Stats().Inodes)
	for _, id := range nodes {
		c.fs.Forget(id, 1)
	}
	assert.Equal(t, base, c.fs.Stats().Inodes)
	c.releasedir(d, fh)
}

// Requests of many kinds at once on few files and directories: the race detector
// watches, and afterwards the tables are empty.
func TestConcurrentRequests(t *testing.T) {
	c := share(t, hostdir.Options{Limits: hostdir.Limits{MaxOpen: 1}})
	for i := range 60 {
		c.put(fmt.Sprintf("d%d/f", i), "text")
	}
	var work sync.WaitGroup
	for g := range 8 {
		work.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(g)))
			for range 400 {
				d, st := c.lookup(root, fmt.Sprintf("d%d", rnd.IntN(60)))
				if st != fuse.OK {
					continue
				}
				name, other := fmt.Sprintf("f%d", rnd.IntN(3)), fmt.Sprintf("d%d", rnd.IntN(60))
				switch rnd.IntN(7) {
				case 0:
					if out, st := c.create(d.NodeId, name, unix.O_RDWR, 0o644); st == fuse.OK {
						_, st = c.write(out.NodeId, out.Fh, 0, "more", 0)
						assert.Equal(t, fuse.OK, st)
						c.release(out.NodeId, out.Fh)
						c.fs.Forget(out.NodeId, 1)
					}
				case 1:
					c.unlink(d.NodeId, name)
				case 2:
					c.rename(root, other, d.NodeId, "moved", 0)
				case 3:
					c.rename(d.NodeId, "moved", root, other, unix.RENAME_NOREPLACE)
				case 4:
					var out fuse.OpenOut
					if c.fs.OpenDir(nil, &fuse.OpenIn{InHeader: c.header(d.NodeId)}, &out) == fuse.OK {
						_, outs, _ := c.readdirplus(d.NodeId, out.Fh, 0, 4096)
						c.releasedir(d.NodeId, out.Fh)
						for _, o := range outs {
							c.fs.Forget(o.NodeId, 1)
						}
					}
				default:
					if out, st := c.lookup(d.NodeId, name); st == fuse.OK {
						if o, st := c.open(out.NodeId, unix.O_RDONLY); st == fuse.OK {
							_, st := c.read(out.NodeId, o.Fh, 0, 10)
							assert.Equal(t, fuse.OK, st)
							c.release(out.NodeId, o.Fh)
						}
						c.fs.Forget(out.NodeId, 1)
					}
				}
				c.fs.Forget(d.NodeId, 1)
			}
		})
	}
	work.Wait()
	assert.Equal(t, 1, c.fs.Stats().Inodes)
	assert.Zero(t, c.fs.Stats().Handles)
}
