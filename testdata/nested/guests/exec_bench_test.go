package guests

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/testdata/nested"
)

// execMemory is the guests' in the comparison of commands.
const execMemory = "512M"

// execPeer is a way to run a command over the host's files.
type execPeer struct {
	name string
	run  func(ctx context.Context, e *execJob) (code string, err error)
}

// execJob is one command that every peer is asked for.
type execJob struct {
	t       testing.TB
	kernel  string
	cache   string
	command []string
	initrd  string // the peer's, which does what vole's agent does
	dir     string // for sockets
	number  int
}

// BenchmarkExec times a command in a guest whole, process start to process end, with
// its exit code: vole exec, beside QEMU run as vimto and virtme-ng run it: a small
// initramfs that mounts the host's root from 9p, or from virtiofsd, lays an overlay in
// memory over it, runs the command, and says its code by a virtio port.
func BenchmarkExec(b *testing.B) {
	for _, name := range []string{nested.KernelCloud61, nested.KernelGeneric61, nested.KernelCloud612} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				compareExecs(b, name)
			}
		})
	}
}

func compareExecs(b *testing.B, name string) {
	tools(b)
	path := needKernel(b, name)
	j := &execJob{t: b, kernel: path, cache: cacheWith(b, path).Dir(), command: []string{asset(b, nested.AssetBusybox), "true"}, dir: b.TempDir()}
	modules, err := kernel.ModulesFor(path)
	require.NoError(b, err)
	dir, err := initramfs.OpenModules(modules)
	require.NoError(b, err)
	drivers := []string{"virtio_pci", "virtio_mmio", "virtio_console", "overlay", "virtiofs"}
	with9p := slices.Concat(drivers, []string{"9p", "9pnet_virtio"})
	sel, err := dir.Select(initramfs.SelectOptions{}, with9p...)
	nineP := err == nil
	if !nineP {
		sel, err = dir.Select(initramfs.SelectOptions{}, drivers...)
		require.NoError(b, err)
	}
	j.initrd = execInitrd(b, dir, sel)
	peers := []execPeer{voleExec("vole-pci", "pci"), voleExec("vole-mmio", "mmio")}
	if nineP {
		peers = append(peers, qemuExec("qemu-q35-9p", "q35", "9p"), qemuExec("qemu-microvm-9p", microvm, "9p"))
	}
	peers = append(peers, qemuExec("qemu-q35-virtiofsd", "q35", "virtiofs"))
	took := make([][]time.Duration, len(peers))
	// Once before: what a first run leaves in vole's cache.
	_, err = peers[0].run(context.Background(), j)
	require.NoError(b, err)
	for range rounds() {
		for i, p := range peers {
			ctx, cancel := context.WithTimeout(context.Background(), peerBound)
			j.number++
			begin := time.Now()
			code, err := p.run(ctx, j)
			whole := time.Since(begin)
			cancel()
			switch {
			case err == nil && code != "0":
				err = fmt.Errorf("%s: the code is %q", p.name, code)
			case err == nil:
				took[i] = append(took[i], whole)
				fmt.Fprintf(os.Stderr, "%s %s\n", p.name, seconds(whole))
				continue
			}
			if strings.HasPrefix(p.name, "vole") {
				require.NoError(b, err)
			}
			fmt.Fprintf(os.Stderr, "left out of the comparison: %v\n", err)
		}
	}
	best := -1
	for i, p := range peers {
		if len(took[i]) > 0 && !strings.HasPrefix(p.name, "vole") && (best < 0 || median(took[i]) < median(took[best])) {
			best = i
		}
	}
	require.GreaterOrEqual(b, best, 0, "no QEMU came up")
	b.Logf("%-24s %8s %8s %8s %7s", "peer", "median", "min", "max", "ratio")
	for i, p := range peers {
		if len(took[i]) == 0 {
			continue
		}
		r := float64(median(took[i])) / float64(median(took[best]))
		b.Logf("%-24s %8s %8s %8s %7.2f", p.name, seconds(median(took[i])), seconds(slices.Min(took[i])), seconds(slices.Max(took[i])), r)
		b.ReportMetric(r, p.name+"/fastest-qemu")
	}
}

func voleExec(name, transport string) execPeer {
	return execPeer{name, func(ctx context.Context, j *execJob) (string, error) {
		args := slices.Concat([]string{"exec", "-k", j.kernel, "-m", execMemory, "--transport", transport, "--"}, j.command)
		cmd := exec.CommandContext(ctx, asset(j.t, nested.AssetVole), args...)
		cmd.Env = append(os.Environ(), "VOLE_CACHE="+j.cache)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", name, err, last(string(out)))
		}
		return "0", nil
	}}
}

