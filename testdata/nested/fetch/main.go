// Command fetch gets what the guest tests need from Debian: QEMU with every
// library it links, stock kernels, busybox, iasl, and an image of a small Debian
// system.
//
// Nothing is installed and root is not needed, but for the image of a Debian
// system, whose packages are configured in a chroot: apt resolves against an empty
// package status, downloads and verifies, dpkg-deb unpacks into the cache
// directory (see nested.CacheDir). What the manifest records is not fetched
// again, so a second run is offline.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/vole-vmm/vole/testdata/nested"
)

// want is a component that fetch knows how to get.
type want struct {
	name     string
	roots    []string // packages that apt is asked for
	take     func(pkg string) bool
	optional bool
	larger   bool                   // fetched only by name: for larger suites than CI's
	arch     string                 // of the packages, where it is not this machine's
	only     func(file string) bool // the files that are kept; nil is all
	// build makes the component's directory out of the packages, where unpacking
	// them is not all. It may fail by errNotBuilt.
	build  func(ctx context.Context, debs []string, dir string) error
	asRoot bool   // build takes root's rights
	recipe string // another one makes what is in the cache stale
}

// wants lists the components. The names of kernel packages are never guessed:
// apt resolves the metapackage, and of its closure what belongs to the kernel
// is taken (everything named linux-*).
func wants() []want {
	all := func(string) bool { return true }
	kernel := func(pkg string) bool { return strings.HasPrefix(pkg, "linux-") }
	image := func(file string) bool { return strings.HasPrefix(path.Base(file), "vmlinu") }
	// What git has in Perl is not used, and its manuals are not read.
	gitNeeds := func(pkg string) bool { return !strings.Contains(pkg, "perl") && pkg != "git-man" }
	only := func(name string) func(string) bool { return func(pkg string) bool { return pkg == name } }
	return []want{
		{name: nested.ComponentQEMU, roots: []string{"qemu-system-x86"}, take: all},
		{name: nested.ComponentCloud, roots: []string{"linux-image-cloud-amd64"}, take: kernel},
		{name: nested.ComponentGeneric, roots: []string{"linux-image-amd64"}, take: kernel},
		{name: nested.ComponentCloud12, roots: []string{"linux-image-6.12-cloud-amd64"}, take: kernel, optional: true},
		{name: nested.ComponentBusybox, roots: []string{"busybox-static"}, take: only("busybox-static")},
		{name: nested.ComponentACPICA, roots: []string{"acpica-tools"}, take: all},
		{name: nested.ComponentExt, roots: []string{"e2fsprogs"}, take: all},
		// Behind e2fsprogs, which it uses.
		{name: nested.ComponentRoot, roots: rootPackages, take: all, optional: true, build: buildRoot, asRoot: true, recipe: rootRecipe()},
		{name: nested.ComponentFio, roots: []string{"fio"}, take: fioNeeds, optional: true, larger: true, build: buildFio, recipe: fioRecipe},
		{name: nested.ComponentNet, roots: []string{"iperf3", "socat"}, take: all, optional: true, larger: true},
		{name: nested.ComponentGit, roots: []string{"git"}, take: gitNeeds, optional: true, larger: true},
		{name: nested.ComponentI386, roots: []string{"linux-image-686"}, take: kernel, optional: true, arch: "i386", only: image},
		{name: nested.ComponentARM64, roots: []string{"linux-image-cloud-arm64"}, take: kernel, optional: true, arch: "arm64", only: image},
	}
}

func main() {
	var force bool
	flag.BoolVar(&force, "refresh", false, "fetch again what is in the cache already, in the archive's newest version")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: fetch [-refresh] [COMPONENT]...\nWithout a name all are fetched that `make test` uses.")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Args(), force); err != nil {
		fmt.Fprintln(os.Stderr, "deps:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string, force bool) error {
	dir, err := nested.CacheDir()
	if err != nil {
		return err
	}
	list, err := choose(names)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create the cache directory: %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()

	manifest, err := nested.ReadManifest(dir)
	if err != nil {
		return err
	}
	var todo []want
	for _, w := range list {
		if force || !have(dir, manifest, w) {
			todo = append(todo, w)
		}
	}
	if len(todo) == 0 {
		fmt.Fprintf(os.Stderr, "deps: %d components are in %s\n", len(list), dir)
		return nil
	}
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("the test kernels and QEMU are fetched for amd64 only, and this machine is %s", runtime.GOARCH)
	}
	archives := map[string]*apt{}
	for _, w := range todo {
		a := archives[w.arch]
		if a == nil {
			if a, err = newApt(dir, w.arch); err != nil {
				return err
			}
			defer a.close()
			archives[w.arch] = a
		}
		c, err := a.fetch(ctx, w)
		if err != nil {
			again := errors.Is(err, errNotBuilt)
			if !w.optional || !again && !errors.Is(err, errNoPackage) {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			fmt.Fprintf(os.Stderr, "deps: %s: left out: %v\n", w.name, err)
			if again && have(dir, manifest, w) {
				continue // the one that is there is as good
			}
			c = nested.Component{Name: w.name, Absent: err.Error(), Again: again}
		}
		old, _ := manifest.Component(w.name)
		manifest.Set(c)
		if err := manifest.Write(dir); err != nil {
			return err
		}
		if old.Dir != "" && old.Dir != c.Dir {
			if err := os.RemoveAll(filepath.Join(dir, old.Dir)); err != nil {
				return fmt.Errorf("remove the old %s: %w", w.name, err)
			}
		}
	}
	return nil
}

// choose picks the components named, or all that CI uses.
func choose(names []string) ([]want, error) {
	list := wants()
	if len(names) == 0 {
		return slices.DeleteFunc(list, func(w want) bool { return w.larger }), nil
	}
	var out []want
	for _, name := range names {
		found := false
		for _, w := range list {
			if w.name == name {
				out, found = append(out, w), true
			}
		}
		if !found {
			var known []string
			for _, w := range list {
				known = append(known, w.name)
			}
			return nil, fmt.Errorf("no component is called %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	return out, nil
}

// have says whether the cache holds a component completely. An optional
// component that the archive did not have counts as held; one that could not be
// made does not.
func have(dir string, m *nested.Manifest, w want) bool {
	c, ok := m.Component(w.name)
	if !ok {
		return false
	}
	if c.Absent != "" {
		return !c.Again
	}
	if c.Recipe != w.recipe {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, c.Dir))
	return err == nil
}

// lock keeps two fetches out of one cache directory.
func lock(dir string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache directory: %w", err)
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		fmt.Fprintf(os.Stderr, "deps: another fetch works in %s, waiting for it\n", dir)
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock the cache directory: %w", err)
		}
	}
	return func() { f.Close() }, nil
}
