package fs_test

import (
	"bytes"
	"encoding/binary"
	"log"
	"log/slog"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// quiet asserts that the library writes nothing meanwhile: neither to the device's
// logger, nor, as it does for some of what it refuses, to the process's.
func quiet(t testing.TB) *slog.Logger {
	var own, global bytes.Buffer
	log.SetOutput(&global)
	t.Cleanup(func() {
		log.SetOutput(log.Default().Writer())
		assert.Empty(t, own.String())
		assert.Empty(t, global.String())
	})
	return slog.New(slog.NewTextHandler(&own, nil))
}

// TestMalformed: requests that can't be meant get an error, and nothing but that.
func TestMalformed(t *testing.T) {
	long := func(n int) []byte { return bytes.Repeat([]byte{'x'}, n) }
	for name, tc := range map[string]struct {
		op   uint32
		body []byte
		out  int
		want syscall.Errno
	}{
		"unknown opcode":            {4711, nil, 100, syscall.ENOSYS},
		"opcode 0":                  {0, nil, 100, syscall.ENOSYS},
		"the last opcode and one":   {opLast + 1, nil, 100, syscall.ENOSYS},
		"the largest opcode":        {^uint32(0), nil, 100, syscall.ENOSYS},
		"an opcode not served":      {opBmap, words(uint64(0), 0, 0), 8, syscall.ENOSYS},
		"short fixed part":          {opGetattr, words(0, 0), attrSize, syscall.EINVAL},
		"no fixed part":             {opRead, nil, 4096, syscall.EINVAL},
		"short reply":               {opGetattr, words(0, 0, uint64(0)), attrSize - 1, syscall.EINVAL},
		"no room for data":          {opRead, readIn(1, 0, 4096), 4095, syscall.EINVAL},
		"a read of 4 GiB":           {opRead, readIn(1, 0, -1), 4096, syscall.EINVAL},
		"a read of more than 1 MiB": {opRead, readIn(1, 0, fs.MaxData+1), fs.MaxData + 1, syscall.EINVAL},
		"a write without data":      {opWrite, readIn(1, 0, 100), 8, syscall.EINVAL},
		"a write of less":           {opWrite, append(readIn(1, 0, 10), long(20)...), 8, syscall.EINVAL},
		"a write of more":           {opWrite, append(readIn(1, 0, 30), long(20)...), 8, syscall.EINVAL},
		"a write of too much":       {opWrite, append(readIn(1, 0, fs.MaxData+1), long(fs.MaxData+1)...), 8, syscall.EINVAL},
		"a long name":               {opLookup, long(80 << 10), entrySize, syscall.E2BIG},
		"a name without an end":     {opLookup, long(60 << 10), entrySize, syscall.ENOENT},
		"no name":                   {opLookup, nil, entrySize, syscall.ENOENT},
		"one name of two":           {opSymlink, words("one"), entrySize, syscall.EIO},
		"an attribute without end":  {opSetxattr, words(4, 0, long(8)), 0, syscall.EINVAL},
		"a list of 4 GiB":           {opReaddir, readIn(1, 0, -1), 4096, syscall.EINVAL},
		"the library's own name":    {opLookup, words(".go-fuse-epoll-hack"), entrySize, syscall.ENOENT},
		"its creation":              {opCreate, words(0, 0, 0, 0, ".go-fuse-epoll-hack"), createSize, syscall.ENOENT},
		"a short syncfs":            {opSyncfs, nil, 0, syscall.EINVAL},
		"an ioctl of 4 GiB":         {opIoctl, words(uint64(1), 0, 1, uint64(0), 0, -1), 4096, syscall.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				g := mounted(t, open, newTree(), fs.Options{Logger: quiet(t)})
				errno, out := g.call(tc.op, 1, tc.body, tc.out)
				assert.Equal(t, tc.want, errno)
				assert.Empty(t, out)
				errno, _ = g.call(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
				assert.Zero(t, errno, "the device goes on")
				errno, _ = g.call(opGetattr, ^uint64(0), words(0, 0, uint64(0)), attrSize)
				assert.Equal(t, syscall.ESTALE, errno, "the library's own node")
			})
		})
	}
}

