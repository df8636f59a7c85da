package hostdir_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// fds are the descriptors that this process has open, but for those of Go's own
// poller.
func fds(t testing.TB) int {
	dir, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	n := 0
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:") {
			n++
		}
	}
	return n
}

func TestMain(m *testing.M) {
	if os.Getenv("HOSTDIR_UNPRIVILEGED") != "" {
		os.Exit(m.Run())
	}
	before := runtime.NumGoroutine()
	code := m.Run()
	// Go's own, of finished requests and processes, take a moment.
	for range 200 {
		if runtime.NumGoroutine() <= before+1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); code == 0 && n > before+1 {
		buf := make([]byte, 1<<20)
		fmt.Printf("%d goroutines left over, there were %d:\n%s\n", n, before, buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}

// client is a guest: it knows its nodes by their paths.
type client struct {
	t      testing.TB
	fs     *hostdir.FS
	dir    string // of the host
	caller fuse.Caller
}

const root = fuse.FUSE_ROOT_ID

// share makes a share of a new directory, and a client of it. When the test is
// over, no descriptor may be left.
func share(t testing.TB, o hostdir.Options) *client {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	before := fds(t)
	f, err := hostdir.New(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, f.Close())
		assert.Equal(t, before, fds(t), "descriptors are left")
	})
	c := &client{t: t, fs: f, dir: f.Dir()}
	c.caller.Uid, c.caller.Gid = uint32(os.Geteuid()), uint32(os.Getegid())
	return c
}

func (c *client) header(node uint64) fuse.InHeader {
	return fuse.InHeader{NodeId: node, Caller: c.caller}
}

func (c *client) lookup(dir uint64, name string) (fuse.EntryOut, fuse.Status) {
	h := c.header(dir)
	var out fuse.EntryOut
	st := c.fs.Lookup(nil, &h, name, &out)
	if st == fuse.OK && out.NodeId == 0 {
		st = fuse.ENOENT
	}
	return out, st
}

// walk looks up a path.
func (c *client) walk(path string) fuse.EntryOut {
	c.t.Helper()
	out := fuse.EntryOut{NodeId: root}
	for name := range strings.SplitSeq(path, "/") {
		var st fuse.Status
		out, st = c.lookup(out.NodeId, name)
		require.Equal(c.t, fuse.OK, st, "lookup of %s in %s", name, path)
	}
	return out
}

// node is walk's node.
func (c *client) node(path string) uint64 {
	c.t.Helper()
	if path == "" {
		return root
	}
	return c.walk(path).NodeId
}

func (c *client) getattr(node uint64) (fuse.Attr, fuse.Status) {
	var out fuse.AttrOut
	st := c.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: c.header(node)}, &out)
	return out.Attr, st
}

func (c *client) setattr(in fuse.SetAttrInCommon) (fuse.Attr, fuse.Status) {
	var out fuse.AttrOut
	in.Caller = c.caller
	st := c.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &out)
	return out.Attr, st
}

func (c *client) open(node uint64, flags uint32) (fuse.OpenOut, fuse.Status) {
	var out fuse.OpenOut
	st := c.fs.Open(nil, &fuse.OpenIn{InHeader: c.header(node), Flags: flags}, &out)
	return out, st
}

func (c *client) opened(node uint64, flags uint32) uint64 {
	c.t.Helper()
	out, st := c.open(node, flags)
	require.Equal(c.t, fuse.OK, st)
	return out.Fh
}

func (c *client) release(node, fh uint64) {
	c.fs.Release(nil, &fuse.ReleaseIn{InHeader: c.header(node), Fh: fh})
}

func (c *client) read(node, fh, off uint64, n int) (string, fuse.Status) {
	buf := make([]byte, n)
	res, st := c.fs.Read(nil, &fuse.ReadIn{InHeader: c.header(node), Fh: fh, Offset: off, Size: uint32(n)}, buf)
	if st != fuse.OK {
		return "", st
	}
	defer res.Done()
	data, st := res.Bytes(buf)
	return string(data), st
}

func (c *client) write(node, fh, off uint64, data string, flags uint32) (uint32, fuse.Status) {
	return c.fs.Write(nil, &fuse.WriteIn{InHeader: c.header(node), Fh: fh, Offset: off, Size: uint32(len(data)), WriteFlags: flags}, []byte(data))
}

func (c *client) create(dir uint64, name string, flags, mode uint32) (fuse.CreateOut, fuse.Status) {
	var out fuse.CreateOut
	st := c.fs.Create(nil, &fuse.CreateIn{InHeader: c.header(dir), Flags: flags | unix.O_CREAT, Mode: mode | unix.S_IFREG}, name, &out)
	return out, st
}

func (c *client) mkdir(dir uint64, name string, mode uint32) (fuse.EntryOut, fuse.Status) {
	var out fuse.EntryOut
	st := c.fs.Mkdir(nil, &fuse.MkdirIn{InHeader: c.header(dir), Mode: mode}, name, &out)
	return out, st
}

