package vmm

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/rng"
)

// stuck is a device whose Reset does not end until it is let go.
type stuck struct {
	*rng.Device
	resetting, let chan struct{}
	mem            []byte // of the guest: written when the device is let go
	over           chan struct{}
}

func newStuck() *stuck {
	return &stuck{Device: rng.New(nil), resetting: make(chan struct{}), let: make(chan struct{}), over: make(chan struct{})}
}

func (s *stuck) Reset() {
	close(s.resetting)
	<-s.let
	s.Device.Reset()
	if s.mem != nil {
		s.mem[0] = 1
	}
	close(s.over)
}

// TestStuckDevice: a backend that hangs in a reset makes Pause and Close say so
// within their bound. The guest's memory stays, since the device may come back
// to it; the other devices, and the rest of the machine, are given back.
func TestStuckDevice(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		dev := newStuck()
		list, closed := closers(1)
		m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Devices: append(list, dev), Transport: tr})
		require.NoError(t, err)
		m.patience = 20 * time.Millisecond
		c := reach(t, m, 1)
		c.start()
		dev.mem, err = m.mem.Slice(ringBase, 1)
		require.NoError(t, err)
		require.NoError(t, m.Start())
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			c.setStatus(0)
		}()
		<-dev.resetting

		begin := time.Now()
		assert.ErrorIs(t, m.Pause(), ErrBusy)
		assert.ErrorIs(t, m.Pause(), ErrBusy, "it is paused, and not at rest yet")
		require.NoError(t, m.Resume())
		err = m.Close()
		assert.ErrorIs(t, err, ErrBusy)
		assert.ErrorContains(t, err, "rng")
		assert.Less(t, time.Since(begin), drainPatience/2)
		exit, err := m.Wait(context.Background())
		require.NoError(t, err)
		assert.Equal(t, Killed, exit.Reason)
		assert.ErrorIs(t, exit.Err, ErrBusy)
		closedOnce(t, closed)

		b, err := m.mem.Slice(ringBase, 1)
		require.NoError(t, err)
		b[0] = 0 // it is mapped
		close(dev.let)
		<-dev.over
		assert.EqualValues(t, 1, b[0])
		<-asked
		finish(t, m, 1)
	})
}

// TestStuckDeviceAlone: a device that hangs costs the others nothing: they come to
// rest at once, what was in flight in them is done, and they are not blamed.
func TestStuckDeviceAlone(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		dev := newStuck()
		m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Devices: []virtio.Device{dev, rng.New(nil)}, Transport: tr})
		require.NoError(t, err)
		m.patience = 20 * time.Millisecond
		first, second := reach(t, m, 0), reach(t, m, 1)
		first.start()
		second.start()
		require.NoError(t, m.Start())
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			first.setStatus(0)
		}()
		<-dev.resetting
		err = m.Close()
		assert.ErrorIs(t, err, ErrBusy)
		assert.Equal(t, 1, strings.Count(err.Error(), "in flight"), err)
		assert.NoError(t, m.virtio[1].f.Close(ended()), "it is at rest")
		close(dev.let)
		<-dev.over
		<-asked
		finish(t, m, 0)
	})
}

// ended is a context that is over.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// finish gives back what Close has left to a device that was stuck.
func finish(t *testing.T, m *Machine, slot int) {
	t.Helper()
	atRest(t, m, slot)
	_ = m.closeCards() // KVM's half has gone with the VM
	require.NoError(t, m.closeLines())
	require.NoError(t, m.mem.Close())
}

// atRest waits until a device that was stuck has come to its end.
func atRest(t *testing.T, m *Machine, slot int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, m.virtio[slot].f.Close(ctx))
}

// stuckReader is a source of entropy that gives nothing until it is let go.
type stuckReader struct{ reading, let chan struct{} }

func (r stuckReader) Read(p []byte) (int, error) {
	close(r.reading)
	<-r.let
	return len(p), nil
}

// TestStuckRequest: one whose backend comes back after Close ends in the guest's
// memory and nowhere else: its interrupt must not go to a descriptor that has
// become somebody else's.
func TestStuckRequest(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		before := owned(t)
		source := stuckReader{make(chan struct{}), make(chan struct{})}
		m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Devices: []virtio.Device{rng.New(source)}, Transport: tr})
		require.NoError(t, err)
		m.patience = 20 * time.Millisecond
		c := reach(t, m, 0)
		c.start()
		require.NoError(t, m.Start())
		m.virtio[0].f.Bell(0).Ring()
		<-source.reading
		assert.ErrorIs(t, m.Pause(), ErrBusy)
		require.ErrorIs(t, m.Close(), ErrBusy)
		require.ErrorIs(t, m.Close(), ErrBusy, "again")

		var others []int // they take the numbers that Close has given back
		for range 64 {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			require.NoError(t, err)
			others = append(others, fd)
		}
		close(source.let)
		atRest(t, m, 0)
		used, err := m.mem.Slice(ringUsed, 4)
		require.NoError(t, err)
		assert.EqualValues(t, 1, virtio.Load16(used, 2), "it did end")
		for _, fd := range others {
			var n [8]byte
			_, err := unix.Read(fd, n[:])
			assert.ErrorIs(t, err, unix.EAGAIN, "descriptor %d", fd)
			require.NoError(t, unix.Close(fd))
		}
		finish(t, m, 0)
		requireNothingLeft(t, before, 4)
	})
}

// TestStuckDeviceComesBack: a Pause after the reset has ended is as any other.
func TestStuckDeviceComesBack(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		before := owned(t)
		dev := newStuck()
		m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Devices: []virtio.Device{dev}, Transport: tr})
		require.NoError(t, err)
		m.patience = 20 * time.Millisecond
		c := reach(t, m, 0)
		c.start()
		require.NoError(t, m.Start())
		var guest sync.WaitGroup
		guest.Go(func() { c.setStatus(0) })
		<-dev.resetting
		require.ErrorIs(t, m.Pause(), ErrBusy)
		close(dev.let)
		<-dev.over
		m.patience = patience
		require.NoError(t, m.Pause())
		guest.Wait()
		assert.Zero(t, c.status())
		require.NoError(t, m.Resume())
		require.NoError(t, m.Close())
		requireNothingLeft(t, before, 4)
	})
}

// TestPauseEndsAtOnce: Resume and Kill overtake a Pause that waits for a device.
func TestPauseEndsAtOnce(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		for name, end := range map[string]func(*Machine) error{"resume": (*Machine).Resume, "kill": (*Machine).Kill} {
			t.Run(name, func(t *testing.T) {
				dev := newStuck()
				m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20, Devices: []virtio.Device{dev}, Transport: tr})
				require.NoError(t, err)
				c := reach(t, m, 0)
				c.start()
				require.NoError(t, m.Start())
				var guest sync.WaitGroup
				guest.Go(func() { c.setStatus(0) })
				<-dev.resetting
				paused := make(chan error)
				go func() { paused <- m.Pause() }()
				soon(t, "Pause waits for the device", func() bool {
					m.mu.Lock()
					defer m.mu.Unlock()
					return m.stopPause != nil
				})
				begin := time.Now()
				require.NoError(t, end(m))
				err = <-paused
				assert.ErrorIs(t, err, ErrState)
				assert.Less(t, time.Since(begin), drainPatience/2)
				close(dev.let)
				guest.Wait()
				require.NoError(t, m.Close())
			})
		}
	})
}
