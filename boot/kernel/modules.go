package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ErrNoModules says that no modules directory of a kernel was found. A kernel
// that has everything built in needs none.
var ErrNoModules = errors.New("no modules found")

// maxBanner bounds how much of a vmlinux is searched for its version, in bytes.
const maxBanner = 256 << 20

// ModulesFor finds the modules directory, lib/modules/RELEASE, of the kernel
// file at path, a bzImage or a vmlinux: beside the file; at the top of the build
// tree that the file lies in, else one directory up (as boot and lib are in a
// file system); and on this machine. It does not say whether the directory has what a guest
// needs.
//
// The error wraps ErrNoModules, and says where it looked, when there is none;
// otherwise it is why the release can't be had from the file: ErrUnsupported or
// that of the file system.
func ModulesFor(path string) (dir string, err error) { return Finder{}.ModulesFor(path) }

// ModulesFor finds the modules of a kernel file. See the function ModulesFor.
func (f Finder) ModulesFor(path string) (dir string, err error) {
	release, err := Release(path)
	if err != nil {
		return "", err
	}
	dir, looked := f.modules(path, release)
	if dir == "" {
		return "", fmt.Errorf("kernel: %s: %w for release %s: looked for %s", path, ErrNoModules, release, strings.Join(looked, ", "))
	}
	return dir, nil
}

// Release is the release of the kernel in a bzImage or vmlinux, what uname -r
// prints in it. Errors wrap ErrUnsupported or are those of the file system.
func Release(path string) (string, error) {
	release, err := fileRelease(path)
	if err == nil && !ValidRelease(release) {
		err = fmt.Errorf("%w: it does not say of which release it is", ErrUnsupported)
	}
	if err != nil {
		return "", fmt.Errorf("kernel: %s: %w", path, bare(err))
	}
	return release, nil
}

// ValidRelease says whether s can be a kernel's release and the name of a
// directory: what uname -r may print, without anything that leads elsewhere.
func ValidRelease(s string) bool {
	return s != "" && len(s) < 65 && s[0] != '.' && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._+~-:@", r))
	})
}

func fileRelease(path string) (string, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var magic [4]byte
	if err := readFull(f, magic[:], 0); err == nil && string(magic[:]) == elfMagic {
		return bannerRelease(io.NewSectionReader(f, 0, min(size, maxBanner)))
	}
	h, err := readSetupHeader(&sourceFile{f: f, key: fileKey{size: size}})
	return h.release(), err
}

// openRegular opens a kernel file, which is not waited for whatever it is.
func openRegular(path string) (f *os.File, size int64, err error) {
	f, err = os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: not a regular file", ErrUnsupported)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// bannerRelease searches a vmlinux for the text that the kernel prints first,
// "Linux version 6.1.0-50-amd64 (...".
func bannerRelease(r io.Reader) (string, error) {
	const banner, longest = "Linux version ", 128
	buf := make([]byte, 0, copyBuffer+longest)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		last := err != nil
		for from := 0; ; {
			at := bytes.Index(buf[from:], []byte(banner))
			if at < 0 || !last && from+at > len(buf)-longest {
				break
			}
			from += at + len(banner)
			word, _, found := bytes.Cut(buf[from:min(len(buf), from+longest)], []byte(" ("))
			if found && len(word) > 0 && isDigit(word[0]) && ValidRelease(string(word)) {
				return string(word), nil
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return "", nil
		case err != nil:
			return "", err
		}
		keep := copy(buf, buf[len(buf)-longest:])
		buf = buf[:keep]
	}
}

// modules looks for the modules of a release that belong to the kernel file at
// path. Without any, dir is "" and looked says where they could have been.
func (f Finder) modules(path, release string) (dir string, looked []string) {
	if !ValidRelease(release) {
		return "", nil
	}
	for _, dir := range f.modulesPlaces(path, release) {
		if HasModules(dir) {
			return dir, nil
		}
		looked = append(looked, dir)
	}
	return "", looked
}

// modulesPlaces are the directories in which the modules can be, the closest
// first.
func (f Finder) modulesPlaces(path, release string) []string {
	var places []string
	add := func(elem ...string) {
		if p := filepath.Join(elem...); !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	below := func(root string) {
		add(root, "lib/modules", release)
		add(root, "usr/lib/modules", release)
	}
	if p, err := filepath.Abs(path); err == nil {
		path = p
	}
	files := []string{path}
	if real, err := filepath.EvalSymlinks(path); err == nil && real != path {
		files = append(files, real)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		if filepath.Base(filepath.Dir(dir)) == "modules" { // lib/modules/RELEASE/vmlinuz
			add(dir)
		}
		below(dir)
		if tree := BuildTree(file); tree != "" {
			below(tree)
		} else {
			below(filepath.Dir(dir))
		}
	}
	root := f.Root
	if root == "" {
		root = "/"
	}
	below(root)
	return places
}

// BuildTree is the kernel build tree that made the image or vmlinux at path, or
// "": ARCH/boot/bzImage lies three directories below its top.
func BuildTree(path string) string {
	dir := filepath.Dir(path)
	for range 4 {
		if info, err := os.Stat(filepath.Join(dir, "include/config/kernel.release")); err == nil && info.Mode().IsRegular() {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return ""
}

// HasModules says whether dir is a modules directory with something in it: an
// index that the kernel's build or depmod writes, or a tree of modules. Package
// managers leave directories behind that have neither.
func HasModules(dir string) bool {
	for _, name := range []string{"modules.dep", "modules.order", "modules.builtin"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() {
			return true
		}
	}
	entries, err := fs.ReadDir(os.DirFS(dir), "kernel")
	return err == nil && len(entries) > 0
}