// TestNoReply: a request that can't be answered is given back empty.
func TestNoReply(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Logger: quiet(t)})
		getattr := words(0, 0, uint64(0))
		for name, tc := range map[string]struct{ out, in []virtiotest.Buffer }{
			"no header":         {nil, []virtiotest.Buffer{g.In(200)}},
			"half a header":     {[]virtiotest.Buffer{g.Out(make([]byte, 39))}, []virtiotest.Buffer{g.In(200)}},
			"no buffers":        {[]virtiotest.Buffer{g.Out(nil)}, nil},
			"no room at all":    {[]virtiotest.Buffer{g.Out(g.message(opGetattr, 1, getattr))}, nil},
			"no room":           {[]virtiotest.Buffer{g.Out(g.message(opGetattr, 1, getattr))}, []virtiotest.Buffer{g.In(15)}},
			"no room to refuse": {[]virtiotest.Buffer{g.Out(g.message(4711, 1, getattr))}, []virtiotest.Buffer{g.In(15)}},
			"a notify reply":    {[]virtiotest.Buffer{g.Out(g.message(opNotifyReply, 1, make([]byte, 100)))}, []virtiotest.Buffer{g.In(200)}},
			"a short forget":    {[]virtiotest.Buffer{g.Out(g.message(opForget, 1, nil))}, []virtiotest.Buffer{g.In(200)}},
			"a batch of none":   {[]virtiotest.Buffer{g.Out(g.message(opBatchForget, 1, words(-1, 0)))}, []virtiotest.Buffer{g.In(200)}},
		} {
			for _, q := range g.Queues {
				p := g.sendBuffers(q, tc.out, tc.in)
				assert.Equal(t, virtiotest.Used{Head: uint32(p.head)}, q.Next(), name)
			}
		}
		errno, _ := g.call(opGetattr, 1, getattr, attrSize)
		assert.Zero(t, errno)
	})
}

// TestLengthOfHeader: the length in the header is the request's.
func TestLengthOfHeader(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Logger: quiet(t)})
		for _, n := range []uint32{0, 39, 40, 55, 57, 1 << 20, ^uint32(0)} {
			m := g.message(opGetattr, 1, words(0, 0, uint64(0)))
			binary.LittleEndian.PutUint32(m, n)
			errno, _ := g.sendBuffers(g.rq, []virtiotest.Buffer{g.Out(m)}, []virtiotest.Buffer{g.In(200)}).end()
			assert.Equal(t, syscall.EINVAL, errno, "%d", n)
		}
	})
}

// TestLongerSetxattr: with SETXATTR_EXT its fixed part is longer, and has to be
// there.
func TestLongerSetxattr(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		tr := newTree()
		tr.options.ExtraCapabilities = fuse.CAP_SETXATTR_EXT
		g := mounted(t, open, tr, fs.Options{Logger: quiet(t)})
		errno, _ := g.call(opSetxattr, 1, words(1, 0, "a", []byte("v")), 0)
		assert.Equal(t, syscall.EINVAL, errno)
		errno, _ = g.call(opSetxattr, 1, words(1, 0, 0, 0, "a", []byte("v")), 0)
		assert.Zero(t, errno)
		errno, b := g.call(opGetxattr, 1, words(10, 0, "a"), 10)
		assert.Zero(t, errno)
		assert.Equal(t, "v", string(b))
	})
}

// TestExtensions: what says that it has extensions behind it has none, since none
// were negotiated.
func TestExtensions(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Logger: quiet(t)})
		fh := g.create("file")
		for _, n := range []uint16{1, 2, 0xffff} {
			m := g.message(opWrite, fh, append(readIn(fh, 0, 64), pattern(64, 1)...))
			binary.LittleEndian.PutUint16(m[36:], n)
			errno, _ := g.sendBuffers(g.rq, []virtiotest.Buffer{g.Out(m)}, []virtiotest.Buffer{g.In(24)}).end()
			require.Zero(t, errno)
			errno, got := g.read(fh, 0, 100)
			require.Zero(t, errno)
			assert.Equal(t, pattern(64, 1), got)
		}
	})
}

