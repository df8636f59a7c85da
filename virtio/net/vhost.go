package net

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
)

// What is wrong with /dev/vhost-net. The errors that wrap these say what to do.
var (
	// ErrNoVHost is a kernel without vhost-net, or with one that is too old.
	ErrNoVHost = errors.New("the kernel offers no vhost-net")
	// ErrVHostPermission is a /dev/vhost-net that this user may not open.
	ErrVHostPermission = errors.New("no permission to use vhost-net")
	// ErrVHostRing is a queue in which the kernel found what it could not work with.
	ErrVHostRing = errors.New("net: the host's kernel can't go on with a queue")
)

// errCarried is said by the methods of a Backend that move frames.
var errCarried = errors.New("net: the host's kernel moves the frames of vhost")

const (
	vhostPath = "/dev/vhost-net"
	// vhostFeatures are those that the kernel has to know of, since the device offers
	// them in any case. VHOST_NET_F_VIRTIO_NET_HDR is none of them: the tap has the
	// headers.
	vhostFeatures = virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc | FeatureMrgRxBuf
)

// vhostKernel is an open /dev/vhost-net: the kernel's half of a pair of queues. ring is
// vhostRx or vhostTx; an fd of -1 takes one away.
type vhostKernel interface {
	features() (uint64, error)
	own() error
	setFeatures(f uint64) error
	setMemory(regions []memory.Region) error
	setSize(ring, n int) error
	setRings(ring int, desc, avail, used []byte) error
	setKick(ring, fd int) error
	setCall(ring, fd int) error
	setErr(ring, fd int) error
	setBase(ring int, next uint16) error
	base(ring int) (uint16, error)
	setBackend(ring, fd int) error
	close() error
}

// vhostTap is what VHost needs of a Tap.
type vhostTap interface {
	Backend
	LinkNotifier
	Named
	IsUp() bool
	// with calls f with the file of a pair's queue, which stays open meanwhile.
	with(pair int, f func(fd int) error) error
	// alive reports whether the interface is there, and takes note if it is not.
	alive() bool
	// traffic is what has passed the interface.
	traffic() traffic
}

// VHost is a backend on a TAP interface, as [Tap] is, of which the host's kernel moves
// the frames (vhost-net), between the interface and the driver's queues: this process
// sees none. So it can neither filter nor bound nor check what passes; the kernel's own
// checks are what there is.
//
// Frames that come while the link is down wait in the interface's queue.
type VHost struct {
	tap  vhostTap
	open func() (vhostKernel, error)

	mu      sync.Mutex
	kernels []vhostKernel // of each pair; nil is opened again when it is needed
	up      bool          // the link
	active  int           // pairs in use
	run     *carriage     // nil while the device is not active
}

// carriage is an activation.
type carriage struct {
	rings  []*vhostRing
	failed *signal
	fail   func(error)
	work   sync.WaitGroup
}

// carrier is a backend that serves the driver's queues itself. The device keeps the
// control queue and the configuration.
type carrier interface {
	// carry begins to serve the queues, which are lent to it. It follows Start; Stop
	// ends it. fail is the Activation's.
	carry(queues []*pairQueues, features uint64, fail func(error)) error
	// setLink says whether frames may pass. They may at first.
	setLink(up bool)
	// traffic is what has passed.
	traffic() traffic
}

var (
	_ Backend      = (*VHost)(nil)
	_ LinkNotifier = (*VHost)(nil)
	_ carrier      = (*VHost)(nil)
)

// OpenVHost opens a TAP interface, as [OpenTap] does, and the kernel's vhost-net for
// it. Errors wrap OpenTap's, ErrNoVHost or ErrVHostPermission. The caller closes what it
// returns, or hands it to New.
func OpenVHost(o TapOptions) (*VHost, error) {
	kernels, err := openKernels(max(o.Pairs, 1), openVhostFile)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", printable(o.Name), err)
	}
	tap, err := openNamed(o, true)
	if err != nil {
		return nil, errors.Join(err, closeKernels(kernels))
	}
	return newVHost(tap, kernels, openVhostFile), nil
}

func newVHost(tap vhostTap, kernels []vhostKernel, open func() (vhostKernel, error)) *VHost {
	return &VHost{tap: tap, open: open, kernels: kernels, up: true, active: 1}
}

func openKernels(n int, open func() (vhostKernel, error)) (all []vhostKernel, err error) {
	for range min(n, MaxPairs) {
		k, err := openKernel(open)
		if err != nil {
			return nil, errors.Join(err, closeKernels(all))
		}
		all = append(all, k)
	}
	return all, nil
}

func closeKernels(all []vhostKernel) error {
	var errs []error
	for _, k := range all {
		if k != nil {
			errs = append(errs, k.close())
		}
	}
	return errors.Join(errs...)
}

// openKernel opens vhost-net and makes this process its owner.
func openKernel(open func() (vhostKernel, error)) (vhostKernel, error) {
	k, err := open()
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("%w: %s is not there: sudo modprobe vhost_net", ErrNoVHost, vhostPath)
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%w: %s can't be opened: sudo chmod 666 %s", ErrVHostPermission, vhostPath, vhostPath)
	case err != nil:
		return nil, &os.PathError{Op: "open", Path: vhostPath, Err: err}
	}
	f, err := k.features()
	if lacks := vhostFeatures &^ f; err == nil && lacks != 0 {
		err = fmt.Errorf("%w: that of this kernel is too old, it lacks the features %#x", ErrNoVHost, lacks)
	}
	if err == nil {
		err = k.own()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", vhostPath, err), k.close())
	}
	return k, nil
}

