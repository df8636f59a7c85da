package hostdir_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

func TestReadAndWrite(t *testing.T) {
	c := share(t, hostdir.Options{})
	out, st := c.create(root, "file", unix.O_RDWR|unix.O_EXCL, 0o644)
	require.Equal(t, fuse.OK, st)
	node, fh := out.NodeId, out.Fh
	_, st = c.create(root, "file", unix.O_RDWR|unix.O_EXCL, 0o644)
	assert.Equal(t, eexist, st)
	n, st := c.fs.Writev(nil, &fuse.WriteIn{InHeader: c.header(node), Fh: fh, Offset: 2, Size: 9},
		[][]byte{[]byte("0123"), nil, []byte("4567"), []byte("89beyond the size")})
	require.Equal(t, fuse.OK, st)
	assert.EqualValues(t, 9, n)
	assert.Equal(t, "\x00\x00012345678", c.text("file"))
	// An appending write goes to where the host's end is.
	c.put("file", "host's ")
	n, st = c.fs.Write(nil, &fuse.WriteIn{InHeader: c.header(node), Fh: fh, Offset: 2, Size: 4, Flags: unix.O_APPEND | unix.O_RDWR}, []byte("mine"))
	require.Equal(t, fuse.OK, st)
	assert.EqualValues(t, 4, n)
	assert.Equal(t, "host's mine", c.text("file"))

	// Straight into the buffers of a guest.
	res, st := c.fs.Read(nil, &fuse.ReadIn{InHeader: c.header(node), Fh: fh, Offset: 1, Size: 64}, make([]byte, 64))
	require.Equal(t, fuse.OK, st)
	first, rest := make([]byte, 3), make([]byte, 61)
	total, st := res.(interface {
		Readv([][]byte) (int, fuse.Status)
	}).Readv([][]byte{first, rest})
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, 10, total)
	assert.Equal(t, "ost's mine", string(first)+string(rest[:7]))
	c.release(node, fh) // while the read holds it
	res.Done()
	res.Done()

	wo := c.opened(node, unix.O_WRONLY|unix.O_TRUNC)
	assert.Empty(t, c.text("file"))
	_, st = c.read(node, wo, 0, 4)
	assert.Equal(t, fuse.EBADF, st)
	require.Equal(t, fuse.OK, c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: c.header(node), Fh: wo, Length: 1 << 20}))
	assert.EqualValues(t, 1<<20, c.hostStat("file").Size)
	for _, mode := range []uint32{unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE, 1 << 20} {
		assert.Equal(t, enotsup, c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: c.header(node), Fh: wo, Mode: mode, Length: 4096}))
	}
	assert.NotEqual(t, fuse.OK, c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: c.header(node), Fh: wo, Offset: 1 << 63, Length: 1 << 63}))
	_, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_SIZE, Size: 8 << 20})
	require.Equal(t, fuse.OK, st)
	_, st = c.write(node, wo, 4<<20, strings.Repeat("x", 4096), 0)
	require.Equal(t, fuse.OK, st)
	var seek fuse.LseekOut
	require.Equal(t, fuse.OK, c.fs.Lseek(nil, &fuse.LseekIn{InHeader: c.header(node), Fh: wo, Offset: 2 << 20, Whence: unix.SEEK_DATA}, &seek))
	assert.EqualValues(t, 4<<20, seek.Offset)
	assert.Equal(t, fuse.Status(unix.ENXIO), c.fs.Lseek(nil, &fuse.LseekIn{InHeader: c.header(node), Fh: wo, Offset: 8 << 20, Whence: unix.SEEK_DATA}, &seek))
	assert.Equal(t, fuse.EINVAL, c.fs.Lseek(nil, &fuse.LseekIn{InHeader: c.header(node), Fh: wo, Whence: unix.SEEK_END}, &seek))

	ro := c.opened(node, unix.O_RDONLY)
	other, st := c.create(root, "other", unix.O_RDWR, 0o644)
	require.Equal(t, fuse.OK, st)
	in := fuse.CopyFileRangeIn{InHeader: c.header(node), FhIn: ro, OffIn: 4<<20 + 4000, NodeIdOut: other.NodeId, FhOut: other.Fh, OffOut: 1, Len: 1 << 62}
	copied, st := c.fs.CopyFileRange(nil, &in)
	require.Equal(t, fuse.OK, st)
	assert.LessOrEqual(t, copied, uint32(16<<20))
	assert.Equal(t, "\x00"+strings.Repeat("x", 96)+"\x00", c.text("other")[:98])
	in.NodeIdOut, in.FhOut = node, ro
	_, st = c.fs.CopyFileRange(nil, &in)
	assert.Equal(t, fuse.EBADF, st)
	assert.Equal(t, fuse.OK, c.fs.Fsync(nil, &fuse.FsyncIn{InHeader: c.header(node), Fh: wo, FsyncFlags: 1}))
	assert.Equal(t, fuse.OK, c.fs.Flush(nil, &fuse.FlushIn{InHeader: c.header(node), Fh: wo}))
	_, st = c.open(node, unix.O_ACCMODE)
	assert.Equal(t, fuse.EINVAL, st)
	_, st = c.open(root, unix.O_RDONLY)
	assert.Equal(t, fuse.EISDIR, st)
	// Flags that are none of the guest's business make no difference.
	fh = c.opened(node, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_DIRECT|unix.O_PATH|unix.O_DIRECTORY|unix.O_NOATIME|0xf0000000)
	text, st := c.read(node, fh, 4<<20, 3)
	assert.Equal(t, fuse.OK, st)
	assert.Equal(t, "xxx", text)
	var fs fuse.StatfsOut
	h := c.header(node)
	require.Equal(t, fuse.OK, c.fs.StatFs(nil, &h, &fs))
	assert.NotZero(t, fs.Blocks)
	assert.Equal(t, fuse.Status(unix.ENOTTY), c.fs.Ioctl(nil, &fuse.IoctlIn{InHeader: h, Fh: fh}, nil, &fuse.IoctlOut{}, nil))
}

