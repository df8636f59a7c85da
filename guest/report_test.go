package guest

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// checkScreen checks what holds for every report.
func checkScreen(t *testing.T, report string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(report, "\n"), "\n")
	if len(lines) > 23 {
		t.Fatalf("%d lines:\n%s", len(lines), report)
	}
	for _, line := range lines {
		if len(line) > 79 {
			t.Fatalf("%d columns: %q", len(line), line)
		}
		if strings.TrimRight(line, " ") != line {
			t.Fatalf("space at the end: %q", line)
		}
		for _, c := range []byte(line) {
			if c < ' ' || c > '~' {
				t.Fatalf("byte %#x in %q", c, line)
			}
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(name, []byte(got), 0o666))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
}

// sysfs makes a MapFS of text files, and links for names that end in "@".
func sysfs(files map[string]string) fstest.MapFS {
	m := make(fstest.MapFS)
	for name, text := range files {
		f := &fstest.MapFile{Data: []byte(text)}
		if link, ok := strings.CutSuffix(name, "@"); ok {
			name, f.Mode = link, fs.ModeSymlink
		}
		m[name] = f
	}
	return m
}

const debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-02)"

func TestReport(t *testing.T) {
	log, err := os.ReadFile("testdata/q35/log")
	require.NoError(t, err)
	for _, c := range []struct {
		name string
		s    sources
	}{
		{
			// Captured in a guest of QEMU's q35 machine.
			name: "q35",
			s: sources{
				root:    os.DirFS("testdata/q35/root"),
				cmdline: "console=ttyS0 panic=-1 quiet",
				uptime:  13_268_177 * time.Microsecond,
				release: "6.1.0-50-cloud-amd64", version: debian, machine: "x86_64",
				log:    string(log),
				mounts: mountTable(),
			},
		},
		{
			name: "vole",
			s: sources{
				root: sysfs(map[string]string{
					"proc/cpuinfo":                  "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu hypervisor\n\n",
					"proc/meminfo":                  "MemTotal:        5073212 kB\nMemFree:         5000000 kB\nMemAvailable:    4953112 kB\n",
					"sys/devices/system/cpu/online": "0-7\n",
					"sys/devices/system/cpu/cpu0/topology/core_cpus_list":               "0-1\n",
					"sys/devices/system/cpu/cpu0/topology/package_cpus_list":            "0-3\n",
					"sys/devices/system/clocksource/clocksource0/current_clocksource":   "kvm-clock\n",
					"sys/devices/system/clocksource/clocksource0/available_clocksource": "kvm-clock tsc \n",
					"sys/class/tty/console/active":                                      "tty0 ttyS0\n",
					"proc/tty/driver/serial":                                            "0: uart:16550A port:000003F8 irq:4 tx:0\n1: uart:16450 port:000002F8 irq:3 tx:0\n",
					"sys/bus/virtio/devices/virtio0/device":                             "0x0002\n",
					"sys/bus/virtio/devices/virtio0/driver@":                            "../../../bus/virtio/drivers/virtio_blk",
					"sys/bus/virtio/devices/virtio1/device":                             "0x0001\n",
					"sys/bus/virtio/devices/virtio2/device":                             "nonsense\n",
					"sys/bus/platform/devices/LNRO0005:00/uevent":                       "",
					"sys/bus/platform/devices/LNRO0005:01/driver@":                      "../../bus/platform/drivers/virtio-mmio",
					"sys/bus/platform/devices/serial8250/uevent":                        "",
					"sys/class/block/vda/size":                                          "20971520\n",
					"sys/class/block/vda/ro":                                            "0\n",
					"sys/class/block/vda1/size":                                         "20969472\n",
					"sys/class/block/vda1/partition":                                    "1\n",
					"sys/class/block/vdb/size":                                          "6442450944\n",
					"sys/class/block/vdb/ro":                                            "1\n",
					"sys/class/block/loop0/size":                                        "0\n",
					"sys/class/net/lo/address":                                          "00:00:00:00:00:00\n",
					"sys/class/net/eth0/address":                                        "52:54:00:12:34:56\n",
					"sys/class/net/eth0/mtu":                                            "9000\n",
					"sys/class/virtio-ports/vport2p0/uevent":                            "",
					"sys/class/virtio-ports/vport2p1/name":                              "agent\n",
				}),
				cmdline: "console=ttyS0 reboot=k panic=-1 vole.action=exit:7 vole.dance",
				uptime:  187 * time.Millisecond,
				release: "6.1.0-50-cloud-amd64", version: debian, machine: "x86_64",
				log:    "<6>[    0.000000] Hypervisor detected: KVM\n<6>[    0.100000] fine\n",
				mounts: mountTable(),
			},
		},
		{
			name: "nothing",
			s:    sources{root: fstest.MapFS{}, mounts: failing(mountTable())},
		},
		{
			name: "crowded",
			s:    crowded(),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := collect(c.s)
			report := f.report()
			checkScreen(t, report)
			golden(t, c.name+".report", report)
		})
	}
}

func failing(table []mount) []mount {
	for i := range table {
		table[i].err = unix.ENODEV
	}
	table[0].err = errors.New("a \x1b[31mred\x1b[0m error")
	return table
}

// crowded has too much of everything, and a terminal's escape sequences.
func crowded() sources {
	files := map[string]string{
		"proc/cpuinfo":                 "model name : " + strings.Repeat("long ", 50) + "\n",
		"sys/class/tty/console/active": strings.Repeat("ttyS0 ", 100),
	}
	var pci, log strings.Builder
	for i := range 60 {
		files[fmt.Sprintf("sys/class/block/vd%02d/size", i)] = "2048\n"
		files[fmt.Sprintf("sys/class/net/eth%02d/address", i)] = "52:54:00:12:34:56\n"
		files[fmt.Sprintf("sys/bus/virtio/devices/virtio%02d/device", i)] = fmt.Sprintf("%#x\n", i)
		fmt.Fprintf(&pci, "%04x\t1af4%04x\t0\n", i, 0x1040+i)
		fmt.Fprintf(&log, "<4>[%12.6f] warning %d %s\n", float64(i)*3.5, i, strings.Repeat("\x1b]0;x\x07", i))
	}
	files["proc/bus/pci/devices"] = pci.String()
	return sources{
		root:    sysfs(files),
		cmdline: strings.Repeat("word=\"quoted \x1b[2J\" ", 100) + strings.Repeat("x", 1000) + strings.Repeat(" vole.x", 100),
		uptime:  100 * time.Hour,
		release: strings.Repeat("r", 64), version: strings.Repeat("v", 64), machine: "x86_64",
		log:    log.String(),
		mounts: mountTable(),
	}
}

// TestRealRoot collects from this machine's own files.
func TestRealRoot(t *testing.T) {
	s := systemSources("", uptime(), nil)
	f := collect(s)
	checkScreen(t, f.report())
	assert.NotZero(t, f.cpus)
	assert.NotZero(t, f.memTotal)
	assert.NotEmpty(t, f.release)
	assert.Positive(t, f.uptime)
	other := s
	other.root = os.DirFS("/")
	g := collect(other)
	assert.Equal(t, g.cpus, f.cpus)
	assert.Equal(t, g.memTotal, f.memTotal)
	assert.Equal(t, g.consoles, f.consoles)
	assert.Equal(t, g.nets, f.nets)
}

func BenchmarkReport(b *testing.B) {
	s := systemSources("", 0, mountTable())
	b.ReportAllocs()
	for b.Loop() {
		f := collect(s)
		_ = f.report()
	}
}
