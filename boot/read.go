package boot

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vole-vmm/vole/memory"
)

// Range is a guest-physical range, in bytes.
type Range = memory.Range

const pageSize = memory.PageSize

// read is a part of a file that goes to guest memory.
type read struct {
	name string // for errors
	img  Image
	off  int64
	gpa  uint64
	size uint64
	// sparse is set where much of the file may be zero: half of a vmlinux's
	// pages are (its bss is in the file). Pages of zeroes are then left alone,
	// which costs a copy of the rest and saves the page faults, each of which
	// costs more than ten such copies.
	sparse bool
}

const (
	// pieceSize is how much of a file a worker takes at a time: a huge page,
	// so that no two workers have the same one zeroed at their first touch.
	pieceSize = 2 << 20
	// bounceSize is the buffer through which sparse files are read; it stays
	// in the CPU's nearest caches.
	bounceSize = 64 << 10
	// maxWorkers bounds the workers: page faults of one address space do not
	// scale much further.
	maxWorkers = 4
)

// pieces cuts reads at guest-physical multiples of pieceSize.
func pieces(reads []read) []read {
	var out []read
	for _, r := range reads {
		for r.size > 0 {
			n := min(r.size, pieceSize-r.gpa%pieceSize)
			p := r
			p.size = n
			out = append(out, p)
			r.off, r.gpa, r.size = r.off+int64(n), r.gpa+n, r.size-n
		}
	}
	return out
}

// readAll does the reads, several at a time. Of several errors the one of the
// first piece is returned.
func readAll(mem *memory.Guest, reads []read) error {
	todo := pieces(reads)
	errs := make([]error, len(todo))
	var next atomic.Int64
	var failed atomic.Bool
	work := func() {
		var bounce []byte
		for !failed.Load() {
			i := int(next.Add(1)) - 1
			if i >= len(todo) {
				return
			}
			r := &todo[i]
			if r.sparse && bounce == nil {
				bounce = make([]byte, bounceSize)
			}
			if err := guarded(func() error { return r.into(mem, bounce) }); err != nil {
				errs[i] = about(r.name, err)
				failed.Store(true)
			}
		}
	}
	var wg sync.WaitGroup
	for range min(maxWorkers, runtime.GOMAXPROCS(0), len(todo)) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// into reads the part of the file into guest memory.
func (r *read) into(mem *memory.Guest, bounce []byte) error {
	d, err := mem.Slice(r.gpa, r.size)
	if err != nil {
		return err
	}
	if !r.sparse {
		return readFull(r.img, d, r.off)
	}
	off, gpa := r.off, r.gpa
	for len(d) > 0 {
		// Blocks end at page boundaries of the guest.
		b := bounce[:min(uint64(len(d)), bounceSize-gpa%pageSize)]
		if err := readFull(r.img, b, off); err != nil {
			return err
		}
		copyNonZero(d, b, gpa%pageSize)
		d, off, gpa = d[len(b):], off+int64(len(b)), gpa+uint64(len(b))
	}
	return nil
}

var zeroes [pageSize]byte

// copyNonZero copies src to the beginning of dst except for the pages of it
// that are all zero. first is the offset of dst within its first page.
func copyNonZero(dst, src []byte, first uint64) {
	for len(src) > 0 {
		n := min(uint64(len(src)), pageSize-first)
		if !bytes.Equal(src[:n], zeroes[:n]) {
			copy(dst, src[:n])
		}
		dst, src, first = dst[n:], src[n:], 0
	}
}

// guarded calls f, which writes guest memory, and turns a fault of the host
// (it has no page to give) into an error.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch v := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			err = fmt.Errorf("writing guest memory: %w", memory.ErrNoMemory)
		default:
			panic(v)
		}
	}()
	if err = f(); errors.Is(err, syscall.EFAULT) {
		err = fmt.Errorf("writing guest memory: %w (%w)", memory.ErrNoMemory, err)
	}
	return err
}
