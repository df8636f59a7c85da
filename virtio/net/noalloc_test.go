package net_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestNoAllocations has frames go all the way, from the backend to the used ring and
// back, and counts what the whole process allocates meanwhile, on whatever goroutine:
// the waits for a frame and for the driver included.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const batch = 16
	end := time.NewTimer(3 * virtiotest.Patience)
	defer end.Stop()
	drain := func(r *ring, n int) {
		for n > 0 {
			if _, ok := r.q.Poll(); ok {
				n--
				continue
			}
			select {
			case <-r.irq:
			case <-end.C:
				t.Fatal("the frames do not come")
			}
		}
	}
	for _, tc := range []struct {
		name                 string
		frame, size, buffers int
		each                 int // buffers for a frame
		sized                bool
	}{
		{"short frames", 60, 1536, 64, 1, false},
		{"long frames", 1514, 1536, 64, 1, false},
		{"segments", 60000, 4096, 64, 15, false},
		{"short frames, size known", 60, 1536, 64, 1, true},
		{"segments, size known", 60000, 4096, 64, 15, true},
	} {
		t.Run("receive "+tc.name, func(t *testing.T) {
			m := newMill(tc.frame)
			m.mtu = 65520
			var backend virtionet.Backend = m
			if tc.sized {
				backend = sizedMill{m}
			}
			_, r := receiverGuest(t, backend, tc.size, tc.buffers)
			next := 0
			run := func() {
				for range batch {
					for range tc.each {
						r.publish(next % tc.buffers)
						next++
					}
					m.give(1)
					drain(r, tc.each)
				}
			}
			run()
			assert.Zero(t, testing.AllocsPerRun(20, run), "%d frames", batch)
		})
	}
	t.Run("send", func(t *testing.T) {
		m := newMill(60)
		_, r := senderGuest(t, m, hdr{}.bytes(), testFrame(1514, 1), 64)
		next := 0
		run := func() {
			for range batch {
				r.publish(next % 64)
				next++
				drain(r, 1)
			}
		}
		run()
		assert.Zero(t, testing.AllocsPerRun(20, run), "%d frames", batch)
	})
	t.Run("tap", func(t *testing.T) {
		namespace(t)
		tap := openTap(t, virtionet.TapOptions{Name: "one", Create: true})
		host := newHostSide(t, "one")
		n, r := receiverGuest(t, tap, 1536, 64)
		f := testFrame(1000, 1)
		next := 0
		run := func() {
			for range batch {
				r.publish(next % 64)
				next++
				if _, err := unix.Write(host.fd, f); err != nil {
					t.Fatal(err)
				}
				drain(r, 1)
			}
		}
		run()
		assert.Zero(t, testing.AllocsPerRun(20, run), "%d frames received", batch)
		s := newRing(n, n.tx(0), []virtiotest.Buffer{n.Out(incoming(f))})
		run = func() {
			for range batch {
				s.publish(0)
				drain(s, 1)
			}
		}
		run()
		assert.Zero(t, testing.AllocsPerRun(20, run), "%d frames sent", batch)
	})
}
