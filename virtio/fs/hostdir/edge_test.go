package hostdir_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
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

// A directory is swapped for a link to outside, over and over, by the host (as
// another user of it might) and by the guest (by RENAME_EXCHANGE), while the
// guest works below its name. Nothing outside is ever read, made, or changed.
func TestRacesAtTheEdge(t *testing.T) {
	outer := t.TempDir()
	in, out := outer+"/in", outer+"/out"
	for _, dir := range []string{in + "/d/sub", out + "/sub"} {
		require.NoError(t, os.MkdirAll(dir, 0o777))
	}
	const canary = "outside"
	require.NoError(t, os.WriteFile(out+"/canary", []byte(canary), 0o644))
	require.NoError(t, os.WriteFile(out+"/sub/canary", []byte(canary), 0o644))
	require.NoError(t, os.WriteFile(in+"/d/canary", []byte("inside"), 0o644))
	require.NoError(t, os.WriteFile(in+"/d/sub/canary", []byte("inside"), 0o644))
	require.NoError(t, os.WriteFile(in+"/f", []byte("inside"), 0o644))
	require.NoError(t, os.Symlink(out, in+"/l"))
	require.NoError(t, os.Symlink(out+"/canary", in+"/fl"))
	before := tree(t, out)
	c := share(t, hostdir.Options{Dir: in, Xattr: true, Limits: hostdir.Limits{MaxOpen: 1}})
	for i := range 64 {
		require.NoError(t, os.Mkdir(fmt.Sprintf("%s/n%d", in, i), 0o755))
	}
	var over atomic.Bool
	var work sync.WaitGroup
	swap := func(do func()) {
		work.Go(func() {
			for !over.Load() {
				do()
				var st unix.Stat_t
				for range rand.IntN(1000) { // the others get a chance
					_ = unix.Lstat(in, &st)
				}
			}
		})
	}
	exchange := func(a, b string) {
		_ = unix.Renameat2(unix.AT_FDCWD, in+"/"+a, unix.AT_FDCWD, in+"/"+b, unix.RENAME_EXCHANGE)
	}
	swap(func() { exchange("d", "l") })
	swap(func() { exchange("f", "fl") })
	swap(func() { c.rename(root, "d", root, "l", unix.RENAME_EXCHANGE) })

	var made, read, refused atomic.Int64
	guest := func(g int) {
		for i := 0; !over.Load(); i++ {
			d, st := c.lookup(root, "d")
			if st != fuse.OK {
				continue
			}
			sub, st := c.lookup(d.NodeId, "sub")
			if st != fuse.OK {
				refused.Add(1)
				c.fs.Forget(d.NodeId, 1)
				continue
			}
			// The descriptors of both are pushed out, so that the path is walked.
			for j := range 34 * (i / 4 % 2) {
				n, st := c.lookup(root, fmt.Sprintf("n%d", (i*7+j)%64))
				if st == fuse.OK {
					_, _ = c.getattr(n.NodeId)
					c.fs.Forget(n.NodeId, 1)
				}
			}
			for _, dir := range []uint64{d.NodeId, sub.NodeId} {
				name := fmt.Sprintf("made%d", g)
				if out, st := c.create(dir, name, unix.O_RDWR, 0o644); st == fuse.OK {
					made.Add(1)
					c.release(out.NodeId, out.Fh)
					c.fs.Forget(out.NodeId, 1)
				}
				c.unlink(dir, name)
				if e, st := c.mkdir(dir, name+"dir", 0o755); st == fuse.OK {
					c.fs.Forget(e.NodeId, 1)
				}
				c.rmdir(dir, name+"dir")
				if e, st := c.symlink(dir, name+"link", "x"); st == fuse.OK {
					c.fs.Forget(e.NodeId, 1)
				}
				c.unlink(dir, name+"link")
				for _, where := range []struct {
					dir  uint64
					name string
				}{{dir, "canary"}, {root, "f"}} {
					f, st := c.lookup(where.dir, where.name)
					if st != fuse.OK {
						continue
					}
					if o, st := c.open(f.NodeId, unix.O_RDWR); st == fuse.OK {
						text, st := c.read(f.NodeId, o.Fh, 0, 100)
						if st == fuse.OK {
							read.Add(1)
							assert.Equal(t, "inside", text)
						}
						_, _ = c.write(f.NodeId, o.Fh, 0, "inside", 0)
						c.release(f.NodeId, o.Fh)
					}
					_, _ = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(f.NodeId), Valid: fuse.FATTR_MODE | fuse.FATTR_MTIME, Mode: 0o666, Mtime: 1})
					_ = c.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: c.header(f.NodeId), Size: 1}, "user.x", []byte("x"))
					if e, st := c.link(f.NodeId, dir, name+"hard"); st == fuse.OK {
						c.fs.Forget(e.NodeId, 1)
					}
					c.unlink(dir, name+"hard")
					c.fs.Forget(f.NodeId, 1)
				}
			}
			c.fs.Forget(sub.NodeId, 1)
			c.fs.Forget(d.NodeId, 1)
		}
	}
	for g := range 3 {
		work.Go(func() { guest(g) })
	}
	span := 3 * time.Second
	if testing.Short() {
		span = time.Second
	}
	<-time.After(span)
	over.Store(true)
	work.Wait()
	assert.Equal(t, before, tree(t, out))
	t.Logf("%d made, %d read, %d times the link was met", made.Load(), read.Load(), refused.Load())
	assert.NotZero(t, made.Load())
	assert.NotZero(t, read.Load())
}

