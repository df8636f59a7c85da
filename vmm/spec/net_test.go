package spec

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/net/usernet"
)

func TestParseNet(t *testing.T) {
	for s, want := range map[string]Net{
		"user":                                {User: true},
		"user,restrict,host-loopback=off":     {User: true, Restrict: true},
		"user,mac=52:54:00:12:34:56,mtu=1500": {User: true, MAC: "52:54:00:12:34:56", MTU: "1500"},
		"tap=tap0":                            {Tap: "tap0"},
		"tap=tap0,create,queues=4,vhost":      {Tap: "tap0", Create: true, Queues: "4", VHost: true},
		"tap=a,,b,rx-bps=1M,tx-pps=10":        {Tap: "a,b", RXBPS: "1M", TXPPS: "10"},
	} {
		n, err := ParseNet(s)
		require.NoError(t, err, s)
		assert.Equal(t, want, n, s)
	}
	for _, s := range []string{"", "tap", "tap=", "user=1", "user,", "user,restrict=maybe", "user,mac", "user,mtu=1500,mtu=1500", "tap=a,b"} {
		_, err := ParseNet(s)
		assert.Error(t, err, s)
	}
}

// TestRestrict: a restricted network asks nobody outside, any other everybody.
func TestRestrict(t *testing.T) {
	outside := usernet.Destination{Protocol: usernet.TCP, Addr: netip.MustParseAddr("192.0.2.1"), Port: 80}
	for _, restrict := range []bool{false, true} {
		n := Net{User: true, Restrict: restrict}
		p, err := n.plan(0)
		require.NoError(t, err)
		b, err := n.backend(&p, nil, nil)
		require.NoError(t, err)
		assert.Equal(t, restrict, b.(userNet).Allows(outside) != nil)
		assert.NoError(t, b.Close())
	}
}

// TestMACsDiffer: a guest's networks have addresses of their own, the same in each run.
func TestMACsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, n := range []Net{{User: true}, {User: true}, {Tap: "a"}, {Tap: "b"}} {
		p, err := n.plan(len(seen))
		require.NoError(t, err)
		again, err := n.plan(len(seen))
		require.NoError(t, err)
		assert.Equal(t, p.device.MAC, again.device.MAC)
		assert.EqualValues(t, 2, p.device.MAC[0]&3, "local, and one guest's")
		assert.False(t, seen[p.device.MAC.String()])
		seen[p.device.MAC.String()] = true
	}
}

// TestMACsStay: a guest that leases an address or names its interface by its MAC has the same with the
// next version of vole.
func TestMACsStay(t *testing.T) {
	for _, tc := range []struct {
		n     Net
		index int
		want  string
	}{
		{Net{Tap: "tap0"}, 0, "7a:47:ab:c5:f5:b7"},
		{Net{Tap: "tap0", VHost: true}, 1, "46:9a:1a:70:bb:f9"},
		{Net{User: true}, 0, "f6:8b:ea:e6:9e:64"},
		{Net{User: true}, 1, "9e:45:27:4a:f0:e7"},
	} {
		p, err := tc.n.plan(tc.index)
		require.NoError(t, err)
		assert.Equal(t, tc.want, p.device.MAC.String())
	}
}

