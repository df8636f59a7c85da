package net_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// noMerge are features without mergeable buffers.
const noMerge = virtio.FeatureIndirectDesc | virtio.FeatureEventIdx | virtionet.FeatureGuestCsum | virtionet.FeatureGuestTSO4

// TestReceive: frames in one buffer and in many, which begin anywhere (VIRTIO 1.2,
// 2.7.4 and 5.1.6.4.1; rules 13, 14 and 17).
func TestReceive(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, tc := range []struct {
			name    string
			want    uint64
			gso     bool
			frame   int
			buffers []int
			used    int
		}{
			{"one buffer", 0, false, 1514, []int{1526}, 1},
			{"the shortest", 0, false, 14, []int{1526}, 1},
			{"a buffer to the last byte", 0, false, 100, []int{112, 112}, 1},
			{"one byte more", 0, false, 101, []int{112, 112}, 2},
			{"a header in two buffers", 0, false, 100, []int{12, 100}, 2},
			{"a header in many buffers", 0, false, 60, slices.Repeat([]int{5}, 20), 15},
			{"merged", 0, false, 1514, slices.Repeat([]int{512}, 4), 3},
			{"64 KiB", 0, true, 65535 + 14, slices.Repeat([]int{1536}, 64), 43},
			{"64 KiB in pages", 0, true, 65535 + 14, slices.Repeat([]int{4096}, 20), 17},
			{"not merged", noMerge, false, 1514, []int{1526, 1526}, 1},
			{"not merged, 64 KiB", noMerge, true, 65535 + 14, []int{65562}, 1},
		} {
			t.Run(tc.name, func(t *testing.T) {
				b := newFake()
				n := attach(t, open, b, virtionet.Options{}, tc.want)
				bufs := n.post(0, tc.buffers...)
				// Twice, as the second one finds what the first has left.
				for i := range 1 + (len(tc.buffers)-tc.used)/tc.used {
					in := incoming(frame(guestMAC, tc.frame, byte(i)))
					if tc.gso {
						copy(in, hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}.bytes())
					}
					left := len(bufs)
					b.put(0, in)
					h, got := n.got(0, &bufs)
					assert.EqualValues(t, tc.used, header(h).Buffers)
					assert.Equal(t, tc.used, left-len(bufs))
					assert.Equal(t, in[:10], h[:10])
					require.Equal(t, frame(guestMAC, tc.frame, byte(i)), got)
				}
				for _, rest := range bufs {
					if tc.used > 1 {
						continue // it may have been written to: it is the device's
					}
					assert.NotContains(t, n.Bytes(rest), byte(0x52), "what was not used")
				}
				counts(n, uint64(len(tc.buffers)/tc.used), received)
				counts(n, uint64(len(tc.buffers)/tc.used*tc.frame), receivedBytes)
			})
		}
	})
}

// TestReceiveInOrder: many frames of many sizes, with buffers of any sizes, all come
// and in their order; none is merged that need not be.
func TestReceiveInOrder(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		t.Run("sizes not known", func(t *testing.T) { receiveInOrder(t, open, &measured{fake: newFake()}) })
		t.Run("sizes known", func(t *testing.T) { receiveInOrder(t, open, &measured{fake: newFake(), sized: true}) })
	})
}

func receiveInOrder(t *testing.T, open virtiotest.Opener, b *measured) {
	n := attach(t, open, b.backend(), virtionet.Options{}, 0)
	sizes := []int{60, 1514, 65000, 20000, 14, 64, 3000, 1514, 40000, 60}
	var bufs []virtiotest.Buffer
	in := 0
	for range 6 {
		for _, s := range sizes {
			f := incoming(frame(guestMAC, s, byte(in)))
			if s > 1514 {
				copy(f, hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}.bytes())
			}
			b.put(0, f)
			in++
		}
	}
	for i := range in {
		s := sizes[i%len(sizes)]
		for room := 0; room < s+12; room += 4096 {
			bufs = append(bufs, n.post(0, 4096)...)
		}
		_, got := n.got(0, &bufs)
		require.Equal(t, frame(guestMAC, s, byte(i)), got, "frame %d", i)
	}
	counts(n, uint64(in), received)
	counts(n, virtionet.ReceiveDropped{}, notReceived)
}

