package guests

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// diskKernel is the kernel that tests use which are about the disk and not about
// the kernel: its PCI driver is built in where it is the newest.
func diskKernel() string {
	if _, err := nested.Asset(nested.KernelCloud612); err == nil {
		return nested.KernelCloud612
	}
	return defaultKernel()
}

// diskMachine are the arguments of `vole run` for a guest that runs script with
// disks.
func diskMachine(t testing.TB, script string, more ...string) []string {
	t.Helper()
	return diskGuest{diskKernel(), "pci"}.args(t, script, more...)
}

// diskGuest is a guest with disks: a kernel by its name among the assets, and how
// the disks are reached.
type diskGuest struct{ kernel, transport string }

func (g diskGuest) args(t testing.TB, script string, more ...string) []string {
	t.Helper()
	return append([]string{
		"run", "-k", asset(t, g.kernel), "-i", moduleInit(t, g.kernel, diskModules, script), "-m", "192M", "-a", "quiet",
		"--boot", "vmlinux", "--transport", g.transport,
	}, more...)
}

// eachDiskGuest runs a test with one guest, and in the larger suites with all.
func eachDiskGuest(t *testing.T, f func(t *testing.T, g diskGuest)) {
	if nested.CurrentSuite() == nested.SuiteTest {
		t.Parallel()
		f(t, diskGuest{diskKernel(), "pci"})
		return
	}
	diskKernels(t, func(t *testing.T, kernel, transport string) { f(t, diskGuest{kernel, transport}) })
}

// sparseImage makes an image where holes can be punched.
func sparseImage(t testing.TB, size int64) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vole-disk-*")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	path := filepath.Join(dir, "disk.img")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	return path
}

func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	require.NoError(t, syscall.Stat(path, &st))
	return st.Blocks * 512
}

// TestManyDisks: eight disks, one of them read-only and one that keeps nothing,
// each written by its serial.
func TestManyDisks(t *testing.T) { eachDiskGuest(t, manyDisks) }

func manyDisks(t *testing.T, g diskGuest) {
	args := g.args(t, `
for d in a b c d e f g h; do
	s=$(cat /sys/block/vd$d/serial)
	echo "disk $s" | dd of=/dev/vd$d bs=512 seek=7 conv=sync,fsync 2>/dev/null || echo REFUSED $s
done
echo READ-ONLY $(cat /sys/block/vda/ro) $(cat /sys/block/vdh/ro)
dd if=/dev/vdg bs=512 skip=7 count=1 2>/dev/null | head -n 1 | sed 's/^/COW /'
`)
	var images []string
	for i, more := range []string{"", "", "", "", "", "", ",cow", ",ro"} {
		path := image(t, 1<<20)
		images = append(images, path)
		args = append(args, "--disk", fmt.Sprintf("%s,serial=s%d%s", path, i, more))
	}
	r := vole(t, args...)
	said := "console: " + r.stdout + "\nstderr: " + r.stderr
	require.Equal(t, 0, r.code, said)
	assert.Contains(t, r.stdout, "REFUSED s7", said)
	assert.Equal(t, 1, strings.Count(r.stdout, "REFUSED"), said)
	assert.Contains(t, r.stdout, "READ-ONLY 0 1", said)
	assert.Contains(t, r.stdout, "COW disk s6", said)
	for i, path := range images {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		if i >= 6 {
			assert.Equal(t, make([]byte, len(raw)), raw, "disk %d was written", i)
			continue
		}
		assert.True(t, bytes.HasPrefix(raw[7*512:], fmt.Appendf(nil, "disk s%d\n", i)), "disk %d", i)
	}
}

// TestSparseDisk: a disk of 3 TiB with next to nothing in it; what fstrim frees
// is freed on the host.
func TestSparseDisk(t *testing.T) { eachDiskGuest(t, sparseDisk) }

func sparseDisk(t *testing.T, g diskGuest) {
	const size = 3 << 40
	huge, small := sparseImage(t, size), sparseImage(t, 128<<20)
	res := vole(t, g.args(t, `
echo SIZE $(cat /sys/block/vda/size)
echo far | dd of=/dev/vda bs=512 seek=6442450943 conv=sync,fsync 2>/dev/null
dd if=/dev/vda bs=512 skip=6442450943 2>/dev/null | head -n 1 | sed 's/^/READ /'
/sbin/mke2fs -q -t ext4 /dev/vdb && mount -t ext4 /dev/vdb /mnt
dd if=/dev/zero of=/mnt/data bs=1M count=40 conv=fsync 2>/dev/null
umount /mnt
echo FILLED
`, "--disk", huge, "--disk", small)...)
	said := "console: " + res.stdout + "\nstderr: " + res.stderr
	require.Equal(t, 0, res.code, said)
	require.Contains(t, res.stdout, "FILLED", said)
	filled := allocated(t, small)
	assert.Contains(t, res.stdout, fmt.Sprintf("SIZE %d", int64(size)/512), said)
	assert.Contains(t, res.stdout, "READ far", said)
	assert.Less(t, allocated(t, huge), int64(1<<20))
	assert.Greater(t, filled, int64(40<<20), said)

	again := vole(t, g.args(t, `
mount -t ext4 /dev/vda /mnt && rm /mnt/data; sync; fstrim /mnt && echo TRIMMED; umount /mnt
`, "--disk", small)...)
	said = "console: " + again.stdout + "\nstderr: " + again.stderr
	require.Equal(t, 0, again.code, said)
	require.Contains(t, again.stdout, "TRIMMED", said)
	assert.Less(t, allocated(t, small), filled-30<<20, "fstrim frees blocks of the host")
}

