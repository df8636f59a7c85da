package fs_test

import (
	"math/rand/v2"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestBeforeDriverOK: nothing is taken from a queue before (rule 2).
func TestBeforeDriverOK(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, newTree(), fs.Options{})
		g.Negotiate(0)
		g.hi, g.rq = g.SetUp(0, 128), g.SetUp(1, 512)
		p := g.send(opInit, 0, words(7, 36, 0, 0), initOutSize)
		g.Regs.Notify(1)
		assert.Zero(t, g.rq.UsedIndex())
		assert.Equal(t, fs.State{}, g.dev.State())
		g.DriverOK()
		g.Regs.Notify(1)
		errno, _ := p.end()
		assert.Zero(t, errno)
		assert.Equal(t, fs.State{Session: true}, g.dev.State())
	})
}

// TestFewQueues: a driver need not enable all.
func TestFewQueues(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		dev, err := fs.New(newTree(), fs.Options{Tag: "t", Queues: 3})
		require.NoError(t, err)
		g := &guest{Driver: open(t, dev), t: t, dev: dev}
		g.Negotiate(0)
		g.SetUp(2, 512)
		g.rq = g.Queues[2]
		g.DriverOK()
		g.mount()
	})
}

// TestSession: what is possible before INIT, after it, and after DESTROY.
func TestSession(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := newGuest(t, open, newTree(), fs.Options{})
		root := words(0, 0, uint64(0))
		errno, _ := g.call(opGetattr, 1, root, attrSize)
		assert.Equal(t, syscall.EIO, errno, "before INIT")
		errno, _ = g.call(opDestroy, 0, nil, 0)
		assert.Equal(t, syscall.EIO, errno, "before INIT")
		for name, body := range map[string][]byte{
			"another major": words(8, 36, 0, 0), "an older major": words(6, 36, 0, 0), "an old minor": words(7, 11, 0, 0),
		} {
			errno, _ = g.call(opInit, 0, body, initOutSize)
			assert.Equal(t, syscall.EPROTO, errno, name)
		}
		errno, _ = g.call(opGetattr, 1, root, attrSize)
		assert.Equal(t, syscall.EIO, errno, "no INIT has succeeded")
		for i := range 3 {
			g.mount()
			errno, _ = g.call(opInit, 0, words(7, 36, 0, 0), initOutSize)
			assert.Equal(t, syscall.EIO, errno, "a second INIT")
			errno, _ = g.call(opGetattr, 1, root, attrSize)
			assert.Zero(t, errno)
			assert.Equal(t, i, g.tree.count(&g.tree.resets))
			errno, _ = g.call(opDestroy, 0, nil, 0)
			assert.Zero(t, errno)
			assert.Equal(t, i+1, g.tree.count(&g.tree.resets))
			errno, _ = g.call(opGetattr, 1, root, attrSize)
			assert.Equal(t, syscall.EIO, errno, "after DESTROY")
		}
		g.boot(0)
		assert.Equal(t, 3, g.tree.count(&g.tree.resets), "there was no session to end")
		g.mount()
		g.boot(0)
		assert.Equal(t, 4, g.tree.count(&g.tree.resets))
		g.mount()
	})
}

