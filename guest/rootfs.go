package guest

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// rootFS is the file system from the root. It reads by plain system calls: the
// os package would put each of the many small files into its poller first.
type rootFS struct{}

var (
	_ fs.ReadDirFS  = rootFS{}
	_ fs.ReadLinkFS = rootFS{}
)

func (rootFS) Open(name string) (fs.File, error) {
	fd, err := unix.Open("/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return rawFile(fd), nil
}

func (rootFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir("/" + name) }
func (rootFS) ReadLink(name string) (string, error)       { return os.Readlink("/" + name) }
func (rootFS) Lstat(name string) (fs.FileInfo, error)     { return os.Lstat("/" + name) }

// rawFile is a file descriptor that is open for reading.
type rawFile int

func (f rawFile) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(f), p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (f rawFile) Close() error               { return unix.Close(int(f)) }
func (f rawFile) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }

// readHead returns at most max bytes from the beginning of a file; what can't
// be read is empty.
func readHead(root fs.FS, name string, max int) string {
	f, err := root.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, max)
	n, err := io.ReadFull(f, buf)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return ""
	}
	return string(buf[:n])
}
