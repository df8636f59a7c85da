package fs_test

import (
	"context"
	"encoding/binary"
	"runtime"
	"strings"
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

const patience = virtiotest.Patience

// Opcodes and other numbers of the protocol, as a guest has them.
const (
	opLookup, opForget, opGetattr, opReadlink, opSymlink         = 1, 2, 3, 5, 6
	opMkdir, opOpen, opRead, opWrite, opStatfs                   = 9, 14, 15, 16, 17
	opSetxattr, opGetxattr, opInit, opOpendir, opReaddir         = 21, 22, 26, 27, 28
	opSetlk, opSetlkw, opCreate, opInterrupt, opBmap, opDestroy  = 32, 33, 35, 36, 37, 38
	opIoctl, opNotifyReply, opBatchForget, opReaddirplus, opLast = 39, 41, 42, 44, 52
	opSyncfs                                                     = 50

	entrySize, attrSize, openSize, createSize = 128, 104, 16, 144
	initOutSize                               = 64

	allFlags = 0xffffffff
)

// guest is a driver with a file system mounted, or about to be.
type guest struct {
	*virtiotest.Driver
	t      testing.TB
	dev    *fs.Device
	tree   *tree
	hi, rq *virtiotest.Queue
	unique uint64
}

// newGuest starts a device on a tree. It is closed when the test ends, and then no
// goroutine is left.
func newGuest(t testing.TB, open virtiotest.Opener, tr *tree, o fs.Options) *guest {
	t.Helper()
	nothingLeft(t)
	if o.Tag == "" {
		o.Tag = "share"
	}
	dev, err := fs.New(tr, o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, dev.Close()) })
	g := &guest{Driver: open(t, dev), t: t, dev: dev, tree: tr}
	g.boot(0)
	return g
}

// mounted is newGuest with a session.
func mounted(t testing.TB, open virtiotest.Opener, tr *tree, o fs.Options) *guest {
	t.Helper()
	g := newGuest(t, open, tr, o)
	g.mount()
	return g
}

func (g *guest) boot(features uint64) {
	g.t.Helper()
	g.Start(features)
	g.hi, g.rq = g.Queues[0], g.Queues[1]
}

func (g *guest) mount() []byte {
	g.t.Helper()
	errno, out := g.call(opInit, 0, words(7, 36, 128<<10, allFlags), initOutSize)
	require.Zero(g.t, errno, "INIT")
	return out
}

// words are little-endian, each of 32 bits; a uint64 has two.
func words(list ...any) []byte {
	var b []byte
	for _, v := range list {
		switch v := v.(type) {
		case int:
			b = binary.LittleEndian.AppendUint32(b, uint32(v))
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, v)
		case uint64:
			b = binary.LittleEndian.AppendUint64(b, v)
		case string:
			b = append(append(b, v...), 0)
		case []byte:
			b = append(b, v...)
		default:
			panic(v)
		}
	}
	return b
}

// message is a request with its header.
func (g *guest) message(op uint32, node uint64, body []byte) []byte {
	g.unique++
	return words(uint32(40+len(body)), op, g.unique, node, 1000, 1000, 1, 0, body)
}

// pending is a request under way.
type pending struct {
	g      *guest
	q      *virtiotest.Queue
	head   uint16
	unique uint64
	in     []virtiotest.Buffer
}

// send makes a request of two buffers, with room for a reply of out bytes behind
// its header.
func (g *guest) send(op uint32, node uint64, body []byte, out int) pending {
	g.t.Helper()
	return g.sendBuffers(g.rq, []virtiotest.Buffer{g.Out(g.message(op, node, body))}, []virtiotest.Buffer{g.In(16 + out)})
}

func (g *guest) sendBuffers(q *virtiotest.Queue, out, in []virtiotest.Buffer) pending {
	g.t.Helper()
	p := pending{g: g, q: q, unique: g.unique, in: in}
	p.head = q.AddIndirect(append(append([]virtiotest.Buffer(nil), out...), in...)...)
	q.Kick()
	return p
}

