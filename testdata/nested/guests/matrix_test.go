package guests

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/guest"
	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/rng"
	"github.com/vole-vmm/vole/vmm"
)

// bootWay is one of the ways into a kernel.
type bootWay struct {
	name     string
	mode     vmm.BootMode
	entry64  bool
	protocol string
}

var bootWays = []bootWay{
	{"bzimage", vmm.BootBzImage, false, "bzimage-64"},
	{"pvh", vmm.BootVMLinux, false, "pvh"},
	{"elf64", vmm.BootVMLinux, true, "elf64"},
}

// choice is one guest of the matrix.
type choice struct {
	kernel string
	cpus   int
	memory uint64 // MiB
	way    int
}

func (c choice) String() string {
	return fmt.Sprintf("%s/%dcpus/%dM/%s", c.kernel, c.cpus, c.memory, bootWays[c.way].name)
}

// pairs holds every pair of values of two columns.
var pairs = []choice{
	{nested.KernelCloud61, 1, 128, 0},
	{nested.KernelCloud61, 2, 512, 1},
	{nested.KernelCloud61, 4, 3584, 2},
	{nested.KernelCloud61, 1, 5120, 1},
	{nested.KernelGeneric61, 1, 512, 2},
	{nested.KernelGeneric61, 2, 128, 2},
	{nested.KernelGeneric61, 4, 128, 1},
	{nested.KernelGeneric61, 1, 3584, 1},
	{nested.KernelGeneric61, 2, 3584, 0},
	{nested.KernelGeneric61, 4, 512, 0},
	{nested.KernelCloud61, 2, 5120, 0},
	{nested.KernelGeneric61, 4, 5120, 2},
	{nested.KernelCloud612, 2, 512, 1},
}

// everything is the whole matrix.
func everything() []choice {
	var all []choice
	for _, k := range []string{nested.KernelCloud61, nested.KernelGeneric61, nested.KernelCloud612} {
		for _, c := range []int{1, 2, 4} {
			for _, m := range []uint64{128, 512, 3584, 5120} {
				for w := range bootWays {
					all = append(all, choice{k, c, m, w})
				}
			}
		}
	}
	return all
}

func TestMatrix(t *testing.T) {
	list := pairs
	if nested.CurrentSuite() == nested.SuiteMatrix {
		list = everything()
	}
	for _, c := range list {
		t.Run(c.String(), func(t *testing.T) { testChoice(t, c) })
	}
}

// TestPairsAreComplete checks the list of pairs itself.
func TestPairsAreComplete(t *testing.T) {
	columns := func(c choice) [4]any { return [4]any{c.kernel, c.cpus, c.memory, c.way} }
	have := map[string]bool{}
	key := func(i, j int, c choice) string { v := columns(c); return fmt.Sprint(i, j, v[i], v[j]) }
	for _, c := range pairs {
		for i := range 4 {
			for j := range i {
				have[key(i, j, c)] = true
			}
		}
	}
	for _, c := range everything() {
		if c.kernel == nested.KernelCloud612 {
			continue
		}
		for i := range 4 {
			for j := range i {
				assert.True(t, have[key(i, j, c)], "no guest has columns %d and %d of %v", i, j, c)
			}
		}
	}
}

func testChoice(t *testing.T, c choice) {
	way := bootWays[c.way]
	path := needKernel(t, c.kernel)
	builtIn, err := guest.Archive(asset(t, nested.AssetVole))
	require.NoError(t, err)
	defer builtIn.Close()
	var out bytes.Buffer
	cfg := vmm.Config{
		Kernel: path, Initrds: []boot.Image{builtIn}, Cmdline: vmm.DefaultCmdline + " loglevel=5",
		Boot: way.mode, Entry64: way.entry64,
		CPUs: c.cpus, Memory: c.memory << 20, ConsoleOut: &out, Timeout: bootBound,
	}
	if way.mode != vmm.BootBzImage {
		cfg.Cache = cacheWith(t, path)
	}
	// Of the guests some have a bus with something on it, so that its description
	// is among what the kernel may warn of.
	switch c.cpus {
	case 2:
		cfg.Devices = []virtio.Device{blankDisk(t), rng.New(nil)}
	case 4:
		cfg.Transport, cfg.Devices = vmm.TransportMMIO, []virtio.Device{blankDisk(t), rng.New(nil)}
	}
	m, err := vmm.New(cfg)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Start())
	exit, err := m.Wait(context.Background())
	require.NoError(t, err)
	console := out.String()
	require.Equal(t, vmm.Exit{Reason: vmm.Poweroff}, exit, "%v\n%s", exit, console)
	report := m.Report()
	assert.Equal(t, way.protocol, report.Boot.Protocol)
	assert.Equal(t, way.mode != vmm.BootBzImage, report.Boot.Cached)
	var marks []string
	for _, mark := range report.Timeline {
		marks = append(marks, mark.Name)
	}
	assert.Contains(t, marks, vmm.MarkInit)

	assert.Equal(t, c.cpus, number(t, `cpus +(\d+) online`, console))
	total := number(t, `memory +.*\((\d+) kB\)`, console)
	all := int(c.memory << 10)
	assert.Less(t, total, all)
	assert.Greater(t, total, all-all/24-64<<10, "MemTotal is what the machine has less the kernel's own")
	checkWarnings(t, c.kernel, console)
}

// blankDisk is a small disk in memory.
func blankDisk(t *testing.T) virtio.Device {
	t.Helper()
	disk, err := block.New(block.NewMemory(1<<20), block.Options{})
	require.NoError(t, err)
	return disk
}

// stamped is a line of the kernel's.
var stamped = regexp.MustCompile(`^\[ *\d+\.\d+\] `)

// checkWarnings looks at a console on which the kernel prints warnings and
// worse only.
func checkWarnings(t *testing.T, kernel, console string) {
	t.Helper()
	for _, line := range lines(console) {
		if !stamped.MatchString(line) {
			continue
		}
		text := stamped.ReplaceAllString(line, "")
		if !excusedWarning(text) {
			t.Errorf("%s warns: %s", kernel, text)
		}
	}
}
