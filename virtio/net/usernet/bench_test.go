package usernet

import (
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkTCP is one connection through the network: from a program of the
// host's to a stack that plays the guest, and back. Half of the work is that
// stack's.
func BenchmarkTCP(b *testing.B) {
	const chunk = 1 << 20
	for _, tt := range []struct {
		name     string
		mtu      int
		features uint64
	}{
		{"MTU65520/offloads", 65520, allOffloads},
		{"MTU9000/offloads", 9000, allOffloads},
		{"MTU1500/offloads", 1500, allOffloads},
		{"MTU65520/none", 65520, 0},
		{"MTU1500/none", 1500, 0},
	} {
		b.Run("to-guest/"+tt.name, func(b *testing.B) {
			n := newNetwork(b, Options{HostLoopback: true, MTU: tt.mtu})
			total := int64(b.N) * chunk
			port := host(b, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
				buf := make([]byte, chunk)
				for range b.N {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			})
			g := startGuest(b, n, tt.features)
			b.SetBytes(chunk)
			b.ReportAllocs()
			b.ResetTimer()
			c := g.mustDial(via(gateway4, port))
			got, err := io.CopyBuffer(io.Discard, onlyReader{c}, make([]byte, 256<<10))
			require.NoError(b, err)
			require.Equal(b, total, got)
			b.StopTimer()
			reportFrames(b, n)
			c.Close()
		})
		b.Run("from-guest/"+tt.name, func(b *testing.B) {
			n := newNetwork(b, Options{HostLoopback: true, MTU: tt.mtu})
			heard := make(chan int64, 1)
			port := host(b, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
				k, _ := io.CopyBuffer(io.Discard, onlyReader{c}, make([]byte, 256<<10))
				heard <- k
			})
			g := startGuest(b, n, tt.features)
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			b.ReportAllocs()
			b.ResetTimer()
			c := g.mustDial(via(gateway4, port))
			for range b.N {
				_, err := c.Write(buf)
				require.NoError(b, err)
			}
			require.NoError(b, c.(interface{ CloseWrite() error }).CloseWrite())
			require.Equal(b, int64(b.N)*chunk, <-heard)
			b.StopTimer()
			reportFrames(b, n)
			c.Close()
		})
	}
}

type onlyReader struct{ io.Reader }

func reportFrames(b *testing.B, n *Network) {
	s := n.Stats()
	b.ReportMetric(float64(s.ToGuest)/float64(b.N), "frames-in/op")
	b.ReportMetric(float64(s.FromGuest)/float64(b.N), "frames-out/op")
	b.ReportMetric(float64(s.ToGuestFull), "lost")
}

// BenchmarkStart is a driver that starts and resets the device.
func BenchmarkStart(b *testing.B) {
	n := newNetwork(b, Options{})
	b.ReportAllocs()
	for b.Loop() {
		require.NoError(b, n.Start(allOffloads))
		n.Stop()
	}
}

// BenchmarkUDPPassing is the network's part of a datagram out and its answer
// back, with the allocations.
func BenchmarkUDP(b *testing.B) {
	n := newNetwork(b, Options{HostLoopback: true})
	port, _ := echoUDP(b, "udp4", "127.0.0.1:0")
	g := startGuest(b, n, allOffloads)
	c := g.dialUDP(via(gateway4, port))
	buf := make([]byte, 1000)
	b.ReportAllocs()
	for b.Loop() {
		_, err := c.Write(buf)
		require.NoError(b, err)
		_, err = c.Read(buf)
		require.NoError(b, err)
	}
}

// BenchmarkMemory reports what a started network without flows holds.
func BenchmarkMemory(b *testing.B) {
	n := newNetwork(b, Options{})
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		require.NoError(b, n.Start(allOffloads))
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse+after.StackInuse)-float64(before.HeapInuse+before.StackInuse), "bytes-held")
		n.Stop()
	}
}
