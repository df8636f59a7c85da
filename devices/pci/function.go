package pci

import (
	"errors"
	"fmt"
	"sync"
)

// Errors of building and plugging functions.
var (
	ErrInvalid = errors.New("not valid in PCI")
	ErrNoSpace = errors.New("no room left")
	ErrPlugged = errors.New("the function is on a bus already")
)

// Registers of a type 0 header (PCI 3.0, section 6.1), as indices of dwords.
const (
	regID           = 0        // vendor, device
	regCommand      = 0x04 / 4 // command, status
	regClass        = 0x08 / 4 // revision, class
	regBAR0         = 0x10 / 4
	regSubsystem    = 0x2c / 4 // subsystem vendor, subsystem
	regCapabilities = 0x34 / 4

	headerSize     = 0x40  // bytes; capabilities start here
	configSize     = 0x100 // bytes of the conventional configuration space
	extendedSize   = 0x1000
	numBARs        = 6
	lastConfigByte = configSize - 1
)

// Bits of command and status (PCI 3.0, sections 6.2.2 and 6.2.3).
const (
	commandMemory      = 1 << 1
	commandMaster      = 1 << 2
	commandINTxDisable = 1 << 10
	commandWritable    = commandMemory | commandMaster | commandINTxDisable

	statusCapabilities = 1 << (16 + 4) // in the dword with the command
)

// ID is what a guest chooses its driver by.
type ID struct {
	Vendor, Device       uint16
	Revision             uint8
	Class                uint32 // 24 bits: base class, subclass, programming interface
	SubVendor, SubDevice uint16
}

// Function is a device of one function with a type 0 header. It is built by one goroutine, and then plugged into a
// [Host]; from then on the guest reaches it, its shape is fixed, and the methods that add to it fail with [ErrPlugged].
type Function struct {
	// OnMap, if set before Plug, hears when a BAR has been put on the memory bus at base (guest-physical), and, before
	// it is taken away from there, when it is about to leave base. It is what moves ioeventfds. The calls come in
	// order, on the thread that made the change, with the host's lock held: it must not touch configuration space,
	// nor call State, SetState, Plug, Reset or Close, nor wait for another thread that does.
	OnMap func(bar int, base uint64, mapped bool)

	mu   *sync.Mutex // its own until it is plugged, then the host's
	host *Host

	regs     [configSize / 4]uint32
	writable [configSize / 4]uint32 // the bits of regs that a guest can change
	initial  [configSize / 4]uint32 // regs as plugged, for a reset

	capabilities []capability
	lastLink     int // offset of the byte that links to the next capability
	free         int // offset of the first byte not taken by one

	bars [numBARs]*bar
	msix *MSIX
}

// NewFunction returns a function with a header and nothing else.
func NewFunction(id ID) *Function {
	f := &Function{mu: new(sync.Mutex), lastLink: regCapabilities * 4, free: headerSize}
	f.regs[regID] = uint32(id.Device)<<16 | uint32(id.Vendor)
	f.regs[regClass] = id.Class<<8 | uint32(id.Revision)
	f.regs[regSubsystem] = uint32(id.SubDevice)<<16 | uint32(id.SubVendor)
	f.writable[regCommand] = commandWritable
	return f
}

// Close closes the MSI-X vectors. The owner's goroutines must have ended: nothing may call Trigger any more.
func (f *Function) Close() error {
	if f.msix == nil {
		return nil
	}
	return f.msix.close()
}

// building returns an error if f can't be changed any more.
func (f *Function) building(what string) error {
	if f.host != nil {
		return fmt.Errorf("pci: %s: %w", what, ErrPlugged)
	}
	return nil
}

// invalid is an [ErrInvalid] that says what is wrong.
func invalid(format string, args ...any) error {
	return fmt.Errorf("pci: %s: %w", fmt.Sprintf(format, args...), ErrInvalid)
}
