package hostdir_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	real, err := filepath.EvalSymlinks(dir)
	require.NoError(t, err)
	dir = real
	require.NoError(t, os.MkdirAll(dir+"/in/deep", 0o755))
	require.NoError(t, os.WriteFile(dir+"/in/file", nil, 0o644))
	require.NoError(t, os.Symlink(dir, dir+"/self"))
	require.NoError(t, os.Symlink("/usr", dir+"/in/out"))
	for name, c := range map[string]struct {
		o    hostdir.Options
		want string // part of the error; "" is none
	}{
		"plain":                  {hostdir.Options{Dir: dir}, ""},
		"through a link":         {hostdir.Options{Dir: dir + "/self/in", ReadOnly: true, Writable: []string{dir + "/self/in/deep"}}, ""},
		"no directory":           {hostdir.Options{}, "no such file"},
		"missing":                {hostdir.Options{Dir: dir + "/none"}, "/none"},
		"a file":                 {hostdir.Options{Dir: dir + "/in/file"}, "not a directory"},
		"proc":                   {hostdir.Options{Dir: "/proc"}, "kernel's own"},
		"writable not read-only": {hostdir.Options{Dir: dir, Writable: []string{dir + "/in"}}, "ReadOnly is not set"},
		"writable relative":      {hostdir.Options{Dir: dir, ReadOnly: true, Writable: []string{"in"}}, "not an absolute path"},
		"writable outside":       {hostdir.Options{Dir: dir + "/in", ReadOnly: true, Writable: []string{dir}}, "not below"},
		"writable by a link":     {hostdir.Options{Dir: dir, ReadOnly: true, Writable: []string{dir + "/in/out"}}, "not below"},
		"writable missing":       {hostdir.Options{Dir: dir, ReadOnly: true, Writable: []string{dir + "/none"}}, "no such file"},
		"writable file":          {hostdir.Options{Dir: dir, ReadOnly: true, Writable: []string{dir + "/in/file"}}, "only as a directory"},
		"hidden missing":         {hostdir.Options{Dir: dir, Hidden: []string{dir + "/none/at/all"}}, ""},
		"hidden root":            {hostdir.Options{Dir: dir, Hidden: []string{dir}}, "the share itself"},
		"hidden outside":         {hostdir.Options{Dir: dir, Hidden: []string{"/usr"}}, "not below"},
		"hidden and writable":    {hostdir.Options{Dir: dir, ReadOnly: true, Hidden: []string{dir + "/in"}, Writable: []string{dir + "/in/deep"}}, "is hidden"},
		"limits":                 {hostdir.Options{Dir: dir, Limits: hostdir.Limits{MaxHandles: -1}}, "MaxHandles is -1"},
		"cache":                  {hostdir.Options{Dir: dir, Cache: 9}, "no such modes"},
	} {
		t.Run(name, func(t *testing.T) {
			before := fds(t)
			f, err := hostdir.New(c.o)
			if c.want == "" {
				require.NoError(t, err)
				require.NoError(t, f.Close())
				require.NoError(t, f.Close())
			} else {
				require.ErrorIs(t, err, hostdir.ErrOptions)
				require.ErrorContains(t, err, c.want)
				require.NotContains(t, err.Error(), "\n")
			}
			assert.Equal(t, before, fds(t))
		})
	}
}

