package net_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestSendFraming: a frame and its header may lie in any buffers (VIRTIO 1.2, 2.7.4;
// rules 13 and 17).
func TestSendFraming(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		b := newFake()
		n := attach(t, open, b, virtionet.Options{}, 0)
		want := incoming(frame(guestMAC, 200, 7))
		cut := func(sizes ...int) (pieces [][]byte) {
			rest := want
			for _, s := range sizes {
				pieces = append(pieces, rest[:s])
				rest = rest[s:]
			}
			return append(pieces, rest)
		}
		for i, pieces := range [][][]byte{
			cut(), cut(12), cut(5), cut(1, 11), cut(11, 2), cut(12, 14), cut(20, 100), cut(slices.Repeat([]int{1}, 100)...), cut(0, 12, 0, 30),
		} {
			n.send(0, pieces...)
			require.Equal(t, want, b.took(0)[i])
		}
		counts(n, 9*200, sentBytes)
		counts(n, virtionet.SendDropped{}, notSent)
	})
}

// TestSendHeader: what a header says is checked against the frame and against what
// was negotiated; what it may not say is dropped, and what does not count is 0
// (5.1.6.2.1, 5.1.6.2.2, rule 3).
func TestSendHeader(t *testing.T) {
	const n200 = 200
	tso4 := hdr{Flags: 1, GSO: 1, Len: 54, Size: 100, Start: 34, Offset: 16}
	with := func(h hdr, change func(*hdr)) hdr {
		change(&h)
		return h
	}
	few := virtionet.FeatureMrgRxBuf
	dropped := hdr{Flags: 0xff}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, tc := range []struct {
			name string
			want uint64
			size int
			h    hdr
			sent hdr // or dropped
		}{
			{"none", 0, n200, hdr{}, hdr{}},
			{"rest without meaning", 0, n200, hdr{Len: 1, Size: 2, Start: 0xffff, Offset: 0xffff, Buffers: 5}, hdr{}},
			{"flags of the device", 0, n200, hdr{Flags: 0xfe}, hdr{}},
			{"checksum", 0, n200, hdr{Flags: 1, Start: 34, Offset: 16, Len: 9, Size: 9, Buffers: 9}, hdr{Flags: 1, Start: 34, Offset: 16}},
			{"checksum at the end", 0, n200, hdr{Flags: 1, Start: 190, Offset: 8}, hdr{Flags: 1, Start: 190, Offset: 8}},
			{"checksum behind the end", 0, n200, hdr{Flags: 1, Start: 190, Offset: 9}, dropped},
			{"checksum beyond 16 bits", 0, n200, hdr{Flags: 1, Start: 0xfff0, Offset: 0x20}, dropped},
			{"checksum in the addresses", 0, n200, hdr{Flags: 1, Start: 13, Offset: 16}, dropped},
			{"checksum, not negotiated", few, n200, hdr{Flags: 1, Start: 34, Offset: 16}, dropped},
			{"TSO4", 0, n200, tso4, tso4},
			{"TSO4 without checksum", 0, n200, with(tso4, func(h *hdr) { h.Flags = 0 }), dropped},
			{"TSO4 with ECN", 0, n200, with(tso4, func(h *hdr) { h.GSO = 0x81 }), with(tso4, func(h *hdr) { h.GSO = 0x81 })},
			{"TSO4 with ECN, not negotiated", few | virtionet.FeatureCsum | virtionet.FeatureHostTSO4, n200, with(tso4, func(h *hdr) { h.GSO = 0x81 }), dropped},
			{"TSO4, not negotiated", few | virtionet.FeatureCsum | virtionet.FeatureHostTSO6, n200, tso4, dropped},
			{"TSO4 without its prerequisite", few | virtionet.FeatureHostTSO4, n200, tso4, dropped},
			{"TSO6", 0, n200, with(tso4, func(h *hdr) { h.GSO = 4 }), with(tso4, func(h *hdr) { h.GSO = 4 })},
			{"TSO6, not negotiated", few | virtionet.FeatureCsum | virtionet.FeatureHostTSO4, n200, with(tso4, func(h *hdr) { h.GSO = 4 }), dropped},
			{"USO", 0, n200, with(tso4, func(h *hdr) { h.GSO = 5 }), with(tso4, func(h *hdr) { h.GSO = 5 })},
			{"USO with ECN", 0, n200, with(tso4, func(h *hdr) { h.GSO = 0x85 }), dropped},
			{"USO, not negotiated", few | virtionet.FeatureCsum | virtionet.FeatureHostTSO4, n200, with(tso4, func(h *hdr) { h.GSO = 5 }), dropped},
			{"UFO", 0, n200, with(tso4, func(h *hdr) { h.GSO = 3 }), dropped},
			{"unknown segments", 0, n200, with(tso4, func(h *hdr) { h.GSO = 2 }), dropped},
			{"ECN alone", 0, n200, with(tso4, func(h *hdr) { h.GSO = 0x80 }), dropped},
			{"segments of 0", 0, n200, with(tso4, func(h *hdr) { h.Size = 0 }), dropped},
			{"headers too short", 0, n200, with(tso4, func(h *hdr) { h.Len = 0 }), with(tso4, func(h *hdr) { h.Len = 52 })},
			{"headers longer than the frame", 0, n200, with(tso4, func(h *hdr) { h.Len = 0xffff }), with(tso4, func(h *hdr) { h.Len = 200 })},
			{"the shortest", 0, 14, hdr{}, hdr{}},
			{"too short", 0, 13, hdr{}, dropped},
			{"only a header", 0, 0, hdr{}, dropped},
			{"the longest", 0, virtionet.MaxFrame, hdr{}, hdr{}},
			{"too long", 0, virtionet.MaxFrame + 1, hdr{}, dropped},
		} {
			t.Run(tc.name, func(t *testing.T) {
				b := newFake()
				want := tc.want
				if want != 0 {
					want |= virtio.FeatureIndirectDesc
				}
				n := attach(t, open, b, virtionet.Options{}, want)
				f := frame(guestMAC, tc.size, 3)
				n.send(0, tc.h.bytes(), f)
				n.send(0, hdr{}.bytes(), frame(guestMAC, 20, 4))
				want2 := [][]byte{append(hdr{}.bytes(), frame(guestMAC, 20, 4)...)}
				s := virtionet.SendDropped{Malformed: 1}
				if tc.sent != dropped {
					want2 = append([][]byte{append(tc.sent.bytes(), f...)}, want2...)
					s = virtionet.SendDropped{}
				}
				assert.Equal(t, want2, b.took(0))
				counts(n, s, notSent)
			})
		}
	})
}

