package vmm

import "github.com/vole-vmm/vole/virtio/mmio"

// The machine's guest-physical addresses, ports and interrupts. boot owns
// what lies below 1 MiB, memory where RAM is.
const (
	bootTimerBase = 0xc000_0000
	bootTimerSize = 0x1000

	ioapicBase   = 0xfec0_0000
	lapicBase    = 0xfee0_0000
	identityBase = 0xfffb_c000 // one page, for VMX without unrestricted guest
	tssBase      = 0xfffb_d000 // three pages, for the same
	reservedSize = 0x4000      // both

	acpiBase = 0xe_0000
	acpiSize = 0x2_0000

	pciWindow32     = 0xd000_0000
	pciWindow32Size = 0x1000_0000
	ecamBase        = 0xe000_0000
	pciBuses        = 1
	pciWindow64Size = 1 << 32 // above RAM
	pciPorts        = 0xcf8
	pciPortsSize    = 8
	pciAddressSize  = 4 // of them, the address register

	com1Port      = 0x3f8
	com1Size      = 8
	com1Data      = 0 // register: RBR, THR
	com1Status    = 5 // register: LSR
	com1GSI       = 4
	i8042Port     = 0x60
	i8042Size     = 5
	rtcPort       = 0x70
	rtcSize       = 2
	debugExitPort = 0xf4
	debugExitSize = 4
	pvpanicPort   = 0x505
	pvpanicSize   = 1
	powerPort     = 0x600
	powerSize     = 8
	gedGSI        = 5

	// Offsets in the power block and the value that resets.
	powerSleepControl = 0
	powerSleepStatus  = 1
	powerReset        = 2
	powerEvents       = 4
	powerResetValue   = 1
)

// Slots of virtio-mmio: a page and an IOAPIC pin each. The pins of COM1 and the
// GED lie below.
const (
	mmioFirst    = 0xc000_1000
	mmioFirstGSI = gedGSI + 1
	mmioSlots    = ioapicPins - mmioFirstGSI
)

func mmioBase(slot int) uint64 { return mmioFirst + uint64(slot)*mmio.Size }

// legacyGSIs are the pins that a kernel without ACPI has drivers use: those of the
// two interrupt controllers of a PC behind the GED's, but the clock's.
var legacyGSIs = []uint32{6, 7, 9, 10, 11, 12, 13, 14, 15}