// A name is one name: whatever else a guest sends is refused by every request,
// before the host is asked.
func TestNames(t *testing.T) {
	outer := t.TempDir()
	require.NoError(t, os.Mkdir(outer+"/in", 0o755))
	require.NoError(t, os.WriteFile(outer+"/canary", []byte("safe"), 0o600))
	c := share(t, hostdir.Options{Dir: outer + "/in", Xattr: true})
	c.put("file", "x")
	c.put("dir/file", "x")
	file, dir := c.node("file"), c.node("dir")
	for name, want := range map[string]fuse.Status{
		"": fuse.EINVAL, ".": fuse.EINVAL, "..": fuse.EINVAL, "../canary": fuse.EINVAL, "/": fuse.EINVAL, "dir/file": fuse.EINVAL,
		"a\x00b": fuse.EINVAL, "dir/": fuse.EINVAL, outer + "/canary": fuse.EINVAL, strings.Repeat("n", 256): enametool,
	} {
		for op, do := range map[string]func() fuse.Status{
			"lookup":      func() fuse.Status { _, st := c.lookup(dir, name); return st },
			"mkdir":       func() fuse.Status { _, st := c.mkdir(dir, name, 0o755); return st },
			"mknod":       func() fuse.Status { _, st := c.mknod(dir, name, unix.S_IFREG|0o644); return st },
			"symlink":     func() fuse.Status { _, st := c.symlink(dir, name, "x"); return st },
			"link":        func() fuse.Status { _, st := c.link(file, dir, name); return st },
			"create":      func() fuse.Status { _, st := c.create(dir, name, unix.O_RDWR, 0o644); return st },
			"unlink":      func() fuse.Status { return c.unlink(dir, name) },
			"rmdir":       func() fuse.Status { return c.rmdir(dir, name) },
			"rename from": func() fuse.Status { return c.rename(dir, name, root, "new", 0) },
			"rename to":   func() fuse.Status { return c.rename(root, "file", dir, name, 0) },
			"exchange":    func() fuse.Status { return c.rename(root, "file", dir, name, unix.RENAME_EXCHANGE) },
		} {
			assert.Equal(t, want, do(), "%s of %q", op, name)
		}
	}
	assert.Equal(t, []string{"dir", "file"}, sorted(c.names(root, 4096)))
	assert.Equal(t, []string{"file"}, c.names(dir, 4096))
	b, err := os.ReadFile(outer + "/canary")
	require.NoError(t, err)
	assert.Equal(t, "safe", string(b))
}

func sorted(s []string) []string { slices.Sort(s); return s }

// A link is a node with a text. It leads nowhere on the host.
func TestLinksAreNotFollowed(t *testing.T) {
	outer := t.TempDir()
	require.NoError(t, os.Mkdir(outer+"/in", 0o755))
	require.NoError(t, os.Mkdir(outer+"/out", 0o755))
	require.NoError(t, os.WriteFile(outer+"/out/canary", []byte("safe"), 0o644))
	c := share(t, hostdir.Options{Dir: outer + "/in"})
	for name, target := range map[string]string{"abs": outer + "/out", "rel": "../out", "file": outer + "/out/canary", "proc": "/proc/self/root"} {
		out, st := c.symlink(root, name, target)
		require.Equal(t, fuse.OK, st)
		require.EqualValues(t, unix.S_IFLNK, out.Mode&unix.S_IFMT)
		text, st := c.readlink(out.NodeId)
		require.Equal(t, fuse.OK, st)
		require.Equal(t, target, text)
		for op, st := range map[string]fuse.Status{
			"lookup": func() fuse.Status { _, st := c.lookup(out.NodeId, "canary"); return st }(),
			"create": func() fuse.Status { _, st := c.create(out.NodeId, "new", unix.O_WRONLY, 0o644); return st }(),
			"mkdir":  func() fuse.Status { _, st := c.mkdir(out.NodeId, "new", 0o755); return st }(),
			"unlink": c.unlink(out.NodeId, "canary"),
			"rename": c.rename(root, name, out.NodeId, "new", 0),
			"open":   func() fuse.Status { _, st := c.open(out.NodeId, unix.O_RDONLY); return st }(),
			"truncate": func() fuse.Status {
				_, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(out.NodeId), Valid: fuse.FATTR_SIZE})
				return st
			}(),
			"chmod": func() fuse.Status {
				_, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(out.NodeId), Valid: fuse.FATTR_MODE, Mode: 0})
				return st
			}(),
		} {
			assert.NotEqual(t, fuse.OK, st, "%s through %s", op, name)
		}
		// What belongs to the link itself works.
		at, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(out.NodeId), Valid: fuse.FATTR_MTIME, Mtime: 42})
		require.Equal(t, fuse.OK, st)
		require.EqualValues(t, 42, at.Mtime)
		hard, st := c.link(out.NodeId, root, name+".hard")
		require.Equal(t, fuse.OK, st)
		require.Equal(t, out.NodeId, hard.NodeId)
	}
	// Create does not write through a link that is there either.
	_, st := c.create(root, "file", unix.O_WRONLY|unix.O_TRUNC, 0o644)
	assert.Equal(t, estale, st)
	b, err := os.ReadFile(outer + "/out/canary")
	require.NoError(t, err)
	assert.Equal(t, "safe", string(b))
	left, err := os.ReadDir(outer + "/out")
	require.NoError(t, err)
	assert.Len(t, left, 1)
}

