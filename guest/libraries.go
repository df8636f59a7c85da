package guest

import (
	"cmp"
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
// found here. The guest has neither /etc/ld.so.cache nor LD_LIBRARY_PATH, and $ORIGIN is
// elsewhere for what is loaded by another name, as /init is: a library that loaders don't
// find without these gets links where every one looks.
func (i *Initramfs) addLibraries(a *initramfs.Archive, exe string) error {
	interp, err := interpreter(exe)
	if err != nil || interp == "" {
		return err
	}
	if err := i.addLibrary(a, interp, interp); err != nil {
		return fmt.Errorf("%w: its interpreter %s: %w", ErrLibrary, interp, err)
	}
	l := newLoader(systemFS{})
	l.path = os.Getenv("LD_LIBRARY_PATH")
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		l.program = real
	}
	// A loader of no distribution's may look only where it lies itself.
	own := filepath.Dir(interp)
	l.dirs = append(slices.Clone(l.dirs), own)
	libs, err := l.closure(exe, interp)
	if err != nil {
		return err
	}
	for _, lib := range libs {
		if err := i.addLibrary(a, lib.path, lib.path); err != nil {
			return err
		}
		if !lib.linked {
			continue
		}
		for _, dir := range slices.Concat(anyLoaderDirs, []string{own}) {
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
	linked     bool // the guest's loader may not look where it is
}

// loader finds shared libraries as ld.so(8) does.
type loader struct {
	files   fileSystem
	cached  map[string]string // by name
	dirs    []string
	path    string // LD_LIBRARY_PATH
	program string // where the executable lies, if its name does not say so
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
	program := cmp.Or(l.program, exe)
	path := environment(l.path, program)
	type user struct {
		object
		path   string
		rpaths []string // with those of the objects that wanted it
	}
	var libs []library
	seen := map[string]bool{filepath.Base(interp): true}
	queue := []user{{o, program, origin(o.rpath, program)}}
	for len(queue) > 0 {
		u := queue[0]
		queue = queue[1:]
		for _, name := range u.needed {
			if seen[name] {
				continue
			}
			seen[name] = true
			// What a loader looks at before its cache, in this order.
			var dirs []string
			if len(u.runpath) > 0 {
				dirs = append(slices.Clone(path), origin(u.runpath, u.path)...)
			} else {
				dirs = append(slices.Clone(u.rpaths), path...)
			}
			lib, o, err := l.find(name, dirs)
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

// find finds a library, in dirs first. What is not for this machine is passed over.
func (l *loader) find(name string, dirs []string) (library, object, error) {
	if strings.Contains(name, "/") {
		o, err := l.files.Object(name)
		return library{name, name, false}, o, err
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if o, err := l.files.Object(path); err == nil {
			return library{name, path, true}, o, nil
		}
	}
	usual := func(path string) library {
		return library{name, path, !slices.Contains(loaderDirs, filepath.Dir(path))}
	}
	if path, ok := l.cached[name]; ok {
		if o, err := l.files.Object(path); err == nil {
			return usual(path), o, nil
		}
	}
	for _, dir := range l.dirs {
		path := filepath.Join(dir, name)
		if o, err := l.files.Object(path); err == nil {
			return usual(path), o, nil
		}
	}
	return library{}, object{}, fs.ErrNotExist
}

// environment are the directories of LD_LIBRARY_PATH for a program. One without a name is
// the working directory.
func environment(list, program string) (dirs []string) {
	if list == "" {
		return nil
	}
	for _, d := range expand(strings.Split(strings.ReplaceAll(list, ";", ":"), ":"), program) {
		if abs, err := filepath.Abs(d); err == nil {
			dirs = append(dirs, abs)
		}
	}
	return dirs
}

// origin are the directories of the list of an object, those with absolute names.
func origin(list []string, path string) []string {
	return slices.DeleteFunc(expand(list, path), func(d string) bool { return !filepath.IsAbs(d) })
}

// expand puts the object's directory where a list says so.
func expand(list []string, path string) (out []string) {
	dir := filepath.Dir(path)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	words := strings.NewReplacer("$ORIGIN", dir, "${ORIGIN}", dir, "$LIB", "lib64", "${LIB}", "lib64",
		"$PLATFORM", "x86_64", "${PLATFORM}", "x86_64")
	for _, d := range list {
		out = append(out, words.Replace(d))
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