func (c *client) mknod(dir uint64, name string, mode uint32) (fuse.EntryOut, fuse.Status) {
	var out fuse.EntryOut
	st := c.fs.Mknod(nil, &fuse.MknodIn{InHeader: c.header(dir), Mode: mode}, name, &out)
	return out, st
}

func (c *client) symlink(dir uint64, name, target string) (fuse.EntryOut, fuse.Status) {
	var out fuse.EntryOut
	h := c.header(dir)
	st := c.fs.Symlink(nil, &h, target, name, &out)
	return out, st
}

func (c *client) link(node, dir uint64, name string) (fuse.EntryOut, fuse.Status) {
	var out fuse.EntryOut
	st := c.fs.Link(nil, &fuse.LinkIn{InHeader: c.header(dir), Oldnodeid: node}, name, &out)
	return out, st
}

func (c *client) unlink(dir uint64, name string) fuse.Status {
	h := c.header(dir)
	return c.fs.Unlink(nil, &h, name)
}

func (c *client) rmdir(dir uint64, name string) fuse.Status {
	h := c.header(dir)
	return c.fs.Rmdir(nil, &h, name)
}

func (c *client) rename(dir uint64, name string, to uint64, newName string, flags uint32) fuse.Status {
	return c.fs.Rename(nil, &fuse.RenameIn{InHeader: c.header(dir), Newdir: to, Flags: flags}, name, newName)
}

func (c *client) readlink(node uint64) (string, fuse.Status) {
	h := c.header(node)
	out, st := c.fs.Readlink(nil, &h)
	return string(out), st
}

func (c *client) opendir(node uint64) uint64 {
	c.t.Helper()
	var out fuse.OpenOut
	require.Equal(c.t, fuse.OK, c.fs.OpenDir(nil, &fuse.OpenIn{InHeader: c.header(node)}, &out))
	return out.Fh
}

func (c *client) releasedir(node, fh uint64) {
	c.fs.ReleaseDir(&fuse.ReleaseIn{InHeader: c.header(node), Fh: fh})
}

// readdir reads once into a buffer of a size.
func (c *client) readdir(node, fh, off uint64, size int) ([]fuse.DirEntry, fuse.Status) {
	buf := make([]byte, size)
	list := fuse.NewDirEntryList(buf, off)
	st := c.fs.ReadDir(nil, &fuse.ReadIn{InHeader: c.header(node), Fh: fh, Offset: off, Size: uint32(size)}, list)
	entries, err := fuse.ParseDirEntries(list.Bytes())
	require.NoError(c.t, err)
	return entries, st
}

func (c *client) readdirplus(node, fh, off uint64, size int) ([]fuse.DirEntry, []fuse.EntryOut, fuse.Status) {
	buf := make([]byte, size)
	list := fuse.NewDirEntryList(buf, off)
	st := c.fs.ReadDirPlus(nil, &fuse.ReadIn{InHeader: c.header(node), Fh: fh, Offset: off, Size: uint32(size)}, list)
	entries, outs, err := fuse.ParseDirLookupEntries(list.Bytes())
	require.NoError(c.t, err)
	return entries, outs, st
}

// names are those of all entries of a directory but . and .., read with buffers
// of a size.
func (c *client) names(node uint64, size int) []string {
	c.t.Helper()
	fh := c.opendir(node)
	defer c.releasedir(node, fh)
	var names []string
	for off := uint64(0); ; {
		entries, st := c.readdir(node, fh, off, size)
		require.Equal(c.t, fuse.OK, st)
		if len(entries) == 0 {
			return names
		}
		for _, e := range entries {
			if e.Name != "." && e.Name != ".." {
				names = append(names, e.Name)
			}
			off = e.Off
		}
	}
}

// put writes a file of the host's, with its directories.
func (c *client) put(path, text string) {
	c.t.Helper()
	path = filepath.Join(c.dir, path)
	require.NoError(c.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(c.t, os.WriteFile(path, []byte(text), 0o644))
}

func (c *client) text(path string) string {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, path))
	require.NoError(c.t, err)
	return string(b)
}

func (c *client) hostStat(path string) *syscall.Stat_t {
	c.t.Helper()
	info, err := os.Lstat(filepath.Join(c.dir, path))
	require.NoError(c.t, err)
	return info.Sys().(*syscall.Stat_t)
}

// unprivileged is to run a process as another user, without groups.
func unprivileged(id uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}, Pdeathsig: syscall.SIGKILL}
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

const (
	eexist    = fuse.Status(unix.EEXIST)
	estale    = fuse.Status(unix.ESTALE)
	enfile    = fuse.Status(unix.ENFILE)
	enotempty = fuse.Status(unix.ENOTEMPTY)
	enametool = fuse.Status(unix.ENAMETOOLONG)
	enotsup   = fuse.Status(unix.EOPNOTSUPP)
	enolck    = fuse.Status(unix.ENOLCK)
)