// What is neither a file nor a directory has a name and attributes, and is not
// opened: the FIFO would answer, a device would do something.
func TestOnlyFilesAreOpened(t *testing.T) {
	c := share(t, hostdir.Options{})
	require.NoError(t, unix.Mkfifo(c.dir+"/fifo", 0o666))
	require.NoError(t, unix.Mknod(c.dir+"/sock", unix.S_IFSOCK|0o666, 0))
	kinds := []string{"fifo", "sock"}
	if os.Geteuid() == 0 {
		require.NoError(t, unix.Mknod(c.dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		kinds = append(kinds, "null")
		at := c.walk("null")
		assert.EqualValues(t, 1<<8|3, at.Rdev)
	}
	reader, err := unix.Open(c.dir+"/fifo", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(reader)
	for _, name := range kinds {
		node := c.node(name)
		for _, flags := range []uint32{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR | unix.O_TRUNC} {
			_, st := c.open(node, flags)
			assert.Equal(t, fuse.EACCES, st, name)
		}
		_, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_SIZE})
		assert.Equal(t, fuse.EINVAL, st)
		_, st = c.create(root, name, unix.O_RDWR, 0o644)
		assert.Equal(t, estale, st)
		at, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_MODE, Mode: 0o600})
		assert.Equal(t, fuse.OK, st)
		assert.EqualValues(t, 0o600, at.Mode&0o777)
	}
	for kind, want := range map[uint32]fuse.Status{
		unix.S_IFCHR: fuse.EPERM, unix.S_IFBLK: fuse.EPERM, unix.S_IFDIR: fuse.EINVAL, unix.S_IFLNK: fuse.EINVAL,
		unix.S_IFIFO: fuse.OK, unix.S_IFSOCK: fuse.OK, unix.S_IFREG: fuse.OK, 0: fuse.OK,
	} {
		name := fmt.Sprintf("new%o", kind)
		out, st := c.mknod(root, name, kind|0o640)
		assert.Equal(t, want, st, name)
		if want == fuse.OK && kind != 0 {
			assert.Equal(t, kind|0o640, out.Mode, name)
		}
	}
}