// TestReceiveTakesNoMoreBuffersThanAreNeeded: with merged buffers a short frame is given
// one, however large the MTU is, and a long one comes whole all the same. A backend that
// says how long a frame is has it in the driver's buffers at once.
func TestReceiveTakesNoMoreBuffersThanAreNeeded(t *testing.T) {
	const size, all = 1536, 200
	for _, tc := range []struct {
		name string
		m    measured
		mtu  int
		// long is how many buffers the first long frame finds, and after how many frames
		// short ones have one again.
		long, next int
	}{
		{"the size is not known", measured{}, 65520, 1, 43},
		{"the size is not known, MTU 9000", measured{}, 9000, 1, 6},
		{"the size is known", measured{sized: true}, 65520, 0, 1},
		{"the size is known, MTU 1500", measured{sized: true}, 1500, 0, 1},
		{"the size is said too small", measured{sized: true, errs: 1 << 20}, 65520, 1, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.m.fake = newFake()
			tc.m.mtu = tc.mtu
			tc.m.features = virtionet.FeatureGuestCsum // no segments
			n := attach(t, virtiotest.OpenMMIO, tc.m.backend(), virtionet.Options{}, 0)
			bufs := n.post(0, slices.Repeat([]int{size}, all)...)
			need := func(length int) int { return (length + virtionet.HeaderSize + size - 1) / size }
			seed := byte(0)
			take := func(length int) int {
				seed++
				tc.m.put(0, incoming(frame(guestMAC, length, seed)))
				left := len(bufs)
				_, got := n.got(0, &bufs)
				require.Equal(t, frame(guestMAC, length, seed), got)
				assert.Equal(t, need(length), left-len(bufs))
				tc.m.mu.Lock()
				defer tc.m.mu.Unlock()
				return tc.m.buffers[len(tc.m.buffers)-1] - 1 // without the device's own
			}
			for range 3 {
				assert.Equal(t, 1, take(60))
			}
			long := tc.mtu - 100
			want := tc.long
			if want == 0 {
				want = need(long)
			}
			assert.Equal(t, want, take(long))
			assert.Equal(t, tc.next, take(60))
			counts(n, virtionet.ReceiveDropped{}, notReceived)
		})
	}
}

// TestReceiveTooLong: a frame that does not fit is dropped, and the next one comes
// (rule 17).
func TestReceiveTooLong(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, tc := range []struct {
			name string
			want uint64
			room []int
		}{
			{"no merged buffers", noMerge, []int{600, 600}},
			{"a buffer too short for a header", noMerge, []int{600, 5, 600}},
			{"a full ring", 0, slices.Repeat([]int{64}, virtionet.QueueSize)},
			{"a few merged buffers", 0, []int{300, 300}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				b := newFake()
				n := attach(t, open, b, virtionet.Options{}, tc.want)
				bufs := n.post(0, tc.room...)
				long := incoming(frame(guestMAC, 60000, 1))
				copy(long, hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}.bytes())
				b.put(0, long)
				b.put(0, incoming(frame(guestMAC, 500, 2)))
				_, got := n.got(0, &bufs)
				assert.Equal(t, frame(guestMAC, 500, 2), got)
				counts(n, virtionet.ReceiveDropped{TooLong: 1}, notReceived)
				assert.Zero(t, n.Regs.Status()&virtio.StatusNeedsReset)
			})
		}
	})
}

// TestReceiveHeld: a frame for which there are not enough buffers yet waits for them,
// in one piece, and those behind it wait too.
func TestReceiveHeld(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		b := newFake()
		clock := newClock() // which stands: nothing is given up
		dev, err := virtionet.NewWithClock(b, virtionet.Options{MAC: guestMAC}, clock)
		require.NoError(t, err)
		n := started(t, open, dev, 0)
		long := incoming(frame(guestMAC, 3000, 1))
		copy(long, hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}.bytes())
		bufs := n.post(0, 7, 1000)
		b.put(0, long)
		n.Until("the frame is taken", func() bool { return b.waiting(0) == 0 })
		b.put(0, incoming(frame(guestMAC, 100, 2)))
		for range 3 {
			quiet(t, n.rx(0))
			require.NoError(t, n.Function.Pause(patient(t)), "nothing of the driver's is held")
			n.Function.Resume()
			bufs = append(bufs, n.post(0, 900)...)
		}
		_, got := n.got(0, &bufs)
		require.Equal(t, frame(guestMAC, 3000, 1), got)
		bufs = append(bufs, n.post(0, 1526)...)
		_, got = n.got(0, &bufs)
		require.Equal(t, frame(guestMAC, 100, 2), got)
	})
}

