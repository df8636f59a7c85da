package fs_test

import (
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

var syncfsIn = words(uint64(0))

// answers waits for n requests to end and counts what they are answered.
func answers(g *guest, sent map[uint32]pending, n int) map[syscall.Errno]int {
	g.t.Helper()
	all := map[syscall.Errno]int{}
	for range n {
		u := g.rq.Next()
		require.Contains(g.t, sent, u.Head)
		errno, out := sent[u.Head].reply(u)
		delete(sent, u.Head)
		assert.Empty(g.t, out)
		all[errno]++
	}
	return all
}

func (g *guest) sync(n int) map[uint32]pending {
	g.t.Helper()
	sent := map[uint32]pending{}
	for range n {
		p := g.send(opSyncfs, 1, syncfsIn, 0)
		sent[uint32(p.head)] = p
	}
	return sent
}

// TestSyncFS: the guest hears how it went. Only of a file system that has nothing to sync
// it hears that there is no such request, upon which Linux asks no more.
func TestSyncFS(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, newTree(), fs.Options{})
		errno, _ := g.call(opSyncfs, 1, syncfsIn, 0)
		assert.Equal(t, syscall.EIO, errno, "before INIT")
		g.mount()
		for _, want := range []syscall.Errno{0, syscall.EIO, syscall.ENOSPC} {
			g.tree.setHook(func(kind string, _ <-chan struct{}) fuse.Status {
				assert.Equal(t, "syncfs", kind)
				return fuse.Status(want)
			})
			errno, out := g.call(opSyncfs, 1, syncfsIn, 0)
			assert.Equal(t, want, errno)
			assert.Empty(t, out)
		}
		g.tree.setHook(func(string, <-chan struct{}) fuse.Status { panic("as the test asked") })
		errno, _ = g.call(opSyncfs, 1, syncfsIn, 0)
		assert.Equal(t, syscall.EIO, errno)
		assert.EqualValues(t, 1, g.counter("panics"))
		assert.EqualValues(t, 5, g.counter("syncfs"))

		g.dev.LeaveToHost()
		errno, _ = g.call(opSyncfs, 1, syncfsIn, 0)
		assert.EqualValues(t, 0, errno, "the tree is not asked any more")

		dev, err := fs.New(struct{ fs.FileSystem }{newTree()}, fs.Options{Tag: "t"})
		require.NoError(t, err)
		g = &guest{Driver: open(t, dev), t: t, dev: dev}
		g.boot(0)
		g.mount()
		errno, _ = g.call(opSyncfs, 1, syncfsIn, 0)
		assert.Equal(t, syscall.ENOSYS, errno)
	})
}

// TestSyncFSHoldsNoOther: requests are carried out while the disks are waited for, by as
// many as a guest likes to send; those that are too many wait, too, and none fails.
func TestSyncFSHoldsNoOther(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Workers: 2})
		fh := g.create("file")
		inside, release := g.block("syncfs")
		sent := g.sync(fs.MaxSyncs)
		g.Until("all are inside", func() bool { return inside() == fs.MaxSyncs })
		for range 5 {
			errno, n := g.write(fh, 0, []byte("data"))
			assert.Zero(t, errno)
			assert.Equal(t, 4, n)
		}
		for head, p := range g.sync(1) { // it takes one of the two workers
			sent[head] = p
		}
		g.Until("it is inside", func() bool { return inside() == fs.MaxSyncs+1 })
		errno, _ := g.read(fh, 0, 100)
		assert.Zero(t, errno)
		release()
		assert.Equal(t, map[syscall.Errno]int{0: fs.MaxSyncs + 1}, answers(g, sent, fs.MaxSyncs+1))
		errno, _ = g.call(opSyncfs, 1, syncfsIn, 0)
		assert.Zero(t, errno)
	})
}

// TestSyncFSEnds: DESTROY and a reset end the wait for disks that take for ever, those who
// have a worker included, and the machine can stop.
func TestSyncFSEnds(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Workers: 2})
		hang := func(kind string, cancel <-chan struct{}) fuse.Status {
			if kind == "syncfs" {
				<-cancel
				return fuse.EINTR
			}
			return fuse.OK
		}
		g.tree.setHook(hang)
		const n = fs.MaxSyncs + 1
		sent := g.sync(n)
		g.Until("all are inside", func() bool { return g.tree.count(&g.tree.active) == n })
		destroy := g.send(opDestroy, 0, nil, 0)
		sent[uint32(destroy.head)] = destroy
		assert.Equal(t, map[syscall.Errno]int{syscall.EINTR: n, 0: 1}, answers(g, sent, n+1))
		assert.Equal(t, 1, g.tree.count(&g.tree.resets))

		g.mount()
		g.sync(fs.MaxSyncs + 2)
		g.Until("all are inside", func() bool { return g.tree.count(&g.tree.active) == fs.MaxSyncs+2 })
		g.Reset()
		assert.Zero(t, g.tree.count(&g.tree.active))
		g.boot(0)
		g.mount()
		g.sync(3)
		g.Until("all are inside", func() bool { return g.tree.count(&g.tree.active) == 3 })
		require.NoError(t, g.Function.Close(bounded(t)))
		assert.Zero(t, g.tree.count(&g.tree.active))
	})
}
