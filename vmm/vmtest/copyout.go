package vmtest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
)

// replace makes the file name of this host of what fill writes. If fill fails all is as it
// was. A file that is there keeps its mode and, where it may, its owner. What is there and
// no regular file, and one whose directory takes no other, is written to in place.
func replace(name string, fill func(io.Writer) error) (err error) {
	old, err := os.Lstat(name)
	there := err == nil
	if there {
		if !old.Mode().IsRegular() {
			return inPlace(name, fill)
		}
		// A new one would take the place also of what may not be written to.
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		f.Close()
	}
	f, err := createBeside(name)
	if err != nil {
		if there {
			return inPlace(name, fill)
		}
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = fill(f)
	if err == nil && there {
		err = likeBefore(f, old)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// createBeside makes a file with a name of its own in the directory of name. Errors name
// the latter.
func createBeside(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(filepath.Join(filepath.Dir(name), fmt.Sprintf(".vole-%016x", rand.Uint64())), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		var path *fs.PathError
		switch {
		case errors.Is(err, fs.ErrExist):
			continue
		case errors.As(err, &path):
			path.Path = name
		}
		return f, err
	}
}

// likeBefore gives a file the mode of another, and its owner and group if that is allowed.
func likeBefore(f *os.File, old fs.FileInfo) error {
	if st, ok := old.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
	return f.Chmod(old.Mode().Perm())
}

// inPlace writes to a file, which is opened when there is something to write.
func inPlace(name string, fill func(io.Writer) error) error {
	l := &lateFile{name: name}
	err := fill(l)
	if err == nil {
		err = l.open()
	}
	if l.f != nil {
		err = errors.Join(err, l.f.Close())
	}
	return err
}

// lateFile is a file that the first Write opens and empties.
type lateFile struct {
	name string
	f    *os.File
}

func (l *lateFile) open() (err error) {
	if l.f == nil {
		l.f, err = os.OpenFile(l.name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	}
	return err
}

func (l *lateFile) Write(p []byte) (int, error) {
	if err := l.open(); err != nil {
		return 0, err
	}
	return l.f.Write(p)
}
