package net_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestOffer: what is on offer is what the backend can do, and never without what it
// needs (VIRTIO 1.2, 5.1.3.1, rule 3); the configuration space goes with it.
func TestOffer(t *testing.T) {
	own := virtionet.FeatureMAC | virtionet.FeatureMrgRxBuf | virtionet.FeatureStatus | virtionet.FeatureCtrlVQ |
		virtionet.FeatureCtrlRx | virtionet.FeatureCtrlMACAddr | virtionet.FeatureGuestAnnounce
	for _, tc := range []struct {
		name     string
		features uint64
		pairs    int
		mtu      int
		want     uint64
	}{
		{"nothing", 0, 1, 0, own},
		{"all", math.MaxUint64, 1, 0, own | allOffloads},
		{"an MTU", 0, 1, 9000, own | virtionet.FeatureMTU},
		{"pairs", 0, 2, 0, own | virtionet.FeatureMQ},
		{"no checksums", allOffloads &^ virtionet.FeatureCsum, 1, 0, own | allOffloads&^(virtionet.FeatureCsum|virtionet.FeatureHostTSO4|virtionet.FeatureHostTSO6|virtionet.FeatureHostECN|virtionet.FeatureHostUSO)},
		{"no checksums of the guest's", allOffloads &^ virtionet.FeatureGuestCsum, 1, 0, own | virtionet.FeatureCsum | virtionet.FeatureHostTSO4 | virtionet.FeatureHostTSO6 | virtionet.FeatureHostECN | virtionet.FeatureHostUSO},
		{"ECN alone", virtionet.FeatureHostECN | virtionet.FeatureGuestECN | virtionet.FeatureCsum | virtionet.FeatureGuestCsum, 1, 0, own | virtionet.FeatureCsum | virtionet.FeatureGuestCsum},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				b := newFake().withPairs(tc.pairs)
				b.features, b.mtu = tc.features, tc.mtu
				n := attach(t, open, b, virtionet.Options{}, 0)
				rings := virtio.FeatureIndirectDesc | virtio.FeatureEventIdx | virtio.FeatureVersion1
				assert.Equal(t, tc.want|rings, n.Regs.DeviceFeatures())
				assert.Equal(t, virtionet.Config{MAC: [6]byte(guestMAC), Status: 1, MaxPairs: uint16(tc.pairs), MTU: uint16(tc.mtu)}, n.config())
				assert.Equal(t, virtio.TypeNet, n.Regs.Type())
				assert.Equal(t, tc.want|rings, b.acked)
				assert.Len(t, n.Queues, 2*tc.pairs+1)
				// Neither can be changed, nor is there anything behind them.
				n.Regs.WriteConfig(0, slices.Repeat([]byte{0xff}, 12))
				p := slices.Repeat([]byte{0xff}, 8)
				for i := range p {
					n.Regs.ReadConfig(12+i, p[i:i+1])
				}
				assert.Equal(t, make([]byte, 8), p)
				assert.Equal(t, [6]byte(guestMAC), n.config().MAC)
			})
		})
	}
}

// TestPrerequisites: what a driver acknowledges without its prerequisite is not
// used.
func TestPrerequisites(t *testing.T) {
	for name, tc := range map[string]struct{ acked, used uint64 }{
		"TSO":       {virtionet.FeatureHostTSO4 | virtionet.FeatureGuestTSO4, 0},
		"ECN":       {virtionet.FeatureCsum | virtionet.FeatureHostECN, virtionet.FeatureCsum},
		"USO":       {virtionet.FeatureGuestUSO4 | virtionet.FeatureHostUSO, 0},
		"MQ":        {virtionet.FeatureMQ, 0},
		"filter":    {virtionet.FeatureCtrlRx | virtionet.FeatureGuestAnnounce | virtionet.FeatureMTU, virtionet.FeatureMTU},
		"ECN chain": {virtionet.FeatureHostTSO4 | virtionet.FeatureHostECN, 0},
		"whole":     {allOffloads, allOffloads},
	} {
		assert.Equal(t, tc.used, virtionet.Settle(tc.acked), name)
	}
}

