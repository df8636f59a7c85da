package guest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestParseWords(t *testing.T) {
	for _, c := range []struct {
		name, cmdline string
		want          words
	}{
		{"empty", "", words{action: actionPoweroff, report: true}},
		{"others' words", "console=ttyS0 quiet volet=1 avole.action=hang", words{action: actionPoweroff, report: true}},
		{"poweroff", "vole.action=poweroff", words{action: actionPoweroff, report: true}},
		{"reboot", "a vole.action=reboot b", words{action: actionReboot, report: true}},
		{"halt", "vole.action=halt", words{action: actionHalt, report: true}},
		{"crash", "vole.action=crash", words{action: actionCrash, report: true}},
		{"hang", "vole.action=hang", words{action: actionHang, report: true}},
		{"triple", "vole.action=triple", words{action: actionTriple, report: true}},
		{"exit", "vole.action=exit:7", words{action: actionExit, code: 7, report: true}},
		{"exit in hexadecimal", "vole.action=exit:0xff", words{action: actionExit, code: 255, report: true}},
		{"last wins", "vole.action=exit:7 vole.action=halt vole.report=no vole.report=yes", words{action: actionHalt, code: 7, report: true}},
		{"no report", "vole.report=no", words{action: actionPoweroff}},
		{"quoted", `"vole.x y" vole.action="reboot"`, words{action: actionReboot, report: true}},
		{"inside quotes", `dyndbg="file a +p vole.action=hang"`, words{action: actionPoweroff, report: true}},
		{"unknown", "vole.action=dance vole.frob vole.report=maybe vole.action=exit:256 vole.action=exit vole.action=halt:1 vole.=",
			words{action: actionPoweroff, report: true, unknown: []string{"vole.action=dance", "vole.frob", "vole.report=maybe",
				"vole.action=exit:256", "vole.action=exit", "vole.action=halt:1", "vole.="}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, c.want, parseWords(c.cmdline))
		})
	}
}

func TestSplitCmdline(t *testing.T) {
	for _, c := range []struct {
		cmdline string
		want    []string
	}{
		{"", nil},
		{"  \t\n", nil},
		{" a  b\tc\n", []string{"a", "b", "c"}},
		{`a="b c" d`, []string{`a="b c"`, "d"}},
		{`"a b`, []string{`"a b`}},
	} {
		assert.Equal(t, c.want, splitCmdline(c.cmdline), "%q", c.cmdline)
	}
}

func TestCPUInfo(t *testing.T) {
	for _, c := range []struct {
		name, text, model string
		virtual           bool
	}{
		{"empty", "", "", false},
		{"two processors", "processor\t: 0\nmodel name\t: First  CPU @ 2 GHz \nflags\t\t: fpu hypervisor lahf_lm\n\nprocessor\t: 1\nmodel name\t: Second\n",
			"First CPU @ 2 GHz", true},
		{"hardware", "model name : A: B\nflags : fpu\n\nflags : hypervisor\n", "A: B", false},
		{"cut off", "processor\t: 0\nmodel na", "", false},
		{"flag is a prefix", "flags : hypervisors\n", "", false},
		{"no names", "processor\t: 0\nBogoMIPS\t: 48\n", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			model, virtual := cpuInfo(c.text)
			assert.Equal(t, c.model, model)
			assert.Equal(t, c.virtual, virtual)
		})
	}
}

func TestMemInfo(t *testing.T) {
	const text = "MemTotal:         481300 kB\nMemFree:  12 kB\nHugePages_Total:       0\nBad: x kB\nHuge: 99999999999999999999 kB\n"
	for key, want := range map[string]uint64{"MemTotal": 481300, "MemFree": 12} {
		kB, ok := memInfo(text, key)
		assert.True(t, ok, key)
		assert.Equal(t, want, kB, key)
	}
	for _, key := range []string{"Mem", "HugePages_Total", "Bad", "Huge", "Absent", ""} {
		_, ok := memInfo(text, key)
		assert.False(t, ok, "%q", key)
	}
}

func TestCPUListLen(t *testing.T) {
	for list, want := range map[string]int{
		"0":             1,
		"0\n":           1,
		"0-3":           4,
		"0-3,8,10-11\n": 7,
		"254-257":       4,
		"":              0,
		"\n":            0,
		"3-0":           0,
		"a":             0,
		"0-":            0,
		"0,,1":          0,
		"-1":            0,
		"0-99999999":    0,
		"0-1048575":     1 << 20,
	} {
		assert.Equal(t, want, cpuListLen(list), "%q", list)
	}
	assert.Zero(t, cpuListLen(strings.Repeat("0-1048575,", 1000)+"0"), "no overflow")
}

func TestSerialPorts(t *testing.T) {
	got := serialPorts("serinfo:1.0 driver revision:\n" +
		"0: uart:16550A port:000003F8 irq:4 tx:218 rx:0 RTS|CTS|DTR|DSR|CD\n" +
		"1: uart:unknown port:000002F8 irq:3\n" +
		"4: uart:16550A mmio:0xFE032000 irq:19 tx:0 rx:0\n" +
		"rubbish\n: uart:x\n7:\n")
	assert.Equal(t, []uart{
		{"ttyS0", "16550A", "0x3f8", "4"},
		{"ttyS4", "16550A", "0xFE032000", "19"},
	}, got)
}

