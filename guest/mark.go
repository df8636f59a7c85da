package guest

import (
	"os"

	"golang.org/x/sys/unix"
)

// The boot timer: vole notes the time when the byte bootMark is written there.
const (
	bootTimer = 0xc0000000 // guest-physical
	bootMark  = 123
)

// markBoot tells the host that user space is reached. On a machine without a
// boot timer the address belongs to nobody; where it is RAM, a kernel with
// CONFIG_STRICT_DEVMEM refuses the mapping. What cannot be told is not told.
func markBoot() {
	// O_SYNC makes the mapping uncached.
	fd, err := unix.Open("/dev/mem", unix.O_RDWR|unix.O_SYNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(fd, bootTimer, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return
	}
	storeMark(page)
	_ = unix.Munmap(page)
}

// storeMark is a single store of one byte: the timer takes no other.
//
//go:noinline
func storeMark(page []byte) { page[0] = bootMark }
