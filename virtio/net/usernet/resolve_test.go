package usernet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// advertised says that the guest has an address, as link6 has asked.
func advertised(a netip.Addr) []byte {
	body := append([]byte{ndNeighbourAdvert, 0, 0, 0, 0x60, 0, 0, 0}, a.AsSlice()...)
	body = append(append(body, 2, 1), testMAC[:]...)
	return icmp6(a.String(), "fe80::2", 255, body...)
}

// answerQuestion expects that f asks for an address, and answers it.
func (d *driver) answerQuestion(f []byte, a netip.Addr) {
	d.t.Helper()
	assert.Equal(d.t, gatewayMAC[:], f[6:12])
	if a.Is4() {
		assert.Equal(d.t, broadcastMAC[:], f[:6])
		require.Equal(d.t, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, f[12:22], "an ARP request")
		assert.Equal(d.t, append(gatewayMAC[:], 10, 0, 2, 2), f[22:32])
		assert.Equal(d.t, append([]byte{0, 0, 0, 0, 0, 0}, a.AsSlice()...), f[32:42])
		d.send(arpReply(a))
		return
	}
	b := a.As16()
	assert.Equal(d.t, []byte{0x33, 0x33, 0xff, b[13], b[14], b[15]}, f[:6])
	require.True(d.t, is6(f))
	assert.Equal(d.t, netip.MustParseAddr("fe80::2").AsSlice(), f[22:38])
	assert.Equal(d.t, []byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, b[13], b[14], b[15]}, f[38:54])
	m := checkICMPv6(d.t, f)
	require.Equal(d.t, byte(ndNeighbourSolicit), m[0])
	assert.Equal(d.t, a.AsSlice(), m[8:24])
	assert.Equal(d.t, append([]byte{1, 1}, gatewayMAC[:]...), m[24:32])
	d.send(advertised(a))
}

// A guest that has said nothing yet is asked who it is, and gets the first packet that is
// for it then: it is not lost, whether that was a connection or a datagram.
func TestAGuestThatHasSaidNothingIsAskedWhoItIs(t *testing.T) {
	local := netip.MustParseAddr("fe80::99")
	dial := func(network string, a netip.Addr) func(*testing.T, *Network) {
		return func(t *testing.T, n *Network) {
			ctx, cancel := context.WithCancel(t.Context())
			var work sync.WaitGroup
			work.Go(func() {
				c, err := n.Dial(ctx, network, netip.AddrPortFrom(a, 80).String())
				if err == nil {
					_, _ = c.Write([]byte("hello"))
					c.Close()
				}
			})
			t.Cleanup(func() { cancel(); work.Wait() })
		}
	}
	published := func(p Protocol) func(*testing.T, *Network) {
		return func(t *testing.T, n *Network) {
			require.NoError(t, n.Publish(Rule{Protocol: p, GuestPort: 80}))
			r := n.Published()[0]
			c, err := net.Dial(map[Protocol]string{TCP: "tcp", UDP: "udp"}[p], netip.AddrPortFrom(r.Addr, r.Port).String())
			require.NoError(t, err)
			t.Cleanup(func() { c.Close() })
			_, err = c.Write([]byte("hello"))
			require.NoError(t, err)
		}
	}
	guest4 := netip.MustParseAddr("10.0.2.15")
	probe := func(d *driver) { d.send(icmp6("::", "ff02::1:ff00:ff", 255, solicit(guestIP6.String())...)) }
	for _, tt := range []struct {
		name   string
		guest  netip.Addr
		before func(*driver)
		reach  func(*testing.T, *Network)
		proto  byte
	}{
		{"Dial over IPv4", guest4, nil, dial("tcp", guest4), protoTCP},
		{"Dial over IPv6", guestIP6, nil, dial("tcp", guestIP6), protoTCP},
		{"Dial to a link-local address", local, nil, dial("tcp", local), protoTCP},
		{"Dial over IPv4 after a probe for a duplicate", guest4, probe, dial("tcp", guest4), protoTCP},
		{"Dial over IPv6 after a probe for a duplicate", guestIP6, probe, dial("tcp", guestIP6), protoTCP},
		{"Dial by UDP over IPv4", guest4, nil, dial("udp", guest4), protoUDP},
		{"Dial by UDP over IPv6", guestIP6, nil, dial("udp", guestIP6), protoUDP},
		{"a published port", guest4, nil, published(TCP), protoTCP},
		{"a published port after a probe for a duplicate", guest4, probe, published(TCP), protoTCP},
		{"a published port of UDP", guest4, nil, published(UDP), protoUDP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, Options{})
			d := startDriver(t, n, 0)
			if tt.before != nil {
				tt.before(d)
			}
			tt.reach(t, n)
			question := func(f []byte) bool {
				return binary.BigEndian.Uint16(f[12:]) == etherARP || is6(f) && f[20] == protoICMPv6
			}
			d.answerQuestion(d.next(func([]byte) bool { return true }), tt.guest)
			f := d.next(func(f []byte) bool { return !question(f) }) // it is asked until it has answered
			assert.Equal(t, testMAC[:], f[:6])
			if tt.guest.Is4() {
				assert.Equal(t, tt.proto, f[23])
				assert.Equal(t, tt.guest.AsSlice(), f[30:34])
			} else {
				assert.Equal(t, tt.proto, f[20])
				assert.Equal(t, tt.guest.AsSlice(), f[38:54])
			}
		})
	}
}

