package block_test

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// benchImages are a disk in memory, a file that the page cache has, and one on
// tmpfs, where the host has one.
var benchImages = []struct {
	name string
	open func(b *testing.B, size int64) block.Image
}{
	{"memory", func(b *testing.B, size int64) block.Image { return block.NewMemory(size) }},
	{"file", func(b *testing.B, size int64) block.Image { return benchFile(b, b.TempDir(), size) }},
	{"tmpfs", func(b *testing.B, size int64) block.Image {
		dir, err := os.MkdirTemp("/dev/shm", "vole")
		if err != nil {
			b.Skip("no tmpfs: ", err)
		}
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		return benchFile(b, dir, size)
	}},
}

func benchFile(b *testing.B, dir string, size int64) block.Image {
	path := filepath.Join(dir, "disk.img")
	require.NoError(b, os.WriteFile(path, make([]byte, size), 0o600))
	img, err := block.Open(block.OpenOptions{Path: path})
	require.NoError(b, err)
	return img
}

// BenchmarkReadAfterPause is the time from the kick to the used buffer of a request
// that comes when the process has been asleep for a while, with its runtime's
// monitor, as when a guest's vCPUs run for themselves.
func BenchmarkReadAfterPause(b *testing.B) {
	const size, unit, pause = 1 << 20, 4096, 30 * time.Millisecond
	for _, image := range benchImages {
		b.Run(image.name, func(b *testing.B) {
			dev, err := block.New(image.open(b, size), block.Options{})
			require.NoError(b, err)
			b.Cleanup(func() { require.NoError(b, dev.Close()) })
			d := virtiotest.OpenMMIO(b, dev)
			d.QueueIRQ.C = make(chan struct{}, 1)
			d.Start(0)
			q, bell := d.Queues[0], d.Function.Bell(0)
			gpa, n := d.Table(virtiotest.Chain(0, d.Out(header(block.RequestIn, 0)), d.In(unit), d.In(1))...)
			q.SetDesc(0, virtiotest.Desc{Addr: gpa, Len: n, Flags: virtiotest.DescIndirect})
			var took, used time.Duration
			for b.Loop() {
				time.Sleep(pause) // the pause is what is measured
				cpu, start := cpuTime(b), time.Now()
				q.Publish(0)
				bell.Ring()
				<-d.QueueIRQ.C
				took += time.Since(start)
				used += cpuTime(b) - cpu
				if _, ok := q.Poll(); !ok {
					b.Fatal("an interrupt without a request")
				}
			}
			b.ReportMetric(float64(took)/float64(b.N), "kick-ns/op")
			b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkDevice is 4 KiB requests through one queue, at one and at 32 in
// flight. The driver is the benchmark's goroutine on a thread of its own, which
// looks at the used ring without a pause, as a vCPU of a busy guest is awake. At
// depth 1 an operation is the time from the kick to the used buffer.
func BenchmarkDevice(b *testing.B) {
	const size, unit = 4 << 20, 4096
	for _, image := range benchImages {
		for _, op := range []struct {
			name string
			kind uint32
		}{{"read", block.RequestIn}, {"write", block.RequestOut}} {
			for _, depth := range []int{1, 32} {
				b.Run(image.name+"/"+op.name+"/depth "+map[int]string{1: "1", 32: "32"}[depth], func(b *testing.B) {
					img := image.open(b, size)
					if op.kind == block.RequestOut { // no first writes are measured
						_, err := img.(io.WriterAt).WriteAt(make([]byte, size), 0)
						require.NoError(b, err)
					}
					dev, err := block.New(img, block.Options{})
					require.NoError(b, err)
					b.Cleanup(func() { require.NoError(b, dev.Close()) })
					d := virtiotest.OpenMMIO(b, dev)
					d.Start(0)
					q, bell := d.Queues[0], d.Function.Bell(0)
					headers := make([][]byte, depth)
					for i := range depth {
						out := d.Out(header(op.kind, 0))
						headers[i] = d.Bytes(out)
						data := d.In(unit)
						data.Write = op.kind == block.RequestIn
						gpa, n := d.Table(virtiotest.Chain(0, out, data, d.In(1))...)
						q.SetDesc(i, virtiotest.Desc{Addr: gpa, Len: n, Flags: virtiotest.DescIndirect})
					}
					sector, kicks := uint64(0), 0
					submit := func(head int) {
						sector = (sector + 37*unit/512) % (size / 512)
						binary.LittleEndian.PutUint64(headers[head][8:], sector)
						old := q.Available()
						q.Publish(uint16(head))
						if q.AvailEvent() == old {
							kicks++
							bell.Ring()
						}
					}
					for i := range depth - 1 {
						submit(i)
					}
					next := depth - 1
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					b.ReportAllocs()
					start, cpu := time.Now(), cpuTime(b)
					for b.Loop() {
						submit(next)
						u, ok := q.Poll()
						for !ok {
							u, ok = q.Poll()
						}
						next = int(u.Head)
					}
					b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "requests/s")
					b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
					b.ReportMetric(float64(kicks)/float64(b.N), "kicks/op")
				})
			}
		}
	}
}

// cpuTime is what the process has used of all processors; unlike the time it is
// little disturbed by what else the machine does.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// header is a request's (VIRTIO 1.2, 5.2.6).
func header(kind uint32, sector uint64) []byte {
	h := binary.LittleEndian.AppendUint32(nil, kind)
	h = binary.LittleEndian.AppendUint32(h, 0)
	return binary.LittleEndian.AppendUint64(h, sector)
}