// TestOptions: what makes no sense is refused in one line, and the backend closed.
func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    virtionet.Options
		say  string
	}{
		{"MAC too short", virtionet.Options{MAC: guestMAC[:5]}, "5 bytes instead of 6"},
		{"MAC of a group", virtionet.Options{MAC: virtionet.HardwareAddr{1, 2, 3, 4, 5, 6}}, "first byte must be even"},
		{"MAC of nobody", virtionet.Options{MAC: make(virtionet.HardwareAddr, 6)}, "nobody's"},
		{"too many pairs", virtionet.Options{Pairs: 3}, "its backend serves 2"},
		{"far too many pairs", virtionet.Options{Pairs: 1000}, "1 to 64 are possible"},
		{"negative pairs", virtionet.Options{Pairs: -1}, "1 to 64 are possible"},
		{"small MTU", virtionet.Options{MTU: 67}, "68 to 65535 are possible"},
		{"large MTU", virtionet.Options{MTU: 65536}, "68 to 65535 are possible"},
		{"MTU beyond the backend's", virtionet.Options{MTU: 1501}, "packets of 1500 bytes at most"},
		{"a rate", virtionet.Options{RxLimits: virtio.Limits{Bytes: virtio.Rate{PerSecond: -1}}}, "receiving: "},
		{"another rate", virtionet.Options{TxLimits: virtio.Limits{Ops: virtio.Rate{Burst: 1}}}, "sending: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newFake().withPairs(2)
			tc.o.Name = "eth7"
			_, err := virtionet.New(b, tc.o)
			require.ErrorIs(t, err, virtionet.ErrOptions)
			assert.ErrorContains(t, err, tc.say)
			assert.ErrorContains(t, err, "eth7")
			assert.NotContains(t, err.Error(), "\n")
			assert.Equal(t, 1, b.closed)
		})
	}
}

// TestStableMAC: the same for the same seed, an address of one device that nobody was
// sold.
func TestStableMAC(t *testing.T) {
	seen := map[string]bool{}
	for i := range 1000 {
		seed := fmt.Sprint("device ", i)
		mac := virtionet.StableMAC(seed)
		require.Len(t, mac, 6)
		require.EqualValues(t, 2, mac[0]&3, mac)
		require.Equal(t, mac, virtionet.StableMAC(seed))
		seen[mac.String()] = true
	}
	assert.Len(t, seen, 1000)
}

// named is a backend that has a name.
type named struct {
	*fake
	name string
}

func (n named) Name() string { return n.name }

// TestDefaultMAC: devices on two taps of one bridge have two addresses, also when the
// program says nothing of either.
func TestDefaultMAC(t *testing.T) {
	for name, tc := range map[string]struct {
		backend virtionet.Backend
		o       virtionet.Options
		want    virtionet.HardwareAddr
	}{
		"a name given":                     {newFake(), virtionet.Options{Name: "wan"}, virtionet.StableMAC("wan")},
		"one given over the backend's":     {named{newFake(), "tap0"}, virtionet.Options{Name: "wan"}, virtionet.StableMAC("wan")},
		"the backend's":                    {named{newFake(), "tap0"}, virtionet.Options{}, virtionet.StableMAC("tap0")},
		"another backend's":                {named{newFake(), "tap1"}, virtionet.Options{}, virtionet.StableMAC("tap1")},
		"a backend that has none":          {newFake(), virtionet.Options{}, virtionet.StableMAC("net")},
		"a backend whose name is empty":    {named{newFake(), ""}, virtionet.Options{}, virtionet.StableMAC("net")},
		"an address given over every name": {named{newFake(), "tap0"}, virtionet.Options{Name: "wan", MAC: guestMAC}, guestMAC},
	} {
		t.Run(name, func(t *testing.T) {
			dev, err := virtionet.New(tc.backend, tc.o)
			require.NoError(t, err)
			assert.Equal(t, tc.want, dev.MAC())
			assert.NoError(t, dev.Close())
		})
	}
}

// TestBeforeDriverOK: nothing is taken from a queue, whatever is notified (rule 2).
func TestBeforeDriverOK(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		b := newFake()
		dev, err := virtionet.New(b, virtionet.Options{MAC: guestMAC})
		require.NoError(t, err)
		n := nic{Driver: open(t, dev), t: t, dev: dev}
		b.put(0, incoming(frame(guestMAC, 60, 1)))
		n.Negotiate(0)
		for i := range 3 {
			n.SetUp(i, n.Regs.QueueMax(i))
		}
		bufs := n.post(0, 1526)
		n.tx(0).Add(n.Out(incoming(frame(guestMAC, 60, 2))))
		n.Regs.Notify(0)
		n.Regs.Notify(1)
		quiet(t, n.rx(0))
		assert.Zero(t, n.tx(0).UsedIndex())
		assert.Zero(t, b.starts)
		n.DriverOK()
		_, got := n.got(0, &bufs)
		assert.Equal(t, frame(guestMAC, 60, 1), got)
		n.tx(0).Next()
		assert.Len(t, b.took(0), 1)
	})
}

