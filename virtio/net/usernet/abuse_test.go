package usernet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/vole-vmm/vole/virtio"
)

// goroutines counts those that have both in their trace.
func goroutines(function, state string) (n int) {
	buf := make([]byte, 4<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, function) && strings.Contains(g, state) {
			n++
		}
	}
	return n
}

// relays counts the goroutines that carry connections.
func relays() int { return goroutines(".relay", "") }

// A guest that resets its connections to peers that neither read nor speak, over
// and over, has no more of them than MaxTCP at a time, and leaves nothing behind.
func TestTCPResetsFreeWhatTheyHeld(t *testing.T) {
	const rounds = 6
	for _, tt := range []struct {
		name  string
		serve func(c *net.TCPConn, heard chan<- struct{})
		guest func(t *testing.T, c net.Conn, heard <-chan struct{})
	}{
		{
			"to a peer that never reads",
			func(*net.TCPConn, chan<- struct{}) {},
			func(t *testing.T, c net.Conn, _ <-chan struct{}) {
				require.NoError(t, c.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
				_, err := io.Copy(c, noise(1, 1<<30))
				require.Error(t, err)
			},
		},
		{
			"to a silent peer, after a half-close",
			func(c *net.TCPConn, heard chan<- struct{}) {
				_, _ = io.Copy(io.Discard, c)
				heard <- struct{}{}
			},
			func(t *testing.T, c net.Conn, heard <-chan struct{}) {
				require.NoError(t, c.(interface{ CloseWrite() error }).CloseWrite())
				<-heard
			},
		},
		{
			"to a silent peer",
			func(*net.TCPConn, chan<- struct{}) {},
			func(*testing.T, net.Conn, <-chan struct{}) {},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, Options{HostLoopback: true, MaxTCP: 2})
			stuck, heard := make(chan struct{}), make(chan struct{}, rounds)
			port := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) { tt.serve(c, heard); <-stuck })
			defer close(stuck)
			g := startGuest(t, n, allOffloads)
			flows := &n.current.Load().tcpFlows
			before, carried := descriptors(), relays()
			for i := range rounds {
				c := g.mustDial(via(gateway4, port))
				tt.guest(t, c, heard)
				for _, e := range g.stack.RegisteredEndpoints() {
					e.Abort()
				}
				require.Eventually(t, func() bool { return flows.Load() == 0 }, patience, time.Millisecond, "round %d", i)
				// The server keeps its own ends.
				require.Eventually(t, func() bool { return descriptors() <= before+i+1 }, patience, time.Millisecond, "round %d", i)
				require.NoError(t, c.Close())
			}
			assert.Eventually(t, func() bool { return relays() <= carried }, patience, time.Millisecond)
			assert.Zero(t, n.Stats().Full)
		})
	}
}

// A guest that has closed its end properly is gone long before a slow peer has
// read everything: nothing of it is lost, and the slot is held until then.
func TestTCPSlowReaderGetsAllOfAClosedGuest(t *testing.T) {
	n := newNetwork(t, Options{HostLoopback: true})
	read, got := make(chan struct{}), make(chan string, 1)
	release := sync.OnceFunc(func() { close(read) })
	defer release()
	port := host(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_ = c.CloseWrite()
		<-read
		sum, err := sumOf(c)
		if err != nil {
			sum = err.Error()
		}
		got <- sum
	})
	g := startGuest(t, n, allOffloads)
	s := n.current.Load()
	c := g.mustDial(via(gateway4, port))
	_, err := io.ReadAll(c) // the server's end of the conversation
	require.NoError(t, err)
	ends := s.stack.RegisteredEndpoints()
	held := func() (size int) {
		for _, e := range ends {
			if e, ok := e.(*tcp.Endpoint); ok {
				size, _ = e.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
			}
		}
		return size
	}
	sent, data := int64(0), noise(1, 64<<20)
	// Until the host's socket takes no more.
	stalled := false
	for !stalled && (held() < 256<<10 || goroutines("usernet.toHost", "[IO wait") == 0) {
		k, err := io.CopyN(c, data, 64<<10)
		require.NoError(t, err)
		sent += k
		// What waits in the guest for the window to open keeps its FIN there too.
		for end := time.Now().Add(time.Second); n.Stats().FromGuestBytes < uint64(sent) && !stalled; {
			stalled = time.Now().After(end)
			runtime.Gosched()
		}
	}
	require.NoError(t, c.Close())
	if !stalled {
		require.Eventually(t, func() bool { return len(s.stack.RegisteredEndpoints()) < len(ends) }, patience, time.Millisecond)
		assert.EqualValues(t, 1, s.tcpFlows.Load())
	}
	release()
	want, _ := sumOf(noise(1, sent))
	assert.Equal(t, want, <-got)
	assert.Eventually(t, func() bool { return s.tcpFlows.Load() == 0 }, patience, time.Millisecond)
}

// logged keeps what is logged.
type logged struct {
	mu    sync.Mutex
	lines []slog.Record
}

func (*logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler     { return l }
func (l *logged) WithGroup(string) slog.Handler          { return l }
func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r)
	return nil
}

func (l *logged) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.lines {
		if strings.Contains(r.Message, text) {
			n++
		}
	}
	return n
}

// A guest that asks for what it may not have, as fast as it can, fills no log.
func TestDenialsAreLoggedOnceASecond(t *testing.T) {
	const count = 500
	var log logged
	n := newNetwork(t, Options{Policy: DenyOutside, Logger: slog.New(&log)})
	begin := time.Now()
	require.NoError(t, n.Start(0))
	s := n.current.Load()
	for i := range count {
		d := Destination{Protocol: UDP, Addr: netip.MustParseAddr("192.0.2.1"), Port: uint16(i + 1)}
		if i%2 == 1 {
			d = Destination{Protocol: DNS, Name: fmt.Sprintf("n%d.example.test", i)}
		}
		require.Error(t, s.ask(d))
	}
	lines := log.count("may not go there")
	assert.GreaterOrEqual(t, lines, 1)
	assert.LessOrEqual(t, lines, 1+int(time.Since(begin)/time.Second))
	assert.EqualValues(t, count, n.Stats().Denied)
}

func TestCounters(t *testing.T) {
	n := newNetwork(t, Options{})
	n.stats.tcp.Store(1)
	n.stats.udp.Store(2)
	n.stats.denied.Store(3)
	n.stats.failed.Store(4)
	n.stats.full.Store(5)
	assert.Equal(t, []virtio.Counter{
		{Name: "TCP flows", Value: 1},
		{Name: "UDP flows", Value: 2},
		{Name: "flows, denied", Value: 3},
		{Name: "flows, failed", Value: 4},
		{Name: "flows, no room", Value: 5},
	}, n.Counters())
}

// That the host forbids to ping is said once, however often the driver begins
// anew.
func TestForbiddenPingsAreLoggedOnce(t *testing.T) {
	var log logged
	n := newNetwork(t, Options{Logger: slog.New(&log)})
	for range 3 {
		require.NoError(t, n.Start(0))
		n.current.Load().pingForbidden()
		n.Stop()
	}
	assert.Equal(t, 1, log.count("ping_group_range"))
}
