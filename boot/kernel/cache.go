package kernel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrCacheDir says that a directory can't be used as the cache because others
// could put their kernels in it, or because it is no directory. A caller goes
// on without a cache.
var ErrCacheDir = errors.New("unusable cache directory")

// DefaultKeep is how many extracted kernels a Cache keeps, if it isn't told.
const DefaultKeep = 8

const (
	indexName     = "index"
	vmlinuxSuffix = ".vmlinux"
	tempSuffix    = ".tmp"
	pulledName    = "pulled"
	envCache      = "VOLE_CACHE"
)

// Cache is a directory of extracted kernels, each under the SHA-256 of the
// bzImage that it came from, and an index that finds the digest of a bzImage
// by its device, inode, size and times, so that a hit reads none of it.
//
// The directory belongs to one user. Any number of goroutines and processes
// may use it at the same time. Entries are written under another name, synced
// and renamed: a crash at any point leaves a cache that works.
type Cache struct {
	dir string
	// Keep is how many extracted kernels stay after a Fill, 0 for DefaultKeep.
	// Set it before the cache is used.
	Keep int
}

// DefaultDir is $VOLE_CACHE or, without that, vole/kernels in the user's cache
// directory ($XDG_CACHE_HOME, ~/.cache).
func DefaultDir() (string, error) {
	if dir := os.Getenv(envCache); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("kernel: no cache directory: %w", err)
	}
	return filepath.Join(dir, "vole", "kernels"), nil
}

// NewCache returns the cache in dir, "" for [DefaultDir]. It touches no file:
// the directory is made when there is something to put in it.
func NewCache(dir string) (*Cache, error) {
	if dir == "" {
		var err error
		if dir, err = DefaultDir(); err != nil {
			return nil, err
		}
	}
	return &Cache{dir: dir}, nil
}

// Dir is the cache's directory. It need not exist.
func (c *Cache) Dir() string { return c.dir }

// Lookup returns the path of the vmlinux that was extracted from the kernel
// file at path, and whether there is one. A kernel file that has changed since,
// an entry that is damaged and a damaged index are misses, not errors.
//
// A hit costs a stat of the kernel file, the reading of the index (a few hundred
// bytes) and of the vmlinux's first bytes. Another process may remove the
// vmlinux before the caller opens it; that too means to boot the bzImage.
//
// Errors are those of the stat, and ErrCacheDir.
func (c *Cache) Lookup(path string) (vmlinux string, ok bool, err error) {
	key, err := statKey(path)
	if err != nil {
		return "", false, fmt.Errorf("kernel: %w", err)
	}
	if err := checkDir(c.dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("kernel: %w", err)
	}
	x, err := c.readIndex()
	if err != nil {
		return "", false, nil
	}
	r, ok := x.find(key)
	if !ok || !c.intact(r) {
		return "", false, nil
	}
	return c.vmlinuxPath(r.digest), true, nil
}

func (c *Cache) vmlinuxPath(d digest) string {
	return filepath.Join(c.dir, d.String()+vmlinuxSuffix)
}

func (c *Cache) readIndex() (index, error) {
	f, err := os.OpenFile(filepath.Join(c.dir, indexName), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return index{}, err
	}
	defer f.Close()
	b := make([]byte, 0, 4<<10)
	for len(b) <= maxIndex {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return parseIndex(b)
		}
		if err != nil {
			return index{}, err
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
	return index{}, fmt.Errorf("%w: over %d bytes", errIndex, maxIndex)
}

// intact says whether the vmlinux of r is still what was put there: ours, of
// the recorded size and time, and an x86-64 vmlinux by its header.
func (c *Cache) intact(r record) bool {
	f, err := os.OpenFile(c.vmlinuxPath(r.digest), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || private(info) != nil ||
		info.Size() != r.vmlinuxSize || info.ModTime().UnixNano() != r.vmlinuxMtime {
		return false
	}
	var head [ehdrSize]byte
	return readFull(f, head[:], 0) == nil && checkELF(head[:]) == nil
}

// checkDir says whether dir is a directory that only this user can write.
// Errors wrap ErrCacheDir or are those of the stat.
func checkDir(dir string) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", ErrCacheDir, err)
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		// Whoever owns the link says where it leads.
		if uid := owner(info); uid != os.Geteuid() && uid != 0 {
			return fmt.Errorf("%w: %s is a symbolic link of user %d", ErrCacheDir, dir, uid)
		}
		if info, err = os.Stat(dir); err != nil {
			return err
		}
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a directory", ErrCacheDir, dir)
	}
	if err := private(info); err != nil {
		return fmt.Errorf("%w: %s %w", ErrCacheDir, dir, err)
	}
	return nil
}

// makeDir makes dir, with its parents, for this user alone, and checks it.
func makeDir(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err != nil && !errors.Is(err, syscall.ENOTDIR) {
		return err
	}
	return checkDir(dir)
}

// MakePrivateDir makes dir, with its parents, for this user alone, if it is not
// there, and checks that no other user can put anything into it. Errors wrap
// ErrCacheDir or are those of the file system.
func MakePrivateDir(dir string) error {
	if err := makeDir(dir); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	return nil
}

// private says what lets others write the file, if anything does.
func private(info fs.FileInfo) error {
	if uid := owner(info); uid != os.Geteuid() {
		return fmt.Errorf("belongs to user %d, not to %d", uid, os.Geteuid())
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("can be written by others (mode %#o, want 0700)", perm)
	}
	return nil
}

func owner(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// statKey identifies the file at path, following symbolic links.
func statKey(path string) (fileKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileKey{}, err
	}
	return keyOf(info), nil
}

func keyOf(info fs.FileInfo) fileKey {
	st := info.Sys().(*syscall.Stat_t)
	return fileKey{
		dev: uint64(st.Dev), inode: st.Ino, size: st.Size, //nolint:unconvert // Dev is 32 bits on some architectures
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}
