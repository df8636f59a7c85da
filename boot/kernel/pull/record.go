package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/boot/kernel"
)

const (
	recordName   = "kernel.json"
	recordFormat = 1
	maxRecord    = 1 << 20
	publishName  = "publish"
)

// Record is what is known of a pulled kernel: the file kernel.json beside it.
type Record struct {
	Format int `json:"format"`
	// Name is that of the kernel's directory. It is not in the file.
	Name string `json:"-"`
	// Source is the name that the kernel was pulled by, in full.
	Source string `json:"source"`
	// ID tells one state of the source from another: packages with their
	// versions, the digest of an image. "" is not known.
	ID string `json:"id,omitempty"`
	// Release is what uname -r prints in the kernel.
	Release string `json:"release"`
	// Modules says that lib/modules/RELEASE is there.
	Modules bool `json:"modules"`
	// SHA256 is that of vmlinuz, in hexadecimal.
	SHA256 string `json:"sha256"`
	// Parts are what the kernel was taken from.
	Parts []Part `json:"parts,omitempty"`
	// Pulled is when, and Files and Bytes how much there is.
	Pulled time.Time `json:"pulled"`
	Files  int       `json:"files"`
	Bytes  int64     `json:"bytes"`
}

// Part is a package or a layer that a kernel was taken from.
type Part struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
}

// Records returns what is known of the kernels in a directory of pulled ones, ""
// being kernel.PulledDir, the last pulled first. Kernels that came there in
// another way are left out.
func Records(dir string) ([]Record, error) {
	dir, err := pulledDir(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	var records []Record
	for _, e := range entries {
		if !e.IsDir() || !validEntry(e.Name()) {
			continue
		}
		if r, err := readRecord(filepath.Join(dir, e.Name())); err == nil {
			records = append(records, r)
		}
	}
	slices.SortStableFunc(records, func(a, b Record) int { return b.Pulled.Compare(a.Pulled) })
	return records, nil
}

func readRecord(dir string) (Record, error) {
	var r Record
	f, err := os.OpenFile(filepath.Join(dir, recordName), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return r, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, err
	}
	if r.Format != recordFormat || !kernel.ValidRelease(r.Release) {
		return r, fmt.Errorf("%s is not in the format that this version writes", f.Name())
	}
	r.Name = filepath.Base(dir)
	return r, nil
}

func (r Record) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, recordName), append(b, '\n'), 0o644)
}

// Remove removes the pulled kernel in the directory called name, with its
// modules, from dir, "" being kernel.PulledDir; its vmlinux in the cache goes
// with the next pruning. It is gone at once or not at all. Errors wrap
// ErrNotFound or are those of the file system and of ctx.
func Remove(ctx context.Context, dir, name string) error {
	dir, err := pulledDir(dir)
	if err != nil {
		return err
	}
	if !validEntry(name) {
		return fmt.Errorf("pull: %w: no pulled kernel %q", ErrNotFound, name)
	}
	path := filepath.Join(dir, name)
	if info, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return fmt.Errorf("pull: %w: no pulled kernel %q", ErrNotFound, name)
	} else if err != nil {
		return fmt.Errorf("pull: %w", err)
	}
	w, err := lockWork(ctx, dir, publishName, nil)
	if err != nil {
		return fmt.Errorf("pull: removing %s: %w", name, err)
	}
	err = w.clearStage()
	if err == nil {
		err = os.Rename(path, w.join(stageName))
	}
	if err == nil {
		syncDir(dir)
	}
	if err = errors.Join(err, w.unlock(false)); err != nil {
		return fmt.Errorf("pull: removing %s: %w", name, err)
	}
	sweep(dir, false)
	return nil
}

// Clean removes what interrupted pulls have left in dir, "" being
// kernel.PulledDir, downloads that could be gone on with and apt's package lists
// too. What other processes are busy with stays.
func Clean(dir string) error {
	dir, err := pulledDir(dir)
	if err != nil {
		return err
	}
	sweep(dir, true)
	return nil
}

func pulledDir(dir string) (string, error) {
	if dir != "" {
		return filepath.Abs(dir)
	}
	return kernel.PulledDir()
}

// syncDir makes renames in dir last. File systems that can't sync a directory
// are no worse off than without.
func syncDir(dir string) {
	if f, err := os.Open(dir); err == nil {
		f.Sync()
		f.Close()
	}
}
