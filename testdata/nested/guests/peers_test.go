package guests

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// job is one boot that every peer can be asked for: same kernel, initrd,
// command line and machine, ended by the guest's own power-off.
type job struct {
	kernel, initrd string // paths
	vmlinux        string // what the cache has of the kernel
	words          string // behind console=ttyS0
	cpus           int
	memory         string // as both take it: "256M"
	cache          string // vole's cache directory
}

// peer is a way to do a job.
type peer struct {
	name    string
	command func(ctx context.Context, j job) (*exec.Cmd, error)
}

// common are the words that every peer's guest gets.
const common = "console=ttyS0 reboot=k panic=-1 "

func volePeer(name string, cache func(job) string, args ...string) peer {
	return peer{name, func(ctx context.Context, j job) (*exec.Cmd, error) {
		path, err := nested.Asset(nested.AssetVole)
		if err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, path, append([]string{"run", "-k", j.kernel, "-i", j.initrd,
			"-m", j.memory, "-c", strconv.Itoa(j.cpus), "--cmdline", common + j.words}, args...)...)
		cmd.Env = append(os.Environ(), "VOLE_CACHE="+cache(j))
		return cmd, nil
	}}
}

func qemuPeer(name, machine string, kernel func(job) string) peer {
	return peer{name, func(ctx context.Context, j job) (*exec.Cmd, error) {
		return nested.QEMUCommand(ctx, "-accel", "kvm", "-cpu", "host", "-M", machine,
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
			"-m", j.memory, "-smp", strconv.Itoa(j.cpus),
			"-kernel", kernel(j), "-initrd", j.initrd, "-append", common+j.words)
	}}
}

func warmCache(j job) string { return j.cache }
func bzImageOf(j job) string { return j.kernel }
func vmlinuxOf(j job) string { return j.vmlinux }

const microvm = "microvm,rtc=on,pit=off,pic=off"

var (
	voleWarm    = volePeer("vole", warmCache)
	voleBzImage = volePeer("vole-bzimage", warmCache, "--boot", "bzimage")
	qemuMicro   = qemuPeer("qemu-microvm", microvm, bzImageOf)
	qemuQ35     = qemuPeer("qemu-q35", "q35", bzImageOf)
	qemuVMLinux = qemuPeer("qemu-microvm-vmlinux", microvm, vmlinuxOf)
)

// leanInit is an /init that does as little as a shell can: it says how long the
// guest has been up, and powers off.
const leanInit = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
read up idle < /proc/uptime
echo "UP $up"
/bin/busybox poweroff -f
`

// newJob prepares a job for the kernel of that name.
func newJob(t testing.TB, kernel, words string) job {
	t.Helper()
	path := needKernel(t, kernel)
	cache := cacheWith(t, path)
	vmlinux, ok, err := cache.Lookup(path)
	require.NoError(t, err)
	require.True(t, ok)
	return job{kernel: path, vmlinux: vmlinux, initrd: initWith(t, leanInit), words: words, cpus: 1, memory: "256M", cache: cache.Dir()}
}

// outcome is what one run of a peer took.
type outcome struct {
	whole   time.Duration // process start to process end
	outside time.Duration // of it, not the guest's own uptime at init
	console string
}

var uptimeLine = regexp.MustCompile(`(?m)^UP (\d+\.\d+)`)

func (p peer) run(t testing.TB, j job) (outcome, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), peerBound)
	defer cancel()
	cmd, err := p.command(ctx, j)
	if err != nil {
		return outcome{}, err
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	begin := time.Now()
	err = cmd.Run()
	o := outcome{whole: time.Since(begin), console: out.String()}
	if err != nil {
		return o, fmt.Errorf("%s: %w: %s: %s", p.name, err, errs.String(), last(out.String()))
	}
	m := uptimeLine.FindStringSubmatch(o.console)
	if m == nil {
		return o, fmt.Errorf("%s: the guest did not reach its init: %s: %s", p.name, errs.String(), last(o.console))
	}
	up, err := strconv.ParseFloat(m[1], 64)
	o.outside = o.whole - time.Duration(up*float64(time.Second))
	return o, err
}

// peerBound is how long one boot of a peer may take; QEMU now and then never
// ends there.
const peerBound = 90 * time.Second

// rowsOf runs a peer whose guest measures: the lines "ROW name number" of its console,
// and all of that.
func rowsOf(cmd *exec.Cmd) (rows map[string]float64, console string, err error) {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, string(out), fmt.Errorf("%w: %s", err, last(string(out)))
	}
	rows = map[string]float64{}
	for _, line := range lines(string(out)) {
		var name string
		var rate float64
		if n, _ := fmt.Sscanf(line, "ROW %s %f", &name, &rate); n == 2 {
			rows[name] = rate
		}
	}
	return rows, string(out), nil
}

func last(s string) string { return s[max(0, len(s)-400):] }

// TestWarningsOfPeers prints what stock QEMU's guests warn of, beside vole's:
// the list of excuses is held against it by hand.
func TestWarningsOfPeers(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	for _, kernel := range []string{nested.KernelCloud61, nested.KernelGeneric61, nested.KernelCloud612} {
		for _, p := range []peer{voleWarm, qemuMicro, qemuQ35} {
			t.Run(filepath.Join(kernel, p.name), func(t *testing.T) {
				o, err := p.run(t, newJob(t, kernel, "loglevel=5"))
				require.NoError(t, err)
				for _, line := range lines(o.console) {
					if stamped.MatchString(line) {
						t.Log(line)
					}
				}
			})
		}
	}
}
