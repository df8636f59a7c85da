package guest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/vole-vmm/vole/boot/initramfs"
)

// Initramfs is a built-in initramfs with the files that it is made of, which stay
// open until Close.
type Initramfs struct {
	*initramfs.Image
	files []*os.File
}

// Close closes the files. The image cannot be read any more.
func (i *Initramfs) Close() error {
	var err error
	for _, f := range i.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Archive returns the built-in initramfs, in which /init is the executable exe
// (for the running program, os.Executable or /proc/self/exe). The executable is
// read when the image is, straight to where it goes, and only as far as a kernel
// loads it: without symbols and debug information. It fails with
// ErrNotExecutable, or with ErrDynamic naming the interpreter that exe needs.
func Archive(exe string) (*Initramfs, error) {
	var a initramfs.Archive
	i := new(Initramfs)
	if err := i.addInit(&a, exe, newLoadable); err != nil {
		_ = i.Close()
		return nil, fmt.Errorf("guest: %w", err)
	}
	i.Image = a.Image()
	return i, nil
}

// addInit adds the base, and the executable as /init, which open takes in.
func (i *Initramfs) addInit(a *initramfs.Archive, exe string, open func(io.ReaderAt, int64) (*loadable, error)) error {
	init, err := i.open(exe, open)
	if err != nil {
		return err
	}
	if err := AddBase(a); err != nil {
		return err
	}
	if err := a.Bytes(marker, 0o444, nil); err != nil {
		return err
	}
	return a.File("init", 0o755, init, init.size)
}

// open opens a file of the archive.
func (i *Initramfs) open(name string, open func(io.ReaderAt, int64) (*loadable, error)) (*loadable, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	i.files = append(i.files, f)
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: it is not a regular file", name, ErrNotExecutable)
	}
	l, err := open(f, st.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}

// AddBase adds what every initramfs needs besides its /init: the directories to
// mount on, and the device nodes that are used before /dev is mounted. The
// kernel opens /dev/console for PID 1's standard streams, Go's runtime /dev/null
// in their place where that failed.
func AddBase(a *initramfs.Archive) error {
	for _, dir := range []struct {
		name string
		perm fs.FileMode
	}{
		{"dev", 0o755},
		{"etc", 0o755},
		{"proc", 0o555},
		{"root", 0o700},
		{"run", 0o755},
		{"sys", 0o555},
		{"tmp", 0o777 | fs.ModeSticky},
	} {
		if err := a.Dir(dir.name, dir.perm); err != nil {
			return err
		}
	}
	// Documentation/admin-guide/devices.txt.
	for _, node := range []struct {
		name         string
		perm         fs.FileMode
		major, minor uint32
	}{
		{"dev/console", 0o600, 5, 1},
		{"dev/mem", 0o640, 1, 1},
		{"dev/null", 0o666, 1, 3},
	} {
		if err := a.CharDevice(node.name, node.perm, node.major, node.minor); err != nil {
			return err
		}
	}
	return nil
}
