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

// TestNetSoak: iperf3 in both directions and small datagrams at the same time over a
// tap, for half an hour. Five seconds without a byte are a stall.
func TestNetSoak(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteSoak)
	tools, err := nested.Programs(nested.ComponentNet, "bin/iperf3")
	if err != nil {
		t.Skipf("%v", err)
	}
	long := netSoakTime(t)
	ownNetwork(t)
	busybox(t, "tunctl", "-t", "tap0")
	ip(t, `addr add 10.9.0.1/24 dev tap0
		link set tap0 up`)
	udpEcho(t, "10.9.0.1:7003")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	server, err := nested.ProgramCommand(ctx, nested.ComponentNet, "bin/iperf3", "-s", "-B", "10.9.0.1")
	require.NoError(t, err)
	require.NoError(t, server.Start())
	defer func() { cancel(); _ = server.Wait() }()
	kernel := nested.KernelCloud612
	files := maps.Clone(tools)
	files["/bin/peer"] = asset(t, nested.AssetPeer)
	seconds := int(long.Seconds())
	initrd := moduleInitWith(t, kernel, netModules, files, fmt.Sprintf(`
ip link set lo up; ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
(while :; do peer udp 1000 60 10.9.0.1:7003 | grep LOST; done) &
iperf3 -c 10.9.0.1 --bidir -P 2 -t %d -i 5 -f k | grep SUM
echo SOAK over
`, seconds))
	r := startWithin(t, long+5*time.Minute, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-c", "2", "-a", "quiet", "--boot", "vmlinux", "--net", "tap=tap0").wait()
	said := "console: " + r.stdout + "\nstderr: " + r.stderr
	require.Equal(t, 0, r.code, said)
	require.Contains(t, r.stdout, "SOAK over", said)
	intervals := 0
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
	}
	t.Logf("%d intervals of 5 s in two directions, none without a byte", intervals)
	assert.GreaterOrEqual(t, intervals, 2*(seconds/5-1), said)
	assert.Contains(t, r.stdout, "LOST 0 of 1000", said)
}
