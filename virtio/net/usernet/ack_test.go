package usernet

import (
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
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

// learned makes the connection of key one whose answers come after a time.
func (x *tellings) learned(t *testing.T, key ackKey, after time.Duration) {
	t.Helper()
	for i := range ackKey(trust) {
		x.ask(t, key+i)
		require.Equal(t, [][]int{{ackSize}}, x.all(), "the first ones do not wait")
		time.Sleep(after)
		x.answer(t, key+i)
		require.Equal(t, [][]int{{answerSize}}, x.all())
	}
}

const ackSize, answerSize = ip4Size + header.TCPMinimumSize, ip4Size + header.TCPMinimumSize + 1

func (x *tellings) ask(t *testing.T, key ackKey)    { t.Helper(); x.segment(t, key, 0) }
func (x *tellings) answer(t *testing.T, key ackKey) { t.Helper(); x.segment(t, key, 1) }

func (x *tellings) segment(t *testing.T, key ackKey, payload int) {
	t.Helper()
	pkt := reply(uint16(key>>48), uint32(key), header.TCPFlagAck, payload)
	defer pkt.DecRef()
	require.True(t, x.e.put(pkt, key, payload == 0))
}

// reply is a segment to a port of the guest.
func reply(port uint16, acks uint32, flags header.TCPFlags, payload int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: ip4Size + header.TCPMinimumSize, Payload: buffer.MakeWithData(make([]byte, payload))})
	pkt.TransportProtocolNumber, pkt.NetworkProtocolNumber = header.TCPProtocolNumber, header.IPv4ProtocolNumber
	header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{
		SrcPort: 2000, DstPort: port, SeqNum: 7, AckNum: acks, DataOffset: header.TCPMinimumSize, Flags: flags})
	header.IPv4(pkt.NetworkHeader().Push(ip4Size)).Encode(&header.IPv4Fields{
		TotalLength: uint16(ip4Size + header.TCPMinimumSize + payload), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), DstAddr: tcpip.AddrFrom4([4]byte{10, 0, 2, 15})})
	return pkt
}

// TestAcknowledgementsWait: where answers have come soon a bare acknowledgement waits for
// one, a bounded time.
func TestAcknowledgementsWait(t *testing.T) {
	key := newAckKey(1000, 2000, 1)
	const after, wait = 500 * time.Microsecond, 2 * time.Millisecond
	eachEgress(t, "the answer says the same", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		for i := range ackKey(100) {
			x.ask(t, key+i)
			assert.Empty(t, x.all())
			time.Sleep(wait - 1)
			assert.Empty(t, x.all())
			x.answer(t, key+i)
			assert.Equal(t, [][]int{{answerSize}}, x.all())
		}
	})
	eachEgress(t, "company that says something else", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		x.ask(t, key)
		x.put(t, 1000, 0, false)
		assert.Equal(t, [][]int{{ackSize, 1000}}, x.all())
	})
	eachEgress(t, "another's, with the same ports and number", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		x.ask(t, key)
		pkt := reply(1000, 1, header.TCPFlagAck, 1)
		defer pkt.DecRef()
		pkt.NetworkHeader().Slice()[15]++
		require.True(t, x.e.put(pkt, key, false))
		assert.Equal(t, [][]int{{ackSize, answerSize}}, x.all())
	})
	eachEgress(t, "two", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		x.ask(t, key)
		x.ask(t, key+1)
		assert.Equal(t, [][]int{{ackSize, ackSize}}, x.all())
	})
	eachEgress(t, "in vain, and trusted less", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		x.ask(t, key)
		time.Sleep(wait - 1)
		assert.Empty(t, x.all())
		time.Sleep(time.Nanosecond)
		assert.Equal(t, [][]int{{ackSize}}, x.all())
		for i := range ackKey(2 * trust) {
			x.ask(t, key+i)
			assert.Equal(t, [][]int{{ackSize}}, x.all())
			x.answer(t, key+i)
			assert.Equal(t, [][]int{{answerSize}}, x.all())
		}
		x.ask(t, key)
		assert.Empty(t, x.all())
	})
	eachEgress(t, "each connection by itself", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		other := newAckKey(1001, 2000, 1)
		x.ask(t, other)
		assert.Equal(t, [][]int{{ackSize}}, x.all())
		x.ask(t, key)
		assert.Empty(t, x.all())
	})
	eachEgress(t, "answers that take long", func(t *testing.T, x *tellings) {
		x.learned(t, key, soon+1)
		x.ask(t, key)
		assert.Equal(t, [][]int{{ackSize}}, x.all())
	})
	eachEgress(t, "only alone", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		x.put(t, 1000, 0, false)
		x.ask(t, key)
		total := 0
		for _, sizes := range x.all() {
			total += len(sizes)
		}
		if total == 1 { // the first was taken before the second came
			time.Sleep(wait)
			total += len(x.all()[0])
		}
		assert.Equal(t, 2, total)
	})
	eachEgress(t, "taken without being told", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		x.ask(t, key)
		pkt := x.e.take()
		require.NotNil(t, pkt)
		pkt.DecRef()
		time.Sleep(2 * wait)
		assert.Empty(t, x.all())
		x.answer(t, key)
		assert.Equal(t, [][]int{{answerSize}}, x.all())
	})
	eachEgress(t, "closed with one that waits", func(t *testing.T, x *tellings) {
		x.learned(t, key, after)
		x.ask(t, key)
		x.e.close()
		time.Sleep(2 * wait)
		assert.Empty(t, x.all())
	})
}

