package fs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestConfigSpace: VIRTIO 1.2, section 5.11.4, and rule 5.
func TestConfigSpace(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, tag := range []string{"a", "vole-root", strings.Repeat("t", fs.MaxTag), "größe"} {
			dev, err := fs.New(newTree(), fs.Options{Tag: tag, Queues: 3})
			require.NoError(t, err)
			d := open(t, dev)
			b := make([]byte, 44)
			d.Regs.ReadConfig(0, b[:36])
			d.Regs.ReadConfig(36, b[36:40])
			d.Regs.ReadConfig(40, b[40:])
			assert.Equal(t, tag, strings.TrimRight(string(b[:36]), "\x00"))
			assert.EqualValues(t, 3, binary.LittleEndian.Uint32(b[36:]))
			assert.Zero(t, binary.LittleEndian.Uint32(b[40:]), "there is no notification queue")
			d.Regs.WriteConfig(0, []byte{1, 2, 3, 4})
			again := make([]byte, 4)
			d.Regs.ReadConfig(0, again)
			assert.Equal(t, b[:4], again)
			assert.Equal(t, virtio.TypeFS, d.Regs.Type())
			for i, n := range []uint16{128, 512, 512, 512, 0} {
				assert.Equal(t, n, d.Regs.QueueMax(i), "queue %d", i)
			}
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		o    fs.Options
		want string
	}{
		"no tag":               {fs.Options{}, "empty"},
		"a long tag":           {fs.Options{Tag: strings.Repeat("t", 37)}, "37 bytes"},
		"a NUL in the tag":     {fs.Options{Tag: "a\x00b"}, "printed"},
		"a newline in the tag": {fs.Options{Tag: "a\n"}, "printed"},
		"no UTF-8":             {fs.Options{Tag: "\xff"}, "printed"},
		"negative queues":      {fs.Options{Tag: "t", Queues: -1}, "-1 queues"},
		"too many workers":     {fs.Options{Tag: "t", Workers: 65}, "65 workers"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree()
			_, err := fs.New(tr, tc.o)
			require.ErrorIs(t, err, fs.ErrConfig)
			assert.Contains(t, err.Error(), tc.want)
			assert.Equal(t, 1, tr.closes, "the file system is New's")
		})
	}
}

// TestNegotiation: what INIT offers and asks for.
func TestNegotiation(t *testing.T) {
	for name, tc := range map[string]struct {
		options       fuse.MountOptions
		with, without uint64
	}{
		"as it is": {
			with: fuse.CAP_ASYNC_READ | fuse.CAP_BIG_WRITES | fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_PARALLEL_DIROPS |
				fuse.CAP_MAX_PAGES | fuse.CAP_AUTO_INVAL_DATA | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_ASYNC_DIO,
			without: fuse.CAP_WRITEBACK_CACHE | fuse.CAP_POSIX_LOCKS | fuse.CAP_FLOCK_LOCKS | fuse.CAP_PASSTHROUGH | fuse.CAP_ALLOW_IDMAP | fuse.CAP_CACHE_SYMLINKS,
		},
		"locks and symlinks": {
			options: fuse.MountOptions{EnableLocks: true, EnableSymlinkCaching: true},
			with:    fuse.CAP_POSIX_LOCKS | fuse.CAP_FLOCK_LOCKS | fuse.CAP_CACHE_SYMLINKS,
		},
		"no readdirplus, no invalidation": {
			options: fuse.MountOptions{DisableReadDirPlus: true, ExplicitDataCacheControl: true, DisabledCapabilities: fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_AUTO_INVAL_DATA},
			with:    fuse.CAP_EXPLICIT_INVAL_DATA,
			without: fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_AUTO_INVAL_DATA,
		},
		"what can't be": {
			options: fuse.MountOptions{
				Debug: true, SingleThreaded: true, IDMappedMount: true, MaxWrite: 4096,
				ExtraCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_OVER_IO_URING | fuse.CAP_SECURITY_CTX | fuse.CAP_HAS_INODE_DAX | fuse.CAP_MAP_ALIGNMENT | fuse.CAP_HANDLE_KILLPRIV_V2,
			},
			with:    fuse.CAP_HANDLE_KILLPRIV_V2,
			without: fuse.CAP_PASSTHROUGH | fuse.CAP_OVER_IO_URING | fuse.CAP_SECURITY_CTX | fuse.CAP_HAS_INODE_DAX | fuse.CAP_MAP_ALIGNMENT | fuse.CAP_ALLOW_IDMAP,
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree()
			tr.options = tc.options
			g := newGuest(t, virtiotest.OpenMMIO, tr, fs.Options{})
			errno, b := g.call(opInit, 0, words(7, 36, 128<<10, allFlags, allFlags, make([]byte, 44)), initOutSize)
			require.Zero(t, errno)
			le := binary.LittleEndian
			assert.EqualValues(t, 7, le.Uint32(b))
			flags := uint64(le.Uint32(b[12:])) | uint64(le.Uint32(b[32:]))<<32
			assert.Equal(t, tc.with, flags&tc.with, "missing")
			assert.Zero(t, flags&tc.without, "too much")
			assert.EqualValues(t, fs.MaxData, le.Uint32(b[20:]), "max_write")
			assert.EqualValues(t, fs.MaxData/4096, le.Uint16(b[28:]), "max_pages")
			assert.Greater(t, int(g.Regs.QueueMax(1)), fs.MaxData/4096+4, "Linux cuts max_pages to the ring")
			// One that takes nothing gets nothing.
			errno, _ = g.call(opDestroy, 0, nil, 0)
			require.Zero(t, errno)
			errno, b = g.call(opInit, 0, words(7, 31, 0, 0), initOutSize)
			require.Zero(t, errno)
			assert.Zero(t, le.Uint32(b[12:])&^fuse.CAP_INIT_EXT)
		})
	}
}

