package vsock_test

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio/virtiotest"
	"github.com/vole-vmm/vole/virtio/vsock"
)

// link is one connection and a driver for it that allocates nothing: it has every
// buffer ready, and looks at no more than it must. One goroutine uses it.
type link struct {
	tb             testing.TB
	g              *guest
	port, hostPort uint32
	tx             []byte // the header that is sent
	rx             [][]byte
	fwd, written   uint32
	peerFwd        uint32
	peerAlloc      uint32
	got            int
	end            *time.Timer
	spin           bool // as a vCPU that is awake, or waits for an interrupt
}

func (l *link) idle() {
	if l.spin {
		return
	}
	select {
	case <-l.g.QueueIRQ.C:
	case <-l.end.C:
		l.tb.Fatal("nothing happens")
	}
}

// newLink connects to the host by connect, which is called with the guest's port
// and what it is served by, and begins anew with buffers of the given sizes.
func newLink(tb testing.TB, kind string, payload int) (*link, io.ReadWriteCloser) {
	tb.Helper()
	path := filepath.Join(socketDir(tb), "v.sock")
	g := newGuest(tb, virtiotest.OpenMMIO, vsock.Options{Path: path})
	var host io.ReadWriteCloser
	var s *socket
	if kind == "go" {
		host, s = fromHost(g, 5)
	} else {
		var c *net.UnixConn
		c, s = unixFromHost(g, path, 5)
		require.NoError(tb, c.SetDeadline(time.Time{}))
		host = c
	}
	l := &link{tb: tb, g: g, port: 5, hostPort: s.hostPort, peerAlloc: s.peerAlloc, peerFwd: s.peerFwd, end: time.NewTimer(patience)}
	tb.Cleanup(func() { l.end.Stop() })
	// From here on the rings are written by hand: each rx buffer is its descriptor
	// for good.
	for b := range g.rx.Config.Size {
		l.rx = append(l.rx, g.Bytes(g.rxBufs[uint32(b)]))
	}
	hdr, data := g.Out(make([]byte, headerSize)), g.Out(make([]byte, payload))
	l.tx = g.Bytes(hdr)
	gpa, n := g.Table(virtiotest.Chain(0, hdr, data)...)
	g.tx.SetDesc(0, virtiotest.Desc{Addr: gpa, Len: n, Flags: virtiotest.DescIndirect})
	gpa, n = g.Table(virtiotest.Chain(0, hdr)...)
	g.tx.SetDesc(1, virtiotest.Desc{Addr: gpa, Len: n, Flags: virtiotest.DescIndirect})
	return l, host
}

// send sends n bytes of data or, with n 0, credit, and waits until they are taken.
func (l *link) send(op uint16, n int) {
	p := packet{srcCID: guestCID, dstCID: 2, srcPort: l.port, dstPort: l.hostPort, len: uint32(n), typ: 1, op: op, bufAlloc: 1 << 20, fwdCnt: l.fwd}
	le := binary.LittleEndian
	le.PutUint64(l.tx, p.srcCID)
	le.PutUint64(l.tx[8:], p.dstCID)
	le.PutUint32(l.tx[16:], p.srcPort)
	le.PutUint32(l.tx[20:], p.dstPort)
	le.PutUint32(l.tx[24:], p.len)
	le.PutUint16(l.tx[28:], p.typ)
	le.PutUint16(l.tx[30:], p.op)
	le.PutUint32(l.tx[32:], 0)
	le.PutUint32(l.tx[36:], p.bufAlloc)
	le.PutUint32(l.tx[40:], p.fwdCnt)
	head := uint16(0)
	if n == 0 {
		head = 1
	}
	old := l.g.tx.Available()
	l.g.tx.Publish(head)
	if l.g.tx.AvailEvent() == old {
		l.g.Function.Bell(1).Ring()
	}
	for _, ok := l.g.tx.Poll(); !ok; _, ok = l.g.tx.Poll() {
		l.idle()
	}
}