// TestDestroyWaits: DESTROY ends what waits for locks, and waits for the rest.
// Nothing new begins meanwhile.
func TestDestroyWaits(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		fh := g.create("file")
		errno, _ := g.call(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
		require.Zero(t, errno)
		lock := g.send(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
		g.Until("it waits", func() bool { return g.tree.count(&g.tree.active) == 1 })
		inside, release := g.block("getattr")
		slow := g.send(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
		g.Until("it is inside", func() bool { return inside() == 1 })
		destroy := g.send(opDestroy, 0, nil, 0)
		errno, _ = lock.end()
		assert.Equal(t, syscall.EINTR, errno)
		errno, _ = g.call(opLookup, 1, words("x"), entrySize)
		assert.Equal(t, syscall.EIO, errno)
		assert.Zero(t, g.tree.count(&g.tree.resets))
		release()
		errno, _ = slow.end()
		assert.Zero(t, errno)
		errno, _ = destroy.end()
		assert.Zero(t, errno)
		assert.Equal(t, 1, g.tree.count(&g.tree.resets))
	})
}

// TestLocks: a lock that is taken is waited for without holding up anything else,
// and INTERRUPT ends the wait.
func TestLocks(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Workers: 1})
		fh := g.create("file")
		errno, _ := g.call(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
		require.Zero(t, errno)
		errno, _ = g.call(opSetlk, fh, lkIn(fh, syscall.F_WRLCK), 0)
		assert.Equal(t, syscall.EAGAIN, errno)
		first := g.send(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
		errno, _ = g.call(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
		assert.Zero(t, errno)

		// One interrupt can come too early: then it is answered, and sent again.
		for {
			p := g.sendBuffers(g.hi, []virtiotest.Buffer{g.Out(g.message(opInterrupt, 0, words(first.unique)))}, []virtiotest.Buffer{g.In(16)})
			u := g.hi.Next()
			if u.Len == 0 {
				break
			}
			errno, _ := p.reply(u)
			require.Equal(t, syscall.EAGAIN, errno)
		}
		errno, _ = first.end()
		assert.Equal(t, syscall.EINTR, errno)

		second := g.send(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
		unlock := g.send(opSetlk, fh, lkIn(fh, syscall.F_UNLCK), 0)
		for range 2 {
			switch u := g.rq.Next(); uint16(u.Head) {
			case second.head:
				errno, _ = second.reply(u)
			case unlock.head:
				errno, _ = unlock.reply(u)
			}
			assert.Zero(t, errno)
		}

		// As many wait as may, and one more is told so.
		for range fs.MaxBlocked {
			g.send(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
		}
		errno, _ = g.call(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
		assert.Equal(t, syscall.ENOLCK, errno)
		assert.EqualValues(t, 1, g.counter("out of locks"))
		for range fs.MaxBlocked {
			g.send(opSetlk, fh, lkIn(fh, syscall.F_UNLCK), 0)
			assert.EqualValues(t, 16, g.rq.Next().Len)
			assert.EqualValues(t, 16, g.rq.Next().Len)
		}
	})
}

// TestReset: a reset ends what waits, waits for what is in flight, and after it
// neither memory changes nor an interrupt comes (rule 1).
func TestReset(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		for i := range 3 {
			fh := g.create(string(rune('a' + i)))
			errno, _ := g.call(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
			require.Zero(t, errno)
			for range 5 {
				g.send(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
			}
			inside, release := g.block("read")
			g.send(opRead, fh, readIn(fh, 0, 4096), 4096)
			g.Until("it is inside", func() bool { return inside() == 1 })
			done := make(chan struct{})
			go func() {
				defer close(done)
				g.Reset()
			}()
			g.Until("the locks are given up", func() bool { return g.tree.count(&g.tree.active) == 1 })
			assert.NotZero(t, g.Regs.Status(), "a request is in flight")
			release()
			<-done
			assert.Equal(t, i+1, g.tree.count(&g.tree.resets))
			memory, irqs := g.Snapshot(), g.QueueIRQ.Count()
			assert.Zero(t, g.tree.count(&g.tree.active))
			assert.Equal(t, memory, g.Snapshot())
			assert.Equal(t, irqs, g.QueueIRQ.Count())
			g.boot(0)
			g.mount()
		}
	})
}

// TestResetDuringDestroy: a DESTROY that waits is no obstacle.
func TestResetDuringDestroy(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		inside, release := g.block("getattr")
		g.send(opGetattr, 1, words(0, 0, uint64(0)), attrSize)
		g.Until("it is inside", func() bool { return inside() == 1 })
		g.send(opDestroy, 0, nil, 0)
		done := make(chan struct{})
		go func() {
			defer close(done)
			g.Reset()
		}()
		release()
		<-done
		assert.Equal(t, 1, g.tree.count(&g.tree.resets))
		g.boot(0)
		g.mount()
	})
}

// TestPause: nothing is taken or written meanwhile, and the session stays.
func TestPause(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{})
		fh := g.create("file")
		require.NoError(t, g.Function.Pause(bounded(t)))
		wait := g.send(opRead, fh, readIn(fh, 0, 100), 100)
		g.sendBuffers(g.hi, []virtiotest.Buffer{g.Out(g.message(opForget, 7, words(uint64(3))))}, nil)
		before := g.Snapshot()
		g.Regs.Notify(0)
		g.Regs.Notify(1)
		assert.Equal(t, before, g.Snapshot())
		g.Function.Resume()
		errno, _ := wait.end()
		assert.Zero(t, errno)
		g.hi.Next()
		require.NoError(t, g.Function.Pause(bounded(t)))
		g.Reset()
		assert.Equal(t, 1, g.tree.count(&g.tree.resets))
		g.Function.Resume()
		g.boot(0)
		g.mount()
	})
}

// TestCloseLeavesNothing: no goroutine and no descriptor, with requests in every
// state.
func TestCloseLeavesNothing(t *testing.T) {
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(list)
	}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		p, err := os.Open(os.DevNull) // the runtime's poller is there for good
		require.NoError(t, err)
		require.NoError(t, p.Close())
		goroutines, descriptors := runtime.NumGoroutine(), files()
		for range 3 {
			t.Run("", func(t *testing.T) {
				tr := newTree()
				g := mounted(t, open, tr, fs.Options{Queues: 4})
				fh := g.create("file")
				for range 5 {
					g.send(opSetlkw, fh, lkIn(fh, syscall.F_WRLCK), 0)
				}
				for range 50 {
					g.send(opRead, fh, readIn(fh, 0, 4096), 4096)
				}
				require.NoError(t, g.Function.Close(bounded(t)))
				require.NoError(t, g.dev.Close())
				assert.Equal(t, 1, tr.resets)
				assert.Equal(t, 1, tr.closes)
			})
		}
		end := time.Now().Add(patience)
		for runtime.NumGoroutine() > goroutines || files() > descriptors {
			require.True(t, time.Now().Before(end), "%d goroutines and %d descriptors, before %d and %d", runtime.NumGoroutine(), files(), goroutines, descriptors)
			time.Sleep(time.Millisecond) // nothing tells when a runtime's goroutine is gone
		}
	})
}

