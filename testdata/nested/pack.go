package nested

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vole-vmm/vole/boot/initramfs"
)

// hostModules are what every emulated host loads.
var hostModules = []string{"irqbypass", "kvm", "kvm-amd"}

// packer collects the initramfs of the emulated host. What it adds stands at
// the path that it has outside.
type packer struct {
	archive initramfs.Archive
	open    []*os.File
	files   []string // paths of what is in it
	indexed []Kernel // whose modules directories get a modules.dep
}

func (p *packer) close() {
	for _, f := range p.open {
		f.Close()
	}
}

// add puts the file or directory at path into the archive. A link named
// directly is followed, links within a directory stay links.
func (p *packer) add(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("nested: %s: %w", path, err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("nested: bring a file into the emulated host: %w", err)
	}
	if !st.IsDir() {
		return p.file(path, path)
	}
	return filepath.WalkDir(path, func(at string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fmt.Errorf("nested: bring a directory into the emulated host: %w", err)
		case p.archive.Has(at[1:]):
			return nil
		case d.IsDir():
			return p.archive.Dir(at, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(at)
			if err != nil {
				return fmt.Errorf("nested: bring a link into the emulated host: %w", err)
			}
			return p.archive.Symlink(at, target)
		case d.Type().IsRegular():
			return p.file(at, at)
		}
		return nil
	})
}

// file puts the file at path into the archive under the name at.
func (p *packer) file(at, path string) error {
	if p.archive.Has(strings.TrimPrefix(at, "/")) {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("nested: bring a file into the emulated host: %w", err)
	}
	p.open = append(p.open, f)
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("nested: bring %s into the emulated host: %w", path, err)
	}
	p.files = append(p.files, at)
	return p.archive.File(at, st.Mode().Perm(), f, st.Size())
}

// program adds a program and, if it is dynamic, what it needs to start.
func (p *packer) program(path string) error {
	libs, err := elfClosure(path, systemLibs)
	if err != nil {
		return err
	}
	for _, f := range append(libs, path) {
		if err := p.add(f); err != nil {
			return err
		}
	}
	return nil
}

// qemu adds what QEMU needs to run a guest: the program, the one that shares
// directories beside it, the libraries that they link and the firmware of PC machines; of its plug-ins none, since those are
// other accelerators and displays.
func (p *packer) qemu() error {
	q, err := findQEMU()
	if err != nil {
		return err
	}
	files := []string{q.loader}
	for _, program := range []string{q.program, q.virtiofsd} {
		if program == "" {
			continue
		}
		libs, err := elfClosure(program, q.libs)
		if err != nil {
			return err
		}
		files = append(files, program)
		for _, lib := range libs {
			if slices.Contains(q.libs, filepath.Dir(lib)) && !slices.Contains(files, lib) {
				files = append(files, lib)
			}
		}
	}
	firmware := []string{
		"bios.bin", "bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin",
		"multiboot.bin", "multiboot_dma.bin", "pvh.bin", "qboot.rom", "vgabios-stdvga.bin", "efi-e1000e.rom", "efi-virtio.rom",
	}
	for _, dir := range q.firmware {
		for _, name := range firmware {
			path := filepath.Join(dir, name)
			if _, err := os.Stat(path); err == nil {
				files = append(files, path)
			}
		}
	}
	for _, f := range files {
		if err := p.add(f); err != nil {
			return err
		}
	}
	return nil
}

// asset adds an asset by name.
func (p *packer) asset(name string) error {
	if name == AssetQEMU {
		return p.qemu()
	}
	if isDrivers(name) {
		kernels, err := driversOf(name)
		if err != nil {
			return err
		}
		for _, k := range kernels {
			if err := p.drivers(k); err != nil {
				return err
			}
		}
		return nil
	}
	path, err := Asset(name)
	if err != nil {
		return err
	}
	if name == AssetVole {
		return p.program(path)
	}
	return p.add(path)
}

// modules adds modules of the emulated host's kernel, and those that they need,
// and returns their paths in loading order. What the kernel has built in is none.
func (p *packer) modules(k Kernel, names []string) ([]string, error) {
	dir, err := initramfs.OpenModules(k.Modules)
	if err != nil {
		return nil, fmt.Errorf("nested: look for the emulated host's modules: %w", err)
	}
	sel, err := dir.Select(initramfs.SelectOptions{}, names...)
	if err != nil {
		return nil, fmt.Errorf("nested: look for the emulated host's modules: %w", err)
	}
	var paths []string
	for _, m := range sel.Load {
		path := filepath.Join(k.Modules, m.Path)
		if err := p.file(path, path); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// write stores the archive in a temporary file, which is the caller's.
func (p *packer) write() (string, error) {
	if err := p.indexes(); err != nil {
		return "", err
	}
	f, err := os.CreateTemp("", "vole-nested-*.cpio")
	if err != nil {
		return "", fmt.Errorf("nested: write the emulated host's initramfs: %w", err)
	}
	img := p.archive.Image()
	_, werr := io.Copy(f, io.NewSectionReader(img, 0, img.Size()))
	if err := errors.Join(werr, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("nested: write the emulated host's initramfs: %w", err)
	}
	return f.Name(), nil
}