// A guest that is not there yet is asked again, and the first segment is there when it is.
func TestAGuestIsAskedUntilItAnswers(t *testing.T) {
	n := newNetwork(t, Options{})
	d := startDriver(t, n, 0)
	done := make(chan error, 1)
	go func() {
		_, err := n.Dial(t.Context(), "tcp", "guest:80")
		done <- err
	}()
	for range 3 {
		f := d.next(func([]byte) bool { return true })
		require.Equal(t, uint16(etherARP), binary.BigEndian.Uint16(f[12:]))
	}
	assert.NotZero(t, n.current.Load().unresolved.n.Load(), "the SYN")
	d.answerQuestion(d.next(func([]byte) bool { return true }), n.guest4)
	f := d.next(func(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) != etherARP })
	assert.Equal(t, byte(protoTCP), f[23])
	n.Stop()
	assert.ErrorIs(t, <-done, ErrNoGuest)
}

// Who has the guest's address can be anybody on its side of the cable, but with
// Options.MAC only the one.
func TestAnotherStationsAnswerIsNotTaken(t *testing.T) {
	n := newNetwork(t, Options{MAC: testMAC[:]})
	d := startDriver(t, n, 0)
	c, err := n.Dial(t.Context(), "udp", "guest:80")
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	f := arpReply(n.guest4)
	f[11]++
	f[27]++
	d.send(f)
	assert.EqualValues(t, 1, n.Stats().FromGuestOdd)
	assert.EqualValues(t, 1, n.current.Load().unresolved.n.Load())
	d.send(arpReply(n.guest4))
	assert.Equal(t, testMAC[:], d.next(func(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) == etherIPv4 })[:6])
}

// What waits for a guest that never answers is bounded, in packets and bytes; so is for
// how long, and the oldest go first. The guest's last seen hardware address is tried then.
func TestWhatWaitsForTheGuestIsBounded(t *testing.T) {
	for _, size := range []int{1, 1000, 60000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			n := newNetwork(t, Options{})
			require.NoError(t, n.Start(0))
			defer n.Stop()
			s := n.current.Load()
			u := &s.unresolved
			f, _ := s.udp.add(flowKey{UDP, netip.AddrPortFrom(n.guest4, 80), netip.AddrPortFrom(n.gateway4, 1000)})
			const all = maxHeld + 10
			for range all {
				f.reply(make([]byte, size))
			}
			u.mu.Lock()
			held := len(u.held)
			assert.LessOrEqual(t, held, maxHeld)
			assert.True(t, u.bytes <= maxHeldBytes || held == 1, "%d bytes", u.bytes)
			assert.EqualValues(t, held, u.n.Load())
			u.mu.Unlock()
			assert.EqualValues(t, all-held, n.Stats().ToGuestFull)

			age := func() {
				u.mu.Lock()
				for i := range u.held {
					u.held[i].since = u.held[i].since.Add(-holdTime)
				}
				u.mu.Unlock()
				u.tick()
			}
			age()
			assert.Zero(t, u.n.Load())
			assert.Zero(t, u.bytes)
			assert.EqualValues(t, all, n.Stats().ToGuestFull)

			f.reply(make([]byte, size))
			require.EqualValues(t, 1, u.n.Load())
			s.neighbours.seen(testMAC)
			age()
			assert.Zero(t, u.n.Load())
			assert.EqualValues(t, all, n.Stats().ToGuestFull)
			found := false
			for pkt := s.egress[0].take(); pkt != nil; pkt = s.egress[0].take() {
				if h := pkt.LinkHeader().Slice(); len(h) > 0 {
					assert.Equal(t, testMAC[:], h[:6])
					found = true
				}
				pkt.DecRef()
			}
			assert.True(t, found)
		})
	}
}

// A program's datagrams do not wait for the guest beyond what the program sends.
func TestDatagramsForASilentGuestDoNotHoldUpWhoSends(t *testing.T) {
	n := newNetwork(t, Options{})
	startDriver(t, n, 0)
	c, err := n.Dial(t.Context(), "udp", "guest:80")
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(holdTime/2)))
	for range 100 {
		_, err := c.Write(make([]byte, 1000))
		require.NoError(t, err)
	}
}

// A guest that takes no frames is not asked without end.
func TestAGuestThatTakesNothingIsNotAskedWithoutEnd(t *testing.T) {
	n := newNetwork(t, Options{})
	require.NoError(t, n.Start(0))
	defer n.Stop()
	s := n.current.Load()
	c, err := n.Dial(t.Context(), "udp", "guest:80")
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	for range 10 * maxUnasked {
		s.unresolved.tick()
	}
	assert.Equal(t, maxUnasked, s.egress[0].waiting())
}

// A guest whose card takes what is for it alone is reached though it only answers.
func TestConnectionsToASilentGuest(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			n := newNetwork(t, Options{})
			g := startGuest(t, n, allOffloads)
			echoes(t, g.listen(n.guest4, 80))
			echoes(t, g.listen(guestIP6, 80))
			c, err := n.Dial(t.Context(), network, "guest:80")
			require.NoError(t, err)
			defer c.Close()
			talk(t, c, "hello")
		})
	}
	t.Run("published", func(t *testing.T) {
		n := newNetwork(t, Options{})
		require.NoError(t, n.Publish(Rule{GuestPort: 80}))
		g := startGuest(t, n, allOffloads)
		echoes(t, g.listen(n.guest4, 80))
		r := n.Published()[0]
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(r.Addr, r.Port).String(), time.Minute)
		require.NoError(t, err)
		defer c.Close()
		talk(t, c, "hello")
	})
}
