package boot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Image is a file in memory, on disk, or put together from parts. Size is in
// bytes and must not change. A *bytes.Reader is an Image. Where an Image also
// has a method Name() string, errors use that name.
type Image interface {
	io.ReaderAt
	Size() int64
}

// File is an [Image] over an open regular file. It may be read from any
// goroutine.
type File struct {
	f    *os.File
	size int64
}

// OpenImage opens the file at path for reading. The caller closes it. Errors
// keep fs.ErrNotExist and fs.ErrPermission, and wrap ErrNotFile for
// directories and devices and ErrEmpty for files without content. Nothing of
// the file is read.
func OpenImage(path string) (*File, error) {
	if path == "" {
		return nil, fmt.Errorf("boot: the empty path: %w", fs.ErrNotExist)
	}
	// Looking first keeps devices from being opened at all; O_NONBLOCK keeps
	// a FIFO that appears in between from blocking.
	st, err := os.Stat(path)
	if err != nil {
		return nil, pathError(path, err)
	}
	if err := regular(path, st); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, pathError(path, err)
	}
	if st, err = f.Stat(); err == nil {
		err = regular(path, st)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{f: f, size: st.Size()}, nil
}

func regular(path string, st fs.FileInfo) error {
	switch {
	case st.IsDir():
		return about(path, faultf(ErrNotFile, "a directory, not a file"))
	case !st.Mode().IsRegular():
		return about(path, faultf(ErrNotFile, "not a regular file but %s", typeName(st.Mode())))
	case st.Size() == 0:
		return about(path, faultf(ErrEmpty, "the file is empty"))
	}
	return nil
}

func typeName(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeCharDevice != 0:
		return "a character device"
	case m&fs.ModeDevice != 0:
		return "a block device"
	}
	return "a special file"
}

// pathError says in words what the two usual reasons are.
func pathError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return about(path, &fault{kind: fs.ErrNotExist, text: "no such file"})
	case errors.Is(err, fs.ErrPermission):
		return about(path, &fault{kind: fs.ErrPermission, text: "permission denied"})
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return about(path, err)
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Size returns the file's length in bytes when it was opened.
func (f *File) Size() int64 { return f.size }

// Name returns the path that the file was opened by.
func (f *File) Name() string { return f.f.Name() }

// Stat returns what the file system says of the open file.
func (f *File) Stat() (fs.FileInfo, error) { return f.f.Stat() }

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// readFull fills p from offset off of img. Its error is ErrTruncated where the
// image ends too early.
func readFull(img Image, p []byte, off int64) error {
	n, err := img.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return faultf(ErrTruncated, "truncated: it ends at byte %d, %d bytes before what was expected", off+int64(n), len(p)-n)
	}
	return fmt.Errorf("reading %d bytes at offset %d: %w", len(p), off, err)
}

// imageName is the name for errors: the caller's, else the image's own.
func imageName(img Image, name, fallback string) string {
	if name != "" {
		return name
	}
	if n, ok := img.(interface{ Name() string }); ok {
		return n.Name()
	}
	return fallback
}
