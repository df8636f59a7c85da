package guests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// diskRow is one thing that fio measures.
type diskRow struct {
	name, rw, bs string
	depth        int
}

var diskRows = []diskRow{
	{"4k-randread-1", "randread", "4k", 1},
	{"4k-randread-32", "randread", "4k", 32},
	{"4k-randwrite-1", "randwrite", "4k", 1},
	{"4k-randwrite-32", "randwrite", "4k", 32},
	{"1m-read", "read", "1m", 4},
	{"1m-write", "write", "1m", 4},
}

// diskJob is what every peer does: the same guest with a disk of some size and
// number of queues, as many vCPUs, and fio on the second.
type diskJob struct {
	kernel, initrd, cache string
	disk, tools           string
	queues                int
}

const (
	diskBenchSize = 64 << 20
	diskBenchTime = 3 // seconds a row
)

// diskScript runs all rows in one fio, a job on each queue, and says each row's
// operations a second: the terse output has the reads' in field 8 and the
// writes' in field 49.
func diskScript(queues int) string {
	args := fmt.Sprintf("--minimal --filename=/dev/vda --size=%d --direct=1 --ioengine=libaio --time_based --ramp_time=1 --runtime=%d"+
		" --numjobs=%d --group_reporting --cpus_allowed=0-%d --cpus_allowed_policy=split --randrepeat=1 --norandommap",
		diskBenchSize, diskBenchTime, queues, queues-1)
	for _, row := range diskRows {
		args += fmt.Sprintf(" --name=%s --stonewall --new_group --rw=%s --bs=%s --iodepth=%d", row.name, row.rw, row.bs, row.depth)
	}
	return fioBegin + `
fio ` + args + ` >/tmp/log 2>&1 || { echo FAILED; cat /tmp/log; }
awk -F';' 'NF > 49 { print "ROW " $3 " " ($8 > 0 ? $8 : $49) }' /tmp/log
`
}

type diskPeer struct {
	name    string
	command func(ctx context.Context, j diskJob) (*exec.Cmd, error)
}

func voleDisk(ctx context.Context, j diskJob) (*exec.Cmd, error) {
	path, err := nested.Asset(nested.AssetVole)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, "run", "-k", j.kernel, "-i", j.initrd, "-m", "256M", "-c", strconv.Itoa(j.queues),
		"--cmdline", common+"quiet", "--disk", fmt.Sprintf("%s,queues=%d", j.disk, j.queues), "--disk", j.tools+",ro")
	cmd.Env = append(os.Environ(), "VOLE_CACHE="+j.cache)
	return cmd, nil
}

func qemuDisk(aio string) func(ctx context.Context, j diskJob) (*exec.Cmd, error) {
	return func(ctx context.Context, j diskJob) (*exec.Cmd, error) {
		return nested.QEMUCommand(ctx, "-accel", "kvm", "-cpu", "host", "-M", "q35",
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
			"-m", "256M", "-smp", strconv.Itoa(j.queues), "-kernel", j.kernel, "-initrd", j.initrd, "-append", common+"quiet",
			"-object", "iothread,id=io0",
			"-drive", "if=none,id=d0,format=raw,cache=writeback,file="+j.disk+",aio="+aio,
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d0,iothread=io0,num-queues=%d", j.queues),
			"-drive", "if=none,id=d1,format=raw,readonly=on,file="+j.tools,
			"-device", "virtio-blk-pci,drive=d1")
	}
}

var diskPeers = []diskPeer{
	{"vole", voleDisk}, {"qemu-threads", qemuDisk("threads")}, {"qemu-io_uring", qemuDisk("io_uring")},
}

// run returns each row's operations a second.
func (p diskPeer) run(b *testing.B, j diskJob) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bootBound)
	defer cancel()
	cmd, err := p.command(ctx, j)
	if err != nil {
		return nil, err
	}
	rows, out, err := rowsOf(cmd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	if len(rows) != len(diskRows) {
		return nil, fmt.Errorf("%s: %d of %d rows: %s", p.name, len(rows), len(diskRows), last(out))
	}
	return rows, nil
}

// BenchmarkDisk is fio in the same stock guest with the same image, on vole's
// disk and on QEMU's with an iothread, in turn.
func BenchmarkDisk(b *testing.B) {
	tools := needFio(b)
	onDisk := os.TempDir()
	if nested.Inside() {
		onDisk = nested.DiskDir
	}
	for _, where := range []struct{ name, dir string }{{"tmpfs", "/dev/shm"}, {"disk", onDisk}} {
		for _, queues := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/queues-%d", where.name, queues), func(b *testing.B) {
				for b.Loop() {
					compareDisks(b, where.dir, tools, queues)
				}
			})
		}
	}
}

func compareDisks(b *testing.B, where, tools string, queues int) {
	kernel := diskKernel()
	j := diskJob{
		kernel: asset(b, kernel), initrd: moduleInit(b, kernel, diskModules, diskScript(queues)),
		cache: cacheWith(b, asset(b, kernel)).Dir(), tools: tools, queues: queues,
	}
	dir, err := os.MkdirTemp(where, "vole-bench-*")
	require.NoError(b, err)
	defer os.RemoveAll(dir)
	j.disk = filepath.Join(dir, "disk.img")
	require.NoError(b, os.WriteFile(j.disk, noise(diskBenchSize), 0o600)) // no first writes are measured
	rates := make([]map[string][]float64, len(diskPeers))
	for range rounds() {
		for i, p := range diskPeers {
			begin := time.Now()
			rows, err := p.run(b, j)
			if i == 0 {
				require.NoError(b, err)
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "left out of the comparison: %v\n", err)
				continue
			}
			fmt.Fprintf(os.Stderr, "%s %s %v\n", p.name, seconds(time.Since(begin)), rows)
			if rates[i] == nil {
				rates[i] = map[string][]float64{}
			}
			for name, rate := range rows {
				rates[i][name] = append(rates[i][name], rate)
			}
		}
	}
	b.Logf("%-16s %10s %14s %14s %7s", "operations/s", "vole", "qemu-threads", "qemu-io_uring", "ratio")
	for _, row := range diskRows {
		var m [3]float64
		for i := range diskPeers {
			if r := rates[i][row.name]; len(r) > 0 {
				m[i] = slices.Sorted(slices.Values(r))[len(r)/2]
			}
		}
		best := max(m[1], m[2])
		if best == 0 {
			b.Fatal("no QEMU came up")
		}
		b.Logf("%-16s %10.0f %14.0f %14.0f %7.2f", row.name, m[0], m[1], m[2], m[0]/best)
		b.ReportMetric(m[0]/best, row.name+"/qemu")
	}
}