// TestStartFails: a backend that can't start breaks the device until its reset.
func TestStartFails(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		b := newFake()
		b.startErr = errors.New("not today")
		n := attach(t, open, b, virtionet.Options{}, 0)
		n.NeedsReset()
		b.set(func() { b.startErr = nil })
		n.Start(0)
		n.send(0, incoming(frame(guestMAC, 60, 2)))
	})
}

// TestLink: the link goes down and up for whoever pulls the cable; the driver is told,
// asked to announce itself, and acknowledges that (5.1.4, 5.1.6.5.4, rule 5).
func TestLink(t *testing.T) {
	for name, which := range map[string]func(n nic, s *speaking) func(up bool){
		"owner":   func(n nic, _ *speaking) func(bool) { return n.dev.SetLink },
		"backend": func(_ nic, s *speaking) func(bool) { return s.tell },
	} {
		t.Run(name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				b := &speaking{fake: newFake()}
				n := attach(t, open, b, virtionet.Options{}, 0)
				set := which(n, b)
				assert.EqualValues(t, 1, n.config().Status)
				bufs := n.post(0, 1526, 1526)
				irqs, generation := n.ConfigIRQ.Count(), n.Regs.ConfigGeneration()
				set(false)
				n.ConfigIRQ.Wait(t, irqs)
				assert.Zero(t, n.config().Status)
				assert.NotEqual(t, generation, n.Regs.ConfigGeneration())
				// What is sent and received meanwhile is lost.
				b.put(0, incoming(frame(guestMAC, 60, 1)))
				n.Until("the frame is taken", func() bool { return b.waiting(0) == 0 })
				n.send(0, incoming(frame(guestMAC, 60, 1)))
				assert.Empty(t, b.took(0))
				irqs = n.ConfigIRQ.Count()
				set(false)
				set(true)
				n.ConfigIRQ.Wait(t, irqs)
				assert.EqualValues(t, 3, n.config().Status)
				assert.EqualValues(t, 3, n.dev.State().(virtionet.State).Status)
				assert.EqualValues(t, 0, n.command(3, 0))
				assert.EqualValues(t, 1, n.config().Status)
				b.put(0, incoming(frame(guestMAC, 70, 1)))
				_, got := n.got(0, &bufs)
				assert.Len(t, got, 70)
				counts(n, virtionet.ReceiveDropped{LinkDown: 1}, notReceived)
				counts(n, virtionet.SendDropped{LinkDown: 1}, notSent)
				// It outlives a reset, without a word of an announcement.
				set(false)
				set(true)
				assert.EqualValues(t, 3, n.config().Status)
				n.Start(virtionet.FeatureStatus | virtionet.FeatureMrgRxBuf)
				assert.EqualValues(t, 1, n.config().Status)
				set(false)
				set(true)
				assert.EqualValues(t, 1, n.config().Status, "not negotiated")
				set(false)
				n.Reset()
				n.Negotiate(0)
				assert.Zero(t, n.config().Status)
				set(true)
				for i := range 3 {
					n.SetUp(i, 64)
				}
				irqs = n.ConfigIRQ.Count()
				n.DriverOK()
				n.ConfigIRQ.Wait(t, irqs) // it may have read the status before
				assert.EqualValues(t, 1, n.config().Status)
			})
		})
	}
}

// TestLinkPaused: a change of the link during a pause is told after it.
func TestLinkPaused(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		n := attach(t, open, newFake(), virtionet.Options{}, 0)
		irqs := n.ConfigIRQ.Count()
		require.NoError(t, n.Function.Pause(patient(t)))
		n.dev.SetLink(false)
		assert.Equal(t, irqs, n.ConfigIRQ.Count())
		n.Function.Resume()
		n.ConfigIRQ.Wait(t, irqs)
	})
}

// counting is a backend that keeps numbers of its own.
type counting struct{ *fake }

func (counting) Counters() []virtio.Counter { return []virtio.Counter{{Name: "flows", Value: 3}} }

