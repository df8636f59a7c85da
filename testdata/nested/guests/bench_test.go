package guests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// rounds is how many interleaved rounds a comparison takes; VOLE_ROUNDS changes
// it.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("VOLE_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return 9
}

// BenchmarkBoot times whole boots, process start to process end, beside QEMU's:
// same kernel, initrd, memory and vCPU, same end. Each round runs every peer
// once; what counts is the median, and its ratio to the fastest of QEMU's.
func BenchmarkBoot(b *testing.B) {
	for _, kernel := range []string{nested.KernelCloud61, nested.KernelGeneric61, nested.KernelCloud612} {
		for _, words := range []string{"quiet", ""} {
			name := kernel + "/quiet"
			if words == "" {
				name = kernel + "/unquiet"
			}
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					compareBoots(b, newJob(b, kernel, words))
				}
			})
		}
	}
}

func compareBoots(b *testing.B, j job) {
	cold := b.TempDir()
	fresh := 0
	voleCold := volePeer("vole-cold", func(job) string {
		fresh++
		return filepath.Join(cold, strconv.Itoa(fresh))
	}, "--report", filepath.Join(cold, "report.json"))
	peers := []peer{voleWarm, voleBzImage, voleCold, qemuMicro, qemuQ35, qemuVMLinux}
	const ours = 3 // of the peers
	whole := make([][]time.Duration, len(peers))
	outside := make([][]time.Duration, len(peers))
	for round := range rounds() {
		// Each round begins with another peer: the memory that one leaves behind is
		// what the next one finds.
		for k := range peers {
			i := (round + k) % len(peers)
			p := peers[i]
			o, err := p.run(b, j)
			if i < ours {
				require.NoError(b, err)
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "left out of the comparison: %v\n", err)
				continue
			}
			fmt.Fprintf(os.Stderr, "%s %s\n", p.name, seconds(o.whole))
			whole[i] = append(whole[i], o.whole)
			outside[i] = append(outside[i], o.outside)
		}
		require.NoError(b, os.RemoveAll(cold))
		require.NoError(b, os.Mkdir(cold, 0o700))
	}
	best := -1
	for i := ours; i < len(peers); i++ {
		if len(whole[i]) > 0 && peers[i].name != qemuVMLinux.name && (best < 0 || median(whole[i]) < median(whole[best])) {
			best = i
		}
	}
	require.GreaterOrEqual(b, best, 0, "no QEMU came up")
	b.Logf("%-22s %8s %8s %8s %7s %8s %7s", "peer", "median", "min", "max", "ratio", "outside", "ratio")
	for i, p := range peers {
		if len(whole[i]) == 0 {
			continue
		}
		r := float64(median(whole[i])) / float64(median(whole[best]))
		ro := float64(median(outside[i])) / float64(median(outside[best]))
		b.Logf("%-22s %8s %8s %8s %7.2f %8s %7.2f", p.name, seconds(median(whole[i])), seconds(slices.Min(whole[i])), seconds(slices.Max(whole[i])), r, seconds(median(outside[i])), ro)
		b.ReportMetric(median(whole[i]).Seconds(), p.name+"-s")
		if p.name == voleWarm.name {
			b.ReportMetric(r, "vole/fastest-qemu")
			b.ReportMetric(ro, "outside-vole/fastest-qemu")
		}
	}
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2fs", d.Seconds()) }
