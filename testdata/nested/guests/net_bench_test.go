package guests

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// netJob is what every peer does: the same guest, with a way to a server.
type netJob struct {
	kernel, initrd, cache string
	path                  string // of vole's Unix socket
}

// netPeer is a way to do it.
type netPeer struct {
	name    string
	command func(ctx context.Context, j netJob) (*exec.Cmd, error)
}

func voleNet(name string, args ...string) netPeer {
	return netPeer{name, func(ctx context.Context, j netJob) (*exec.Cmd, error) {
		path, err := nested.Asset(nested.AssetVole)
		if err != nil {
			return nil, err
		}
		args := slices.Clone(args)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "PATH", j.path)
		}
		cmd := exec.CommandContext(ctx, path, append([]string{"run", "-k", j.kernel, "-i", j.initrd, "-m", "256M", "--cmdline", common + "quiet"}, args...)...)
		cmd.Env = append(os.Environ(), "VOLE_CACHE="+j.cache)
		return cmd, nil
	}}
}

func qemuNet(name string, args ...string) netPeer {
	return netPeer{name, func(ctx context.Context, j netJob) (*exec.Cmd, error) {
		return nested.QEMUCommand(ctx, append([]string{"-accel", "kvm", "-cpu", "host", "-M", "q35",
			"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
			"-m", "256M", "-kernel", j.kernel, "-initrd", j.initrd, "-append", common + "quiet"}, args...)...)
	}}
}

// run returns what the guest's rows say.
func (p netPeer) run(j netJob) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), bootBound)
	defer cancel()
	cmd, err := p.command(ctx, j)
	if err != nil {
		return nil, err
	}
	rows, out, err := rowsOf(cmd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	if len(rows) == 0 || strings.Contains(out, "FAILED") {
		return nil, fmt.Errorf("%s: %s", p.name, last(out))
	}
	return rows, nil
}

// compareNets runs the peers in turn and logs each row's medians, and vole's as a
// share of the best other's.
func compareNets(b *testing.B, j netJob, peers []netPeer) {
	rates := make([]map[string][]float64, len(peers))
	for range rounds() {
		for i, p := range peers {
			begin := time.Now()
			rows, err := p.run(j)
			if i == 0 {
				require.NoError(b, err)
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "left out of the comparison: %v\n", err)
				continue
			}
			fmt.Fprintf(os.Stderr, "%s %s %v\n", p.name, seconds(time.Since(begin)), rows)
			if rates[i] == nil {
				rates[i] = map[string][]float64{}
			}
			for name, rate := range rows {
				rates[i][name] = append(rates[i][name], rate)
			}
		}
	}
	for _, row := range slices.Sorted(maps.Keys(rates[0])) {
		text := fmt.Sprintf("%-16s", row)
		var ours, best float64
		for i, p := range peers {
			r := rates[i][row]
			if len(r) == 0 {
				continue
			}
			m := slices.Sorted(slices.Values(r))[len(r)/2]
			text += fmt.Sprintf(" %s %.0f", p.name, m)
			if i == 0 {
				ours = m
			} else {
				best = max(best, m)
			}
		}
		if best > 0 {
			b.Logf("%s ratio %.2f", text, ours/best)
			b.ReportMetric(ours/best, row+"/qemu")
		}
	}
}

// iperfRows measures TCP with iperf3 from the guest, in megabits a second, and round
// trips a second with the peer of package stream.
func iperfRows(server string) string {
	rate := `awk '{ for (i = 2; i <= NF; i++) if ($i ~ /bits\/sec/) print $(i-1) }'`
	script := ""
	for _, row := range []struct{ name, args string }{
		{"out-1", "-P 1"}, {"out-4", "-P 4"}, {"in-1", "-R -P 1"}, {"in-4", "-R -P 4"},
	} {
		script += fmt.Sprintf("echo ROW %s $(iperf3 -c %s -t 4 -O 1 -f m %s 2>&1 | tee /tmp/log | grep receiver | tail -1 | %s) || cat /tmp/log\n", row.name, server, row.args, rate)
	}
	return script + fmt.Sprintf(`ms=$(peer turns 2000 tcp:%s:7000 | sed -n 's/.* in \(.*\) ms/\1/p'); echo ROW turns $((2000000 / ms))
`, server)
}

