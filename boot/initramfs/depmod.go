package initramfs

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// Indexes works out the index files that depmod(8) writes into a modules
// directory, as far as this package, modprobe and the kernel's own loading of
// modules use them, by name: modules.dep, modules.alias, modules.softdep, and
// modules.dep.bin, modules.alias.bin and modules.builtin.bin, which modprobe
// searches. Every module is read: it takes from a second to, where they are
// compressed with xz, ten. progress, if it is not nil, is told how many are
// done, by one goroutine at a time.
//
// A module that is no module or needs one that is not there is an error
// (ErrModule, ErrNoModule, ErrModuleCycle), and so are indexes beyond any real
// kernel's (ErrModule).
func (d *ModuleDir) Indexes(ctx context.Context, progress func(done, total int)) (map[string][]byte, error) {
	var list []Module
	for name, file := range d.files {
		list = append(list, Module{Name: name, Path: file})
	}
	order, err := d.order()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b Module) int {
		return cmp.Or(cmp.Compare(order[a.Name], order[b.Name]), strings.Compare(a.Path, b.Path))
	})
	facts, err := d.readAll(ctx, list, progress)
	if err != nil {
		return nil, err
	}
	x := indexer{dir: d, facts: facts, closures: map[string][]string{}, open: map[string]bool{}, steps: maxSteps}
	return x.write(ctx, list)
}

// order reads modules.order, the order of the kernel's makefiles, in which
// modprobe tries the modules that have an alias in common. Those that it does
// not list come last.
func (d *ModuleDir) order() (map[string]int, error) {
	order := make(map[string]int, len(d.files))
	for name := range d.files {
		order[name] = math.MaxInt
	}
	n := 0
	_, err := d.readIndex("modules.order", func(line string) error {
		if name, ok := moduleName(line); ok && order[name] == math.MaxInt {
			order[name], n = n, n+1
		}
		return nil
	})
	return order, err
}

// factCost is what a string takes beyond its bytes, in a list and in a trie.
const factCost = 64

// moduleFacts is what one module says of itself.
type moduleFacts struct {
	depends []string // normal names
	aliases []string
	softdep []string // as written
}

// size is about what the facts take, and become in an index, in bytes.
func (f moduleFacts) size() (n int) {
	for _, list := range [][]string{f.depends, f.aliases, f.softdep} {
		for _, s := range list {
			n += len(s) + factCost
		}
	}
	return n
}

// readAll reads the modules on all CPUs.
func (d *ModuleDir) readAll(ctx context.Context, list []Module, progress func(done, total int)) (map[string]moduleFacts, error) {
	var (
		mu    sync.Mutex
		next  int
		ended int
		size  int
		first error
		wg    sync.WaitGroup
		facts = make(map[string]moduleFacts, len(list))
	)
	take := func() (Module, bool) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = ctx.Err()
		}
		if first != nil || next == len(list) {
			return Module{}, false
		}
		next++
		return list[next-1], true
	}
	give := func(m Module, f moduleFacts, err error) {
		mu.Lock()
		defer mu.Unlock()
		if size += f.size(); err == nil && size > maxIndex {
			err = d.fail("%s: %w: %w: with it the modules say more than %d bytes of themselves", m.Path, ErrModule, errTooLarge, maxIndex)
		}
		facts[m.Name] = f
		first = cmp.Or(first, err)
		if ended++; progress != nil && first == nil {
			progress(ended, len(list))
		}
	}
	readers := min(runtime.GOMAXPROCS(0), len(list))
	r := newReading(d.bounds, readers)
	for range readers {
		wg.Go(func() {
			for m, ok := take(); ok; m, ok = take() {
				f, err := d.readFacts(ctx, m, r)
				give(m, f, err)
			}
		})
	}
	wg.Wait()
	return facts, first
}

// reading bounds what all readers have in memory together: each as much as there is room
// for, and one at a time a module that takes more.
type reading struct {
	small, window int64         // bytes of data, and of what decompression looks back at
	large         chan struct{} // holds who takes more
}

func newReading(b bounds, readers int) *reading {
	small := min((b.reading-b.module)/int64(max(readers, 1)), b.module)
	return &reading{small, min(max(small, minWindow), maxWindow), make(chan struct{}, 1)}
}

func (d *ModuleDir) readFacts(ctx context.Context, m Module, r *reading) (moduleFacts, error) {
	var f moduleFacts
	data, err := d.read(m, r.small, r.window)
	if needsMore(err) {
		select {
		case r.large <- struct{}{}:
			defer func() { <-r.large }()
		case <-ctx.Done():
			return f, ctx.Err()
		}
		if err := ctx.Err(); err != nil {
			return f, err
		}
		data, err = d.Read(m)
	}
	if err != nil {
		return f, err
	}
	info, err := modinfo(data)
	if err != nil {
		return f, d.fail("%s: %w: %w", m.Path, ErrModule, err)
	}
	for _, kv := range info {
		switch {
		case kv.key == "depends":
			for dep := range strings.SplitSeq(kv.value, ",") {
				if dep != "" {
					f.depends = append(f.depends, normalName(dep))
				}
			}
		case strings.ContainsAny(kv.value, "\n\r"): // a line in an index can't have it
		case kv.key == "alias":
			f.aliases = append(f.aliases, kv.value)
		case kv.key == "softdep":
			f.softdep = append(f.softdep, kv.value)
		}
	}
	return f, nil
}

