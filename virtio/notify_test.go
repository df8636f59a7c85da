package virtio_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

const plain = virtio.FeatureVersion1 | virtio.FeatureIndirectDesc // no event index

// serve carries out n requests and tells the driver once.
func serve(t *testing.T, q *virtio.Queue, c *virtio.Chain, n int) {
	t.Helper()
	for range n {
		if !q.Pop(c) {
			t.Fatal("no request")
		}
		q.Push(c)
	}
	q.Signal()
}

// TestNoInterruptFlag: VIRTIO 1.2, section 2.7.7.2: without the event index the
// flag counts and used_event does not.
func TestNoInterruptFlag(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, c := manual(t, open, plain)
		q.UsedEvent(0x4000)
		for i := range 10 {
			quiet := i%3 == 1
			q.NoInterrupt(quiet)
			q.Add(d.In(1))
			q.Add(d.In(1))
			before := d.QueueIRQ.Count()
			serve(t, aq, c, 2)
			want := before + 1
			if quiet {
				want = before
			}
			assert.Equal(t, want, d.QueueIRQ.Count(), "one for a batch, none if it is not wanted")
			aq.Signal()
			assert.Equal(t, want, d.QueueIRQ.Count(), "nothing new to tell")
			q.Next()
			q.Next()
		}
	})
}

// TestNoInterruptFlagWithEventIndex: VIRTIO 1.2, section 2.7.7.2: the flag is
// ignored.
func TestNoInterruptFlagWithEventIndex(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, c := manual(t, open, 0)
		q.NoInterrupt(true)
		q.Add(d.In(1))
		serve(t, aq, c, 1)
		assert.Equal(t, 1, d.QueueIRQ.Count())
	})
}

// TestUsedEvent: VIRTIO 1.2, section 2.7.7.2: an interrupt exactly when a batch
// passes used_event, all the way round the index.
func TestUsedEvent(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, c := manual(t, open, 0)
		q.Quiet = true
		q.SetDesc(0, virtiotest.Desc{Addr: virtiotest.RAMBase, Len: 1, Flags: write})
		fired, count := 0, d.QueueIRQ.Count
		base := count()
		for i, at := 0, 0; at < 140_000; i++ {
			batch := 1 + i*7%64
			// Where the driver wants to be told: before, in and behind the batch.
			event := at - 3 + i*5%(batch+6)
			q.UsedEvent(uint16(event))
			for range batch {
				q.Publish(0)
			}
			serve(t, aq, c, batch)
			for range batch {
				q.Poll()
			}
			if event >= at && event < at+batch {
				fired++
			}
			if got := count() - base; got != fired {
				t.Fatalf("used from %d to %d, used_event %d: %d interrupts instead of %d", at, at+batch, event, got, fired)
			}
			at += batch
		}
		assert.NotZero(t, fired)
	})
}

// TestAvailEvent: VIRTIO 1.2, section 2.7.10.2: an idle queue asks for the next
// request, at 65535 and 0 as anywhere, and its flags stay 0.
func TestAvailEvent(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		_, q, aq, c := manual(t, open, 0)
		q.SetDesc(0, virtiotest.Desc{Addr: virtiotest.RAMBase, Len: 1, Flags: write})
		for i := range 70_000 {
			if aq.Pop(c) {
				t.Fatal("a request that was not made")
			}
			if got := q.AvailEvent(); got != uint16(i) {
				t.Fatalf("avail_event is %d instead of %d", got, uint16(i))
			}
			q.Publish(0)
			if !q.Kick() {
				t.Fatalf("no notification wanted at %d", i)
			}
			if q.UsedFlags() != 0 {
				t.Fatal("flags with event index")
			}
			serve(t, aq, c, 1)
			q.Poll()
		}
	})
}

// TestNotificationsWhileBusy: VIRTIO 1.2, section 2.7.10: a device that is
// looking asks for none.
func TestNotificationsWhileBusy(t *testing.T) {
	for name, want := range map[string]uint64{"flag": plain, "event index": 0} {
		t.Run(name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				d, q, aq, c := manual(t, open, want)
				assert.False(t, aq.Pop(c))
				q.Add(d.In(1))
				assert.True(t, q.Kick())
				assert.True(t, aq.Pop(c))
				for range 5 {
					q.Add(d.In(1))
					assert.False(t, q.Kick(), "the device is at work")
				}
				aq.Push(c)
				serve(t, aq, c, 5)
				assert.False(t, aq.Pop(c))
				assert.Zero(t, q.UsedFlags())
				q.Add(d.In(1))
				assert.True(t, q.Kick(), "the device was idle")
			})
		})
	}
}

