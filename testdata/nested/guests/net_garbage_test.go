package guests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestGarbage: a guest sends thousands of frames that make no sense, runt and oversize
// ones among them, by raw sockets; its ordinary traffic works afterwards, and vole has
// little to say of it.
func TestGarbage(t *testing.T) {
	for _, c := range []struct {
		name    string
		turn    int
		network string
		prepare string // a script; it leaves the gateway's address in $gateway
	}{
		{"tap", 1, "tap=tap0", `
ip addr add 10.9.0.2/24 dev eth0
gateway=10.9.0.1
`},
		{"user", 2, "user", dhcpScript + `
udhcpc -i eth0 -n -q -t 10 -T 1 -s /bin/dhcp || echo FAILED dhcp
gateway=10.0.2.2
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name != "tap" {
				nested.RequireSuite(t, nested.SuiteMatrix)
			}
			netKernels(t, c.turn, func(t *testing.T, kernel, transport string) {
				n := ownNetwork(t)
				makeTap(t)
				streamServer(t, "10.9.0.1:7000")
				udpEcho(t, "10.9.0.1:7003")
				initrd := netInit(t, kernel, "ip link set lo up; ip link set eth0 up"+c.prepare+`
ping -A -c 3 $gateway | grep received
peer junk 2000 eth0/$(awk '$6 == "eth0" { print $4; exit }' /proc/net/arp)
until ping -c 1 -W 1 $gateway >/dev/null; do :; done
ping -A -c 4 -s 1400 $gateway | grep received
peer send 1000000 tcp:10.9.0.1:7000
peer recv 1000000 tcp:10.9.0.1:7000
peer many 30 1000 tcp:10.9.0.1:7000
peer udp 100 1000 10.9.0.1:7003
peer serve 1 tcp:0.0.0.0:7001
`)
				report := filepath.Join(t.TempDir(), "report")
				args := []string{"run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux",
					"--net", c.network, "--transport", transport, "--report", report}
				address := "10.9.0.2:7001"
				if c.name == "user" {
					args, address = append(args, "--publish", "7010:7001"), "127.0.0.1:7010"
				}
				asked := n.reach(address, "echo", 1_000_000)
				r := vole(t, args...)
				said := "console: " + r.stdout + "\nstderr: " + r.stderr
				require.Equal(t, 0, r.code, said)
				assert.Contains(t, r.stdout, "3 packets received", said)
				assert.Greater(t, number(t, `JUNK (\d+) sent`, r.stdout), 1000, said)
				assert.Contains(t, r.stdout, "4 packets received", said)
				assert.Contains(t, r.stdout, "LOST 0 of", said)
				assert.NotContains(t, r.stdout, "FAILED", said)
				assert.Len(t, peerLines(r.stdout), 7, said)
				assert.NoError(t, <-asked, said)
				assert.Less(t, strings.Count(r.stderr, "\n"), 10, said)
				told, err := os.ReadFile(report)
				require.NoError(t, err)
				assert.Greater(t, number(t, `frames out (\d+)`, string(told)), 1000, "%s", told)
			})
		})
	}
}