func TestReadOnly(t *testing.T) {
	c := share(t, hostdir.Options{ReadOnly: true, Dir: func() string {
		dir := t.TempDir()
		require.NoError(t, os.MkdirAll(dir+"/ro/w/deep", 0o755))
		require.NoError(t, os.WriteFile(dir+"/ro/file", []byte("text"), 0o644))
		require.NoError(t, os.WriteFile(dir+"/ro/w/file", []byte("text"), 0o644))
		require.NoError(t, os.Link(dir+"/ro/file", dir+"/ro/w/same"))
		return dir
	}()})
	c.fs.Close()
	for _, zoned := range []bool{false, true} {
		t.Run(fmt.Sprintf("writable below %t", zoned), func(t *testing.T) {
			o := hostdir.Options{Dir: c.dir, ReadOnly: true, Xattr: true}
			if zoned {
				o.Writable = []string{c.dir + "/ro/w"}
			}
			c := share(t, o)
			changes := func(dir, file uint64, name string) map[string]fuse.Status {
				h := c.header(file)
				return map[string]fuse.Status{
					"create":  func() fuse.Status { _, st := c.create(dir, "c", unix.O_WRONLY, 0o644); return st }(),
					"mkdir":   func() fuse.Status { _, st := c.mkdir(dir, "d", 0o755); return st }(),
					"mknod":   func() fuse.Status { _, st := c.mknod(dir, "n", unix.S_IFIFO|0o644); return st }(),
					"symlink": func() fuse.Status { _, st := c.symlink(dir, "s", "x"); return st }(),
					"link":    func() fuse.Status { _, st := c.link(file, dir, "l"); return st }(),
					"write":   func() fuse.Status { _, st := c.open(file, unix.O_RDWR); return st }(),
					"trunc":   func() fuse.Status { _, st := c.open(file, unix.O_RDONLY|unix.O_TRUNC); return st }(),
					"chmod": func() fuse.Status {
						_, st := c.setattr(fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_MODE, Mode: 0o600})
						return st
					}(),
					"times": func() fuse.Status {
						_, st := c.setattr(fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_MTIME})
						return st
					}(),
					"setxattr": c.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 1}, "user.a", []byte("1")),
					"rmxattr":  c.fs.RemoveXAttr(nil, &h, "user.a"),
					"tmpfile":  c.fs.Tmpfile(nil, &fuse.CreateIn{InHeader: c.header(dir), Flags: unix.O_RDWR, Mode: 0o600}, &fuse.CreateOut{}),
					"access":   c.fs.Access(nil, &fuse.AccessIn{InHeader: h, Mask: fuse.W_OK}),
					"rename":   c.rename(dir, name, dir, "r", 0),
					"unlink":   c.unlink(dir, "r"),
					"rmdir":    c.rmdir(dir, "d"),
				}
			}
			for op, st := range changes(c.node("ro"), c.node("ro/file"), "file") {
				assert.Equal(t, fuse.EROFS, st, op)
			}
			w, file := c.node("ro/w"), c.node("ro/w/file")
			if !zoned {
				for op, st := range changes(w, file, "file") {
					assert.Equal(t, fuse.EROFS, st, op)
				}
				return
			}
			// One file by two ways is two nodes, and only one of them may change.
			ro, rw := c.walk("ro/file"), c.walk("ro/w/same")
			assert.NotEqual(t, ro.NodeId, rw.NodeId)
			assert.Equal(t, ro.Ino, rw.Ino)
			_, st := c.link(ro.NodeId, w, "mine")
			assert.Equal(t, fuse.EXDEV, st)
			assert.Equal(t, fuse.EROFS, c.rename(c.node("ro"), "file", w, "mine", 0))
			assert.Equal(t, fuse.EROFS, c.rename(w, "same", c.node("ro"), "same", 0))
			assert.Equal(t, fuse.EROFS, c.rename(w, "same", c.node("ro"), "file", unix.RENAME_EXCHANGE))
			assert.Equal(t, fuse.EROFS, c.rmdir(c.node("ro"), "w"))
			assert.Equal(t, fuse.EROFS, c.rename(c.node("ro"), "w", w, "deep", 0))
			// A handle for reading does not write, whatever the flags of the request.
			fh := c.opened(ro.NodeId, unix.O_RDONLY)
			_, st = c.write(ro.NodeId, fh, 0, "bad", 0)
			assert.Equal(t, fuse.EBADF, st)
			_, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(rw.NodeId), Valid: fuse.FATTR_SIZE | fuse.FATTR_FH, Fh: fh})
			assert.Equal(t, fuse.EBADF, st)
			assert.NotEqual(t, fuse.OK, c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: c.header(ro.NodeId), Fh: fh, Length: 9}))
			assert.Equal(t, "text", c.text("ro/file"))
			for op, st := range changes(w, file, "file") {
				if op == "rmxattr" {
					continue // whatever the host's file system says
				}
				assert.Equal(t, fuse.OK, st, op)
			}
		})
	}
}

// TestReadOnlyKeepsBits: what clears set-user-ID bits before a file changes leaves those of
// a file alone that the handle can't change.
func TestReadOnlyKeepsBits(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/file", []byte("text"), 0o600))
	require.NoError(t, unix.Chmod(dir+"/file", 0o6755))
	for _, ro := range []bool{true, false} {
		c := share(t, hostdir.Options{Dir: dir, ReadOnly: ro})
		node := c.node("file")
		fh := c.opened(node, unix.O_RDONLY)
		h := c.header(node)
		h.Uid = 1000
		assert.Equal(t, fuse.EBADF, c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: h, Fh: fh, Length: 10}))
		_, st := c.fs.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: h, FhIn: fh, NodeIdOut: node, FhOut: fh, Len: 4})
		assert.Equal(t, fuse.EBADF, st)
		_, st = c.write(node, fh, 0, "x", fuse.WRITE_KILL_SUIDGID)
		assert.Equal(t, fuse.EBADF, st)
		assert.Equal(t, "6755", fmt.Sprintf("%o", c.hostStat("file").Mode&0o7777))
		c.release(node, fh)
	}
}

