package guests

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// embedPath is where the program of testdata/embed is put for BenchmarkResident.
func embedPath() (string, error) {
	dir, err := nested.CacheDir()
	return filepath.Join(dir, "bin", "embed"), err
}

// buildEmbed builds it, outside of the emulated host.
func buildEmbed() error {
	path, err := embedPath()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/vole-vmm/vole/testdata/embed")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building testdata/embed: %w\n%s", err, out)
	}
	return nil
}

// idle is how a script goes on for ever.
const idle = "echo IDLE\nexec /bin/busybox sleep 100000\n"

// idleInit boots to where nothing happens any more.
const idleInit = "#!/bin/busybox sh\n" + idle

// BenchmarkResident reports what a process with an idle guest of 1 vCPU and
// 128 MiB has resident besides the guest's memory; with a disk, whose driver has
// read all of it, too.
func BenchmarkResident(b *testing.B) {
	embed, err := embedPath()
	require.NoError(b, err)
	kernel, initrd := asset(b, nested.KernelCloud61), initWith(b, idleInit)
	withDisk := moduleInit(b, nested.KernelCloud61, diskModules, "dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null\n"+idle)
	words := common + "quiet"
	programs := []struct {
		name            string
		most, anonymous float64 // MiB that are the goal; 0 is none
		args            []string
	}{
		{"embed", 5, 0, []string{embed, kernel, initrd, words}},
		{"vole", 6.5, 3, []string{asset(b, nested.AssetVole), "run", "-k", kernel, "-i", initrd, "-m", "128M", "--cmdline", words}},
		{"vole-disk", 8, 3, []string{asset(b, nested.AssetVole), "run", "-k", kernel, "-i", withDisk, "-m", "128M", "--cmdline", words, "--disk", image(b, 16<<20)}},
	}
	for _, p := range programs {
		b.Run(p.name, func(b *testing.B) {
			for b.Loop() {
				out := newWatched()
				cmd := exec.Command(p.args[0], p.args[1:]...)
				cmd.Env = append(os.Environ(), "VOLE_CACHE="+filepath.Join(b.TempDir(), "c"))
				cmd.Stdout, cmd.Stderr = out, os.Stderr
				require.NoError(b, cmd.Start())
				came := out.until("IDLE")
				guest, rest, anonymous := resident(b, cmd.Process.Pid)
				require.NoError(b, cmd.Process.Kill())
				_ = cmd.Wait()
				require.True(b, came, "%s", out)
				assert.LessOrEqual(b, rest, p.most, "MiB")
				if p.anonymous > 0 {
					assert.LessOrEqual(b, anonymous, p.anonymous, "MiB, anonymous")
				}
				b.ReportMetric(rest, "MiB")
				b.ReportMetric(anonymous, "MiB-anonymous")
				b.ReportMetric(guest, "MiB-guest")
			}
		})
	}
}

// resident adds up /proc/PID/smaps, in MiB: the guest's memory, which is the
// one mapping of 128 MiB, the rest, and what of the rest is anonymous.
func resident(t testing.TB, pid int) (guest, rest, anonymous float64) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	require.NoError(t, err)
	defer f.Close()
	ram := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 64)
		if err != nil {
			continue
		}
		switch n /= 1 << 10; {
		case key == "Size":
			ram = n == 128
		case key == "Rss" && ram:
			guest += n
		case key == "Rss":
			rest += n
		case key == "Anonymous" && !ram:
			anonymous += n
		}
	}
	return guest, rest, anonymous
}
