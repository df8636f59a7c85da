package guests

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/testdata/nested"
)

// diskModules are the drivers that a guest may need for its disks. Which of them
// a kernel has built in differs.
var diskModules = []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio-rng", "ext4", "crc32c_generic"}

// extPrograms are what makes and checks an ext4 file system in a guest.
var extPrograms = []string{"sbin/mke2fs", "sbin/e2fsck", "sbin/resize2fs"}

// diskFiles are the files that guests with disks need, for [nested.Options].
func diskFiles() []string {
	files := moduleFiles(diskModules...)
	tools, err := nested.Programs(nested.ComponentExt, extPrograms...)
	if err != nil {
		return files // the test that needs them says more
	}
	return slices.AppendSeq(files, maps.Values(tools))
}

// moduleFiles are the files of modules of each kernel that is here, for
// [nested.Options].
func moduleFiles(names ...string) []string {
	list, err := nested.Kernels()
	if err != nil {
		return nil
	}
	var files []string
	for _, k := range list {
		_, sel, err := selectModules(k.Modules, names...)
		if err != nil {
			continue // the test that needs them says more
		}
		for _, m := range sel.Load {
			files = append(files, filepath.Join(k.Modules, m.Path))
		}
		for _, f := range []string{"modules.dep", "modules.builtin", "modules.alias", "modules.softdep"} {
			if _, err := os.Stat(filepath.Join(k.Modules, f)); err == nil {
				files = append(files, filepath.Join(k.Modules, f))
			}
		}
	}
	return files
}

// selectModules works out which modules of a directory have to be loaded, and in
// which order. What the kernel has built in is none.
func selectModules(dir string, names ...string) (*initramfs.ModuleDir, initramfs.Selection, error) {
	modules, err := initramfs.OpenModules(dir)
	if err != nil {
		return nil, initramfs.Selection{}, err
	}
	sel, err := modules.Select(initramfs.SelectOptions{}, names...)
	return modules, sel, err
}

// moduleInit is an initramfs for a kernel by its name among the assets: busybox,
// what makes and checks ext4, and modules that /init loads before it runs script.
func moduleInit(t testing.TB, kernel string, names []string, script string) string {
	t.Helper()
	tools, err := nested.Programs(nested.ComponentExt, extPrograms...)
	require.NoError(t, err)
	return moduleInitWith(t, kernel, names, tools, script)
}

// moduleInitWith is moduleInit with other programs: path in the guest, path here.
func moduleInitWith(t testing.TB, kernel string, names []string, tools map[string]string, script string) string {
	t.Helper()
	dir := asset(t, "modules"+strings.TrimPrefix(kernel, "kernel"))
	modules, sel, err := selectModules(dir, names...)
	require.NoError(t, err)
	var a initramfs.Archive
	load, err := a.AddModules(modules, sel, "/lib")
	require.NoError(t, err)
	busybox, err := os.ReadFile(asset(t, nested.AssetBusybox))
	require.NoError(t, err)
	require.NoError(t, a.Bytes("/bin/busybox", 0o755, busybox))
	for _, d := range []string{"/bin", "/dev", "/proc", "/sys", "/mnt", "/tmp"} {
		require.NoError(t, a.Dir(d, 0o755))
	}
	require.NoError(t, a.CharDevice("/dev/console", 0o600, 5, 1))
	for name, file := range tools {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, a.Bytes(name, 0o755, data))
	}
	init := "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/sbin:/bin\n" +
		"mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n"
	for _, path := range load {
		init += "insmod /" + path + "\n"
	}
	require.NoError(t, a.Bytes("/init", 0o755, []byte(init+script+"\nsync\npoweroff -f\n")))
	return writeArchive(t, &a)
}

// image makes a sparse image of size bytes.
func image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	return path
}

