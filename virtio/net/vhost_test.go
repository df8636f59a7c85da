package net

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// carried is a guest with a network device whose frames a fake kernel moves.
type carried struct {
	*virtiotest.Driver
	t       testing.TB
	dev     *Device
	tap     *fakeTap
	kernels []*fakeKernel
}

func newCarried(t testing.TB, open virtiotest.Opener, pairs int) *carried {
	t.Helper()
	c := &carried{t: t, tap: &fakeTap{pairs: pairs}}
	again := func() (vhostKernel, error) {
		k := newFakeKernel(len(c.kernels))
		c.kernels = append(c.kernels, k)
		return k, nil
	}
	kernels, err := openKernels(pairs, again)
	require.NoError(t, err)
	c.dev, err = New(newVHost(c.tap, kernels, again), Options{MAC: HardwareAddr{0x52, 0, 0, 0, 0, 1}})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, c.dev.Close())
		for _, k := range c.kernels {
			assert.Equal(t, 1, k.closed)
		}
	})
	c.Driver = open(t, c.dev)
	return c
}

// send makes n frames available and waits until they are used.
func (c *carried) send(pair, n int) {
	c.t.Helper()
	q := c.Queues[2*pair+1]
	for range n {
		q.Add(c.Out(make([]byte, HeaderSize+60)))
	}
	c.Regs.Notify(q.Index)
	for range n {
		require.Zero(c.t, q.Next().Len)
	}
}

// receive has n frames come.
func (c *carried) receive(pair, n int) {
	c.t.Helper()
	q := c.Queues[2*pair]
	for range n {
		q.Add(c.In(1526))
	}
	require.True(c.t, c.kernels[pair].deliver(n))
	for range n {
		require.EqualValues(c.t, 72, q.Next().Len)
	}
}

func (c *carried) command(class, command byte, data ...byte) byte {
	c.t.Helper()
	q := c.Queues[2]
	if c.Features&FeatureMQ != 0 {
		q = c.Queues[len(c.Queues)-1]
	}
	ack := c.In(1)
	q.Add(c.Out([]byte{class, command}), c.Out(data), ack)
	q.Kick()
	q.Next()
	return c.Bytes(ack)[0]
}

func (c *carried) status() uint16 {
	var b [2]byte
	c.Regs.ReadConfig(configStatus, b[:1])
	return uint16(b[0])
}

func (c *carried) pause() {
	c.t.Helper()
	ctx, cancel := contextFor(c.t)
	defer cancel()
	require.NoError(c.t, c.Function.Pause(ctx))
}

func (c *carried) position(queue int) virtio.QueueState {
	return c.Function.State().Queues[queue].QueueState
}

var (
	both    = [2]bool{true, true}
	neither = [2]bool{}
)

// TestVHostLife: what the kernel is told from the activation to the reset, and nothing
// after it (rule 1); and all of it again for the next driver.
func TestVHostLife(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		c := newCarried(t, open, 1)
		k := c.kernels[0]
		assert.Equal(t, []string{"own"}, k.requests())
		for _, features := range []uint64{0, virtio.FeatureEventIdx | FeatureCsum | FeatureMrgRxBuf | FeatureCtrlVQ | FeatureCtrlMACAddr} {
			c.Negotiate(features)
			for i := range 3 {
				c.SetUp(i, 64)
			}
			assert.Zero(t, c.Regs.DeviceFeatures()&FeatureCtrlRx, "who sees no frames can't filter them")
			c.Regs.Notify(1)
			assert.Empty(t, k.requests(), "before DRIVER_OK (rule 2)")
			c.DriverOK()
			want := vhostFeatures
			if features != 0 {
				want = virtio.FeatureVersion1 | virtio.FeatureEventIdx | FeatureMrgRxBuf
			}
			assert.Equal(t, []string{
				fmt.Sprintf("features %#x", want), "memory 1",
				"size 0", "rings 0", "kick 0", "call 0", "err 0",
				"size 1", "rings 1", "kick 1", "call 1", "err 1",
				"base 0", "backend 0", "base 1", "backend 1",
			}, k.requests())
			assert.Equal(t, 1000, k.rings[vhostRx].backend)
			assert.EqualValues(t, 64, k.rings[vhostRx].size)
			irqs := c.QueueIRQ.Count()
			c.receive(0, 5)
			c.QueueIRQ.Wait(t, irqs)
			c.send(0, 7)
			c.receive(0, 1)
			assert.Zero(t, c.command(controlMAC, controlMACSet, 0x52, 1, 2, 3, 4, 5))
			assert.EqualValues(t, controlErr, c.command(controlRx, controlRxPromiscuous, 1))
			c.Reset()
			assert.Equal(t, []string{
				"no backend 0", "kick 0", "call 0", "err 0", "no backend 1", "kick 1", "call 1", "err 1",
			}, k.requests())
			assert.Equal(t, []int{-1, -1, -1}, []int{k.rings[vhostTx].kick, k.rings[vhostTx].call, k.rings[vhostTx].err})
		}
		assert.Equal(t, 14, k.frames())
	})
}

