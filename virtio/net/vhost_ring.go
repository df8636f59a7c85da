package net

import (
	"sync"

	"github.com/vole-vmm/vole/virtio"
)

// Rings of a vhost file.
const (
	vhostRx = 0
	vhostTx = 1
)

// vhostRing is a queue that the host's kernel serves: the Worker of the Queue.
type vhostRing struct {
	v      *VHost
	kernel vhostKernel
	pair   int
	ring   int // vhostRx or vhostTx
	q      *virtio.Queue
	lent   bool // under v.mu

	mu   sync.Mutex // held from the kernel's call until the driver was told
	call *signal
}

var _ virtio.Worker = (*vhostRing)(nil)

// setUp tells the kernel of the ring. It is not started.
func (r *vhostRing) setUp(failed *signal) error {
	desc, avail, used := r.q.Rings()
	for _, step := range []func() error{
		func() error { return r.kernel.setSize(r.ring, r.q.Size()) },
		func() error { return r.kernel.setRings(r.ring, desc, avail, used) },
		func() error { return r.kernel.setKick(r.ring, r.q.BellFD()) },
		func() error { return r.kernel.setCall(r.ring, r.call.fd) },
		func() error { return r.kernel.setErr(r.ring, failed.fd) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// tearDown has the kernel forget the eventfds.
func (r *vhostRing) tearDown() {
	_ = r.kernel.setKick(r.ring, -1)
	_ = r.kernel.setCall(r.ring, -1)
	_ = r.kernel.setErr(r.ring, -1)
}

// Start implements virtio.Worker. That the interface is gone is no error: the link goes
// down, and the queue is lent again when it is back.
func (r *vhostRing) Start(next uint16) error {
	if err := r.kernel.setBase(r.ring, next); err != nil {
		return err
	}
	err := r.v.tap.with(r.pair, func(fd int) error { return r.kernel.setBackend(r.ring, fd) })
	if err != nil && !r.v.tap.alive() {
		return nil
	}
	return err
}

// Stop implements virtio.Worker. The kernel takes the backend away when its thread has
// ended what it was at.
func (r *vhostRing) Stop() (next uint16, err error) {
	if err := r.kernel.setBackend(r.ring, -1); err != nil {
		return 0, err
	}
	if next, err = r.kernel.base(r.ring); err != nil {
		return 0, err
	}
	r.tell()
	return next, nil
}

// tell passes the kernel's call on to the driver, if there is one.
func (r *vhostRing) tell() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.call.take() {
		r.q.Raise()
	}
}
