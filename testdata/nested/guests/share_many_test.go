package guests

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// manyScript touches all files of a share: their names and attributes, their bytes, and
// all once more after the guest has forgotten them. Several read at a time.
const manyScript = `
mount -t virtiofs data /mnt || echo FAILED to mount
cd /mnt
echo MOUNTED
find . -type f >/tmp/names
echo NAMES $(wc -l </tmp/names)
echo LISTED $(ls -lR . | awk '/^-/ { n++; size += $5 } END { print n, size }')
for i in 0 1 2 3 4 5 6 7; do
	awk "NR % 8 == $i" /tmp/names | xargs sha256sum >/tmp/sums-$i &
done
wait
echo BYTES $(sort -k 2 /tmp/sums-* | sha256sum | head -c 64)
echo 2 >/proc/sys/vm/drop_caches
echo FORGOTTEN
echo LISTED AGAIN $(ls -lR . | awk '/^-/ { n++; size += $5 } END { print n, size }')
cd /
umount /mnt || echo FAILED to unmount
`

// Of TestShareManyFiles.
const (
	// manyDescriptors are what vole may open. An eighth of them may be directories
	// that the guest has looked at.
	manyDescriptors = 1024
	manyDirectories = manyDescriptors / 8
	// manyUnderWay is room for the files of requests that are under way.
	manyUnderWay = 24
)

// TestShareManyFiles: a guest that touches more files than vole may have open gets
// every byte of them, and costs vole neither descriptors nor much memory.
func TestShareManyFiles(t *testing.T) {
	t.Parallel()
	tools(t)
	perDir, memory, bound := 4, "256M", bootBound
	if nested.CurrentSuite() != nested.SuiteTest {
		perDir, memory, bound = 400, "1G", 25*time.Minute
	}
	dir := t.TempDir()
	all, files, size := sha256.New(), 0, 0
	for d := range 250 {
		part := fmt.Sprintf("d%02d/e%d", d/10, d%10)
		sub := filepath.Join(dir, part)
		require.NoError(t, os.MkdirAll(sub, 0o755))
		for f := range perDir {
			name := fmt.Sprintf("f%03d", f)
			b := fmt.Appendf(nil, "%s/%s%s\n", sub, name, strings.Repeat(" more", (d+f)%17))
			require.NoError(t, os.WriteFile(filepath.Join(sub, name), b, 0o644))
			fmt.Fprintf(all, "%x  ./%s\n", sha256.Sum256(b), filepath.Join(part, name))
			files++
			size += len(b)
		}
	}
	t.Logf("%d files, %d bytes", files, size)

	kernel := asset(t, nested.KernelCloud61)
	r := prepare(t, bound, "run", "-k", kernel, "-i", moduleInitWith(t, nested.KernelCloud61, shareModules, nil, manyScript),
		"-m", memory, "--memory-backing", "memfd", "-c", "2", "-a", "quiet", "--share", dir+":data,cache=always")
	r.cmd.Args = append([]string{"/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, manyDescriptors), "sh", r.cmd.Path}, r.cmd.Args[1:]...)
	r.cmd.Path = "/bin/sh"
	// The guest's memory, in a memfd, is not anonymous, and no kernel is unpacked first:
	// what is left is what files take.
	r.cmd.Env = append(r.cmd.Env, "VOLE_CACHE="+cacheWith(t, kernel).Dir())
	require.NoError(t, r.cmd.Start())
	require.True(t, r.out.until("MOUNTED"), "console: %s\nstderr: %s", r.out, &r.errs)
	peak := watchProcess(t, r.cmd.Process.Pid)
	res := r.wait()
	began, most := peak()

	said := "console: " + res.stdout + "\nstderr: " + res.stderr
	require.Equal(t, 0, res.code, said)
	assert.Empty(t, res.stderr)
	assert.NotContains(t, res.stdout, "FAILED", said)
	for _, want := range []string{
		fmt.Sprintf("NAMES %d\r\n", files), fmt.Sprintf("LISTED %d %d\r\n", files, size),
		fmt.Sprintf("BYTES %x\r\n", all.Sum(nil)), fmt.Sprintf("LISTED AGAIN %d %d\r\n", files, size),
	} {
		assert.Contains(t, res.stdout, want, said)
	}
	t.Logf("descriptors: %d, at most %d; anonymous memory: %d KiB, at most %d KiB", began.descriptors, most.descriptors, began.anonymous, most.anonymous)
	assert.LessOrEqual(t, most.descriptors, began.descriptors+manyDirectories+manyUnderWay)
	assert.Greater(t, most.descriptors, manyDirectories/2, "the bound was not tried")
	assert.LessOrEqual(t, most.anonymous, began.anonymous+8<<10+files, "KiB: a KiB each, and what passes through")
}

// usage is what a process holds.
type usage struct {
	descriptors int
	anonymous   int // KiB
}

// watchProcess looks at a process until the function that it returns is called or the
// process ends. That returns what it found first, and the most of each.
func watchProcess(t testing.TB, pid int) (stop func() (first, most usage)) {
	t.Helper()
	look := func() (u usage, ok bool) {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return u, false
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, rest, found := strings.Cut(string(status), "RssAnon:")
		if err != nil || !found { // a process that has ended and is not waited for yet
			return u, false
		}
		u.descriptors = len(fds)
		_, err = fmt.Sscan(rest, &u.anonymous)
		return u, err == nil
	}
	first, ok := look()
	require.True(t, ok, "process %d can't be looked at", pid)
	most := first
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(200 * time.Millisecond):
			}
			if now, ok := look(); ok {
				most.descriptors = max(most.descriptors, now.descriptors)
				most.anonymous = max(most.anonymous, now.anonymous)
			}
		}
	}()
	return func() (usage, usage) {
		close(end)
		<-ended
		return first, most
	}
}
