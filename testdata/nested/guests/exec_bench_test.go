package guests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/testdata/nested/qemuexec"
)

// execMemory is the guests' in the comparison of commands.
const execMemory = "512M"

// execPeer is a way to run a command that succeeds over the host's files.
type execPeer struct {
	name string
	// aside is set for what is only there to show where the time goes: not one that
	// vole is compared with.
	aside bool
	run   func(ctx context.Context, j *execJob) error
}

// execJob is one command that every peer is asked for.
type execJob struct {
	t       testing.TB
	kernel  string
	cache   string
	command []string
	initrds map[qemuexec.Share]string // the peers', which do what vole's agent does
	dir     string                    // for sockets
}

// BenchmarkExec times a command in a guest whole, process start to process end, with
// its exit code: vole exec, beside QEMU run as vimto and virtme-ng run it ([qemuexec]),
// and, aside, QEMU that has vole's vmlinux to boot, which those do not give it.
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
	cache := cacheWith(b, path)
	vmlinux, ok, err := cache.Lookup(path)
	require.NoError(b, err)
	require.True(b, ok)
	j := &execJob{t: b, kernel: path, cache: cache.Dir(), command: []string{asset(b, nested.AssetBusybox), "true"}, dir: b.TempDir(),
		initrds: map[qemuexec.Share]string{qemuexec.NineP: "", qemuexec.Virtiofsd: ""}}
	peers := []execPeer{voleExec("vole-pci", "pci"), voleExec("vole-mmio", "mmio"), qemuExec("qemu-q35-virtiofsd", "q35", qemuexec.Virtiofsd, path),
		qemuExec("qemu-q35-virtiofsd-vmlinux", "q35", qemuexec.Virtiofsd, vmlinux)}
	for share := range j.initrds {
		j.initrds[share] = filepath.Join(b.TempDir(), "initrd")
		err := qemuexec.WriteInitrd(j.initrds[share], path, j.command[0], share)
		switch {
		case err == nil && share == qemuexec.NineP:
			peers = append(peers, qemuExec("qemu-q35-9p", "q35", share, path), qemuExec("qemu-microvm-9p", microvm, share, path),
				qemuExec("qemu-microvm-9p-vmlinux", microvm, share, vmlinux))
		case share != qemuexec.NineP || !errors.Is(err, qemuexec.ErrNoShare):
			require.NoError(b, err)
		}
	}
	took := make([][]time.Duration, len(peers))
	// Once before: what a first run leaves in vole's cache.
	require.NoError(b, peers[0].run(context.Background(), j))
	for range rounds() {
		for i, p := range peers {
			ctx, cancel := context.WithTimeout(context.Background(), peerBound)
			begin := time.Now()
			err := p.run(ctx, j)
			whole := time.Since(begin)
			cancel()
			if err == nil {
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
		if len(took[i]) > 0 && !p.aside && !strings.HasPrefix(p.name, "vole") && (best < 0 || median(took[i]) < median(took[best])) {
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
	return execPeer{name: name, run: func(ctx context.Context, j *execJob) error {
		args := slices.Concat([]string{"exec", "-k", j.kernel, "-m", execMemory, "--transport", transport, "--"}, j.command)
		cmd := exec.CommandContext(ctx, asset(j.t, nested.AssetVole), args...)
		cmd.Env = append(os.Environ(), "VOLE_CACHE="+j.cache)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, last(string(out)))
		}
		return nil
	}}
}

// qemuExec is QEMU with the host's root by 9p or by a virtiofsd of its own.
func qemuExec(name, machine string, share qemuexec.Share, kernel string) execPeer {
	return execPeer{name: name, aside: strings.HasSuffix(name, "-vmlinux"), run: func(ctx context.Context, j *execJob) error {
		q := qemuexec.QEMU{Machine: machine, Share: share, Kernel: kernel, Initrd: j.initrds[share], Memory: execMemory, CPUs: 1, Scratch: j.dir}
		r, err := q.Run(ctx, qemuexec.Command{Args: j.command})
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("%s: the code is %d: %s", name, r.Code, last(string(r.Output)))
		}
		return err
	}}
}
