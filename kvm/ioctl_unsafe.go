package kvm

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Encoding of an ioctl number, asm-generic/ioctl.h.
const (
	iocNone  = 0
	iocWrite = 1
	iocRead  = 2

	iocTypeShift = 8
	iocSizeShift = 16
	iocDirShift  = 30

	kvmIO = 0xae << iocTypeShift
)

// The ioctls that every architecture has, linux/kvm.h.
const (
	kvmGetAPIVersion   = kvmIO
	kvmCreateVM        = kvmIO | 0x01
	kvmCheckExtension  = kvmIO | 0x03
	kvmGetVCPUMmapSize = kvmIO | 0x04

	kvmCreateVCPU          = kvmIO | 0x41
	kvmGetDirtyLog         = iocWrite<<iocDirShift | unsafe.Sizeof(dirtyLog{})<<iocSizeShift | kvmIO | 0x42
	kvmSetUserMemoryRegion = iocWrite<<iocDirShift | unsafe.Sizeof(userMemoryRegion{})<<iocSizeShift | kvmIO | 0x46
	kvmIRQLine             = iocWrite<<iocDirShift | unsafe.Sizeof(irqLevel{})<<iocSizeShift | kvmIO | 0x61
	kvmRegisterCoalesced   = iocWrite<<iocDirShift | unsafe.Sizeof(coalescedZone{})<<iocSizeShift | kvmIO | 0x67
	kvmUnregisterCoalesced = iocWrite<<iocDirShift | unsafe.Sizeof(coalescedZone{})<<iocSizeShift | kvmIO | 0x68
	kvmSetGSIRouting       = iocWrite<<iocDirShift | unsafe.Sizeof(irqRoutingHead{})<<iocSizeShift | kvmIO | 0x6a
	kvmIRQFD               = iocWrite<<iocDirShift | unsafe.Sizeof(irqFD{})<<iocSizeShift | kvmIO | 0x76
	kvmIOEventFD           = iocWrite<<iocDirShift | unsafe.Sizeof(ioEventFD{})<<iocSizeShift | kvmIO | 0x79
	kvmSignalMSI           = iocWrite<<iocDirShift | unsafe.Sizeof(msi{})<<iocSizeShift | kvmIO | 0xa5
	kvmEnableCap           = iocWrite<<iocDirShift | unsafe.Sizeof(enableCap{})<<iocSizeShift | kvmIO | 0xa3

	kvmRun        = kvmIO | 0x80
	kvmGetMPState = iocRead<<iocDirShift | unsafe.Sizeof(mpState{})<<iocSizeShift | kvmIO | 0x98
	kvmSetMPState = iocWrite<<iocDirShift | unsafe.Sizeof(mpState{})<<iocSizeShift | kvmIO | 0x99
)

// ioctlValue issues an ioctl whose argument is a number. EINTR restarts it.
func ioctlValue(fd int, req, arg uintptr) (int, error) {
	if fd < 0 {
		return 0, ErrClosed
	}
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if errno == 0 {
			return int(r), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// ioctlStruct issues an ioctl whose argument points to a struct without Go
// pointers in it. EINTR restarts it. It does not allocate, and arg does not
// escape.
func ioctlStruct[T any](fd int, req uintptr, arg *T) (int, error) {
	if fd < 0 {
		return 0, ErrClosed
	}
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
		if errno == 0 {
			return int(r), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// newFlex returns a zeroed struct of type H that n elements of type E follow
// without a gap, the shape of every KVM struct of variable length. Both parts
// share one allocation; neither type may hold pointers.
func newFlex[H, E any](n int) (*H, []E) {
	var (
		h H
		e E
	)
	size := unsafe.Sizeof(h) + uintptr(n)*unsafe.Sizeof(e)
	buf := make([]uint64, (size+7)/8)
	base := unsafe.Pointer(unsafe.SliceData(buf))
	return (*H)(base), unsafe.Slice((*E)(unsafe.Add(base, unsafe.Sizeof(h))), n)
}

// ioctlDirtyLog reads a slot's dirty bitmap into bitmap, which the caller has
// checked to be large enough for the slot.
func ioctlDirtyLog(fd int, slot uint32, bitmap []uint64) error {
	arg := dirtyLog{Slot: slot, Bitmap: unsafe.Pointer(unsafe.SliceData(bitmap))}
	_, err := ioctlStruct(fd, kvmGetDirtyLog, &arg)
	runtime.KeepAlive(bitmap)
	return err
}

// dirtyLog mirrors struct kvm_dirty_log.
type dirtyLog struct {
	Slot   uint32
	_      uint32
	Bitmap unsafe.Pointer
}

// AddressOf returns the address of mem's first byte, for MemoryRegion.HVA.
// mem must be a mapping outside the Go heap (mmap, memfd), because KVM keeps the
// address; 0 for an empty slice.
func AddressOf(mem []byte) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
}