// BenchmarkNet compares vole's network with QEMU's, in the same guest and network
// namespace: a tap without vhost, and a network in user mode. Rows are megabits a
// second of TCP from (out) and to (in) the guest over one and four connections, and
// round trips a second.
func BenchmarkNet(b *testing.B) {
	programs, err := nested.Programs(nested.ComponentNet, "bin/iperf3")
	if err != nil {
		b.Skipf("%v", err)
	}
	kernel := diskKernel()
	files := maps.Clone(programs)
	files["/bin/peer"] = asset(b, nested.AssetPeer)
	for _, mode := range []struct {
		name, setup, script, server string
		peers                       []netPeer
	}{
		{"tap", `link add dummy0 type dummy
			link set dummy0 up
			addr add 10.9.0.1/24 dev tap0
			link set tap0 up`,
			`ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0`, "10.9.0.1",
			[]netPeer{
				voleNet("vole", "--net", "tap=tap0"),
				qemuNet("qemu", "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=n0,romfile="),
			}},
		{"user", `link add dummy0 type dummy
			addr add 10.8.0.1/24 dev dummy0
			link set dummy0 up`,
			dhcpScript + `ip link set eth0 up; udhcpc -i eth0 -n -q -t 10 -T 1 -s /bin/dhcp >/dev/null 2>&1`, "10.8.0.1",
			[]netPeer{
				voleNet("vole", "--net", "user"),
				qemuNet("qemu", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="),
			}},
	} {
		b.Run(mode.name, func(b *testing.B) {
			ownNetwork(b)
			if mode.name == "tap" {
				busybox(b, "tunctl", "-t", "tap0")
			}
			ip(b, mode.setup)
			streamServer(b, mode.server+":7000")
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			server, err := nested.ProgramCommand(ctx, nested.ComponentNet, "bin/iperf3", "-s", "-B", mode.server)
			require.NoError(b, err)
			require.NoError(b, server.Start())
			defer func() { cancel(); _ = server.Wait() }()
			j := netJob{kernel: asset(b, kernel), cache: cacheWith(b, asset(b, kernel)).Dir(),
				initrd: moduleInitWith(b, kernel, netModules, files, "ip link set lo up\n"+mode.script+"\n"+iperfRows(mode.server))}
			for b.Loop() {
				compareNets(b, j, mode.peers)
			}
		})
	}
}

// BenchmarkVsock compares vole's sockets with QEMU's, which are the host kernel's
// (vhost): megabytes a second and round trips a second.
func BenchmarkVsock(b *testing.B) {
	kernel := diskKernel()
	path := b.TempDir() + "/v"
	l := listenUnix(b, path+"_7000")
	serveStreams(b, l)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// QEMU's guests come to the host's kernel.
	server := exec.CommandContext(ctx, asset(b, nested.AssetPeer), "serve", "1000000", "vsock:4294967295:7000")
	require.NoError(b, server.Start())
	defer func() { cancel(); _ = server.Wait() }()
	const bytes = 256 << 20
	row := func(name, verb string) string {
		return fmt.Sprintf("ms=$(peer %s %d vsock:2:7000 | sed -n 's/.* in \\(.*\\) ms/\\1/p'); echo ROW %s $((%d / 1000 / ms))\n", verb, bytes, name, bytes)
	}
	script := row("out", "sink") + row("in", "source") +
		"ms=$(peer turns 2000 vsock:2:7000 | sed -n 's/.* in \\(.*\\) ms/\\1/p'); echo ROW turns $((2000000 / ms))\n"
	j := netJob{kernel: asset(b, kernel), cache: cacheWith(b, asset(b, kernel)).Dir(), initrd: vsockInit(b, kernel, script), path: path}
	for b.Loop() {
		compareNets(b, j, []netPeer{
			voleNet("vole", "--vsock", "PATH"),
			qemuNet("qemu", "-device", "vhost-vsock-pci,guest-cid=77"),
		})
	}
}