// TestSendGarbage: chains that are no frames cost nothing but their own loss.
func TestSendGarbage(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		b := newFake()
		n := attach(t, open, b, virtionet.Options{}, 0)
		q := n.tx(0)
		one := n.Out(make([]byte, 1<<20))
		for i, bufs := range [][]virtiotest.Buffer{
			{n.Out([]byte{1, 2, 3})},
			{n.In(1000)}, // nothing to read
			{n.Out(nil)},
			slices.Repeat([]virtiotest.Buffer{one}, 200), // 200 MiB that are 1
		} {
			q.AddIndirect(bufs...)
			q.Kick()
			assert.Zero(t, q.Next().Len)
			counts(n, virtionet.SendDropped{Malformed: uint64(i + 1)}, notSent)
		}
		// What the device may write is no part of the frame, and not written.
		in := n.In(100)
		q.AddIndirect(n.Out(incoming(frame(guestMAC, 60, 1))), in)
		q.Kick()
		assert.Zero(t, q.Next().Len)
		assert.Equal(t, [][]byte{incoming(frame(guestMAC, 60, 1))}, b.took(0))
		assert.Equal(t, slices.Repeat([]byte{0xaa}, 100), n.Bytes(in))
		assert.Zero(t, n.Regs.Status()&virtio.StatusNeedsReset)
		// One buffer twice in a chain is there twice.
		part := n.Out(bytes.Repeat([]byte{7}, 40))
		q.Add(n.Out(hdr{}.bytes()), part, part)
		q.Kick()
		q.Next()
		assert.Equal(t, append(hdr{}.bytes(), bytes.Repeat([]byte{7}, 80)...), b.took(0)[1])
		// A broken queue stops the device, which lives on after a reset.
		q.SetAvailable(q.Available() + 1000)
		n.Regs.Notify(q.Index)
		n.NeedsReset()
		n.Start(0)
		n.send(0, incoming(frame(guestMAC, 60, 2)))
		assert.Len(t, b.took(0), 3)
	})
}

// TestSendFails: a frame that the backend does not take is lost, and counted.
func TestSendFails(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		b := newFake()
		n := attach(t, open, b, virtionet.Options{}, 0)
		f := incoming(frame(guestMAC, 60, 1))
		b.set(func() { b.full = true })
		n.send(0, f)
		b.set(func() { b.full, b.sendErr = false, assert.AnError })
		n.send(0, f)
		b.set(func() { b.sendErr = nil })
		n.send(0, f)
		counts(n, virtionet.SendDropped{Full: 1, Failed: 1}, notSent)
		counts(n, 1, sent)
	})
}
