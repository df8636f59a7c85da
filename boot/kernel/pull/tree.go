package pull

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vole-vmm/vole/boot/kernel"
)

// limits bound what one kernel may take. Debian's has 5,000 files and, its
// modules unpacked, 400 MB; a distribution's with debug information 6 GB.
type limits struct {
	bytes int64 // that are kept
	file  int64 // of one file
	files int   // that are kept
	read  int64 // that an archive may have after its decompression
	names int   // entries that an archive may have
}

var defaultLimits = limits{bytes: 8 << 30, file: 1 << 30, files: 100_000, read: 32 << 30, names: 1_000_000}

const (
	imageName   = "vmlinuz"
	configName  = "config"
	modulesName = "lib/modules"
	bootName    = "boot"
)

// tree is the directory that a kernel is put together in. It takes only what
// belongs to a kernel, and nothing can be written outside it.
type tree struct {
	root   *os.Root
	dir    string
	limits limits
	files  int
	bytes  int64
}

// newTree makes dir, which must not exist.
func newTree(dir string, l limits) (*tree, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &tree{root: root, dir: dir, limits: l}, nil
}

func (t *tree) close() { t.root.Close() }

// Bounds of a name in an archive: those of kernels have up to 150 bytes and ten slashes.
const (
	maxName  = 1024
	maxDepth = 32
)

// place says where a file of an archive or a system goes, as a path below the
// tree: boot/vmlinuz-R, boot/config-R, lib/modules/R/...; "" is nowhere. The
// error is that the name would lead out of where it is unpacked.
func place(name string) (string, error) {
	if len(name) > maxName || strings.Count(name, "/") > maxDepth {
		return "", archiveError("it has a file whose name has %d bytes and %d slashes, which begins with %q",
			len(name), strings.Count(name, "/"), name[:min(len(name), 64)])
	}
	if slices.Contains(strings.Split(name, "/"), "..") || strings.ContainsRune(name, 0) {
		return "", archiveError("it has a file named %q", name)
	}
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if rest, ok := strings.CutPrefix(name, "usr/lib/modules/"); ok {
		name = modulesName + "/" + rest
	}
	if rest, ok := strings.CutPrefix(name, modulesName+"/"); ok {
		release, file, _ := strings.Cut(rest, "/")
		top, _, _ := strings.Cut(file, "/")
		if !kernel.ValidRelease(release) || top == "" || top == "build" || top == "source" {
			return "", nil
		}
		return name, nil
	}
	dir, base := path.Split(name)
	if dir != "" && dir != bootName+"/" {
		return "", nil
	}
	stem, _, _ := strings.Cut(base, "-")
	if stem == imageName || stem == configName && dir != "" || base == "bzImage" {
		return bootName + "/" + base, nil
	}
	return "", nil
}

// put writes a file of the tree from r. A file that is there is replaced: later
// layers win.
func (t *tree) put(name string, r io.Reader) error {
	if t.files++; t.files > t.limits.files {
		return archiveError("it has more than %d files of a kernel", t.limits.files)
	}
	if err := t.parents(name); err != nil {
		return err
	}
	if err := t.root.RemoveAll(name); err != nil {
		return err
	}
	f, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	room := min(t.limits.file, t.limits.bytes-t.bytes)
	n, err := io.Copy(f, io.LimitReader(r, room+1))
	t.bytes += n
	if err == nil && n > room {
		err = archiveError("%s is larger than %d bytes, or all of it larger than %d", name, t.limits.file, t.limits.bytes)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// parents makes the directories above a file.
func (t *tree) parents(name string) error {
	err := t.root.MkdirAll(path.Dir(name), 0o755)
	if errors.Is(err, syscall.EEXIST) || errors.Is(err, syscall.ENOTDIR) {
		return archiveError("%s is below something that is not a directory", name)
	}
	return err
}

// link gives a file that is in the tree already another name.
func (t *tree) link(name, target string) error {
	if t.files++; t.files > t.limits.files {
		return archiveError("it has more than %d files of a kernel", t.limits.files)
	}
	if err := t.parents(name); err != nil {
		return err
	}
	if name == target {
		return nil
	}
	if err := t.root.RemoveAll(name); err != nil {
		return err
	}
	if err := t.root.Link(target, name); err != nil {
		return archiveError("%s is a link to %s: %w", name, target, bare(err))
	}
	return nil
}

// remove takes a file or directory away again, as a layer of an image says.
func (t *tree) remove(name string) error { return t.root.RemoveAll(name) }

// settle finds the kernel among what was put into the tree, the newest of
// several, brings it to its place and drops what is not its own. It returns the
// release.
func (t *tree) settle() (release string, err error) {
	image, release, err := t.choose()
	if err != nil {
		return "", err
	}
	if err := t.root.Rename(image, imageName); err != nil {
		return "", err
	}
	for _, config := range []string{bootName + "/" + configName + "-" + release, bootName + "/" + configName} {
		if err := t.root.Rename(config, configName); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := t.root.RemoveAll(bootName); err != nil {
		return "", err
	}
	all, err := t.list(modulesName)
	if err != nil {
		return "", err
	}
	keep := kernel.HasModules(filepath.Join(t.dir, modulesName, release))
	for _, name := range all {
		if keep && name == release {
			continue
		}
		if err := t.root.RemoveAll(modulesName + "/" + name); err != nil {
			return "", err
		}
	}
	if !keep {
		err = t.root.RemoveAll("lib")
	}
	return release, err
}

// choose picks the image to keep.
func (t *tree) choose() (image, release string, err error) {
	var images []string
	boot, err := t.list(bootName)
	if err != nil {
		return "", "", err
	}
	for _, name := range boot {
		if !strings.HasPrefix(name, configName) {
			images = append(images, bootName+"/"+name)
		}
	}
	releases, err := t.list(modulesName)
	if err != nil {
		return "", "", err
	}
	for _, r := range releases {
		images = append(images, modulesName+"/"+r+"/"+imageName)
	}
	why := errors.New("it has neither boot/vmlinuz nor lib/modules/RELEASE/vmlinuz")
	for _, name := range images {
		r, err := kernel.Release(filepath.Join(t.dir, filepath.FromSlash(name)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			why = fmt.Errorf("%s: %w", name, unwrapped(err))
		case image == "" || kernel.CompareVersions(release, r) < 0:
			image, release = name, r
		}
	}
	if image == "" {
		return "", "", fmt.Errorf("%w: %w", ErrNoKernel, why)
	}
	return image, release, nil
}

// unwrapped is what an error of package kernel says of a file, without the
// name of the package and the file.
func unwrapped(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// list returns the names in a directory of the tree, sorted; one that is not
// there is empty.
func (t *tree) list(name string) ([]string, error) {
	entries, err := fs.ReadDir(t.root.FS(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}