// TestBrokenQueue: a queue that breaks the rules shuts, the device says so, and a
// reset brings all back (rule 6).
func TestBrokenQueue(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for name, queue := range map[string]int{"hiprio": 0, "requests": 1} {
			t.Run(name, func(t *testing.T) {
				g := mounted(t, open, newTree(), fs.Options{})
				q := g.Queues[queue]
				q.SetDesc(0, virtiotest.Desc{Addr: 1 << 40, Len: 100})
				q.Publish(0)
				q.Kick()
				g.NeedsReset()
				g.boot(0)
				assert.Zero(t, g.Regs.Status()&virtio.StatusNeedsReset)
				g.mount()
			})
		}
	})
}

// TestStress has requests of all kinds come while the machine pauses, resumes and
// resets: for the race detector, and for everything to come to an end.
func TestStress(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		g := mounted(t, open, newTree(), fs.Options{Queues: 2, Workers: 4})
		rnd := rand.New(rand.NewPCG(1, 2))
		const buffers = 40
		out, in := make([]virtiotest.Buffer, buffers), make([]virtiotest.Buffer, buffers)
		var free []int
		for i := range out {
			out[i], in[i] = g.Out(make([]byte, 2048)), g.In(16+2048)
			free = append(free, i)
		}
		users := make([]map[uint32]int, 3) // which buffers the requests under way have
		for i := range users {
			users[i] = map[uint32]int{}
		}
		poll := func() int {
			for i, q := range g.Queues {
				for u, ok := q.Poll(); ok; u, ok = q.Poll() {
					free = append(free, users[i][u.Head])
					delete(users[i], u.Head)
				}
			}
			return len(free)
		}
		for range 12 {
			for range 150 {
				fh := uint64(rnd.IntN(4) + 1)
				list := []struct {
					op   uint32
					body []byte
				}{
					{opLookup, words("a")}, {opCreate, words(0, 0o644, 0, 0, string(rune('a'+rnd.IntN(10))))}, {opGetattr, words(0, 0, uint64(0))},
					{opRead, readIn(fh, 0, 2048)}, {opWrite, append(readIn(fh, 0, 1000), make([]byte, 1000)...)},
					{opSetlkw, lkIn(fh, syscall.F_WRLCK)}, {opSetlk, lkIn(fh, syscall.F_UNLCK)}, {opReaddirplus, readIn(1, 0, 2048)},
					{opInit, words(7, 36, 0, allFlags)}, {opForget, words(uint64(1))}, {opInterrupt, words(g.unique - uint64(rnd.IntN(20)))},
					{opSyncfs, words(uint64(0))}, {opDestroy, nil},
				}
				r := list[rnd.IntN(len(list))]
				if r.op == opDestroy && rnd.IntN(10) > 0 {
					continue
				}
				if poll() == 0 {
					unlock(g.tree)
					g.Until("all have ended", func() bool { return poll() == buffers })
					g.tree.setHook(nil)
				}
				i, k := free[0], rnd.IntN(3)
				free = free[1:]
				m := g.message(r.op, fh, r.body)
				out[i].Len = uint32(len(m))
				copy(g.Bytes(out[i]), m)
				users[k][uint32(g.Queues[k].Add(out[i], in[i]))] = i
				g.Queues[k].Kick()
			}
			unlock(g.tree)
			if rnd.IntN(3) == 0 {
				g.boot(0)
				for _, u := range users {
					for head, i := range u {
						free = append(free, i)
						delete(u, head)
					}
				}
				g.mount()
			} else {
				require.NoError(t, g.Function.Pause(bounded(t)))
				before := g.Snapshot()
				assert.Zero(t, g.tree.count(&g.tree.active))
				assert.Equal(t, before, g.Snapshot())
				g.Function.Resume()
			}
			g.tree.setHook(nil)
		}
		require.NoError(t, g.Function.Close(bounded(t)))
		assert.Zero(t, g.tree.count(&g.tree.active))
	})
}

// unlock has the tree refuse every lock, so that none is waited for.
func unlock(t *tree) {
	t.setHook(func(kind string, _ <-chan struct{}) fuse.Status {
		if kind == "setlk" {
			return fuse.Status(syscall.ENOLCK)
		}
		return fuse.OK
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.unlock)
	t.unlock = make(chan struct{})
}
