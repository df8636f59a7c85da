package guests

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// dhcpScript is what busybox's DHCP client calls: it does what it is told.
const dhcpScript = `
cat > /bin/dhcp <<'END'
#!/bin/busybox sh
if [ "$1" = bound ]; then
	ip addr add $ip/$mask dev $interface
	ip route add default via $router
	[ -z "$mtu" ] || ip link set $interface mtu $mtu
	for d in $dns; do echo nameserver $d; done > /etc/resolv.conf
	echo BOUND $ip/$mask router $router dns $dns
fi
END
chmod 755 /bin/dhcp; mkdir -p /etc /usr/share/udhcpc
`

// TestUserNet: a guest on a user network: its own DHCP client, names, ping, TCP out and
// in with every byte checked, a port that is closed, UDP out and in; a second one with
// larger packets. vole is in a network namespace of the test's, and the outside in another.
func TestUserNet(t *testing.T) {
	netKernels(t, 1, func(t *testing.T, kernel, transport string) {
		n := ownNetwork(t)
		far := n.beyond(t)
		ip(t, `
			addr add 10.8.0.2/24 dev veth0
			link set veth0 up
			addr add fd08::2/64 dev veth0`)
		require.NoError(t, allowPing())
		n.within(t, far, func() {
			ip(t, `
				addr add 10.8.0.1/24 dev far
				link set far up
				addr add fd08::1/64 dev far`)
			streamServer(t, "10.8.0.1:7000")
			streamServer(t, "[::]:7006")
			udpEcho(t, "10.8.0.1:7003")
			nameServer(t, "10.8.0.1:53", [4]byte{203, 0, 113, 77})
		})
		bytes := whole(4<<20, 1<<30)
		many := whole(30, 1000)
		initrd := netInit(t, kernel, dhcpScript+fmt.Sprintf(`
dhcp() { ip link set $1 up; udhcpc -i $1 -n -q -t 10 -T 1 -s /bin/dhcp || echo FAILED dhcp; }
ip link set lo up
dhcp eth0
ping -A -c 3 10.0.2.2 | grep received
ping -A -c 3 -s 1400 10.8.0.1 | grep received
ping -c 1 -w 2 10.8.0.77 | grep received
echo GATEWAY $(nslookup -type=a gateway.vole.internal | sed -n '/Name/,$s/Address.*: *//p')
echo OUTSIDE $(nslookup -type=a far.example | sed -n '/Name/,$s/Address.*: *//p')
peer send %d tcp:10.8.0.1:7000
peer recv %d tcp:10.8.0.1:7000
peer many %d 1000 tcp:10.8.0.1:7000
peer echo 1000 tcp:10.8.0.1:7999 2>&1 | sed 's/PEER FAILED/CLOSED/'
for i in 1 2 3 4 5 6 7 8 9 10; do ip -6 addr show dev eth0 | grep -q "inet6 fd.*global" && break; sleep 1; done
peer echo 100000 tcp:[fd08::1]:7006
peer udp %d 1000 10.8.0.1:7003
peer udpserve 0.0.0.0:7003 &
peer serve 1 tcp:0.0.0.0:7002 & second=$!
peer serve 1 tcp:0.0.0.0:7001
wait $second
ip link set eth0 down
dhcp eth1
echo MTU $(cat /sys/class/net/eth1/mtu)
ping -A -c 2 -s 8900 10.0.2.2 | grep received
`, bytes, bytes, many, whole(200, 10_000)))
		asked := n.do(func() error {
			// The guest ends after the last of them.
			if err := askDatagrams("127.0.0.1:7011", 100, 1000); err != nil {
				return err
			}
			if err := ask("[::1]:7012", "echo", bytes/32); err != nil {
				return err
			}
			return ask("127.0.0.1:7010", "echo", bytes/8)
		})
		report := filepath.Join(t.TempDir(), "report.json")
		r := voleWithin(t, trafficBound(), "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux",
			"--net", "user", "--net", "user,mtu=9000", "--publish", "7010:7001", "--publish", "7011:7003/udp", "--publish", "[::1]:7012:7002",
			"--transport", transport, "--report", report)
		said := "console: " + r.stdout + "\nstderr: " + r.stderr
		require.Equal(t, 0, r.code, said)
		assert.Equal(t, 2, strings.Count(r.stdout, "BOUND 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3"), said)
		assert.Equal(t, 2, strings.Count(r.stdout, "3 packets received"), said)
		assert.Contains(t, r.stdout, " 0 packets received", said)
		assert.Contains(t, r.stdout, "GATEWAY 10.0.2.2\r\n", said)
		if nested.Inside() {
			assert.Contains(t, r.stdout, "OUTSIDE 203.0.113.77\r\n", said)
		}
		assert.Contains(t, r.stdout, "CLOSED", said)
		assert.Contains(t, r.stdout, "refused", said)
		assert.Contains(t, r.stdout, "LOST 0 of", said)
		assert.Contains(t, r.stdout, "MTU 9000\r\n", said)
		assert.Contains(t, r.stdout, " 2 packets received", said)
		assert.NotContains(t, r.stdout, "FAILED", said)
		assert.Len(t, peerLines(r.stdout), 10, said)
		assert.NoError(t, <-asked, said)
		assert.Empty(t, r.stderr)

		counted := readReport(t, report).counters("net")
		require.Len(t, counted, 2)
		first, second := counted[0], counted[1]
		for _, way := range []string{"in", "out"} {
			assert.Greater(t, first["bytes "+way], uint64(bytes+bytes/8+bytes/32), "%v", first)
			assert.Greater(t, first["frames "+way], uint64(bytes>>16), "%v", first)
			assert.Greater(t, second["bytes "+way], uint64(2*8900), "%v", second)
		}
		// send, recv, many, the one that is refused, one by IPv6, and two from outside.
		assert.GreaterOrEqual(t, first["TCP flows"], uint64(many+6), "%v", first)
		assert.Positive(t, first["flows, failed"], "%v", first)
		// Datagrams out, those of two clients outside, and pings.
		assert.GreaterOrEqual(t, first["UDP flows"], uint64(5), "%v", first)
		for _, wrong := range []string{"in, too long", "in, invalid", "out, malformed", "out, failed", "flows, denied", "flows, no room"} {
			assert.Contains(t, first, wrong)
			assert.Zero(t, first[wrong], wrong)
		}
	})
}