// TestReceiveStarved: when the backend is full and the driver has no buffers,
// neither a frame nor room for one can come to wake the device; buffers do. What
// came and went unnoticed is looked for (rule 17).
func TestReceiveStarved(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for name, want := range map[string]uint64{"event index": 0, "flags": virtionet.FeatureMrgRxBuf, "not merged": noMerge} {
			for _, edge := range []bool{false, true} {
				t.Run(map[bool]string{false: "", true: "edge, "}[edge]+name, func(t *testing.T) {
					b := newFake()
					b.capacity, b.edge = 8, edge
					n := attach(t, open, b, virtionet.Options{}, want)
					seed := byte(0)
					for range 20 {
						for b.put(0, incoming(frame(guestMAC, 60, seed))) {
							seed++
						}
						var bufs []virtiotest.Buffer
						for range 8 {
							bufs = append(bufs, n.post(0, 1526)...)
						}
						for i := range 8 {
							_, got := n.got(0, &bufs)
							require.Equal(t, frame(guestMAC, 60, seed-8+byte(i)), got)
						}
					}
				})
			}
		}
	})
}

// TestReceiveFilter: what is not for the driver does not reach it, and what reaches it
// is what its modes say (5.1.6.5.1, 5.1.6.5.2).
func TestReceiveFilter(t *testing.T) {
	other := virtionet.HardwareAddr{0x52, 0, 0, 0, 0, 2}
	third := virtionet.HardwareAddr{0x52, 0, 0, 0, 0, 3}
	group := virtionet.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	group2 := virtionet.HardwareAddr{0x33, 0x33, 0, 0, 0, 2}
	all := virtionet.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	type command struct {
		class, command byte
		data           []byte
	}
	table := func(uni, multi []virtionet.HardwareAddr) command {
		var d []byte
		for _, list := range [][]virtionet.HardwareAddr{uni, multi} {
			d = append(d, byte(len(list)), byte(len(list)>>8), 0, 0)
			for _, m := range list {
				d = append(d, m...)
			}
		}
		return command{1, 0, d}
	}
	off, on := command{0, 0, []byte{0}}, command{0, 0, []byte{1}}
	everyone := []virtionet.HardwareAddr{guestMAC, other, third, group, group2, all}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, tc := range []struct {
			name     string
			want     uint64
			commands []command
			get      []virtionet.HardwareAddr
		}{
			{"before any command", 0, nil, everyone},
			{"no control of it", virtionet.FeatureMrgRxBuf, nil, everyone},
			{"its own", 0, []command{off}, []virtionet.HardwareAddr{guestMAC, all}},
			{"promiscuous again", 0, []command{off, on}, everyone},
			{"all multicast", 0, []command{off, {0, 1, []byte{1}}}, []virtionet.HardwareAddr{guestMAC, group, group2, all}},
			{"all multicast no more", 0, []command{off, {0, 1, []byte{1}}, {0, 1, []byte{0}}}, []virtionet.HardwareAddr{guestMAC, all}},
			{"a table", 0, []command{off, table([]virtionet.HardwareAddr{third}, []virtionet.HardwareAddr{group2})}, []virtionet.HardwareAddr{guestMAC, third, group2, all}},
			{"a table and none", 0, []command{off, table([]virtionet.HardwareAddr{third}, []virtionet.HardwareAddr{group2}), table(nil, nil)}, []virtionet.HardwareAddr{guestMAC, all}},
			{"many unicast", 0, []command{off, table(slices.Repeat([]virtionet.HardwareAddr{third}, virtionet.MaxFilter+1), nil)}, []virtionet.HardwareAddr{guestMAC, other, third, all}},
			{"many multicast", 0, []command{off, table(nil, slices.Repeat([]virtionet.HardwareAddr{group}, virtionet.MaxFilter+1))}, []virtionet.HardwareAddr{guestMAC, group, group2, all}},
			{"another address", 0, []command{off, {1, 1, other}}, []virtionet.HardwareAddr{other, all}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				b := newFake()
				n := attach(t, open, b, virtionet.Options{}, tc.want)
				for _, c := range tc.commands {
					require.Zero(t, n.command(c.class, c.command, c.data...))
				}
				bufs := n.post(0, slices.Repeat([]int{3, 1500}, 10)...)
				for i, to := range everyone {
					b.put(0, incoming(frame(to, 60, byte(i))))
				}
				b.put(0, incoming(frame(all, 70, 0)))
				var got []virtionet.HardwareAddr
				for {
					_, f := n.got(0, &bufs)
					if len(f) == 70 {
						break
					}
					got = append(got, f[:6])
				}
				assert.Equal(t, tc.get, got)
				counts(n, virtionet.ReceiveDropped{Filtered: uint64(len(everyone) - len(tc.get))}, notReceived)
				n.Start(0)
				assert.Equal(t, [6]byte(guestMAC), n.config().MAC, "a reset brings the first address back")
			})
		}
	})
}

