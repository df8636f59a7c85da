package main

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
)

// slowDisk is a disk whose Refresh says that it has begun and then waits to be let go on.
type slowDisk struct {
	virtio.Device
	began, release chan struct{}
}

func (d *slowDisk) Refresh() error {
	d.began <- struct{}{}
	<-d.release
	return nil
}

// within fails the test if f takes longer than patience.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		require.FailNow(t, what+" hangs")
	}
}

// TestResizeHangs: an image on a file system that does not answer holds up neither the signals that
// come after it nor the end of the machine.
func TestResizeHangs(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	disk := &slowDisk{began: make(chan struct{}), release: make(chan struct{})}
	var l live
	l.set(nil, []virtio.Device{disk})
	within(t, "SIGUSR1", func() { l.resizeDisks(log) })
	within(t, "the look at the disk", func() { <-disk.began })
	within(t, "the second SIGUSR1", func() { l.resizeDisks(log) })
	within(t, "SIGUSR2", func() { l.powerButton(log) })
	within(t, "the end", func() { l.set(nil, nil) })
	within(t, "SIGUSR1 after the end", func() { l.resizeDisks(log) })
	close(disk.release)
}

// TestResizeAgain: a signal that comes during a look at the disks leads to another one, and the end
// waits for one that ends.
func TestResizeAgain(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	disk := &slowDisk{began: make(chan struct{}), release: make(chan struct{})}
	var l live
	l.set(nil, []virtio.Device{disk})
	l.resizeDisks(log)
	within(t, "the first look", func() { <-disk.began })
	l.resizeDisks(log)
	l.resizeDisks(log)
	disk.release <- struct{}{}
	within(t, "the second look", func() { <-disk.began })
	close(disk.release)
	within(t, "the end", func() { l.set(nil, nil) })
	assert.Empty(t, l.looks, "no goroutine is left")
}

// TestResizeBesideAHangingDisk: one image whose file system doesn't answer keeps no other from being
// looked at, as often as that is asked for; it is itself looked at once more when it answers.
func TestResizeBesideAHangingDisk(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	newDisk := func() *slowDisk { return &slowDisk{began: make(chan struct{}), release: make(chan struct{})} }
	for name, hangs := range map[string]int{"the first hangs": 0, "the second hangs": 1} {
		t.Run(name, func(t *testing.T) {
			disks := []*slowDisk{newDisk(), newDisk()}
			hanging, good := disks[hangs], disks[1-hangs]
			var l live
			l.set(nil, []virtio.Device{disks[0], disks[1]})
			l.resizeDisks(log)
			within(t, "the look at the hanging disk", func() { <-hanging.began })
			for range 3 {
				within(t, "the look at the other", func() { <-good.began; good.release <- struct{}{} })
				l.resizeDisks(log)
			}
			within(t, "the last look at the other", func() { <-good.began })
			close(good.release)
			select {
			case <-hanging.began:
				assert.Fail(t, "a second look began beside the first")
			default:
			}
			hanging.release <- struct{}{}
			within(t, "the second look at the hanging disk", func() { <-hanging.began })
			close(hanging.release)
			within(t, "the end", func() { l.set(nil, nil) })
			assert.Empty(t, l.looks, "no goroutine is left")
		})
	}
}
