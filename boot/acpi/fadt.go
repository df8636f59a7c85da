package acpi

import (
	"encoding/binary"
	"math"
)

// The FADT of ACPI 6.3 (section 5.2.9). In a hardware-reduced machine the fields
// of the fixed hardware are ignored, and are 0 here.
const (
	fadtRevision      = 6
	fadtMinorRevision = 3
	fadtLength        = 276

	// Offsets from the table's start.
	fadtDSDT             = 40
	fadtCentury          = 108
	fadtBootArchitecture = 109
	fadtFlags            = 112
	fadtResetRegister    = 116
	fadtResetValue       = 128
	fadtMinorVersion     = 131
	fadtXDSDT            = 140
	fadtSleepControl     = 244
	fadtSleepStatus      = 256
	fadtHypervisorID     = 268
)

// IA-PC boot architecture flags (ACPI 6.3, table 5-35). LEGACY_DEVICES and 8042
// stay clear, so that nothing looks for a keyboard controller; "MSI not
// supported" stays clear, since MSI-X is what PCI devices have.
const (
	bootVGANotPresent     = 1 << 2
	bootCMOSRTCNotPresent = 1 << 5
)

// Fixed feature flags (ACPI 6.3, table 5-34).
const (
	flagWBINVD = 1 << 0
	// There is no fixed power or sleep button, and no RTC wake-up status in a
	// fixed register.
	flagPowerButton     = 1 << 4
	flagSleepButton     = 1 << 5
	flagFixedRTC        = 1 << 6
	flagResetRegister   = 1 << 10
	flagHeadless        = 1 << 12
	flagHardwareReduced = 1 << 20
)

// rtcCentury is the CMOS index of the RTC's century.
const rtcCentury = 0x32

// hypervisorID is the "hypervisor vendor identity" field: eight characters.
const hypervisorID = "VOLE\x00\x00\x00\x00"

// fadt is the FADT without its header, for a DSDT at the given address. SCI_INT
// stays 0: old kernels set up the pin that it names, level-triggered, even in
// hardware-reduced mode, and pin 0 is no device's.
func (m *Machine) fadt(dsdt uint64) []byte {
	b := make([]byte, fadtLength)

	// Linux warns where the 32-bit and the 64-bit address differ.
	if dsdt <= math.MaxUint32 {
		binary.LittleEndian.PutUint32(b[fadtDSDT:], uint32(dsdt))
	}
	binary.LittleEndian.PutUint64(b[fadtXDSDT:], dsdt)

	boot := uint16(bootVGANotPresent)
	if m.RTCPort == 0 {
		boot |= bootCMOSRTCNotPresent
	} else {
		b[fadtCentury] = rtcCentury
	}
	binary.LittleEndian.PutUint16(b[fadtBootArchitecture:], boot)

	flags := uint32(flagWBINVD | flagPowerButton | flagSleepButton | flagFixedRTC | flagHeadless | flagHardwareReduced)
	if m.ResetPort != 0 {
		flags |= flagResetRegister
		putByteRegister(b[fadtResetRegister:], m.ResetPort)
		b[fadtResetValue] = m.ResetValue
	}
	binary.LittleEndian.PutUint32(b[fadtFlags:], flags)

	if m.SleepControlPort != 0 {
		putByteRegister(b[fadtSleepControl:], m.SleepControlPort)
		putByteRegister(b[fadtSleepStatus:], m.SleepStatusPort)
	}
	b[fadtMinorVersion] = fadtMinorRevision
	copy(b[fadtHypervisorID:], hypervisorID)
	return b[headerLength:]
}

// putByteRegister writes a generic address structure (ACPI 6.3, section 5.2.3.2)
// for one port of eight bits, accessed by bytes.
func putByteRegister(b []byte, port uint16) {
	const (
		systemIO   = 1
		byteAccess = 1
	)
	b[0], b[1], b[2], b[3] = systemIO, 8, 0, byteAccess
	binary.LittleEndian.PutUint64(b[4:], uint64(port))
}
