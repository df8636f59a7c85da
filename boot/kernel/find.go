package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNoKernel says that [Default] found no kernel to boot.
var ErrNoKernel = errors.New("no kernel to boot")

// Source says where a kernel comes from.
type Source string

// The places that [Find] looks in.
const (
	SourceBoot    Source = "boot"    // /boot
	SourceModules Source = "modules" // /lib/modules, /usr/lib/modules
	SourcePulled  Source = "pulled"  // fetched by vole
)

// Kernel is a bzImage that this machine has.
type Kernel struct {
	Path string
	// Version is the release in the image's header, "6.1.0-50-amd64"; of an
	// image that can't be read, the one in its name.
	Version string
	// Modules is the directory of the kernel's modules, lib/modules/VERSION, as
	// [ModulesFor] finds it; "" is none.
	Modules string
	Source  Source
	// Running says that this is, by its name, the image of the kernel that
	// runs here.
	Running bool
	// Err is why the file can't be booted: it may not be read, or is no bzImage.
	Err error
}

// Finder looks for kernels. The zero value looks at this machine; a test points
// it elsewhere.
type Finder struct {
	// Root is put before /boot, /lib/modules and /usr/lib/modules.
	Root string
	// Release is the running kernel's; "" asks the kernel.
	Release string
	// Pulled is the directory of pulled kernels; "" is [PulledDir].
	Pulled string
}

// PulledDir is where pulled kernels are: each in a directory of its own, or
// directly, as vmlinuz or vmlinuz-VERSION. It lies in [DefaultDir].
func PulledDir() (string, error) {
	dir, err := DefaultDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, pulledName), nil
}

// Find lists the kernels of this machine, newest first, those that can't be
// used too. A file with several names is listed once.
func Find() []Kernel { return Finder{}.Find() }

// Default is the kernel to boot when none is named: the image of the running
// kernel if it can be read, else the newest that was pulled. Otherwise the
// error wraps ErrNoKernel and says what to do.
func Default() (Kernel, error) { return Finder{}.Default() }

// Find lists the kernels, newest first. See the function Find.
func (f Finder) Find() []Kernel {
	release := f.release()
	var found []Kernel
	var seen []fs.FileInfo
	for _, place := range f.places() {
		paths, _ := filepath.Glob(place.pattern) // the patterns are well-formed
		for _, path := range paths {
			k := Kernel{Path: path, Source: place.source, Version: nameVersion(path)}
			k.Running = place.source != SourcePulled && release != "" && k.Version == release
			info, err := os.Stat(path)
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) { // a dangling link
					continue
				}
				k.Err = err
			} else if slices.ContainsFunc(seen, func(o fs.FileInfo) bool { return os.SameFile(info, o) }) {
				continue
			} else {
				seen = append(seen, info)
				k.read()
			}
			k.Modules, _ = f.modules(k.Path, k.Version)
			found = append(found, k)
		}
	}
	slices.SortStableFunc(found, func(a, b Kernel) int { return CompareVersions(b.Version, a.Version) })
	return found
}

// Default picks the kernel to boot. See the function Default.
func (f Finder) Default() (Kernel, error) {
	all := f.Find()
	var running, other *Kernel
	for i := range all {
		k := &all[i]
		switch {
		case k.Running && k.Err == nil:
			return *k, nil
		case k.Running:
			running = k
		case k.Err == nil && k.Source != SourcePulled && other == nil:
			other = k
		}
	}
	for _, k := range all {
		if k.Source == SourcePulled && k.Err == nil {
			return k, nil
		}
	}
	why := "the image of the running kernel is not on this machine"
	if running != nil {
		why = fmt.Sprintf("the running kernel's image %s can't be used (%v)", running.Path, bare(running.Err))
	}
	advice := "`vole kernel pull` fetches one"
	if other != nil {
		advice += "; this machine has " + other.Path
	}
	return Kernel{}, fmt.Errorf("%w: %s; give --kernel FILE: %s", ErrNoKernel, why, advice)
}

func (f Finder) release() string {
	if f.Release != "" {
		return f.Release
	}
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

type place struct {
	pattern string
	source  Source
}

// places lists where to look; of a file with several names the first stays, so
// names with a version come first.
func (f Finder) places() []place {
	root := f.Root
	if root == "" {
		root = "/"
	}
	root = escapeGlob(root)
	places := []place{
		{filepath.Join(root, "boot/vmlinuz-*"), SourceBoot},
		{filepath.Join(root, "usr/lib/modules/*/vmlinuz"), SourceModules},
		{filepath.Join(root, "lib/modules/*/vmlinuz"), SourceModules},
		{filepath.Join(root, "boot/vmlinuz"), SourceBoot},
	}
	pulled := f.Pulled
	if pulled == "" {
		pulled, _ = PulledDir() // a user without a home has pulled nothing
	}
	if pulled != "" {
		pulled = escapeGlob(pulled)
		for _, pattern := range []string{"vmlinuz-*", "vmlinuz", "*/vmlinuz-*", "*/vmlinuz"} {
			places = append(places, place{filepath.Join(pulled, pattern), SourcePulled})
		}
	}
	return places
}

// escapeGlob makes a directory match itself only.
func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// nameVersion is the version in the name vmlinuz-VERSION, or in that of the
// directory of a file named vmlinuz: "" for one in /boot.
func nameVersion(path string) string {
	if v, ok := strings.CutPrefix(filepath.Base(path), "vmlinuz-"); ok {
		return v
	}
	if dir := filepath.Base(filepath.Dir(path)); dir != "boot" {
		return dir
	}
	return ""
}

// read takes the version from the image, or the reason why it can't be booted.
func (k *Kernel) read() {
	f, size, err := openRegular(k.Path)
	if err != nil {
		k.Err = err
		return
	}
	defer f.Close()
	h, err := readSetupHeader(&sourceFile{f: f, key: fileKey{size: size}})
	if err != nil {
		k.Err = err
		return
	}
	if v := h.release(); v != "" {
		k.Version = v
	}
}
