package console

import "github.com/vole-vmm/vole/virtio"

var _ virtio.Describing = (*Device)(nil)

// Describe implements virtio.Describing: how many of the ports are consoles, and the
// path of the Unix socket of each named port, "" for one that stands on something
// else.
func (d *Device) Describe() map[string]any {
	m, consoles, ports := map[string]any{}, 0, map[string]string{}
	for _, p := range d.order {
		if p.conf.Console {
			consoles++
		}
		if p.conf.Name == "" {
			continue
		}
		ports[p.conf.Name] = ""
		if s, ok := p.conf.Closer.(*socket); ok {
			ports[p.conf.Name] = s.path
		}
	}
	if consoles > 0 {
		m["consoles"] = consoles
	}
	if len(ports) > 0 {
		m["ports"] = ports
	}
	return m
}
