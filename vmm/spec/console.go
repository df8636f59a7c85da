package spec

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/console"
)

// Port is a named stream between host and guest in plain data: what stands behind --port, and in a
// JSON file.
type Port struct {
	// Name is what the guest calls it, in /dev/virtio-ports.
	Name string `json:"name"`
	// Path is the Unix socket on the host.
	Path string `json:"path"`
}

// PortUsage is the form that ParsePort reads, for help texts.
const PortUsage = "NAME=PATH"

// ParsePort reads a port in the form of [PortUsage].
func ParsePort(s string) (Port, error) {
	name, path, ok := strings.Cut(s, "=")
	p := Port{Name: name, Path: path}
	if !ok {
		return Port{}, fmt.Errorf("%q has no path: want %s", s, PortUsage)
	}
	if err := p.check(); err != nil {
		return Port{}, fmt.Errorf("%q: %w", s, err)
	}
	return p, nil
}

func (p Port) check() error {
	switch {
	case p.Name == "":
		return errors.New("it has no name: want " + PortUsage)
	case p.Path == "":
		return errors.New("it has no path: want " + PortUsage)
	}
	return console.CheckName(p.Name)
}

// checkPorts checks all ports of a machine.
func checkPorts(ports []Port) error {
	names, paths := map[string]bool{}, map[string]bool{}
	for _, p := range ports {
		if err := p.check(); err != nil {
			return err
		}
		switch {
		case names[p.Name]:
			return fmt.Errorf("two ports are called %q", p.Name)
		case paths[p.Path]:
			return fmt.Errorf("%s is the path of two ports", p.Path)
		}
		names[p.Name], paths[p.Path] = true, true
	}
	if most := console.MaxPorts - 1; len(ports) > most {
		return fmt.Errorf("%d ports are too many: %d are possible", len(ports), most)
	}
	return nil
}

// consoles makes the console devices: that of the machine's console, which is alone on its device as
// package console has the reason for, and the one with the named ports.
func (m Machine) consoles(streams ConsoleStreams, log *slog.Logger) (list []virtio.Device, err error) {
	defer func() {
		if err != nil {
			closeAll(list)
		}
	}()
	if m.VirtioConsole() {
		d, err := console.New(console.Options{Ports: []console.Port{{Console: true, In: streams.In, Out: streams.Out}}, Logger: log})
		if err != nil {
			return list, &FieldError{"console-device", err}
		}
		list = append(list, d)
	}
	if len(m.Ports) == 0 {
		return list, nil
	}
	var ports []console.Port
	for _, p := range m.Ports {
		port, err := console.Socket(p.Path)
		if err != nil {
			for _, p := range ports {
				_ = p.Closer.Close()
			}
			return list, &FieldError{"port", err}
		}
		port.Name = p.Name
		ports = append(ports, port)
	}
	d, err := console.New(console.Options{Ports: ports, Logger: log})
	if err != nil {
		return list, &FieldError{"port", err}
	}
	return append(list, d), nil
}
