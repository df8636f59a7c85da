package block

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iovMax is how many buffers one system call takes here: a virtio request has
// seg_max of them and seldom more. The kernel's limit is 1024.
const iovMax = 512

// iovecs is a reused argument of preadv and pwritev. unix.Preadv makes a new
// one in each call.
type iovecs struct {
	v [iovMax]unix.Iovec
	n int
}

var iovecPool = sync.Pool{New: func() any { return new(iovecs) }}

// fill takes the bytes of bufs from byte skip on, as many as fit, and returns
// how many that are.
func (io *iovecs) fill(bufs [][]byte, skip int64) int64 {
	io.n = 0
	var total int64
	for _, b := range bufs {
		if skip >= int64(len(b)) {
			skip -= int64(len(b))
			continue
		}
		if io.n == iovMax {
			break
		}
		b = b[skip:]
		skip = 0
		io.v[io.n].Base = unsafe.SliceData(b)
		io.v[io.n].SetLen(len(b))
		io.n++
		total += int64(len(b))
	}
	return total
}

// done forgets the buffers. They may be guest memory that is unmapped soon;
// the collector must not meet such an address later, when it may be its own.
func (io *iovecs) done() {
	clear(io.v[:io.n])
	io.n = 0
	iovecPool.Put(io)
}

// call is one preadv or pwritev.
func (io *iovecs) call(trap uintptr, fd int, off int64) (int, error) {
	// The offset's high half is ignored on 64-bit machines.
	n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&io.v[0])), uintptr(io.n),
		uintptr(off), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// prompt is one preadv2 or pwritev2 that is not to wait.
func (io *iovecs) prompt(trap uintptr, fd int, off int64, flags int) (int, syscall.Errno) {
	call := unix.Syscall6
	if waitless(trap, flags) {
		call = unix.RawSyscall6
	}
	n, _, errno := call(trap, uintptr(fd), uintptr(unsafe.Pointer(&io.v[0])), uintptr(io.n),
		uintptr(off), 0, uintptr(flags))
	return int(n), errno
}

// waitless reports whether the runtime need not be told of a call: that would wake its
// monitor, which is a sixth of the time from kick to interrupt after a pause. It holds
// up the collector and whoever else is to run there, for as long as the call takes: so
// only for a read that says it can't wait, which takes no longer than the copy into
// guest memory that Go itself would make. A file system in memory can't be told not to
// wait, and does for what was swapped out; a write waits for a file system that is frozen.
func waitless(trap uintptr, flags int) bool {
	return trap == unix.SYS_PREADV2 && flags&unix.RWF_NOWAIT != 0
}

// misaligned reports whether b does not start at a multiple of align, a power
// of two.
func misaligned(b []byte, align int) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))&uintptr(align-1) != 0
}

// alignedBytes returns n bytes that start at a multiple of align, a power of
// two. Go does not move what it allocates.
func alignedBytes(n, align int) []byte {
	raw := make([]byte, n+align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw))) & uintptr(align-1))
	return raw[skip : skip+n : skip+n]
}

// blockDeviceSize is BLKGETSIZE64, in bytes.
func blockDeviceSize(fd int) (int64, error) {
	var size uint64
	if err := ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return 0, err
	}
	return int64(size), nil
}

// blockDeviceDiscard is BLKDISCARD.
func blockDeviceDiscard(fd int, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	return ioctl(fd, unix.BLKDISCARD, unsafe.Pointer(&arg))
}

func ioctl(fd int, req uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}
