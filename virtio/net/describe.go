package net

import (
	"maps"

	"github.com/vole-vmm/vole/virtio"
)

var (
	_ virtio.Describing = (*Device)(nil)
	_ virtio.Describing = (*Tap)(nil)
	_ virtio.Describing = (*VHost)(nil)
)

// Describe implements virtio.Describing: what the driver is offered, and what the
// backend says of itself, if it does.
func (d *Device) Describe() map[string]any {
	m := map[string]any{"mac": d.opts.MAC.String(), "queues": d.opts.Pairs}
	if d.opts.MTU != 0 {
		m["mtu"] = d.opts.MTU
	}
	if b, ok := d.backend.(virtio.Describing); ok {
		maps.Copy(m, b.Describe())
	}
	return m
}

// Describe implements virtio.Describing.
func (t *Tap) Describe() map[string]any { return map[string]any{"tap": t.name, "vhost": false} }

// Describe implements virtio.Describing.
func (v *VHost) Describe() map[string]any { return map[string]any{"tap": v.Name(), "vhost": true} }