// poll takes one packet, if there is one.
func (l *link) poll() bool {
	u, ok := l.g.rx.Poll()
	if !ok {
		return false
	}
	le := binary.LittleEndian
	b := l.rx[u.Head]
	l.peerAlloc, l.peerFwd = le.Uint32(b[36:]), le.Uint32(b[40:])
	n := le.Uint32(b[24:])
	l.got += int(n)
	old := l.g.rx.Available()
	l.g.rx.Publish(uint16(u.Head))
	if l.g.rx.AvailEvent() == old {
		l.g.Function.Bell(0).Ring()
	}
	if before := l.fwd; n > 0 {
		l.fwd += n
		if l.fwd>>18 != before>>18 {
			l.send(opCreditUpdate, 0)
		}
	}
	return true
}

// write sends n bytes when there is credit.
func (l *link) write(n int) {
	for int(l.peerAlloc-(l.written-l.peerFwd)) < n {
		if !l.poll() {
			l.idle()
		}
	}
	l.written += uint32(n)
	l.send(opRW, n)
}

// read waits until n bytes have come since the last read.
func (l *link) read(n int) {
	for l.got < n {
		if !l.poll() {
			l.idle()
		}
	}
	l.got -= n
}

// TestNoAllocations: what the whole process allocates while data goes through is
// nothing, whatever the direction and whoever is the host.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const n, batch = 8192, 16
	for _, kind := range []string{"go", "unix"} {
		t.Run(kind, func(t *testing.T) {
			l, host := newLink(t, kind, n)
			out, in := make([]byte, n), make([]byte, n)
			trigger, done := make(chan struct{}), make(chan error)
			go func() {
				for range trigger {
					_, err := host.Write(out)
					if err == nil {
						_, err = io.ReadFull(host, in)
					}
					done <- err
				}
			}()
			defer close(trigger)
			// Not one in a batch: what a garbage collection takes from the pools is
			// another matter than what each packet costs.
			assert.Zero(t, testing.AllocsPerRun(50, func() {
				for range batch {
					trigger <- struct{}{}
					l.read(n)
					l.write(n)
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			}))
			assert.GreaterOrEqual(t, l.g.dev.Stats().Sent.Bytes, uint64(50*batch*n))
		})
	}
}

// BenchmarkThroughput is a stream through the device alone, in each direction: with
// packets as a Linux guest makes them, 4 KiB to it and 64 KiB from it. The driver is
// the benchmark's goroutine; the host's side reads or writes 256 KiB at a time.
func BenchmarkThroughput(b *testing.B) {
	const unit = 64 << 10
	for _, kind := range []string{"go", "unix"} {
		b.Run(kind+"/to the guest", func(b *testing.B) {
			l, host := newLink(b, kind, unit)
			go func() {
				p := make([]byte, 4*unit)
				for {
					if _, err := host.Write(p); err != nil {
						return
					}
				}
			}()
			measure(b, l, unit, func() { l.read(unit) })
			require.NoError(b, host.Close())
		})
		b.Run(kind+"/from the guest", func(b *testing.B) {
			l, host := newLink(b, kind, unit)
			go func() {
				p := make([]byte, 4*unit)
				for {
					if _, err := host.Read(p); err != nil {
						return
					}
				}
			}()
			measure(b, l, unit, func() { l.write(unit) })
			require.NoError(b, host.Close())
		})
	}
}

// BenchmarkPingPong is one byte there and back.
func BenchmarkPingPong(b *testing.B) {
	for _, kind := range []string{"go", "unix"} {
		b.Run(kind, func(b *testing.B) {
			l, host := newLink(b, kind, 1)
			go func() {
				p := make([]byte, 1)
				for {
					if _, err := io.ReadFull(host, p); err != nil {
						return
					}
					if _, err := host.Write(p); err != nil {
						return
					}
				}
			}()
			measure(b, l, 1, func() {
				l.write(1)
				l.read(1)
			})
			require.NoError(b, host.Close())
		})
	}
}

func measure(b *testing.B, l *link, n int, f func()) {
	b.SetBytes(int64(n))
	l.spin, l.g.rx.Quiet, l.g.tx.Quiet = true, true, true
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	cpu := cpuTime(b)
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
}

// cpuTime is what the process has used of all processors.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