// TestConnections: every kind of connection opens, shows its type, and leaves nothing behind.
func TestConnections(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().String()
	l.Close()
	m := Machine{
		Nets: []Net{{User: true}}, Publish: []string{port + ":80"},
		Vsock: &Vsock{Path: filepath.Join(dir, "v")}, ConsoleDevice: "virtio",
		Ports: []Port{{"agent", filepath.Join(dir, "p")}},
	}
	c, err := m.Config()
	require.NoError(t, err)
	assert.Contains(t, c.Cmdline, "console=hvc0")
	assert.NotContains(t, c.Cmdline, "ttyS0")
	list, err := m.Devices(ConsoleStreams{}, nil)
	require.NoError(t, err)
	var types []virtio.Type
	for _, d := range list {
		types = append(types, d.Type())
	}
	assert.Equal(t, []virtio.Type{virtio.TypeNet, virtio.TypeVsock, virtio.TypeConsole, virtio.TypeConsole}, types)

	// What the first has, the second can't get: the error names the field, and what was opened is closed.
	for field, change := range map[string]func(*Machine){
		"publish": func(m *Machine) { m.Vsock, m.Ports = nil, nil },
		"vsock":   func(m *Machine) { m.Nets, m.Publish, m.Ports = nil, nil, nil },
		"port":    func(m *Machine) { m.Nets, m.Publish, m.Vsock = nil, nil, nil },
	} {
		second := m
		change(&second)
		_, err := second.Devices(ConsoleStreams{}, nil)
		var bad *FieldError
		require.ErrorAs(t, err, &bad, field)
		assert.Equal(t, field, bad.Field)
		assert.NotContains(t, err.Error(), "\n")
	}
	closeAll(list)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
	list, err = m.Devices(ConsoleStreams{}, nil)
	require.NoError(t, err, "all of it is free again")
	closeAll(list)
}

// TestRefusedBeforeAnything: what is wrong by itself is refused by Config, which opens nothing.
func TestRefusedBeforeAnything(t *testing.T) {
	long := "/" + strings.Repeat("v", maxVsockPath)
	for name, tc := range map[string]struct {
		m           Machine
		field, says string
	}{
		"a path without room for a port": {Machine{Vsock: &Vsock{Path: long}}, "vsock", "97 bytes"},
		"a port's name":                  {Machine{Ports: []Port{{"a b", "p"}}}, "port", "space"},
		"one path for two sockets":       {Machine{Vsock: &Vsock{Path: "p"}, Ports: []Port{{"a", "p"}}}, "port", "p is the path of the vsock, too"},
		"a port that is a directory":     {Machine{Ports: []Port{{"..", "p"}}}, "port", "directory"},
		"any port of the host":           {Machine{Nets: []Net{{User: true}}, Publish: []string{"0:80"}}, "publish", "port 0"},
		"limits with vhost":              {Machine{Nets: []Net{{Tap: "t", VHost: true, RXBPS: "1M"}}}, "net", "vhost"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tc.m.Config()
			var bad *FieldError
			require.ErrorAs(t, err, &bad)
			assert.Equal(t, tc.field, bad.Field)
			assert.ErrorContains(t, err, tc.says)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

// TestNoTap: a tap that is not there is not made without being asked for.
func TestNoTap(t *testing.T) {
	m := Machine{Nets: []Net{{Tap: "volenone0"}}}
	_, err := m.Devices(ConsoleStreams{}, nil)
	var bad *FieldError
	require.ErrorAs(t, err, &bad)
	assert.Equal(t, "net", bad.Field)
	assert.ErrorContains(t, err, "volenone0")
	assert.NotContains(t, err.Error(), "\n")
	t.Log(err)
}

// TestVHostLimits: nobody would keep a limit of a network whose frames the host's kernel
// moves; that is said before anything is opened.
func TestVHostLimits(t *testing.T) {
	for _, words := range []string{"rx-bps=1M", "tx-bps=1M", "rx-pps=100", "tx-pps=100"} {
		n, err := ParseNet("tap=volenone0,vhost," + words)
		require.NoError(t, err)
		_, err = n.plan(0)
		assert.ErrorContains(t, err, "tap=volenone0: a limit can't be had with vhost", words)
		assert.NotContains(t, err.Error(), "\n")
		n.VHost = false
		_, err = n.plan(0)
		assert.NoError(t, err, words)
	}
	n, err := ParseNet("tap=volenone0,vhost,queues=2")
	require.NoError(t, err)
	_, err = n.plan(0)
	require.NoError(t, err)
	m := Machine{Nets: []Net{n}}
	_, err = m.Devices(ConsoleStreams{}, nil)
	var bad *FieldError
	require.ErrorAs(t, err, &bad)
	assert.NotContains(t, err.Error(), "\n")
	t.Log(err)
}
