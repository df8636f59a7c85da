package hostdir_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// script is the bytes of a guest's requests.
type script []byte

func (s *script) byte() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

// pick is one of what a guest would come upon, or something wild.
func (s *script) number(known []uint64) uint64 {
	b := s.byte()
	switch {
	case b < 8:
		return []uint64{0, 1, 2, 1 << 31, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1}[b]
	case len(known) == 0:
		return uint64(b)
	}
	return known[int(b)%len(known)]
}

func (s *script) name() string {
	names := []string{"a", "b", "c", "d", "dir", "link", "abs", "canary", "ro", "w", "hidden", ".", "..", "", "/", "../canary", "a/b", "dir/..", "nul\x00l"}
	return names[int(s.byte())%len(names)]
}

// FuzzRequests sends requests to a share beside which there is a canary. Whatever
// they are: nothing outside, hidden, or read-only changes or is read, nothing
// panics, tables and descriptors stay bounded, and Reset leaves none.
func FuzzRequests(f *testing.F) {
	for _, s := range []string{"", "\x00\x01\x05\x00\x01\x07", "\x02\x09\x00\x03\x09\x08", "\x07\x01\x00\x01\x0c\x09\x08\x0a\x0a\x0b\x0b",
		"\x22\x01\x00\x08\x01\x00\x22\x01\x00\x22\x01\x00", "\x00\x01\x04\x08\x08\x00\x22\x00\x00\x0b\x08\x00\x22\x09\x00"} {
		f.Add([]byte(s), uint8(0))
		f.Add([]byte(s), uint8(1))
	}
	outer := f.TempDir()
	require.NoError(f, os.WriteFile(outer+"/canary", []byte("outside"), 0o644))
	limits := hostdir.Limits{MaxInodes: 20, MaxOpen: 1, MaxHandles: 10, MaxLockWaits: 1}
	f.Fuzz(func(t *testing.T, bytes []byte, kind uint8) {
		if len(bytes) > 4096 {
			return
		}
		in := filepath.Join(outer, "in")
		for _, dir := range []string{"/dir/sub", "/ro/w", "/hidden", "/dir/hidden"} {
			require.NoError(t, os.MkdirAll(in+dir, 0o755))
		}
		defer os.RemoveAll(in)
		for _, file := range []string{"/a", "/ro/file", "/hidden/canary", "/dir/hidden/canary"} {
			require.NoError(t, os.WriteFile(in+file, []byte("inside"), 0o644))
		}
		require.NoError(t, os.Symlink(outer, in+"/abs"))
		require.NoError(t, os.Symlink("..", in+"/dir/link"))
		require.NoError(t, os.Symlink("../canary", in+"/link"))
		before := fds(t)
		o := hostdir.Options{Dir: in, Xattr: true, Limits: limits, Locks: hostdir.Locks(kind >> 1 & 1), Cache: hostdir.CacheMode(kind >> 2 % 3),
			Hidden: []string{in + "/hidden", in + "/dir/hidden"}}
		if kind&1 != 0 {
			o.ReadOnly, o.Writable = true, []string{in + "/ro/w", in + "/dir"}
			o.Changed = func() {}
		}
		fs, err := hostdir.New(o)
		require.NoError(t, err)
		fs.SetSync(func(fd int) error { // the disks of whom this runs at are not to suffer
			var st unix.Statfs_t
			require.NoError(t, unix.Fstatfs(fd, &st))
			return nil
		}, func() { require.Fail(t, "all of the host is synced") })
		g := &guest{script: bytes, client: client{t: t, fs: fs, dir: in}, nodes: []uint64{root}}
		for len(g.script) > 0 {
			g.request()
			s := fs.Stats()
			require.LessOrEqual(t, s.Inodes, limits.MaxInodes)
			require.LessOrEqual(t, s.Handles, 10)
			require.LessOrEqual(t, s.Open, 32)
		}
		require.LessOrEqual(t, fds(t)-before, 2+10+32)
		fs.Reset()
		require.Equal(t, hostdir.Stats{Inodes: 1}, fs.Stats())
		require.NoError(t, fs.Close())
		require.Equal(t, before, fds(t))
		whole := []string{outer + "/canary", in + "/hidden/canary", in + "/dir/hidden/canary"}
		if kind&1 != 0 {
			whole = append(whole, in+"/a", in+"/ro/file")
		}
		for _, path := range whole {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Contains(t, []string{"inside", "outside"}, string(b), path)
			info, err := os.Lstat(path)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o644), info.Mode(), path)
		}
		left, err := os.ReadDir(outer)
		require.NoError(t, err)
		require.Len(t, left, 2)
	})
}

// guest makes requests of a script.
type guest struct {
	script
	client
	nodes   []uint64
	handles []uint64
}

func (g *guest) found(e *fuse.EntryOut, st fuse.Status) {
	if st == fuse.OK && e.NodeId != 0 && len(g.nodes) < 200 {
		g.nodes = append(g.nodes, e.NodeId)
	}
}

func (g *guest) handle(fh uint64, st fuse.Status) {
	if st == fuse.OK && len(g.handles) < 200 {
		g.handles = append(g.handles, fh)
	}
}

