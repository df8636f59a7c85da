package nested

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vole-vmm/vole/boot/initramfs"
)

// guestDrivers are what a guest of vole's needs of its kernel's modules: of both
// transports, of each device, and of the file systems that its root is made of.
var guestDrivers = []string{
	"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio-rng", "virtio_balloon",
	"vmw_vsock_virtio_transport", "fuse", "virtiofs", "overlay",
}

// peerDrivers are what the same guest needs on QEMU's other shared directories, where
// the kernel has it.
var peerDrivers = []string{"9p", "9pnet_virtio"}

// driversOf are the kernels of a drivers asset: all of them, or one.
func driversOf(asset string) ([]Kernel, error) {
	list, err := Kernels()
	if err != nil {
		return nil, err
	}
	suffix, one := strings.CutPrefix(asset, AssetDrivers+"-")
	if one {
		list = slices.DeleteFunc(list, func(k Kernel) bool { return k.Name != "kernel-"+suffix })
	}
	if len(list) == 0 {
		return nil, notFetched(asset, "the cache has no such kernel")
	}
	return list, nil
}

// isDrivers says whether an asset is one of drivers.
func isDrivers(asset string) bool {
	return asset == AssetDrivers || strings.HasPrefix(asset, AssetDrivers+"-")
}

// drivers adds guestDrivers and the indexes that the kernel's build has written, but
// for modules.dep: that comes last, when all modules are here.
func (p *packer) drivers(k Kernel) error {
	dir, err := initramfs.OpenModules(k.Modules)
	if err != nil {
		return fmt.Errorf("nested: look for a guest's modules: %w", err)
	}
	names := guestDrivers
	if _, err := dir.Select(initramfs.SelectOptions{}, peerDrivers...); err == nil {
		names = slices.Concat(names, peerDrivers)
	}
	sel, err := dir.Select(initramfs.SelectOptions{}, names...)
	if err != nil {
		return fmt.Errorf("nested: look for a guest's modules: %w", err)
	}
	for _, m := range sel.Load {
		if err := p.add(filepath.Join(k.Modules, m.Path)); err != nil {
			return err
		}
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		if err := p.add(filepath.Join(k.Modules, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if !slices.ContainsFunc(p.indexed, func(o Kernel) bool { return o.Name == k.Name }) {
		p.indexed = append(p.indexed, k)
	}
	return nil
}

// indexes adds a modules.dep to each modules directory that drivers has made, as
// depmod(8) would of what is there.
func (p *packer) indexes() error {
	for _, k := range p.indexed {
		at := filepath.Join(k.Modules, "modules.dep")
		if _, err := os.Stat(at); err == nil {
			if err := p.add(at); err != nil {
				return err
			}
			continue
		}
		text, err := p.dependencies(k)
		if err != nil {
			return fmt.Errorf("nested: make a guest's modules.dep: %w", err)
		}
		if err := p.archive.Bytes(at, 0o644, text); err != nil {
			return err
		}
	}
	return nil
}

// dependencies is the modules.dep of what is in the archive of a kernel's modules.
func (p *packer) dependencies(k Kernel) ([]byte, error) {
	dir, err := initramfs.OpenModules(k.Modules)
	if err != nil {
		return nil, err
	}
	var text []byte
	for _, file := range p.files {
		rel, err := filepath.Rel(k.Modules, file)
		name, _, ok := strings.Cut(filepath.Base(rel), ".ko")
		if err != nil || !ok || !filepath.IsLocal(rel) {
			continue
		}
		sel, err := dir.Select(initramfs.SelectOptions{}, name)
		if err != nil {
			return nil, err
		}
		// Each with all that it needs, what loads first last.
		slices.Reverse(sel.Load)
		text = append(text, sel.Load[0].Path+":"...)
		for _, m := range sel.Load[1:] {
			text = append(text, " "+m.Path...)
		}
		text = append(text, '\n')
	}
	return text, nil
}
