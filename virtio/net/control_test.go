package net_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestControl: a command that is not as the specification has it, or was not
// negotiated, fails and changes nothing (VIRTIO 1.2, 5.1.6.5).
func TestControl(t *testing.T) {
	ctrl := virtionet.FeatureCtrlVQ | virtio.FeatureIndirectDesc
	table := func(n uint32, rest ...byte) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, n), rest...)
	}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, tc := range []struct {
			name           string
			want           uint64
			class, command byte
			data           []byte
			ok             bool
		}{
			{"promiscuous off", 0, 0, 0, []byte{0}, true},
			{"promiscuous on", 0, 0, 0, []byte{1}, true},
			{"promiscuous maybe", 0, 0, 0, []byte{2}, false},
			{"promiscuous without a word", 0, 0, 0, nil, false},
			{"promiscuous with more", 0, 0, 0, []byte{0, 0}, false},
			{"promiscuous, not negotiated", ctrl, 0, 0, []byte{0}, false},
			{"all unicast, not offered", 0, 0, 2, []byte{1}, false},
			{"no broadcast, not offered", 0, 0, 5, []byte{1}, false},
			{"address", 0, 1, 1, []byte{2, 3, 4, 5, 6, 7}, true},
			{"address of a group", 0, 1, 1, []byte{3, 3, 4, 5, 6, 7}, false},
			{"address of nobody", 0, 1, 1, make([]byte, 6), false},
			{"half an address", 0, 1, 1, []byte{2, 3, 4}, false},
			{"address, not negotiated", ctrl | virtionet.FeatureCtrlRx, 1, 1, []byte{2, 3, 4, 5, 6, 7}, false},
			{"empty table", 0, 1, 0, table(0, table(0)...), true},
			{"half a table", 0, 1, 0, table(0), false},
			{"table with less than it says", 0, 1, 0, table(2, make([]byte, 11)...), false},
			{"table with more than it says", 0, 1, 0, table(0, table(0, 1)...), false},
			{"table of 4 billion", 0, 1, 0, table(0xffff_ffff, make([]byte, 100)...), false},
			{"table whose size wraps", 0, 1, 0, table(0x2aaa_aaab, make([]byte, 100)...), false},
			{"large table", 0, 1, 0, table(1000, append(make([]byte, 6000), table(0)...)...), true},
			{"announcement", 0, 3, 0, nil, true},
			{"announcement, not negotiated", ctrl, 3, 0, nil, false},
			{"pairs, not offered", 0, 4, 0, []byte{1, 0}, false},
			{"unknown command", 0, 1, 9, []byte{0}, false},
			{"unknown class", 0, 200, 0, []byte{0}, false},
			{"VLAN, not offered", 0, 2, 0, []byte{1, 0}, false},
			{"guest offloads, not offered", 0, 5, 0, make([]byte, 8), false},
		} {
			t.Run(tc.name, func(t *testing.T) {
				n := attach(t, open, newFake(), virtionet.Options{}, tc.want)
				before := n.dev.State()
				got := n.command(tc.class, tc.command, tc.data...)
				if tc.ok {
					assert.EqualValues(t, 0, got)
					return
				}
				assert.EqualValues(t, 1, got)
				assert.Equal(t, before, n.dev.State())
			})
		}
	})
}

// TestControlFraming: a command in any buffers; one that can't be answered breaks the
// device until its reset (rule 6).
func TestControlFraming(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		n := attach(t, open, newFake(), virtionet.Options{}, 0)
		q := n.control()
		run := func(ack virtiotest.Buffer, bufs ...virtiotest.Buffer) virtiotest.Used {
			q.AddIndirect(append(bufs, ack)...)
			q.Kick()
			return q.Next()
		}
		ack := n.In(3)
		mac := []byte{1, 1, 2, 3, 4, 5, 6, 7}
		u := run(ack, n.Out(mac[:1]), n.Out(mac[1:5]), n.Out(mac[5:]))
		assert.EqualValues(t, 1, u.Len)
		assert.Equal(t, []byte{0, 0xaa, 0xaa}, n.Bytes(ack))
		assert.Equal(t, [6]byte(mac[2:]), n.config().MAC)
		ack = n.In(1)
		u = run(ack, n.Out([]byte{1}))
		assert.Equal(t, []byte{1}, n.Bytes(ack))
		assert.EqualValues(t, 1, u.Len)
		// A table of many buffers that are one: its length is bounded.
		one := n.Out(make([]byte, 1<<20))
		ack = n.In(1)
		run(ack, append([]virtiotest.Buffer{n.Out([]byte{1, 0, 0xff, 0xff, 0xff, 1})}, slices.Repeat([]virtiotest.Buffer{one}, 200)...)...)
		assert.Equal(t, []byte{1}, n.Bytes(ack))
		q.AddIndirect(n.Out(mac))
		q.Kick()
		n.NeedsReset()
		assert.Zero(t, q.Next().Len)
		n.Start(0)
		assert.Zero(t, n.command(0, 0, 1))
		assert.Equal(t, [6]byte(guestMAC), n.config().MAC, "a reset brings the first address back")
	})
}

