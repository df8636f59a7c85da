package initramfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// What can be wrong with a modules directory or a module.
var (
	// ErrNoModule is a module that is neither in the directory nor built in.
	ErrNoModule = errors.New("no such module")
	// ErrModuleCycle is a module that needs itself, by way of others or not.
	ErrModuleCycle = errors.New("modules need each other in a circle")
	// ErrModulesDir is a directory without any module, or with an index that
	// makes no sense.
	ErrModulesDir = errors.New("not a usable modules directory")
	// ErrModule is a module file that is not an ELF object with a .modinfo
	// section, or that cannot be decompressed.
	ErrModule = errors.New("not a usable kernel module")
)

// Bounds on each of depmod's index files, and a line of one, in bytes. Those of
// a kernel with everything enabled have about 2 MiB.
const (
	maxIndex = 64 << 20
	maxLine  = 1 << 20
)

// ModuleDir is the modules directory of one kernel release, /lib/modules/R. It
// may be used concurrently.
type ModuleDir struct {
	fsys   fs.FS
	label  string // for errors
	bounds bounds

	files    map[string]string   // normal name -> path
	depends  map[string][]string // normal name -> normal names; nil without modules.dep
	builtin  map[string]bool     // nil without modules.builtin
	softdeps map[string]softdep  // from modules.softdep
	aliases  map[string]string   // alias without wildcards -> normal name
}

// softdep are modules that one wants loaded before and after it, but can do
// without.
type softdep struct{ pre, post []string }

// Module is one module file.
type Module struct {
	// Name is the module's name as the kernel knows it, with underscores.
	Name string
	// Path is its file, slash separated and relative to the directory.
	Path string
}

// File is the module's file name without a compression suffix, "kvm-amd.ko".
func (m Module) File() string { return path.Base(trimCompression(m.Path)) }

// OpenModules reads the index of the modules directory dir: modules.dep,
// modules.builtin, modules.softdep and modules.alias, as far as they are there
// (modules.dep(5)). Without modules.dep, as in a package that was only
// unpacked, it looks which files there are, and dependencies come from the
// modules themselves.
func OpenModules(dir string) (*ModuleDir, error) {
	return NewModuleDir(os.DirFS(dir), dir)
}

// NewModuleDir is [OpenModules] for any file system; label is what errors call
// it.
func NewModuleDir(fsys fs.FS, label string) (*ModuleDir, error) {
	d := &ModuleDir{fsys: fsys, label: label, bounds: bounds{maxModule, maxSelected, maxReading}, files: make(map[string]string)}
	if _, err := fs.ReadDir(fsys, "."); err != nil {
		return nil, d.fail("%w: %w", ErrModulesDir, err)
	}
	for _, index := range []struct {
		file string
		line func(string) error
	}{
		{"modules.dep", d.addDep},
		{"modules.builtin", d.addBuiltin},
		{"modules.softdep", d.addSoftdep},
		{"modules.alias", d.addAlias},
	} {
		there, err := d.readIndex(index.file, index.line)
		if err != nil {
			return nil, err
		}
		if there && index.file == "modules.builtin" && d.builtin == nil {
			d.builtin = make(map[string]bool) // nothing is built in
		}
	}
	if d.depends == nil {
		if err := d.walk(); err != nil {
			return nil, err
		}
	}
	if len(d.files) == 0 && len(d.builtin) == 0 {
		return nil, d.fail("%w: it has neither modules nor an index of them", ErrModulesDir)
	}
	return d, nil
}

func (d *ModuleDir) fail(format string, args ...any) error {
	return fmt.Errorf("initramfs: %s: %w", d.label, fmt.Errorf(format, args...))
}