func (g *guest) request() {
	op := g.byte()
	node, name := g.number(g.nodes), g.name()
	h := g.header(node)
	switch op % 35 {
	case 0, 1, 2:
		e, st := g.lookup(node, name)
		g.found(&e, st)
	case 3:
		_, _ = g.getattr(node)
	case 4:
		_, _ = g.setattr(fuse.SetAttrInCommon{InHeader: h, Valid: uint32(g.byte())<<4 | uint32(g.byte()), Fh: g.number(g.handles), Size: g.number(nil), Mode: 0o644, Mtimensec: uint32(g.number(nil)), Owner: fuse.Owner{Uid: uint32(g.number(nil)), Gid: 5}})
	case 5:
		_, _ = g.readlink(node)
	case 6:
		e, st := g.symlink(node, name, "../"+g.name())
		g.found(&e, st)
	case 7:
		e, st := g.mknod(node, name, uint32(g.byte())<<12|0o644)
		g.found(&e, st)
	case 8, 9:
		e, st := g.mkdir(node, name, 0o755)
		g.found(&e, st)
	case 10:
		g.unlink(node, name)
	case 11:
		g.rmdir(node, name)
	case 12, 13, 14:
		g.rename(node, name, g.number(g.nodes), g.name(), uint32(g.byte()%5))
	case 15:
		e, st := g.link(g.number(g.nodes), node, name)
		g.found(&e, st)
	case 16, 17:
		out, st := g.open(node, uint32(g.byte())|uint32(g.byte())<<8|uint32(g.byte())<<16)
		g.handle(out.Fh, st)
	case 18:
		out, st := g.create(node, name, uint32(g.byte())|uint32(g.byte())<<8, 0o644)
		g.found(&out.EntryOut, st)
		g.handle(out.Fh, st)
	case 19:
		text, st := g.read(node, g.number(g.handles), g.number(nil), int(g.byte()))
		if st == fuse.OK {
			require.NotContains(g.t, text, "outside")
		}
	case 20:
		_, _ = g.write(node, g.number(g.handles), g.number(nil)&0xffff, "written", uint32(g.byte()))
	case 21:
		g.fs.Flush(nil, &fuse.FlushIn{InHeader: h, Fh: g.number(g.handles), LockOwner: uint64(g.byte())})
	case 22:
		if g.byte()&1 == 0 {
			g.release(node, g.number(g.handles))
		} else {
			g.releasedir(node, g.number(g.handles))
		}
	case 23:
		var out fuse.OpenOut
		g.handle(out.Fh, g.fs.OpenDir(nil, &fuse.OpenIn{InHeader: h}, &out))
		g.handle(out.Fh, fuse.OK)
	case 24:
		_, _ = g.readdir(node, g.number(g.handles), g.number(nil), int(g.byte())*16)
	case 25:
		_, outs, _ := g.readdirplus(node, g.number(g.handles), g.number(nil), int(g.byte())*64)
		for i := range outs {
			g.found(&outs[i], fuse.OK)
		}
	case 26:
		buf := make([]byte, g.byte())
		_, _ = g.fs.GetXAttr(nil, &h, "user."+name, buf)
		_, _ = g.fs.ListXAttr(nil, &h, buf)
	case 27:
		g.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: uint32(g.number(nil)), Flags: uint32(g.byte())}, "user.x", []byte("value"))
		g.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 28}, "system.posix_acl_access", aclBytes(aclEntry{1, 6, 0}, aclEntry{4, 4, 0}, aclEntry{32, 4, 0}))
	case 28:
		lk := fuse.LkIn{InHeader: h, Fh: g.number(g.handles), Owner: uint64(g.byte() % 4), LkFlags: uint32(g.byte() & 1),
			Lk: fuse.FileLock{Start: g.number(nil), End: g.number(nil), Typ: uint32(g.byte() % 4)}}
		g.fs.SetLk(nil, &lk)
		g.fs.GetLk(nil, &lk, &fuse.LkOut{})
		gone := make(chan struct{})
		close(gone)
		g.fs.SetLkw(gone, &lk)
	case 29:
		g.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: h, Fh: g.number(g.handles), Offset: g.number(nil) & 0xffff, Length: g.number(nil) & 0xffff, Mode: uint32(g.byte())})
		g.fs.Lseek(nil, &fuse.LseekIn{InHeader: h, Fh: g.number(g.handles), Offset: g.number(nil), Whence: uint32(g.byte() % 6)}, &fuse.LseekOut{})
	case 30:
		_, _ = g.fs.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: h, FhIn: g.number(g.handles), OffIn: g.number(nil), NodeIdOut: g.number(g.nodes),
			FhOut: g.number(g.handles), OffOut: g.number(nil) & 0xffff, Len: g.number(nil)})
	case 31:
		g.fs.Forget(node, g.number(nil))
	case 32:
		var out fuse.CreateOut
		st := g.fs.Tmpfile(nil, &fuse.CreateIn{InHeader: h, Flags: unix.O_RDWR, Mode: 0o600}, &out)
		g.found(&out.EntryOut, st)
		g.handle(out.Fh, st)
		g.fs.StatFs(nil, &h, &fuse.StatfsOut{})
		g.fs.Access(nil, &fuse.AccessIn{InHeader: h, Mask: uint32(g.byte())})
		g.fs.Statx(nil, &fuse.StatxIn{InHeader: h, GetattrFlags: 1, Fh: g.number(g.handles)}, &fuse.StatxOut{})
	case 33:
		fh := g.number(g.handles)
		g.fs.Fsync(nil, &fuse.FsyncIn{InHeader: h, Fh: fh, FsyncFlags: 1})
		g.fs.FsyncDir(nil, &fuse.FsyncIn{InHeader: h, Fh: fh, FsyncFlags: 1})
	case 34:
		require.Equal(g.t, fuse.OK, g.fs.SyncFS(nil))
	}
}