// TestPairs: only the pairs that the driver has set are used, from when the command
// is used on (5.1.6.5.6).
func TestPairs(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		b := newFake().withPairs(4)
		n := attach(t, open, b, virtionet.Options{}, 0)
		require.Len(t, n.Queues, 9)
		assert.EqualValues(t, 4, n.config().MaxPairs)
		set := func(pairs int) byte { return n.command(4, 0, byte(pairs), byte(pairs>>8)) }
		active := func() (a int) {
			b.set(func() { a = b.active })
			return a
		}
		bufs := make([][]virtiotest.Buffer, 4)
		for i := range bufs {
			bufs[i] = n.post(i, slices.Repeat([]int{1526}, 20)...)
			b.put(i, incoming(frame(guestMAC, 60, byte(i))))
		}
		moves := func(pair int, yes bool) {
			t.Helper()
			if !yes {
				quiet(t, n.rx(pair))
				n.send(pair, incoming(frame(guestMAC, 60, 1)))
				return
			}
			_, got := n.got(pair, &bufs[pair])
			require.Equal(t, frame(guestMAC, 60, byte(pair)), got)
			before := len(b.took(pair))
			n.send(pair, incoming(frame(guestMAC, 60, 1)))
			require.Len(t, b.took(pair), before+1)
		}
		moves(0, true)
		moves(1, false)
		moves(3, false)
		counts(n, virtionet.SendDropped{Inactive: 2}, notSent)
		for _, bad := range []int{0, 5, 0x8000, 0xffff} {
			assert.EqualValues(t, 1, set(bad), bad)
		}
		assert.Equal(t, 1, active())
		require.Zero(t, set(4))
		assert.Equal(t, 4, active())
		for i := range 3 {
			moves(i+1, true)
		}
		b.pairsRun = func() { // the backend's queue may end here: nothing uses it
			b.put(3, incoming(frame(guestMAC, 60, 3)))
			quiet(t, n.rx(3))
		}
		require.Zero(t, set(2))
		b.pairsRun = nil
		assert.Equal(t, 2, n.dev.State().(virtionet.State).Pairs)
		for i := range 4 {
			b.put(i, incoming(frame(guestMAC, 60, byte(i))))
		}
		moves(1, true)
		moves(2, false)
		moves(3, false)
		b.set(func() { b.pairsErr = assert.AnError })
		assert.EqualValues(t, 1, set(3))
		moves(2, false)
		b.set(func() { b.pairsErr = nil })
		require.Zero(t, set(4))
		moves(3, true)
		moves(3, true)
		n.Start(0)
		assert.Equal(t, 1, n.dev.State().(virtionet.State).Pairs)
	})
}

// TestPairsNotNegotiated: without MQ there is one pair, and the control queue is the
// third one (5.1.2). A pair whose queues the driver has not set up can't be used.
func TestPairsNotNegotiated(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		b := newFake().withPairs(3)
		n := attach(t, open, b, virtionet.Options{}, virtio.FeatureIndirectDesc|virtionet.FeatureCtrlVQ|virtionet.FeatureCtrlRx)
		assert.Zero(t, n.command(0, 0, 0))
		assert.EqualValues(t, 1, n.command(4, 0, 2, 0))

		n.Negotiate(0)
		for _, q := range []int{0, 1, 2, 6} {
			n.SetUp(q, n.Regs.QueueMax(q))
		}
		n.DriverOK()
		assert.EqualValues(t, 1, n.command(4, 0, 2, 0))
		assert.Zero(t, n.command(4, 0, 1, 0))
		n.send(0, incoming(frame(guestMAC, 60, 1)))
	})
}
