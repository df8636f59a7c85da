package net_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// cpuTime is what the process has used of all processors; unlike the time it is
// little disturbed by what else the machine does.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure reports what an operation, one frame, costs. The driver is the benchmark's
// goroutine on a thread of its own, which looks at the used ring without a pause, as
// a vCPU of a busy guest is awake.
func measure(b *testing.B, r *ring, bytes int, step func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	b.SetBytes(int64(bytes))
	r.kicks = 0
	start, cpu := time.Now(), cpuTime(b)
	for b.Loop() {
		step()
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "frames/s")
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(r.kicks)/float64(b.N), "kicks/op")
}

var benchFrames = []struct {
	name                 string
	frame, size, buffers int
	each                 int // buffers for a frame
}{
	{"60", 60, 1536, 256, 1},
	{"1514", 1514, 1536, 256, 1},
	{"segments", 65000, 4096, 256, 16},
}

// BenchmarkReceive is frames from a backend that costs a copy, the device alone.
func BenchmarkReceive(b *testing.B) {
	for _, tc := range benchFrames {
		b.Run(tc.name, func(b *testing.B) {
			m := newMill(tc.frame)
			_, r := receiverGuest(b, m, tc.size, tc.buffers)
			r.q.Quiet = true
			for i := range tc.buffers {
				r.publish(i)
			}
			m.give(1 << 40)
			measure(b, r, tc.frame, func() {
				for range tc.each {
					u, ok := r.q.Poll()
					for !ok {
						u, ok = r.q.Poll()
					}
					r.publish(int(u.Head))
				}
			})
		})
	}
}

// BenchmarkReceiveTurns is short frames one by one, as in round trips, where the MTU is
// large and the driver's buffers are small, as those of Linux are.
func BenchmarkReceiveTurns(b *testing.B) {
	for _, mtu := range []int{1500, 65520} {
		for _, sized := range []bool{false, true} {
			b.Run(fmt.Sprintf("60/MTU %d/size known %v", mtu, sized), func(b *testing.B) {
				m := newMill(60)
				m.mtu = mtu
				var backend virtionet.Backend = m
				if sized {
					backend = sizedMill{m}
				}
				_, r := receiverGuest(b, backend, 1536, 256)
				for i := range 256 {
					r.publish(i)
				}
				measure(b, r, 60, func() {
					m.give(1)
					u, ok := r.q.Poll()
					for ; !ok; u, ok = r.q.Poll() {
						<-r.irq
					}
					r.publish(int(u.Head))
				})
			})
		}
	}
}

// BenchmarkSend is frames to a backend that costs nothing, the device alone.
func BenchmarkSend(b *testing.B) {
	for _, depth := range []int{1, 64} {
		b.Run(fmt.Sprintf("60/depth %d", depth), func(b *testing.B) {
			_, r := senderGuest(b, newMill(60), hdr{}.bytes(), testFrame(60, 1), depth)
			benchSend(b, r, depth, 60)
		})
	}
}

func benchSend(b *testing.B, r *ring, depth, size int) {
	r.q.Quiet = true
	for i := range depth - 1 {
		r.publish(i)
	}
	next := depth - 1
	measure(b, r, size, func() {
		r.publish(next)
		u, ok := r.q.Poll()
		for !ok {
			u, ok = r.q.Poll()
		}
		next = int(u.Head)
	})
}

// BenchmarkTapSend is frames through a tap into a host that drops them.
func BenchmarkTapSend(b *testing.B) {
	for _, tc := range []struct {
		name  string
		h     hdr
		frame []byte
		depth int
	}{
		{"60/depth 1", hdr{}, testFrame(60, 1), 1},
		{"60/depth 64", hdr{}, testFrame(60, 1), 64},
		{"1514/depth 64", hdr{}, testFrame(1514, 1), 64},
		{"segments/depth 64", hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}, newSegments(65000, false, false).frame, 64},
	} {
		b.Run(tc.name, func(b *testing.B) {
			namespace(b)
			tap := openTap(b, virtionet.TapOptions{Name: "one", Create: true})
			_, r := senderGuest(b, tap, tc.h.bytes(), tc.frame, tc.depth)
			benchSend(b, r, tc.depth, len(tc.frame))
		})
	}
}

// BenchmarkTapReceive is frames from a packet socket through a tap: the sender is on
// a thread of its own and is most of the cost.
func BenchmarkTapReceive(b *testing.B) {
	for _, size := range []int{60, 1514} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			namespace(b)
			tap := openTap(b, virtionet.TapOptions{Name: "one", Create: true})
			host := newHostSide(b, "one")
			_, r := receiverGuest(b, tap, 1536, virtionet.QueueSize)
			r.q.Quiet = true
			for i := range virtionet.QueueSize {
				r.publish(i)
			}
			stop, ended := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(ended)
				f := testFrame(size, 1)
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := unix.Write(host.fd, f); err != nil && err != unix.ENOBUFS && err != unix.EINTR {
						b.Error(err)
						return
					}
				}
			}()
			measure(b, r, size, func() {
				u, ok := r.q.Poll()
				for !ok {
					u, ok = r.q.Poll()
				}
				r.publish(int(u.Head))
			})
			close(stop)
			<-ended
		})
	}
}

// BenchmarkTapEcho is the time of a frame from a packet socket to the guest and back:
// what a ping-pong has of the device.
func BenchmarkTapEcho(b *testing.B) {
	namespace(b)
	tap := openTap(b, virtionet.TapOptions{Name: "one", Create: true})
	host := newHostSide(b, "one")
	n, r := receiverGuest(b, tap, 1536, 64)
	r.q.Quiet = true
	s := newRing(n, n.tx(0), []virtiotest.Buffer{n.Out(incoming(testFrame(60, 1)))})
	s.q.Quiet = true
	f, back := testFrame(60, 1), make([]byte, 2048)
	i := 0
	measure(b, s, 60, func() {
		r.publish(i % 64)
		i++
		_, _ = unix.Write(host.fd, f)
		for _, ok := r.q.Poll(); !ok; _, ok = r.q.Poll() {
		}
		s.publish(0)
		for _, ok := s.q.Poll(); !ok; _, ok = s.q.Poll() {
		}
		for {
			if _, err := unix.Read(host.fd, back); err == nil {
				break
			}
		}
	})
}
