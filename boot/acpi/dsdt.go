package acpi

import "fmt"

const (
	// sleepTypeS5 is the value of SLP_TYP that switches the machine off.
	sleepTypeS5 = 5

	serialPorts  = 8
	rtcPorts     = 2
	pvpanicPorts = 1

	// gedPowerButton is the power button's bit in the event byte.
	gedPowerButton = 1 << 0
	// notifyButton is the notification "button pressed" (ACPI 6.3, table 5-165).
	notifyButton = 0x80
)

// dsdt is the DSDT without its header.
func (m *Machine) dsdt() ([]byte, error) {
	var s5 term
	if m.SleepControlPort != 0 {
		s5 = name(`\_S5`, packageOf(integer(sleepTypeS5), integer(0), integer(0), integer(0)))
	}
	all := join(s5, scope(`\_SB`,
		m.serialDevices(),
		m.rtcDevice(),
		m.pvpanicDevice(),
		m.powerButton(),
		m.pciDevices(),
		m.virtioDevices(),
		m.processorDevices(),
	))
	return all.b, all.err
}

// serialDevices are COM1 and so on. Linux binds its console to a port without
// them, but gives user space no ttyS0.
func (m *Machine) serialDevices() term {
	var list []term
	for i, s := range m.Serial {
		list = append(list, device(fmt.Sprintf("COM%d", i+1),
			name("_HID", eisaID("PNP0501")),
			name("_UID", integer(uint64(i+1))),
			name("_CRS", resourceTemplate(ioPorts(s.Port, serialPorts), interrupt(uint32(s.IRQ)))),
		))
	}
	return join(list...)
}

// rtcDevice has no interrupt: the machine's RTC tells the time and rings no
// alarm.
func (m *Machine) rtcDevice() term {
	if m.RTCPort == 0 {
		return term{}
	}
	return device("RTC",
		name("_HID", eisaID("PNP0B00")),
		name("_CRS", resourceTemplate(ioPorts(m.RTCPort, rtcPorts))),
	)
}

func (m *Machine) pvpanicDevice() term {
	if m.PVPanicPort == 0 {
		return term{}
	}
	return device("PEVT",
		name("_HID", str("QEMU0001")),
		name("_CRS", resourceTemplate(ioPorts(m.PVPanicPort, pvpanicPorts))),
	)
}

// powerButton is the button and the event device that announces it. The event
// byte is cleared by being read, so _EVT reads it once.
func (m *Machine) powerButton() term {
	if m.GED.GSI == 0 {
		return term{}
	}
	return join(
		device("PWRB",
			name("_HID", eisaID("PNP0C0C")),
		),
		device("GED",
			name("_HID", str("ACPI0013")),
			name("_CRS", resourceTemplate(interrupt(m.GED.GSI))),
			opRegion("EVTR", regionSystemIO, uint64(m.GED.Port), 1),
			field("EVTR", fieldUnit{"EVTS", 8}),
			method("_EVT", 1,
				store(ref("EVTS"), local0()),
				ifThen(and(local0(), integer(gedPowerButton), noTarget()),
					notify(`\_SB.PWRB`, notifyButton),
				),
			),
		),
	)
}

func (m *Machine) pciDevices() term {
	if m.PCI == nil {
		return term{}
	}
	return m.PCI.devices()
}

// virtioDevices are the virtio-mmio slots, which Linux finds by this id.
func (m *Machine) virtioDevices() term {
	var list []term
	for i, v := range m.VirtioMMIO {
		list = append(list, device(fmt.Sprintf("VM%02X", i),
			name("_HID", str("LNRO0005")),
			name("_UID", integer(uint64(i))),
			name("_CRS", resourceTemplate(memory(v.Base, v.Size), interrupt(v.GSI))),
		))
	}
	return join(list...)
}

func (m *Machine) processorDevices() term {
	if m.OmitProcessorDevices {
		return term{}
	}
	hid := name("_HID", str("ACPI0007"))
	list := make([]term, 0, len(m.CPUs))
	for i, c := range m.CPUs {
		list = append(list, device(fmt.Sprintf("C%03X", i), hid, name("_UID", integer(uint64(c.UID)))))
	}
	return join(list...)
}
