package usernet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func query(id uint16, name string, kind uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	b = appendName(b, name)
	b = binary.BigEndian.AppendUint16(b, kind)
	return append(b, 0, dnsClassIN)
}

// answered is an answer's code and the data of its records.
func answered(t *testing.T, b []byte, id uint16) (code byte, data []string) {
	t.Helper()
	require.GreaterOrEqual(t, len(b), dnsHead)
	assert.Equal(t, id, binary.BigEndian.Uint16(b))
	assert.NotZero(t, b[2]&0x80)
	q, ok := parseQuery(append([]byte{0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, b[dnsHead:]...))
	require.True(t, ok)
	at := q.end
	for range binary.BigEndian.Uint16(b[6:]) {
		kind, n := binary.BigEndian.Uint16(b[at+2:]), int(binary.BigEndian.Uint16(b[at+10:]))
		v := b[at+12 : at+12+n]
		if kind == dnsTypeA || kind == dnsTypeAAAA {
			a, _ := netip.AddrFromSlice(v)
			data = append(data, a.String())
		} else {
			data = append(data, string(v))
		}
		at += 12 + n
	}
	assert.Equal(t, at, len(b))
	return b[3] & 15, data
}

// dnsServer is a DNS server of the host's, over UDP and TCP at the same port. It
// counts what it is asked.
func dnsServer(t *testing.T, answer func(query []byte, tcp bool) []byte) (netip.AddrPort, *atomic.Int32) {
	t.Helper()
	asked := new(atomic.Int32)
	var u *net.UDPConn
	var l net.Listener
	var at netip.AddrPort
	for range 20 { // a port that is free for both
		var err error
		u, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		require.NoError(t, err)
		at = u.LocalAddr().(*net.UDPAddr).AddrPort()
		if l, err = net.Listen("tcp4", at.String()); err == nil {
			break
		}
		u.Close()
	}
	require.NotNil(t, l)
	done := make(chan struct{}, 2)
	go func() {
		buf := make([]byte, 65536)
		for {
			n, peer, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			asked.Add(1)
			if a := answer(buf[:n], false); a != nil {
				_, _ = u.WriteToUDPAddrPort(a, peer)
			}
		}
		done <- struct{}{}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			if q, err := readMessage(c); err == nil {
				asked.Add(1)
				a := answer(q, true)
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
			}
			c.Close()
		}
		done <- struct{}{}
	}()
	t.Cleanup(func() { u.Close(); l.Close(); <-done; <-done })
	return at, asked
}

