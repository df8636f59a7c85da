package inputs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestNoKVM: each way in which /dev/kvm can fail is said in one line that names
// it and who knows more.
func TestNoKVM(t *testing.T) {
	for _, tc := range []struct {
		name string
		on   stage
		want string
	}{
		{"absent", stage{KVM: kvmAbsent}, "no such file"},
		{"no permission", stage{KVM: kvmForbidden, User: 65534}, "permission denied"},
		{"another device", stage{KVM: kvmNull}, "KVM"},
		{"a file", stage{KVM: kvmFile}, "KVM"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refused(t, finish(t, tc.on.command(t, runArgs("8M", "--console", stageSmall+"/console")...)), 1, "/dev/kvm", tc.want, "vole doctor")
			t.Run("on a terminal", func(t *testing.T) { testLeavesTerminal(t, tc.on) })
			t.Run("doctor", func(t *testing.T) {
				r := finish(t, tc.on.command(t, "doctor"))
				assert.Equal(t, 1, r.code, r.stdout)
				assert.Regexp(t, `(?m)^\s*FAIL.*/dev/kvm`, r.stdout)
			})
		})
	}
}

// testLeavesTerminal: the settings of a terminal that a failing vole had are
// what they were.
func testLeavesTerminal(t *testing.T, on stage) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	defer slave.Close()
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	require.NoError(t, err)
	cmd := on.command(t, runArgs("8M")...)
	cmd.Stdin = slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	assert.Equal(t, 1, finish(t, cmd).code)
	after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	require.NoError(t, err)
	assert.Equal(t, before, after)
}

// TestOutOfMemory: a guest larger than what vole may map.
func TestOutOfMemory(t *testing.T) {
	needKVM(t)
	on := stage{KVM: kvmReal, Space: 4 << 30}
	refused(t, finish(t, on.command(t, runArgs("16G")...)), 1, "memory: ", "the host has not enough memory")
	r := finish(t, on.command(t, runArgs("8M")...))
	assert.Equal(t, 0, r.code, "a guest that fits runs: %s", r.stderr)
}

// TestReservedHugePages: a pool of huge pages that is too small is no crash.
func TestReservedHugePages(t *testing.T) {
	needKVM(t)
	r := vole(t, t.TempDir(), "run", "-k", elfAt(t, 1<<20, 0), "-i", file(t, "initrd", []byte("unused")), "-m", "512G", "--huge-pages", "reserved")
	refused(t, r, 1, "memory: ", "the host has not enough memory")
}

// TestFullCache: --boot vmlinux can't go without the cache, and says so; what it
// began to write is gone.
func TestFullCache(t *testing.T) {
	on := stage{KVM: kvmReal, Kernel: asset(t, nested.KernelDefault)}
	needKVM(t)
	r := finish(t, on.command(t, runArgs("128M", "--boot", "vmlinux")...))
	// Nothing was started, and the host is to blame: either code is right.
	assert.Equal(t, 1, r.code)
	refused(t, r, r.code, stageKernel, "no space left on device")
}

// TestStdoutClosed: a vole that was started without a stdout writes the guest's
// console nowhere, least of all into a file that it has opened since.
func TestStdoutClosed(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	report := filepath.Join(dir, "report.txt")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `exec "$@" <&- >&-`, "sh", asset(t, nested.AssetVole),
		"run", "-k", elfAt(t, 1<<20, 0), "-i", file(t, "initrd", []byte("unused")), "-m", "8M", "--report", report)
	cmd.Env = append(os.Environ(), "VOLE_CACHE="+filepath.Join(dir, "cache"))
	r := finish(t, cmd)
	assert.Equal(t, 0, r.code, r.stderr)
	assert.Empty(t, r.stdout)
	text, err := os.ReadFile(report)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(text), "vole "), string(text))
}
