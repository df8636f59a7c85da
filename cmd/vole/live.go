package main

import (
	"log/slog"
	"sync"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/vmm"
)

// live is the machine that runs, for what comes from outside while it does. Its methods may be
// called from any goroutine.
type live struct {
	mu      sync.Mutex
	machine *vmm.Machine // nil between two
	devices []virtio.Device
}

// set says which machine runs, nil for none.
func (l *live) set(m *vmm.Machine, devices []virtio.Device) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.machine, l.devices = m, devices
}

// resizeDisks looks again how large the images are, and tells the guest (SIGUSR1).
func (l *live) resizeDisks(log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.devices {
		if r, ok := d.(interface{ Refresh() error }); ok {
			if err := r.Refresh(); err != nil {
				log.Warn("the size of a disk is not known anew", "error", err)
			}
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