// TestVHostPause: while paused the kernel does nothing, and the queues stand where it
// has come to; from there it goes on.
func TestVHostPause(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		c := newCarried(t, open, 1)
		c.pause()
		c.Start(0)
		k := c.kernels[0]
		assert.Equal(t, neither, k.running(), "it waits with its requests")
		c.Function.Resume()
		assert.Equal(t, both, k.running())
		c.receive(0, 3)
		c.send(0, 2)
		for round := range uint16(3) {
			c.pause()
			assert.Equal(t, neither, k.running())
			assert.Equal(t, virtio.QueueState{NextAvail: 3, NextUsed: 3}, c.position(0))
			assert.Equal(t, virtio.QueueState{NextAvail: 2 + round, NextUsed: 2 + round}, c.position(1))
			c.Queues[1].Add(c.Out(make([]byte, 72)))
			c.Regs.Notify(1)
			irqs, before := c.QueueIRQ.Count(), c.Snapshot()
			assert.False(t, k.deliver(1))
			assert.Equal(t, before, c.Snapshot())
			assert.Equal(t, irqs, c.QueueIRQ.Count())
			// What was made available meanwhile is taken without a word.
			c.Function.Resume()
			c.Queues[1].Next()
		}
		c.pause()
		c.Reset()
		c.Function.Resume()
		assert.Equal(t, neither, k.running())
		c.Start(0)
		c.send(0, 1)

		// The driver is told of the last that came before the pause returns.
		c.pause()
		c.Function.Resume()
		k.mu.Lock()
		k.last = 1
		k.mu.Unlock()
		for range 50 {
			c.Queues[0].Add(c.In(1526))
			irqs := c.QueueIRQ.Count()
			c.pause()
			require.Equal(t, irqs+1, c.QueueIRQ.Count())
			require.EqualValues(t, 72, c.Queues[0].Next().Len)
			c.Function.Resume()
		}
	})
}