// normalAlias is normalName for what is outside of brackets, where a dash makes
// a range.
func normalAlias(alias string) string {
	b := []byte(alias)
	inside := false
	for i, c := range b {
		switch {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case c == '-' && !inside:
			b[i] = '_'
		}
	}
	return string(b)
}

// maxSteps bounds the work of all closures: an entry is looked at once for each
// module that needs it, by way of each that it needs directly. Those of a
// distribution's kernel take tens of thousands.
const maxSteps = 1 << 20

// indexer turns facts into files.
type indexer struct {
	dir      *ModuleDir
	facts    map[string]moduleFacts
	closures map[string][]string
	path     []string // whose closures are being made, outermost first
	open     map[string]bool
	steps    int // left
}

// closure returns all that a module needs, what loads first last.
func (x *indexer) closure(ctx context.Context, name string) ([]string, error) {
	if c, ok := x.closures[name]; ok {
		return c, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if x.open[name] {
		at := slices.Index(x.path, name)
		return nil, x.dir.fail("%w: %s", ErrModuleCycle, strings.Join(append(slices.Clone(x.path[at:]), name), " -> "))
	}
	x.path, x.open[name] = append(x.path, name), true
	var load []string // in the order of loading
	loaded := map[string]bool{}
	add := func(name string) {
		if !loaded[name] {
			loaded[name] = true
			load = append(load, name)
		}
	}
	for _, dep := range x.facts[name].depends {
		if x.dir.builtin[dep] && x.dir.files[dep] == "" {
			continue
		}
		if x.dir.files[dep] == "" {
			return nil, x.dir.fail("%w: %s (needed by %s)", ErrNoModule, dep, name)
		}
		needs, err := x.closure(ctx, dep)
		if err != nil {
			return nil, err
		}
		if x.steps -= len(needs) + 1; x.steps < 0 {
			return nil, x.dir.fail("%s: %w: %w: the modules need each other more than %d times", x.dir.files[name], ErrModule, errTooLarge, maxSteps)
		}
		for _, n := range slices.Backward(needs) {
			add(n)
		}
		add(dep)
	}
	x.path, x.open[name] = x.path[:len(x.path)-1], false
	slices.Reverse(load)
	x.closures[name] = load
	return load, nil
}

// depLine is a module's line of modules.dep.
func (x *indexer) depLine(m Module, needs []string) string {
	var line strings.Builder
	line.WriteString(m.Path + ":")
	for _, n := range needs {
		line.WriteString(" " + x.dir.files[n])
	}
	return line.String()
}

// add adds a line to an index. It leaves room for what readIndex can read.
func (x *indexer) add(index *bytes.Buffer, file, line string) error {
	if len(line) >= maxLine || index.Len()+len(line) >= maxIndex {
		return x.dir.fail("%w: %w: their %s has more than %d bytes, or a line of more than %d", ErrModule, errTooLarge, file, maxIndex, maxLine)
	}
	index.WriteString(line)
	index.WriteByte('\n')
	return nil
}

func (x *indexer) write(ctx context.Context, list []Module) (map[string][]byte, error) {
	var dep, alias, softdep bytes.Buffer
	deps, aliases, builtin := &trie{}, &trie{}, &trie{}
	alias.WriteString("# Aliases extracted from modules themselves.\n")
	softdep.WriteString("# Soft dependencies extracted from modules themselves.\n")
	for i, m := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		needs, err := x.closure(ctx, m.Name)
		if err != nil {
			return nil, err
		}
		line := x.depLine(m, needs)
		if err := x.add(&dep, "modules.dep", line); err != nil {
			return nil, err
		}
		deps.insert(m.Name, line, uint32(i))
		for _, a := range x.facts[m.Name].aliases {
			if err := x.add(&alias, "modules.alias", "alias "+a+" "+m.Name); err != nil {
				return nil, err
			}
			aliases.insert(normalAlias(a), m.Name, uint32(i))
		}
		for _, s := range x.facts[m.Name].softdep {
			if err := x.add(&softdep, "modules.softdep", "softdep "+m.Name+" "+s); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(x.dir.builtin)) {
		builtin.insert(name, "", 0)
	}
	files := map[string][]byte{"modules.dep": dep.Bytes(), "modules.alias": alias.Bytes(), "modules.softdep": softdep.Bytes()}
	for file, t := range map[string]*trie{"modules.dep.bin": deps, "modules.alias.bin": aliases, "modules.builtin.bin": builtin} {
		if files[file] = t.encode(); len(files[file]) > maxIndex {
			return nil, x.dir.fail("%w: %w: their %s has more than %d bytes", ErrModule, errTooLarge, file, maxIndex)
		}
	}
	return files, nil
}
