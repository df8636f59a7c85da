package main

import (
	"log/slog"
	"slices"
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
	refresh *refresh // that looks at the disks now, or nil
}

// refresh is one goroutine that looks at the disks of a machine.
type refresh struct {
	again bool          // asked for since it began; under live's lock
	done  chan struct{} // closed at its end
}

// refreshBound is how long a machine's end waits for a look at its disks. Where a file system doesn't
// answer, the goroutine is left behind; it ends when that does.
const refreshBound = time.Second

// set says which machine runs, nil for none. A look at the disks of the one before is at its end then,
// or given up.
func (l *live) set(m *vmm.Machine, devices []virtio.Device) {
	l.mu.Lock()
	l.machine, l.devices = m, devices
	r := l.refresh
	l.refresh = nil
	if r != nil {
		r.again = false
	}
	l.mu.Unlock()
	if r == nil {
		return
	}
	bound := time.NewTimer(refreshBound)
	defer bound.Stop()
	select {
	case <-r.done:
	case <-bound.C:
	}
}

// resizeDisks begins to look again how large the images are, and to tell the guest (SIGUSR1).
func (l *live) resizeDisks(log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refresh != nil {
		l.refresh.again = true
		return
	}
	if len(l.devices) == 0 {
		return
	}
	l.refresh = &refresh{done: make(chan struct{})}
	go l.runRefresh(l.refresh, slices.Clone(l.devices), log)
}

// runRefresh looks at the disks until nobody has asked for it again meanwhile.
func (l *live) runRefresh(r *refresh, devices []virtio.Device, log *slog.Logger) {
	defer close(r.done)
	for {
		for _, d := range devices {
			if disk, ok := d.(interface{ Refresh() error }); ok {
				if err := disk.Refresh(); err != nil {
					log.Warn("the size of a disk is not known anew", "error", err)
				}
			}
		}
		l.mu.Lock()
		again := r.again
		r.again = false
		if !again && l.refresh == r {
			l.refresh = nil
		}
		l.mu.Unlock()
		if !again {
			return
		}
	}
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