// With HANDLE_KILLPRIV_V2 it is us who clear set-user-ID and set-group-ID.
func TestBitsAreKilled(t *testing.T) {
	c := share(t, hostdir.Options{})
	other := func(node uint64) fuse.InHeader {
		h := c.header(node)
		h.Uid = 1000
		return h
	}
	// Of these two the request does not say who may keep them: root may.
	c.put("file", "text")
	require.NoError(t, unix.Chmod(c.dir+"/file", 0o4755))
	node := c.node("file")
	fh := c.opened(node, unix.O_WRONLY)
	in := fuse.FallocateIn{InHeader: c.header(node), Fh: fh, Length: 10}
	in.Uid = 0
	require.Equal(t, fuse.OK, c.fs.Fallocate(nil, &in))
	c.release(node, fh)
	if os.Getuid() == 0 { // else it is the host that does it
		require.EqualValues(t, 0o4755, c.hostStat("file").Mode&0o7777)
	}
	for name, do := range map[string]func(node uint64) fuse.Status{
		"write": func(node uint64) fuse.Status {
			fh := c.opened(node, unix.O_WRONLY)
			defer c.release(node, fh)
			_, st := c.write(node, fh, 0, "x", fuse.WRITE_KILL_SUIDGID)
			return st
		},
		"open": func(node uint64) fuse.Status {
			var out fuse.OpenOut
			st := c.fs.Open(nil, &fuse.OpenIn{InHeader: c.header(node), Flags: unix.O_WRONLY | unix.O_TRUNC, Mode: fuse.OPEN_KILL_SUIDGID}, &out)
			c.release(node, out.Fh)
			return st
		},
		"size": func(node uint64) fuse.Status {
			_, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID})
			return st
		},
		"fallocate": func(node uint64) fuse.Status {
			fh := c.opened(node, unix.O_WRONLY)
			defer c.release(node, fh)
			return c.fs.Fallocate(nil, &fuse.FallocateIn{InHeader: other(node), Fh: fh, Length: 10})
		},
		"copy_file_range": func(node uint64) fuse.Status {
			c.put("from", "text")
			from := c.node("from")
			to, fh := c.opened(node, unix.O_WRONLY), c.opened(from, unix.O_RDONLY)
			defer c.release(node, to)
			defer c.release(from, fh)
			_, st := c.fs.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: other(from), FhIn: fh, NodeIdOut: node, FhOut: to, Len: 4})
			return st
		},
		"chown": func(node uint64) fuse.Status {
			_, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_UID | fuse.FATTR_GID,
				Owner: fuse.Owner{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}})
			return st
		},
	} {
		for _, bits := range []struct{ before, after uint32 }{{0o6755, 0o755}, {0o4711, 0o711}, {0o2755, 0o755}, {0o2745, 0o2745}, {0o1644, 0o1644}} {
			c.put("file", "text")
			require.NoError(t, unix.Chmod(c.dir+"/file", bits.before))
			node := c.node("file")
			require.Equal(t, fuse.OK, do(node), name)
			assert.Equal(t, fmt.Sprintf("%o", bits.after), fmt.Sprintf("%o", c.hostStat("file").Mode&0o7777), "%s of %o", name, bits.before)
		}
	}
}

