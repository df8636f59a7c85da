package guests

import (
	"context"
	"fmt"
	"io/fs"
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

// gitBenchScript times `git status` right after the share was mounted, and once more.
const gitBenchScript = `
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_OPTIONAL_LOCKS=0
read words </proc/cmdline
case "$words" in
*share=9p*) mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro data /mnt ;;
*) mount -t virtiofs -o ro data /mnt ;;
esac || echo FAILED to mount
cd /mnt
row() {
	read begin idle </proc/uptime
	git status --porcelain >/tmp/out 2>&1 && [ ! -s /tmp/out ] || { echo FAILED: it is not clean; head -n 3 /tmp/out; }
	read end idle </proc/uptime
	echo "ROW $1 $(awk "BEGIN { print $end - $begin }")"
}
git --version >/dev/null
row cold
row warm
cd /
umount /mnt
`

// gitBench is what every peer does: a guest with the tree, by the same initramfs.
type gitBench struct {
	vole, kernel, initrd, cache string
	tree                        string
	dir                         string // for sockets
}

// BenchmarkShareGit times `git status` of a large tree in a guest, over vole's share and
// beside QEMU's by virtiofsd and 9p: the first after the share was mounted, which asks
// for every file, and the second, for which caches are good.
func BenchmarkShareGit(b *testing.B) {
	tools(b)
	files, err := nested.Programs(nested.ComponentGit, "bin/git")
	if err != nil {
		b.Skipf("%v", err)
	}
	bin := stageGit(b)
	modules := slices.Concat(shareModules, []string{"9p", "9pnet_virtio"})
	path := needKernel(b, nested.KernelGeneric61)
	g := gitBench{
		vole: asset(b, nested.AssetVole), kernel: path, cache: cacheWith(b, path).Dir(), dir: b.TempDir(),
		initrd: moduleInitWith(b, nested.KernelGeneric61, modules, files, gitBenchScript),
		tree:   cleanTree(b, bin, envFiles(b, 10_000)),
	}
	for b.Loop() {
		compareGit(b, g)
	}
}

// cleanTree is a clone of gitTree whose index tells, on every share, that no file has
// changed: by size and time alone, and by a time that is not just now.
func cleanTree(b *testing.B, bin string, files int) string {
	tree := filepath.Join(b.TempDir(), "tree")
	git(b, bin, nil, "clone", "-q", gitTree(b, bin, files), tree)
	git(b, bin, nil, "-C", tree, "config", "core.checkStat", "minimal")
	git(b, bin, nil, "-C", tree, "config", "core.trustctime", "false")
	then := time.Now().Add(-time.Hour)
	require.NoError(b, filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		return os.Chtimes(path, then, then)
	}))
	require.Empty(b, git(b, bin, nil, "-C", tree, "status", "--porcelain"))
	return tree
}

func compareGit(b *testing.B, g gitBench) {
	peers := []struct {
		name string
		run  func(ctx context.Context, g gitBench) (map[string]float64, string, error)
	}{
		{"vole-pci", onVole("pci")}, {"vole-mmio", onVole("mmio")}, {"qemu-q35-virtiofsd", onQEMU("virtiofs")}, {"qemu-q35-9p", onQEMU("9p")},
	}
	took := map[string][]time.Duration{}
	for range rounds() {
		for _, p := range peers {
			ctx, cancel := context.WithTimeout(context.Background(), bootBound)
			rows, console, err := p.run(ctx, g)
			cancel()
			if err == nil && (len(rows) != 2 || strings.Contains(console, "FAILED")) {
				err = fmt.Errorf("the guest said %s", last(console))
			}
			if err != nil {
				if strings.HasPrefix(p.name, "vole") {
					require.NoError(b, err, p.name)
				}
				fmt.Fprintf(os.Stderr, "left out of the comparison: %s: %v\n", p.name, err)
				continue
			}
			for row, s := range rows {
				key := p.name + " " + row
				took[key] = append(took[key], time.Duration(s*float64(time.Second)))
			}
			fmt.Fprintf(os.Stderr, "%s %v\n", p.name, rows)
		}
	}
	b.Logf("%-24s %4s %8s %8s %8s %s", "peer", "", "median", "min", "max", "vole-pci's part of it")
	for _, row := range []string{"cold", "warm"} {
		ours := median(took["vole-pci "+row])
		for _, p := range peers {
			t := took[p.name+" "+row]
			if len(t) == 0 {
				continue
			}
			r := float64(ours) / float64(max(median(t), time.Millisecond))
			b.Logf("%-24s %4s %8s %8s %8s %.2f", p.name, row, seconds(median(t)), seconds(slices.Min(t)), seconds(slices.Max(t)), r)
			if !strings.HasPrefix(p.name, "vole") {
				b.ReportMetric(r, row+"/"+p.name)
			}
		}
	}
}

const gitBenchMemory = "512M"

func onVole(transport string) func(ctx context.Context, g gitBench) (map[string]float64, string, error) {
	return func(ctx context.Context, g gitBench) (map[string]float64, string, error) {
		cmd := exec.CommandContext(ctx, g.vole, "run", "-k", g.kernel, "-i", g.initrd, "-m", gitBenchMemory, "-c", "1",
			"--cmdline", common+"quiet", "--transport", transport, "--share", g.tree+":data")
		cmd.Env = append(os.Environ(), "VOLE_CACHE="+g.cache)
		return rowsOf(cmd)
	}
}

func onQEMU(share string) func(ctx context.Context, g gitBench) (map[string]float64, string, error) {
	return func(ctx context.Context, g gitBench) (map[string]float64, string, error) {
		args := []string{"-accel", "kvm", "-cpu", "host", "-M", "q35",
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", "-m", gitBenchMemory, "-smp", "1",
			"-kernel", g.kernel, "-initrd", g.initrd, "-append", common + "quiet share=" + share}
		if share == "9p" {
			args = append(args, "-fsdev", "local,id=data,path="+g.tree+",security_model=none,multidevs=remap",
				"-device", "virtio-9p-pci,fsdev=data,mount_tag=data")
		} else {
			socket := filepath.Join(g.dir, "fs")
			stop, err := qemuexec.StartVirtiofsd(ctx, socket, g.tree)
			if err != nil {
				return nil, "", err
			}
			defer stop()
			args = append(args, "-object", "memory-backend-memfd,id=mem,share=on,size="+gitBenchMemory, "-numa", "node,memdev=mem",
				"-chardev", "socket,id=fs,path="+socket, "-device", "vhost-user-fs-pci,chardev=fs,tag=data")
		}
		cmd, err := nested.QEMUCommand(ctx, args...)
		if err != nil {
			return nil, "", err
		}
		return rowsOf(cmd)
	}
}
