package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/boot/kernel"
)

// images are the opened files of a machine about to be loaded.
type images struct {
	params boot.Params
	cached bool // params.Kernel is the cache's vmlinux, not Config.Kernel
	missed bool // the cache could hold a vmlinux of Config.Kernel but doesn't
	files  []*boot.File
}

func (k *images) close() error {
	var errs []error
	for _, f := range k.files {
		errs = append(errs, f.Close())
	}
	k.files = nil
	return errors.Join(errs...)
}

func (k *images) open(path string) (*boot.File, error) {
	f, err := boot.OpenImage(path)
	if err == nil {
		k.files = append(k.files, f)
	}
	return f, err
}

// surprise is an error of loading a machine whose vmlinux is the cache's: its
// bzImage may still do.
type surprise struct{ err error }

func (e *surprise) Error() string { return e.err.Error() }
func (e *surprise) Unwrap() error { return e.err }

// openImages opens the kernel that Config.Boot chooses and the initrd, and
// checks that they fit the machine. The caller closes them.
func (c *Config) openImages(ctx context.Context) (*images, error) {
	k := &images{params: boot.Params{
		Kernel:     c.KernelImage,
		KernelName: c.Kernel,
		Initrd:     c.Initrds,
		InitrdName: c.Initrd,
		Cmdline:    c.deviceWords() + c.Cmdline,
		RSDP:       acpiBase,
		ForceELF64: c.Entry64,
	}}
	if err := k.fill(ctx, c); err != nil {
		return nil, errors.Join(err, k.close())
	}
	return k, nil
}

func (k *images) fill(ctx context.Context, c *Config) error {
	if k.params.Kernel == nil {
		f, err := k.open(c.Kernel)
		if err != nil {
			return refused(err)
		}
		k.params.Kernel = f
	}
	if k.params.Initrd == nil && c.Initrd != "" {
		f, err := k.open(c.Initrd)
		if err != nil {
			return refused(err)
		}
		k.params.Initrd = []boot.Image{f}
	}
	if err := boot.Check(k.params, c.Memory); err != nil {
		return refused(err)
	}
	kind, _, err := boot.Probe(k.params.Kernel)
	if err != nil {
		return refused(err)
	}
	if kind != boot.BzImage || c.Boot == BootBzImage {
		return nil
	}
	err = k.fromCache(ctx, c)
	switch {
	case err == nil:
		return nil
	case c.Boot == BootVMLinux && notExtractable(err):
		return &configError{"boot", fmt.Errorf("no vmlinux of %s: %w", c.Kernel, err)}
	case c.Boot == BootVMLinux: // the host's fault: a full disk, for instance
		return fmt.Errorf("vmm: extracting the vmlinux of %s: %w", c.Kernel, err)
	default:
		c.Logger.Info("booting the bzImage as it is", "kernel", c.Kernel, "reason", err)
	}
	return nil
}

// notExtractable reports whether it is the kernel or the configuration that is
// to blame, and not the host.
func notExtractable(err error) bool {
	return errors.Is(err, errNoCache) || errors.Is(err, kernel.ErrUnsupported) || errors.Is(err, kernel.ErrCorrupt) ||
		errors.Is(err, boot.ErrTooBig) || errors.Is(err, boot.ErrMalformed) || errors.Is(err, boot.ErrCmdline)
}

var errNoCache = errors.New("there is no cache for the extracted kernel")

// fromCache replaces the bzImage by the vmlinux that the cache has of it. On
// a miss only BootVMLinux extracts it right now.
func (k *images) fromCache(ctx context.Context, c *Config) error {
	if c.Cache == nil || c.KernelImage != nil {
		return errNoCache
	}
	path, ok, err := c.Cache.Lookup(c.Kernel)
	if err != nil {
		return err
	}
	if !ok {
		if c.Boot != BootVMLinux {
			k.missed = true
			return errors.New("its vmlinux is not in the cache yet")
		}
		if path, err = fill(ctx, c.Cache, c.Kernel); err != nil {
			return err
		}
	}
	f, err := k.open(path)
	if err != nil {
		k.missed = true
		return err
	}
	p := k.params
	p.Kernel, p.KernelName, p.Dense = f, path, true
	if err := boot.Check(p, c.Memory); err != nil {
		return err
	}
	k.params, k.cached = p, true
	return nil
}

// fillBound bounds the extraction of a kernel; XZ takes 5 s.
const fillBound = 2 * time.Minute

func fill(ctx context.Context, cache *kernel.Cache, path string) (string, error) {
	// Another process may hold the cache's lock, and be stopped.
	ctx, cancel := context.WithTimeout(ctx, fillBound)
	defer cancel()
	if err := cache.FillContext(ctx, path); err != nil {
		return "", err
	}
	vmlinux, ok, err := cache.Lookup(path)
	if err == nil && !ok {
		err = errors.New("the cache does not hold what was just put there")
	}
	return vmlinux, err
}
