package usernet

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// tellings is who takes an egress's frames: what it found each time it was told.
type tellings struct {
	e     *egress
	found chan []int // the frames' sizes
	done  chan struct{}
	ended chan struct{}
}

func newTellings() *tellings {
	x := &tellings{e: newEgress(), found: make(chan []int, 1000), done: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(x.ended)
		for {
			select {
			case <-x.done:
				return
			case <-x.e.bell:
			}
			if x.e.idle() {
				continue
			}
			var sizes []int
			for pkt := x.e.take(); pkt != nil; pkt = x.e.take() {
				sizes = append(sizes, pkt.Size())
				pkt.DecRef()
			}
			x.found <- sizes
		}
	}()
	return x
}

func (x *tellings) put(t *testing.T, size int, key ackKey, mayWait bool) {
	t.Helper()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(make([]byte, size))})
	defer pkt.DecRef()
	require.True(t, x.e.put(pkt, key, mayWait))
}

func (x *tellings) all() [][]int {
	synctest.Wait()
	var all [][]int
	for {
		select {
		case sizes := <-x.found:
			all = append(all, sizes)
		default:
			return all
		}
	}
}

func (x *tellings) end() {
	close(x.done)
	<-x.ended
	x.e.close()
}

func eachEgress(t *testing.T, name string, f func(t *testing.T, x *tellings)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := newTellings()
			f(t, x)
			x.end()
		})
	})
}

// TestAcknowledgementsWait: a bare acknowledgement waits for company, a bounded time,
// and less often where none comes.
func TestAcknowledgementsWait(t *testing.T) {
	const ack, answer = 54, 55
	eachEgress(t, "the answer says the same", func(t *testing.T, x *tellings) {
		for i := range 100 {
			x.put(t, ack, ackKey(i+1), true)
			assert.Empty(t, x.all())
			time.Sleep(time.Millisecond)
			assert.Empty(t, x.all())
			x.put(t, answer, ackKey(i+1), false)
			assert.Equal(t, [][]int{{answer}}, x.all())
		}
	})
	eachEgress(t, "company that says something else", func(t *testing.T, x *tellings) {
		for i := range 100 {
			x.put(t, ack, ackKey(i+1), true)
			x.put(t, 1000, 12345, false)
			assert.Equal(t, [][]int{{ack, 1000}}, x.all())
		}
	})
	eachEgress(t, "two", func(t *testing.T, x *tellings) {
		x.put(t, ack, 1, true)
		x.put(t, ack, 2, true)
		assert.Equal(t, [][]int{{ack, ack}}, x.all())
	})
	eachEgress(t, "none comes", func(t *testing.T, x *tellings) {
		waited := 0
		const count = 1000
		for i := range count {
			x.put(t, ack, ackKey(i+1), true)
			if len(x.all()) == 1 {
				continue
			}
			waited++
			time.Sleep(holdFor - 1)
			assert.Empty(t, x.all())
			time.Sleep(1)
			assert.Equal(t, [][]int{{ack}}, x.all())
		}
		assert.Less(t, waited, count/maxPass+8)
		assert.Greater(t, waited, count/maxPass)
	})
	eachEgress(t, "only alone", func(t *testing.T, x *tellings) {
		x.put(t, 1000, 0, false)
		x.put(t, ack, 1, true)
		total := 0
		for _, sizes := range x.all() {
			total += len(sizes)
		}
		if total == 1 { // the first was taken before the second came
			time.Sleep(holdFor)
			total += len(x.all()[0])
		}
		assert.Equal(t, 2, total)
	})
	eachEgress(t, "taken without being told", func(t *testing.T, x *tellings) {
		x.put(t, ack, 1, true)
		pkt := x.e.take()
		require.NotNil(t, pkt)
		pkt.DecRef()
		time.Sleep(2 * holdFor)
		assert.Empty(t, x.all())
		x.put(t, answer, 1, false)
		assert.Equal(t, [][]int{{answer}}, x.all())
	})
	eachEgress(t, "closed with one that waits", func(t *testing.T, x *tellings) {
		x.put(t, ack, 1, true)
		x.e.close()
		time.Sleep(2 * holdFor)
		assert.Empty(t, x.all())
	})
}