// tree is everything of a directory that could be changed.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		text := ""
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(b)
		}
		all = append(all, fmt.Sprintf("%s %o %d %d:%d %d.%d %d.%d %q", path, st.Mode, st.Nlink, st.Uid, st.Gid,
			st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec, text))
		return nil
	}))
	return all
}

// 100,000 files in 1,000 directories are looked up, looked at, read, and looked
// at again: what is kept open stays within the limit, and Close leaves nothing.
func TestHundredThousandFiles(t *testing.T) {
	dirs, files := 1000, 100
	if testing.Short() || race {
		dirs = 100
	}
	const maxOpen = 64
	c := share(t, hostdir.Options{Limits: hostdir.Limits{MaxOpen: maxOpen}})
	for d := range dirs {
		dir := fmt.Sprintf("%s/d%d", c.dir, d)
		require.NoError(t, os.Mkdir(dir, 0o755))
		for f := range files {
			require.NoError(t, unix.Mknod(fmt.Sprintf("%s/f%d", dir, f), unix.S_IFREG|0o644, 0))
		}
	}
	base := fds(t)
	most := 0
	nodes := make([]uint64, 0, dirs*files)
	start := time.Now()
	for d := range dirs {
		dir := c.node(fmt.Sprintf("d%d", d))
		for f := range files {
			out, st := c.lookup(dir, fmt.Sprintf("f%d", f))
			require.Equal(t, fuse.OK, st)
			fh := c.opened(out.NodeId, unix.O_RDONLY)
			_, st = c.read(out.NodeId, fh, 0, 16)
			require.Equal(t, fuse.OK, st)
			c.release(out.NodeId, fh)
			nodes = append(nodes, out.NodeId)
		}
		most = max(most, fds(t)-base)
	}
	forward := time.Since(start)
	start = time.Now()
	for _, id := range nodes {
		_, st := c.getattr(id)
		require.Equal(t, fuse.OK, st)
	}
	again := time.Since(start)
	most = max(most, fds(t)-base)
	assert.LessOrEqual(t, most, maxOpen)
	s := c.fs.Stats()
	assert.Equal(t, 1+dirs+dirs*files, s.Inodes)
	assert.LessOrEqual(t, s.Open, maxOpen)
	t.Logf("%d files: %d descriptors at most; lookup, open, read, close %v each, getattr %v each",
		len(nodes), most, forward/time.Duration(len(nodes)), again/time.Duration(len(nodes)))
}

// What the host changes is seen by the guest at once, after a second, or not.
func TestCacheModes(t *testing.T) {
	for mode, want := range map[hostdir.CacheMode]struct {
		valid time.Duration
		first uint32 // of the flags of an open
		again uint32 // of a file that has not changed
		after uint32 // of one that the host has changed
		lacks fuse.Status
	}{
		hostdir.CacheNone: {0, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES,
			fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES, fuse.ENOENT},
		hostdir.CacheAuto:   {time.Second, 0, fuse.FOPEN_KEEP_CACHE, 0, fuse.OK},
		hostdir.CacheAlways: {24 * time.Hour, fuse.FOPEN_KEEP_CACHE, fuse.FOPEN_KEEP_CACHE, fuse.FOPEN_KEEP_CACHE, fuse.OK},
	} {
		t.Run(mode.String(), func(t *testing.T) {
			c := share(t, hostdir.Options{Cache: mode})
			c.put("file", "text")
			aged(t, c.dir+"/file")
			e := c.walk("file")
			assert.Equal(t, want.valid, e.EntryTimeout())
			assert.Equal(t, want.valid, e.AttrTimeout())
			var at fuse.AttrOut
			require.Equal(t, fuse.OK, c.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: c.header(e.NodeId)}, &at))
			assert.Equal(t, want.valid, at.Timeout())
			h := c.header(root)
			var none fuse.EntryOut
			assert.Equal(t, want.lacks, c.fs.Lookup(nil, &h, "none", &none))
			assert.Zero(t, none.NodeId)
			assert.Equal(t, want.valid, none.EntryTimeout())
			flags := func() uint32 {
				out, st := c.open(e.NodeId, unix.O_RDWR)
				require.Equal(t, fuse.OK, st)
				c.release(e.NodeId, out.Fh)
				return out.OpenFlags
			}
			assert.Equal(t, want.first, flags())
			assert.Equal(t, want.again, flags())
			c.put("file", "next")
			assert.Equal(t, want.after, flags())
			assert.Equal(t, want.after, flags(), "too young to be sure")
			mode, err := hostdir.ParseCacheMode(mode.String())
			require.NoError(t, err)
			assert.Equal(t, c.fs.MountOptions().EnableSymlinkCaching, mode != hostdir.CacheNone)
		})
	}
	_, err := hostdir.ParseCacheMode("some")
	require.ErrorIs(t, err, hostdir.ErrOptions)
}