// TestTurnsOfNagle: a guest whose program writes several times before it reads waits for
// the acknowledgement of its first words: waits in vain stay few, whatever the rhythm.
func TestTurnsOfNagle(t *testing.T) {
	for name, rhythm := range map[string][]int{"2": {2}, "2 1": {2, 1}, "2 1 1": {2, 1, 1}, "3 1 1 1 1": {3, 1, 1, 1, 1},
		"2, seldom": append([]int{2}, slices.Repeat([]int{1}, 20)...)} {
		eachEgress(t, name, func(t *testing.T, x *tellings) {
			const rounds, answer = 2000, 100 * time.Microsecond
			key := newAckKey(1000, 2000, 1)
			begin := time.Now()
			for i := range rounds {
				for n := rhythm[i%len(rhythm)]; n > 1; n-- {
					x.ask(t, key)
					for len(x.all()) == 0 {
						time.Sleep(10 * time.Microsecond)
					}
					key++
				}
				x.ask(t, key)
				time.Sleep(answer)
				x.answer(t, key)
				x.all()
				key++
			}
			lost := time.Since(begin) - rounds*answer
			assert.Less(t, lost, rounds*answer/20)
		})
	}
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
	key := newAckKey(1000, 2000, 110)
	for _, tt := range []struct {
		name  string
		heard []byte
		reply *stack.PacketBuffer
		key   ackKey
		waits bool
	}{
		{"a question's", segment(100, ack|header.TCPFlagPsh, 10), reply(1000, 110, ack, 0), key, true},
		{"the answer", segment(100, ack, 10), reply(1000, 110, ack, 1), key, false},
		{"of more than that", segment(100, ack, 10), reply(1000, 111, ack, 0), newAckKey(1000, 2000, 111), false},
		{"of less", segment(100, ack, 10), reply(1000, 100, ack, 0), newAckKey(1000, 2000, 100), false},
		{"a FIN", segment(100, ack, 10), reply(1000, 110, ack|header.TCPFlagFin, 0), 0, false},
		{"a RST", segment(100, ack, 10), reply(1000, 110, ack|header.TCPFlagRst, 0), 0, false},
		{"without an acknowledgement", segment(100, ack, 10), reply(1000, 110, 0, 0), 0, false},
		{"of a large segment", segment(100, ack, smallSegment+1), reply(1000, 100+smallSegment+1, ack, 0), newAckKey(1000, 2000, 100+smallSegment+1), false},
		{"of the guest's FIN", segment(100, ack|header.TCPFlagFin, 9), reply(1000, 110, ack, 0), key, false},
		{"of nothing", segment(110, ack, 0), reply(1000, 110, ack, 0), key, false},
		{"of what is too short", segment(100, ack, 10)[:19], reply(1000, 110, ack, 0), key, false},
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
		pkt := reply(1000, 110, ack, 0)
		defer pkt.DecRef()
		pkt.TransportProtocolNumber = header.UDPProtocolNumber
		var o owed
		o.note(segment(100, ack, 10))
		key, waits := o.settles(pkt)
		assert.Zero(t, key)
		assert.False(t, waits)
	})
}

// TestRoundTripsAreLearned: of each round trip over either family, in the real stack. How
// many frames they take hangs on the machine, and is only told.
func TestRoundTripsAreLearned(t *testing.T) {
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
			t.Logf("%d frames in %d round trips", n.Stats().ToGuest-before, trips)
			e := n.current.Load().egress[0]
			e.mu.Lock()
			defer e.mu.Unlock()
			require.NotNil(t, e.turns)
			known := slices.IndexFunc(e.turns.by[:], func(c conversation) bool { return c.need > 0 })
			require.GreaterOrEqual(t, known, 0)
			assert.EqualValues(t, port, e.turns.by[known].ports&0xffff)
			assert.Zero(t, e.turns.by[known].asked, "the last answer was seen")
		})
	}
}