func TestModes(t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	for _, acl := range []bool{false, true} {
		c := share(t, hostdir.Options{Xattr: true})
		want := uint32(0o646)
		if acl {
			// user::rwx group::rwx other::---, and no umask then.
			err := unix.Setxattr(c.dir, "system.posix_acl_default", aclBytes(aclEntry{1, 7, 0}, aclEntry{4, 7, 0}, aclEntry{32, 0, 0}), 0)
			if err != nil {
				t.Logf("no ACLs here: %v", err)
				continue
			}
			want = 0o660
		}
		file := fuse.CreateIn{InHeader: c.header(root), Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o666, Umask: 0o020}
		var out fuse.CreateOut
		require.Equal(t, fuse.OK, c.fs.Create(nil, &file, "file", &out))
		assert.Equal(t, fmt.Sprintf("%o", want), fmt.Sprintf("%o", out.Mode&0o7777), "create, ACL %t", acl)
		var e fuse.EntryOut
		require.Equal(t, fuse.OK, c.fs.Mknod(nil, &fuse.MknodIn{InHeader: c.header(root), Mode: unix.S_IFIFO | 0o666, Umask: 0o020}, "fifo", &e))
		assert.Equal(t, fmt.Sprintf("%o", want), fmt.Sprintf("%o", e.Mode&0o7777), "mknod, ACL %t", acl)
		require.Equal(t, fuse.OK, c.fs.Mkdir(nil, &fuse.MkdirIn{InHeader: c.header(root), Mode: 0o1666, Umask: 0o020}, "dir", &e))
		assert.Equal(t, fmt.Sprintf("%o", want|0o1000), fmt.Sprintf("%o", e.Mode&0o7777), "mkdir, ACL %t", acl)
	}
}

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

func aclBytes(entries ...aclEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

func TestSetAttr(t *testing.T) {
	c := share(t, hostdir.Options{})
	c.put("d/file", "text")
	require.NoError(t, os.Symlink("file", c.dir+"/d/link"))
	for _, path := range []string{"d", "d/file", "d/link"} {
		node := c.node(path)
		at, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_ATIME | fuse.FATTR_MTIME,
			Atime: 100, Atimensec: 5, Mtime: ^uint64(0), Mtimensec: 7})
		require.Equal(t, fuse.OK, st, path)
		assert.EqualValues(t, 100, at.Atime)
		assert.EqualValues(t, 5, at.Atimensec)
		assert.Equal(t, ^uint64(0), at.Mtime, "the second before 1970")
		before := time.Now().Add(-time.Second).Unix()
		at, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW, Mtimensec: 1 << 31})
		require.Equal(t, fuse.OK, st)
		assert.EqualValues(t, 100, at.Atime)
		assert.GreaterOrEqual(t, int64(at.Mtime), before)
		_, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_MTIME, Mtimensec: unix.UTIME_NOW})
		assert.Equal(t, fuse.EINVAL, st)
		_, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_UID, Owner: fuse.Owner{Uid: ^uint32(0)}})
		assert.Equal(t, fuse.EINVAL, st)
		if os.Geteuid() == 0 {
			at, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(node), Valid: fuse.FATTR_UID | fuse.FATTR_GID, Owner: fuse.Owner{Uid: 4711, Gid: 4712}})
			require.Equal(t, fuse.OK, st, path)
			assert.Equal(t, fuse.Owner{Uid: 4711, Gid: 4712}, at.Owner)
			assert.EqualValues(t, 4711, c.hostStat(path).Uid)
		}
	}
	_, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(c.node("d")), Valid: fuse.FATTR_SIZE})
	assert.Equal(t, fuse.EISDIR, st)
	_, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(c.node("d/file")), Valid: fuse.FATTR_SIZE, Size: 1 << 63})
	assert.Equal(t, fuse.EINVAL, st)
	var out fuse.StatxOut
	require.Equal(t, fuse.OK, c.fs.Statx(nil, &fuse.StatxIn{InHeader: c.header(c.node("d/file")), SxMask: unix.STATX_ALL}, &out))
	assert.EqualValues(t, 4, out.Size)
	assert.Equal(t, c.walk("d/file").Ino, out.Ino)
}