// Features implements Backend: the tap's. vhost adds no conditions to offloads, which it
// leaves to the tap.
func (v *VHost) Features() uint64 { return v.tap.Features() }

// MaxPairs implements Backend.
func (v *VHost) MaxPairs() int { return len(v.kernels) }

// MTU implements Backend: the interface's, when it was opened.
func (v *VHost) MTU() int { return v.tap.MTU() }

// Name implements Named: it is the interface's.
func (v *VHost) Name() string { return v.tap.Name() }

// IsUp is [Tap.IsUp].
func (v *VHost) IsUp() bool { return v.tap.IsUp() }

// NotifyLink implements LinkNotifier: the link is down while the interface is gone.
func (v *VHost) NotifyLink(f func(up bool)) { v.tap.NotifyLink(f) }

func (v *VHost) traffic() traffic { return v.tap.traffic() }

// Start implements Backend.
func (v *VHost) Start(features uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.active = 1
	return v.tap.Start(features)
}

// carry implements carrier.
func (v *VHost) carry(queues []*pairQueues, features uint64, fail func(error)) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	failed, err := newSignal()
	if err != nil {
		return err
	}
	c := &carriage{failed: failed, fail: fail}
	v.run = c
	for i, p := range queues {
		if err := v.setUp(c, i, p, features); err != nil {
			return fmt.Errorf("%s: %w", vhostPath, err)
		}
	}
	c.work.Go(func() { failed.serve(func() { v.broken(c) }) })
	for _, r := range c.rings {
		c.work.Go(func() { r.call.serve(r.tell) })
	}
	return v.apply()
}

// setUp prepares a pair of queues. It is called under mu.
func (v *VHost) setUp(c *carriage, pair int, p *pairQueues, features uint64) error {
	if v.kernels[pair] == nil {
		k, err := openKernel(v.open)
		if err != nil {
			return err
		}
		v.kernels[pair] = k
	}
	k := v.kernels[pair]
	if err := k.setFeatures(features & vhostFeatures); err != nil {
		return err
	}
	told := false
	for ring, q := range [...]*virtio.Queue{vhostRx: p.rx, vhostTx: p.tx} {
		if q == nil {
			continue
		}
		if !told {
			told = true
			if err := k.setMemory(q.Memory().Regions()); err != nil {
				return err
			}
		}
		call, err := newSignal()
		if err != nil {
			return err
		}
		r := &vhostRing{v: v, kernel: k, pair: pair, ring: ring, q: q, call: call}
		c.rings = append(c.rings, r)
		if err := r.setUp(c.failed); err != nil {
			return err
		}
	}
	return nil
}

// apply lends the queues that are to be served and takes back the others. It is called
// under mu.
func (v *VHost) apply() error {
	if v.run == nil {
		return nil
	}
	var errs []error
	for _, r := range v.run.rings {
		want := v.up && r.pair < v.active
		var err error
		switch {
		case want && !r.lent:
			err = r.q.Lend(r)
			r.lent = err == nil
		case !want && r.lent:
			r.lent = false
			err = r.q.TakeBack()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", vhostPath, err))
		}
	}
	return errors.Join(errs...)
}

// setLink implements carrier.
func (v *VHost) setLink(up bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.up = up
	err := v.apply()
	c := v.run
	if c != nil && !up {
		// What has failed until now, failed because the interface is gone.
		c.failed.take()
	}
	if err != nil {
		// Not here: who calls holds locks of the device's.
		c.work.Go(func() { c.fail(err) })
	}
}

// broken is called when the kernel says that it can't go on with a queue. Without an
// interface it can't, but the queue is good.
func (v *VHost) broken(c *carriage) {
	v.mu.Lock()
	bad := c == v.run && c.failed.take() && v.tap.alive()
	v.mu.Unlock()
	if bad {
		c.fail(ErrVHostRing)
	}
}

// SetPairs implements Backend. A queue of the tap that is not in use can't be served.
func (v *VHost) SetPairs(n int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.active
	v.active = min(n, was)
	err := v.apply()
	if err == nil {
		err = v.tap.SetPairs(n)
	}
	v.active = n
	if err != nil {
		v.active = was
	}
	return errors.Join(err, v.apply())
}

// Wait implements Backend.
func (v *VHost) Wait(int) (bool, error) { return false, errCarried }

// Receive implements Backend.
func (v *VHost) Receive(int, [][]byte) (int, error) { return 0, errCarried }

// Send implements Backend.
func (v *VHost) Send(int, [][]byte) error { return errCarried }

// Stop implements Backend: when it returns the kernel does not access the rings or any
// buffer any more.
func (v *VHost) Stop() {
	v.mu.Lock()
	c := v.run
	v.run = nil
	if c != nil {
		for _, r := range c.rings {
			err := r.q.TakeBack()
			r.tearDown()
			if err != nil && v.kernels[r.pair] != nil {
				// Its end stops it in any case.
				_ = v.kernels[r.pair].close()
				v.kernels[r.pair] = nil
			}
		}
	}
	v.tap.Stop()
	v.mu.Unlock()
	if c == nil {
		return
	}
	_ = c.failed.close()
	for _, r := range c.rings {
		_ = r.call.close()
	}
	c.work.Wait()
}

// Close implements Backend.
func (v *VHost) Close() error {
	v.Stop()
	v.mu.Lock()
	err := closeKernels(v.kernels)
	clear(v.kernels)
	v.mu.Unlock()
	// Without the lock: it waits for who may be telling of the link.
	return errors.Join(err, v.tap.Close())
}
