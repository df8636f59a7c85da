package fs_test

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// flat is a file system of one file, which costs next to nothing.
type flat struct {
	fuse.RawFileSystem
	data   [fs.MaxData]byte
	result fuse.ReadResult
}

func newFlat(n int) *flat {
	f := &flat{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	f.result = fuse.ReadResultData(f.data[:n])
	return f
}

func (f *flat) Read(<-chan struct{}, *fuse.ReadIn, []byte) (fuse.ReadResult, fuse.Status) {
	return f.result, fuse.OK
}

func (f *flat) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (n uint32, _ fuse.Status) {
	for _, d := range data {
		n += uint32(copy(f.data[n:], d))
	}
	return n, fuse.OK
}

func (*flat) GetAttr(<-chan struct{}, *fuse.GetAttrIn, *fuse.AttrOut) fuse.Status { return fuse.OK }
func (*flat) Reset()                                                              {}
func (*flat) Close() error                                                        { return nil }

// shuttle has one request after the other go all the way: published, taken from
// the ring, carried out, and found in the used ring.
type shuttle struct {
	tb    testing.TB
	d     *virtiotest.Driver
	q     *virtiotest.Queue
	bell  *virtio.Doorbell
	heads []uint16
	end   *time.Timer
	yield bool // wait by looking, not by sleeping
}

// page is the size of a guest's page: data is in pieces of that.
const page = 4096

// newShuttle makes depth requests of a kind with n bytes of data.
func newShuttle(tb testing.TB, op uint32, n, depth int) *shuttle {
	dev, err := fs.New(newFlat(n), fs.Options{Tag: "t"})
	require.NoError(tb, err)
	d := virtiotest.OpenMMIO(tb, dev)
	d.QueueIRQ.C = make(chan struct{}, 1)
	g := &guest{Driver: d, t: tb, dev: dev}
	g.boot(0)
	g.mount()
	s := &shuttle{tb: tb, d: d, q: g.rq, bell: d.Function.Bell(1), end: time.NewTimer(10 * virtiotest.Patience)}
	tb.Cleanup(func() { s.end.Stop() })
	var data []virtiotest.Buffer
	for at := 0; at < n; at += page {
		data = append(data, g.In(min(page, n-at)))
	}
	for i := range depth {
		var bufs []virtiotest.Buffer
		switch op {
		case opRead:
			bufs = append([]virtiotest.Buffer{g.Out(g.message(op, 1, readIn(1, 0, n))), g.In(16)}, data...)
		case opWrite:
			m := g.message(op, 1, readIn(1, 0, n))
			binary.LittleEndian.PutUint32(m, uint32(len(m)+n))
			bufs = append(bufs, g.Out(m))
			for _, b := range data {
				b.Write = false
				bufs = append(bufs, b)
			}
			bufs = append(bufs, g.In(24))
		default:
			bufs = []virtiotest.Buffer{g.Out(g.message(op, 1, words(0, 0, uint64(0)))), g.In(16 + attrSize)}
		}
		gpa, size := d.Table(virtiotest.Chain(0, bufs...)...)
		s.q.SetDesc(i, virtiotest.Desc{Addr: gpa, Len: size, Flags: virtiotest.DescIndirect})
		s.heads = append(s.heads, uint16(i))
	}
	return s
}

func (s *shuttle) run(n int) {
	sent := 0
	for done := 0; done < n; {
		if sent < n && sent-done < len(s.heads) {
			s.q.Publish(s.heads[sent%len(s.heads)])
			s.bell.Ring()
			sent++
			continue
		}
		if u, ok := s.q.Poll(); ok {
			if u.Len < 16 {
				s.tb.Fatal("no reply")
			}
			done++
			continue
		}
		if s.yield {
			continue
		}
		select {
		case <-s.d.QueueIRQ.C:
		case <-s.end.C:
			s.tb.Fatal("the requests do not end")
		}
	}
}

// library is what the library alone takes for such a request.
func library(t testing.TB, op uint32, n int) func() {
	srv := fuse.NewProtocolServer(newFlat(n), &fuse.MountOptions{MaxWrite: fs.MaxData})
	g := &guest{}
	init := g.message(opInit, 0, words(7, 36, 0, allFlags))
	_, status := srv.HandleRequest([][]byte{init}, [][]byte{make([]byte, 80)})
	require.Equal(t, fuse.OK, status)
	var data [][]byte
	for at := 0; at < n; at += page {
		data = append(data, make([]byte, min(page, n-at)))
	}
	var in, out [][]byte
	switch op {
	case opRead:
		in = [][]byte{g.message(op, 1, readIn(1, 0, n))}
		out = append([][]byte{make([]byte, 16)}, data...)
	case opWrite:
		in = append([][]byte{g.message(op, 1, readIn(1, 0, n))}, data...)
		out = [][]byte{make([]byte, 24)}
	default:
		in = [][]byte{g.message(op, 1, words(0, 0, uint64(0)))}
		out = [][]byte{make([]byte, 16+attrSize)}
	}
	return func() { _, _ = srv.HandleRequest(in, out) }
}

var shapes = []struct {
	name string
	op   uint32
	n    int
}{
	{"getattr", opGetattr, 0},
	{"read/4K", opRead, 4 << 10}, {"write/4K", opWrite, 4 << 10},
	{"read/128K", opRead, 128 << 10}, {"write/128K", opWrite, 128 << 10},
	{"read/1M", opRead, 1 << 20}, {"write/1M", opWrite, 1 << 20},
}

// TestNoAllocations: the device allocates nothing for a request that the library
// would not.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const batch = 16
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			call := library(t, s.op, s.n)
			want := testing.AllocsPerRun(20, func() {
				for range batch {
					call()
				}
			})
			sh := newShuttle(t, s.op, s.n, 1)
			sh.run(100) // until each worker has its buffers
			// What a garbage collection takes from pools is another matter.
			assert.LessOrEqual(t, testing.AllocsPerRun(20, func() { sh.run(batch) }), want+1, "%d requests", batch)
			t.Logf("%.1f allocations a request, all the library's", want/batch)
		})
	}
}

// BenchmarkDevice is requests through one queue, at one and at 16 in flight. The
// driver is the benchmark's goroutine on a thread of its own, which looks at the
// used ring without a pause, as a vCPU of a busy guest is awake.
func BenchmarkDevice(b *testing.B) {
	for _, s := range shapes {
		for _, depth := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/depth %d", s.name, depth), func(b *testing.B) {
				sh := newShuttle(b, s.op, s.n, depth)
				sh.yield = true
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				sh.run(100)
				b.SetBytes(int64(s.n))
				b.ReportAllocs()
				b.ResetTimer()
				sh.run(b.N)
			})
		}
	}
}

// BenchmarkLibrary is the same without the device.
func BenchmarkLibrary(b *testing.B) {
	for _, s := range shapes {
		b.Run(s.name, func(b *testing.B) {
			call := library(b, s.op, s.n)
			b.SetBytes(int64(s.n))
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}