func TestXattr(t *testing.T) {
	c := share(t, hostdir.Options{Xattr: true, Owner: &hostdir.Owner{UID: 12, GID: 13}})
	c.put("file", "text")
	if err := unix.Setxattr(c.dir+"/file", "user.host", []byte("value"), 0); err != nil {
		t.Skipf("no extended attributes here: %v", err)
	}
	if os.Geteuid() == 0 {
		require.NoError(t, unix.Setxattr(c.dir+"/file", "trusted.overlay.opaque", []byte("y"), 0))
		require.NoError(t, unix.Setxattr(c.dir+"/file", "security.other", []byte("y"), 0))
	}
	node := c.node("file")
	h := c.header(node)
	get := func(name string, n int) (string, fuse.Status) {
		buf := make([]byte, n)
		size, st := c.fs.GetXAttr(nil, &h, name, buf)
		if st != fuse.OK || n == 0 {
			return fmt.Sprint(size), st
		}
		return string(buf[:size]), st
	}
	set := func(name, value string, flags uint32) fuse.Status {
		return c.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: uint32(len(value)), Flags: flags}, name, []byte(value))
	}
	list := func(n int) (string, fuse.Status) {
		buf := make([]byte, n)
		size, st := c.fs.ListXAttr(nil, &h, buf)
		if n == 0 || st != fuse.OK {
			return fmt.Sprint(size), st
		}
		return strings.ReplaceAll(string(buf[:size]), "\x00", " "), st
	}
	for _, step := range []struct {
		do   func() (string, fuse.Status)
		want string
		st   fuse.Status
	}{
		{func() (string, fuse.Status) { return get("user.host", 64) }, "value", fuse.OK},
		{func() (string, fuse.Status) { return get("user.host", 0) }, "5", fuse.OK},
		{func() (string, fuse.Status) { return get("user.host", 2) }, "5", fuse.ERANGE},
		{func() (string, fuse.Status) { return get("user.none", 64) }, "0", fuse.ENODATA},
		{func() (string, fuse.Status) { return get("trusted.overlay.opaque", 64) }, "0", fuse.ENODATA},
		{func() (string, fuse.Status) { return get("security.other", 64) }, "0", fuse.ENODATA},
		{func() (string, fuse.Status) { return get("security.selinux", 64) }, "0", fuse.ENODATA},
		{func() (string, fuse.Status) { return list(0) }, "10", fuse.OK},
		{func() (string, fuse.Status) { return list(4) }, "10", fuse.ERANGE},
		{func() (string, fuse.Status) { return list(64) }, "user.host ", fuse.OK},
		{func() (string, fuse.Status) { return "", set("user.mine", "1", unix.XATTR_CREATE) }, "", fuse.OK},
		{func() (string, fuse.Status) { return "", set("user.mine", "2", unix.XATTR_CREATE) }, "", eexist},
		{func() (string, fuse.Status) { return "", set("user.mine", "2", 8) }, "", fuse.EINVAL},
		{func() (string, fuse.Status) { return "", set("user.none", "2", unix.XATTR_REPLACE) }, "", fuse.ENODATA},
		{func() (string, fuse.Status) { return get("user.mine", 64) }, "1", fuse.OK},
		{func() (string, fuse.Status) { return "", set("security.capability", "x", 0) }, "", enotsup},
		{func() (string, fuse.Status) { return "", set("trusted.overlay.opaque", "x", 0) }, "", enotsup},
		{func() (string, fuse.Status) { return "", c.fs.RemoveXAttr(nil, &h, "trusted.overlay.opaque") }, "", enotsup},
		{func() (string, fuse.Status) { return "", c.fs.RemoveXAttr(nil, &h, "user.mine") }, "", fuse.OK},
		{func() (string, fuse.Status) { return "", set("user.big", strings.Repeat("x", 1<<17), 0) }, "", fuse.Status(unix.E2BIG)},
		{func() (string, fuse.Status) {
			return "", c.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 50}, "user.short", []byte("x"))
		}, "", fuse.EINVAL},
	} {
		got, st := step.do()
		assert.Equal(t, step.st, st, "%q", got)
		assert.Equal(t, step.want, got)
	}
	// The users and groups in an ACL are the guest's to the guest, and the host's
	// on the host.
	acl := aclBytes(aclEntry{1, 6, ^uint32(0)}, aclEntry{2, 4, 12}, aclEntry{4, 4, ^uint32(0)}, aclEntry{8, 4, 13}, aclEntry{8, 4, 4711}, aclEntry{16, 4, ^uint32(0)}, aclEntry{32, 4, ^uint32(0)})
	if st := set("system.posix_acl_access", string(acl), 0); st != enotsup {
		require.Equal(t, fuse.OK, st)
		buf := make([]byte, 256)
		n, err := unix.Getxattr(c.dir+"/file", "system.posix_acl_access", buf)
		require.NoError(t, err)
		assert.EqualValues(t, os.Geteuid(), binary.LittleEndian.Uint32(buf[4+8+4:n]))
		back, st := get("system.posix_acl_access", 256)
		require.Equal(t, fuse.OK, st)
		ids := map[uint32]bool{}
		for i := 4; i < len(back); i += 8 {
			ids[binary.LittleEndian.Uint32([]byte(back)[i+4:])] = true
		}
		assert.Equal(t, map[uint32]bool{^uint32(0): true, 12: true, 13: true, 4711: true}, ids)
	}
	none := share(t, hostdir.Options{Dir: c.dir})
	h = none.header(none.node("file"))
	_, st := none.fs.GetXAttr(nil, &h, "user.host", nil)
	assert.Equal(t, fuse.ENOSYS, st)
	_, st = none.fs.ListXAttr(nil, &h, nil)
	assert.Equal(t, fuse.ENOSYS, st)
	assert.Equal(t, enotsup, none.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Size: 1}, "user.a", []byte("x")))
}