// TestRequestIsReadOnce: what the guest changes while a request is under way is
// not seen, the data of a WRITE excepted.
func TestRequestIsReadOnce(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		m := g.Out(g.message(opMkdir, 1, words(0o755, 0, "name")))
		inside, release := g.block("mkdir")
		p := g.sendBuffers(g.rq, []virtiotest.Buffer{m}, []virtiotest.Buffer{g.In(16 + entrySize)})
		g.Until("it is inside", func() bool { return inside() == 1 })
		clear(g.Bytes(m))
		release()
		errno, _ := p.end()
		assert.Zero(t, errno)
		g.tree.mu.Lock()
		defer g.tree.mu.Unlock()
		assert.Contains(t, g.tree.nodes[1].entries, "name")
	})
}

// TestSameBufferTwice: a chain may have a buffer more than once, and the same one
// to read and to write.
func TestSameBufferTwice(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		fh := g.create("file")
		page := g.Out(pattern(4096, 5))
		list := []virtiotest.Buffer{g.Out(g.message(opWrite, fh, readIn(fh, 0, 100*4096)))}
		binary.LittleEndian.PutUint32(g.Bytes(list[0]), 80+100*4096)
		for range 100 {
			list = append(list, page)
		}
		errno, _ := g.sendBuffers(g.rq, list, []virtiotest.Buffer{g.In(24)}).end()
		require.Zero(t, errno)
		errno, got := g.read(fh, 0, 100*4096)
		require.Zero(t, errno)
		assert.True(t, bytes.Equal(bytes.Repeat(pattern(4096, 5), 100), got))

		m := g.Out(g.message(opRead, fh, readIn(fh, 0, 64)))
		same := m
		same.Write = true
		errno, got = g.sendBuffers(g.rq, []virtiotest.Buffer{m}, []virtiotest.Buffer{same}).end()
		require.Zero(t, errno)
		assert.Equal(t, pattern(4096, 5)[:64], got)
	})
}

// TestFileSystemAtFault: replies that a file system gets wrong do not reach the
// guest as they are.
func TestFileSystemAtFault(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		tr := newTree()
		dev, err := fs.New(&faulty{tr}, fs.Options{Tag: "t"})
		require.NoError(t, err)
		g := &guest{Driver: open(t, dev), t: t, dev: dev, tree: tr}
		g.boot(0)
		g.mount()
		errno, out := g.call(opRead, 1, readIn(1, 0, 100), 100)
		assert.True(t, errno == syscall.EIO || len(out) <= 100, "%v, %d bytes", errno, len(out))
		errno, _ = g.call(opReadlink, 1, nil, 8000)
		assert.Equal(t, syscall.EIO, errno)
		errno, _ = g.call(opGetxattr, 1, words(100, 0, "user.x"), 100)
		assert.Equal(t, syscall.EIO, errno)
		errno, _ = g.call(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
		assert.Zero(t, errno)
	})
}

// faulty is a file system that says that there is more than it was asked for.
type faulty struct{ *tree }

func (*faulty) Read(<-chan struct{}, *fuse.ReadIn, []byte) (fuse.ReadResult, fuse.Status) {
	return fuse.ReadResultData(make([]byte, 1<<20)), fuse.OK
}

func (*faulty) Readlink(<-chan struct{}, *fuse.InHeader) ([]byte, fuse.Status) {
	return make([]byte, 5000), fuse.OK
}

func (*faulty) GetXAttr(_ <-chan struct{}, _ *fuse.InHeader, _ string, _ []byte) (uint32, fuse.Status) {
	return 1 << 30, fuse.OK
}
