package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vole-vmm/vole/testdata/nested"
)

// fioRecipe changes with what goes into the image besides the packages.
const fioRecipe = "1"

// fioImage is the image in the component's directory.
const fioImage = "fio.img"

// fioSpare is room for ext4's own needs; the image is mounted read-only.
const (
	fioSpare  = 4 << 20
	fioInodes = 16
)

// fioNeeds leaves out the Python of fio's plotting scripts.
func fioNeeds(pkg string) bool { return !strings.Contains(pkg, "python") }

// buildFio makes an image of fio, its libraries and the mount points that it is
// used with. Debian's fio links what clusters store their data by: 80 MB, of
// which a guest reads what it touches.
func buildFio(ctx context.Context, debs []string, dir string) error {
	tree, stage := filepath.Join(dir, "tree"), filepath.Join(dir, "stage")
	defer os.RemoveAll(tree)
	defer os.RemoveAll(stage)
	for _, deb := range debs {
		if _, err := command(ctx, unpackTimeout, "", "dpkg-deb", "-x", deb, tree); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
		os.Remove(deb)
	}
	files, err := nested.ProgramsIn(tree, []string{"usr/lib/x86_64-linux-gnu/ceph"}, "bin/fio")
	if err != nil {
		return fmt.Errorf("%w: %w", errNotBuilt, err)
	}
	for _, d := range []string{"dev", "proc", "sys", "tmp", "mnt"} {
		if err := os.MkdirAll(filepath.Join(stage, d), 0o755); err != nil {
			return fmt.Errorf("create a directory of the image: %w", err)
		}
	}
	for to, from := range files {
		to = filepath.Join(stage, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("create a directory of the image: %w", err)
		}
		// Links among libraries are followed: a file goes by the name that it is needed by.
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("bring in a library: %w", err)
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			return fmt.Errorf("bring in a library: %w", err)
		}
	}
	return makeImage(ctx, stage, filepath.Join(dir, fioImage), fioSpare, fioInodes)
}