// diskKernels are the kernels and transports that a disk is tried with.
func diskKernels(t *testing.T, f func(t *testing.T, kernel, transport string)) {
	pairs := []struct{ kernel, transport string }{
		{nested.KernelCloud61, "pci"}, {nested.KernelGeneric61, "mmio"}, {nested.KernelCloud612, "pci"},
	}
	if nested.CurrentSuite() != nested.SuiteTest {
		pairs = append(pairs, []struct{ kernel, transport string }{
			{nested.KernelCloud61, "mmio"}, {nested.KernelGeneric61, "pci"}, {nested.KernelCloud612, "mmio"},
		}...)
	}
	for _, p := range pairs {
		t.Run(strings.TrimPrefix(p.kernel, "kernel-")+"-"+p.transport, func(t *testing.T) {
			t.Parallel()
			if _, err := nested.Asset(p.kernel); err != nil {
				t.Skipf("%v", err)
			}
			f(t, p.kernel, p.transport)
		})
	}
}

// TestDisk: a file system is made, mounted, filled and read back, in a stock
// kernel; what the guest synced is in the image.
func TestDisk(t *testing.T) {
	diskKernels(t, func(t *testing.T, kernel, transport string) {
		disk := image(t, 64<<20)
		initrd := moduleInit(t, kernel, diskModules, `
echo SIZE $(cat /sys/block/vda/size) SERIAL $(cat /sys/block/vda/serial) CACHE $(cat /sys/block/vda/queue/write_cache) QUEUES $(ls /sys/block/vda/mq | wc -l)
/sbin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt || echo FAILED to mount
dd if=/dev/urandom of=/mnt/data bs=1k count=1000 2>/dev/null
sha256sum /mnt/data
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
sha256sum /mnt/data
umount /mnt
echo -n 'last words' | dd of=/dev/vda bs=512 seek=131071 conv=sync,fsync 2>/dev/null
head -c 16 /dev/hwrng | wc -c | sed 's/^/RNG /'
`)
		r := vole(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux",
			"--disk", disk+",serial=vole-0", "--rng", "--transport", transport)
		said := "console: " + r.stdout + "\nstderr: " + r.stderr
		require.Equal(t, 0, r.code, said)
		assert.Contains(t, r.stdout, "SIZE 131072 SERIAL vole-0 CACHE write back QUEUES 2", said)
		assert.Contains(t, r.stdout, "RNG 16", said)
		assert.NotContains(t, r.stdout, "FAILED", said)
		var sums []string
		for line := range strings.Lines(r.stdout) {
			if sum, ok := strings.CutSuffix(strings.TrimSpace(line), "  /mnt/data"); ok {
				sums = append(sums, sum)
			}
		}
		require.Len(t, sums, 2, said)
		assert.Equal(t, sums[0], sums[1])
		assert.Empty(t, r.stderr)

		raw, err := os.ReadFile(disk)
		require.NoError(t, err)
		assert.True(t, bytes.HasPrefix(raw[len(raw)-512:], []byte("last words")))
	})
}

// TestProbingExits: a kernel finds one disk on PCI with few exits.
func TestProbingExits(t *testing.T) {
	t.Parallel()
	const bound = 1500
	kernel := nested.KernelCloud612 // its PCI driver is built in
	if _, err := nested.Asset(kernel); err != nil {
		t.Skipf("%v", err)
	}
	initrd := moduleInit(t, kernel, []string{"virtio_blk"}, "")
	exits := func(args ...string) (n uint64) {
		report := filepath.Join(t.TempDir(), "report.json")
		r := vole(t, append([]string{"run", "-k", asset(t, kernel), "-i", initrd, "-m", "128M", "-a", "quiet", "--boot", "vmlinux", "--report", report}, args...)...)
		require.Equal(t, 0, r.code, r.stderr)
		for _, k := range readReport(t, report).Exits {
			n += k
		}
		return n
	}
	without, with := exits(), exits("--disk", image(t, 1<<20))
	t.Logf("%d exits without a disk, %d with one", without, with)
	assert.Less(t, with, without+bound)
}
