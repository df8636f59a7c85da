package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxServers = 3 // as in resolv.conf(5)
	maxSearch  = 6

	// maxLookups is how many questions of the guest are under way at a time; one
	// more is not answered, and the guest asks again.
	maxLookups = 128
	// Each server has serverTimeout for an answer, all together lookupTimeout.
	serverTimeout = 3 * time.Second
	lookupTimeout = 10 * time.Second
	// dnsIdle ends a TCP connection on which nothing is asked.
	dnsIdle = 30 * time.Second

	maxDNSMessage = 65535
)

// resolver answers the guest's questions by the host's means.
type resolver struct {
	n     *Network
	conf  hostFile
	hosts hostFile

	mu      sync.Mutex
	servers []netip.AddrPort        // under mu
	domains []string                // under mu
	named   map[string][]netip.Addr // under mu: /etc/hosts
	own     map[string][]netip.Addr
}

func newResolver(n *Network) *resolver {
	r := &resolver{n: n, own: make(map[string][]netip.Addr)}
	r.conf = hostFile{path: n.o.ResolvConf, parse: func(lines []string) {
		servers, domains := parseResolvConf(lines)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.servers, r.domains = servers, domains
	}}
	r.hosts = hostFile{path: n.o.HostsFile, parse: func(lines []string) {
		named := parseHosts(lines)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.named = named
	}}
	gateway, guest := []netip.Addr{n.gateway4}, []netip.Addr{n.guest4}
	if n.v6 {
		gateway = append(gateway, n.gateway6)
	}
	r.own[gatewayName+localDomain] = gateway
	r.own[guestName+localDomain] = guest
	if n.o.Hostname != "" {
		r.own[strings.ToLower(n.o.Hostname)] = guest
	}
	for name, addrs := range n.o.Hosts {
		name, unmapped := strings.ToLower(name), []netip.Addr(nil)
		for _, a := range addrs {
			unmapped = append(unmapped, a.Unmap())
		}
		r.own[name] = unmapped
	}
	return r
}

// search is the host's search domains.
func (r *resolver) search() []string {
	r.conf.refresh()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.domains
}

func (r *resolver) upstream() []netip.AddrPort {
	if len(r.n.o.Servers) > 0 {
		return r.n.o.Servers
	}
	r.conf.refresh()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.servers
}

// local answers what the network knows by itself; nil leaves the question to
// others.
func (r *resolver) local(query []byte, q question) []byte {
	if q.class != dnsClassIN {
		return nil
	}
	if addrs, ok := r.own[q.name]; ok {
		return answerAddrs(query, q, addrs)
	}
	if strings.HasSuffix(q.name, localDomain) {
		return answerTo(query, q, 3) // no such name, here or anywhere
	}
	if q.kind == dnsTypePTR {
		a, ok := reverseName(q.name)
		if !ok || !r.n.inside(a) {
			return nil
		}
		switch {
		case r.n.gateway(a):
			return answerName(query, q, gatewayName+localDomain)
		case a == r.n.guest4:
			return answerName(query, q, guestName+localDomain)
		}
		return answerTo(query, q, 3)
	}
	return nil
}