// end waits for the request, which must be the next that ends on its queue.
func (p pending) end() (syscall.Errno, []byte) {
	p.g.t.Helper()
	u := p.q.Next()
	require.EqualValues(p.g.t, p.head, u.Head, "another request ended")
	return p.reply(u)
}

func (p pending) reply(u virtiotest.Used) (syscall.Errno, []byte) {
	p.g.t.Helper()
	var all []byte
	for _, b := range p.in {
		all = append(all, p.g.Bytes(b)...)
	}
	require.GreaterOrEqual(p.g.t, u.Len, uint32(16), "no reply")
	b := all[:u.Len]
	require.Equal(p.g.t, u.Len, binary.LittleEndian.Uint32(b), "the reply's length")
	require.Equal(p.g.t, p.unique, binary.LittleEndian.Uint64(b[8:]))
	assert.Equal(p.g.t, strings.Repeat("\xaa", len(all)-int(u.Len)), string(all[u.Len:]), "written beyond the length")
	return syscall.Errno(-int32(binary.LittleEndian.Uint32(b[4:]))), b[16:]
}

func (g *guest) call(op uint32, node uint64, body []byte, out int) (syscall.Errno, []byte) {
	g.t.Helper()
	return g.send(op, node, body, out).end()
}

// create makes a file and returns its node, which is its handle too.
func (g *guest) create(name string) uint64 {
	g.t.Helper()
	errno, out := g.call(opCreate, 1, words(0, 0o644, 0, 0, name), createSize)
	require.Zero(g.t, errno)
	return binary.LittleEndian.Uint64(out)
}

func readIn(fh, off uint64, size int) []byte { return words(fh, off, size, 0, uint64(0), 0, 0) }

func (g *guest) write(node, off uint64, data []byte) (syscall.Errno, int) {
	g.t.Helper()
	errno, out := g.call(opWrite, node, append(readIn(node, off, len(data)), data...), 8)
	if errno != 0 {
		return errno, 0
	}
	return 0, int(binary.LittleEndian.Uint32(out))
}

func (g *guest) read(node, off uint64, size int) (syscall.Errno, []byte) {
	g.t.Helper()
	return g.call(opRead, node, readIn(node, off, size), size)
}

func lkIn(fh uint64, typ int) []byte {
	return words(fh, uint64(1), uint64(0), ^uint64(0)>>1, typ, 0, 0, 0)
}

// counter is one of the device's numbers.
func (g *guest) counter(name string) uint64 {
	for _, c := range g.dev.Counters() {
		if c.Name == name {
			return c.Value
		}
	}
	return 0
}

// block has requests of a kind wait until release is called, and counts who waits.
func (g *guest) block(kind string) (inside func() int, release func()) {
	gate, n := make(chan struct{}), 0
	g.tree.setHook(func(k string, cancel <-chan struct{}) fuse.Status {
		if k != kind {
			return fuse.OK
		}
		g.tree.mu.Lock()
		n++
		g.tree.mu.Unlock()
		<-gate
		return fuse.OK
	})
	g.t.Cleanup(func() {
		select {
		case <-gate:
		default:
			close(gate)
		}
	})
	return func() int { return g.tree.count(&n) }, func() { close(gate) }
}

func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// nothingLeft asserts, when the test ends, that no goroutine is left that was not
// there before.
func nothingLeft(t testing.TB) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		end := time.Now().Add(patience)
		for runtime.NumGoroutine() > before {
			if time.Now().After(end) {
				buf := make([]byte, 1<<16)
				t.Errorf("%d goroutines, and there were %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
				return
			}
			time.Sleep(time.Millisecond) // nothing tells when a runtime's goroutine is gone
		}
	})
}

var _ virtio.Device = (*fs.Device)(nil)
