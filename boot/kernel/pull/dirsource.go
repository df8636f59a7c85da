package pull

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vole-vmm/vole/boot/kernel"
)

// dirSource is a directory: the build tree of a kernel, or one with a kernel and
// its modules laid out as in a file system. Its owner is trusted, as far as the
// limits go.
type dirSource struct{ dir string }

func (s dirSource) String() string { return s.dir }

func (s dirSource) find(_ context.Context, j *job) (offer, error) {
	info, err := os.Stat(s.dir)
	if err != nil {
		return offer{}, notFound(s.dir, err)
	}
	if !info.IsDir() {
		return offer{}, fmt.Errorf("%w: %s is not a directory, and no .deb", ErrNotFound, s.dir)
	}
	if release, err := buildRelease(s.dir); err == nil {
		return offer{fetch: func(ctx context.Context, j *job, t *tree) (fetched, error) {
			return fetched{parts: []Part{{Name: "build tree", Version: release}}}, s.copyBuild(ctx, j, t, release)
		}}, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return offer{}, err
	}
	return offer{fetch: func(ctx context.Context, j *job, t *tree) (fetched, error) {
		return fetched{parts: []Part{{Name: "directory"}}}, s.copyLayout(ctx, j, t)
	}}, nil
}

// buildRelease is the release that a build tree has been configured for.
func buildRelease(dir string) (string, error) {
	f, err := openRegular(filepath.Join(dir, "include/config/kernel.release"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", err
	}
	release := strings.TrimSpace(string(b))
	if !kernel.ValidRelease(release) {
		return "", fmt.Errorf("%w: include/config/kernel.release says %q", ErrNoKernel, release)
	}
	return release, nil
}

// copyBuild takes the image and the modules out of a build tree, the latter by
// the list that the build writes, as its own modules_install does.
func (s dirSource) copyBuild(ctx context.Context, j *job, t *tree, release string) error {
	image := filepath.Join(s.dir, "arch/x86/boot/bzImage")
	if _, err := os.Stat(image); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is not there: `make` first", ErrNoKernel, image)
	}
	if got, err := kernel.Release(image); err != nil {
		return fmt.Errorf("%w: %w", ErrNoKernel, err)
	} else if got != release {
		return fmt.Errorf("%w: %s is %s, the tree is configured for %s: `make` again", ErrNoKernel, image, got, release)
	}
	if err := s.copyFile(ctx, t, image, bootName+"/"+imageName+"-"+release); err != nil {
		return err
	}
	if err := s.copyFile(ctx, t, filepath.Join(s.dir, ".config"), bootName+"/"+configName+"-"+release); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	modules, err := modulesOrder(filepath.Join(s.dir, "modules.order"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(modules) == 0 {
		return nil // a kernel without modules
	}
	if err != nil {
		return err
	}
	to := modulesName + "/" + release
	for i, m := range modules {
		j.report(StepUnpacking, "modules", int64(i), int64(len(modules)))
		if err := s.copyFile(ctx, t, filepath.Join(s.dir, m), to+"/kernel/"+m); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w: the module %s has not been built: `make modules` first", ErrNoKernel, m)
			}
			return err
		}
	}
	order := "kernel/" + strings.Join(modules, "\nkernel/") + "\n"
	if err := t.put(to+"/modules.order", strings.NewReader(order)); err != nil {
		return err
	}
	for _, name := range []string{"modules.builtin", "modules.builtin.modinfo"} {
		err := s.copyFile(ctx, t, filepath.Join(s.dir, name), to+"/"+name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// modulesOrder reads the list of modules in the top of a build tree: paths of
// .ko files (.o since Linux 6.3) below it, with kernel/ before them until 5.9.
func modulesOrder(file string) ([]string, error) {
	f, err := openRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name := strings.TrimPrefix(strings.TrimSpace(lines.Text()), "kernel/")
		if name == "" {
			continue
		}
		if stem, ok := strings.CutSuffix(name, ".o"); ok {
			name = stem + ".ko"
		}
		if !fs.ValidPath(name) || !strings.HasSuffix(name, ".ko") {
			return nil, archiveError("%s names %q", file, name)
		}
		list = append(list, name)
	}
	return list, lines.Err()
}

// copyLayout takes what of the directory belongs to a kernel.
func (s dirSource) copyLayout(ctx context.Context, j *job, t *tree) error {
	roots := []string{"boot", "lib/modules", "usr/lib/modules"}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name, err := place(e.Name()); err == nil && name != "" {
			if err := s.copyRegular(ctx, t, e.Name()); err != nil {
				return err
			}
		}
	}
	for _, root := range roots {
		dir, err := filepath.EvalSymlinks(filepath.Join(s.dir, root)) // lib may be a link to usr/lib
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		n := int64(0)
		err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() && root == "boot" && p != dir {
				if err == nil {
					return fs.SkipDir
				}
				return err
			}
			if !e.Type().IsRegular() && e.Type()&fs.ModeSymlink == 0 {
				return ctx.Err()
			}
			rel, err := filepath.Rel(dir, p)
			if err != nil {
				return err
			}
			n++
			j.report(StepUnpacking, root, n, 0)
			return s.copyRegular(ctx, t, path.Join(root, filepath.ToSlash(rel)))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// copyRegular copies a file, or what a link to one leads to, if it is a
// kernel's.
func (s dirSource) copyRegular(ctx context.Context, t *tree, name string) error {
	to, err := place(name)
	if err != nil || to == "" {
		return err
	}
	from := filepath.Join(s.dir, filepath.FromSlash(name))
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return s.copyFile(ctx, t, from, to)
}

func (s dirSource) copyFile(ctx context.Context, t *tree, from, to string) error {
	f, err := openRegular(from)
	if err != nil {
		return err
	}
	defer f.Close()
	in := &bounded{ctx: ctx, r: f, left: 1 << 62}
	err = t.put(to, in)
	if in.err != nil {
		return in.err
	}
	return err
}
