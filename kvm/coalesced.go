package kvm

import "fmt"

// CoalescedZone is a range of addresses at which the guest's writes need no
// answer: KVM collects them in a ring, without an exit, until one is due for
// another reason or the ring is full.
type CoalescedZone struct {
	Addr uint64 // guest-physical, or a port if PIO
	Size uint32 // bytes
	PIO  bool   // needs CapCoalescedPIO
}

// coalescedZone mirrors struct kvm_coalesced_mmio_zone.
type coalescedZone struct {
	Addr uint64
	Size uint32
	PIO  uint32
}

// RegisterCoalesced adds a zone (KVM_REGISTER_COALESCED_MMIO). Every vCPU must
// then call DrainCoalesced after each Run, before it handles the exit, so that
// accesses stay in order.
func (vm *VM) RegisterCoalesced(z CoalescedZone) error {
	return vm.coalesce(kvmRegisterCoalesced, "KVM_REGISTER_COALESCED_MMIO", z)
}

// UnregisterCoalesced removes every zone that contains z
// (KVM_UNREGISTER_COALESCED_MMIO). Writes in the ring remain there.
func (vm *VM) UnregisterCoalesced(z CoalescedZone) error {
	return vm.coalesce(kvmUnregisterCoalesced, "KVM_UNREGISTER_COALESCED_MMIO", z)
}

func (vm *VM) coalesce(req uintptr, op string, z CoalescedZone) error {
	need := CapCoalescedMMIO
	arg := coalescedZone{Addr: z.Addr, Size: z.Size}
	if z.PIO {
		need, arg.PIO = CapCoalescedPIO, 1
		// A kernel without it ignores the flag and would take the ports for
		// memory.
		n, err := vm.Check(need)
		if err != nil {
			return err
		}
		if n <= 0 {
			return &MissingError{Cap: need, Op: op}
		}
	}
	_, err := ioctlStruct(vm.fd, req, &arg)
	return capError(fmt.Sprintf("%s: %#x + %#x", op, z.Addr, z.Size), need, vm.Check, err)
}

// DrainCoalesced hands the collected writes to fn, oldest first, and returns how
// many there were. The ring belongs to the VM and each vCPU drains it whole: a
// write of another vCPU may come out here, but each comes out once, and when
// DrainCoalesced returns, all that were there when it was called have been
// handled. Where there are none it costs two loads. data is valid during the call
// only, and fn must not call DrainCoalesced. Any thread may call it, whether the
// vCPU runs or not. It does not allocate.
func (c *VCPU) DrainCoalesced(fn func(addr uint64, data []byte, pio bool)) int {
	if c.ring == nil || c.ring.empty() {
		return 0
	}
	c.vm.coalesced.Lock()
	defer c.vm.coalesced.Unlock()
	return c.ring.drain(fn)
}