func plain(b []byte, _ bool) []byte {
	q, _ := parseQuery(b)
	return answerAddrs(b, q, []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")})
}

func TestDNS(t *testing.T) {
	at, _ := dnsServer(t, plain)
	hosts := write(t, "hosts", `
127.0.0.1	localhost
127.0.1.1	myhost.lan myhost # this one
192.0.2.9	Printer.lan
2001:db8::9	printer.lan
# 192.0.2.10	nobody
::1		myhost
rubbish		line
`)
	for _, tt := range []struct {
		name string
		o    Options
		ask  string
		kind uint16
		code byte
		data []string
	}{
		{"forwarded", Options{}, "example.org", dnsTypeA, 0, []string{"203.0.113.1"}},
		{"forwarded AAAA", Options{}, "example.org", dnsTypeAAAA, 0, []string{"2001:db8::1"}},
		{"the second server", Options{Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), at}}, "example.org", dnsTypeA, 0, []string{"203.0.113.1"}},
		{"no server", Options{Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}}, "example.org", dnsTypeA, dnsServFail, nil},
		{"gateway", Options{Policy: DenyOutside}, "gateway.vole.internal", dnsTypeA, 0, []string{"10.0.2.2"}},
		{"gateway AAAA", Options{Policy: DenyOutside}, "Gateway.VOLE.internal", dnsTypeAAAA, 0, []string{"fd00:766f:6c65::2"}},
		{"guest", Options{Policy: DenyOutside}, "guest.vole.internal", dnsTypeA, 0, []string{"10.0.2.15"}},
		{"guest AAAA", Options{}, "guest.vole.internal", dnsTypeAAAA, 0, nil},
		{"no such name here", Options{}, "other.vole.internal", dnsTypeA, 3, nil},
		{"host name", Options{Hostname: "box", Policy: DenyOutside}, "box", dnsTypeA, 0, []string{"10.0.2.15"}},
		{"a name of the options", Options{Policy: DenyOutside, Hosts: map[string][]netip.Addr{"Db.Test": {netip.MustParseAddr("192.0.2.5")}}}, "db.test", dnsTypeA, 0, []string{"192.0.2.5"}},
		{"reverse", Options{Policy: DenyOutside}, "2.2.0.10.in-addr.arpa", dnsTypePTR, 0, []string{"\x07gateway\x04vole\x08internal\x00"}},
		{"reverse IPv6", Options{Policy: DenyOutside}, "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.5.6.c.6.f.6.6.7.0.0.d.f.ip6.arpa", dnsTypePTR, 0, []string{"\x07gateway\x04vole\x08internal\x00"}},
		{"denied", Options{Policy: DenyOutside}, "example.org", dnsTypeA, dnsRefused, nil},
		{"of /etc/hosts", Options{}, "printer.lan", dnsTypeA, 0, []string{"192.0.2.9"}},
		{"of /etc/hosts, AAAA", Options{}, "printer.lan", dnsTypeAAAA, 0, []string{"2001:db8::9"}},
		{"of /etc/hosts, denied", Options{Policy: DenyOutside}, "printer.lan", dnsTypeA, dnsRefused, nil},
		{"of /etc/hosts, a comment", Options{}, "nobody", dnsTypeA, 0, []string{"203.0.113.1"}},
		{"the host itself, which can't be reached", Options{}, "myhost", dnsTypeA, 0, []string{"203.0.113.1"}},
		{"the host itself", Options{HostLoopback: true}, "myhost", dnsTypeA, 0, []string{"10.0.2.2"}},
		{"the host itself, AAAA", Options{HostLoopback: true}, "myhost", dnsTypeAAAA, 0, []string{"fd00:766f:6c65::2"}},
	} {
		for _, via := range []string{"udp", "tcp", "udp6"} {
			t.Run(tt.name+"/"+via, func(t *testing.T) {
				o := tt.o
				o.HostsFile = hosts
				if o.Servers == nil {
					o.Servers = []netip.AddrPort{at}
				}
				g := startGuest(t, newNetwork(t, o), allOffloads)
				b := query(77, tt.ask, tt.kind)
				var a []byte
				switch via {
				case "tcp":
					c := g.mustDial("10.0.2.3:53")
					defer c.Close()
					_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
					require.NoError(t, err)
					a, err = readMessage(c)
					require.NoError(t, err)
				default:
					to := "10.0.2.3:53"
					if via == "udp6" {
						to = "[fd00:766f:6c65::3]:53"
					}
					c := g.dialUDP(to)
					_, err := c.Write(b)
					require.NoError(t, err)
					buf := make([]byte, 65536)
					n, err := c.Read(buf)
					require.NoError(t, err)
					a = buf[:n]
				}
				code, data := answered(t, a, 77)
				assert.Equal(t, tt.code, code)
				assert.Equal(t, tt.data, data)
			})
		}
	}
}

// An answer that is not to our question is not the guest's business.
func TestDNSTakesNoOthersAnswer(t *testing.T) {
	wrong := func(b []byte, tcp bool) []byte {
		a := plain(b, tcp)
		a[0] ^= 0xff
		return a
	}
	at, asked := dnsServer(t, wrong)
	n := newNetwork(t, Options{Servers: []netip.AddrPort{at}})
	g := startGuest(t, n, allOffloads)
	c := g.mustDial("10.0.2.3:53")
	defer c.Close()
	b := query(1, "example.org", dnsTypeA)
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	require.NoError(t, err)
	a, err := readMessage(c)
	require.NoError(t, err)
	code, _ := answered(t, a, 1)
	assert.Equal(t, byte(dnsServFail), code)
	assert.EqualValues(t, 1, asked.Load())
}

