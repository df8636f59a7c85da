package spec

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/net/usernet"
)

// Net is a network device in plain data: what stands behind --net, and in a JSON file. It has either
// Tap or User.
type Net struct {
	// Tap is the name of a tap device of the host's. Create makes it if it is not there, for as long
	// as the machine lives.
	Tap    string `json:"tap,omitempty"`
	Create bool   `json:"create,omitempty"`
	// VHost lets the host's kernel move the frames (/dev/vhost-net). It keeps no limits.
	VHost bool `json:"vhost,omitempty"`
	// Queues is the number of queue pairs of a tap device, which must have been made with
	// multi_queue for more than one; 1 is the default.
	Queues Text `json:"queues,omitempty"`

	// User is a network within the process, which needs no rights on the host.
	User bool `json:"user,omitempty"`
	// Restrict keeps the guest of a user network from everything outside of it.
	Restrict bool `json:"restrict,omitempty"`
	// HostLoopback leads the gateway's address of a user network to the host's loopback.
	HostLoopback bool `json:"host-loopback,omitempty"`

	// MAC is the guest's hardware address; without it it follows from the name of the tap, or the
	// number of the device.
	MAC string `json:"mac,omitempty"`
	// MTU is the largest IP packet, in bytes.
	MTU Text `json:"mtu,omitempty"`

	// RX and TX bound what the guest receives and sends: bytes (BPS) and frames (PPS) a second, and
	// what an idle device may do at once.
	RXBPS      Text `json:"rx-bps,omitempty"`
	RXBPSBurst Text `json:"rx-bps-burst,omitempty"`
	RXPPS      Text `json:"rx-pps,omitempty"`
	RXPPSBurst Text `json:"rx-pps-burst,omitempty"`
	TXBPS      Text `json:"tx-bps,omitempty"`
	TXBPSBurst Text `json:"tx-bps-burst,omitempty"`
	TXPPS      Text `json:"tx-pps,omitempty"`
	TXPPSBurst Text `json:"tx-pps-burst,omitempty"`
}

var netOptions = []option[Net]{
	{"create", "on", func(n *Net, v string) (err error) { n.Create, err = onOff(v); return err }},
	{"vhost", "on", func(n *Net, v string) (err error) { n.VHost, err = onOff(v); return err }},
	{"queues", "", func(n *Net, v string) error { n.Queues = Text(v); return nil }},
	{"restrict", "on", func(n *Net, v string) (err error) { n.Restrict, err = onOff(v); return err }},
	{"host-loopback", "on", func(n *Net, v string) (err error) { n.HostLoopback, err = onOff(v); return err }},
	{"mac", "", func(n *Net, v string) error { n.MAC = v; return nil }},
	{"mtu", "", func(n *Net, v string) error { n.MTU = Text(v); return nil }},
	{"rx-bps", "", func(n *Net, v string) error { n.RXBPS = Text(v); return nil }},
	{"rx-bps-burst", "", func(n *Net, v string) error { n.RXBPSBurst = Text(v); return nil }},
	{"rx-pps", "", func(n *Net, v string) error { n.RXPPS = Text(v); return nil }},
	{"rx-pps-burst", "", func(n *Net, v string) error { n.RXPPSBurst = Text(v); return nil }},
	{"tx-bps", "", func(n *Net, v string) error { n.TXBPS = Text(v); return nil }},
	{"tx-bps-burst", "", func(n *Net, v string) error { n.TXBPSBurst = Text(v); return nil }},
	{"tx-pps", "", func(n *Net, v string) error { n.TXPPS = Text(v); return nil }},
	{"tx-pps-burst", "", func(n *Net, v string) error { n.TXPPSBurst = Text(v); return nil }},
}

// NetUsage is the form that ParseNet reads, for help texts.
const NetUsage = "tap=NAME[,create][,queues=N][,vhost] or user[,restrict][,host-loopback], and [,mac=M][,mtu=N][,rx-bps=SIZE][,rx-pps=N][,tx-bps=SIZE][,tx-pps=N] (and -burst of each rate)"

