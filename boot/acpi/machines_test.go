package acpi

import "fmt"

const (
	testBase  = 0xe0000
	testLimit = 0x20000
)

// testMachine is the machine of vole's address map without PCI and virtio.
func testMachine(cpus int) Machine {
	m := Machine{
		LAPICBase:        0xfee00000,
		IOAPICBase:       0xfec00000,
		SleepControlPort: 0x600,
		SleepStatusPort:  0x601,
		ResetPort:        0x602,
		ResetValue:       1,
		GED:              GED{GSI: 5, Port: 0x604},
		Serial:           []Serial{{Port: 0x3f8, IRQ: 4}},
		RTCPort:          0x70,
		PVPanicPort:      0x505,
	}
	for i := range cpus {
		m.CPUs = append(m.CPUs, CPU{UID: uint32(i), APICID: uint32(i)})
	}
	return m
}

func withPCI(m Machine) Machine {
	m.PCI = &PCI{
		ECAMBase: 0xe0000000,
		Buses:    1,
		Window32: Window{0xd0000000, 0x10000000},
		Window64: Window{0x80_0000_0000, 0x40_0000_0000},
	}
	return m
}

func withVirtio(m Machine, n int) Machine {
	for i := range n {
		m.VirtioMMIO = append(m.VirtioMMIO, MMIO{
			Base: 0xc0001000 + uint64(i)*0x1000,
			Size: 0x1000,
			GSI:  uint32(6 + i),
		})
	}
	return m
}

type namedMachine struct {
	name string
	m    Machine
}

// goldenMachines are the machines whose tables stand under testdata.
func goldenMachines() []namedMachine {
	sparse := withPCI(withVirtio(testMachine(4), 8))
	for i := range sparse.CPUs {
		sparse.CPUs[i].APICID = uint32(i * 2)
	}
	sparse.PCI.Buses = 16
	sparse.OEMID, sparse.OEMTableID = "TEST", "MACHINE1"
	sparse.Overrides = []Override{{Source: 9, GSI: 20, Level: true}, {Source: 11, GSI: 21, Level: true, ActiveLow: true}}
	sparse.VirtioMMIO[7].Base = 0x70_0000_0000
	sparse.Serial = append(sparse.Serial, Serial{Port: 0x2f8, IRQ: 3})

	bare := Machine{CPUs: []CPU{{}}, LAPICBase: 0xfee00000, IOAPICBase: 0xfec00000}

	return []namedMachine{
		{"bare", bare},
		{"cpu1", testMachine(1)},
		{"cpu4", testMachine(4)},
		{"cpu4-virtio18", withVirtio(testMachine(4), 18)},
		{"cpu1-pci", withPCI(testMachine(1))},
		{"cpu4-everything", sparse},
		{"cpu300-pci-virtio2", withVirtio(withPCI(testMachine(300)), 2)},
	}
}

func (n namedMachine) golden() string { return fmt.Sprintf("testdata/%s.bin", n.name) }
