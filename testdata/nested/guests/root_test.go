package guests

import (
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
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
			bootRoot(t, kernel, disk)
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
		bootRoot(t, kernels[0], base+",cow=memory")
		assert.Equal(t, before, digest(t, base))
	})
}

// bootRoot runs `vole run` for a kernel with its root on the disk until the prompt,
// and presses the button.
func bootRoot(t *testing.T, kernel, disk string) {
	t.Helper()
	begin := time.Now()
	r := startWithin(t, bootBound+buttonBound, "run", "-k", needKernel(t, kernel), "-i", moduleInit(t, kernel, rootModules, toRoot),
		"-a", "quiet root=/dev/vda rw vole.word=here-i-was", "-m", "512M", "-c", "2", "--boot", "vmlinux", "--disk", disk)
	ended := make(chan result, 1)
	go func() {
		_ = r.cmd.Wait()
		r.out.stop() // no prompt comes any more
		ended <- result{r.cmd.ProcessState.ExitCode(), r.out.String(), r.errs.String()}
	}()
	require.True(t, r.out.until("vole login: "), r.out)
	prompt := time.Since(begin)

	// The prompt does not wait for logind, which listens to the button: as at a
	// machine that one stands before, it is pressed until that shows.
	again := time.NewTicker(buttonEvery)
	defer again.Stop()
	for presses := 1; ; presses++ {
		if err := r.cmd.Process.Signal(syscall.SIGUSR2); !errors.Is(err, os.ErrProcessDone) {
			require.NoError(t, err)
		}
		select {
		case res := <-ended:
			require.Equal(t, 0, res.code, "console: %s\nstderr: %s", res.stdout, res.stderr)
			t.Logf("the prompt after %.1f s, the end %.1f s later; the button was pressed %d times",
				prompt.Seconds(), (time.Since(begin) - prompt).Seconds(), presses)
			return
		case <-again.C:
		}
	}
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