func TestLocks(t *testing.T) {
	c := share(t, hostdir.Options{Locks: hostdir.LocksHost, Limits: hostdir.Limits{MaxLockWaits: 1}})
	c.put("file", "text")
	node := c.node("file")
	fh := c.opened(node, unix.O_RDWR)
	other, err := os.OpenFile(c.dir+"/file", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	host := func(kind int16, start, n int64) error {
		return unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: n})
	}
	lk := func(owner uint64, kind uint32, start, end uint64) *fuse.LkIn {
		return &fuse.LkIn{InHeader: c.header(node), Fh: fh, Owner: owner, Lk: fuse.FileLock{Typ: kind, Start: start, End: end}}
	}
	require.NoError(t, host(unix.F_WRLCK, 10, 10))
	assert.Equal(t, fuse.EAGAIN, c.fs.SetLk(nil, lk(1, unix.F_WRLCK, 15, 15)))
	assert.Equal(t, fuse.OK, c.fs.SetLk(nil, lk(1, unix.F_WRLCK, 20, 29)))
	assert.Equal(t, fuse.EAGAIN, c.fs.SetLk(nil, lk(2, unix.F_RDLCK, 25, 1<<63-1)))
	assert.Error(t, host(unix.F_RDLCK, 20, 1))
	var out fuse.LkOut
	require.Equal(t, fuse.OK, c.fs.GetLk(nil, lk(2, unix.F_WRLCK, 0, 1<<63-1), &out))
	assert.EqualValues(t, unix.F_WRLCK, out.Lk.Typ)
	assert.EqualValues(t, 10, out.Lk.Start)
	assert.EqualValues(t, 19, out.Lk.End)
	require.Equal(t, fuse.OK, c.fs.GetLk(nil, lk(1, unix.F_WRLCK, 20, 29), &out))
	assert.EqualValues(t, unix.F_UNLCK, out.Lk.Typ, "one's own")
	for name, bad := range map[string]*fuse.LkIn{
		"kind": lk(1, 77, 0, 1), "backwards": lk(1, unix.F_WRLCK, 5, 4), "start": lk(1, unix.F_WRLCK, 1<<63, 1<<63), "end": lk(1, unix.F_WRLCK, 0, 1<<64-1),
	} {
		assert.Equal(t, fuse.EINVAL, c.fs.SetLk(nil, bad), name)
		assert.Equal(t, fuse.EINVAL, c.fs.SetLkw(nil, bad), name)
	}
	assert.Equal(t, fuse.OK, c.fs.SetLk(nil, lk(99, unix.F_UNLCK, 0, 1<<63-1)), "of one who has none")

	// A wait ends when the lock is free, when it is cancelled, and when all are.
	ended := func(cancel chan struct{}, in *fuse.LkIn) chan fuse.Status {
		done := make(chan fuse.Status, 1)
		go func() {
			st := enolck
			for st == enolck { // another one was waiting
				st = c.fs.SetLkw(cancel, in)
			}
			done <- st
		}()
		return done
	}
	cancel := make(chan struct{})
	done := ended(cancel, lk(1, unix.F_WRLCK, 12, 12))
	gone := make(chan struct{})
	close(gone)
	require.Eventually(t, func() bool { return c.fs.SetLkw(gone, lk(3, unix.F_WRLCK, 13, 13)) == enolck }, 5*time.Second, time.Millisecond,
		"a second one may not wait")
	close(cancel)
	assert.Equal(t, fuse.EINTR, <-done)
	done = ended(nil, lk(1, unix.F_WRLCK, 12, 12))
	require.NoError(t, host(unix.F_UNLCK, 0, 0))
	assert.Equal(t, fuse.OK, <-done)
	require.Error(t, host(unix.F_WRLCK, 12, 1))
	done = ended(nil, lk(4, unix.F_WRLCK, 12, 12))
	require.Eventually(t, func() bool { c.fs.Interrupt(); return len(done) == 1 }, 5*time.Second, time.Millisecond)
	assert.Equal(t, fuse.EINTR, <-done)

	// A close lets go of what its owner had, and of no other's.
	assert.Equal(t, fuse.OK, c.fs.SetLk(nil, lk(5, unix.F_WRLCK, 40, 40)))
	assert.Equal(t, fuse.OK, c.fs.Flush(nil, &fuse.FlushIn{InHeader: c.header(node), Fh: fh, LockOwner: 1}))
	assert.NoError(t, host(unix.F_WRLCK, 12, 1))
	assert.Error(t, host(unix.F_WRLCK, 40, 1))

	// flock is the handle's.
	second := c.opened(node, unix.O_RDONLY)
	flock := func(fh uint64, kind uint32) fuse.Status {
		return c.fs.SetLk(nil, &fuse.LkIn{InHeader: c.header(node), Fh: fh, LkFlags: fuse.LK_FLOCK, Lk: fuse.FileLock{Typ: kind}})
	}
	assert.Equal(t, fuse.OK, flock(fh, unix.F_RDLCK))
	assert.Equal(t, fuse.OK, flock(second, unix.F_RDLCK))
	assert.Equal(t, fuse.EAGAIN, flock(second, unix.F_WRLCK))
	assert.Equal(t, unix.EWOULDBLOCK, unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	assert.Equal(t, fuse.OK, flock(second, unix.F_UNLCK))
	c.release(node, fh)
	c.release(node, second)
	assert.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	assert.NoError(t, host(unix.F_WRLCK, 40, 1), "the last handle takes all locks with it")
	assert.Zero(t, c.fs.Stats().Handles)

	guests := share(t, hostdir.Options{Dir: c.dir})
	assert.Equal(t, fuse.ENOSYS, guests.fs.SetLk(nil, lk(1, unix.F_WRLCK, 0, 1)))
}