func TestPCIFunctions(t *testing.T) {
	numbers := strings.Repeat("\t0", 15)
	got := pciFunctions("0000\t808629c0" + numbers + "\t\n" +
		"0008\t1af41042" + numbers + "\tvirtio-pci\n" +
		"0010\t1af41000" + numbers + "\n" +
		"short\n0018\tzzzzzzzz\n0018\t1af4104200\n")
	assert.Equal(t, []pciFunction{
		{vendor: 0x8086, device: 0x29c0},
		{vendor: 0x1af4, device: 0x1042, driver: "virtio-pci"},
		{vendor: 0x1af4, device: 0x1000},
	}, got)
	for _, c := range []struct {
		p    pciFunction
		want string
	}{
		{got[1], "block"},
		{got[2], "net"},
		{pciFunction{vendor: 0x1af4, device: 0x1005}, "rng"},
		{pciFunction{vendor: 0x1af4, device: 0x105a}, "fs"},
		{pciFunction{vendor: 0x1af4, device: 0x107f}, "type 63"},
		{pciFunction{vendor: 0x1af4, device: 0x1110}, ""}, // ivshmem
		{pciFunction{vendor: 0x1af4, device: 0x1040}, ""},
		{got[0], ""},
	} {
		kind := c.p.virtioType()
		name := ""
		if kind != 0 {
			name = virtioName(kind)
		}
		assert.Equal(t, c.want, name, "%04x:%04x", c.p.vendor, c.p.device)
	}
}

func TestParseLog(t *testing.T) {
	m := parseLog("<6>[    0.000000] Linux version 6.1\n" +
		"<6>[    0.000000] Hypervisor detected: KVM\n" +
		"<4>[    0.100000] ACPI: a warning\n" +
		"<3>[    0.200000][    T1] an error\n" +
		"<0>panic without a time stamp\n" +
		"<12>[    0.300000] user space's own warning\n" +
		"<7>debug\n<>nothing\n<x>nothing\nnothing\n<99999999999>nothing\n<4")
	assert.Equal(t, messages{
		total:      6,
		serious:    []string{"[    0.100000] ACPI: a warning", "[    0.200000][    T1] an error", "panic without a time stamp"},
		hypervisor: "KVM",
	}, m)
	assert.Zero(t, parseLog(""))
}

func TestPack(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct {
		name  string
		words []string
		sep   string
		want  []string
	}{
		{"nothing", nil, " ", nil},
		{"one", []string{"abc"}, " ", []string{"abc"}},
		{"two", []string{"a", "b"}, ", ", []string{"a, b"}},
		{"fits exactly", []string{x(30), x(textWidth - 31)}, " ", []string{x(30) + " " + x(textWidth-31)}},
		{"one too many", []string{x(30), x(textWidth - 30)}, " ", []string{x(30), x(textWidth - 30)}},
		{"comma at the end", []string{x(30), x(textWidth - 33), "y"}, ", ", []string{x(30) + ", " + x(textWidth-33) + ",", "y"}},
		{"comma does not fit", []string{x(30), x(textWidth - 32), "y"}, ", ", []string{x(30) + ",", x(textWidth-32) + ", y"}},
		{"too long", []string{"a", x(2*textWidth + 3), "b"}, " ", []string{"a", x(textWidth), x(textWidth), "xxx b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, c.want, pack(c.words, c.sep))
		})
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[uint64]string{
		0:            "0 bytes",
		1:            "1 byte",
		512:          "512 bytes",
		1024:         "1.0 KiB",
		481300 << 10: "470.0 MiB",
		1<<30 - 1:    "1.0 GiB",
		1 << 30:      "1.0 GiB",
		3 << 40:      "3.0 TiB",
		1<<64 - 1:    "16.0 EiB",
	} {
		assert.Equal(t, want, bytesText(n), "%d", n)
	}
}

// FuzzParsers hands one text to every parser of what a kernel says.
func FuzzParsers(f *testing.F) {
	f.Add("processor : 0\nmodel name : x\nflags : hypervisor\n\n")
	f.Add("0: uart:16550A port:000003F8 irq:4\n")
	f.Add("0008\t1af41042\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\tvirtio-pci\n")
	f.Add("<4>[    0.1] warning\n<6>Hypervisor detected: KVM\n")
	f.Add("<0>")
	f.Add("0-3,8")
	f.Add(`vole.action=exit:1 vole.report="no" x="y z`)
	f.Fuzz(func(t *testing.T, text string) {
		cpuInfo(text)
		memInfo(text, "MemTotal")
		cpuListLen(text)
		ports := serialPorts(text)
		functions := pciFunctions(text)
		fa := facts{
			sources:  sources{cmdline: text, release: text, version: text},
			words:    parseWords(text),
			model:    text,
			messages: parseLog(text),
			ports:    ports,
			pci:      functions,
			consoles: strings.Fields(text),
			disks:    []string{text},
		}
		checkScreen(t, fa.report())
	})
}