// segment is a TCP segment of the guest without its IP header.
func segment(seq uint32, flags header.TCPFlags, payload int) []byte {
	b := make([]byte, header.TCPMinimumSize+payload)
	header.TCP(b).Encode(&header.TCPFields{SrcPort: 1000, DstPort: 2000, SeqNum: seq, AckNum: 7, DataOffset: header.TCPMinimumSize, Flags: flags})
	return b
}

// TestWhatMayWait: only the first bare acknowledgement of the last small segment.
func TestWhatMayWait(t *testing.T) {
	const ack = header.TCPFlagAck
	reply := func(acks uint32, flags header.TCPFlags, payload int) *stack.PacketBuffer {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: header.TCPMinimumSize, Payload: buffer.MakeWithData(make([]byte, payload))})
		pkt.TransportProtocolNumber = header.TCPProtocolNumber
		header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{
			SrcPort: 2000, DstPort: 1000, SeqNum: 7, AckNum: acks, DataOffset: header.TCPMinimumSize, Flags: flags})
		return pkt
	}
	key := newAckKey(1000, 2000, 110)
	for _, tt := range []struct {
		name  string
		heard []byte
		reply *stack.PacketBuffer
		key   ackKey
		waits bool
	}{
		{"a question's", segment(100, ack|header.TCPFlagPsh, 10), reply(110, ack, 0), key, true},
		{"the answer", segment(100, ack, 10), reply(110, ack, 1), key, false},
		{"of more than that", segment(100, ack, 10), reply(111, ack, 0), newAckKey(1000, 2000, 111), false},
		{"of less", segment(100, ack, 10), reply(100, ack, 0), newAckKey(1000, 2000, 100), false},
		{"a FIN", segment(100, ack, 10), reply(110, ack|header.TCPFlagFin, 0), 0, false},
		{"a RST", segment(100, ack, 10), reply(110, ack|header.TCPFlagRst, 0), 0, false},
		{"without an acknowledgement", segment(100, ack, 10), reply(110, 0, 0), 0, false},
		{"of a large segment", segment(100, ack, smallSegment+1), reply(100+smallSegment+1, ack, 0), newAckKey(1000, 2000, 100+smallSegment+1), false},
		{"of the guest's FIN", segment(100, ack|header.TCPFlagFin, 9), reply(110, ack, 0), key, false},
		{"of nothing", segment(110, ack, 0), reply(110, ack, 0), key, false},
		{"of what is too short", segment(100, ack, 10)[:19], reply(110, ack, 0), key, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer tt.reply.DecRef()
			var o owed
			o.note(tt.heard)
			key, waits := o.settles(tt.reply)
			assert.Equal(t, tt.key, key)
			assert.Equal(t, tt.waits, waits)
			if waits { // the window's
				_, again := o.settles(tt.reply)
				assert.False(t, again)
			}
		})
	}
	t.Run("a header longer than the segment", func(t *testing.T) {
		var o owed
		b := segment(100, ack, 10)
		b[12] = 0xf0
		o.note(b)
		assert.Zero(t, o.key.Load())
	})
	t.Run("UDP", func(t *testing.T) {
		pkt := reply(110, ack, 0)
		defer pkt.DecRef()
		pkt.TransportProtocolNumber = header.UDPProtocolNumber
		var o owed
		o.note(segment(100, ack, 10))
		key, waits := o.settles(pkt)
		assert.Zero(t, key)
		assert.False(t, waits)
	})
}

// TestOneFrameAnAnswer: of many a round trip the guest gets one frame. All had two.
func TestOneFrameAnAnswer(t *testing.T) {
	for _, tt := range []struct {
		name, listen, gateway string
	}{{"IPv4", "127.0.0.1:0", gateway4}, {"IPv6", "[::1]:0", gateway6}} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, Options{HostLoopback: true})
			port := host(t, "tcp", tt.listen, func(c *net.TCPConn) { _, _ = io.CopyBuffer(c, onlyReader{c}, make([]byte, 64)) })
			g := startGuest(t, n, allOffloads)
			c := g.mustDial(via(tt.gateway, port))
			defer c.Close()
			const trips = 200
			before := n.Stats().ToGuest
			buf := make([]byte, 1)
			for range trips {
				_, err := c.Write(buf)
				require.NoError(t, err)
				_, err = io.ReadFull(c, buf)
				require.NoError(t, err)
			}
			frames := n.Stats().ToGuest - before
			t.Logf("%d frames in %d round trips", frames, trips)
			assert.Less(t, frames, uint64(2*trips-10))
		})
	}
}