// TestFiles: requests of each shape, with what they carry both ways.
func TestFiles(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		fh := g.create("file")
		errno, out := g.call(opLookup, 1, words("file"), entrySize)
		require.Zero(t, errno)
		assert.Equal(t, fh, binary.LittleEndian.Uint64(out))
		errno, _ = g.call(opLookup, 1, words("none"), entrySize)
		assert.Equal(t, syscall.ENOENT, errno)

		for _, n := range []int{0, 1, 4095, 4096, 4097, 64 << 10, fs.MaxData} {
			data := pattern(n, uint32(n))
			errno, wrote := g.write(fh, 0, data)
			require.Zero(t, errno)
			assert.Equal(t, n, wrote)
			errno, got := g.read(fh, 0, n)
			require.Zero(t, errno)
			assert.True(t, bytes.Equal(data, got), "%d bytes", n)
		}
		errno, got := g.read(fh, fs.MaxData-10, 100)
		require.Zero(t, errno)
		assert.Len(t, got, 10, "the end of the file")
		errno, got = g.read(fh, fs.MaxData, 100)
		require.Zero(t, errno)
		assert.Empty(t, got)

		for i := range 30 {
			errno, _ := g.call(opMkdir, 1, words(0o755, 0, fmt.Sprintf("dir%d", i)), entrySize)
			require.Zero(t, errno)
		}
		errno, got = g.call(opReaddir, 1, readIn(1, 0, 4096), 4096)
		require.Zero(t, errno)
		list, err := fuse.ParseDirEntries(got)
		require.NoError(t, err)
		assert.Len(t, list, 31)
		errno, got = g.call(opReaddirplus, 1, readIn(1, 0, 1024), 1024)
		require.Zero(t, errno)
		some, entries, err := fuse.ParseDirLookupEntries(got)
		require.NoError(t, err)
		assert.Less(t, len(some), 10, "as many as have room")
		assert.Equal(t, fh, entries[0].NodeId)
		// More than is given in one piece: a reader asks again for what is behind.
		errno, got = g.call(opReaddir, 1, readIn(1, 0, 1<<20), 1<<20)
		require.Zero(t, errno)
		list, err = fuse.ParseDirEntries(got)
		require.NoError(t, err)
		assert.Len(t, list, 31)

		target := strings.Repeat("t", 4000)
		errno, out = g.call(opSymlink, 1, words("link", target), entrySize)
		require.Zero(t, errno)
		link := binary.LittleEndian.Uint64(out)
		errno, got = g.call(opReadlink, link, nil, 4095)
		require.Zero(t, errno)
		assert.Equal(t, target, string(got))
		errno, _ = g.call(opReadlink, link, nil, 100)
		assert.Equal(t, syscall.EIO, errno, "no room for it")

		value := pattern(64<<10, 3)
		errno, _ = g.call(opSetxattr, fh, words(len(value), 0, "user.big", value), 0)
		require.Zero(t, errno)
		errno, out = g.call(opGetxattr, fh, words(0, 0, "user.big"), 8)
		require.Zero(t, errno)
		assert.EqualValues(t, len(value), binary.LittleEndian.Uint32(out))
		for _, room := range []int{64 << 10, 1 << 20} {
			errno, got = g.call(opGetxattr, fh, words(room, 0, "user.big"), room)
			require.Zero(t, errno)
			assert.True(t, bytes.Equal(value, got))
		}
		errno, _ = g.call(opGetxattr, fh, words(10, 0, "user.big"), 10)
		assert.Equal(t, syscall.ERANGE, errno)
		errno, _ = g.call(opStatfs, 1, nil, 80)
		assert.Equal(t, syscall.ENOSYS, errno, "the file system has none")
	})
}