// readIndex calls line for every line of an index file that is not empty or a
// comment, and reports whether the file is there.
func (d *ModuleDir) readIndex(file string, line func(string) error) (there bool, err error) {
	f, err := d.fsys.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, d.fail("%w: %w", ErrModulesDir, err)
	}
	defer f.Close()
	data, err := readAllMax(f, maxIndex)
	if err != nil {
		return false, d.fail("%w: %s: %w", ErrModulesDir, file, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		if err := line(text); err != nil {
			return false, d.fail("%w: %s, line %d: %w", ErrModulesDir, file, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return false, d.fail("%w: %s: %w", ErrModulesDir, file, err)
	}
	return true, nil
}

// addDep takes a line of modules.dep, "kernel/b.ko: kernel/a.ko kernel/c.ko".
func (d *ModuleDir) addDep(line string) error {
	file, rest, ok := strings.Cut(line, ":")
	if !ok {
		return errors.New("there is no colon")
	}
	if !fs.ValidPath(file) {
		return fmt.Errorf("%q is not a path below the directory", file)
	}
	name, ok := moduleName(file)
	if !ok {
		return fmt.Errorf("%q does not name a module file", file)
	}
	if d.depends == nil {
		d.depends = make(map[string][]string)
	}
	var needs []string
	for dep := range strings.FieldsSeq(rest) {
		n, ok := moduleName(dep)
		if !ok {
			return fmt.Errorf("%q does not name a module file", dep)
		}
		needs = append(needs, n)
	}
	d.files[name] = file
	d.depends[name] = needs
	return nil
}

// addBuiltin takes a line of modules.builtin, "kernel/fs/ext4/ext4.ko".
func (d *ModuleDir) addBuiltin(line string) error {
	name, ok := moduleName(line)
	if !ok {
		return fmt.Errorf("%q does not name a module file", line)
	}
	if d.builtin == nil {
		d.builtin = make(map[string]bool)
	}
	d.builtin[name] = true
	return nil
}

// addSoftdep takes a line of modules.softdep, "softdep NAME pre: a b post: c".
func (d *ModuleDir) addSoftdep(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	name, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	if word != "softdep" || name == "" {
		return nil
	}
	if d.softdeps == nil {
		d.softdeps = make(map[string]softdep)
	}
	s := d.softdeps[normalName(name)]
	s.add(rest)
	d.softdeps[normalName(name)] = s
	return nil
}

// add takes "pre: a b post: c".
func (s *softdep) add(text string) {
	var to *[]string
	for word := range strings.FieldsSeq(text) {
		switch word {
		case "pre:":
			to = &s.pre
		case "post:":
			to = &s.post
		default:
			if to != nil {
				*to = append(*to, word)
			}
		}
	}
}

// addAlias takes a line of modules.alias, "alias fs-ext4 ext4". Aliases with
// wildcards stand for devices, which nobody asks for by name, and are left out.
func (d *ModuleDir) addAlias(line string) error {
	f := strings.Fields(line)
	if len(f) != 3 || f[0] != "alias" || strings.ContainsAny(f[1], "*?[") {
		return nil
	}
	if d.aliases == nil {
		d.aliases = make(map[string]string)
	}
	if alias := normalName(f[1]); d.aliases[alias] == "" {
		d.aliases[alias] = normalName(f[2])
	}
	return nil
}

// walk finds the module files. Links to directories (build, source) are not
// followed.
func (d *ModuleDir) walk() error {
	err := fs.WalkDir(d.fsys, ".", func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, ok := moduleName(file)
		if !ok || e.IsDir() {
			return nil
		}
		// The order of depmod's default search list.
		if old := d.files[name]; old == "" || strings.HasPrefix(file, "updates/") {
			d.files[name] = file
		}
		return nil
	})
	if err != nil {
		return d.fail("%w: %w", ErrModulesDir, err)
	}
	return nil
}

// moduleName is the normal name of the module in file; ok is false if the file
// is not called like a module.
func moduleName(file string) (name string, ok bool) {
	base := path.Base(trimCompression(file))
	name, ok = strings.CutSuffix(base, ".ko")
	return normalName(name), ok && name != ""
}

// normalName makes dashes underscores, as the kernel does.
func normalName(name string) string { return strings.ReplaceAll(name, "-", "_") }

func trimCompression(file string) string {
	for _, suffix := range []string{".gz", ".xz", ".zst"} {
		if s, ok := strings.CutSuffix(file, suffix); ok && strings.HasSuffix(s, ".ko") {
			return s
		}
	}
	return file
}