// TestCounters: the numbers for a report are those of Stats, all of them, and then
// the backend's.
func TestCounters(t *testing.T) {
	b := counting{newFake()}
	n := attach(t, virtiotest.OpenMMIO, b, virtionet.Options{}, 0)
	bufs := n.post(0, 1526)
	b.put(0, incoming(frame(guestMAC, 60, 1)))
	n.got(0, &bufs)
	n.send(0, incoming(frame(guestMAC, 70, 1)))
	n.send(0, incoming(frame(guestMAC, 7, 1)))
	counts(n, 1, received)
	counts(n, virtionet.SendDropped{Malformed: 1}, notSent)
	got := map[string]uint64{}
	for _, c := range n.dev.Counters() {
		got[c.Name] = c.Value
	}
	assert.Len(t, got, 14)
	for name, want := range map[string]uint64{"frames in": 1, "bytes in": 60, "frames out": 1, "bytes out": 70, "out, malformed": 1, "in, too long": 0, "flows": 3} {
		assert.Equal(t, want, got[name], name)
	}
}

// TestBackendGone: a backend whose Wait fails takes the link down, and the device
// lives on and comes back with it.
func TestBackendGone(t *testing.T) {
	gone := errors.New("gone")
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		t.Run("speaking", func(t *testing.T) {
			b := &speaking{fake: newFake()}
			n := attach(t, open, b, virtionet.Options{}, 0)
			bufs := n.post(0, 1526)
			irqs := n.ConfigIRQ.Count()
			b.set(func() { b.waitErr = gone })
			b.tell(false)
			n.ConfigIRQ.Wait(t, irqs)
			assert.Zero(t, n.config().Status)
			require.NoError(t, n.Function.Pause(patient(t)))
			n.Function.Resume()
			b.set(func() { b.waitErr = nil })
			b.tell(true)
			b.put(0, incoming(frame(guestMAC, 60, 1)))
			_, got := n.got(0, &bufs)
			assert.Len(t, got, 60)
			b.set(func() { b.waitErr = gone })
			b.tell(false)
			n.Start(0) // a reset does not wait for it
			assert.Zero(t, n.config().Status)
		})
		t.Run("silent", func(t *testing.T) {
			b, clock := newFake(), newClock()
			dev, err := virtionet.NewWithClock(b, virtionet.Options{MAC: guestMAC}, clock)
			require.NoError(t, err)
			n := started(t, open, dev, 0)
			bufs := n.post(0, 1526)
			irqs := n.ConfigIRQ.Count()
			b.set(func() { b.waitErr = gone })
			n.ConfigIRQ.Wait(t, irqs)
			assert.Zero(t, n.config().Status)
			receive(t, clock.asked)
			clock.advance(time.Second)
			receive(t, clock.asked) // it has asked again
			b.set(func() { b.waitErr = nil })
			b.put(0, incoming(frame(guestMAC, 60, 1)))
			clock.advance(time.Second)
			_, got := n.got(0, &bufs)
			assert.Len(t, got, 60)
			assert.EqualValues(t, 1, n.config().Status&1)
		})
	})
}

// TestLimits: a frame over the limit is late, not lost; meanwhile the device can be
// paused and reset, and the debt outlives a reset.
func TestLimits(t *testing.T) {
	limits := virtio.Limits{Ops: virtio.Rate{PerSecond: 1, Burst: 1}}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		t.Run("receive", func(t *testing.T) {
			b, clock := newFake(), newClock()
			dev, err := virtionet.NewWithClock(b, virtionet.Options{MAC: guestMAC, RxLimits: limits}, clock)
			require.NoError(t, err)
			n := started(t, open, dev, 0)
			bufs := n.post(0, 1526, 1526, 1526, 1526)
			for range 4 {
				b.put(0, incoming(frame(guestMAC, 60, 1)))
			}
			n.got(0, &bufs)
			n.got(0, &bufs)
			assert.Equal(t, time.Second, receive(t, clock.asked))
			quiet(t, n.rx(0))
			assert.Equal(t, 2, b.waiting(0), "with the backend")
			require.NoError(t, n.Function.Pause(patient(t)))
			n.Function.Resume()
			clock.advance(time.Second)
			n.got(0, &bufs)
			assert.Equal(t, time.Second, receive(t, clock.asked))
			n.Start(0)
			bufs = n.post(0, 1526)
			assert.Equal(t, time.Second, receive(t, clock.asked))
			quiet(t, n.rx(0))
			clock.advance(time.Second)
			n.got(0, &bufs)
			counts(n, virtionet.ReceiveDropped{}, notReceived)
		})
		t.Run("send", func(t *testing.T) {
			b, clock := newFake(), newClock()
			dev, err := virtionet.NewWithClock(b, virtionet.Options{MAC: guestMAC, TxLimits: virtio.Limits{Bytes: virtio.Rate{PerSecond: 60, Burst: 60}}}, clock)
			require.NoError(t, err)
			n := started(t, open, dev, 0)
			q := n.tx(0)
			for range 4 {
				q.Add(n.Out(incoming(frame(guestMAC, 60, 1))))
			}
			q.Kick()
			q.Next()
			q.Next()
			assert.Equal(t, time.Second, receive(t, clock.asked))
			quiet(t, q)
			require.NoError(t, n.Function.Pause(patient(t)))
			n.Function.Resume()
			clock.advance(time.Second)
			q.Next()
			assert.Equal(t, time.Second, receive(t, clock.asked))
			assert.Len(t, b.took(0), 3)
			n.Start(0)
			assert.Equal(t, time.Second, receive(t, clock.asked))
			counts(n, virtionet.SendDropped{}, notSent)
		})
	})
}