// TestFraming: a request and its reply may be cut anywhere (rule 13).
func TestFraming(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		fh := g.create("file")
		data := pattern(3000, 1)
		for _, cut := range []int{1, 7, 16, 17, 40, 41, 79, 80, 81, 1000} {
			m := g.message(opWrite, fh, append(readIn(fh, 0, len(data)), data...))
			p := g.sendBuffers(g.rq, pieces(g, m, cut), emptyPieces(g, 24, cut))
			errno, out := p.end()
			require.Zero(t, errno, "cut at %d", cut)
			assert.EqualValues(t, len(data), binary.LittleEndian.Uint32(out))
			m = g.message(opRead, fh, readIn(fh, 5, len(data)))
			p = g.sendBuffers(g.rq, pieces(g, m, cut), emptyPieces(g, 16+len(data), cut))
			errno, out = p.end()
			require.Zero(t, errno, "cut at %d", cut)
			assert.True(t, bytes.Equal(data[5:], out), "cut at %d", cut)
		}
	})
}

// pieces puts b into buffers of cut bytes: at most 250, the last one being larger.
func pieces(g *guest, b []byte, cut int) (list []virtiotest.Buffer) {
	for len(b) > cut && len(list) < 250 {
		list = append(list, g.Out(b[:cut]))
		b = b[cut:]
	}
	return append(list, g.Out(b))
}

func emptyPieces(g *guest, n, cut int) (list []virtiotest.Buffer) {
	for n > cut && len(list) < 250 {
		list = append(list, g.In(cut))
		n -= cut
	}
	return append(list, g.In(n))
}

// TestManyRequests: more at a time than there are workers, each answered once.
func TestManyRequests(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Queues: 2})
		fh := g.create("file")
		errno, _ := g.write(fh, 0, pattern(4096, 9))
		require.Zero(t, errno)
		for _, q := range []*virtiotest.Queue{g.Queues[1], g.Queues[2]} {
			g.rq = q
			all := map[uint16]pending{}
			for range 200 {
				p := g.send(opRead, fh, readIn(fh, 0, 4096), 4096)
				all[p.head] = p
			}
			for len(all) > 0 {
				u := q.Next()
				p, ok := all[uint16(u.Head)]
				require.True(t, ok, "a request that ended before")
				delete(all, uint16(u.Head))
				errno, b := p.reply(u)
				require.Zero(t, errno)
				assert.True(t, bytes.Equal(pattern(4096, 9), b))
			}
		}
		assert.EqualValues(t, 400, g.counter("read"))
		assert.EqualValues(t, 400*4096, g.counter("bytes read"))
		assert.EqualValues(t, 4096, g.counter("bytes written"))
		assert.EqualValues(t, 1, g.counter("create"))
		assert.Zero(t, g.counter("errors"))
	})
}