// execInit does for QEMU's guest what the agent does for vole's. %s is the modules.
const execInit = `#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
%s
for word in $(cat /proc/cmdline); do
	case $word in
	share=*) share=${word#share=} ;;
	run=*) run="$run ${word#run=}" ;;
	esac
done
mkdir -p /share /memory /root
case $share in
9p) mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /share ;;
*) mount -t virtiofs -o ro root /share ;;
esac
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/share,upperdir=/memory/upper,workdir=/memory/work overlay /root
for dir in proc sys dev; do mkdir -p /root/$dir; mount -o move /$dir /root/$dir; done
for port in /root/dev/vport*p1; do code=$port; done
for port in /root/dev/vport*p2; do out=$port; done
chroot /root $run >$out 2>&1 </root/dev/null
echo "CODE $?" >$code
sync
poweroff -f
`

func execInitrd(t testing.TB, dir *initramfs.ModuleDir, sel initramfs.Selection) string {
	t.Helper()
	var a initramfs.Archive
	names, err := a.AddModules(dir, sel, "modules")
	require.NoError(t, err)
	var load strings.Builder
	for _, name := range names {
		fmt.Fprintf(&load, "insmod /%s\n", name)
	}
	for _, d := range []string{"/bin", "/proc", "/sys", "/dev", "/tmp"} {
		require.NoError(t, a.Dir(d, 0o755))
	}
	busybox, err := os.ReadFile(asset(t, nested.AssetBusybox))
	require.NoError(t, err)
	require.NoError(t, a.CharDevice("/dev/console", 0o600, 5, 1))
	require.NoError(t, a.Bytes("/bin/busybox", 0o755, busybox))
	require.NoError(t, a.Bytes("/init", 0o755, fmt.Appendf(nil, execInit, load.String())))
	path := filepath.Join(t.TempDir(), "initrd.cpio")
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = a.Image().WriteTo(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return path
}

// qemuExec is QEMU with the host's root by 9p or by a virtiofsd of its own.
func qemuExec(name, machine, share string) execPeer {
	return execPeer{name, func(ctx context.Context, j *execJob) (string, error) {
		code, out := filepath.Join(j.dir, "code"), filepath.Join(j.dir, "out")
		bus := "pci"
		if machine != "q35" {
			bus = "device"
		}
		args := []string{"-accel", "kvm", "-cpu", "host", "-M", machine,
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", "-smp", "1",
			"-kernel", j.kernel, "-initrd", j.initrd,
			"-append", common + "quiet share=" + share + " run=" + strings.Join(j.command, " run="),
			"-device", "virtio-serial-" + bus,
			"-chardev", "file,id=code,path=" + code, "-device", "virtserialport,chardev=code,name=code",
			"-chardev", "file,id=out,path=" + out, "-device", "virtserialport,chardev=out,name=out"}
		if share == "9p" {
			args = append(args, "-m", execMemory, "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
				"-device", "virtio-9p-"+bus+",fsdev=root,mount_tag=root")
		} else {
			socket := filepath.Join(j.dir, fmt.Sprintf("fs%d", j.number))
			stop, err := startVirtiofsd(ctx, socket, "/")
			if err != nil {
				return "", fmt.Errorf("%s: %w", name, err)
			}
			defer stop()
			args = append(args, "-m", execMemory, "-object", "memory-backend-memfd,id=mem,share=on,size="+execMemory, "-numa", "node,memdev=mem",
				"-chardev", "socket,id=fs,path="+socket, "-device", "vhost-user-fs-"+bus+",chardev=fs,tag=root")
		}
		cmd, err := nested.QEMUCommand(ctx, args...)
		if err != nil {
			return "", err
		}
		console, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", name, err, last(string(console)))
		}
		b, err := os.ReadFile(code)
		if err != nil {
			return "", err
		}
		text, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "CODE ")
		if !ok {
			return "", fmt.Errorf("%s: the guest has not said its code: %s", name, last(string(console)))
		}
		if text != "0" {
			said, _ := os.ReadFile(out)
			return text, fmt.Errorf("%s: the code is %s: %s %s", name, text, said, last(string(console)))
		}
		return text, nil
	}}
}

// startVirtiofsd starts a virtiofsd for one QEMU, and returns when it listens.
func startVirtiofsd(ctx context.Context, socket, source string) (stop func(), err error) {
	fs, err := nested.VirtiofsdCommand(ctx, "--socket-path="+socket, "-o", "source="+source, "-o", "cache=auto", "-o", "sandbox=chroot", "-o", "xattr")
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	fs.Stdout, fs.Stderr = &said, &said
	if err := fs.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = fs.Process.Kill()
		_ = fs.Wait()
	}
	for {
		if _, err := os.Stat(socket); err == nil {
			return stop, nil
		}
		select {
		case <-ctx.Done():
			stop()
			return nil, fmt.Errorf("virtiofsd: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}