// TestVHostLink: with the link down nothing passes; what the kernel took when the
// interface went, and gave not back, is taken again by the next.
func TestVHostLink(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		c := newCarried(t, open, 1)
		c.Start(0)
		k := c.kernels[0]
		c.send(0, 2)
		c.dev.SetLink(false)
		assert.Equal(t, neither, k.running())
		c.dev.SetLink(true)
		assert.Equal(t, both, k.running())
		c.send(0, 1)
		assert.Zero(t, c.command(controlAnnounce, controlAnnounceAck))

		c.tap.set(true)
		for range 3 {
			c.Queues[1].Add(c.Out(make([]byte, 72)))
		}
		k.lose(2)
		c.Until("the loss is noticed", func() bool {
			c.tap.mu.Lock()
			defer c.tap.mu.Unlock()
			return c.tap.noticed > 0
		})
		k.mu.Lock()
		k.breaks() // once more, perhaps read when the interface is back
		k.mu.Unlock()
		c.tap.tell(false)
		assert.Zero(t, c.status())
		assert.Equal(t, neither, k.running())
		c.pause()
		assert.Equal(t, virtio.QueueState{NextAvail: 3, NextUsed: 3}, c.position(1))
		c.Function.Resume()
		assert.Equal(t, neither, k.running())
		c.tap.set(false)
		c.tap.tell(true)
		for range 3 {
			c.Queues[1].Next()
		}
		assert.EqualValues(t, StatusLinkUp|StatusAnnounce, c.status())
		assert.Zero(t, c.Regs.Status()&virtio.StatusNeedsReset, "the device lives")

		// Gone where nobody has noticed: at an activation, and during a pause.
		c.pause()
		c.tap.set(true)
		c.Function.Resume()
		assert.Equal(t, neither, k.running())
		c.Start(0)
		assert.Equal(t, neither, k.running())
		c.tap.tell(false)
		c.tap.set(false)
		c.tap.tell(true)
		assert.Equal(t, both, k.running())
		assert.Zero(t, c.Regs.Status()&virtio.StatusNeedsReset, "the device lives")
		c.send(0, 1)
		c.receive(0, 1)
	})
}

// TestVHostBroken: a ring that the kernel can't go on with breaks the device until its
// reset (rule 6).
func TestVHostBroken(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		c := newCarried(t, open, 1)
		for range 2 {
			c.Start(0)
			c.send(0, 1)
			irqs := c.ConfigIRQ.Count()
			c.kernels[0].lose(0)
			c.NeedsReset()
			c.ConfigIRQ.Wait(t, irqs)
		}
	})
}

// TestVHostRefuses: whatever the kernel refuses at the activation breaks the device, and
// nothing of it is left behind.
func TestVHostRefuses(t *testing.T) {
	for _, request := range []string{"features", "memory", "size", "rings", "kick", "call", "err", "base", "backend"} {
		t.Run(request, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				c := newCarried(t, open, 1)
				k := c.kernels[0]
				k.fail[request] = unix.EINVAL
				c.Start(0)
				c.NeedsReset()
				assert.Equal(t, neither, k.running())
				delete(k.fail, request)
				c.Start(0)
				c.send(0, 1)
			})
		})
	}
	// What it refuses later: to stop. Then its file is closed, which stops it.
	for _, request := range []string{"no backend", "get base"} {
		t.Run(request, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				c := newCarried(t, open, 1)
				c.Start(0)
				k := c.kernels[0]
				k.fail[request] = unix.EINVAL
				c.Reset()
				assert.Equal(t, neither, k.running())
				assert.Equal(t, 1, k.closed)
				require.Len(t, c.kernels, 1)
				c.Start(0)
				require.Len(t, c.kernels, 2)
				slices.Reverse(c.kernels)
				c.send(0, 1)
				slices.Reverse(c.kernels)
			})
		})
	}
	t.Run("when the link comes up", func(t *testing.T) {
		virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
			c := newCarried(t, open, 1)
			c.Start(0)
			c.dev.SetLink(false)
			c.kernels[0].fail["backend"] = unix.EINVAL
			c.dev.SetLink(true)
			c.NeedsReset()
			delete(c.kernels[0].fail, "backend")
			c.Start(0)
			c.send(0, 1)
		})
	})
}

