package spec

import (
	"errors"
	"io"
	"log/slog"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/net/usernet"
	"github.com/vole-vmm/vole/virtio/rng"
)

// Devices opens what the virtio devices of the machine stand on and makes them, in the order of their
// slots: disks, networks, sockets, consoles, shares, the source of entropy. They are the caller's to
// close, which [vmm.New] does for those of its Config. An error is a *FieldError, or one of the host's, and
// nothing is open then. streams are for a console on a virtio device; log receives the devices'
// errors, nil is silent.
func (m Machine) Devices(streams ConsoleStreams, log *slog.Logger) (list []virtio.Device, err error) {
	defer func() {
		if err != nil {
			closeAll(list)
			list = nil
		}
	}()
	cpus := 1
	if m.CPUs != "" {
		if cpus, err = ParseCPUs(string(m.CPUs)); err != nil {
			return nil, &FieldError{"cpus", err}
		}
	}
	if list, err = m.disks(cpus, log); err != nil {
		return nil, err
	}
	rules, to, err := m.publishRules()
	if err != nil {
		return list, &FieldError{"publish", err}
	}
	for i, n := range m.Nets {
		var in []usernet.Rule
		if i == to {
			in = rules
		}
		d, err := n.device(i, in, log)
		var field *FieldError
		switch {
		case errors.As(err, &field):
			return list, err
		case err != nil:
			return list, &FieldError{"net", err}
		}
		list = append(list, d)
	}
	if m.Vsock != nil {
		d, err := m.Vsock.device(log)
		if err != nil {
			return list, &FieldError{"vsock", err}
		}
		list = append(list, d)
	}
	consoles, err := m.consoles(streams, log)
	if err != nil {
		return list, err
	}
	list = append(list, consoles...)
	shares, err := m.shares(cpus, log)
	if err != nil {
		return list, err
	}
	list = append(list, shares...)
	if m.RNG {
		list = append(list, rng.New(nil))
	}
	return list, nil
}

// closeAll closes the devices that can be closed, after an error that says more than theirs would.
func closeAll(list []virtio.Device) {
	for _, d := range list {
		if c, ok := d.(io.Closer); ok {
			_ = c.Close()
		}
	}
}