// netUser is the word for a network within the process.
const netUser = "user"

// ParseNet reads a network device in the form of [NetUsage].
func ParseNet(s string) (Net, error) {
	words := splitCommas(s)
	var n Net
	switch name, isTap := strings.CutPrefix(words[0], "tap="); {
	case words[0] == netUser:
		n.User = true
	case isTap && name != "":
		n.Tap = name
	default:
		return Net{}, fmt.Errorf("%q begins neither with tap=NAME nor with %s: want %s", s, netUser, NetUsage)
	}
	if err := parseOptions(s, words[1:], netOptions, &n, "a network: want "+NetUsage); err != nil {
		return Net{}, err
	}
	return n, nil
}

// title says in errors which network is meant.
func (n Net) title() string {
	if n.Tap != "" {
		return "tap=" + n.Tap
	}
	return netUser
}

// netPlan is a network device whose every value has been checked.
type netPlan struct {
	device virtionet.Options
	pairs  int
}

// plan checks every value. index is the device's number among the networks, from 0.
func (n Net) plan(index int) (p netPlan, err error) {
	fail := func(format string, args ...any) (netPlan, error) {
		return netPlan{}, fmt.Errorf("%s: %w", n.title(), fmt.Errorf(format, args...))
	}
	p.pairs = 1
	switch {
	case n.Tap == "" && !n.User:
		return p, errors.New("it names neither a tap nor is it of kind user")
	case n.Tap != "" && n.User:
		return fail("a network is either on a tap or of kind user")
	case n.User && (n.Create || n.VHost || n.Queues != ""):
		return fail("create, vhost and queues are for a tap")
	case n.Tap != "" && (n.Restrict || n.HostLoopback):
		return fail("restrict and host-loopback are for a network of kind user")
	}
	if n.Queues != "" {
		q, ok := digits(string(n.Queues))
		if !ok || q < 1 || q > virtionet.MaxPairs {
			return fail("queues: %q is not a whole number between 1 and %d", n.Queues, virtionet.MaxPairs)
		}
		p.pairs = int(q)
	}
	p.device = virtionet.Options{Name: n.title(), Pairs: p.pairs}
	if n.MAC != "" {
		mac, err := net.ParseMAC(n.MAC)
		switch {
		case err != nil || len(mac) != 6:
			return fail("mac: %q is not a hardware address: want six bytes, as 52:54:00:12:34:56", n.MAC)
		case mac[0]&1 != 0:
			return fail("mac: %q is a multicast address: the lowest bit of the first byte must be 0", n.MAC)
		case mac.String() == "00:00:00:00:00:00":
			return fail("mac: %q is nobody's address", n.MAC)
		}
		p.device.MAC = mac
	} else {
		p.device.MAC = virtionet.StableMAC(fmt.Sprintf("%s/%d", n.title(), index))
	}
	if n.MTU != "" {
		low, high := uint64(virtionet.MinMTU), uint64(virtionet.MaxMTU)
		if n.User {
			low, high = usernet.MinMTU, usernet.MaxMTU
		}
		mtu, ok := digits(string(n.MTU))
		if !ok || mtu < low || mtu > high {
			return fail("mtu: %q is not a whole number between %d and %d", n.MTU, low, high)
		}
		p.device.MTU = int(mtu)
	}
	rx, tx := &p.device.RxLimits, &p.device.TxLimits
	if err := parseRates(rx, []rate{
		{"rx-bps", n.RXBPS, &rx.Bytes.PerSecond}, {"rx-bps-burst", n.RXBPSBurst, &rx.Bytes.Burst},
		{"rx-pps", n.RXPPS, &rx.Ops.PerSecond}, {"rx-pps-burst", n.RXPPSBurst, &rx.Ops.Burst},
	}); err != nil {
		return fail("%w", err)
	}
	if err := parseRates(tx, []rate{
		{"tx-bps", n.TXBPS, &tx.Bytes.PerSecond}, {"tx-bps-burst", n.TXBPSBurst, &tx.Bytes.Burst},
		{"tx-pps", n.TXPPS, &tx.Ops.PerSecond}, {"tx-pps-burst", n.TXPPSBurst, &tx.Ops.Burst},
	}); err != nil {
		return fail("%w", err)
	}
	if n.VHost && (*rx != virtio.Limits{} || *tx != virtio.Limits{}) {
		return fail("a limit can't be had with vhost: the host's kernel moves the frames, and none of them waits: leave out one of the two")
	}
	return p, nil
}

