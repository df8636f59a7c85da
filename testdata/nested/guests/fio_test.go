package guests

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// needFio is the image that guests find fio in.
func needFio(t testing.TB) string {
	t.Helper()
	path, err := nested.Asset(nested.AssetFio)
	if err != nil {
		t.Skipf("%v", err)
	}
	return path
}

// fioBegin is fioFrom the second disk.
var fioBegin = fioFrom("/dev/vdb")

// fioFrom makes fio of a disk ready in a guest, as "fio", which sees /fio as its
// root and the guest's /dev.
func fioFrom(disk string) string {
	return `
mkdir /fio
mount -o ro -t ext4 ` + disk + ` /fio && mount -o bind /dev /fio/dev &&
	mount -t tmpfs tmp /fio/tmp && mount -t proc proc /fio/proc || echo FAILED to prepare
fio() { chroot /fio /bin/fio --thread --eta=never --verify_state_save=0 "$@"; }
`
}

// TestFio: fio writes and verifies, on buffered, direct and mixed block sizes, in
// files and on the disk itself.
func TestFio(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	tools := needFio(t)
	diskKernels(t, func(t *testing.T, kernel, transport string) {
		initrd := moduleInit(t, kernel, diskModules, fioBegin+`
check() { name=$1; shift; fio --name=$name --verify=crc32c --verify_fatal=1 "$@" >/tmp/log 2>&1 && echo VERIFIED $name || { echo FAILED $name; cat /tmp/log; }; }
check disk --filename=/dev/vda --size=24m --rw=randwrite --direct=1 --bsrange=512-256k --bs_unaligned=0 --ioengine=libaio --iodepth=32
/sbin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /fio/mnt || echo FAILED to mount
check buffered --directory=/mnt --size=8m --rw=randwrite --bs=4k --ioengine=psync --end_fsync=1
check direct --directory=/mnt --size=8m --rw=randwrite --direct=1 --bs=4k --ioengine=libaio --iodepth=16 --numjobs=2
check mixed --directory=/mnt --size=8m --rw=randrw --direct=1 --bsrange=512-128k --ioengine=libaio --iodepth=8
check synced --directory=/mnt --size=8m --rw=write --bs=64k --ioengine=psync --fsync=8
umount /fio/mnt && /sbin/e2fsck -f -n /dev/vda >/dev/null 2>&1 && echo CLEAN
`)
		r := vole(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux",
			"--disk", image(t, 64<<20), "--disk", tools+",ro", "--transport", transport)
		said := "console: " + r.stdout + "\nstderr: " + r.stderr
		require.Equal(t, 0, r.code, said)
		assert.NotContains(t, r.stdout, "FAILED", said)
		assert.Equal(t, 5, strings.Count(r.stdout, "VERIFIED"), said)
		assert.Contains(t, r.stdout, "CLEAN", said)
		assert.Empty(t, r.stderr)
	})
}
