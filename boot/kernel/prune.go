package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Prune is [Cache.PruneContext] without an end.
func (c *Cache) Prune(keep int) error { return c.PruneContext(context.Background(), keep) }

// PruneContext removes all extracted kernels but the keep newest, by when they
// were last filled, and what crashes have left behind. Kernels that were pulled
// stay. A cache that does not exist is pruned already. While another process
// changes the cache, it waits for that one. The error is that of the file
// system, the end of ctx, or ErrCacheDir.
func (c *Cache) PruneContext(ctx context.Context, keep int) error {
	if keep < 0 {
		return fmt.Errorf("kernel: can't keep %d kernels", keep)
	}
	if err := checkDir(c.dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("kernel: pruning the cache: %w", err)
	}
	err := c.updateKeeping(ctx, keep, func(*index) (*lockedTemp, error) { return nil, nil })
	if err != nil {
		return fmt.Errorf("kernel: pruning the cache: %w", err)
	}
	return nil
}

// Forget is [Cache.ForgetContext] without an end.
func (c *Cache) Forget(path string) error { return c.ForgetContext(context.Background(), path) }

// ForgetContext removes the vmlinux that was extracted from the kernel file at
// path, if there is one and it is no other file's too. While another process
// changes the cache, it waits for that one. Errors are those of the stat and of
// the file system, the end of ctx, or ErrCacheDir.
func (c *Cache) ForgetContext(ctx context.Context, path string) error {
	key, err := statKey(path)
	if err == nil {
		err = checkDir(c.dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err == nil {
		// Room for all that are there: only this one goes.
		err = c.updateKeeping(ctx, maxRecords, func(x *index) (*lockedTemp, error) {
			x.records = slices.DeleteFunc(x.records, func(r record) bool { return r.key == key })
			return nil, nil
		})
	}
	if err != nil {
		return fmt.Errorf("kernel: forgetting %s: %w", path, err)
	}
	return nil
}

// sweep removes every vmlinux that the index does not name and every temporary
// file that nobody holds. The caller holds the index's lock. A file that can't
// be removed now is removed another time.
func (c *Cache) sweep(x *index) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	named := make(map[string]bool, len(x.records))
	for _, r := range x.records {
		named[r.digest.String()+vmlinuxSuffix] = true
	}
	for _, e := range entries {
		path := filepath.Join(c.dir, e.Name())
		switch {
		case strings.HasSuffix(e.Name(), vmlinuxSuffix) && !named[e.Name()]:
			os.Remove(path)
		case strings.HasSuffix(e.Name(), tempSuffix) && e.Name() != indexName+tempSuffix:
			if t, err := tryLockTemp(path); err == nil && t != nil {
				t.discard()
			}
		}
	}
}