// aged waits until a file is old enough for its times to tell its contents apart.
func aged(t *testing.T, path string) {
	require.Eventually(t, func() bool {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(path, &st))
		return time.Since(time.Unix(st.Ctim.Sec, st.Ctim.Nsec)) > 100*time.Millisecond
	}, 5*time.Second, 5*time.Millisecond)
}

// The same with a kernel as the guest: what does a program read after the host
// has written?
func TestHostChangesOverMount(t *testing.T) {
	for _, mode := range []hostdir.CacheMode{hostdir.CacheNone, hostdir.CacheAuto, hostdir.CacheAlways} {
		t.Run(mode.String(), func(t *testing.T) {
			host := t.TempDir()
			at, _ := mount(t, hostdir.Options{Dir: host, Cache: mode})
			read := func(name string) string {
				b, err := os.ReadFile(filepath.Join(at, name))
				if err != nil {
					return "none"
				}
				return string(b)
			}
			put := func(name, text string) {
				require.NoError(t, os.WriteFile(filepath.Join(host, name), []byte(text), 0o644))
			}
			put("file", "one")
			require.Equal(t, "one", read("file"))
			require.Equal(t, "none", read("later"))
			put("file", "two")
			put("later", "here")
			switch mode {
			case hostdir.CacheNone:
				assert.Equal(t, "two", read("file"))
				assert.Equal(t, "here", read("later"))
			case hostdir.CacheAuto:
				assert.Equal(t, "two", read("file"), "the size is the same, and open tells")
				require.Eventually(t, func() bool { return read("later") == "here" }, 5*time.Second, 50*time.Millisecond)
				require.NoError(t, os.Rename(host+"/later", host+"/file"))
				require.Eventually(t, func() bool { return read("file") == "here" && read("later") == "none" }, 5*time.Second, 50*time.Millisecond)
			case hostdir.CacheAlways:
				// Of files the kernel asks more than it would have to.
				assert.Equal(t, "none", read("later"))
			}
			// A mapping, which a cache mode must not forbid to programs.
			put("prog", "#!/bin/sh\necho ran\n")
			require.NoError(t, os.Chmod(host+"/prog", 0o755))
			assert.Equal(t, "ran", strings.TrimSpace(run(t, at, at+"/prog")))
		})
	}
}

// On a host whose own root is an overlay, as a container's is, a file that is
// opened for writing is copied, and remains the same file.
func TestCopyUpOnTheHost(t *testing.T) {
	needRoot(t)
	tmp := t.TempDir()
	if err := unix.Mount("tmpfs", tmp, "tmpfs", 0, ""); err != nil {
		t.Skipf("this host forbids mounts: %v", err)
	}
	defer unix.Unmount(tmp, unix.MNT_DETACH)
	for _, dir := range []string{"lower/dir", "upper", "work", "at"} {
		require.NoError(t, os.MkdirAll(tmp+"/"+dir, 0o755))
	}
	require.NoError(t, os.WriteFile(tmp+"/lower/dir/file", []byte("text"), 0o644))
	if err := unix.Mount("overlay", tmp+"/at", "overlay", 0, "lowerdir="+tmp+"/lower,upperdir="+tmp+"/upper,workdir="+tmp+"/work"); err != nil {
		t.Skipf("no overlays here: %v", err)
	}
	defer unix.Unmount(tmp+"/at", unix.MNT_DETACH)
	f, err := hostdir.New(hostdir.Options{Dir: tmp + "/at"})
	require.NoError(t, err)
	defer f.Close()
	c := &client{t: t, fs: f, dir: f.Dir()}
	dir, file := c.walk("dir"), c.walk("dir/file")
	fh := c.opened(file.NodeId, unix.O_RDWR)
	n, st := c.write(file.NodeId, fh, 0, "next", 0)
	require.Equal(t, fuse.OK, st)
	require.EqualValues(t, 4, n)
	c.release(file.NodeId, fh)
	at, st := c.getattr(file.NodeId)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, file.Ino, at.Ino)
	assert.Equal(t, file.NodeId, c.node("dir/file"))
	assert.Equal(t, "next", c.text("dir/file"))
	at, st = c.getattr(dir.NodeId)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, dir.Ino, at.Ino)
}