// TestVHostPairs: a kernel's file for each pair of queues; those that the driver does not
// use are not served, since the tap's queue is detached (5.1.6.5.6).
func TestVHostPairs(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		c := newCarried(t, open, 3)
		c.Start(0)
		require.Len(t, c.kernels, 3)
		serving := func() (n int) {
			for _, k := range c.kernels {
				r := k.running()
				assert.Equal(t, r[0], r[1])
				if r[0] {
					n++
				}
			}
			return n
		}
		assert.Equal(t, 1, serving())
		for _, n := range []byte{3, 1, 2, 2, 3} {
			require.Zero(t, c.command(controlMQ, controlMQPairs, n, 0))
			assert.EqualValues(t, n, serving())
			for p := range int(n) {
				c.send(p, 2)
				c.receive(p, 2)
			}
		}
		c.tap.pairErr = errors.New("not today")
		assert.EqualValues(t, controlErr, c.command(controlMQ, controlMQPairs, 1, 0))
		assert.Equal(t, 3, serving())
		c.pause()
		assert.Zero(t, serving())
		c.Function.Resume()
		assert.Equal(t, 3, serving())
		// Without MQ the control queue is where the second pair would begin.
		c.tap.pairErr = nil
		c.Start(virtio.FeatureEventIdx | FeatureCtrlVQ | FeatureCtrlMACAddr)
		assert.Equal(t, 1, serving())
		c.send(0, 3)
		assert.Zero(t, c.command(controlMAC, controlMACSet, 0x52, 1, 2, 3, 4, 5))
		calls := fmt.Sprint(c.tap.calls)
		assert.Contains(t, calls, "pairs 3 pairs 1 pairs 2 pairs 2 pairs 3 pairs 1 stop start")
	})
}

// TestVHostHalf: a driver that sets up one queue of the pair.
func TestVHostHalf(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		c := newCarried(t, open, 1)
		c.Negotiate(0)
		c.SetUp(1, 16)
		c.DriverOK()
		assert.Equal(t, [2]bool{vhostTx: true}, c.kernels[0].running())
		c.send(0, 3)
	})
}

// TestVHostErrors: what is wrong with /dev/vhost-net is said in a line, with what mends
// it.
func TestVHostErrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		open   error
		change func(k *fakeKernel)
		is     error
		say    string
	}{
		{"not there", unix.ENOENT, nil, ErrNoVHost, "sudo modprobe vhost_net"},
		{"no such driver", unix.ENODEV, nil, ErrNoVHost, "sudo modprobe vhost_net"},
		{"not allowed", unix.EACCES, nil, ErrVHostPermission, "sudo chmod 666 /dev/vhost-net"},
		{"no more files", unix.EMFILE, nil, unix.EMFILE, "/dev/vhost-net"},
		{"too old", nil, func(k *fakeKernel) { k.offer &^= virtio.FeatureVersion1 }, ErrNoVHost, "lacks the features 0x100000000"},
		{"no features", nil, func(k *fakeKernel) { k.fail["features"] = unix.EFAULT }, unix.EFAULT, "/dev/vhost-net"},
		{"no owner", nil, func(k *fakeKernel) { k.fail["own"] = unix.ENOMEM }, unix.ENOMEM, "/dev/vhost-net"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var made []*fakeKernel
			_, err := openKernels(3, func() (vhostKernel, error) {
				k := newFakeKernel(len(made))
				if len(made) == 1 { // the second of them
					if tc.open != nil {
						return nil, tc.open
					}
					tc.change(k)
				}
				made = append(made, k)
				return k, nil
			})
			require.ErrorIs(t, err, tc.is)
			assert.ErrorContains(t, err, tc.say)
			assert.NotContains(t, err.Error(), "\n")
			for _, k := range made {
				assert.Equal(t, 1, k.closed)
			}
		})
	}
	if _, err := os.Stat(vhostPath); errors.Is(err, os.ErrNotExist) {
		_, err := OpenVHost(TapOptions{Name: "tap7"})
		assert.ErrorIs(t, err, ErrNoVHost)
		assert.EqualError(t, err, "tap tap7: the kernel offers no vhost-net: /dev/vhost-net is not there: sudo modprobe vhost_net")
	}
}

// TestVHostLimits: rates that nobody would keep are refused.
func TestVHostLimits(t *testing.T) {
	for name, o := range map[string]Options{
		"receiving": {RxLimits: virtio.Limits{Bytes: virtio.Rate{PerSecond: 1000}}},
		"sending":   {TxLimits: virtio.Limits{Ops: virtio.Rate{PerSecond: 1000}}},
	} {
		tap := &fakeTap{pairs: 1}
		k := newFakeKernel(0)
		_, err := New(newVHost(tap, []vhostKernel{k}, nil), o)
		require.ErrorIs(t, err, ErrOptions, name)
		assert.ErrorContains(t, err, "rate limits", name)
		assert.Equal(t, 1, k.closed, name)
		assert.Equal(t, []string{"stop", "close"}, tap.calls, name)
	}
}

