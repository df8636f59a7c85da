package guests

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// netModules are the drivers that a guest may need for its network, and those that
// the emulated host needs to be on its other end.
var (
	netModules  = []string{"virtio_pci", "virtio_mmio", "virtio_net", "af_packet", "ipv6"}
	hostModules = []string{"tun", "dummy", "veth", "af_packet", "vhost_net", "vhost_vsock"}
)

// netTools are the files of iperf3 and socat, for [nested.Options].
func netTools() []string {
	tools, err := nested.Programs(nested.ComponentNet, "bin/iperf3", "bin/socat")
	if err != nil {
		return nil // the test that needs them says more
	}
	return slices.Collect(maps.Values(tools))
}

// netInit is an initramfs with the peer of package stream.
func netInit(t testing.TB, kernel, script string) string {
	t.Helper()
	return moduleInitWith(t, kernel, netModules, map[string]string{"/bin/peer": asset(t, nested.AssetPeer)}, script)
}

// netKernels are the kernels and transports that a connection is tried with: all, or
// in CI one that differs from test to test.
func netKernels(t *testing.T, turn int, f func(t *testing.T, kernel, transport string)) {
	if nested.CurrentSuite() != nested.SuiteTest {
		diskKernels(t, f)
		return
	}
	t.Parallel()
	pair := []struct{ kernel, transport string }{
		{nested.KernelGeneric61, "mmio"}, {nested.KernelCloud61, "pci"}, {nested.KernelCloud612, "pci"},
	}[turn%3]
	if _, err := nested.Asset(pair.kernel); err != nil {
		t.Skipf("%v", err)
	}
	f(t, pair.kernel, pair.transport)
}

// trafficBound is how long a guest may take to move its bytes: a GiB each way takes
// minutes in the emulated host.
func trafficBound() time.Duration {
	if nested.CurrentSuite() == nested.SuiteTest {
		return bootBound
	}
	return 30 * time.Minute
}

// whole is an amount of bytes for the larger suites, and a smaller one for CI's.
func whole(small, large int64) int64 {
	if nested.CurrentSuite() == nested.SuiteTest {
		return small
	}
	return large
}

// peerLines are what the guest's peer said.
func peerLines(console string) []string {
	var lines []string
	for line := range strings.Lines(console) {
		if strings.HasPrefix(line, "PEER") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// TestTap: a guest on a tap: ping, and TCP both ways, with every byte checked, by IPv4 and
// IPv6, and with a server behind the host, which forwards.
func TestTap(t *testing.T) {
	netKernels(t, 2, func(t *testing.T, kernel, transport string) {
		n := ownNetwork(t)
		busybox(t, "tunctl", "-t", "tap0")
		atOnce(t, "tap0")
		far := n.beyond(t)
		ip(t, `
			link set tap0 mtu 9000
			addr add 10.9.0.1/24 dev tap0
			link set tap0 up
			addr add fd09::1/64 dev tap0
			addr add 10.7.0.1/24 dev veth0
			link set veth0 up`)
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
		n.within(t, far, func() {
			ip(t, `
				addr add 10.7.0.2/24 dev far
				link set far up
				route add default via 10.7.0.1`)
			streamServer(t, "10.7.0.2:7000")
		})
		streamServer(t, "10.9.0.1:7000")
		streamServer(t, "[::]:7006")
		udpEcho(t, "10.9.0.1:7003")
		bytes := whole(4<<20, 1<<30)
		initrd := netInit(t, kernel, fmt.Sprintf(`
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set lo up; ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; ip addr add fd09::2/64 dev eth0
ip route add default via 10.9.0.1
echo MAC $(cat /sys/class/net/eth0/address) MTU $(cat /sys/class/net/eth0/mtu)
ping -A -c 3 -s 1400 10.9.0.1 | grep received
ping -A -c 2 -s 8900 10.9.0.1 | grep received
peer send %d tcp:10.9.0.1:7000
peer recv %d tcp:10.9.0.1:7000
peer many %d 1000 tcp:10.9.0.1:7000
peer udp %d 8000 10.9.0.1:7003
ping -6 -A -c 4 -s 8900 fd09::1 | grep received
peer echo %d tcp:[fd09::1]:7006
peer echo %d tcp:10.7.0.2:7000
peer serve 1 tcp:0.0.0.0:7001
`, bytes, bytes, whole(30, 1000), whole(200, 10_000), whole(512<<10, 32<<20), whole(512<<10, 32<<20)))
		asked := n.reach("10.9.0.2:7001", "echo", bytes/8)
		r := voleWithin(t, trafficBound(), "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux",
			"--net", "tap=tap0,mac=52:54:00:12:34:56,mtu=9000", "--transport", transport)
		said := "console: " + r.stdout + "\nstderr: " + r.stderr
		require.Equal(t, 0, r.code, said)
		assert.Contains(t, r.stdout, "MAC 52:54:00:12:34:56 MTU 9000", said)
		assert.Contains(t, r.stdout, "3 packets received", said)
		assert.Contains(t, r.stdout, "2 packets received", said)
		assert.Contains(t, r.stdout, "4 packets received", said)
		assert.Contains(t, r.stdout, "LOST 0 of", said)
		assert.NotContains(t, r.stdout, "FAILED", said)
		assert.Len(t, peerLines(r.stdout), 8, said)
		assert.NoError(t, <-asked, said)
		assert.Empty(t, r.stderr)
	})
}
