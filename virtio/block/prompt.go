package block

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Prompt is implemented by images that can move bytes without waiting, at times: where
// they are in memory. done is false where the call would have had to wait, or could not
// do all of it; the caller then asks by ReadvAt or WritevAt. Part of the bytes may have
// been moved by then. Whoever serves a queue asks this way first: handing a request to
// another goroutine takes longer than copying it.
type Prompt interface {
	TryReadvAt(bufs [][]byte, off int64) (done bool)
	TryWritevAt(bufs [][]byte, off int64) (done bool)
}

// promptMax is the most that is moved that way, in bytes. More is better copied beside
// the next request than before it.
const promptMax = 64 << 10

// promptness is what is known of a file's way to move bytes without waiting.
type promptness struct {
	// inMemory: the file is on a file system that has no device to wait for.
	inMemory bool
	// noRead and noWrite: this one can't say that it would have to wait.
	noRead, noWrite atomic.Bool
}

// learn looks at what a file lies on.
func (p *promptness) learn(fd int, direct, through bool) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(fd, &st) }); err == nil {
		switch st.Type {
		case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
			p.inMemory = true
		}
	}
	// O_DIRECT always goes to the device, and so does a write that has to be stable.
	p.noRead.Store(direct)
	p.noWrite.Store(direct || through && !p.inMemory)
}

// flags are those of preadv2 and pwritev2.
func (p *promptness) flags() int {
	if p.inMemory {
		return 0
	}
	return unix.RWF_NOWAIT
}

// TryReadvAt implements [Prompt].
func (f *File) TryReadvAt(bufs [][]byte, off int64) bool {
	total := vecLen(bufs)
	if f.prompt.noRead.Load() || checkRange(off, total, f.size.Load()) != nil || off+total > f.end.Load() || f.acquire() != nil {
		return false
	}
	defer f.release()
	return f.try(unix.SYS_PREADV2, &f.prompt.noRead, bufs, off, total)
}

// TryWritevAt implements [Prompt].
func (f *File) TryWritevAt(bufs [][]byte, off int64) bool {
	total := vecLen(bufs)
	if f.prompt.noWrite.Load() || f.writable(off, total) != nil || f.acquire() != nil {
		return false
	}
	defer f.release()
	// What is wrong is for WritevAt to report.
	if f.reaches(off+total) != nil {
		return false
	}
	return f.try(unix.SYS_PWRITEV2, &f.prompt.noWrite, bufs, off, total)
}

// try is one call that does not wait. What it can't do it leaves to others.
func (f *File) try(trap uintptr, never *atomic.Bool, bufs [][]byte, off, total int64) bool {
	return f.attempt(trap, never, bufs, off, total) == total
}

// cachedMax bounds a read of which the scheduler is not told, in bytes: the copy takes
// about a tenth of a millisecond.
const cachedMax = 1 << 20

// cached moves what a large read finds in the page cache, and returns how much that is,
// from the first byte on. The scheduler is not told: it would hand the processor on, and
// look every 20 microseconds for as long as the copy takes. A small read was tried
// before.
func (f *File) cached(trap uintptr, bufs [][]byte, off, total int64) int64 {
	if trap != unix.SYS_PREADV || total <= promptMax || total > cachedMax || f.prompt.inMemory || f.prompt.noRead.Load() {
		return 0
	}
	return f.attempt(unix.SYS_PREADV2, &f.prompt.noRead, bufs, off, total)
}

// attempt returns how many bytes one call that does not wait has moved.
func (f *File) attempt(trap uintptr, never *atomic.Bool, bufs [][]byte, off, total int64) int64 {
	v := iovecPool.Get().(*iovecs)
	defer v.done()
	if v.fill(bufs, 0) != total {
		return 0
	}
	n, errno := v.prompt(trap, f.fd, off, f.prompt.flags())
	switch errno {
	case 0:
		return int64(n)
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL, unix.EPERM:
		never.Store(true)
	}
	return 0
}
