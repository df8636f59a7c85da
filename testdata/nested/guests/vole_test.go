package guests

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestBuiltInGuest boots a stock kernel to the built-in guest's report, as
// `make demo` does, and to its power-off, with what it is connected by. The report of the
// run shows that too.
func TestBuiltInGuest(t *testing.T) {
	vole, err := nested.Asset(nested.AssetVole)
	require.NoError(t, err)
	kernel, err := nested.Asset(nested.KernelDefault)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	dir := t.TempDir()
	report := filepath.Join(dir, "report.json")
	cmd := exec.CommandContext(ctx, vole, "run", "--timeout", "2m30s", "-k", kernel, "-a", "quiet", "-m", "256M", "-c", "1",
		"--net", "user", "--vsock", filepath.Join(dir, "v"), "--port", "agent="+filepath.Join(dir, "p"), "--report", report)
	cmd.Env = append(cmd.Environ(), "VOLE_CACHE="+t.TempDir())
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	require.NoError(t, err, "stderr: %s\nconsole: %s", &errs, &out)
	assert.Contains(t, out.String(), "vole guest")
	assert.Contains(t, out.String(), "reboot: Power down")
	assert.Regexp(t, `(?s)virtio +net \(pci.*vsock \(pci.*console \(pci`, out.String())
	b, err := os.ReadFile(report)
	require.NoError(t, err)
	assert.Regexp(t, `(?s)"type": "net".*"type": "vsock".*"type": "console"`, string(b))
	assert.False(t, strings.Contains(errs.String(), "error"), errs.String())
}

// TestClock: the guest's clock chip has this host's time in UTC, and its kernel has
// set its own clock by that.
func TestClock(t *testing.T) {
	t.Parallel()
	before := time.Now().Unix()
	r := vole(t, machine(t, "", "-i", shellInit(t, "echo RTC $(cat /sys/class/rtc/rtc0/since_epoch) CLOCK $(date +%s)\npoweroff -f\n"))...)
	after := time.Now().Unix()
	said := "console: " + r.stdout + "\nstderr: " + r.stderr
	require.Equal(t, 0, r.code, said)
	m := regexp.MustCompile(`RTC (\d+) CLOCK (\d+)`).FindStringSubmatch(r.stdout)
	require.NotNil(t, m, said)
	for _, text := range m[1:] {
		at, err := strconv.ParseInt(text, 10, 64)
		require.NoError(t, err)
		assert.GreaterOrEqual(t, at, before-1, said)
		assert.LessOrEqual(t, at, after+1, said)
	}
}

// TestDoctor: where a stock kernel boots, which is here, doctor finds nothing to
// complain of.
func TestDoctor(t *testing.T) {
	t.Parallel()
	r := vole(t, "doctor")
	assert.Equal(t, 0, r.code, "%s%s", r.stdout, r.stderr)
	assert.Contains(t, r.stdout, "/dev/kvm")
}