// Files of a share that root runs belong to whom the guest says, and nothing of
// the thread that made them stays changed.
func TestOwnersOfNewFiles(t *testing.T) {
	needRoot(t)
	c := share(t, hostdir.Options{})
	require.NoError(t, os.Chmod(c.dir, 0o755)) // not the caller's to change: the guest's kernel would have refused
	c.caller.Uid, c.caller.Gid = 4711, 4712
	made := func() {
		out, st := c.create(root, "file", unix.O_RDWR, 0o6755)
		require.Equal(t, fuse.OK, st)
		c.release(out.NodeId, out.Fh)
		_, st = c.mkdir(root, "dir", 0o700)
		require.Equal(t, fuse.OK, st)
		_, st = c.mknod(root, "fifo", unix.S_IFIFO|0o644)
		require.Equal(t, fuse.OK, st)
		_, st = c.symlink(root, "link", "text")
		require.Equal(t, fuse.OK, st)
	}
	made()
	for _, name := range []string{"file", "dir", "fifo", "link"} {
		st := c.hostStat(name)
		assert.Equal(t, []uint32{4711, 4712}, []uint32{st.Uid, st.Gid}, name)
		at := c.walk(name)
		assert.Equal(t, fuse.Owner{Uid: 4711, Gid: 4712}, at.Owner)
		require.NoError(t, os.Remove(c.dir+"/"+name))
	}
	// In a set-group-ID directory they take its group, and no rights of it.
	require.NoError(t, unix.Chown(c.dir, 0, 50))
	require.NoError(t, unix.Chmod(c.dir, 0o2777))
	made()
	st := c.hostStat("file")
	assert.Equal(t, []uint32{4711, 50}, []uint32{st.Uid, st.Gid})
	assert.EqualValues(t, 0o4755, st.Mode&0o7777)
	assert.EqualValues(t, 0o2700, c.hostStat("dir").Mode&0o7777)
	c.caller.Uid, c.caller.Gid = ^uint32(0), ^uint32(0) // a user without a number
	out, got := c.create(root, "nobody", unix.O_RDWR, 0o6755)
	require.Equal(t, fuse.OK, got)
	assert.EqualValues(t, 0o755, out.Mode&0o7777)
	for range 50 {
		uid, err := unix.SetfsuidRetUid(-1)
		require.NoError(t, err)
		require.Zero(t, uid)
	}
}