// device opens the host's end and makes the device. rules are the ports that lead into it.
func (n Net) device(index int, rules []usernet.Rule, log *slog.Logger) (*virtionet.Device, error) {
	p, err := n.plan(index)
	if err != nil {
		return nil, err
	}
	p.device.Logger = log
	backend, err := n.backend(&p, rules, log)
	var other *FieldError
	switch {
	case errors.As(err, &other):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%s: %w", n.title(), err)
	}
	if most := backend.MTU(); n.Tap != "" && most > 0 && p.device.MTU > most {
		_ = backend.Close()
		return nil, fmt.Errorf("%s: mtu: the tap carries packets of %d bytes at most: sudo ip link set %s mtu %d", n.title(), most, n.Tap, p.device.MTU)
	}
	d, err := virtionet.New(backend, p.device)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.title(), err) // it has closed the backend
	}
	return d, nil
}

func (n Net) backend(p *netPlan, rules []usernet.Rule, log *slog.Logger) (virtionet.Backend, error) {
	if n.Tap != "" {
		o := virtionet.TapOptions{Name: n.Tap, Pairs: p.pairs, Create: n.Create, MTU: p.device.MTU}
		var (
			tap interface {
				virtionet.Backend
				IsUp() bool
			}
			err error
		)
		if n.VHost {
			tap, err = virtionet.OpenVHost(o)
		} else {
			tap, err = virtionet.OpenTap(o)
		}
		if err != nil {
			return nil, err
		}
		if !tap.IsUp() && log != nil {
			log.Warn("the tap is down on this host, so that no frame passes: sudo ip link set " + n.Tap + " up")
		}
		return tap, nil
	}
	o := usernet.Options{Logger: log, MTU: p.device.MTU, HostLoopback: n.HostLoopback}
	if n.Restrict {
		o.Policy = usernet.DenyOutside
	}
	network, err := usernet.New(o)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		if err := network.Publish(r); err != nil {
			_ = network.Close()
			return nil, &FieldError{"publish", err}
		}
	}
	return userNet{network, n, rules}, nil
}

// userNet is a user network that says in a report how it was described.
type userNet struct {
	*usernet.Network
	net   Net
	rules []usernet.Rule
}

var _ virtio.Describing = userNet{}

// Describe implements virtio.Describing.
func (u userNet) Describe() map[string]any {
	m := map[string]any{"user": true, "restrict": u.net.Restrict, "host-loopback": u.net.HostLoopback}
	var publish []string
	for _, r := range u.rules {
		publish = append(publish, r.String())
	}
	if publish != nil {
		m["publish"] = publish
	}
	return m
}

// publishRules reads the rules for published ports, which lead into the first user network.
func (m Machine) publishRules() (rules []usernet.Rule, to int, err error) {
	if len(m.Publish) == 0 {
		return nil, -1, nil
	}
	to = slices.IndexFunc(m.Nets, func(n Net) bool { return n.User })
	if to < 0 {
		return nil, to, errors.New("there is no network of kind user for it to lead into: add --net user")
	}
	for _, text := range m.Publish {
		r, err := usernet.ParsePublish(text)
		if err != nil {
			return nil, to, err
		}
		if r.Port == 0 {
			return nil, to, fmt.Errorf("%q: port 0 of this host would be any that is free, and nobody would know which", text)
		}
		rules = append(rules, r)
	}
	return rules, to, nil
}
