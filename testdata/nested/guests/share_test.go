package guests

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// shareModules are the drivers that a guest may need for its shares.
var shareModules = []string{"virtio_pci", "virtio_mmio", "fuse", "virtiofs"}

// shareKernels are the kernels and transports that shares are tried with.
func shareKernels(t *testing.T, f func(t *testing.T, kernel, transport string)) {
	if nested.CurrentSuite() != nested.SuiteTest {
		diskKernels(t, f)
		return
	}
	for kernel, transport := range map[string]string{nested.KernelCloud61: "pci", nested.KernelCloud612: "mmio"} {
		t.Run(strings.TrimPrefix(kernel, "kernel-")+"-"+transport, func(t *testing.T) {
			t.Parallel()
			if _, err := nested.Asset(kernel); err != nil {
				t.Skipf("%v", err)
			}
			f(t, kernel, transport)
		})
	}
}

// shareBig is the size of the file that goes both ways.
func shareBig() int {
	if nested.CurrentSuite() == nested.SuiteTest {
		return 16 << 20
	}
	return 64 << 20
}

// shareBound is how long the guest may take.
const shareBound = 3 * bootBound

// shareScript has lines of what went wrong begin with FAILED.
const shareScript = `
fail() { echo FAILED "$@"; }
step() { read now idle < /proc/uptime; echo STEP $now $1; }
step mount
mkdir /rw /ro /none
mount -t virtiofs data /rw || fail to mount data
mount -t virtiofs fixed /ro || fail to mount fixed
mount -t virtiofs direct /none || fail to mount direct
mount -t virtiofs nothing /mnt 2>/dev/null && fail a tag that is not there

# A tree of the host's, read, copied, moved and removed.
step tree
cd /rw/tree
sha256sum -c -s /rw/sums || fail the tree is another
find . | sort > /rw/listing
cd /
cp -r /rw/tree /rw/copy || fail to copy
mv /rw/copy /rw/moved || fail to move
[ -e /rw/copy ] && fail it is still there
cd /rw/moved
sha256sum -c -s /rw/sums || fail the copy is another
cd /
rm -r /rw/removed || fail to remove
[ -e /rw/removed ] && fail it was removed

# Files as a shell makes them.
step files
mkdir /rw/many
i=0
while [ $i -lt 120 ]; do : > /rw/many/f$i; i=$((i+1)); done
[ $(ls /rw/many | wc -l) = 120 ] || fail not all are listed
rm /rw/many/f1*
[ $(ls -l /rw/many | grep -c f) = 89 ] || fail not all are gone
echo one > /rw/text
echo two >> /rw/text
mv /rw/text /rw/many/text
ln /rw/many/text /rw/hard
ln -s many/text /rw/soft
[ "$(cat /rw/soft)" = "$(cat /rw/hard)" ] || fail links
echo three >> /rw/hard
[ "$(cat /rw/many/text | wc -l)" = 3 ] || fail to append by another name
chmod 640 /rw/hard
[ $(stat -c %a /rw/many/text) = 640 ] || fail to chmod
truncate -s 5 /rw/hard
[ "$(wc -c < /rw/hard)" = 5 ] || fail to truncate
mv /rw/nowhere /rw/x 2>/dev/null && fail to miss a file
rmdir /rw/many 2>/dev/null && fail a directory that is not empty
echo gone > /rw/open
exec 3< /rw/open
rm /rw/open
[ "$(cat <&3)" = gone ] || fail a file that was removed while open
exec 3<&-

# Much at a time.
step much
dd if=/rw/big of=/rw/back bs=1M 2>/dev/null || fail to copy much
dd if=/rw/big bs=256k 2>/dev/null | sha256sum | sed 's/ .*//; s/^/BIG /'
dd if=/none/small of=/none/copy bs=64k 2>/dev/null || fail to copy around the cache
cmp /none/small /none/copy || fail around the cache
mkfifo /rw/fifo || fail a fifo
(echo through > /rw/fifo) &
[ "$(cat /rw/fifo)" = through ] || fail a fifo is the guests own

# What may not be written is not.
step read-only
cat /ro/file > /dev/null || fail to read
for what in 'echo x > /ro/file' 'echo x >> /ro/file' ': > /ro/new' 'rm /ro/file' 'mv /ro/file /ro/x' 'mkdir /ro/d' 'ln -s x /ro/l' 'chmod 600 /ro/file' 'ln /ro/file /ro/h' 'touch /ro/file' 'truncate -s 0 /ro/file' 'rmdir /ro/sub'; do
	sh -c "$what" 2>/dev/null && fail "to refuse: $what"
done

# The share's edge: links are the guest's to follow, in its own tree.
step edge
for link in /rw/above /rw/root /rw/proc /ro/above; do
	cat $link/secret $link 2>/dev/null | grep HOST && fail "out of the share by $link"
done
ls /rw/.. | grep -q secret && fail above the root
mkdir /rw/climb
ln -s ../../../../../../../../.. /rw/climb/up
ls /rw/climb/up /rw/climb/up/rw/.. | grep secret && fail climbing

# The device is taken from its driver with files open, and mounted again.
step reset
exec 4>> /rw/hard
umount /none || fail to unmount
mount -t virtiofs direct /none || fail to mount again
cmp /none/small /none/copy || fail after mounting again
umount /none
cd /sys/bus/virtio/drivers/virtiofs
for d in virtio*; do
	echo $d > unbind || fail to unbind
done
cat /rw/hard >/dev/null 2>&1
echo x >&4 2>/dev/null
exec 4>&-
for d in /sys/bus/virtio/devices/virtio*; do
	[ $(cat $d/device) = 0x001a ] && echo $(basename $d) > bind
done
cd /
umount -l /rw
umount -l /ro
mount -t virtiofs data /mnt || fail to mount after a reset
cmp -n 2000000 /mnt/big /mnt/back || fail after a reset
echo after > /mnt/after
sync || fail to sync
umount /mnt
step end
echo THE END
`

