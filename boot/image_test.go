package boot

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOpenImage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kernel")
	require.NoError(t, os.WriteFile(path, []byte("0123456789"), 0o600))
	f, err := OpenImage(path)
	require.NoError(t, err)
	assert.EqualValues(t, 10, f.Size())
	assert.Equal(t, path, f.Name())
	b := make([]byte, 3)
	_, err = f.ReadAt(b, 4)
	require.NoError(t, err)
	assert.Equal(t, "456", string(b))
	st, err := f.Stat()
	require.NoError(t, err)
	assert.True(t, st.Mode().IsRegular())
	require.NoError(t, f.Close())
	_, err = f.ReadAt(b, 0)
	assert.ErrorIs(t, err, fs.ErrClosed)
}

func TestOpenImageErrors(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	loop := filepath.Join(dir, "loop")
	require.NoError(t, os.Symlink("loop", loop))

	for _, tc := range []struct {
		name, path string
		is         error
		text       string
	}{
		{"missing", filepath.Join(dir, "none"), fs.ErrNotExist, "boot: " + filepath.Join(dir, "none") + ": no such file"},
		{"no path", "", fs.ErrNotExist, "boot: the empty path: file does not exist"},
		{"directory", dir, ErrNotFile, "boot: " + dir + ": a directory, not a file"},
		{"empty", empty, ErrEmpty, "boot: " + empty + ": the file is empty"},
		{"fifo", fifo, ErrNotFile, "boot: " + fifo + ": not a regular file but a FIFO"},
		{"character device", "/dev/null", ErrNotFile, "boot: /dev/null: not a regular file but a character device"},
		{"a file as directory", filepath.Join(empty, "x"), syscall.ENOTDIR, "boot: " + filepath.Join(empty, "x") + ": not a directory"},
		{"symbolic link to itself", loop, syscall.ELOOP, "boot: " + loop + ": too many levels of symbolic links"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := OpenImage(tc.path)
			assert.Nil(t, f)
			assert.ErrorIs(t, err, tc.is)
			assert.EqualError(t, err, tc.text)
		})
	}
}

func TestOpenImagePermission(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root reads every file; the mapping of the error is what is left.
		err := pathError("k", &fs.PathError{Op: "open", Path: "k", Err: syscall.EACCES})
		assert.ErrorIs(t, err, fs.ErrPermission)
		assert.EqualError(t, err, "boot: k: permission denied")
		return
	}
	path := filepath.Join(t.TempDir(), "kernel")
	require.NoError(t, os.WriteFile(path, []byte("x"), 0))
	_, err := OpenImage(path)
	assert.ErrorIs(t, err, fs.ErrPermission)
}

// badImage says that it has size bytes but gives only n, or err.
type badImage struct {
	size, n int64
	err     error
	head    []byte
}

func (b badImage) Size() int64 { return b.size }
func (b badImage) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(b.head)) {
		n = copy(p, b.head[off:])
	}
	for ; n < len(p) && off+int64(n) < b.n; n++ {
		p[n] = 0
	}
	if n < len(p) {
		if b.err != nil {
			return n, b.err
		}
		return n, io.EOF
	}
	return n, nil
}

func TestReadErrors(t *testing.T) {
	_, _, err := Probe(badImage{size: 4096})
	assert.ErrorIs(t, err, ErrTruncated)
	sick := errors.New("disk on fire")
	_, _, err = Probe(badImage{size: 4096, err: sick})
	assert.ErrorIs(t, err, sick)
	_, _, err = Probe(badImage{size: -1})
	assert.ErrorIs(t, err, ErrEmpty)
}