// TestVHostCounters: the numbers are the interface's, since nobody else has any.
func TestVHostCounters(t *testing.T) {
	tap := &fakeTap{pairs: 1, passed: traffic{1, 2, 3, 4, 5, 6}}
	d, err := New(newVHost(tap, []vhostKernel{newFakeKernel(0)}, nil), Options{})
	require.NoError(t, err)
	assert.Equal(t, []virtio.Counter{
		{Name: "frames in", Value: 1}, {Name: "bytes in", Value: 2},
		{Name: "frames out", Value: 3}, {Name: "bytes out", Value: 4},
		{Name: "in, dropped", Value: 5}, {Name: "out, dropped", Value: 6},
	}, d.Counters())
	assert.NoError(t, d.Close())
}

// TestDescribe: a report says which interface a device stands on, and who moves its frames.
func TestDescribe(t *testing.T) {
	vhost, err := New(newVHost(&fakeTap{pairs: 2}, []vhostKernel{newFakeKernel(0), newFakeKernel(1)}, nil), Options{MAC: HardwareAddr{2, 0, 0, 0, 0, 1}})
	require.NoError(t, err)
	assert.Equal(t, map[string]any{"tap": "fake", "vhost": true, "mac": "02:00:00:00:00:01", "mtu": 1500, "queues": 2}, vhost.Describe())
	assert.NoError(t, vhost.Close())
	assert.Equal(t, map[string]any{"tap": "tap0", "vhost": false}, (&Tap{name: "tap0"}).Describe())
}

// TestVHostLayout: the structures of linux/vhost.h and the numbers of the requests, which
// have the sizes in them.
func TestVHostLayout(t *testing.T) {
	var (
		s vringState
		f vringFile
		a vringAddr
		m memTable
		r memRegion
	)
	assert.EqualValues(t, 8, unsafe.Sizeof(s))
	assert.EqualValues(t, 4, unsafe.Offsetof(s.num))
	assert.EqualValues(t, 8, unsafe.Sizeof(f))
	assert.EqualValues(t, 4, unsafe.Offsetof(f.fd))
	assert.EqualValues(t, 40, unsafe.Sizeof(a))
	assert.Equal(t, []uintptr{0, 4, 8, 16, 24, 32}, []uintptr{
		unsafe.Offsetof(a.index), unsafe.Offsetof(a.flags), unsafe.Offsetof(a.desc),
		unsafe.Offsetof(a.used), unsafe.Offsetof(a.avail), unsafe.Offsetof(a.log),
	})
	assert.EqualValues(t, 8, unsafe.Offsetof(m.regions))
	assert.EqualValues(t, 32, unsafe.Sizeof(r))
	assert.Equal(t, []uintptr{0, 8, 16, 24}, []uintptr{
		unsafe.Offsetof(r.gpa), unsafe.Offsetof(r.size), unsafe.Offsetof(r.hva), unsafe.Offsetof(r.flags),
	})

	const none, write, read = 0, 1, 2
	request := func(dir, nr int, size uintptr) int { return dir<<30 | int(size)<<16 | 0xaf<<8 | nr }
	for _, tc := range []struct {
		name      string
		got, want int
	}{
		{"GET_FEATURES", vhostGetFeatures, request(read, 0, 8)},
		{"SET_FEATURES", vhostSetFeatures, request(write, 0, 8)},
		{"SET_OWNER", vhostSetOwner, request(none, 1, 0)},
		{"SET_MEM_TABLE", vhostSetMemTable, request(write, 3, unsafe.Offsetof(m.regions))},
		{"SET_VRING_NUM", vhostSetVringNum, request(write, 0x10, unsafe.Sizeof(s))},
		{"SET_VRING_ADDR", vhostSetVringAddr, request(write, 0x11, unsafe.Sizeof(a))},
		{"SET_VRING_BASE", vhostSetVringBase, request(write, 0x12, unsafe.Sizeof(s))},
		{"GET_VRING_BASE", vhostGetVringBase, request(read|write, 0x12, unsafe.Sizeof(s))},
		{"SET_VRING_KICK", vhostSetVringKick, request(write, 0x20, unsafe.Sizeof(f))},
		{"SET_VRING_CALL", vhostSetVringCall, request(write, 0x21, unsafe.Sizeof(f))},
		{"SET_VRING_ERR", vhostSetVringErr, request(write, 0x22, unsafe.Sizeof(f))},
		{"NET_SET_BACKEND", vhostNetSetBackend, request(write, 0x30, unsafe.Sizeof(f))},
	} {
		assert.Equal(t, tc.want, tc.got, tc.name)
	}

	low, high := make([]byte, 4096), make([]byte, 8192)
	table, err := newMemTable([]memory.Region{{GPA: 0, Mem: low}, {GPA: 1 << 32, Mem: high}})
	require.NoError(t, err)
	assert.Equal(t, memTable{count: 2, regions: [maxVhostRegions]memRegion{
		{gpa: 0, size: 4096, hva: hostAddress(low)}, {gpa: 1 << 32, size: 8192, hva: hostAddress(high)},
	}}, *table)
	_, err = newMemTable(make([]memory.Region, maxVhostRegions+1))
	assert.ErrorContains(t, err, "65 regions")
}

