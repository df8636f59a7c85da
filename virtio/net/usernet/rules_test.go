package usernet

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParsePublish(t *testing.T) {
	for s, want := range map[string]string{
		"8080:80":               "127.0.0.1:8080:80",
		"8080:80/tcp":           "127.0.0.1:8080:80",
		"0:80":                  "127.0.0.1:0:80",
		"53:5353/udp":           "127.0.0.1:53:5353/udp",
		"0.0.0.0:8080:80":       "0.0.0.0:8080:80",
		"192.0.2.1:8080:80/udp": "192.0.2.1:8080:80/udp",
		"[::]:8080:80":          "[::]:8080:80",
		"[2001:db8::1]:1:65535": "[2001:db8::1]:1:65535",
	} {
		r, err := ParsePublish(s)
		require.NoError(t, err, s)
		assert.Equal(t, want, r.String())
		again, err := ParsePublish(r.String())
		require.NoError(t, err)
		assert.Equal(t, want, again.String())
	}
	for s, says := range map[string]string{
		"":                  "missing",
		"80":                "missing",
		"80:":               "guest's port",
		":80":               "host's port",
		"80:0":              "guest's port",
		"80:65536":          "guest's port",
		"80:-1":             "guest's port",
		"80:+1":             "guest's port",
		"80: 1":             "guest's port",
		"80:1/sctp":         "neither tcp nor udp",
		"80:1/":             "neither tcp nor udp",
		"localhost:80:80":   "not an IP address",
		"::1:80:80":         "brackets",
		"[::1:80:80":        "not closed",
		"[127.0.0.1]:80:80": "brackets",
		"224.0.0.1:80:80":   "multicast",
		"99999:80":          "host's port",
		":8080:80":          "not an IP address",
		"http:80":           "host's port",
		"80:80/udp/tcp":     "neither",
		"1.2.3.4.5:80:80":   "not an IP address",
		"127.0.0.1::80":     "host's port",
		"8080:80\n":         "guest's port",
	} {
		_, err := ParsePublish(s)
		require.ErrorIs(t, err, ErrRule, s)
		assert.ErrorContains(t, err, says, s)
		assert.NotContains(t, err.Error(), "\n")
	}
}

func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"8080:80", "[::]:1:2/udp", "127.0.0.1:1:2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParsePublish(s)
		if err != nil {
			assert.False(t, strings.ContainsAny(err.Error(), "\n\r"), err.Error())
			return
		}
		again, err := ParsePublish(r.String())
		require.NoError(t, err)
		assert.Equal(t, r.String(), again.String())
	})
}

func TestFilter(t *testing.T) {
	tcp := func(s string) Destination {
		a := netip.MustParseAddrPort(s)
		return Destination{Protocol: TCP, Addr: a.Addr(), Port: a.Port()}
	}
	f := Filter{Rules: []FilterRule{
		{Prefix: netip.MustParsePrefix("192.0.2.66/32")},
		{Allow: true, Prefix: netip.MustParsePrefix("192.0.2.0/24"), FirstPort: 443},
		{Allow: true, Prefix: netip.MustParsePrefix("2001:db8::/32"), FirstPort: 8000, LastPort: 8099, Protocols: []Protocol{UDP}},
		{Allow: true, Protocols: []Protocol{DNS}, Name: "Example.org."},
		{Allow: true, Protocols: []Protocol{ICMP}},
	}}
	for _, tt := range []struct {
		d     Destination
		allow bool
	}{
		{tcp("192.0.2.1:443"), true},
		{tcp("192.0.2.1:80"), false},
		{tcp("192.0.2.66:443"), false},
		{tcp("198.51.100.1:443"), false},
		{tcp("[2001:db8::1]:8050"), false},
		{Destination{Protocol: UDP, Addr: netip.MustParseAddr("2001:db8::1"), Port: 8000}, true},
		{Destination{Protocol: UDP, Addr: netip.MustParseAddr("2001:db8::1"), Port: 8099}, true},
		{Destination{Protocol: UDP, Addr: netip.MustParseAddr("2001:db8::1"), Port: 8100}, false},
		{Destination{Protocol: ICMP, Addr: netip.MustParseAddr("198.51.100.1")}, true},
		{Destination{Protocol: DNS, Name: "example.org"}, true},
		{Destination{Protocol: DNS, Name: "www.example.org"}, true},
		{Destination{Protocol: DNS, Name: "notexample.org"}, false},
	} {
		err := f.Check(tt.d)
		if tt.allow {
			assert.NoError(t, err, tt.d.String())
		} else {
			assert.ErrorIs(t, err, ErrDenied, tt.d.String())
		}
	}
	assert.NoError(t, Filter{Allow: true}.Check(tcp("192.0.2.1:1")))
	assert.NoError(t, AllowAll(tcp("192.0.2.1:1")))
	assert.ErrorIs(t, DenyOutside(tcp("192.0.2.1:1")), ErrDenied)
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"MTU too small":            {MTU: 1279},
		"MTU too large":            {MTU: 65521},
		"flows":                    {MaxTCP: -1},
		"time":                     {UDPIdle: -1},
		"IPv6 for IPv4":            {IPv4: DefaultIPv6},
		"IPv4 too small":           {IPv4: netip.MustParsePrefix("10.0.0.0/28")},
		"IPv4 not masked":          {IPv4: netip.MustParsePrefix("10.0.2.1/24")},
		"IPv4 loopback":            {IPv4: netip.MustParsePrefix("127.0.0.0/8")},
		"IPv6 of another length":   {IPv6: netip.MustParsePrefix("fd00::/48")},
		"IPv6 link-local":          {IPv6: netip.MustParsePrefix("fe80::/64")},
		"a group's address":        {MAC: []byte{1, 2, 3, 4, 5, 6}},
		"an address of five bytes": {MAC: []byte{2, 2, 3, 4, 5}},
		"host name":                {Hostname: "a b"},
		"hosts":                    {Hosts: map[string][]netip.Addr{"": nil}},
	} {
		_, err := New(o)
		assert.Error(t, err, name)
	}
	n, err := New(Options{IPv4: netip.MustParsePrefix("192.168.76.64/27")})
	require.NoError(t, err)
	defer n.Close()
	assert.Equal(t, "192.168.76.66 192.168.76.67 192.168.76.79 192.168.76.95", strings.Join([]string{
		n.gateway4.String(), n.dns4.String(), n.guest4.String(), n.broadcast4.String()}, " "))
	assert.Equal(t, DefaultMTU, n.MTU())
}