func TestDNSLookupsAreBounded(t *testing.T) {
	hold := make(chan struct{})
	at, asked := dnsServer(t, func(b []byte, tcp bool) []byte { return nil })
	n := newNetwork(t, Options{Servers: []netip.AddrPort{at}, Policy: func(Destination) error { <-hold; return nil }})
	g := startGuest(t, n, allOffloads)
	c := g.dialUDP("10.0.2.3:53")
	for i := range uint16(maxLookups + 10) {
		_, err := c.Write(query(i, "example.org", dnsTypeA))
		require.NoError(t, err)
	}
	assert.Eventually(t, func() bool { return n.Stats().Full == 10 }, patience, time.Millisecond)
	close(hold)
	assert.Eventually(t, func() bool { return asked.Load() == maxLookups }, patience, time.Millisecond)
}

func TestResolvConf(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		servers    []string
		search     []string
	}{
		{"usual", "# by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53 ; second\nsearch a.test b.test.\noptions ndots:2\n",
			[]string{"192.0.2.53:53", "[2001:db8::53]:53"}, []string{"a.test", "b.test"}},
		{"empty", "", []string{"127.0.0.1:53", "[::1]:53"}, nil},
		{"zone", "nameserver fe80::1%eth0", []string{"[fe80::1%eth0]:53"}, nil},
		{"too many", strings.Repeat("nameserver 192.0.2.1\n", 9), []string{"192.0.2.1:53", "192.0.2.1:53", "192.0.2.1:53"}, nil},
		{"rubbish", "nameserver\nnameserver x\nsearch .. -\n", []string{"127.0.0.1:53", "[::1]:53"}, []string{"-"}},
		{"the last of domain and search", "search a.test\ndomain b.test", []string{"127.0.0.1:53", "[::1]:53"}, []string{"b.test"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			servers, search := parseResolvConf(strings.Split(tt.text, "\n"))
			var got []string
			for _, s := range servers {
				got = append(got, s.String())
			}
			assert.Equal(t, tt.servers, got)
			assert.Equal(t, tt.search, search)
		})
	}
}

func TestHostFileIsReadAnew(t *testing.T) {
	path := write(t, "resolv.conf", "search one.test")
	n := newNetwork(t, Options{ResolvConf: path})
	assert.Equal(t, []string{"one.test"}, n.resolver.search())
	require.NoError(t, os.WriteFile(path, []byte("search another.test"), 0o600))
	n.resolver.conf.mu.Lock()
	n.resolver.conf.checked = time.Time{}
	n.resolver.conf.mu.Unlock()
	assert.Equal(t, []string{"another.test"}, n.resolver.search())
	require.NoError(t, os.Remove(path))
	n.resolver.conf.mu.Lock()
	n.resolver.conf.checked = time.Time{}
	n.resolver.conf.mu.Unlock()
	assert.Empty(t, n.resolver.search())
}

func FuzzDNS(f *testing.F) {
	f.Add(query(1, "gateway.vole.internal", dnsTypeA))
	f.Add(query(1, "2.2.0.10.in-addr.arpa", dnsTypePTR))
	f.Add(query(1, "example.org", dnsTypeAny))
	n := newNetwork(f, Options{HostLoopback: true, HostsFile: write(f, "hosts", "192.0.2.1 example.org\n127.0.0.1 h\n")})
	f.Fuzz(func(t *testing.T, b []byte) {
		q, ok := parseQuery(b)
		if !ok {
			return
		}
		for _, a := range [][]byte{n.resolver.local(b, q), n.resolver.fromHosts(b, q), answerTo(b, q, dnsServFail)} {
			if a != nil && !matches(a, b, q) {
				t.Errorf("%x does not answer %x", a, b)
			}
		}
	})
}
