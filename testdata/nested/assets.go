package nested

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"
)

// Names of assets, for [Asset] and [Options].
const (
	AssetVole    = "vole"    // the vole binary: $VOLE_BIN, else built from this module
	AssetBusybox = "busybox" // a static busybox
	AssetPeer    = "peer"    // the program of testdata/nested/stream/peer, static, built from this module
	AssetQEMU    = "qemu"    // the directory of the unpacked QEMU; run it by [QEMUCommand]
	AssetFio     = "fio"     // an ext4 image to chroot into, with /bin/fio and /mnt
	AssetRoot    = "root"    // an ext4 image of a small Debian system with systemd; root has no password

	// AssetDrivers are the modules that a guest of vole's needs, of every kernel, with
	// a modules.dep: "drivers-6.1-cloud" those of one. They stand in the kernel's own
	// modules directory, where whoever looks for a kernel's modules finds them.
	AssetDrivers = "drivers"

	// Kernel images that don't run on x86-64, where the archive has them.
	AssetI386  = ComponentI386  // a bzImage
	AssetARM64 = ComponentARM64 // an Image
)

// Names of kernels: "kernel-" + version + flavour. Which there are depends on the
// distribution's release: [Kernels] lists them. KernelDefault is the one that
// the emulated host runs too. With "modules" for "kernel" they name the modules.
const (
	KernelDefault   = "kernel"
	KernelCloud61   = "kernel-6.1-cloud"
	KernelGeneric61 = "kernel-6.1-generic"
	KernelCloud612  = "kernel-6.12-cloud"
)

// buildTimeout bounds the building of the vole binary.
const buildTimeout = 10 * time.Minute

// Kernel is a stock kernel in the cache.
type Kernel struct {
	Name    string // as an asset: "kernel-6.1-cloud"
	Release string // "6.1.0-50-cloud-amd64"
	Image   string // path of the bzImage
	Modules string // path of its modules directory, which depmod has not seen
}

// Asset is the path of something that tests use; it is the same in the
// emulated host and outside. The error wraps ErrNotFetched where the cache does
// not hold it, or it was not named in Options.Assets.
func Asset(name string) (string, error) {
	path, err := assetPath(name)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		if Inside() {
			return "", fmt.Errorf("%w: %s is not in the emulated host; name it in nested.Options.Assets", ErrNotFetched, name)
		}
		return "", notFetched(name, err.Error())
	}
	return path, nil
}

func notFetched(name, why string) error {
	return fmt.Errorf("%w: %s (%s); `make deps` fetches it", ErrNotFetched, name, why)
}

// assetPath works out where an asset stands, without looking whether it does.
func assetPath(name string) (string, error) {
	if name == AssetVole {
		if path := os.Getenv("VOLE_BIN"); path != "" {
			return filepath.Abs(path)
		}
		return "", fmt.Errorf("%w: vole (VOLE_BIN is not set); `make build` builds it", ErrNotFetched)
	}
	if name == AssetPeer {
		return builtPath(name)
	}
	if name == AssetI386 || name == AssetARM64 {
		return foreignKernel(name)
	}
	if isDrivers(name) {
		kernels, err := driversOf(name)
		if err != nil {
			return "", err
		}
		return kernels[0].Modules, nil
	}
	if strings.HasPrefix(name, "kernel-") || strings.HasPrefix(name, "modules-") {
		list, err := Kernels()
		if err != nil {
			return "", err
		}
		var names []string
		for _, k := range list {
			switch name {
			case k.Name:
				return k.Image, nil
			case "modules-" + strings.TrimPrefix(k.Name, "kernel-"):
				return k.Modules, nil
			}
			names = append(names, k.Name)
		}
		return "", notFetched(name, "there are: "+strings.Join(names, " "))
	}
	switch name {
	case KernelDefault:
		k, err := hostKernel()
		return k.Image, err
	case AssetBusybox:
		return inComponent(ComponentBusybox, "bin/busybox", "usr/bin/busybox")
	case AssetQEMU:
		return inComponent(ComponentQEMU, ".")
	case AssetFio:
		return inComponent(ComponentFio, "fio.img")
	case AssetRoot:
		return inComponent(ComponentRoot, "root.img")
	}
	return "", fmt.Errorf("nested: no asset is called %q", name)
}

// foreignKernel is the one image of a component that holds nothing else.
func foreignKernel(component string) (string, error) {
	dir, err := componentDir(component)
	if err != nil {
		return "", err
	}
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinu*"))
	if len(images) == 0 {
		return "", notFetched(component, "no image in "+dir)
	}
	return images[len(images)-1], nil
}

// inComponent is the path of the first of the files that a component has.
func inComponent(component string, files ...string) (string, error) {
	dir, err := componentDir(component)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		path := filepath.Join(dir, f)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return filepath.Join(dir, files[0]), nil
}

func componentDir(name string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	m, err := ReadManifest(cache)
	if err != nil {
		return "", err
	}
	c, ok := m.Component(name)
	switch {
	case !ok:
		return "", notFetched(name, "nothing of it in "+cache)
	case c.Absent != "":
		return "", notFetched(name, c.Absent)
	}
	return filepath.Join(cache, c.Dir), nil
}

