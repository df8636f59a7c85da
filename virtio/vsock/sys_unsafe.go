package vsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls on descriptors that never block, as raw system calls: Go's scheduler need
// not be ready for a thread that is gone for long. What that costs a process that was
// at rest is in package virtio's eventfd_unsafe.go.

// maxVector is how many buffers a call takes here; the rest waits for the next.
const maxVector = 64

// readv is unix.Readv for a descriptor that does not block.
func readv(fd int, bufs [][]byte) (int, error) { return transfer(unix.SYS_READV, fd, bufs) }

// writev is unix.Writev for a descriptor that does not block.
func writev(fd int, bufs [][]byte) (int, error) { return transfer(unix.SYS_WRITEV, fd, bufs) }

func transfer(trap uintptr, fd int, bufs [][]byte) (int, error) {
	var vec [maxVector]unix.Iovec
	n := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if n == len(vec) {
			break
		}
		vec[n].Base = unsafe.SliceData(b)
		vec[n].SetLen(len(b))
		n++
	}
	k, _, errno := unix.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&vec[0])), uintptr(n))
	if errno != 0 {
		return -1, errno
	}
	return int(k), nil
}

// epollNow is unix.EpollWait without a wait.
func epollNow(fd int, events []unix.EpollEvent) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// epollCtl is unix.EpollCtl.
func epollCtl(epfd, op, fd int, event *unix.EpollEvent) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(event)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