// TestShare: directories of the host in a guest, several at once: read, written
// and renamed in, with every byte checked on both sides; what is read-only stays
// as it is, nothing outside is reached, and a device that is reset with files
// open can be mounted again.
func TestShare(t *testing.T) {
	shareKernels(t, func(t *testing.T, kernel, transport string) {
		home := t.TempDir()
		data, fixed, direct := filepath.Join(home, "data,dir"), filepath.Join(home, "fixed"), filepath.Join(home, "direct")
		rnd := rand.New(rand.NewPCG(1, 2))
		big := make([]byte, shareBig())
		for i := range big {
			big[i] = byte(rnd.Uint32())
		}
		write := func(path string, b []byte) {
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
			require.NoError(t, os.WriteFile(path, b, 0o644))
		}
		var sums strings.Builder
		files := 0
		for d := range 5 {
			for f := range 10 {
				name := fmt.Sprintf("dir %d/file-%d-ä", d, f)
				b := big[:rnd.IntN(200<<10)]
				write(filepath.Join(data, "tree", name), b)
				write(filepath.Join(data, "removed", name), nil)
				fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(b), name)
				files++
			}
		}
		write(filepath.Join(data, "sums"), []byte(sums.String()))
		write(filepath.Join(data, "big"), big)
		write(filepath.Join(direct, "small"), big[:512<<10+7])
		write(filepath.Join(fixed, "file"), []byte("as it was\n"))
		require.NoError(t, os.Mkdir(filepath.Join(fixed, "sub"), 0o755))
		write(filepath.Join(home, "secret"), []byte("HOST\n"))
		for link, to := range map[string]string{
			filepath.Join(data, "above"): "../secret", filepath.Join(data, "root"): home, filepath.Join(data, "proc"): "/proc/self/root" + home,
			filepath.Join(fixed, "above"): "..",
		} {
			require.NoError(t, os.Symlink(to, link))
		}

		report := filepath.Join(t.TempDir(), "report.json")
		run := startWithin(t, shareBound, "run", "-k", asset(t, kernel), "-i", moduleInitWith(t, kernel, shareModules, nil, shareScript),
			"-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux", "--transport", transport, "--report", report,
			"--share", strings.ReplaceAll(data, ",", ",,")+":data", "--share", fixed+":fixed,ro", "--share", direct+":direct,cache=none")
		ended := make(chan result, 1)
		go func() {
			_ = run.cmd.Wait()
			run.out.stop()
			ended <- result{run.cmd.ProcessState.ExitCode(), run.out.String(), run.errs.String()}
		}()
		for _, step := range []string{"mount", "tree", "files", "much", "read-only", "edge", "reset", "end"} {
			if run.out.until(" " + step + "\r") {
				t.Logf("the guest comes to: %s", step)
			}
		}
		r := <-ended
		said := "console: " + r.stdout + "\nstderr: " + r.stderr
		require.Equal(t, 0, r.code, said)
		assert.Empty(t, r.stderr)
		assert.NotContains(t, r.stdout, "FAILED", said)
		assert.NotContains(t, r.stdout, "HOST", said)
		require.Contains(t, r.stdout, "THE END", said)
		assert.Contains(t, r.stdout, fmt.Sprintf("BIG %x", sha256.Sum256(big)), said)

		read := func(path string) []byte {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			return b
		}
		assert.True(t, bytes.Equal(big, read(filepath.Join(data, "back"))), "what the guest has written")
		assert.Equal(t, files+5+1, strings.Count(string(read(filepath.Join(data, "listing"))), "\n"))
		assert.Equal(t, "after\n", string(read(filepath.Join(data, "after"))))
		assert.Equal(t, "one\nt", string(read(filepath.Join(data, "hard")))[:5])
		assert.Equal(t, "as it was\n", string(read(filepath.Join(fixed, "file"))))
		list, err := os.ReadDir(fixed)
		require.NoError(t, err)
		assert.Len(t, list, 3)
		checkShareReport(t, report)
	})
}

// checkShareReport looks at the numbers of the devices.
func checkShareReport(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var r struct {
		Devices []struct {
			Type     string
			Counters []struct {
				Name  string
				Value uint64
			}
		}
	}
	require.NoError(t, json.Unmarshal(b, &r), string(b))
	require.Len(t, r.Devices, 3)
	for i, d := range r.Devices {
		assert.Equal(t, "fs", d.Type)
		n := map[string]uint64{}
		for _, c := range d.Counters {
			n[c.Name] = c.Value
		}
		for _, name := range []string{"malformed", "panics", "out of locks"} {
			assert.Zero(t, n[name], "%s of share %d", name, i)
		}
		if i == 0 {
			assert.GreaterOrEqual(t, n["bytes read"], uint64(shareBig()))
			assert.GreaterOrEqual(t, n["bytes written"], uint64(shareBig()))
			assert.NotZero(t, n["syncfs"])
		}
		t.Logf("share %d: %v", i, n)
	}
}