// The tests once more, as a user who is nobody: there must be no need for root.
func TestUnprivileged(t *testing.T) {
	needRoot(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	dir, err := os.MkdirTemp("/tmp", "hostdir")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chown(dir, 65534, 65534))
	bin, err := os.ReadFile(exe)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/hostdir.test", bin, 0o755))
	cmd := exec.Command(dir+"/hostdir.test", "-test.run", "^Test", "-test.v", "-test.short", "-test.skip", "Unprivileged|OverMount|Cycle|HundredThousand|Race|Told|TheirNode|StayWhat|InVain", "-test.timeout=120s")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOSTDIR_UNPRIVILEGED=1")
	cmd.SysProcAttr = unprivileged(65534)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestOwnerMapping")
	t.Logf("%d passed, %d skipped", strings.Count(string(out), "\n--- PASS"), strings.Count(string(out), "\n--- SKIP"))
}

// Files of vole's own user appear as Owner's and are given to it; what would
// lend that user's rights to others is not made.
func TestOwnerMapping(t *testing.T) {
	c := share(t, hostdir.Options{Owner: &hostdir.Owner{UID: 7, GID: 8}})
	c.put("file", "text")
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	at := c.walk("file")
	assert.Equal(t, fuse.Owner{Uid: 7, Gid: 8}, at.Owner)
	out, st := c.setattr(fuse.SetAttrInCommon{InHeader: c.header(at.NodeId), Valid: fuse.FATTR_UID | fuse.FATTR_GID, Owner: fuse.Owner{Uid: 7, Gid: 8}})
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, fuse.Owner{Uid: 7, Gid: 8}, out.Owner)
	assert.Equal(t, []uint32{uid, gid}, []uint32{c.hostStat("file").Uid, c.hostStat("file").Gid})
	_, st = c.setattr(fuse.SetAttrInCommon{InHeader: c.header(at.NodeId), Valid: fuse.FATTR_UID, Owner: fuse.Owner{Uid: 4711}})
	if uid != 0 {
		assert.Equal(t, fuse.EPERM, st)
	}
	c.caller.Uid, c.caller.Gid = 7, 8
	mine, st := c.create(root, "mine", unix.O_RDWR, 0o6755)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, fuse.Owner{Uid: 7, Gid: 8}, mine.Owner)
	assert.Equal(t, uid, c.hostStat("mine").Uid)
	if c.hostStat("mine").Gid == gid {
		assert.EqualValues(t, 0o6755, mine.Mode&0o7777)
	}
	if uid == 0 {
		return
	}
	c.caller.Uid, c.caller.Gid = 4711, 4711
	theirs, st := c.create(root, "theirs", unix.O_RDWR, 0o6755)
	require.Equal(t, fuse.OK, st)
	assert.Equal(t, fuse.Owner{Uid: 7, Gid: 8}, theirs.Owner)
	assert.EqualValues(t, 0o755, theirs.Mode&0o7777)
}
