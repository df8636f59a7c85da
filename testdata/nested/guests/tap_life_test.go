package guests

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// makeTap makes tap0 with the host's address 10.9.0.1.
func makeTap(t testing.TB) {
	t.Helper()
	busybox(t, "tunctl", "-t", "tap0")
	ip(t, `
		addr add 10.9.0.1/24 dev tap0
		link set tap0 up`)
}

// dhcpServer is busybox's on a device of this thread's namespace, with one address to give,
// until the test ends.
func dhcpServer(t testing.TB, device, address string, options ...string) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	lines := append([]string{"interface " + device, "start " + address, "end " + address,
		"lease_file " + filepath.Join(dir, "leases"), "pidfile " + filepath.Join(dir, "pid")}, options...)
	require.NoError(t, os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "leases"), nil, 0o644))
	var said bytes.Buffer
	cmd := exec.Command(asset(t, nested.AssetBusybox), "udhcpd", "-f", conf)
	cmd.Stdout, cmd.Stderr = &said, &said
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("udhcpd: %s", &said)
		}
	})
}

// TestTapReturns: the tap is deleted while the guest runs, and made anew, twice: the
// guest's link goes down and up, and its traffic goes on. The guest has its address from a
// DHCP server on the tap, and asks a name server there.
func TestTapReturns(t *testing.T) {
	netKernels(t, 1, func(t *testing.T, kernel, transport string) {
		ownNetwork(t)
		makeTap(t)
		dhcpServer(t, "tap0", "10.9.0.23", "option subnet 255.255.255.0", "option router 10.9.0.1", "option dns 10.9.0.1")
		answerNames(t, "10.9.0.1:53", [4]byte{203, 0, 113, 78})
		streamServer(t, "10.9.0.1:7000")
		initrd := netInit(t, kernel, dhcpScript+`
carrier() { cat /sys/class/net/eth0/carrier; }
ip link set lo up; ip link set eth0 up
udhcpc -i eth0 -n -q -t 10 -T 1 -s /bin/dhcp || echo FAILED dhcp
echo FAR $(nslookup -type=a far.example | sed -n '/Name/,$s/Address.*: *//p')
peer echo 100000 tcp:10.9.0.1:7000
for i in 1 2; do
	echo READY $i
	while [ $(carrier) = 1 ]; do usleep 50000; done; echo DOWN $i
	ping -c 1 -W 1 10.9.0.1 | grep received
	while [ $(carrier) = 0 ]; do usleep 50000; done; echo UP $i
	until ping -c 1 -W 1 10.9.0.1 >/dev/null; do :; done
	ping -A -c 3 -s 1400 10.9.0.1 | grep received
	peer echo 1000000 tcp:10.9.0.1:7000
done
`)
		r := start(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux",
			"--net", "tap=tap0", "--transport", transport)
		for i := 1; i <= 2; i++ {
			require.True(t, r.out.until(fmt.Sprint("READY ", i)), r.out)
			ip(t, "link del tap0")
			require.True(t, r.out.until(fmt.Sprint("DOWN ", i)), r.out)
			require.True(t, r.out.untilBeyond(strings.Index(r.out.String(), fmt.Sprint("DOWN ", i)), "received"), r.out)
			makeTap(t)
			require.True(t, r.out.until(fmt.Sprint("UP ", i)), r.out)
		}
		res := r.wait()
		said := "console: " + res.stdout + "\nstderr: " + res.stderr
		require.Equal(t, 0, res.code, said)
		assert.Contains(t, res.stdout, "BOUND 10.9.0.23/24 router 10.9.0.1 dns 10.9.0.1\r\n", said)
		assert.Contains(t, res.stdout, "FAR 203.0.113.78\r\n", said)
		assert.Equal(t, 2, strings.Count(res.stdout, " 0 packets received"), said)
		assert.Equal(t, 2, strings.Count(res.stdout, " 3 packets received"), said)
		assert.NotContains(t, res.stdout, "FAILED", said)
		assert.Len(t, peerLines(res.stdout), 3, said)
		assert.Empty(t, res.stderr)
	})
}

