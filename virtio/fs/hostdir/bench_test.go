package hostdir_test

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

func BenchmarkRequests(b *testing.B) {
	c := share(b, hostdir.Options{})
	c.put("dir/file", string(make([]byte, 1<<20)))
	dir := c.node("dir")
	file := c.node("dir/file")
	fh := c.opened(file, unix.O_RDWR)
	h := c.header(dir)
	buf := make([]byte, 1<<20)
	var entry fuse.EntryOut
	var attr fuse.AttrOut
	get := fuse.GetAttrIn{InHeader: c.header(file)}
	for _, bench := range []struct {
		name  string
		bytes int64
		do    func() fuse.Status
	}{
		{"lookup", 0, func() fuse.Status { return c.fs.Lookup(nil, &h, "file", &entry) }},
		{"getattr", 0, func() fuse.Status { return c.fs.GetAttr(nil, &get, &attr) }},
		{"absent", 0, func() fuse.Status { return c.fs.Lookup(nil, &h, "none", &entry) }},
		{"open-release", 0, func() fuse.Status {
			out, st := c.open(file, unix.O_RDONLY)
			c.release(file, out.Fh)
			return st
		}},
		{"read-4K", 4096, func() fuse.Status { return readInto(c, file, fh, buf[:4096]) }},
		{"read-1M", 1 << 20, func() fuse.Status { return readInto(c, file, fh, buf) }},
		{"write-4K", 4096, func() fuse.Status {
			_, st := c.fs.Write(nil, &fuse.WriteIn{InHeader: c.header(file), Fh: fh, Size: 4096}, buf[:4096])
			return st
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(bench.bytes)
			for b.Loop() {
				require.Equal(b, fuse.OK, bench.do())
			}
		})
	}
}

func readInto(c *client, node, fh uint64, buf []byte) fuse.Status {
	res, st := c.fs.Read(nil, &fuse.ReadIn{InHeader: c.header(node), Fh: fh, Size: uint32(len(buf))}, buf)
	if st != fuse.OK {
		return st
	}
	_, st = res.Bytes(buf)
	res.Done()
	return st
}
