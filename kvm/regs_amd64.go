package kvm

// Regs mirrors struct kvm_regs: the general-purpose registers.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment mirrors struct kvm_segment: a segment register with its hidden part. The
// names are those of a segment descriptor (Intel SDM, volume 3, "Segment
// Descriptors"); each one-bit field is 0 or 1.
type Segment struct {
	Base     uint64
	Limit    uint32 // in bytes, also if G is set
	Selector uint16
	Type     uint8
	Present  uint8
	DPL      uint8
	DB       uint8
	S        uint8
	L        uint8
	G        uint8
	AVL      uint8
	Unusable uint8
	_        uint8
}

// DTable mirrors struct kvm_dtable: GDTR or IDTR.
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs mirrors struct kvm_sregs: the segment and control registers.
type Sregs struct {
	CS, DS, ES, FS, GS, SS Segment
	TR, LDT                Segment
	GDT, IDT               DTable
	CR0, CR2, CR3, CR4     uint64
	CR8                    uint64
	EFER                   uint64
	APICBase               uint64
	InterruptBitmap        [4]uint64 // the external interrupt that waits, if any
}

// DebugRegs mirrors struct kvm_debugregs.
type DebugRegs struct {
	DB    [4]uint64
	DR6   uint64
	DR7   uint64
	Flags uint64
	_     [9]uint64
}

// Translation mirrors struct kvm_translation: how the guest's page tables map a
// linear address.
type Translation struct {
	LinearAddress   uint64
	PhysicalAddress uint64 // guest-physical
	Valid           uint8
	Writeable       uint8 // KVM does not fill it in
	Usermode        uint8 // nor this
	_               [5]uint8
}

// Regs reads the general-purpose registers (KVM_GET_REGS).
func (c *VCPU) Regs() (Regs, error) {
	var r Regs
	_, err := ioctlStruct(c.fd, kvmGetRegs, &r)
	return r, opError("KVM_GET_REGS", err)
}

// SetRegs writes the general-purpose registers (KVM_SET_REGS).
func (c *VCPU) SetRegs(r *Regs) error {
	_, err := ioctlStruct(c.fd, kvmSetRegs, r)
	return opError("KVM_SET_REGS", err)
}

// Sregs reads the segment and control registers (KVM_GET_SREGS).
func (c *VCPU) Sregs() (Sregs, error) {
	var s Sregs
	_, err := ioctlStruct(c.fd, kvmGetSregs, &s)
	return s, opError("KVM_GET_SREGS", err)
}

// SetSregs writes the segment and control registers (KVM_SET_SREGS). A
// combination that no processor can be in gives unix.EINVAL.
func (c *VCPU) SetSregs(s *Sregs) error {
	_, err := ioctlStruct(c.fd, kvmSetSregs, s)
	return opError("KVM_SET_SREGS", err)
}

// DebugRegs reads the debug registers (KVM_GET_DEBUGREGS).
func (c *VCPU) DebugRegs() (DebugRegs, error) {
	var d DebugRegs
	_, err := ioctlStruct(c.fd, kvmGetDebugRegs, &d)
	return d, capError("KVM_GET_DEBUGREGS", CapDebugRegs, c.vm.Check, err)
}

// SetDebugRegs writes the debug registers (KVM_SET_DEBUGREGS).
func (c *VCPU) SetDebugRegs(d *DebugRegs) error {
	_, err := ioctlStruct(c.fd, kvmSetDebugRegs, d)
	return capError("KVM_SET_DEBUGREGS", CapDebugRegs, c.vm.Check, err)
}

// Translate walks the guest's page tables in the vCPU's current mode
// (KVM_TRANSLATE).
func (c *VCPU) Translate(linear uint64) (Translation, error) {
	t := Translation{LinearAddress: linear}
	_, err := ioctlStruct(c.fd, kvmTranslate, &t)
	return t, opError("KVM_TRANSLATE", err)
}
