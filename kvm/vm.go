package kvm

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Flags of a MemoryRegion.
const (
	MemLogDirtyPages = 1 << 0 // KVM_MEM_LOG_DIRTY_PAGES
	MemReadonly      = 1 << 1 // KVM_MEM_READONLY: a write is an MMIO exit; needs CapReadonlyMem
)

// VM is one virtual machine. Its methods may be called from any goroutine at
// the same time, Close excepted.
type VM struct {
	fd       int
	mmapSize int

	mu    sync.Mutex
	slots map[uint32]uint64 // bytes of each memory slot

	coalesced sync.Mutex // the ring is the VM's, but each vCPU maps it
}

// MemoryRegion is what SetMemoryRegion makes of a slot.
type MemoryRegion struct {
	Slot  uint32
	Flags uint32
	GPA   uint64  // guest-physical address, page-aligned
	Size  uint64  // bytes, page-aligned; 0 removes the slot
	HVA   uintptr // host virtual address of the mapping, page-aligned; see AddressOf
}

// userMemoryRegion mirrors struct kvm_userspace_memory_region.
type userMemoryRegion struct {
	Slot          uint32
	Flags         uint32
	GuestPhysAddr uint64
	MemorySize    uint64
	UserspaceAddr uint64
}

// enableCap mirrors struct kvm_enable_cap.
type enableCap struct {
	Cap   uint32
	Flags uint32
	Args  [4]uint64
	_     [64]uint8
}

// Close closes the machine's descriptor. The kernel keeps the machine until its
// vCPUs are closed as well. A second Close does nothing.
func (vm *VM) Close() error {
	fd := vm.fd
	if fd < 0 {
		return nil
	}
	vm.fd = -1
	return opError("close VM", unix.Close(fd))
}

// Check is System.Check for this machine: some capabilities depend on it.
func (vm *VM) Check(c Cap) (int, error) {
	n, err := ioctlValue(vm.fd, kvmCheckExtension, uintptr(c))
	if err != nil {
		return 0, opError("KVM_CHECK_EXTENSION "+c.String(), err)
	}
	return n, nil
}

// EnableCap enables a capability that is off by default (KVM_ENABLE_CAP) with up
// to four arguments. One that KVM lacks gives a *MissingError.
func (vm *VM) EnableCap(c Cap, flags uint32, args ...uint64) error {
	op := "KVM_ENABLE_CAP " + c.String()
	arg := enableCap{Cap: uint32(c), Flags: flags}
	if len(args) > len(arg.Args) {
		return fmt.Errorf("kvm: %s: %w: %d arguments where %d is the most", op, ErrInvalid, len(args), len(arg.Args))
	}
	copy(arg.Args[:], args)
	_, err := ioctlStruct(vm.fd, kvmEnableCap, &arg)
	return capError(op, c, vm.Check, err)
}

// SetMemoryRegion creates, moves, re-flags or (Size 0) removes a memory slot
// (KVM_SET_USER_MEMORY_REGION). The memory at HVA stays the caller's and must
// stay mapped until the slot is removed, or the VM and all its vCPUs are closed.
// A slot that overlaps another gives unix.EEXIST.
//
// Do it before CreateIRQChip: afterwards each call waits for an SRCU grace
// period, several milliseconds.
func (vm *VM) SetMemoryRegion(r MemoryRegion) error {
	arg := userMemoryRegion{
		Slot:          r.Slot,
		Flags:         r.Flags,
		GuestPhysAddr: r.GPA,
		MemorySize:    r.Size,
		UserspaceAddr: uint64(r.HVA),
	}
	// The lock keeps slots true to the kernel's order.
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if _, err := ioctlStruct(vm.fd, kvmSetUserMemoryRegion, &arg); err != nil {
		op := fmt.Sprintf("KVM_SET_USER_MEMORY_REGION: slot %d, guest-physical %#x + %#x", r.Slot, r.GPA, r.Size)
		if r.Flags&MemReadonly != 0 {
			return capError(op, CapReadonlyMem, vm.Check, err)
		}
		return opError(op, err)
	}
	if r.Size == 0 {
		delete(vm.slots, r.Slot)
	} else {
		vm.slots[r.Slot] = r.Size
	}
	return nil
}

// DirtyLog stores which pages of slot were written since the last call, and
// starts anew (KVM_GET_DIRTY_LOG): bit i%64 of bitmap[i/64] is page i. The slot
// must have MemLogDirtyPages, or it gives unix.ENOENT; a bitmap too short for it
// gives ErrInvalid. It does not allocate.
func (vm *VM) DirtyLog(slot uint32, bitmap []uint64) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	size, ok := vm.slots[slot]
	if !ok {
		return fmt.Errorf("kvm: KVM_GET_DIRTY_LOG: %w: there is no memory slot %d", ErrInvalid, slot)
	}
	// The kernel writes as many words as the slot needs, whatever is there.
	if need := (size/pageSize + 63) / 64; uint64(len(bitmap)) < need {
		return fmt.Errorf("kvm: KVM_GET_DIRTY_LOG: %w: slot %d needs %d words, the bitmap has %d", ErrInvalid, slot, need, len(bitmap))
	}
	return opError("KVM_GET_DIRTY_LOG", ioctlDirtyLog(vm.fd, slot, bitmap))
}