// take waits for a used element, at first without leaving the CPU, since the
// device may be about to wait.
func take(q *virtiotest.Queue) {
	for range 2000 {
		if _, ok := q.Poll(); ok {
			return
		}
	}
	q.Next()
}

// TestNoNotificationIsLost: VIRTIO 1.2, section 2.7.10: a request that comes
// between the last look at the ring and the wish to be notified is seen all the
// same. One request at a time, notified only if the device asks, so that a loss
// is a standstill.
func TestNoNotificationIsLost(t *testing.T) {
	rounds := 1500
	if testing.Short() {
		rounds = 1000
	}
	for name, want := range map[string]uint64{"flag": plain, "event index": 0} {
		for workers := 1; workers <= 3; workers += 2 {
			t.Run(name, func(t *testing.T) {
				virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
					e := virtiotest.NewEcho(t)
					e.Workers = workers
					d := open(t, e)
					d.Start(want)
					q := d.Queues[0]
					in := d.In(1)
					kicks := 0
					for i := range rounds {
						n := 1 + i%3
						for range n {
							q.Add(in)
							if q.Kick() {
								kicks++
							}
						}
						for range n {
							take(q)
						}
					}
					assert.NotZero(t, kicks)
				})
			})
		}
	}
}

// TestLooksAgain: VIRTIO 1.2, section 2.7.10: behind its wish to be notified the
// device looks at idx once more. Nothing can move idx at that moment but the
// device itself, where a driver has laid the used ring over the available one:
// the device's 0 in used.idx is then an idx that has gone back.
func TestLooksAgain(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Manual = true
		d := open(t, e)
		d.Negotiate(0)
		rings, b := d.Alloc(1024, 16)
		desc, _ := d.Alloc(1024, 16)
		d.Regs.QueueSize(0, 64)
		d.Regs.QueueArea(0, virtio.AreaDesc, desc)
		d.Regs.QueueArea(0, virtio.AreaAvail, rings)
		d.Regs.QueueArea(0, virtio.AreaUsed, rings)
		d.Regs.SetQueueReady(0, true)
		d.DriverOK()
		in := d.In(1)
		table, err := d.Mem.Slice(desc, 16)
		require.NoError(t, err)
		binary.LittleEndian.PutUint64(table, in.GPA)
		binary.LittleEndian.PutUint32(table[8:], 1)
		virtio.Publish(b, 0, 1)

		aq := e.Activation().Queues[0]
		require.True(t, aq.Pop(virtio.NewChain(aq)))
		assert.Equal(t, running, d.Regs.Status())
		assert.False(t, aq.Pop(virtio.NewChain(aq)))
		assert.Equal(t, running|virtio.StatusNeedsReset, d.Regs.Status())
	})
}

// TestSpuriousNotifications: VIRTIO 1.2, section 2.7.10.2.
func TestSpuriousNotifications(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		d := open(t, e)
		d.Start(0)
		for i := range 100 {
			for j := range 5 {
				d.Regs.Notify(j % 3) // there are two
			}
			if i%10 == 0 {
				echo(t, d, i/10%2)
			}
			e.Activation().Queues[0].Wake()
		}
		assert.Equal(t, 10, e.Popped())
		assert.Equal(t, running, d.Regs.Status())
	})
}

// TestPending: what a device asks before it wakes another worker.
func TestPending(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d, q, aq, c := manual(t, open, 0)
		assert.False(t, aq.Pending())
		q.Add(d.In(1))
		assert.True(t, aq.Pending())
		q.Add(d.In(1))
		require.True(t, aq.Pop(c))
		assert.True(t, aq.Pending())
		aq.Push(c)
		serve(t, aq, c, 1)
		assert.False(t, aq.Pending())
	})
}

// TestWorkersShareAQueue: several goroutines lose no request, answer none twice.
func TestWorkersShareAQueue(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		e := virtiotest.NewEcho(t)
		e.Workers = 4
		d := open(t, e)
		d.Start(0)
		q := d.Queues[0]
		for range 300 {
			want := map[uint32]bool{}
			out := d.Out([]byte("12"))
			for range 32 {
				want[uint32(q.Add(out, d.In(2)))] = true
			}
			q.Kick()
			for range 32 {
				u := q.Next()
				assert.True(t, want[u.Head])
				delete(want, u.Head)
			}
			assert.Empty(t, want)
		}
		require.NoError(t, d.Function.Pause(patient(t)))
		assert.Equal(t, 300*32, e.Pushed())
	})
}
