package guests

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// vhostFiles is how often a process has /dev/vhost-net open.
func vhostFiles(t testing.TB, pid int) (n int) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, f := range list {
		if to, err := os.Readlink(filepath.Join(dir, f.Name())); err == nil && to == "/dev/vhost-net" {
			n++
		}
	}
	return n
}

// TestTapVHost: a guest whose frames the host's kernel moves: ping, and TCP both ways,
// with every byte checked; again after its driver has left the device and come back;
// and again after the tap was deleted and made anew.
func TestTapVHost(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	netKernels(t, 0, func(t *testing.T, kernel, transport string) {
		n := ownNetwork(t)
		makeTap := func() {
			busybox(t, "tunctl", "-t", "tap0")
			ip(t, `
				link set tap0 mtu 9000
				addr add 10.9.0.1/24 dev tap0
				link set tap0 up`)
		}
		makeTap()
		streamServer(t, "10.9.0.1:7000")
		udpEcho(t, "10.9.0.1:7003")
		bytes := whole(8<<20, 1<<30)
		initrd := netInit(t, kernel, fmt.Sprintf(`
carrier() { cat /sys/class/net/eth0/carrier; }
ip link set lo up; ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
echo MAC $(cat /sys/class/net/eth0/address) MTU $(cat /sys/class/net/eth0/mtu)
ping -c 3 -s 1400 10.9.0.1 | grep received
ping -c 2 -s 8900 10.9.0.1 | grep received
peer send %d tcp:10.9.0.1:7000
peer recv %d tcp:10.9.0.1:7000
peer many %d 1000 tcp:10.9.0.1:7000
peer udp %d 8000 10.9.0.1:7003
peer serve 1 tcp:0.0.0.0:7001
device=$(basename $(readlink /sys/class/net/eth0/device))
echo $device >/sys/bus/virtio/drivers/virtio_net/unbind
echo $device >/sys/bus/virtio/drivers/virtio_net/bind
ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
ping -c 4 -s 1400 10.9.0.1 | grep received
peer recv 100000 tcp:10.9.0.1:7000
echo READY
while [ $(carrier) = 1 ]; do usleep 50000; done; echo CARRIER GONE
while [ $(carrier) = 0 ]; do usleep 50000; done; echo CARRIER BACK
until ping -c 1 -W 1 10.9.0.1 >/dev/null; do :; done
ping -c 5 -s 1400 10.9.0.1 | grep received
peer send 100000 tcp:10.9.0.1:7000
`, bytes, bytes, whole(30, 1000), whole(200, 10_000)))
		asked := n.reach("10.9.0.2:7001", "echo", bytes/8)
		report := filepath.Join(t.TempDir(), "report")
		r := start(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux",
			"--net", "tap=tap0,vhost,mac=52:54:00:12:34:56,mtu=9000", "--transport", transport, "--report", report)
		require.True(t, r.out.until("READY"), r.out)
		assert.Equal(t, 1, vhostFiles(t, r.cmd.Process.Pid))
		ip(t, "link del tap0")
		assert.True(t, r.out.until("CARRIER GONE"), r.out)
		makeTap()
		res := r.wait()
		said := "console: " + res.stdout + "\nstderr: " + res.stderr
		require.Equal(t, 0, res.code, said)
		for _, line := range []string{
			"MAC 52:54:00:12:34:56 MTU 9000", "3 packets received", "2 packets received", "LOST 0 of",
			"4 packets received", "CARRIER BACK", "5 packets received",
		} {
			assert.Contains(t, res.stdout, line, said)
		}
		assert.NotContains(t, res.stdout, "FAILED", said)
		assert.Len(t, peerLines(res.stdout), 8, said)
		assert.NoError(t, <-asked, said)
		assert.NotContains(t, res.stderr, "needs reset")
		told, err := os.ReadFile(report)
		require.NoError(t, err)
		counted := regexp.MustCompile(`bytes in (\d+).* bytes out (\d+)`).FindStringSubmatch(string(told))
		require.Len(t, counted, 3, "%s", told)
		for _, text := range counted[1:] {
			n, err := strconv.ParseInt(text, 10, 64)
			require.NoError(t, err)
			assert.Greater(t, n, bytes, "%s", told)
		}
	})
}

// TestTapQueues: more than one pair of queues on a tap that vole makes, each of them used,
// with frames that vole moves and with a thread of the kernel's for each.
func TestTapQueues(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	for _, c := range []struct {
		name, option string
		vhostFiles   int
	}{
		{"vole", "", 0},
		{"vhost", ",vhost", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			netKernels(t, 1, func(t *testing.T, kernel, transport string) {
				testTapQueues(t, kernel, transport, c.option, c.vhostFiles)
			})
		})
	}
}

func testTapQueues(t *testing.T, kernel, transport, option string, files int) {
	n := ownNetwork(t)
	streamServer(t, "0.0.0.0:7000")
	bytes := whole(2<<20, 1<<30)
	initrd := netInit(t, kernel, fmt.Sprintf(`
ip link set lo up; ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
echo QUEUES $(ls /sys/class/net/eth0/queues | grep -c rx)
until ping -c 1 -W 1 10.9.0.1 >/dev/null; do :; done
peer send %d tcp:10.9.0.1:7000
peer recv %d tcp:10.9.0.1:7000
peer many %d 1000 tcp:10.9.0.1:7000
peer serve 1 tcp:0.0.0.0:7001
sed -n 's/^.*: *\([0-9]*\) *\([0-9]*\).*virtio.-\(input\|output\)\.\([0-9]\)$/IRQ \3 \4 \1 \2/p' /proc/interrupts
`, bytes, bytes, whole(30, 1000)))
	asked := n.reach("10.9.0.2:7001", "echo", bytes/8)
	r := startWithin(t, trafficBound(), "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux",
		"--net", "tap=tap1,create,queues=2"+option, "--transport", transport)
	require.NoError(t, retry(func() error {
		_, err := net.InterfaceByName("tap1")
		return err
	}))
	assert.NoError(t, retry(func() error {
		if n := vhostFiles(t, r.cmd.Process.Pid); n != files {
			return fmt.Errorf("vhost-net is open %d times", n)
		}
		return nil
	}))
	ip(t, "addr add 10.9.0.1/24 dev tap1")
	res := r.wait()
	said := "console: " + res.stdout + "\nstderr: " + res.stderr
	require.Equal(t, 0, res.code, said)
	assert.Contains(t, res.stdout, "QUEUES 2", said)
	assert.NotContains(t, res.stdout, "FAILED", said)
	assert.Len(t, peerLines(res.stdout), 5, said)
	assert.NoError(t, <-asked, said)
	assert.Empty(t, strings.TrimSpace(res.stderr))
	if transport == "pci" { // else all queues have one interrupt
		for _, queue := range []string{"input 0", "input 1", "output 0", "output 1"} {
			m := regexp.MustCompile(`IRQ ` + queue + ` (\d+) (\d+)`).FindStringSubmatch(res.stdout)
			if assert.NotNil(t, m, said) {
				t.Log(m[0])
				assert.NotEqual(t, []string{"0", "0"}, m[1:], "%s: no interrupt", queue)
			}
		}
	}
	_, err := net.InterfaceByName("tap1")
	assert.Error(t, err, "it is gone with the machine")
}
