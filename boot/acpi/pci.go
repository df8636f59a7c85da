package acpi

import "encoding/binary"

const (
	ecamPerBus = 1 << 20

	// The index and data registers of configuration mechanism 1.
	pciConfigPort  = 0xcf8
	pciConfigPorts = 8

	// pciOSC is the UUID of the host bridge's _OSC, and the two error bits of
	// its first word (PCI Firmware Specification 3.2, section 4.5).
	pciOSC               = "33db4d5b-1ff7-401c-9657-7441c03dd766"
	oscUnrecognizedUUID  = 1 << 2
	oscUnrecognizedRev   = 1 << 3
	oscSupportedRevision = 1
)

// mcfg is the MCFG without its header (PCI Firmware Specification 3.2, section
// 4.1.2): one segment.
func (p *PCI) mcfg() []byte {
	b := make([]byte, 8) // reserved
	b = binary.LittleEndian.AppendUint64(b, p.ECAMBase)
	b = append(b, 0, 0, 0, byte(p.Buses-1)) // segment, first and last bus
	return append(b, 0, 0, 0, 0)
}

// ecamSize is the length in bytes of the enhanced configuration space.
func (p *PCI) ecamSize() uint64 { return uint64(p.Buses) * ecamPerBus }

// devices are the host bridge and the motherboard resource that claims the ECAM,
// without which Linux does not use it.
func (p *PCI) devices() term {
	windows := []term{
		busNumbers(p.Buses),
		ioPorts(pciConfigPort, pciConfigPorts),
		memoryWindow32(p.Window32.Base, p.Window32.Size),
	}
	if p.Window64.Size != 0 {
		windows = append(windows, memoryWindow64(p.Window64.Base, p.Window64.Size))
	}
	return join(
		device("MBRD",
			name("_HID", eisaID("PNP0C02")),
			name("_UID", integer(0)),
			name("_CRS", resourceTemplate(memory(p.ECAMBase, p.ecamSize()))),
		),
		device("PCI0",
			name("_HID", eisaID("PNP0A08")),
			name("_CID", eisaID("PNP0A03")),
			name("_UID", integer(0)),
			name("_SEG", integer(0)),
			name("_BBN", integer(0)),
			name("_CRS", resourceTemplate(windows...)),
			p.osc(),
		),
	)
}

// osc grants whatever the guest asks for: no firmware runs beside it that would
// want to keep a feature.
func (p *PCI) osc() term {
	fail := func(bit uint64) term { return or(ref("CDW1"), constant(bit), ref("CDW1")) }
	return method("_OSC", 4,
		createDWordField(arg(3), 0, "CDW1"),
		ifThen(lEqual(arg(0), uuid(pciOSC)),
			ifThen(lNot(lEqual(arg(1), integer(oscSupportedRevision))), fail(oscUnrecognizedRev)),
		),
		elseThen(fail(oscUnrecognizedUUID)),
		returnValue(arg(3)),
	)
}
