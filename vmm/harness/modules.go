package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/vmm"
)

// deviceModules are the drivers of the device types, by their names in Linux.
var deviceModules = map[virtio.Type]string{
	virtio.TypeNet:     "virtio_net",
	virtio.TypeBlock:   "virtio_blk",
	virtio.TypeConsole: "virtio_console",
	virtio.TypeEntropy: "virtio_rng",
	virtio.TypeBalloon: "virtio_balloon",
	virtio.TypeVsock:   "vmw_vsock_virtio_transport",
	virtio.TypeFS:      "virtiofs",
}

// needs are the modules that a guest with these devices has to have.
func needs(t vmm.Transport, devices []virtio.Device, overlay bool, more []string) []string {
	transport := "virtio_mmio"
	if t == vmm.TransportPCI {
		transport = "virtio_pci"
	}
	list := []string{transport}
	seen := make(map[string]bool)
	add := func(name string) {
		if name != "" && !seen[name] {
			seen[name] = true
			list = append(list, name)
		}
	}
	// The one by which the agent reports comes first.
	add(deviceModules[virtio.TypeVsock])
	for _, d := range devices {
		add(deviceModules[d.Type()])
	}
	if overlay {
		add("overlay")
	}
	for _, name := range more {
		add(name)
	}
	return list
}

// lacks says whether one of the modules is not in a directory.
func lacks(dir string, names []string) bool {
	d, err := initramfs.OpenModules(dir)
	if err == nil {
		_, err = d.Select(initramfs.SelectOptions{}, names...)
	}
	return errors.Is(err, initramfs.ErrNoModule)
}

// errNoBuiltin is what may be wrong with a guest whose modules can't be known to be all.
var errNoBuiltin = errors.New("there is no modules.builtin to say what it has built in")

// modules finds the modules for the guest. dir is "" and the archive nil if there is no
// directory of them; missing says that, or why it is not sure that all are there.
func (o *Options) modules(devices []virtio.Device) (archive *initramfs.ModuleArchive, dir string, missing error, err error) {
	dir = o.ModulesDir
	if dir == "" {
		switch dir, err = kernel.ModulesFor(o.Machine.Kernel); {
		case errors.Is(err, kernel.ErrNoModules), errors.Is(err, kernel.ErrUnsupported):
			// Whether it can be booted at all is for vmm to say.
			if len(o.Modules) > 0 {
				return nil, "", nil, refuse("no module %s: %w", o.Modules[0], err)
			}
			return nil, "", err, nil
		case err != nil:
			return nil, "", nil, &refusal{err}
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, "", nil, err
	}
	cache := initramfs.Cache{Dir: o.ModulesCache}
	list := func(more []string) []string { return needs(o.Machine.Transport, devices, !o.Root.None, more) }
	archive, err = cache.Modules(dir, initramfs.SelectOptions{}, list(o.Modules)...)
	if _, serr := os.Stat(filepath.Join(dir, "modules.builtin")); errors.Is(err, initramfs.ErrNoModule) && errors.Is(serr, fs.ErrNotExist) {
		missing = fmt.Errorf("%s: %w", dir, errNoBuiltin)
		archive, err = cache.Modules(dir, initramfs.SelectOptions{Trusting: true}, list(o.Modules)...)
	}
	if err != nil {
		if errors.Is(err, initramfs.ErrNoModule) && lacks(dir, list(nil)) {
			err = fmt.Errorf("%w: %w", ErrNoDriver, err)
		}
		return nil, "", nil, &refusal{err}
	}
	return archive, dir, missing, nil
}
