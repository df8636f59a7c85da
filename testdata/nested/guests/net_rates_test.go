package guests

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestNetRates: a guest on a tap and on a user network whose bytes are bounded: neither way
// is faster than that.
func TestNetRates(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	const (
		burst  = 256 << 10
		rx, tx = 2 << 20, 1 << 20 // bytes a second
		amount = 8 << 20
		limits = ",rx-bps=2M,rx-bps-burst=256K,tx-bps=1M,tx-bps-burst=256K"
	)
	for _, c := range []struct {
		name, network, setup, address string
		args                          []string
	}{
		{"tap", "tap=tap0", "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0", "10.9.0.2:7001", nil},
		{"user", "user", dhcpScript + "ip link set eth0 up; udhcpc -i eth0 -n -q -t 10 -T 1 -s /bin/dhcp || echo FAILED dhcp", "127.0.0.1:7010", []string{"--publish", "7010:7001"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := ownNetwork(t)
			makeTap(t)
			kernel := nested.KernelCloud61
			initrd := netInit(t, kernel, "ip link set lo up\n"+c.setup+"\npeer serve 3 tcp:0.0.0.0:7001\n")
			var took [2]time.Duration
			asked := n.do(func() error {
				if err := ask(c.address, "echo", 1000); err != nil {
					return err
				}
				for i, verb := range []string{"send", "recv"} {
					began := time.Now()
					if err := ask(c.address, verb, amount); err != nil {
						return err
					}
					took[i] = time.Since(began)
				}
				return nil
			})
			r := vole(t, append([]string{"run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux",
				"--net", c.network + limits}, c.args...)...)
			said := "console: " + r.stdout + "\nstderr: " + r.stderr
			require.Equal(t, 0, r.code, said)
			require.NoError(t, <-asked, said)
			assert.NotContains(t, r.stdout, "FAILED", said)
			for i, rate := range []int{rx, tx} {
				// The last frame passes before it is paid for.
				least := time.Duration(amount-burst-64<<10) * time.Second / time.Duration(rate)
				t.Logf("%s: %d MiB in %.2f s, %.2f s at least", []string{"in", "out"}[i], amount>>20, took[i].Seconds(), least.Seconds())
				assert.GreaterOrEqual(t, took[i], least)
			}
		})
	}
}
