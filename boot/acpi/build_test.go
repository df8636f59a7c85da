package acpi

import (
	"fmt"
	"sort"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func build(t testing.TB, m Machine) *parsedTables {
	t.Helper()
	b, err := Build(testBase, testLimit, m)
	require.NoError(t, err)
	p, err := parseTables(testBase, b)
	require.NoError(t, err)
	return p
}

func namespace(t testing.TB, p *parsedTables) *node {
	t.Helper()
	root, err := parseAML(p.tables["DSDT"].b[headerLength:])
	require.NoError(t, err)
	return root
}

func TestBuildTables(t *testing.T) {
	for _, g := range goldenMachines() {
		t.Run(g.name, func(t *testing.T) {
			p := build(t, g.m)
			want := []string{"FACP", "APIC"}
			if g.m.PCI != nil {
				want = append(want, "MCFG")
			}
			require.Equal(t, want, p.order)
			for sig, table := range p.tables {
				id, tableID := "VOLE  ", "VOLEVM  "
				if g.m.OEMID != "" {
					id, tableID = g.m.OEMID+"  ", g.m.OEMTableID
				}
				assert.Equal(t, id, string(table.b[10:16]), sig)
				assert.Equal(t, tableID, string(table.b[16:24]), sig)
			}
			checkNamespace(t, g.m, namespace(t, p))
			checkMADT(t, g.m, p)
		})
	}
}

// checkNamespace compares the DSDT with the machine that it was made of.
func checkNamespace(t require.TestingT, m Machine, root *node) {
	want := map[string][]resource{}
	hids := map[string]any{}
	dev := func(name string, hid any, r ...resource) { want[name], hids[name] = r, hid }
	io := func(port uint16, n uint64) resource { return resource{kind: "io", base: uint64(port), size: n} }
	irq := func(gsi uint32) resource { return resource{kind: "irq", base: uint64(gsi), size: 1} }
	const pnp = 0xd041 // "PNP" as an EISA id read little-endian

	for i, s := range m.Serial {
		dev(fmt.Sprintf("COM%d", i+1), uint64(0x0105_0000|pnp), io(s.Port, 8), irq(uint32(s.IRQ)))
	}
	if m.RTCPort != 0 {
		dev("RTC", uint64(0x000b_0000|pnp), io(m.RTCPort, 2))
	}
	if m.PVPanicPort != 0 {
		dev("PEVT", "QEMU0001", io(m.PVPanicPort, 1))
	}
	if m.GED.GSI != 0 {
		dev("PWRB", uint64(0x0c0c_0000|pnp))
		dev("GED", "ACPI0013", irq(m.GED.GSI))
	}
	if p := m.PCI; p != nil {
		dev("MBRD", uint64(0x020c_0000|pnp), resource{kind: "mem", base: p.ECAMBase, size: uint64(p.Buses) << 20})
		r := []resource{
			{"bus", 0, uint64(p.Buses), true},
			io(0xcf8, 8),
			{"mem", p.Window32.Base, p.Window32.Size, true},
		}
		if p.Window64.Size != 0 {
			r = append(r, resource{"mem", p.Window64.Base, p.Window64.Size, true})
		}
		dev("PCI0", uint64(0x080a_0000|pnp), r...)
	}
	for i, v := range m.VirtioMMIO {
		dev(fmt.Sprintf("VM%02X", i), "LNRO0005", resource{kind: "mem", base: v.Base, size: v.Size}, irq(v.GSI))
	}
	if !m.OmitProcessorDevices {
		for i := range m.CPUs {
			dev(fmt.Sprintf("C%03X", i), "ACPI0007")
		}
	}

	sb := root.children["_SB"]
	require.NotNil(t, sb)
	require.Len(t, sb.children, len(want))
	uids := map[string]bool{}
	for name, resources := range want {
		n := sb.children[name]
		require.NotNil(t, n, name)
		require.Equal(t, "Device", n.kind, name)
		require.Equal(t, hids[name], n.children["_HID"].value, name)
		got, err := n.crs()
		require.NoError(t, err, name)
		require.Equal(t, resources, got, name)
		if u := n.children["_UID"]; u != nil {
			id := fmt.Sprint(hids[name], u.value)
			require.False(t, uids[id], "_UID of %s is not unique", name)
			uids[id] = true
		}
	}
	if !m.OmitProcessorDevices {
		for i, c := range m.CPUs {
			require.Equal(t, uint64(c.UID), sb.children[fmt.Sprintf("C%03X", i)].children["_UID"].value)
		}
	}

	s5 := root.children["_S5"]
	require.Equal(t, m.SleepControlPort != 0, s5 != nil)
	if s5 != nil {
		require.Equal(t, []any{uint64(5), uint64(0), uint64(0), uint64(0)}, s5.value)
	}
	if ged := sb.children["GED"]; ged != nil {
		require.Equal(t, []any{byte(1), uint64(m.GED.Port), uint64(1)}, ged.children["EVTR"].value)
		require.Equal(t, 1, ged.children["_EVT"].args)
	}
}

func checkMADT(t require.TestingT, m Machine, p *parsedTables) {
	madt := p.tables["APIC"]
	require.Equal(t, m.LAPICBase, madt.u32(36))
	require.Zero(t, madt.u32(40), "PCAT_COMPAT")
	entries, err := p.madt()
	require.NoError(t, err)

	var cpus []CPU
	var overrides int
	kinds := map[byte]int{}
	for _, e := range entries {
		e := parsedTable{b: e.b}
		kinds[e.b[0]]++
		switch e.b[0] {
		case 0:
			require.Equal(t, uint32(1), e.u32(4))
			cpus = append(cpus, CPU{UID: uint32(e.b[2]), APICID: uint32(e.b[3])})
		case 9:
			require.Equal(t, uint32(1), e.u32(8))
			cpus = append(cpus, CPU{UID: e.u32(12), APICID: e.u32(4)})
		case 1:
			require.Equal(t, m.IOAPICID, e.b[2])
			require.Equal(t, m.IOAPICBase, e.u32(4))
			require.Zero(t, e.u32(8))
		case 2:
			o := m.Overrides[overrides]
			overrides++
			require.Equal(t, o.Source, e.b[3])
			require.Equal(t, o.GSI, e.u32(4))
			require.Equal(t, o.Level, e.u16(8)>>2 == 3)
			require.Equal(t, o.ActiveLow, e.u16(8)&3 == 3)
		case 4:
			require.Equal(t, []byte{4, 6, 0xff, 0, 0, 1}, e.b)
		case 10:
			require.Equal(t, []byte{10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0}, e.b)
		}
	}
	require.Equal(t, m.CPUs, cpus)
	require.Equal(t, len(m.Overrides), overrides)
	require.Equal(t, 1, kinds[1])
	require.Equal(t, kinds[0] > 0, kinds[4] == 1)
	require.Equal(t, kinds[9] > 0, kinds[10] == 1)
}

// APIC id 254 is the last one in a local APIC entry; a UID does not decide.
func TestMADTBoundary(t *testing.T) {
	m := testMachine(0)
	m.CPUs = []CPU{{UID: 254, APICID: 254}, {UID: 1, APICID: 255}, {UID: 0xfffffffe, APICID: 0xfffffffe}}
	p := build(t, m)
	checkMADT(t, m, p)
	checkNamespace(t, m, namespace(t, p))
	entries, err := p.madt()
	require.NoError(t, err)
	var kinds []byte
	for _, e := range entries {
		kinds = append(kinds, e.kind)
	}
	require.Equal(t, []byte{0, 9, 9, 1, 4, 10}, kinds)
}

func TestOverrideFlags(t *testing.T) {
	// MPS INTI flags: polarity in bits 0 and 1, trigger in bits 2 and 3.
	require.Equal(t, uint16(0x5), Override{}.flags())
	require.Equal(t, uint16(0x7), Override{ActiveLow: true}.flags())
	require.Equal(t, uint16(0xd), Override{Level: true}.flags())
	require.Equal(t, uint16(0xf), Override{Level: true, ActiveLow: true}.flags())
}

func TestFADT(t *testing.T) {
	const (
		hwReduced = 1 << 20
		resetSup  = 1 << 10
	)
	gas := func(port byte) []byte { return []byte{1, 8, 0, 1, port, 6, 0, 0, 0, 0, 0, 0} }

	t.Run("full", func(t *testing.T) {
		f := build(t, testMachine(1)).tables["FACP"]
		assert.Equal(t, []byte{6, 3}, []byte{f.b[8], f.b[131]}, "revision")
		assert.Equal(t, uint64(f.u32(40)), f.u64(140), "DSDT")
		assert.Zero(t, f.u32(36), "FACS")
		assert.Zero(t, f.u64(132), "X_FACS")
		assert.Zero(t, f.u16(46), "SCI_INT")
		assert.Equal(t, uint16(1<<2), f.u16(109), "boot architecture: VGA not present, and nothing else")
		assert.Equal(t, uint32(hwReduced|resetSup|1<<12|1<<6|1<<5|1<<4|1), f.u32(112), "flags")
		assert.Equal(t, gas(2), f.b[116:128], "reset register")
		assert.Equal(t, byte(1), f.b[128], "reset value")
		assert.Equal(t, make([]byte, 96), f.b[148:244], "fixed register blocks")
		assert.Equal(t, gas(0), f.b[244:256], "sleep control")
		assert.Equal(t, gas(1), f.b[256:268], "sleep status")
		assert.Equal(t, "VOLE\x00\x00\x00\x00", string(f.b[268:276]))
		assert.Equal(t, byte(0x32), f.b[108], "century")
	})
	t.Run("bare", func(t *testing.T) {
		f := build(t, Machine{CPUs: []CPU{{}}, LAPICBase: 0xfee00000, IOAPICBase: 0xfec00000}).tables["FACP"]
		assert.Equal(t, uint16(1<<2|1<<5), f.u16(109), "boot architecture: no RTC either")
		assert.Equal(t, uint32(hwReduced), f.u32(112)&(hwReduced|resetSup))
		assert.Equal(t, make([]byte, 13), f.b[116:129], "reset register")
		assert.Equal(t, make([]byte, 24), f.b[244:268], "sleep registers")
		assert.Zero(t, f.b[108], "century")
	})
	t.Run("above 4 GiB", func(t *testing.T) {
		b, err := Build(1<<33, testLimit, testMachine(1))
		require.NoError(t, err)
		p, err := parseTables(1<<33, b)
		require.NoError(t, err)
		assert.Zero(t, p.tables["FACP"].u32(40))
		assert.Greater(t, p.tables["FACP"].u64(140), uint64(1<<33))
	})
}

func TestMCFG(t *testing.T) {
	m := withPCI(testMachine(1))
	m.PCI.Buses = 256
	c := build(t, m).tables["MCFG"]
	require.Len(t, c.b, 60)
	require.Equal(t, uint64(0xe0000000), c.u64(44))
	require.Equal(t, []byte{0, 0, 0, 255, 0, 0, 0, 0}, c.b[52:])
}

func TestBuildLimit(t *testing.T) {
	for _, g := range goldenMachines() {
		t.Run(g.name, func(t *testing.T) {
			b, err := Build(testBase, testLimit, g.m)
			require.NoError(t, err)
			same, err := Build(testBase, len(b), g.m)
			require.NoError(t, err)
			require.Equal(t, b, same)
			_, err = Build(testBase, len(b)-1, g.m)
			require.ErrorIs(t, err, ErrTooLarge)
			require.ErrorContains(t, err, fmt.Sprintf("take %d bytes, and the limit is %d", len(b), len(b)-1))
			_, err = Build(testBase, 0, g.m)
			require.ErrorIs(t, err, ErrTooLarge)
		})
	}
}

// MaxCPUs fit into 128 KiB without their processor devices; with them, the
// error says what is needed.
func TestBuildManyCPUs(t *testing.T) {
	m := withVirtio(withPCI(testMachine(MaxCPUs)), 18)
	_, err := Build(testBase, testLimit, m)
	require.ErrorIs(t, err, ErrTooLarge)
	b, err := Build(testBase, 0x40000, m)
	require.NoError(t, err)
	t.Logf("%d CPUs take %d bytes", MaxCPUs, len(b))

	m.OmitProcessorDevices = true
	checkMADT(t, m, build(t, m))

	most := sort.Search(MaxCPUs, func(n int) bool {
		_, err := Build(testBase, testLimit, withVirtio(withPCI(testMachine(n+1)), 18))
		return err != nil
	})
	t.Logf("%d CPUs with their devices fit into %d bytes", most, testLimit)
	require.Greater(t, most, 2048)
}

func BenchmarkBuild(b *testing.B) {
	for _, g := range goldenMachines() {
		b.Run(g.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Build(testBase, testLimit, g.m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
