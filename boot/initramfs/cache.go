package initramfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ModuleArchive is an archive with a set of modules and all that they need,
// decompressed.
type ModuleArchive struct {
	// Load has the modules' names in the archive, in an order in which they load.
	Load []string
	// Cached says that the archive came out of a Cache's directory.
	Cached bool
	image
}

type image interface {
	io.ReaderAt
	Size() int64
}

// Close releases what is open. The archive can't be read any more.
func (m *ModuleArchive) Close() error {
	if c, ok := m.image.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Cache keeps module archives in a directory, so that no index has to be read and no
// module decompressed before a guest starts. The directory belongs to one user; any
// number of processes may use it at the same time. Whatever is wrong with it or in
// it, Modules works: a cache only saves time.
type Cache struct {
	// Dir need not exist; "" is no cache.
	Dir string
	// Keep is how many archives stay, 0 for DefaultKeep.
	Keep int
}

// DefaultKeep is how many archives a Cache keeps if it isn't told.
const DefaultKeep = 16

// Modules returns the archive with the modules names of the modules directory dir,
// and all that they need. An archive of before is used if nothing has changed since in
// the directory's index and in the files of the modules in it. Errors are those of
// [OpenModules], [ModuleDir.Select] and [Archive.AddModules].
func (c Cache) Modules(dir string, opt SelectOptions, names ...string) (*ModuleArchive, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	key := cacheKey(dir, opt, names)
	if m, err := c.open(key); err == nil {
		return m, nil
	}
	began := time.Now()
	d, err := OpenModules(dir)
	if err != nil {
		return nil, err
	}
	sel, err := d.Select(opt, names...)
	if err != nil {
		return nil, err
	}
	var a Archive
	load, err := a.AddModules(d, sel, "lib/modules")
	if err != nil {
		return nil, err
	}
	m := &ModuleArchive{Load: load, image: a.Image()}
	c.store(key, dir, began, sel, m)
	return m, nil
}

// cacheFormat is part of every key: a change of the format finds no old archive.
const cacheFormat = "vole modules 2"

func cacheKey(dir string, opt SelectOptions, names []string) string {
	names, exclude := slices.Sorted(slices.Values(names)), slices.Sorted(slices.Values(opt.Exclude))
	// Marshalling strings and booleans does not fail.
	b, _ := json.Marshal([]any{cacheFormat, dir, opt.Softdeps, opt.Trusting, exclude, names})
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// cachedArchive is the first line of a cached file; the archive is behind it.
type cachedArchive struct {
	Load  []string      `json:"load"`
	Files []fileVersion `json:"files"`
}

// fileVersion tells whether a file is what it was. A file that is not there has no
// numbers.
type fileVersion struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	Ino    uint64 `json:"ino"`
	Change int64  `json:"change"` // nanoseconds since 1970
}

func versionOf(path string) fileVersion {
	v := fileVersion{Path: path}
	info, err := os.Stat(path)
	if err != nil {
		return v
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		v.Size, v.Ino, v.Change = st.Size, st.Ino, st.Ctim.Nano()
	}
	return v
}

// maxCacheHeader bounds the first line, in bytes.
const maxCacheHeader = 1 << 20

var errStale = errors.New("the cached archive is not that of the files any more")

func (c Cache) path(key string) string { return filepath.Join(c.Dir, key+archiveSuffix) }

// open finds the archive of before.
func (c Cache) open(key string) (_ *ModuleArchive, err error) {
	if c.Dir == "" {
		return nil, fs.ErrNotExist
	}
	if err := ownDir(c.Dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(c.path(key), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(info.Size(), 16<<10))
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	end := bytes.IndexByte(head, '\n')
	if end < 0 && info.Size() > int64(len(head)) {
		head = make([]byte, min(info.Size(), maxCacheHeader))
		if _, err := f.ReadAt(head, 0); err != nil {
			return nil, err
		}
		end = bytes.IndexByte(head, '\n')
	}
	var h cachedArchive
	if end < 0 || json.Unmarshal(head[:end], &h) != nil || len(h.Files) == 0 {
		return nil, errStale
	}
	for _, v := range h.Files {
		if versionOf(v.Path) != v {
			return nil, errStale
		}
	}
	start := int64(alignUp(end + 1))
	if start > info.Size() {
		return nil, errStale
	}
	// What is used stays longest.
	if now := time.Now(); now.Sub(info.ModTime()) > touchAge {
		_ = os.Chtimes(c.path(key), now, now)
	}
	return &ModuleArchive{Load: h.Load, Cached: true, image: &cachedImage{io.NewSectionReader(f, start, info.Size()-start), f}}, nil
}

// cachedImage is the part of a cached file behind its first line.
type cachedImage struct {
	*io.SectionReader
	f *os.File
}

func (i *cachedImage) Close() error { return i.f.Close() }

func alignUp(n int) int { return (n + blockSize - 1) &^ (blockSize - 1) }

// store keeps an archive for the next time, if it can.
func (c Cache) store(key, dir string, began time.Time, sel Selection, m *ModuleArchive) {
	if c.Dir == "" || os.MkdirAll(c.Dir, 0o700) != nil || ownDir(c.Dir) != nil {
		return
	}
	h := cachedArchive{Load: m.Load}
	for _, name := range []string{"", "modules.dep", "modules.builtin", "modules.softdep", "modules.alias"} {
		h.Files = append(h.Files, versionOf(filepath.Join(dir, name)))
	}
	for _, l := range sel.Load {
		h.Files = append(h.Files, versionOf(filepath.Join(dir, filepath.FromSlash(l.Path))))
	}
	for _, v := range h.Files {
		// What has changed since it was read, or as lately as that another change
		// might not show, is not known well enough.
		if time.Unix(0, v.Change).After(began.Add(-time.Second)) {
			return
		}
	}
	head, err := json.Marshal(h)
	if err != nil || len(head) >= maxCacheHeader {
		return
	}
	head = append(head, '\n')
	if err := c.write(key, append(head, make([]byte, alignUp(len(head))-len(head))...), m); err == nil {
		c.prune()
	}
}

// write puts a file of head and archive in its place, whole or not at all.
func (c Cache) write(key string, head []byte, archive image) (err error) {
	f, err := os.CreateTemp(c.Dir, "*"+tempSuffix)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(head); err != nil {
		return err
	}
	if _, err := io.Copy(f, io.NewSectionReader(archive, 0, archive.Size())); err != nil {
		return err
	}
	// A crash of the host must not leave a file of zeros with that name.
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), c.path(key))
}

