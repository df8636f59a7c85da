package guests

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// fioShareJobs are what fio writes, all at once; each writes a block once, so that it
// can be verified by itself.
var fioShareJobs = []struct {
	name  string
	files int
	flags string
}{
	{"sequential", 2, "--directory=/mnt --rw=write --bs=64k --size=2m --ioengine=psync --end_fsync=1"},
	{"random", 3, "--directory=/mnt --rw=randwrite --bs=4k --size=1m --ioengine=psync"},
	{"odd", 2, "--directory=/mnt --rw=randwrite --bs=3k --size=768k --ioengine=psync --fsync=64"},
	{"mapped", 2, "--directory=/mnt --rw=randwrite --bs=4k --size=1m --ioengine=mmap"},
	{"direct", 2, "--directory=/mnt --rw=randwrite --bs=16k --size=2m --direct=1 --ioengine=libaio --iodepth=8"},
	{"uncached", 2, "--directory=/tmp/direct --rw=randwrite --bs=4k --size=512k --ioengine=psync"},
	{"uncached-sequential", 1, "--directory=/tmp/direct --rw=write --bs=128k --size=4m --ioengine=psync"},
}

// fioShareScript runs the jobs, %[1]s, in two shares, verifies, mounts the shares anew
// and verifies again. Last it damages a file, which fio must find.
const fioShareScript = `
share() {
	mount -t virtiofs data /fio/mnt && mkdir -p /fio/tmp/direct && mount -t virtiofs direct /fio/tmp/direct || echo FAILED to mount
}
unshare() {
	umount /fio/tmp/direct && umount /fio/mnt || echo FAILED to unmount
}
jobs() {
	fio --verify=crc32c --verify_fatal=1 $* %[1]s >/tmp/log 2>&1
}
share
echo BEGUN
if jobs; then echo VERIFIED; else echo FAILED to verify; cat /tmp/log; fi
unshare
share
if jobs --verify_only; then echo VERIFIED AGAIN; else echo FAILED to verify again; cat /tmp/log; fi
for f in /fio/mnt/* /fio/tmp/direct/*; do echo SUM $(sha256sum <$f | head -c 64) $(basename $f); done
echo what fio did not write | dd of=/fio/mnt/random.1.0 bs=1 seek=500000 conv=notrunc 2>/dev/null
jobs --verify_only || echo FOUND the damage
unshare
`

// TestShareFio: fio writes in shares, with and without the guest's page cache, and
// verifies; also after the shares were mounted anew; and the host has the same bytes.
func TestShareFio(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	tools := needFio(t)
	var jobs strings.Builder
	files := 0
	for _, j := range fioShareJobs {
		fmt.Fprintf(&jobs, " --name=%s --numjobs=%d %s", j.name, j.files, j.flags)
		files += j.files
	}
	for _, p := range []struct{ kernel, transport string }{{nested.KernelGeneric61, "mmio"}, {nested.KernelCloud612, "pci"}} {
		t.Run(strings.TrimPrefix(p.kernel, "kernel-")+"-"+p.transport, func(t *testing.T) {
			t.Parallel()
			kernel := needKernel(t, p.kernel)
			initrd := moduleInitWith(t, p.kernel, slices.Concat(shareModules, diskModules), nil, fioFrom("/dev/vda")+fmt.Sprintf(fioShareScript, jobs.String()))
			dirs := []string{t.TempDir(), t.TempDir()}
			r := voleWithin(t, shareBound, "run", "-k", kernel, "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux",
				"--disk", tools+",ro", "--share", dirs[0]+":data", "--share", dirs[1]+":direct,cache=none", "--transport", p.transport)
			said := "console: " + r.stdout + "\nstderr: " + r.stderr
			require.Equal(t, 0, r.code, said)
			assert.Empty(t, r.stderr)
			assert.NotContains(t, r.stdout, "FAILED", said)
			assert.Contains(t, r.stdout, "FOUND the damage", said)

			assert.Contains(t, r.stdout, "VERIFIED AGAIN", said)
			sums := map[string]string{}
			for _, dir := range dirs {
				for _, name := range names(t, dir) {
					b, err := os.ReadFile(filepath.Join(dir, name))
					require.NoError(t, err)
					sums[name] = fmt.Sprintf("SUM %x %s\r\n", sha256.Sum256(b), name)
				}
			}
			assert.Len(t, sums, files)
			for name, line := range sums {
				if name != "random.1.0" { // it was damaged afterwards
					assert.Contains(t, r.stdout, line)
				}
			}
		})
	}
}
