package initramfs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Selection is what it takes to load a set of modules.
type Selection struct {
	// Load are the modules in an order in which they load.
	Load []Module
	// Builtin are the names that were asked for or needed and that the kernel
	// has built in, sorted.
	Builtin []string
	// Absent are the soft dependencies that are nowhere, sorted.
	Absent []string
}

// SelectOptions changes what [ModuleDir.Select] selects.
type SelectOptions struct {
	// Exclude are modules to be left out although they were asked for or are
	// needed, with all that only they need. The kernel refuses a module whose
	// symbols are missing, so this is for dependencies known to be met or
	// unused.
	Exclude []string
	// Softdeps takes the modules' soft dependencies along, those that are
	// there.
	Softdeps bool
	// Trusting takes a module that is nowhere for one that the kernel has built in,
	// where the directory has no modules.builtin that would say so.
	Trusting bool
}

// Select returns the named modules and all that they need. A name may be
// written with dashes or underscores, with ".ko", or be an alias that
// modules.alias has. It fails with ErrNoModule for a module that is missing,
// naming who needs it, ErrModuleCycle, or, where modules have to be opened to
// see what they need, ErrModule, also if they are too large for AddModules.
func (d *ModuleDir) Select(opt SelectOptions, names ...string) (Selection, error) {
	w := walker{
		dir:      d,
		opt:      opt,
		excluded: make(map[string]bool),
		state:    make(map[string]visit),
		builtin:  make(map[string]bool),
		absent:   make(map[string]bool),
		left:     d.bounds.selected,
	}
	for _, name := range opt.Exclude {
		w.excluded[d.resolve(name)] = true
	}
	for _, name := range names {
		if err := w.need(d.resolve(name), name); err != nil {
			return Selection{}, err
		}
	}
	return Selection{Load: w.load, Builtin: sorted(w.builtin), Absent: sorted(w.absent)}, nil
}

// visit is how far a walker is with a module.
type visit uint8

const (
	fresh visit = iota
	open        // its dependencies are being visited
	done
)

// walker visits modules depth first.
type walker struct {
	dir      *ModuleDir
	opt      SelectOptions
	excluded map[string]bool // normal names
	state    map[string]visit
	path     []string // the open ones, outermost first
	load     []Module
	builtin  map[string]bool
	absent   map[string]bool
	left     int64 // bytes of modules that may be read
}

// need visits the module name, which its user wrote as given.
func (w *walker) need(name, given string) error {
	if w.excluded[name] {
		return nil
	}
	switch w.state[name] {
	case done:
		return nil
	case open:
		from := w.path[slices.Index(w.path, name):]
		return w.dir.fail("%w: %s", ErrModuleCycle, strings.Join(append(slices.Clone(from), name), " -> "))
	}
	file, ok := w.dir.files[name]
	if !ok {
		if w.dir.builtin[name] || w.opt.Trusting && w.dir.builtin == nil {
			w.builtin[name] = true
			return nil
		}
		if len(w.path) > 0 {
			return w.dir.fail("%w: %s (needed by %s)", ErrNoModule, given, w.path[len(w.path)-1])
		}
		return w.dir.fail("%w: %s", ErrNoModule, given)
	}
	m := Module{Name: name, Path: file}
	depends, soft, err := w.needs(m)
	if err != nil {
		return err
	}
	w.state[name] = open
	w.path = append(w.path, name)
	for _, s := range soft.pre {
		if err := w.want(s); err != nil {
			return err
		}
	}
	for _, dep := range depends {
		if err := w.need(dep, dep); err != nil {
			return err
		}
	}
	w.path = w.path[:len(w.path)-1]
	w.state[name] = done
	w.load = append(w.load, m)
	for _, s := range soft.post {
		if err := w.want(s); err != nil {
			return err
		}
	}
	return nil
}

// want visits a soft dependency. One that waits for this module itself is
// passed over, and so is one that is not there or that lacks something.
func (w *walker) want(given string) error {
	state, load := maps.Clone(w.state), len(w.load)
	err := w.need(w.dir.resolve(given), given)
	switch {
	case errors.Is(err, ErrNoModule):
		w.absent[given] = true
	case errors.Is(err, ErrModuleCycle):
	default:
		return err
	}
	depth := len(w.path)
	for depth > 0 && state[w.path[depth-1]] != open {
		depth--
	}
	w.state, w.load, w.path = state, w.load[:load], w.path[:depth]
	return nil
}

// needs returns the hard dependencies of m as normal names, in an order to
// visit them, and the soft ones as written.
func (w *walker) needs(m Module) (depends []string, soft softdep, err error) {
	d := w.dir
	if d.depends != nil {
		// modules.dep lists a module's whole closure, what loads first last.
		depends = slices.Clone(d.depends[m.Name])
		slices.Reverse(depends)
		if w.opt.Softdeps {
			soft = d.softdeps[m.Name]
		}
		if !slices.ContainsFunc(depends, func(dep string) bool { return w.excluded[dep] }) {
			return depends, soft, nil
		}
		// Only the module itself tells what it needs directly from what
		// an excluded one needs.
		depends, _, err = w.readNeeds(m)
		return depends, soft, err
	}
	depends, soft, err = w.readNeeds(m)
	if !w.opt.Softdeps {
		soft = softdep{}
	}
	return depends, soft, err
}

// readNeeds takes the dependencies out of the module itself.
func (w *walker) readNeeds(m Module) (depends []string, soft softdep, err error) {
	data, err := w.dir.readSelected(m, &w.left)
	if err != nil {
		return nil, softdep{}, err
	}
	info, err := modinfo(data)
	if err != nil {
		return nil, softdep{}, w.dir.fail("%s: %w: %w", m.Path, ErrModule, err)
	}
	for _, kv := range info {
		switch kv.key {
		case "depends":
			for dep := range strings.SplitSeq(kv.value, ",") {
				if dep != "" {
					depends = append(depends, normalName(dep))
				}
			}
		case "softdep":
			soft.add(kv.value)
		}
	}
	return depends, soft, nil
}

// resolve turns what a user or a soft dependency wrote into a normal name.
func (d *ModuleDir) resolve(given string) string {
	name := normalName(given)
	if n, ok := moduleName(given); ok {
		name = n
	}
	if d.files[name] == "" && !d.builtin[name] {
		if target, ok := d.aliases[name]; ok {
			return target
		}
	}
	return name
}

// AddModules adds the selected modules, decompressed, under prefix (for example
// "lib/modules/6.1.0") with the paths that they have in d. It returns their
// names in the archive in load order. It fails with ErrModule if one can't be read, or if
// they have more than 512 MiB together, which the archive keeps in memory.
func (a *Archive) AddModules(d *ModuleDir, sel Selection, prefix string) ([]string, error) {
	var names []string
	left := d.bounds.selected
	for _, m := range sel.Load {
		data, err := d.readSelected(m, &left)
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("%s/%s", strings.Trim(prefix, "/"), trimCompression(m.Path))
		if err := a.Bytes(name, 0o644, data); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }
