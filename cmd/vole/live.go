package main

import (
	"log/slog"
	"sync"
	"time"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/vmm"
)

// live is the machine that runs, for what comes from outside while it does. Its methods may be
// called from any goroutine.
type live struct {
	mu      sync.Mutex
	machine *vmm.Machine // nil between two
	devices []virtio.Device
	looks   map[resizable]*look // those under way at disks of devices
}

// resizable is a disk whose image may have another size by now.
type resizable interface{ Refresh() error }

// look is one goroutine that looks how large a disk is. Each disk has its own: a file system that
// doesn't answer for one of them says nothing of the others.
type look struct {
	again bool          // asked for since it began; under live's lock
	done  chan struct{} // closed at its end
}

// lookBound is how long a machine's end waits for the looks at its disks. Where a file system doesn't
// answer, the goroutine is left behind; it ends when that does.
const lookBound = time.Second

// set says which machine runs, nil for none. The looks at the disks of the one before are at their end
// then, or given up.
func (l *live) set(m *vmm.Machine, devices []virtio.Device) {
	l.mu.Lock()
	l.machine, l.devices = m, devices
	looks := l.looks
	l.looks = nil
	for _, r := range looks {
		r.again = false
	}
	l.mu.Unlock()
	bound := time.NewTimer(lookBound)
	defer bound.Stop()
	for _, r := range looks {
		select {
		case <-r.done:
		case <-bound.C:
			return
		}
	}
}

// resizeDisks begins to look again how large the images are, and to tell the guest (SIGUSR1). A disk
// that is being looked at is looked at once more after that.
func (l *live) resizeDisks(log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.devices {
		disk, ok := d.(resizable)
		if !ok {
			continue
		}
		if r := l.looks[disk]; r != nil {
			r.again = true
			continue
		}
		if l.looks == nil {
			l.looks = map[resizable]*look{}
		}
		r := &look{done: make(chan struct{})}
		l.looks[disk] = r
		go l.look(r, disk, log)
	}
}

// look looks at a disk until nobody has asked for it again meanwhile.
func (l *live) look(r *look, disk resizable, log *slog.Logger) {
	defer close(r.done)
	for {
		if err := disk.Refresh(); err != nil {
			log.Warn("the size of a disk is not known anew", "error", err)
		}
		if !l.lookAgain(r, disk) {
			return
		}
	}
}

// lookAgain reports whether another look was asked for; if not, r is over.
func (l *live) lookAgain(r *look, disk resizable) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.again {
		r.again = false
		return true
	}
	if l.looks[disk] == r {
		delete(l.looks, disk)
	}
	return false
}

// resizeConsole tells the guest the size of the terminal's window, if a virtio console is on it.
func (l *live) resizeConsole(t *terminal) {
	columns, rows, ok := t.size()
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.devices {
		if c, ok := d.(interface{ Resize(columns, rows int) }); ok {
			c.Resize(columns, rows)
			return // the first is the console's
		}
	}
}

// powerButton presses the machine's power button (SIGUSR2).
func (l *live) powerButton(log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.machine == nil {
		return
	}
	if err := l.machine.PowerButton(); err != nil {
		log.Warn("the power button can't be pressed", "error", err)
	}
}
