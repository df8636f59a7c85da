package memory

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// reserve takes n bytes of address space that nothing may touch yet.
func reserve(n uint64) ([]byte, error) {
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), n), nil
}

// alignedPart returns the first size bytes of raw whose address is a multiple
// of hugeSize; raw is longer than size by at least hugeSize.
func alignedPart(raw []byte, size uint64) []byte {
	addr := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(raw))))
	skip := -addr & (hugeSize - 1)
	return raw[skip : skip+size : skip+size]
}

// mapOver replaces the reservation under mem by memory of fd, or by anonymous
// memory when fd is negative.
func mapOver(mem []byte, fd int, off int64, hugetlb bool) error {
	flags := unix.MAP_FIXED
	switch {
	case fd >= 0:
		flags |= unix.MAP_SHARED
	default:
		flags |= unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
		if hugetlb {
			flags |= unix.MAP_HUGETLB | unix.MAP_HUGE_2MB
		}
	}
	_, err := unix.MmapPtr(fd, off, unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)),
		unix.PROT_READ|unix.PROT_WRITE, flags)
	return err
}

func unmap(raw []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(raw)), uintptr(len(raw)))
}

// nameAnonymous labels mem in /proc/PID/smaps where the kernel can
// (CONFIG_ANON_VMA_NAME, Linux 5.17).
func nameAnonymous(mem []byte, name string) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return
	}
	_ = unix.Prctl(unix.PR_SET_VMA, unix.PR_SET_VMA_ANON_NAME,
		uintptr(unsafe.Pointer(unsafe.SliceData(mem))), uintptr(len(mem)), uintptr(unsafe.Pointer(p)))
}

// HostAddress returns where the host has the region mapped, for
// KVM_SET_USER_MEMORY_REGION. The region's memory is not the garbage
// collector's: the address stays valid until Close.
func (r Region) HostAddress() uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(r.Mem)))
}
