package acpi

import "encoding/binary"

// The MADT of ACPI 6.3 (section 5.2.12).
const (
	madtRevision = 5

	madtLocalAPIC      = 0
	madtIOAPIC         = 1
	madtSourceOverride = 2
	madtLocalAPICNMI   = 4
	madtLocalX2APIC    = 9
	madtLocalX2APICNMI = 10

	apicEnabled = 1
	// firstX2APIC is the least APIC id that a local APIC entry cannot hold. A
	// CPU below it must not have an x2APIC entry beside local APIC ones: Linux
	// drops it.
	firstX2APIC = 255

	allUIDs       = 0xff
	allX2UIDs     = 0xffffffff
	nmiLINT       = 1
	conformsToBus = 0

	// MPS INTI flags (ACPI 6.3, table 5-48).
	intiActiveHigh = 1
	intiActiveLow  = 3
	intiEdge       = 1 << 2
	intiLevel      = 3 << 2
)

// madt is the MADT without its header. PCAT_COMPAT is clear: the guest is not to
// use a pair of 8259s, even where KVM has them.
func (m *Machine) madt() []byte {
	b := binary.LittleEndian.AppendUint32(nil, m.LAPICBase)
	b = binary.LittleEndian.AppendUint32(b, 0)

	var apic, x2apic bool
	for _, c := range m.CPUs {
		if c.APICID < firstX2APIC {
			apic = true
			b = append(b, madtLocalAPIC, 8, byte(c.UID), byte(c.APICID))
			b = binary.LittleEndian.AppendUint32(b, apicEnabled)
			continue
		}
		x2apic = true
		b = append(b, madtLocalX2APIC, 16, 0, 0)
		b = binary.LittleEndian.AppendUint32(b, c.APICID)
		b = binary.LittleEndian.AppendUint32(b, apicEnabled)
		b = binary.LittleEndian.AppendUint32(b, c.UID)
	}

	b = append(b, madtIOAPIC, 12, m.IOAPICID, 0)
	b = binary.LittleEndian.AppendUint32(b, m.IOAPICBase)
	b = binary.LittleEndian.AppendUint32(b, 0) // its first GSI

	for _, o := range m.Overrides {
		b = append(b, madtSourceOverride, 10, 0, o.Source)
		b = binary.LittleEndian.AppendUint32(b, o.GSI)
		b = binary.LittleEndian.AppendUint16(b, o.flags())
	}

	if apic {
		b = append(b, madtLocalAPICNMI, 6, allUIDs, conformsToBus, 0, nmiLINT)
	}
	if x2apic {
		b = append(b, madtLocalX2APICNMI, 12, conformsToBus, 0)
		b = binary.LittleEndian.AppendUint32(b, allX2UIDs)
		b = append(b, nmiLINT, 0, 0, 0)
	}
	return b
}

func (o Override) flags() uint16 {
	polarity, trigger := uint16(intiActiveHigh), uint16(intiEdge)
	if o.ActiveLow {
		polarity = intiActiveLow
	}
	if o.Level {
		trigger = intiLevel
	}
	return polarity | trigger
}
