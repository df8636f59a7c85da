package guests

import (
	"context"
	"crypto/sha256"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/spec"
)

// Bounds on the way down of a Debian system. The way up has bootBound.
const (
	buttonBound = 2 * time.Minute
	buttonEvery = 30 * time.Second
)

// rootModules are what the root's kernel needs before it has the root: its disk,
// and, since the root has no modules, the power button.
var rootModules = slices.Concat(diskModules, buttonModules)

// rootPrograms look into the image afterwards.
var rootPrograms = []string{"sbin/e2fsck", "sbin/debugfs"}

// rootFiles are the files that a guest with a root on its disk needs, for
// [nested.Options].
func rootFiles() []string {
	files := moduleFiles(rootModules...)
	if image, err := nested.Asset(nested.AssetRoot); err == nil {
		files = append(files, image)
	}
	tools, err := nested.Programs(nested.ComponentExt, rootPrograms...)
	if err != nil {
		return files // the test that needs them says more
	}
	return slices.AppendSeq(files, maps.Values(tools))
}

// toRoot is what an initramfs does that only leads to the root: it mounts the
// device that the command line names, and goes there.
const toRoot = `
for word in $(cat /proc/cmdline); do
	case $word in root=*) root=${word#root=};; esac
done
mount -t ext4 $root /mnt || exec poweroff -f
mount --move /dev /mnt/dev
umount /sys /proc
exec switch_root /mnt /sbin/init
`

// TestRootOnDisk: a Debian system boots from its disk to systemd's login prompt,
// and shuts down when the power button is pressed. What it wrote is on the disk,
// whose file system is clean; with cow none of it is.
func TestRootOnDisk(t *testing.T) {
	base, err := nested.Asset(nested.AssetRoot)
	if err != nil {
		t.Skipf("%v", err)
	}
	kernels := []string{nested.KernelCloud612}
	if _, err := nested.Asset(nested.KernelCloud612); err != nil {
		kernels[0] = defaultKernel()
	}
	if nested.CurrentSuite() != nested.SuiteTest {
		kernels = append(kernels, nested.KernelGeneric61)
	}
	for _, kernel := range kernels {
		t.Run(strings.TrimPrefix(kernel, "kernel-"), func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "root.img")
			copyFile(t, disk, base)
			bootRoot(t, kernel, spec.Disk{File: disk})
			for _, tc := range []struct {
				args []string
				want string
			}{
				{[]string{"sbin/debugfs", "-R", "cat /var/lib/vole-word", disk}, "here-i-was\n"},
				{[]string{"sbin/e2fsck", "-f", "-n", disk}, "root: "},
			} {
				cmd, err := nested.ProgramCommand(t.Context(), nested.ComponentExt, tc.args[0], tc.args[1:]...)
				require.NoError(t, err)
				out, err := cmd.Output()
				require.NoError(t, err, "%s", out)
				assert.Contains(t, string(out), tc.want)
				assert.NotContains(t, string(out), "recovering journal")
			}
		})
	}
	t.Run("cow", func(t *testing.T) {
		nested.RequireSuite(t, nested.SuiteMatrix)
		before := digest(t, base)
		bootRoot(t, kernels[0], spec.Disk{File: base, COW: "memory"})
		assert.Equal(t, before, digest(t, base))
	})
}

// bootRoot boots a kernel with its root on the disk until the prompt, and presses
// the button.
func bootRoot(t *testing.T, kernel string, disk spec.Disk) {
	t.Helper()
	image := needKernel(t, kernel)
	cache := cacheWith(t, image)
	machine := spec.Machine{
		Kernel: image, Initrd: moduleInit(t, kernel, rootModules, toRoot),
		Append: "quiet root=/dev/vda rw vole.word=here-i-was", Memory: "512M", CPUs: "2", Disks: []spec.Disk{disk},
	}
	cfg, err := machine.Config()
	require.NoError(t, err)
	out := newWatched()
	cfg.Cache, cfg.ConsoleOut, cfg.Timeout = cache, out, bootBound+buttonBound
	cfg.Devices, err = machine.Devices(nil)
	require.NoError(t, err)
	begin := time.Now()
	m, err := vmm.New(cfg)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Start())
	go func() {
		_, _ = m.Wait(t.Context())
		out.stop() // no prompt comes any more
	}()
	require.True(t, out.until("vole login: "), out.String())
	prompt := time.Since(begin)

	// The prompt does not wait for logind, which listens to the button: as at a
	// machine that one stands before, it is pressed until that shows.
	ctx, cancel := context.WithTimeout(t.Context(), buttonBound)
	defer cancel()
	presses := 0
	for {
		require.NoError(t, m.PowerButton())
		presses++
		again, stop := context.WithTimeout(ctx, buttonEvery)
		exit, err := m.Wait(again)
		stop()
		if err == nil {
			assert.Equal(t, vmm.Exit{Reason: vmm.Poweroff}, exit, out.String())
			break
		}
		require.NoError(t, ctx.Err(), "the button did nothing:\n%s", out.String())
	}
	t.Logf("the prompt after %.1f s, the end %.1f s later; the button was pressed %d times",
		prompt.Seconds(), (time.Since(begin) - prompt).Seconds(), presses)
}

func copyFile(t testing.TB, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	require.NoError(t, err)
	defer in.Close()
	out, err := os.Create(to)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
}

func digest(t testing.TB, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return [sha256.Size]byte(h.Sum(nil))
}
