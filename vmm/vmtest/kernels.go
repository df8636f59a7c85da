package vmtest

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vole-vmm/vole/boot/kernel"
)

// AllKernels stands for all kernels of this machine that can be read, for Each and
// VOLE_KERNELS.
const AllKernels = "all"

// runner is a test or benchmark that has others below it: *testing.T and *testing.B.
type runner[T any] interface {
	testing.TB
	Run(name string, f func(T)) bool
}

// Each runs f as a subtest, or benchmark, for each of the kernels, which it gets as what
// [Kernel] takes. They are named as there; with * or ? or [ in them they stand for all
// files, or versions, that match; AllKernels is all kernels of this machine. VOLE_KERNELS
// comes before the kernels that are given, and without either it is the one of Kernel's
// default. A kernel that is not there makes the test fail.
//
// The subtests run one after the other, or at the same time if f calls t.Parallel.
func Each[T runner[T]](t T, kernels []string, f func(t T, kernel string)) {
	t.Helper()
	c := newConfig(nil)
	paths, err := c.each(kernel.Finder{}, kernels)
	if errors.Is(err, kernel.ErrNoKernel) {
		c.end(t, fmt.Errorf("%w: %w", errUnusable, err))
	}
	if err != nil {
		t.Fatalf("vmtest: %v", err)
	}
	for _, p := range paths {
		t.Run(kernelTitle(p), func(t T) {
			t.Helper()
			f(t, p)
		})
	}
}

// kernelTitle is a kernel's name in the name of a test.
func kernelTitle(path string) string {
	if release, err := kernel.Release(path); err == nil {
		return release
	}
	return filepath.Base(path)
}

// each are the paths of the kernels for Each.
func (c *config) each(f kernel.Finder, names []string) ([]string, error) {
	if list := splitList(c.getenv(envKernels)); len(list) > 0 {
		names = list
	}
	if len(names) == 0 {
		names = []string{c.getenv(envKernel)}
	}
	var paths []string
	for _, name := range names {
		found, err := findKernels(f, name)
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			if !slices.Contains(paths, p) {
				paths = append(paths, p)
			}
		}
	}
	return paths, nil
}

// splitList splits at spaces and commas.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
}

// oneKernel is the path of the kernel that is meant by name, "" for the default. Without a
// default the error wraps kernel.ErrNoKernel.
func oneKernel(f kernel.Finder, name string) (string, error) {
	switch {
	case name == "":
		k, err := f.Default()
		return k.Path, err
	case strings.Contains(name, "/"):
		return filepath.Abs(name)
	}
	list := f.Find()
	found := named(list, func(k kernel.Kernel) bool {
		return k.Version == name || k.Source == kernel.SourcePulled && filepath.Base(filepath.Dir(k.Path)) == name
	})
	if len(found) == 0 {
		found = named(list, func(k kernel.Kernel) bool {
			rest, ok := strings.CutPrefix(k.Version, name)
			return ok && rest != "" && (rest[0] < '0' || rest[0] > '9')
		})
	}
	return newest(found, name)
}

// findKernels are the paths of the kernels that are meant by name.
func findKernels(f kernel.Finder, name string) ([]string, error) {
	pattern := strings.ContainsAny(name, "*?[")
	if name != AllKernels && !pattern {
		p, err := oneKernel(f, name)
		if err != nil {
			return nil, err
		}
		return []string{p}, nil
	}
	if pattern {
		if _, err := path.Match(name, ""); err != nil {
			return nil, fmt.Errorf("the kernels %q: %w", name, err)
		}
	}
	var paths []string
	if pattern && strings.Contains(name, "/") {
		paths, _ = filepath.Glob(name) // the pattern is well-formed
		for i, p := range paths {
			abs, err := filepath.Abs(p)
			if err != nil {
				return nil, err
			}
			paths[i] = abs
		}
	} else {
		for _, k := range f.Find() {
			match := name == AllKernels
			if !match {
				match, _ = path.Match(name, k.Version)
			}
			if match && k.Err == nil {
				paths = append(paths, k.Path)
			}
		}
	}
	switch {
	case len(paths) > 0:
		return paths, nil
	case name == AllKernels:
		return nil, fmt.Errorf("%w: this machine has none: `vole kernel pull` fetches one", kernel.ErrNoKernel)
	}
	return nil, fmt.Errorf("no kernel matches %q", name)
}

func named(list []kernel.Kernel, keep func(kernel.Kernel) bool) []kernel.Kernel {
	return slices.DeleteFunc(slices.Clone(list), func(k kernel.Kernel) bool { return !keep(k) })
}

// newest is the first that can be read of kernels that are in order.
func newest(found []kernel.Kernel, name string) (string, error) {
	for _, k := range found {
		if k.Err == nil {
			return k.Path, nil
		}
	}
	if len(found) > 0 {
		return "", fmt.Errorf("the kernel %s can't be used: %w", found[0].Path, found[0].Err)
	}
	return "", fmt.Errorf("no kernel %q on this machine: `vole kernel ls` lists them, `vole kernel pull` fetches others; a file has a slash in its name", name)
}
