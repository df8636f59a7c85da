package usernet

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls on a connection's socket, which never block, as raw system calls: Go's
// scheduler need not be ready for a thread that is gone for long. What that costs a
// process that was at rest is in package virtio's eventfd_unsafe.go.

// readSocket is unix.Read; the socket does not block.
func readSocket(fd int, b []byte) (int, error) { return transfer(unix.SYS_READ, fd, b, 0) }

// writeSocket is unix.Write.
func writeSocket(fd int, b []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, b, 0) }

// recvSocket is unix.Recvfrom without an address.
func recvSocket(fd int, b []byte, flags int) (int, error) {
	return transfer(unix.SYS_RECVFROM, fd, b, uintptr(flags))
}

func transfer(trap uintptr, fd int, b []byte, flags uintptr) (int, error) {
	n, _, errno := unix.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// queuedBytes is what a socket has at hand to read.
func queuedBytes(fd int) (int, error) {
	var n int32
	if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCINQ, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
