package harness

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
)

// Directories that a guest has of its own, and in which some of the host's may be shown:
// those in /run by the root's device, those in /dev/shm, which is hidden in that, by
// devices of their own.
const (
	runDir = "/run"
	shmDir = "/dev/shm"
)

// within says whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// Covers says whether what is writable below dir is writable below path: all of it but
// what is the guest's own is below "/".
func Covers(dir, path string) bool {
	if dir == "/" && path != "/" {
		return !within(path, runDir) && !within(path, shmDir)
	}
	return within(path, dir)
}

// Outermost are the directories, clean absolute paths, without those that others contain.
func Outermost(dirs []string) []string {
	dirs = slices.Clone(dirs)
	slices.Sort(dirs)
	var out []string
	for _, d := range dirs {
		if !slices.ContainsFunc(out, func(o string) bool { return Covers(o, d) }) {
			out = append(out, d)
		}
	}
	return out
}

// OwnOf is the directory of the guest's own, other than /run and /dev/shm, that contains
// path, a clean absolute path on the host; "" for none. Nothing of it can be shared.
func OwnOf(path string) string {
	if within(path, shmDir) {
		return ""
	}
	for _, own := range Hidden {
		if within(path, own) {
			return own
		}
	}
	return ""
}

// ProgramDirs are what Root.Visible needs for the guest to see a program of the host's:
// none, unless it or what it leads to lies in /run or /dev/shm, as one that "go test" makes
// may.
func ProgramDirs(path string) (dirs []string) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	add := func(dir string, err error) {
		if err != nil || dir == runDir || dir == shmDir || !within(dir, runDir) && !within(dir, shmDir) || slices.Contains(dirs, dir) {
			return
		}
		dirs = append(dirs, dir)
	}
	add(filepath.EvalSymlinks(filepath.Dir(path)))
	real, err := filepath.EvalSymlinks(path)
	add(filepath.Dir(real), err)
	return dirs
}

// sharedDir is a directory that is shared beside the root.
type sharedDir struct {
	path     string
	readOnly bool
}

// split says which directories the root's device has to show, as the guest's root names
// them, and which have devices of their own.
func (r *Root) split() (writable, visible []wire.Text, beside []sharedDir, err error) {
	host := r.Dir == "" || filepath.Clean(r.Dir) == "/"
	for _, dir := range r.Writable {
		if host && within(dir, shmDir) {
			beside = append(beside, sharedDir{dir, false})
			continue
		}
		inside, ok := realBelow(r.Dir, dir)
		if !ok {
			return nil, nil, nil, refuse("%s is not below %s, the guest's root", dir, r.Dir)
		}
		writable = append(writable, wire.Text(inside))
	}
	for _, dir := range r.Visible {
		switch {
		case !host || !within(dir, runDir) && !within(dir, shmDir):
			return nil, nil, nil, refuse("%s can't be made visible: it is not below %s or %s", dir, runDir, shmDir)
		case slices.ContainsFunc(r.Writable, func(w string) bool { return Covers(w, dir) }):
		case within(dir, shmDir):
			beside = append(beside, sharedDir{dir, true})
		default:
			visible = append(visible, wire.Text(dir))
		}
	}
	// What contains others comes before them.
	slices.SortStableFunc(beside, func(a, b sharedDir) int { return strings.Compare(a.path, b.path) })
	return writable, visible, beside, nil
}

// realBelow is below for directories by any of their names.
func realBelow(root, dir string) (string, bool) {
	if real, err := filepath.EvalSymlinks(root); root != "" && err == nil {
		root = real
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return below(root, dir)
}

// shareBeside makes the devices of directories that are shared beside the root.
func (m *Machine) shareBeside(dirs []sharedDir) ([]wire.Mount, error) {
	var mounts []wire.Mount
	for i, d := range dirs {
		tag := fmt.Sprint(dirTag, i)
		dir, err := hostdir.New(hostdir.Options{Dir: d.path, ReadOnly: d.readOnly, Owner: m.o.Root.Owner, Xattr: true, Logger: m.o.Logger})
		if err != nil {
			return nil, &refusal{err}
		}
		// A failing New closes dir.
		device, err := fs.New(dir, fs.Options{Tag: tag, Logger: m.o.Logger})
		if err != nil {
			return nil, err
		}
		m.devices = append(m.devices, device)
		mounts = append(mounts, wire.Mount{Tag: tag, Dir: wire.Text(d.path), ReadOnly: d.readOnly})
	}
	return mounts, nil
}