func TestHidden(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(dir+"/up/secret/deep", 0o755))
	require.NoError(t, os.WriteFile(dir+"/up/secret/file", []byte("text"), 0o644))
	require.NoError(t, os.WriteFile(dir+"/up/key", []byte("text"), 0o644))
	c := share(t, hostdir.Options{Dir: dir, Xattr: true, Hidden: []string{dir + "/up/secret", dir + "/up/later", dir + "/up/key"}})
	empty := func(t *testing.T, up uint64, name string) {
		t.Helper()
		out, st := c.lookup(up, name)
		require.Equal(t, fuse.OK, st)
		assert.Empty(t, c.names(out.NodeId, 4096))
		for _, inside := range []string{"file", "deep"} {
			_, st := c.lookup(out.NodeId, inside)
			assert.Equal(t, fuse.ENOENT, st)
		}
		_, st = c.create(out.NodeId, "new", unix.O_WRONLY, 0o644)
		assert.Equal(t, fuse.EROFS, st)
		_, st = c.getattr(out.NodeId)
		assert.Equal(t, fuse.OK, st)
		assert.Equal(t, fuse.EBUSY, c.rename(up, name, root, "gone", 0))
		assert.Equal(t, fuse.EBUSY, c.rmdir(up, name))
		_, st = c.mkdir(root, "other", 0o755)
		require.Equal(t, fuse.OK, st)
		assert.Equal(t, fuse.EBUSY, c.rename(root, "other", up, name, 0))
		assert.Equal(t, fuse.EBUSY, c.rename(root, "other", up, name, unix.RENAME_EXCHANGE))
		require.Equal(t, fuse.OK, c.rmdir(root, "other"))
	}
	up := c.node("up")
	empty(t, up, "secret")
	_, st := c.lookup(up, "key")
	assert.Equal(t, fuse.ENOENT, st, "a hidden file is not there")
	assert.Equal(t, fuse.EBUSY, c.rename(root, "up", root, "down", 0), "with what is hidden below")
	_, st = c.mkdir(up, "later", 0o755)
	assert.Equal(t, fuse.EBUSY, st)
	require.NoError(t, os.Mkdir(dir+"/up/later", 0o755))
	require.NoError(t, os.WriteFile(dir+"/up/later/file", nil, 0o644))
	empty(t, up, "later")
	// Wherever the host moves it.
	require.NoError(t, os.Rename(dir+"/up/secret", dir+"/bare"))
	empty(t, root, "bare")
}

func TestFileSystemsOfTheKernelAreEmpty(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(dir+"/tmp", 0o755))
	require.NoError(t, os.Mkdir(dir+"/proc", 0o755))
	require.NoError(t, os.WriteFile(dir+"/status", nil, 0o644))
	for _, m := range []struct {
		from, to, kind string
		flags          uintptr
	}{{"tmp", "/tmp", "tmpfs", 0}, {"proc", "/proc", "proc", 0}, {"/proc/self/status", "/status", "", unix.MS_BIND}} {
		if err := unix.Mount(m.from, dir+m.to, m.kind, m.flags, ""); err != nil {
			t.Skipf("this host forbids mounts: %v", err)
		}
		defer unix.Unmount(dir+m.to, unix.MNT_DETACH)
	}
	c := share(t, hostdir.Options{Dir: dir})
	// A file system of files is a part of the share, with numbers of its own.
	_, st := c.mkdir(root, "a", 0o755)
	require.Equal(t, fuse.OK, st)
	out, st := c.create(c.node("tmp"), "file", unix.O_RDWR, 0o644)
	require.Equal(t, fuse.OK, st)
	c.release(out.NodeId, out.Fh)
	seen := map[uint64]string{}
	for _, path := range []string{"a", "tmp", "tmp/file", "proc"} {
		at := c.walk(path)
		assert.Empty(t, seen[at.Ino], path)
		seen[at.Ino] = path
		assert.Equal(t, c.hostStat(path).Ino, at.Ino&0xffffffff, path)
	}
	again, st := c.getattr(c.node("tmp/file"))
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, again.Ino, c.walk("tmp/file").Ino)
	assert.Equal(t, fuse.EXDEV, c.rename(root, "a", c.node("tmp"), "a", 0))
	proc := c.node("proc")
	assert.Empty(t, c.names(proc, 4096))
	for _, name := range []string{"self", "1", "cpuinfo"} {
		_, st := c.lookup(proc, name)
		assert.Equal(t, fuse.ENOENT, st, name)
	}
	_, st = c.lookup(root, "status")
	assert.Equal(t, fuse.ENOENT, st)
}