const (
	archiveSuffix = ".modules"
	tempSuffix    = ".tmp"
)

// touchAge is how exactly it is known when an archive was used.
const touchAge = time.Hour

// tempAge is after how long a file that was not finished is somebody's who died.
const tempAge = time.Hour

// prune removes what was not used for longest.
func (c Cache) prune() {
	keep := c.Keep
	if keep <= 0 {
		keep = DefaultKeep
	}
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return
	}
	var kept []fs.FileInfo
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		switch {
		case strings.HasSuffix(e.Name(), tempSuffix) && time.Since(info.ModTime()) > tempAge:
			_ = os.Remove(filepath.Join(c.Dir, e.Name()))
		case strings.HasSuffix(e.Name(), archiveSuffix):
			kept = append(kept, info)
		}
	}
	slices.SortFunc(kept, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, old := range kept[min(keep, len(kept)):] {
		_ = os.Remove(filepath.Join(c.Dir, old.Name()))
	}
}

// Clear removes all archives, and what crashes have left behind. A directory that does
// not exist is clear already.
func (c Cache) Clear() error {
	if err := ownDir(c.Dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	entries, err := os.ReadDir(c.Dir)
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), archiveSuffix) && !strings.HasSuffix(e.Name(), tempSuffix) {
			continue
		}
		if rerr := os.Remove(filepath.Join(c.Dir, e.Name())); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// ownDir refuses a directory in which others could put modules.
func ownDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("initramfs: %s: not a directory of this user's alone", dir)
	}
	return nil
}