// TestTrafficAndLife: pause, reset and a change of the pairs while frames come and go
// on every queue. What a paused guest has does not change, after a reset nothing is
// written and the backend not called.
func TestTrafficAndLife(t *testing.T) {
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		const pairs = 2
		b := newFake().withPairs(pairs)
		b.capacity = 64
		dev, err := virtionet.New(b, virtionet.Options{MAC: guestMAC})
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, dev.Close()) })
		stop := make(chan struct{})
		var outside sync.WaitGroup
		outside.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				size := []int{60, 1514, 20000}[i%3]
				f := incoming(frame(guestMAC, size, byte(i)))
				if size > 1514 {
					copy(f, hdr{Flags: 1, GSO: 1, Len: 54, Size: 1448, Start: 34, Offset: 16}.bytes())
				}
				if !b.put(i%pairs, f) {
					time.Sleep(50 * time.Microsecond)
				}
				if i%100 == 0 {
					dev.SetLink(i%1000 != 0)
				}
				dev.Stats()
				dev.State()
			}
		})
		defer outside.Wait()
		defer close(stop)
		for round := range rounds {
			n := nic{Driver: open(t, dev), t: t, dev: dev}
			n.Start(0)
			n.command(4, 0, pairs, 0)
			room := [pairs][]virtiotest.Buffer{}
			out := n.Out(incoming(frame(guestMAC, 900, 1)))
			for p := range pairs {
				room[p] = n.post(p, slices.Repeat([]int{2048}, 200)...)
			}
			for step := range 60 {
				p := rand.IntN(pairs)
				for range 20 {
					if _, ok := n.tx(p).Poll(); !ok && len(room[p]) > 0 {
						break
					}
				}
				if step < 20 {
					n.tx(p).Add(out)
					n.tx(p).Kick()
				}
				for {
					if _, ok := n.rx(p).Poll(); !ok {
						break
					}
					n.rx(p).Add(room[p][rand.IntN(len(room[p]))])
				}
				n.rx(p).Kick()
				switch step % 30 {
				case 5:
					require.NoError(t, n.Function.Pause(patient(t)))
					before := n.Snapshot()
					time.Sleep(time.Millisecond)
					require.True(t, bytes.Equal(before, n.Snapshot()), "a paused guest")
					n.Function.Resume()
				case 10:
					n.command(4, 0, byte(1+rand.IntN(pairs)), 0)
				}
			}
			if round%2 == 0 {
				n.Reset()
			} else {
				require.NoError(t, n.Function.Close(patient(t)))
			}
			before, called, irqs := n.Snapshot(), lateCalls(b), n.QueueIRQ.Count()
			time.Sleep(time.Millisecond)
			require.True(t, bytes.Equal(before, n.Snapshot()), "a guest after its reset")
			require.Equal(t, irqs, n.QueueIRQ.Count(), "interrupts of a device that was reset")
			require.Equal(t, called, lateCalls(b), "the backend of a device that was reset")
			require.NoError(t, n.Function.Close(patient(t)))
		}
		assert.NotZero(t, dev.Stats().Received)
		assert.NotZero(t, dev.Stats().Sent)
	})
}

// lateCalls is how many calls came after Stop.
func lateCalls(b *fake) (n int) {
	b.set(func() { n = b.late })
	return n
}