// TestReceiveNegotiated: a header says nothing that was not negotiated, whatever the
// backend says; a frame that can't do without is dropped (5.1.6.4.1, rule 3).
func TestReceiveNegotiated(t *testing.T) {
	tso4 := hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}
	csum := hdr{Flags: 1, Start: 34, Offset: 16}
	with := func(h hdr, gso uint8, buffers ...uint16) hdr {
		h.GSO = gso
		if len(buffers) > 0 {
			h.Buffers = buffers[0]
		}
		return h
	}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, tc := range []struct {
			name string
			want uint64
			in   hdr
			size int
			got  hdr
			drop virtionet.ReceiveDropped
		}{
			{"nothing", 0, hdr{}, 100, hdr{Buffers: 1}, virtionet.ReceiveDropped{}},
			{"a number of buffers", 0, hdr{Buffers: 77}, 100, hdr{Buffers: 1}, virtionet.ReceiveDropped{}},
			{"a checksum", 0, csum, 100, hdr{Flags: 1, Start: 34, Offset: 16, Buffers: 1}, virtionet.ReceiveDropped{}},
			{"a valid checksum", 0, hdr{Flags: 2}, 100, hdr{Flags: 2, Buffers: 1}, virtionet.ReceiveDropped{}},
			{"unknown flags", 0, hdr{Flags: 0xfe}, 100, hdr{Flags: 2, Buffers: 1}, virtionet.ReceiveDropped{}},
			{"a valid checksum, not negotiated", virtionet.FeatureMrgRxBuf, hdr{Flags: 2}, 100, hdr{Buffers: 1}, virtionet.ReceiveDropped{}},
			{"a checksum, not negotiated", virtionet.FeatureMrgRxBuf, csum, 100, hdr{}, virtionet.ReceiveDropped{Invalid: 1}},
			{"segments", 0, tso4, 3000, hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16, Buffers: 1}, virtionet.ReceiveDropped{}},
			{"segments, not negotiated", virtionet.FeatureGuestCsum | virtionet.FeatureGuestTSO6, tso4, 3000, hdr{}, virtionet.ReceiveDropped{Invalid: 1}},
			{"segments without checksum", virtionet.FeatureGuestTSO4, tso4, 3000, hdr{}, virtionet.ReceiveDropped{Invalid: 1}},
			{"segments of IPv6", 0, with(tso4, 4), 3000, with(with(tso4, 4), 4, 1), virtionet.ReceiveDropped{}},
			{"segments of UDP", 0, with(tso4, 5), 3000, with(with(tso4, 5), 5, 1), virtionet.ReceiveDropped{}},
			{"segments of UDP, not negotiated", virtionet.FeatureGuestCsum | virtionet.FeatureGuestTSO4, with(tso4, 5), 3000, hdr{}, virtionet.ReceiveDropped{Invalid: 1}},
			{"segments with ECN", 0, with(tso4, 0x81), 3000, with(tso4, 0x81, 1), virtionet.ReceiveDropped{}},
			{"more than the backend's buffers", 0, tso4, 140000, hdr{}, virtionet.ReceiveDropped{TooLong: 1}},
			{"fragments", 0, hdr{Flags: 1, GSO: 3, Size: 1000}, 3000, hdr{}, virtionet.ReceiveDropped{Invalid: 1}},
			{"more than the MTU", 0, hdr{}, 1519, hdr{}, virtionet.ReceiveDropped{TooLong: 1}},
			{"the MTU in a VLAN", 0, hdr{}, 1518, hdr{Buffers: 1}, virtionet.ReceiveDropped{}},
			{"more than an MTU that was not negotiated", virtionet.FeatureMrgRxBuf, hdr{}, 1519, hdr{Buffers: 1}, virtionet.ReceiveDropped{}},
			{"not a frame", 0, hdr{}, 13, hdr{}, virtionet.ReceiveDropped{Invalid: 1}},
			{"more than there is", 0, tso4, virtionet.MaxReceive - 11, hdr{}, virtionet.ReceiveDropped{Invalid: 1}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				b := newFake()
				n := attach(t, open, b, virtionet.Options{}, tc.want)
				bufs := n.post(0, 70000, 70000)
				b.put(0, append(tc.in.bytes(), frame(guestMAC, tc.size, 1)...))
				b.put(0, incoming(frame(guestMAC, 33, 2)))
				if tc.drop == (virtionet.ReceiveDropped{}) {
					h, f := n.got(0, &bufs)
					assert.Equal(t, tc.got, header(h))
					assert.Len(t, f, tc.size)
				}
				_, f := n.got(0, &bufs)
				assert.Len(t, f, 33)
				counts(n, tc.drop, notReceived)
			})
		}
	})
}