// TestVHostTap: the end of a tap is seen though nobody reads from it, and its return; its
// numbers outlive it.
func TestVHostTap(t *testing.T) {
	ip := ownNamespace(t)
	for _, tr := range []virtiotest.Opener{virtiotest.OpenMMIO, virtiotest.OpenPCI} {
		ip("tuntap add dev one mode tap")
		ip("link set one up")
		files := countFiles(t)
		tap, err := openNamed(TapOptions{Name: "one"}, true)
		require.NoError(t, err)
		require.NoError(t, tap.with(0, func(fd int) error {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			assert.Zero(t, flags&unix.O_NONBLOCK, "else it would be in the poller")
			return err
		}))
		k := newFakeKernel(0)
		d, err := New(newVHost(tap, []vhostKernel{k}, nil), Options{})
		require.NoError(t, err)
		c := &carried{Driver: tr(t, d), t: t, dev: d, kernels: []*fakeKernel{k}}
		c.Start(0)
		c.send(0, 1)
		// A frame that comes by the file, as from the kernel.
		require.NoError(t, tap.with(0, func(fd int) error {
			_, err := unix.Write(fd, make([]byte, HeaderSize+60))
			return err
		}))
		out := func() uint64 { return d.Counters()[2].Value }
		assert.EqualValues(t, 1, out())
		require.NoError(t, tap.with(0, func(fd int) error {
			_, err := unix.Write(fd, make([]byte, HeaderSize+60))
			return err
		}))
		for range 2 {
			ip("link del one")
			c.Until("the link is down", func() bool { return c.status()&StatusLinkUp == 0 })
			assert.Equal(t, neither, k.running())
			assert.EqualValues(t, 2, out())
			ip("tuntap add dev one mode tap")
			c.Until("the link is up", func() bool { return c.status()&StatusLinkUp != 0 })
			assert.Equal(t, both, k.running())
			c.send(0, 1)
		}
		ctx, cancel := contextFor(t)
		require.NoError(t, c.Function.Close(ctx))
		cancel()
		require.NoError(t, d.Close())
		assert.EqualValues(t, 2, out(), "after its end too")
		assert.Eventually(t, func() bool { return countFiles(t) <= files }, virtiotest.Patience, 10*time.Millisecond, "files")
		ip("link del one")
	}
}