// fromHosts answers names of the host's /etc/hosts, which the policy has let
// through. The guest's own localhost is none of them.
func (r *resolver) fromHosts(query []byte, q question) []byte {
	if q.class != dnsClassIN || q.kind != dnsTypeA && q.kind != dnsTypeAAAA || below(q.name, "localhost") {
		return nil
	}
	r.hosts.refresh()
	r.mu.Lock()
	listed, ok := r.named[q.name]
	r.mu.Unlock()
	if !ok {
		return nil
	}
	var addrs []netip.Addr
	for _, a := range listed {
		if a.IsLoopback() {
			if !r.n.o.HostLoopback || a.Is6() && !r.n.v6 {
				continue
			}
			if a = r.n.gateway4; q.kind == dnsTypeAAAA && r.n.v6 {
				a = r.n.gateway6
			}
		}
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	return answerAddrs(query, q, addrs)
}

// answer is what the guest gets for its query, over the protocol that it came
// by; nil for no answer. It may keep query until it returns.
func (s *session) answer(query []byte, tcp bool) []byte {
	r := s.n.resolver
	q, ok := parseQuery(query)
	if !ok {
		return nil
	}
	if a := r.local(query, q); a != nil {
		return a
	}
	if err := s.ask(Destination{Protocol: DNS, Name: q.name}); err != nil {
		return answerTo(query, q, dnsRefused)
	}
	if a := r.fromHosts(query, q); a != nil {
		return a
	}
	if !s.n.takeSocket(DNS) {
		return answerTo(query, q, dnsServFail)
	}
	defer giveSocket()
	ctx, cancel := context.WithTimeout(s.ctx, lookupTimeout)
	defer cancel()
	for _, server := range r.upstream() {
		var a []byte
		var err error
		if tcp {
			a, err = exchangeTCP(ctx, server, query, q)
		} else {
			a, err = exchangeUDP(ctx, server, query, q)
		}
		if err == nil {
			return a
		}
		s.n.o.Logger.Debug("usernet: DNS", "name", s.n.o.Name, "server", server.String(), "error", err)
		if ctx.Err() != nil {
			break
		}
	}
	s.n.stats.failed.Add(1)
	return answerTo(query, q, dnsServFail)
}

var errOddAnswer = errors.New("an answer to another question")

// matches checks that an answer belongs to a query. The identifier is one of
// ours and the port of the socket random: together they keep others out.
func matches(a, query []byte, q question) bool {
	if len(a) < dnsHead || a[0] != query[0] || a[1] != query[1] || a[2]&0x80 == 0 {
		return false
	}
	if binary.BigEndian.Uint16(a[4:]) == 0 { // some servers leave the question out of an error
		return a[3]&15 != 0
	}
	if len(a) < q.end {
		return false
	}
	for i := dnsHead; i < q.end; i++ { // letters may have changed their case
		x, y := a[i], query[i]
		if x != y && (x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z') {
			return false
		}
	}
	return true
}

// disguise is a query under a random identifier.
func disguise(query []byte) []byte {
	c := slices.Clone(query)
	binary.BigEndian.PutUint16(c, uint16(rand.Uint32()))
	return c
}

func exchangeUDP(ctx context.Context, server netip.AddrPort, query []byte, q question) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ours := disguise(query)
	if _, err := c.Write(ours); err != nil {
		return nil, err
	}
	buf := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buf)
	for {
		n, err := c.Read(buf[:])
		if err != nil {
			return nil, err
		}
		if matches(buf[:n], ours, q) {
			a := slices.Clone(buf[:n])
			copy(a, query[:2])
			return a, nil
		}
	}
}

func exchangeTCP(ctx context.Context, server netip.AddrPort, query []byte, q question) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	ours := disguise(query)
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(ours))), ours...)); err != nil {
		return nil, err
	}
	a, err := readMessage(c)
	if err != nil {
		return nil, err
	}
	if !matches(a, ours, q) {
		return nil, errOddAnswer
	}
	copy(a, query[:2])
	return a, nil
}

// readMessage reads one message of DNS over TCP (RFC 1035, 4.2.2).
func readMessage(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

// lookupUDP answers a query by UDP. It does not wait.
func (s *session) lookupUDP(k flowKey, query []byte) {
	select {
	case s.lookups <- struct{}{}:
	default:
		s.n.stats.full.Add(1)
		return
	}
	query = slices.Clone(query)
	if !s.begin(func() {
		defer func() { <-s.lookups }()
		a := s.answer(query, false)
		if a == nil {
			return
		}
		f := flow{t: &s.udp, key: k}
		var err error
		if f.route, err = s.routeTo(k); err == nil {
			f.reply(a)
			f.end()
		}
	}) {
		<-s.lookups
	}
}

// serveDNS answers queries by TCP, one after the other.
func (s *session) serveDNS(c *guestConn) {
	defer c.Close()
	stop := context.AfterFunc(s.ctx, func() { c.p.ep.Abort() })
	defer stop()
	for {
		_ = c.SetDeadline(time.Now().Add(dnsIdle))
		query, err := readMessage(c)
		if err != nil {
			return
		}
		a := s.answer(query, true)
		if a == nil || len(a) > maxDNSMessage {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
			return
		}
	}
}
