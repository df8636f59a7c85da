package block_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkEngines compares what could carry a queue's requests: system calls of
// one thread and of several, which is what the package has, and an io_uring of one
// thread, which is what QEMU calls aio=io_uring. Requests in flight are as many as
// the depth, or the threads if these are fewer. The choice between them rests on it.
func BenchmarkEngines(b *testing.B) {
	const size = 64 << 20
	for _, where := range []struct {
		name, dir string
		flags     int
	}{{"tmpfs", "/dev/shm", 0}, {"disk-cached", "/var/tmp", 0}, {"disk-direct", "/var/tmp", unix.O_DIRECT}} {
		dir, err := os.MkdirTemp(where.dir, "vole-engines-*")
		require.NoError(b, err)
		b.Cleanup(func() { os.RemoveAll(dir) })
		path := filepath.Join(dir, "image")
		require.NoError(b, os.WriteFile(path, make([]byte, size), 0o600))
		fd, err := unix.Open(path, unix.O_RDWR|where.flags, 0)
		require.NoError(b, err)
		b.Cleanup(func() { unix.Close(fd) })
		for _, row := range []struct {
			name  string
			write bool
			unit  int
			depth int
		}{
			{"4k-read", false, 4 << 10, 1}, {"4k-read", false, 4 << 10, 32},
			{"4k-write", true, 4 << 10, 1}, {"4k-write", true, 4 << 10, 32},
			{"1m-read", false, 1 << 20, 4}, {"1m-write", true, 1 << 20, 4},
		} {
			j := engineJob{fd: fd, write: row.write, unit: row.unit, depth: row.depth, units: size / int64(row.unit)}
			for _, e := range []struct {
				name string
				run  func(b *testing.B, j engineJob)
			}{{"one-thread", func(b *testing.B, j engineJob) { byCalls(b, j, 1) }},
				{"8-threads", func(b *testing.B, j engineJob) { byCalls(b, j, min(8, j.depth)) }},
				{"32-threads", func(b *testing.B, j engineJob) { byCalls(b, j, min(32, j.depth)) }},
				{"io_uring", byRing}} {
				b.Run(fmt.Sprintf("%s/%s/depth-%d/%s", where.name, row.name, row.depth, e.name), func(b *testing.B) {
					b.SetBytes(int64(row.unit))
					e.run(b, j)
				})
			}
		}
	}
}

type engineJob struct {
	fd    int
	write bool
	unit  int
	depth int
	units int64
}

func (j engineJob) offset() int64 { return rand.Int64N(j.units) * int64(j.unit) }

func pages(b *testing.B, n int) []byte {
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	require.NoError(b, err)
	b.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}

func byCalls(b *testing.B, j engineJob, workers int) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	buffers := pages(b, workers*j.unit)
	b.ResetTimer()
	for w := range workers {
		wg.Go(func() {
			p := buffers[w*j.unit : (w+1)*j.unit]
			for left.Add(-1) >= 0 {
				call := unix.Pread
				if j.write {
					call = unix.Pwrite
				}
				if n, err := call(j.fd, p, j.offset()); n != j.unit {
					b.Error(n, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Of io_uring, as in linux/io_uring.h.
const (
	uringOffSQEs       = 0x10000000
	uringEnterGetEvent = 1
	uringOpRead        = 22
	uringOpWrite       = 23
)

type uringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wqFD uint32
	_                                                      [3]uint32
	sq                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

type uringSQE struct {
	op, flags uint8
	prio      uint16
	fd        int32
	off, addr uint64
	len, rw   uint32
	data      uint64
	_         [3]uint64
}

type uringCQE struct {
	data  uint64
	res   int32
	flags uint32
}

func byRing(b *testing.B, j engineJob) {
	var p uringParams
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 64, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		b.Skip("no io_uring here: ", errno)
	}
	defer unix.Close(int(ring))
	rings, err := unix.Mmap(int(ring), 0, int(max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*16)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	require.NoError(b, err)
	defer unix.Munmap(rings)
	table, err := unix.Mmap(int(ring), uringOffSQEs, int(p.sqEntries)*int(unsafe.Sizeof(uringSQE{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	require.NoError(b, err)
	defer unix.Munmap(table)
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[off])) }
	sqes := unsafe.Slice((*uringSQE)(unsafe.Pointer(&table[0])), p.sqEntries)
	cqes := unsafe.Slice((*uringCQE)(unsafe.Pointer(&rings[p.cq.cqes])), p.cqEntries)
	array := unsafe.Slice(word(p.sq.array), p.sqEntries)
	buffers := pages(b, j.depth*j.unit)
	tail := *word(p.sq.tail)
	submit := func(slot int) {
		at := tail & *word(p.sq.mask)
		op := uint8(uringOpRead)
		if j.write {
			op = uringOpWrite
		}
		sqes[at] = uringSQE{op: op, fd: int32(j.fd), off: uint64(j.offset()), addr: uint64(uintptr(unsafe.Pointer(&buffers[slot*j.unit]))), len: uint32(j.unit), data: uint64(slot)}
		array[at] = at
		tail++
		atomic.StoreUint32(word(p.sq.tail), tail)
	}
	b.ResetTimer()
	todo, done := b.N, 0
	fresh := 0
	for slot := range min(j.depth, todo) {
		submit(slot)
		fresh++
	}
	todo -= fresh
	for done < b.N {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, uintptr(fresh), 1, uringEnterGetEvent, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			b.Fatal(errno)
		}
		fresh -= int(n)
		head := *word(p.cq.head)
		for head != atomic.LoadUint32(word(p.cq.tail)) {
			c := cqes[head&*word(p.cq.mask)]
			if int(c.res) != j.unit {
				b.Fatal(c.res)
			}
			head++
			done++
			if todo > 0 {
				todo--
				submit(int(c.data))
				fresh++
			}
		}
		atomic.StoreUint32(word(p.cq.head), head)
	}
}