// imageName is how Debian calls a kernel image: version, ABI and flavour.
var imageName = regexp.MustCompile(`^vmlinuz-((\d+\.\d+)\S*?(-cloud|-rt)?-amd64)$`)

// Kernels lists the kernels of the cache, by name.
func Kernels() ([]Kernel, error) {
	var list []Kernel
	seen := map[string]bool{}
	for _, component := range []string{ComponentCloud, ComponentGeneric, ComponentCloud12} {
		dir, err := componentDir(component)
		if errors.Is(err, ErrNotFetched) {
			continue
		}
		if err != nil {
			return nil, err
		}
		images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
		for _, image := range images {
			k, ok := kernelOf(dir, image)
			if ok && !seen[k.Name] {
				seen[k.Name] = true
				list = append(list, k)
			}
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list, nil
}

func kernelOf(dir, image string) (Kernel, bool) {
	m := imageName.FindStringSubmatch(filepath.Base(image))
	if m == nil {
		return Kernel{}, false
	}
	flavour := "generic"
	if m[3] != "" {
		flavour = m[3][1:]
	}
	k := Kernel{Name: "kernel-" + m[2] + "-" + flavour, Release: m[1], Image: image}
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		k.Modules = filepath.Join(dir, lib, k.Release)
		if _, err := os.Stat(k.Modules); err == nil {
			break
		}
	}
	return k, true
}

// hostKernel picks the kernel of the emulated host: a cloud kernel, since it is
// small and soon up, and the oldest, which is the one that the rig is known with.
func hostKernel() (Kernel, error) {
	list, err := Kernels()
	if err != nil {
		return Kernel{}, err
	}
	for _, k := range list {
		if k.Name == KernelCloud61 {
			return k, nil
		}
	}
	for _, k := range list {
		if strings.HasSuffix(k.Name, "-cloud") {
			return k, nil
		}
	}
	if len(list) == 0 {
		return Kernel{}, notFetched("a kernel for the emulated host", "the cache has none")
	}
	return list[0], nil
}

// QEMUCommand is the command that runs the cache's QEMU with args, here or in
// the emulated host (with AssetQEMU among the assets). It uses the libraries
// and firmware that came with it and nothing of the machine's own.
func QEMUCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	q, err := findQEMU()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, q.loader, append(q.prefix(), args...)...)
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+q.plugins)
	return cmd, nil
}

// VirtiofsdCommand is [QEMUCommand] for the virtiofsd that came with QEMU.
func VirtiofsdCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	q, err := findQEMU()
	if err != nil {
		return nil, err
	}
	if q.virtiofsd == "" {
		return nil, notFetched(AssetQEMU, "it has no virtiofsd")
	}
	return exec.CommandContext(ctx, q.loader, append([]string{"--library-path", strings.Join(q.libs, ":"), q.virtiofsd}, args...)...), nil
}

// qemuTree is the unpacked QEMU. It is started by its own dynamic loader, so
// that the C library of the machine does not matter.
type qemuTree struct {
	loader, program string
	libs            []string // directories of shared libraries
	plugins         string   // directory of QEMU's own modules
	virtiofsd       string   // shares directories, "" if this QEMU has none with it
	firmware        []string
}

func findQEMU() (qemuTree, error) {
	dir, err := componentDir(ComponentQEMU)
	if err != nil {
		return qemuTree{}, err
	}
	q := qemuTree{program: filepath.Join(dir, "usr/bin/qemu-system-x86_64"), libs: treeLibs(dir)}
	if q.loader, err = treeLoader(dir); err != nil {
		return q, err
	}
	q.plugins = filepath.Join(dir, "usr/lib/x86_64-linux-gnu/qemu")
	for _, f := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"} {
		q.firmware = append(q.firmware, filepath.Join(dir, f))
	}
	if _, err := os.Stat(q.program); err != nil {
		return q, notFetched(AssetQEMU, err.Error())
	}
	if path := filepath.Join(dir, "usr/lib/qemu/virtiofsd"); exists(path) {
		q.virtiofsd = path
	}
	return q, nil
}

// prefix is what stands before QEMU's own arguments.
func (q qemuTree) prefix() []string {
	args := []string{"--library-path", strings.Join(q.libs, ":"), q.program}
	for _, f := range q.firmware {
		args = append(args, "-L", f)
	}
	return args
}

// builtPath is where a program of this module is built to.
func builtPath(name string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "bin", name), nil
}

// build builds a program of this module.
func build(pkg, path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/vole-vmm/vole/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nested: build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// buildPeer builds AssetPeer.
func buildPeer() error {
	path, err := builtPath(AssetPeer)
	if err != nil {
		return err
	}
	return build("testdata/nested/stream/peer", path)
}

// buildVole builds the vole binary into the cache and points VOLE_BIN at it.
func buildVole() error {
	if os.Getenv("VOLE_BIN") != "" {
		return nil
	}
	path, err := builtPath(AssetVole)
	if err != nil {
		return err
	}
	if err := build("cmd/vole", path); err != nil {
		return err
	}
	return os.Setenv("VOLE_BIN", path)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
