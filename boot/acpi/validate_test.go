package acpi

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBuildRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		wrong func(*Machine)
		says  string
	}{
		{"no CPUs", func(m *Machine) { m.CPUs = nil }, "CPUs has 0 entries"},
		{"too many CPUs", func(m *Machine) { m.CPUs = make([]CPU, MaxCPUs+1) }, "CPUs has 4097 entries, and 1 to 4096"},
		{"same UID", func(m *Machine) { m.CPUs[3].UID = 1 }, "CPUs[3].UID 1 is that of CPUs[1]"},
		{"same APIC id", func(m *Machine) { m.CPUs[2].APICID = 0 }, "CPUs[2].APICID 0 is that of CPUs[0]"},
		{"UID for all", func(m *Machine) { m.CPUs[0].UID = math.MaxUint32 }, "CPUs[0].UID"},
		{"APIC id for all", func(m *Machine) { m.CPUs[0].APICID = math.MaxUint32 }, "CPUs[0].APICID"},
		{"UID for an xAPIC", func(m *Machine) { m.CPUs[1].UID = 255 }, "CPUs[1].UID 255 is above 254"},

		{"OEM id length", func(m *Machine) { m.OEMID = "1234567" }, "OEMID"},
		{"OEM id ASCII", func(m *Machine) { m.OEMID = "é" }, "OEMID"},
		{"OEM table id length", func(m *Machine) { m.OEMTableID = "123456789" }, "OEMTableID"},

		{"LAPIC 0", func(m *Machine) { m.LAPICBase = 0 }, "LAPICBase"},
		{"LAPIC alignment", func(m *Machine) { m.LAPICBase++ }, "LAPICBase"},
		{"IOAPIC on LAPIC", func(m *Machine) { m.IOAPICBase = m.LAPICBase }, "overlap"},
		{"LAPIC in the tables", func(m *Machine) { m.LAPICBase = testBase + 0x1000 }, "the tables and LAPICBase overlap"},

		{"sleep control alone", func(m *Machine) { m.SleepStatusPort = 0 }, "SleepStatusPort"},
		{"sleep status alone", func(m *Machine) { m.SleepControlPort = 0 }, "SleepControlPort"},
		{"GED without port", func(m *Machine) { m.GED.Port = 0 }, "GED.Port"},
		{"GED without GSI", func(m *Machine) { m.GED.GSI = 0 }, "GED.GSI"},
		{"reset on sleep", func(m *Machine) { m.ResetPort = 0x600 }, "overlap"},
		{"serial on pvpanic", func(m *Machine) { m.PVPanicPort = 0x3ff }, "Serial[0] and PVPanicPort overlap"},
		{"RTC at the end", func(m *Machine) { m.RTCPort = 0xffff }, "RTCPort"},
		{"serial at the end", func(m *Machine) { m.Serial[0].Port = 0xfff9 }, "Serial[0]"},
		{"serial at 0", func(m *Machine) { m.Serial[0].Port = 0 }, "Serial[0].Port"},
		{"five serial ports", func(m *Machine) { m.Serial = make([]Serial, 5) }, "Serial has 5 entries"},
		{"CF8", func(m *Machine) { m.PVPanicPort = 0xcfc }, "PCI configuration port"},

		{"serial irq 0", func(m *Machine) { m.Serial[0].IRQ = 0 }, "Serial[0].IRQ 0"},
		{"serial irq 2", func(m *Machine) { m.Serial[0].IRQ = 2 }, "Serial[0].IRQ 2"},
		{"GSI 24", func(m *Machine) { m.GED.GSI = 24 }, "GED.GSI 24"},
		{"GSI huge", func(m *Machine) { m.VirtioMMIO[0].GSI = math.MaxUint32 }, "VirtioMMIO[0].GSI"},
		{"GSI twice", func(m *Machine) { m.VirtioMMIO[1].GSI = 4 }, "VirtioMMIO[1].GSI 4 is that of Serial[0].IRQ"},

		{"override 0", func(m *Machine) { m.Overrides = []Override{{0, 2, false, false}} }, "Overrides[0].Source 0"},
		{"override 16", func(m *Machine) { m.Overrides = []Override{{16, 2, false, false}} }, "Overrides[0].Source 16"},
		{"override to 24", func(m *Machine) { m.Overrides = []Override{{9, 24, false, false}} }, "Overrides[0].GSI 24"},
		{"override twice", func(m *Machine) { m.Overrides = []Override{{Source: 9, GSI: 9}, {Source: 9, GSI: 10}} }, "Overrides[1].Source 9"},
		{"override target twice", func(m *Machine) { m.Overrides = []Override{{Source: 9, GSI: 9}, {Source: 8, GSI: 9}} }, "Overrides[1].GSI 9"},
		{"level override of a device", func(m *Machine) { m.Overrides = []Override{{Source: 4, GSI: 4, Level: true}} }, "that of Serial[0].IRQ"},
		{"low override of a device", func(m *Machine) { m.Overrides = []Override{{Source: 9, GSI: 5, ActiveLow: true}} }, "that of GED.GSI"},

		{"no buses", func(m *Machine) { m.PCI.Buses = 0 }, "PCI.Buses"},
		{"257 buses", func(m *Machine) { m.PCI.Buses = 257 }, "PCI.Buses"},
		{"negative buses", func(m *Machine) { m.PCI.Buses = -1 }, "PCI.Buses"},
		{"ECAM 0", func(m *Machine) { m.PCI.ECAMBase = 0 }, "PCI.ECAMBase"},
		{"ECAM alignment", func(m *Machine) { m.PCI.Buses = 3; m.PCI.ECAMBase = 0xe0200000 }, "not a multiple of 0x400000"},
		{"ECAM above 4 GiB", func(m *Machine) { m.PCI.ECAMBase = 1 << 32 }, "PCI.ECAMBase"},
		{"ECAM in window", func(m *Machine) { m.PCI.ECAMBase = 0xd0000000 }, "overlap"},
		{"no window", func(m *Machine) { m.PCI.Window32.Size = 0 }, "PCI.Window32"},
		{"window over 4 GiB", func(m *Machine) { m.PCI.Window32.Base = 0xf1000000 }, "PCI.Window32"},
		{"window of 4 GiB", func(m *Machine) { m.PCI.Window32 = Window{0, 1 << 32} }, "PCI.Window32"},
		{"window alignment", func(m *Machine) { m.PCI.Window32.Base++ }, "PCI.Window32"},
		{"window on LAPIC", func(m *Machine) { m.PCI.Window32.Base = 0xf0000000 }, "overlap"},
		{"high window wraps", func(m *Machine) { m.PCI.Window64 = Window{1 << 51, 1<<63 + 1<<51} }, "PCI.Window64"},
		{"high window too high", func(m *Machine) { m.PCI.Window64 = Window{1 << 52, 1 << 20} }, "PCI.Window64"},
		{"high window size", func(m *Machine) { m.PCI.Window64.Size = 1 }, "PCI.Window64"},

		{"virtio size 0", func(m *Machine) { m.VirtioMMIO[0].Size = 0 }, "VirtioMMIO[0]"},
		{"virtio alignment", func(m *Machine) { m.VirtioMMIO[0].Base += 0x200 }, "VirtioMMIO[0]"},
		{"virtio twice", func(m *Machine) { m.VirtioMMIO[1].Base = m.VirtioMMIO[0].Base }, "overlap"},
		{"virtio wraps", func(m *Machine) { m.VirtioMMIO[1] = MMIO{math.MaxUint64 &^ 0xfff, 0x2000, 7} }, "VirtioMMIO[1]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := withVirtio(withPCI(testMachine(4)), 2)
			_, err := Build(testBase, testLimit, m)
			require.NoError(t, err)
			c.wrong(&m)
			b, err := Build(testBase, testLimit, m)
			require.ErrorIs(t, err, ErrMachine)
			require.ErrorContains(t, err, c.says)
			require.Nil(t, b)
		})
	}
}

func TestBuildRefusesPlace(t *testing.T) {
	m := testMachine(1)
	for _, c := range []struct {
		name  string
		base  uint64
		limit int
	}{
		{"0", 0, testLimit},
		{"odd", testBase + 8, testLimit},
		{"too high", 1 << 52, testLimit},
		{"last of all", math.MaxUint64 &^ 15, testLimit},
		{"limit past the end", 1<<52 - 0x1000, testLimit},
		{"negative limit", testBase, -1},
		{"huge limit", testBase, math.MaxInt},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Build(c.base, c.limit, m)
			require.ErrorIs(t, err, ErrMachine)
		})
	}
}
