package nested

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programLibs is where a guest has the libraries of [Programs].
const programLibs = "/lib/x86_64-linux-gnu"

// Programs lists what a guest's initramfs needs to run programs of a component,
// which are named by their paths in it ("sbin/mke2fs"): path in the guest, path
// here. Besides the programs these are their libraries and their loader. The
// paths here go into Options.Files.
func Programs(component string, programs ...string) (map[string]string, error) {
	dir, err := componentDir(component)
	if err != nil {
		return nil, err
	}
	files, err := ProgramsIn(dir, nil, programs...)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFetched(component, err.Error())
	}
	return files, err
}

// ProgramsIn is [Programs] for a tree of unpacked packages, whose programs may
// have libraries in more directories (of the tree) than usual.
func ProgramsIn(dir string, more []string, programs ...string) (map[string]string, error) {
	libs := treeLibs(dir)
	for _, m := range more {
		libs = append(libs, filepath.Join(dir, m))
	}
	files := map[string]string{}
	for _, p := range programs {
		path, err := inTree(dir, p)
		if err != nil {
			return nil, err
		}
		files["/"+p] = path
		list, err := elfClosure(path, libs)
		if err != nil {
			return nil, err
		}
		for i, lib := range list {
			if i > 0 {
				files[filepath.Join(programLibs, filepath.Base(lib))] = lib
				continue
			}
			// The interpreter: by the name that the program has for it.
			if files[lib], err = treeLoader(dir); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// ProgramCommand is the command that runs a program of a component, here or in an
// emulated host that has the paths of [Programs], by the component's own loader
// and libraries.
func ProgramCommand(ctx context.Context, component, program string, args ...string) (*exec.Cmd, error) {
	dir, err := componentDir(component)
	if err != nil {
		return nil, err
	}
	path, err := inTree(dir, program)
	if err != nil {
		return nil, notFetched(component, err.Error())
	}
	loader, err := treeLoader(dir)
	if err != nil {
		return nil, err
	}
	args = append([]string{"--library-path", strings.Join(treeLibs(dir), ":"), path}, args...)
	return exec.CommandContext(ctx, loader, args...), nil
}

// inTree finds a program where /bin, /sbin and /lib may have moved below /usr.
func inTree(dir, name string) (string, error) {
	for _, prefix := range []string{"", "usr"} {
		path := filepath.Join(dir, prefix, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no program %s in %s: %w", name, dir, fs.ErrNotExist)
}
