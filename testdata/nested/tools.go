package nested

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// UnitEnv is the environment in which unit tests find the cache's kernels and
// tools, as lines of a shell: VOLE_TEST_KERNELS, VOLE_IASL, and a PATH with cpio
// (busybox's) behind the machine's own. What the cache lacks is left out.
func UnitEnv() (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	var lines []string
	export := func(name, value string) {
		lines = append(lines, "export "+name+"='"+strings.ReplaceAll(value, "'", `'\''`)+"'")
	}
	kernels, err := Kernels()
	if err != nil {
		return "", err
	}
	var images []string
	for _, k := range kernels {
		images = append(images, k.Image)
	}
	if len(images) > 0 {
		export("VOLE_TEST_KERNELS", strings.Join(images, ":"))
	}
	bin := filepath.Join(cache, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", fmt.Errorf("nested: create a directory for tools: %w", err)
	}
	if iasl, err := wrapACPICA(bin); err == nil {
		export("VOLE_IASL", iasl)
	} else if !errors.Is(err, ErrNotFetched) {
		return "", err
	}
	if busybox, err := Asset(AssetBusybox); err == nil {
		if err := replaceLink(busybox, filepath.Join(bin, "cpio")); err != nil {
			return "", err
		}
	}
	lines = append(lines, `export PATH="$PATH":'`+strings.ReplaceAll(bin, "'", `'\''`)+"'")
	return strings.Join(lines, "\n") + "\n", nil
}

// wrapACPICA writes scripts that run the cache's iasl and acpiexec with the
// libraries that came with them, and returns the path of the first.
func wrapACPICA(bin string) (string, error) {
	dir, err := componentDir(ComponentACPICA)
	if err != nil {
		return "", err
	}
	loader, err := treeLoader(dir)
	if err != nil {
		return "", err
	}
	for _, tool := range []string{"iasl", "acpiexec"} {
		script := fmt.Sprintf("#!/bin/sh\nexec '%s' --library-path '%s' '%s' \"$@\"\n",
			loader, strings.Join(treeLibs(dir), ":"), filepath.Join(dir, "usr/bin", tool))
		if err := replaceFile(filepath.Join(bin, tool), []byte(script), 0o755); err != nil {
			return "", err
		}
	}
	return filepath.Join(bin, "iasl"), nil
}

// replaceFile writes a file by rename: another make may be running the old one.
func replaceFile(path string, data []byte, perm os.FileMode) error {
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	defer os.Remove(tmp)
	if err := errors.Join(os.WriteFile(tmp, data, perm), os.Rename(tmp, path)); err != nil {
		return fmt.Errorf("nested: write a tool's script: %w", err)
	}
	return nil
}

func replaceLink(target, path string) error {
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	defer os.Remove(tmp)
	if err := errors.Join(os.Symlink(target, tmp), os.Rename(tmp, path)); err != nil {
		return fmt.Errorf("nested: link a tool: %w", err)
	}
	return nil
}

// treeLibs are the directories of shared libraries in an unpacked tree.
func treeLibs(dir string) []string {
	return []string{filepath.Join(dir, "lib/x86_64-linux-gnu"), filepath.Join(dir, "usr/lib/x86_64-linux-gnu")}
}

// treeLoader is the dynamic loader of an unpacked tree. Programs of the tree
// are started by it, so that the C library of the machine does not matter. The
// path has no link in it: where /usr is merged, no package carries /lib64.
func treeLoader(dir string) (string, error) {
	for _, l := range append([]string{filepath.Join(dir, "lib64"), filepath.Join(dir, "usr/lib64")}, treeLibs(dir)...) {
		path := filepath.Join(l, "ld-linux-x86-64.so.2")
		if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
		// A relative link within the tree is as good; an absolute one leads out of it.
		if target, err := os.Readlink(path); err == nil {
			inTree := filepath.Join(l, target)
			if filepath.IsAbs(target) {
				inTree = filepath.Join(dir, target)
			}
			if st, err := os.Stat(inTree); err == nil && st.Mode().IsRegular() {
				return inTree, nil
			}
		}
	}
	return "", notFetched("a dynamic loader", "none in "+dir)
}
