package virtio

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls on an eventfd that does not block are raw system calls. An ordinary one
// tells Go's scheduler that the thread may be gone for long; in a process that was
// at rest that wakes the scheduler's monitor thread, which then looks around every 20
// microseconds until all rests again. For a device that works for some microseconds a
// request that costs more than the work does.

var eventfdOne = uint64(1)

// ringEventfd adds 1 to an eventfd. It is for a syscall.RawConn.
func ringEventfd(fd uintptr) {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&eventfdOne)), unsafe.Sizeof(eventfdOne))
}

// takeEventfd sets an eventfd to 0, and reports false if it was. It is for a
// syscall.RawConn.
func takeEventfd(fd uintptr) bool {
	var n uint64
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&n)), unsafe.Sizeof(n))
		if errno != unix.EINTR {
			return errno != unix.EAGAIN
		}
	}
}
