package pull

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/boot/kernel"
)

const (
	workName  = ".work"
	stageName = "stage"

	// keepParts is how long what was downloaded for a pull that ended early is
	// kept.
	keepParts = 7 * 24 * time.Hour

	lockPollMin = 5 * time.Millisecond
	lockPollMax = 200 * time.Millisecond
)

// workDir is a directory below .work that this process has locked: whoever
// holds the flock of the directory that has the name may use it.
type workDir struct {
	path string
	f    *os.File
}

// lockWork makes and locks the directory called name below pulled/.work. While
// another process has it, waiting is called once and lockWork waits until ctx
// ends.
func lockWork(ctx context.Context, pulled, name string, waiting func()) (*workDir, error) {
	base := filepath.Join(pulled, workName)
	path := filepath.Join(base, name)
	poll := time.NewTimer(0)
	defer poll.Stop()
	for wait := lockPollMin; ; wait = min(2*wait, lockPollMax) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-poll.C:
		}
		// Another pull that has failed may have removed even pulled.
		if err := kernel.MakePrivateDir(pulled); err != nil {
			return nil, err
		}
		for _, dir := range []string{base, path} {
			if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		w, err := tryLockWork(path)
		if w != nil || err != nil {
			return w, err
		}
		if wait == 4*lockPollMin && waiting != nil { // and not while another goes away
			waiting()
		}
		poll.Reset(wait)
	}
}

// tryLockWork returns nil and no error when another holds the directory, or it
// is gone.
func tryLockWork(path string) (*workDir, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = flock(f)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return nil, nil
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The last holder may have removed the directory before its lock came
	// free: then what is locked here is not what has the name.
	mine, err := f.Stat()
	if err == nil {
		var named fs.FileInfo
		if named, err = os.Lstat(path); err == nil && os.SameFile(mine, named) {
			return &workDir{path, f}, nil
		}
	}
	f.Close()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func (w *workDir) join(name string) string { return filepath.Join(w.path, name) }

// clearStage removes a half-made kernel.
func (w *workDir) clearStage() error { return removeAll(w.join(stageName)) }

// unlock gives the directory back: without what was half-made, and without
// itself if nothing is left in it or it is not to be kept.
func (w *workDir) unlock(keep bool) error {
	defer w.f.Close()
	if err := w.clearStage(); err != nil {
		return err
	}
	empty := []string{w.path, filepath.Dir(w.path)}
	if !keep {
		if err := removeAll(w.path); err != nil {
			return err
		}
		empty = empty[1:] // what has the name from now on is another's
	}
	// They stay if there is something in them.
	for _, dir := range empty {
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// sweep clears away what processes that are gone have left below pulled/.work:
// what was half-made at once, downloads when they are old or all is set.
// Directories in use stay. What can't be removed now is removed another time.
func sweep(pulled string, all bool) {
	base := filepath.Join(pulled, workName)
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		w, err := tryLockWork(filepath.Join(base, e.Name()))
		if err != nil || w == nil {
			continue
		}
		info, err := w.f.Stat()
		_ = w.unlock(!all && err == nil && time.Since(info.ModTime()) < keepParts)
	}
}

// removeAll is os.RemoveAll, which also removes what is in directories that the
// user has no right to write.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}

// validEntry says whether name can be that of a pulled kernel.
func validEntry(name string) bool {
	return name != "" && !strings.HasPrefix(name, ".") && !strings.ContainsAny(name, "/\x00")
}
