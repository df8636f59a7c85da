package guest

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vole-vmm/vole/boot/initramfs"
)

// ErrLibrary is a shared library that an executable needs and this machine does not
// have.
var ErrLibrary = errors.New("a shared library is missing")

// loaderDirs are where loaders look without being told: which of them is the
// distribution's choice.
var loaderDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib",
}

// anyLoaderDirs are such that each loader looks in one of them.
var anyLoaderDirs = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64"}

// maxLibraries bounds the libraries of one executable.
const maxLibraries = 512

// addLibraries adds what an executable is loaded with, at the places where it is
// found here. The guest has no /etc/ld.so.cache: a library that is only found by that
// gets links where every loader looks.
func (i *Initramfs) addLibraries(a *initramfs.Archive, exe string) error {
	interp, err := interpreter(exe)
	if err != nil || interp == "" {
		return err
	}
	if err := i.addLibrary(a, interp, interp); err != nil {
		return fmt.Errorf("%w: its interpreter %s: %w", ErrLibrary, interp, err)
	}
	l := newLoader(systemFS{})
	libs, err := l.closure(exe, interp)
	if err != nil {
		return err
	}
	for _, lib := range libs {
		if err := i.addLibrary(a, lib.path, lib.path); err != nil {
			return err
		}
		if slices.Contains(loaderDirs, filepath.Dir(lib.path)) || lib.listed {
			continue
		}
		for _, dir := range anyLoaderDirs {
			if name := filepath.Join(dir, lib.name); !a.Has(name) {
				if err := a.Symlink(name, lib.path); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// addLibrary adds the file at name as the path.
func (i *Initramfs) addLibrary(a *initramfs.Archive, name, path string) error {
	if a.Has(path) {
		return nil
	}
	lib, err := i.open(name, readLoadable)
	if err != nil {
		return err
	}
	return a.File(path, 0o755, lib, lib.size)
}

// interpreter is the one that an executable names, "" for none.
func interpreter(exe string) (string, error) {
	f, err := os.Open(exe)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	l, err := readLoadable(f, st.Size())
	if err != nil {
		return "", err
	}
	return l.interp, nil
}

// library is a shared library that was found.
type library struct {
	name, path string
	listed     bool // by the object that needs it: RPATH, RUNPATH, or a name with a slash
}

// loader finds shared libraries as ld.so(8) does.
type loader struct {
	files  fileSystem
	cached map[string]string // by name
	dirs   []string
}

// fileSystem is what a loader looks at.
type fileSystem interface {
	// Object opens an ELF file; the error is fs.ErrNotExist if there is none.
	Object(name string) (object, error)
	ReadFile(name string) ([]byte, error)
	Glob(pattern string) []string
}

// object is what a shared object says of its libraries.
type object struct {
	needed, rpath, runpath []string
}

func newLoader(files fileSystem) *loader {
	l := &loader{files: files, dirs: loaderDirs}
	if b, err := files.ReadFile("/etc/ld.so.cache"); err == nil {
		l.cached = parseCache(b)
	}
	if l.cached == nil {
		l.dirs = append(confDirs(files, "/etc/ld.so.conf", 0), l.dirs...)
	}
	return l
}

// closure returns the libraries of exe and theirs, in the order of their loading.
// interp is loaded already.
func (l *loader) closure(exe, interp string) ([]library, error) {
	o, err := l.files.Object(exe)
	if err != nil {
		return nil, err
	}
	type user struct {
		object
		path   string
		rpaths []string // with those of the objects that wanted it
	}
	var libs []library
	seen := map[string]bool{filepath.Base(interp): true}
	queue := []user{{o, exe, origin(o.rpath, exe)}}
	for len(queue) > 0 {
		u := queue[0]
		queue = queue[1:]
		for _, name := range u.needed {
			if seen[name] {
				continue
			}
			seen[name] = true
			var listed []string
			if len(u.runpath) > 0 {
				listed = origin(u.runpath, u.path)
			} else {
				listed = u.rpaths
			}
			lib, o, err := l.find(name, listed)
			if err != nil {
				return nil, fmt.Errorf("%w: %s, which %s needs", ErrLibrary, name, u.path)
			}
			if libs = append(libs, lib); len(libs) > maxLibraries {
				return nil, fmt.Errorf("%w: there are more than %d", ErrLibrary, maxLibraries)
			}
			queue = append(queue, user{o, lib.path, append(origin(o.rpath, lib.path), u.rpaths...)})
		}
	}
	return libs, nil
}

// find finds a library. What is not for this machine is passed over.
func (l *loader) find(name string, listed []string) (library, object, error) {
	if strings.Contains(name, "/") {
		o, err := l.files.Object(name)
		return library{name, name, true}, o, err
	}
	for _, dir := range listed {
		path := filepath.Join(dir, name)
		if o, err := l.files.Object(path); err == nil {
			return library{name, path, true}, o, nil
		}
	}
	if path, ok := l.cached[name]; ok {
		if o, err := l.files.Object(path); err == nil {
			return library{name, path, false}, o, nil
		}
	}
	for _, dir := range l.dirs {
		path := filepath.Join(dir, name)
		if o, err := l.files.Object(path); err == nil {
			return library{name, path, false}, o, nil
		}
	}
	return library{}, object{}, fs.ErrNotExist
}

// origin puts the object's directory where a list says so.
func origin(list []string, path string) []string {
	dir := filepath.Dir(path)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	var out []string
	for _, d := range list {
		d = strings.NewReplacer("$ORIGIN", dir, "${ORIGIN}", dir, "$LIB", "lib64", "${LIB}", "lib64",
			"$PLATFORM", "x86_64", "${PLATFORM}", "x86_64").Replace(d)
		if filepath.IsAbs(d) {
			out = append(out, d)
		}
	}
	return out
}

// systemFS is this machine's file system.
type systemFS struct{}

func (systemFS) ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }

func (systemFS) Glob(pattern string) []string {
	names, _ := filepath.Glob(pattern)
	return names
}

func (systemFS) Object(name string) (object, error) {
	f, err := elf.Open(name)
	if err != nil {
		return object{}, err
	}
	defer f.Close()
	if f.Machine != elfMachine || f.Class != elf.ELFCLASS64 {
		return object{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	list := func(tag elf.DynTag) []string {
		var all []string
		values, _ := f.DynString(tag)
		for _, v := range values {
			all = append(all, strings.Split(v, ":")...)
		}
		return all
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return object{}, fmt.Errorf("%s: %w", name, err)
	}
	return object{needed, list(elf.DT_RPATH), list(elf.DT_RUNPATH)}, nil
}
