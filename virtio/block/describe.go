package block

import (
	"maps"

	"github.com/vole-vmm/vole/virtio"
)

var (
	_ virtio.Describing = (*Device)(nil)
	_ virtio.Describing = (*File)(nil)
	_ virtio.Describing = (*Qcow2)(nil)
	_ virtio.Describing = (*Overlay)(nil)
)

// Describe implements virtio.Describing: what the driver finds, and what the image
// says of itself, if it does.
func (d *Device) Describe() map[string]any {
	m := map[string]any{"ro": d.features&FeatureReadOnly != 0, "queues": d.opts.Queues}
	if d.opts.Serial != "" {
		m["serial"] = d.opts.Serial
	}
	if i, ok := d.img.(virtio.Describing); ok {
		maps.Copy(m, i.Describe())
	}
	return m
}

// Describe implements virtio.Describing.
func (f *File) Describe() map[string]any {
	return map[string]any{"file": f.path, "format": FormatRaw, "cache": f.cache.String()}
}

// Describe implements virtio.Describing.
func (q *Qcow2) Describe() map[string]any {
	m := map[string]any{"format": FormatQcow2}
	if q.file != nil {
		m["file"], m["cache"] = q.file.path, q.file.cache.String()
	}
	return m
}

// Describe implements virtio.Describing: what the base says, and where changes are kept.
func (o *Overlay) Describe() map[string]any {
	m := map[string]any{}
	if b, ok := o.base.(virtio.Describing); ok {
		maps.Copy(m, b.Describe())
	}
	m["cow"] = "file"
	if _, ok := o.upper.(*Memory); ok {
		m["cow"] = "memory"
	}
	return m
}
