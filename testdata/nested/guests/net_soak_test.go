package guests

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// netSoakTime is how long TestNetSoak goes on; VOLE_NET_SOAK changes it ("2m").
func netSoakTime(t *testing.T) time.Duration {
	text := os.Getenv("VOLE_NET_SOAK")
	if text == "" {
		return 30 * time.Minute
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err)
	return d
}

// TestNetSoak: iperf3 in both directions and small datagrams at the same time, over a tap
// and over a user network, for half an hour each. Five seconds without a byte are a stall.
func TestNetSoak(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteSoak)
	t.Run("tap", func(t *testing.T) {
		ownNetwork(t)
		busybox(t, "tunctl", "-t", "tap0")
		ip(t, `addr add 10.9.0.1/24 dev tap0
			link set tap0 up`)
		soakNet(t, "10.9.0.1", "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0", "tap=tap0")
	})
	t.Run("user", func(t *testing.T) {
		ownNetwork(t)
		ip(t, `link add dummy0 type dummy
			addr add 10.8.0.1/24 dev dummy0
			link set dummy0 up`)
		soakNet(t, "10.8.0.1", dhcpScript+"ip link set eth0 up; udhcpc -i eth0 -n -q -t 10 -T 1 -s /bin/dhcp || echo FAILED dhcp", "user")
	})
}

func soakNet(t *testing.T, host, setup, net string) {
	tools, err := nested.Programs(nested.ComponentNet, "bin/iperf3")
	if err != nil {
		t.Skipf("%v", err)
	}
	long := netSoakTime(t)
	udpEcho(t, host+":7003")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	server, err := nested.ProgramCommand(ctx, nested.ComponentNet, "bin/iperf3", "-s", "-B", host)
	require.NoError(t, err)
	require.NoError(t, server.Start())
	defer func() { cancel(); _ = server.Wait() }()
	kernel := nested.KernelCloud612
	files := maps.Clone(tools)
	files["/bin/peer"] = asset(t, nested.AssetPeer)
	seconds := int(long.Seconds())
	initrd := moduleInitWith(t, kernel, netModules, files, fmt.Sprintf(`
ip link set lo up
%s
(while :; do peer udp 1000 60 %s:7003 | grep LOST; done) &
iperf3 -c %s --bidir -P 2 -t %d -i 5 -f k | grep SUM
echo SOAK over
`, setup, host, host, seconds))
	r := startWithin(t, long+5*time.Minute, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux", "--net", net).wait()
	said := "console: " + r.stdout + "\nstderr: " + r.stderr
	require.Equal(t, 0, r.code, said)
	require.Contains(t, r.stdout, "SOAK over", said)
	assert.NotContains(t, r.stdout, "FAILED", said)
	intervals, datagrams := 0, 0
	for line := range strings.Lines(r.stdout) {
		f := strings.Fields(line)
		for i, word := range f {
			if word != "Kbits/sec" || i == 0 || strings.Contains(line, "sender") || strings.Contains(line, "receiver") {
				continue
			}
			rate, err := strconv.ParseFloat(f[i-1], 64)
			require.NoError(t, err, line)
			assert.Positive(t, rate, line)
			intervals++
		}
		if strings.Contains(line, "LOST") {
			assert.Contains(t, line, "LOST 0 of 1000")
			datagrams++
		}
	}
	t.Logf("%d intervals of 5 s in two directions, none without a byte; %d times a thousand datagrams and none lost", intervals, datagrams)
	assert.GreaterOrEqual(t, intervals, 2*(seconds/5-1), said)
	assert.GreaterOrEqual(t, datagrams, max(1, seconds/120), said)
}
