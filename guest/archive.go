package guest

import (
	"fmt"
	"io/fs"
	"os"

	"github.com/vole-vmm/vole/boot/initramfs"
)

// Initramfs is a built-in initramfs with the executable that it takes /init
// from, which stays open until Close.
type Initramfs struct {
	*initramfs.Image
	exe *os.File
}

// Close closes the executable. The image cannot be read any more.
func (i *Initramfs) Close() error { return i.exe.Close() }

// Archive returns the built-in initramfs, in which /init is the executable exe
// (for the running program, os.Executable or /proc/self/exe). The executable is
// read when the image is, straight to where it goes, and only as far as a kernel
// loads it: without symbols and debug information. It fails with
// ErrNotExecutable, or with ErrDynamic naming the interpreter that exe needs.
func Archive(exe string) (*Initramfs, error) {
	f, err := os.Open(exe)
	if err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	i, err := archive(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("guest: %s: %w", exe, err)
	}
	return i, nil
}

func archive(f *os.File) (*Initramfs, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is not a regular file", ErrNotExecutable)
	}
	init, err := newLoadable(f, st.Size())
	if err != nil {
		return nil, err
	}
	var a initramfs.Archive
	if err := AddBase(&a); err != nil {
		return nil, err
	}
	if err := a.Bytes(marker, 0o444, nil); err != nil {
		return nil, err
	}
	if err := a.File("init", 0o755, init, init.size); err != nil {
		return nil, err
	}
	return &Initramfs{Image: a.Image(), exe: f}, nil
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
