package kernel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrChanged says that a kernel file was written while it was read.
var ErrChanged = errors.New("the file changed while it was read")

// ErrBusy says that another process is extracting the same kernel.
var ErrBusy = errors.New("another process is unpacking it already")

// settle is how long ago a file must have been changed for its times to tell it
// from a later change: file systems stamp with the clock of the last timer tick.
const settle = 50 * time.Millisecond

// Fill extracts the kernel file at path into the cache, so that Lookup finds it,
// and then prunes to Keep. It is [Cache.FillContext] without an end.
func (c *Cache) Fill(path string) error {
	return c.FillContext(context.Background(), path)
}

// FillContext extracts the kernel file at path into the cache, so that Lookup
// finds it, and then prunes to Keep. It reads the file twice and takes from
// tenths of a second (LZ4) to seconds (XZ). When another process is
// extracting the same kernel, it waits for that one.
//
// Errors wrap those of [Extract], ErrCacheDir, ErrChanged, the end of ctx, or
// an error of the file system (such as syscall.ENOSPC). After an error the
// cache is as it was.
func (c *Cache) FillContext(ctx context.Context, path string) error {
	return c.fillWith(ctx, path, lockTemp)
}

// TryFill is FillContext for who needs the vmlinux some other time: when another
// process is extracting the same kernel, it fails with ErrBusy at once.
func (c *Cache) TryFill(ctx context.Context, path string) error {
	return c.fillWith(ctx, path, func(_ context.Context, dir, name string) (*lockedTemp, error) {
		t, err := tryLockTemp(filepath.Join(dir, name))
		if t == nil && err == nil {
			err = ErrBusy
		}
		return t, err
	})
}

type lockFunc func(ctx context.Context, dir, name string) (*lockedTemp, error)

func (c *Cache) fillWith(ctx context.Context, path string, lock lockFunc) error {
	if err := c.fill(ctx, path, lock); err != nil {
		return fmt.Errorf("kernel: caching %s: %w", path, err)
	}
	return nil
}

func (c *Cache) fill(ctx context.Context, path string, lock lockFunc) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return bare(err)
	}
	defer f.Close()
	src, err := settled(ctx, f)
	if err != nil {
		return err
	}
	if _, err := inspect(src); err != nil {
		return err
	}
	if err := makeDir(c.dir); err != nil {
		return err
	}
	if err := src.digestFile(ctx); err != nil {
		return err
	}
	if done, err := c.reuse(ctx, src); done || err != nil {
		return err
	}
	temp, err := lock(ctx, c.dir, src.digest.String()+tempSuffix)
	if err != nil {
		return err
	}
	defer temp.discard()
	if done, err := c.reuse(ctx, src); done || err != nil { // whoever held the lock did it
		return err
	}
	if err := extractTo(ctx, src, temp.f); err != nil {
		return err
	}
	if err := temp.f.Sync(); err != nil {
		return err
	}
	info, err := temp.f.Stat()
	if err != nil {
		return err
	}
	r := record{key: src.key, digest: src.digest, vmlinuxSize: info.Size(), vmlinuxMtime: info.ModTime().UnixNano()}
	return c.update(ctx, func(x *index) (*lockedTemp, error) {
		x.add(r)
		return temp, nil
	})
}

// reuse adds src to the index if its vmlinux is in the cache already, and
// reports whether it is.
func (c *Cache) reuse(ctx context.Context, src *sourceFile) (bool, error) {
	if r, ok := c.byDigest(src.digest); !ok {
		return false, nil
	} else if r.key == src.key {
		return true, nil
	}
	found := false
	err := c.update(ctx, func(x *index) (*lockedTemp, error) {
		for _, r := range x.records {
			if r.digest == src.digest && c.intact(r) {
				r.key = src.key
				x.add(r)
				found = true
				break
			}
		}
		return nil, nil
	})
	return found, err
}

// byDigest finds a record of an intact vmlinux.
func (c *Cache) byDigest(d digest) (record, bool) {
	x, err := c.readIndex()
	if err != nil {
		return record{}, false
	}
	for _, r := range x.records {
		if r.digest == d && c.intact(r) {
			return r, true
		}
	}
	return record{}, false
}

// extractTo writes the vmlinux of src to f in the cache's layout.
func extractTo(ctx context.Context, src *sourceFile, f *os.File) error {
	out := newCompactor(f)
	if _, err := extract(src, contextWriter{ctx, out}, MaxSize); err != nil {
		return err
	}
	if _, err := out.finish(); err != nil {
		if errors.Is(err, errShort) {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return err
	}
	return src.unchanged()
}

// sourceFile is an open kernel file and what identifies it.
type sourceFile struct {
	f      *os.File
	key    fileKey
	digest digest
}

func (s *sourceFile) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

func (s *sourceFile) Size() int64 { return s.key.size }

// settled takes the identity of f once f is old enough for that to be unique.
func settled(ctx context.Context, f *os.File) (*sourceFile, error) {
	for {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%w: not a regular file", ErrUnsupported)
		}
		key := keyOf(info)
		age := time.Since(time.Unix(0, key.ctime))
		if age < 0 || age >= settle { // from the future: the clock was set back
			return &sourceFile{f: f, key: key}, nil
		}
		wait := time.NewTimer(settle - age)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil, ctx.Err()
		case <-wait.C:
		}
	}
}

func (s *sourceFile) digestFile(ctx context.Context) error {
	h := sha256.New()
	n, err := io.CopyBuffer(contextWriter{ctx, h}, io.NewSectionReader(s, 0, s.key.size), make([]byte, copyBuffer))
	if err != nil {
		return err
	}
	if n != s.key.size {
		return ErrChanged
	}
	h.Sum(s.digest[:0])
	return s.unchanged()
}

// unchanged says whether the file still is what was opened.
func (s *sourceFile) unchanged() error {
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	if keyOf(info) != s.key {
		return ErrChanged
	}
	return nil
}

// contextWriter fails once ctx has ended.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w contextWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// bare drops the operation and the path from an error where the caller names
// them anyway.
func bare(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// update changes the index under its lock and prunes to Keep.
func (c *Cache) update(ctx context.Context, change func(*index) (*lockedTemp, error)) error {
	keep := c.Keep
	if keep <= 0 {
		keep = DefaultKeep
	}
	return c.updateKeeping(ctx, keep, change)
}

// updateKeeping changes the index under its lock, then removes what is no
// longer wanted. A damaged index is started afresh. If change returns a file, it
// becomes the vmlinux of the newest record.
func (c *Cache) updateKeeping(ctx context.Context, keep int, change func(*index) (*lockedTemp, error)) error {
	temp, err := lockTemp(ctx, c.dir, indexName+tempSuffix)
	if err != nil {
		return err
	}
	defer temp.discard()
	x, err := c.readIndex()
	if err != nil {
		x = index{}
	}
	vmlinux, err := change(&x)
	if err != nil {
		return err
	}
	x.trim(keep)
	if err := temp.fill(x.encode()); err != nil {
		return err
	}
	if vmlinux != nil {
		path := c.vmlinuxPath(x.records[len(x.records)-1].digest)
		if err := vmlinux.publish(path); err != nil {
			return err
		}
		defer func() {
			if !temp.done {
				os.Remove(path)
			}
		}()
	}
	if err := temp.publish(filepath.Join(c.dir, indexName)); err != nil {
		return err
	}
	c.sweep(&x)
	syncDir(c.dir)
	return nil
}