// TestDiskGrows: a running guest sees that its disk has grown, and grows the
// file system on it.
func TestDiskGrows(t *testing.T) { eachDiskGuest(t, diskGrows) }

func diskGrows(t *testing.T, g diskGuest) {
	disk := image(t, 32<<20)
	r := start(t, g.args(t, `
/sbin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt
echo READY
while [ $(cat /sys/block/vda/size) = 65536 ]; do usleep 100000; done
echo SIZE $(cat /sys/block/vda/size)
/sbin/resize2fs /dev/vda 2>/dev/null && df -k /mnt | awk '$6 == "/mnt" && $2 > 50000 { print "GROWN" }'
umount /mnt
`, "--disk", disk)...)
	require.True(t, r.out.until("READY"), r.out.String())
	require.NoError(t, os.Truncate(disk, 64<<20))
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGUSR1))
	res := r.wait()
	said := "console: " + res.stdout + "\nstderr: " + res.stderr
	require.Equal(t, 0, res.code, said)
	assert.Contains(t, res.stdout, "SIZE 131072", said)
	assert.Contains(t, res.stdout, "GROWN", said)
}

// TestDiskThatFails: an image that is cut short underneath gives I/O errors
// where it ends; the rest of it and other disks go on, and vole lives.
func TestDiskThatFails(t *testing.T) { eachDiskGuest(t, diskThatFails) }

func diskThatFails(t *testing.T, g diskGuest) {
	bad, good := image(t, 16<<20), image(t, 1<<20)
	r := start(t, g.args(t, `
dd if=/dev/vda of=/dev/null bs=64k count=1 2>/dev/null && echo READY
while ! dd if=/dev/vdb bs=512 count=1 2>/dev/null | grep -q go; do usleep 100000; echo 1 >/proc/sys/vm/drop_caches; done
dd if=/dev/vda of=/dev/null bs=64k skip=100 count=100 2>/dev/null || echo READ FAILED
dd if=/dev/vda of=/dev/null bs=64k skip=2 count=1 2>/dev/null && echo REST READ
echo still | dd of=/dev/vdb bs=512 seek=9 conv=sync,fsync 2>/dev/null && echo OTHER WRITTEN
`, "--disk", bad, "--disk", good)...)
	require.True(t, r.out.until("READY"), r.out.String())
	require.NoError(t, os.Truncate(bad, 1<<20))
	f, err := os.OpenFile(good, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("go"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	res := r.wait()
	said := "console: " + res.stdout + "\nstderr: " + res.stderr
	require.Equal(t, 0, res.code, said)
	for _, want := range []string{"READ FAILED", "REST READ", "OTHER WRITTEN"} {
		assert.Contains(t, res.stdout, want, said)
	}
	assert.Contains(t, res.stderr, "disk: request failed", said)
	assert.Less(t, strings.Count(res.stderr, "\n"), 30, said)
}

// TestNothingLost: a guest writes and syncs record after record and says which
// it has synced; vole is killed at some moment; every record that was said to be
// synced is in the image.
func TestNothingLost(t *testing.T) {
	t.Parallel()
	const record, records = 4096, 4096
	rounds := 2
	if nested.CurrentSuite() == nested.SuiteSoak {
		rounds = 100
	}
	args := diskMachine(t, `
i=0
while [ $i -lt 4096 ]; do
	i=$((i+1))
	echo "record $i" | dd of=/dev/vda bs=4096 seek=$((i-1)) conv=sync,fsync 2>/dev/null && echo SYNCED $i
done
`)
	synced := 0
	for round := range rounds {
		disk := image(t, record*records)
		r := start(t, append(args, "--disk", disk)...)
		if !r.out.until("SYNCED 1") {
			res := r.wait()
			require.Fail(t, "no record was synced", "round %d: code %d\nconsole: %s\nstderr: %s", round, res.code, res.stdout, res.stderr)
		}
		after := time.NewTimer(rand.N(1500 * time.Millisecond))
		<-after.C
		require.NoError(t, r.cmd.Process.Kill())
		_ = r.cmd.Wait()
		r.cancel()
		raw, err := os.ReadFile(disk)
		require.NoError(t, err)
		last := 0
		for line := range strings.Lines(r.out.String()) {
			// The last line may be cut short: it is one only with its end.
			var n int
			if _, err := fmt.Sscanf(line, "SYNCED %d\r\n", &n); err != nil || !strings.HasSuffix(line, "\n") {
				continue
			}
			want := fmt.Appendf(nil, "record %d\n", n)
			require.True(t, bytes.HasPrefix(raw[(n-1)*record:], want), "round %d: record %d was synced and is not in the image", round, n)
			last = n
		}
		synced += last
		t.Logf("kill %d: %d records", round+1, last) // in make soak the rig wants to hear something
	}
	t.Logf("%d kills, %d synced records", rounds, synced)
}
