package agent

import (
	"encoding/binary"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

func TestParseOOMKills(t *testing.T) {
	assert.Equal(t, 3, parseOOMKills("nr_free_pages 5\noom_kill 3\nballoon_inflate 0\n"))
	assert.Equal(t, 0, parseOOMKills("nr_free_pages 5\n"))
	assert.Equal(t, 0, parseOOMKills("oom_kill x\n"))
}

func TestToUnmount(t *testing.T) {
	assert.Equal(t, []string{"/mnt/two", `/mnt/a b\c`, "/work"}, toUnmount(`vole / overlay rw 0 0
root /work virtiofs rw 0 0
proc /proc proc rw 0 0
/dev/vda /mnt/a\040b\134c ext4 rw 0 0
odd
/dev/vdb /mnt/two ext4 rw 0 0
`))
	for in, want := range map[string]string{"": "", `\`: `\`, `\04`: `\04`, `\048`: `\048`, `\777`: `\777`, `a\011`: "a\t"} {
		assert.Equal(t, want, unescape(in), in)
	}
}

func TestMountTable(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range mountTable() {
		assert.False(t, seen[m.dir], m.dir)
		seen[m.dir] = true
		parent := m.dir[:strings.LastIndex(m.dir, "/")]
		assert.True(t, parent == "" || seen["/"+strings.Split(m.dir, "/")[1]], "%s comes before what it is in", m.dir)
		assert.NotZero(t, m.flags&unix.MS_NOSUID, m.dir)
	}
}

func TestNetlinkMessage(t *testing.T) {
	m := netlinkMessage{1}.attr(7, []byte("abcde"))
	assert.Zero(t, len(m[1:])%4-3, "aligned from the message's beginning")
	m = netlinkMessage(nil).attr(7, []byte("abcde")).attr(8, nil)
	assert.Len(t, m, 16)
	assert.EqualValues(t, 9, binary.NativeEndian.Uint16(m))
	assert.EqualValues(t, 7, binary.NativeEndian.Uint16(m[2:]))
	assert.EqualValues(t, 4, binary.NativeEndian.Uint16(m[12:]))
}

func TestNetlinkAnswer(t *testing.T) {
	ack := func(seq uint32, errno int32) []byte {
		b := netlinkMessage(nil).u32(36)
		b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
		b = binary.NativeEndian.AppendUint16(b, 0)
		b = b.u32(seq).u32(0).u32(uint32(errno))
		return append(b, make([]byte, 16)...)
	}
	for name, c := range map[string]struct {
		b     []byte
		errno unix.Errno
		ok    bool
	}{
		"empty":     {nil, 0, false},
		"good":      {ack(5, 0), 0, true},
		"refused":   {ack(5, -17), unix.EEXIST, true},
		"another's": {ack(4, 0), 0, false},
		"second":    {append(ack(4, 0), ack(5, -1)...), unix.EPERM, true},
		"cut":       {ack(5, 0)[:30], 0, false},
		"of size 0": {make([]byte, 64), 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			errno, ok := netlinkAnswer(c.b, 5)
			assert.Equal(t, c.ok, ok)
			assert.Equal(t, c.errno, errno)
		})
	}
}

// A box has a network of its own.
func TestNetwork(t *testing.T) {
	for name, c := range map[string]struct {
		net      wire.Net
		hostname string
		problems []string
		shown    []string
	}{
		"addresses of both families": {
			wire.Net{Addresses: []string{"10.0.2.15/24", "fd00::15/64"}, Gateways: []string{"10.0.2.2", "fd00::2"}, DNS: []string{"10.0.2.3", "fd00::3"}, MTU: 1400},
			"tap", nil,
			[]string{"inet 10.0.2.15/24", "inet6 fd00::15/64", "default via 10.0.2.2 dev eth0", "default via fd00::2 dev eth0", "mtu 1400", "nameserver 10.0.2.3\nnameserver fd00::3\n", "inet 127.0.0.1/8", "inet6 ::1/128"},
		},
		"mistakes": {
			wire.Net{Addresses: []string{"10.0.2.15", "10.0.2.16/24"}, Gateways: []string{"here", "192.0.2.1"}, MTU: 5},
			"tap", []string{"set the MTU of eth0 to 5: invalid argument", `give the network device the address 10.0.2.15: netip.ParsePrefix("10.0.2.15"): no '/'`, `route by the gateway here: ParseAddr("here"): unable to parse IP`, "route by the gateway 192.0.2.1: network is unreachable"},
			[]string{"inet 10.0.2.16/24"},
		},
		"no device": {
			wire.Net{Addresses: []string{"10.0.2.15/24"}}, "", []string{"configure the network: there is no network device"}, []string{"inet 127.0.0.1/8"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := newGuest(t, wire.Config{Net: &c.net, Hostname: c.hostname})
			hello, err := g.Ready(bounded(t))
			require.NoError(t, err)
			for _, p := range c.problems {
				assert.Contains(t, hello.Problems, p)
			}
			assert.Len(t, hello.Problems, len(c.problems)+1) // no devtmpfs in a box
			if _, err := exec.LookPath("ip"); err != nil {
				t.Skip("no ip command: it can't be looked at")
			}
			shown := said(t, g, "PATH=$PATH:/sbin:/usr/sbin; ip addr; ip route; ip -6 route; cat /etc/resolv.conf")
			for _, s := range c.shown {
				assert.Contains(t, shown, s)
			}
		})
	}
}

func TestFamily(t *testing.T) {
	assert.EqualValues(t, unix.AF_INET, family(netip.MustParseAddr("10.0.0.1")))
	assert.EqualValues(t, unix.AF_INET6, family(netip.MustParseAddr("fd00::1")))
}