// tapDrops is how many frames the tap had no room for.
func tapDrops(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/dev")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if name, numbers, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "tap0" {
			n, err := strconv.Atoi(strings.Fields(numbers)[11])
			require.NoError(t, err)
			return n
		}
	}
	require.Fail(t, "no tap0", "%s", text)
	return 0
}

// flood sends datagrams to everybody on the tap until it has had no room for 2000 of
// them, more than it and a ring hold together. A guest that takes them gets 50,000, and
// then it is not full.
func flood(t testing.TB) (full bool) {
	t.Helper()
	c, err := net.Dial("udp", "10.9.0.255:9")
	require.NoError(t, err)
	defer c.Close()
	data := make([]byte, 1000)
	most := tapDrops(t) + 2000
	for sent := 0; tapDrops(t) < most && sent < 50_000; sent += 100 {
		for range 100 {
			if _, err := c.Write(data); err != nil && !errors.Is(err, syscall.ENOBUFS) {
				require.NoError(t, err)
			}
		}
	}
	return tapDrops(t) >= most
}

// TestTapStarved: the host floods the tap while nobody empties it, and the guest's
// network works afterwards, from the guest and from the host.
//
// At first the guest's interface is down: its driver then gives the device no buffers,
// and keeps those that are in the ring. So the ring is used up, with the tap full behind
// it and no new frame to tell of, when the interface is up again. Then vole stands still
// (SIGSTOP), and finds a full tap for a guest that has seen no interrupt for as long. At
// last the guest has a flood and traffic at once, on its one CPU.
func TestTapStarved(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	netKernels(t, 2, func(t *testing.T, kernel, transport string) {
		n := ownNetwork(t)
		makeTap(t)
		streamServer(t, "10.9.0.1:7000")
		initrd := netInit(t, kernel, `
received() { cat /sys/class/net/eth0/statistics/rx_packets; }
ip link set lo up; ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
peer serve 3 tcp:0.0.0.0:7001 &
peer echo 100000 tcp:10.9.0.1:7000
ip link set eth0 down; before=$(received); echo CLOSED
read go
ip link set eth0 up
until ping -c 1 -W 1 10.9.0.1 >/dev/null; do :; done
echo HELD1 $(($(received)-before)); peer echo 1000000 tcp:10.9.0.1:7000
before=$(received); echo OPEN
read go
until ping -c 1 -W 1 10.9.0.1 >/dev/null; do :; done
echo HELD2 $(($(received)-before))
peer echo 1000000 tcp:10.9.0.1:7000
echo WAITS
peer echo 1000000 tcp:10.9.0.1:7000
wait
`)
		r, keys := startTyped(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux",
			"--net", "tap=tap0", "--transport", transport)
		goOn := func() {
			_, err := keys.Write([]byte("\n"))
			require.NoError(t, err)
		}
		require.True(t, r.out.until("CLOSED"), r.out)
		require.True(t, flood(t), "the tap takes it all")
		goOn()
		require.True(t, r.out.until("OPEN"), r.out)
		require.NoError(t, <-n.reach("10.9.0.2:7001", "echo", 100_000))

		require.NoError(t, r.cmd.Process.Signal(syscall.SIGSTOP))
		require.True(t, flood(t), "the tap takes it all")
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGCONT))
		goOn()
		require.True(t, r.out.until("WAITS"), r.out)
		require.NoError(t, <-n.reach("10.9.0.2:7001", "echo", 100_000))

		last := n.reach("10.9.0.2:7001", "echo", 1_000_000)
		flood(t) // who empties it may keep up
		require.NoError(t, <-last)
		res := r.wait()
		said := "console: " + res.stdout + "\nstderr: " + res.stderr
		require.Equal(t, 0, res.code, said)
		assert.NotContains(t, res.stdout, "FAILED", said)
		assert.Len(t, peerLines(res.stdout), 6, said)
		// What ring and tap held has come to the guest.
		assert.Greater(t, number(t, `HELD1 (\d+)`, res.stdout), 600, said)
		assert.Greater(t, number(t, `HELD2 (\d+)`, res.stdout), 400, said)
		assert.Empty(t, res.stderr)
	})
}