// resolvConf counts the tests that /etc/resolv.conf is there for. What it says is the same
// for all.
var resolvConf struct {
	sync.Mutex
	tests int
}

// nameServer is the emulated host's resolver for a test: every name has that address.
func nameServer(t testing.TB, listen string, address [4]byte) {
	t.Helper()
	if !nested.Inside() {
		return // this machine's resolv.conf stays as it is
	}
	host, _, err := net.SplitHostPort(listen)
	require.NoError(t, err)
	resolvConf.Lock()
	defer resolvConf.Unlock()
	if resolvConf.tests == 0 {
		require.NoError(t, os.MkdirAll("/etc", 0o755))
		require.NoError(t, os.WriteFile("/etc/resolv.conf", []byte("nameserver "+host+"\n"), 0o644))
	}
	resolvConf.tests++
	t.Cleanup(func() {
		resolvConf.Lock()
		defer resolvConf.Unlock()
		if resolvConf.tests--; resolvConf.tests == 0 {
			assert.NoError(t, os.Remove("/etc/resolv.conf"))
		}
	})
	answerNames(t, listen, address)
}

// answerNames is a name server until the test ends: every name has that address.
func answerNames(t testing.TB, listen string, address [4]byte) {
	t.Helper()
	answerUDP(t, listen, func(q []byte) []byte {
		end := 12 // of the name, whose labels begin with their lengths
		for end < len(q) && q[end] != 0 {
			end += 1 + int(q[end])
		}
		if end+5 > len(q) {
			return nil
		}
		a := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:end+5]...)
		if q[end+2] == 1 { // an A record: its name is the question's
			a[7] = 1
			a = append(append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4), address[:]...)
		}
		return a
	})
}

// udpEcho answers each datagram by itself until the test ends.
func udpEcho(t testing.TB, address string) {
	t.Helper()
	answerUDP(t, address, func(b []byte) []byte { return b })
}

// answerUDP answers datagrams until the test ends.
func answerUDP(t testing.TB, address string, answer func([]byte) []byte) {
	t.Helper()
	c, err := net.ListenPacket("udp", address)
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			k, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(answer(buf[:k]), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
}

// TestRestrictedUserNet: a guest that is kept in, with a port published.
func TestRestrictedUserNet(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Parallel()
	n := ownNetwork(t)
	streamServer(t, "127.0.0.1:7000")
	ip(t, `
		link add dummy0 type dummy
		addr add 10.8.0.1/24 dev dummy0
		link set dummy0 up`)
	streamServer(t, "10.8.0.1:7000")
	kernel := nested.KernelCloud61
	initrd := netInit(t, kernel, dhcpScript+`
ip link set lo up; ip link set eth0 up
udhcpc -i eth0 -n -q -t 10 -T 1 -s /bin/dhcp || echo FAILED dhcp
peer echo 10 tcp:10.8.0.1:7000 2>&1 | sed 's/PEER FAILED/OUTSIDE CLOSED/'
peer echo 10 tcp:10.0.2.2:7000 2>&1 | sed 's/PEER FAILED/LOOPBACK CLOSED/'
peer serve 1 tcp:0.0.0.0:7001
`)
	asked := n.reach("127.0.0.1:7010", "echo", 100_000)
	r := vole(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux",
		"--net", "user,restrict,host-loopback", "--publish", "7010:7001")
	said := "console: " + r.stdout + "\nstderr: " + r.stderr
	require.Equal(t, 0, r.code, said)
	assert.NoError(t, <-asked, said)
	assert.NotContains(t, r.stdout, "FAILED", said)
	assert.Contains(t, r.stdout, "OUTSIDE CLOSED", said)
	assert.Contains(t, r.stdout, "LOOPBACK CLOSED", said)
	assert.Len(t, peerLines(r.stdout), 2, said) // of what was published
}
