package net

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/memory"
)

// Requests of linux/vhost.h.
const (
	vhostGetFeatures   = 0x8008af00 // VHOST_GET_FEATURES
	vhostSetFeatures   = 0x4008af00 // VHOST_SET_FEATURES
	vhostSetOwner      = 0x0000af01 // VHOST_SET_OWNER
	vhostSetMemTable   = 0x4008af03 // VHOST_SET_MEM_TABLE
	vhostSetVringNum   = 0x4008af10 // VHOST_SET_VRING_NUM
	vhostSetVringAddr  = 0x4028af11 // VHOST_SET_VRING_ADDR
	vhostSetVringBase  = 0x4008af12 // VHOST_SET_VRING_BASE
	vhostGetVringBase  = 0xc008af12 // VHOST_GET_VRING_BASE
	vhostSetVringKick  = 0x4008af20 // VHOST_SET_VRING_KICK
	vhostSetVringCall  = 0x4008af21 // VHOST_SET_VRING_CALL
	vhostSetVringErr   = 0x4008af22 // VHOST_SET_VRING_ERR
	vhostNetSetBackend = 0x4008af30 // VHOST_NET_SET_BACKEND
)

// vringState is struct vhost_vring_state.
type vringState struct{ index, num uint32 }

// vringFile is struct vhost_vring_file.
type vringFile struct {
	index uint32
	fd    int32
}

// vringAddr is struct vhost_vring_addr. The addresses are this process's.
type vringAddr struct {
	index, flags uint32
	desc         uint64
	used         uint64
	avail        uint64
	log          uint64
}

// maxVhostRegions is how many regions a memTable has room for: the kernel takes 64 at
// least.
const maxVhostRegions = 64

// memTable is struct vhost_memory with its regions behind it.
type memTable struct {
	count, padding uint32
	regions        [maxVhostRegions]memRegion
}

// memRegion is struct vhost_memory_region.
type memRegion struct {
	gpa, size, hva uint64
	flags          uint64
}

// vhostFile is an open /dev/vhost-net. It is in no poller.
type vhostFile struct{ f *os.File }

func openVhostFile() (vhostKernel, error) {
	fd, err := unix.Open(vhostPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return vhostFile{os.NewFile(uintptr(fd), vhostPath)}, nil
}

func (v vhostFile) close() error { return v.f.Close() }

// call makes a request. The kernel copies what arg points to, and keeps nothing of it.
func (v vhostFile) call(name string, request uintptr, arg unsafe.Pointer) error {
	raw, err := v.f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	if err := raw.Control(func(fd uintptr) {
		for {
			if _, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return err
	}
	if errno != 0 {
		return fmt.Errorf("%s: %w", name, errno)
	}
	return nil
}

func (v vhostFile) own() error { return v.call("VHOST_SET_OWNER", vhostSetOwner, nil) }

func (v vhostFile) features() (f uint64, err error) {
	err = v.call("VHOST_GET_FEATURES", vhostGetFeatures, unsafe.Pointer(&f))
	return f, err
}

func (v vhostFile) setFeatures(f uint64) error {
	return v.call("VHOST_SET_FEATURES", vhostSetFeatures, unsafe.Pointer(&f))
}

func (v vhostFile) setMemory(regions []memory.Region) error {
	t, err := newMemTable(regions)
	if err != nil {
		return err
	}
	return v.call("VHOST_SET_MEM_TABLE", vhostSetMemTable, unsafe.Pointer(t))
}

func newMemTable(regions []memory.Region) (*memTable, error) {
	if len(regions) > maxVhostRegions {
		return nil, fmt.Errorf("the guest's RAM has %d regions: vhost takes %d", len(regions), maxVhostRegions)
	}
	t := &memTable{count: uint32(len(regions))}
	for i, r := range regions {
		t.regions[i] = memRegion{gpa: r.GPA, size: r.Size(), hva: hostAddress(r.Mem)}
	}
	return t, nil
}

// hostAddress is where b lies in this process: guest memory, which does not move.
func hostAddress(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

func (v vhostFile) setSize(ring, n int) error {
	return v.call("VHOST_SET_VRING_NUM", vhostSetVringNum, unsafe.Pointer(&vringState{uint32(ring), uint32(n)}))
}

func (v vhostFile) setRings(ring int, desc, avail, used []byte) error {
	a := vringAddr{index: uint32(ring), desc: hostAddress(desc), avail: hostAddress(avail), used: hostAddress(used)}
	return v.call("VHOST_SET_VRING_ADDR", vhostSetVringAddr, unsafe.Pointer(&a))
}

func (v vhostFile) setBase(ring int, next uint16) error {
	return v.call("VHOST_SET_VRING_BASE", vhostSetVringBase, unsafe.Pointer(&vringState{uint32(ring), uint32(next)}))
}

func (v vhostFile) base(ring int) (next uint16, err error) {
	s := vringState{index: uint32(ring)}
	err = v.call("VHOST_GET_VRING_BASE", vhostGetVringBase, unsafe.Pointer(&s))
	return uint16(s.num), err
}

func (v vhostFile) setKick(ring, fd int) error {
	return v.file("VHOST_SET_VRING_KICK", vhostSetVringKick, ring, fd)
}

func (v vhostFile) setCall(ring, fd int) error {
	return v.file("VHOST_SET_VRING_CALL", vhostSetVringCall, ring, fd)
}

func (v vhostFile) setErr(ring, fd int) error {
	return v.file("VHOST_SET_VRING_ERR", vhostSetVringErr, ring, fd)
}

func (v vhostFile) setBackend(ring, fd int) error {
	return v.file("VHOST_NET_SET_BACKEND", vhostNetSetBackend, ring, fd)
}

func (v vhostFile) file(name string, request uintptr, ring, fd int) error {
	return v.call(name, request, unsafe.Pointer(&vringFile{uint32(ring), int32(fd)}))
}

// takeEventfd sets an eventfd that does not block to 0, and reports whether it was more:
// by a raw system call, for the reason in package virtio's eventfd_unsafe.go.
func takeEventfd(fd int) bool {
	var n uint64
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&n)), unsafe.Sizeof(n))
		if errno != unix.EINTR {
			return errno == 0
		}
	}
}
