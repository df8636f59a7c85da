package kvm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

var eventfdOne = uint64(1)

// Signal adds 1 to an eventfd, that of an irqfd. It does not wait: only 2^64-2 of
// them would, and KVM takes the count away at once. Nothing could be done about
// another error. It is a raw system call, which Go's scheduler does not prepare for:
// that would wake the scheduler's monitor thread in a process that was at rest, which
// costs more than the interrupt.
func Signal(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&eventfdOne)), unsafe.Sizeof(eventfdOne))
}