// TestHiprio: FORGET, BATCH_FORGET and INTERRUPT have no reply (5.11.6.2), and
// nothing else is for that queue.
func TestHiprio(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		send := func(op uint32, node uint64, body []byte, in ...virtiotest.Buffer) virtiotest.Used {
			p := g.sendBuffers(g.hi, []virtiotest.Buffer{g.Out(g.message(op, node, body))}, in)
			u := g.hi.Next()
			assert.EqualValues(t, p.head, u.Head)
			return u
		}
		assert.Zero(t, send(opForget, 7, words(uint64(3))).Len)
		assert.Zero(t, send(opForget, 7, words(uint64(1)), g.In(64)).Len)
		batch := words(100, 0)
		for i := range uint64(100) {
			batch = append(batch, words(100+i, i)...)
		}
		assert.Zero(t, send(opBatchForget, 0, batch).Len)
		assert.Zero(t, send(opBatchForget, 0, words(1000, 0)).Len, "fewer than it says")
		assert.Zero(t, send(opInterrupt, 0, words(uint64(4711))).Len)
		assert.EqualValues(t, 16, send(opInterrupt, 0, words(uint64(4711)), g.In(16)).Len, "there is no such request: EAGAIN")
		assert.EqualValues(t, 16, send(opGetattr, 1, words(0, 0, uint64(0)), g.In(200)).Len, "EOPNOTSUPP")
		// On a request queue they are as good.
		p := g.sendBuffers(g.rq, []virtiotest.Buffer{g.Out(g.message(opForget, 7, words(uint64(1))))}, nil)
		assert.Equal(t, virtiotest.Used{Head: uint32(p.head)}, g.rq.Next())
		g.tree.mu.Lock()
		defer g.tree.mu.Unlock()
		assert.EqualValues(t, 5, g.tree.forgets[7])
		for i := range uint64(100) {
			assert.Equal(t, i, g.tree.forgets[100+i])
		}
	})
}

// TestHiprioGoesOn: the hiprio queue does not wait for the others
// (5.11.6.2.1).
func TestHiprioGoesOn(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Workers: 2})
		inside, release := g.block("getattr")
		for range 10 {
			g.send(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
		}
		g.Until("all workers are stuck", func() bool { return inside() == 2 })
		g.sendBuffers(g.hi, []virtiotest.Buffer{g.Out(g.message(opForget, 7, words(uint64(3))))}, nil)
		g.hi.Next()
		release()
		for range 10 {
			g.rq.Next()
		}
	})
}

// TestStuckRequestHoldsNoOther: while requests hang in the file system, others go
// on as long as there is a worker.
func TestStuckRequestHoldsNoOther(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for name, features := range map[string]uint64{"event index": 0, "flags": virtio.FeatureIndirectDesc} {
			t.Run(name, func(t *testing.T) {
				g := newGuest(t, open, newTree(), fs.Options{Workers: 3})
				g.boot(features)
				g.mount()
				inside, release := g.block("getattr")
				g.send(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
				g.send(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
				g.Until("both are stuck", func() bool { return inside() == 2 })
				for range 20 {
					errno, _ := g.call(opLookup, 1, words("x"), entrySize)
					assert.Equal(t, syscall.ENOENT, errno)
				}
				release()
				g.rq.Next()
				g.rq.Next()
			})
		}
	})
}

// TestPanics: what the file system panics of costs one request, and is logged
// once a second at most.
func TestPanics(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		var log bytes.Buffer
		g := mounted(t, open, newTree(), fs.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		g.tree.setHook(func(string, <-chan struct{}) fuse.Status { panic("at the disco") })
		for range 100 {
			errno, _ := g.call(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
			require.Equal(t, syscall.EIO, errno)
		}
		g.tree.setHook(nil)
		errno, _ := g.call(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
		require.Zero(t, errno)
		assert.EqualValues(t, 100, g.counter("panics"))
		assert.EqualValues(t, 100, g.counter("errors"))
		require.NoError(t, g.Function.Close(bounded(t)))
		assert.Contains(t, log.String(), "at the disco")
		assert.Less(t, strings.Count(log.String(), "\n"), 10)
	})
}

// pattern is n bytes that do not repeat soon.
func pattern(n int, seed uint32) []byte {
	b := make([]byte, n)
	x := seed*2654435761 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}
