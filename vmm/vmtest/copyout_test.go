package vmtest

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// entries are the names of what is in a directory.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// TestCopyOutOfNothing: a file of this host's is not lost for one that the guest doesn't have.
func TestCopyOutOfNothing(t *testing.T) {
	dir := t.TempDir()
	golden, link := filepath.Join(dir, "golden"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(golden, []byte("of before"), 0o640))
	require.NoError(t, os.Symlink("golden", link))
	for _, to := range []string{golden, link, filepath.Join(dir, "new")} {
		fake := runFake(t, time.Time{}, func(ft *fakeTB) {
			v, _ := startFake(ft, t.TempDir())
			v.CopyOut("/misspelled", to)
			t.Error("the test goes on")
		})
		assert.Contains(t, fake.said(), "open /misspelled: no such file")
		text, err := os.ReadFile(golden)
		require.NoError(t, err)
		assert.Equal(t, "of before", string(text))
		assert.Equal(t, []string{"golden", "link"}, entries(t, dir))
	}
}

// TestReplace: a file becomes what was written, as a whole, or stays what it was.
func TestReplace(t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	write := func(text string, err error) func(io.Writer) error {
		return func(w io.Writer) error {
			_, werr := io.WriteString(w, text)
			return errors.Join(werr, err)
		}
	}
	broken := errors.New("the guest is gone")

	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	check := func(text string, perm os.FileMode) {
		t.Helper()
		got, err := os.ReadFile(name)
		require.NoError(t, err)
		assert.Equal(t, text, string(got))
		info, err := os.Lstat(name)
		require.NoError(t, err)
		assert.Equal(t, perm, info.Mode())
		assert.Equal(t, []string{"file"}, entries(t, dir))
	}
	require.ErrorIs(t, replace(name, write("half", broken)), broken)
	assert.Empty(t, entries(t, dir), "nothing is left")
	require.NoError(t, replace(name, write("one", nil)))
	check("one", 0o640)
	require.NoError(t, os.Chmod(name, 0o604))
	require.ErrorIs(t, replace(name, write("half", broken)), broken)
	check("one", 0o604)
	require.NoError(t, replace(name, write("", nil)))
	check("", 0o604)

	require.ErrorContains(t, replace(filepath.Join(dir, "no", "file"), write("", nil)), filepath.Join(dir, "no", "file")+": no such file")
	require.ErrorIs(t, replace(dir, write("x", nil)), syscall.EISDIR)
	check("", 0o604)
}

// TestReplaceInPlace: what is no regular file, or whose directory takes no other, is written to.
func TestReplaceInPlace(t *testing.T) {
	one := func(w io.Writer) error {
		_, err := io.WriteString(w, "one")
		return err
	}
	require.NoError(t, replace("/dev/null", one))
	info, err := os.Lstat("/dev/null")
	require.NoError(t, err)
	assert.NotZero(t, info.Mode()&os.ModeCharDevice)

	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	got := make(chan string)
	go func() {
		text, _ := os.ReadFile(fifo)
		got <- string(text)
	}()
	require.NoError(t, replace(fifo, one))
	assert.Equal(t, "one", <-got)

	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	require.NoError(t, os.Symlink("target", link))
	require.NoError(t, replace(link, one))
	text, err := os.ReadFile(target)
	require.NoError(t, err)
	assert.Equal(t, "one", string(text))
	assert.Equal(t, []string{"fifo", "link", "target"}, entries(t, dir))
	require.NoError(t, replace(link, func(io.Writer) error { return nil }))
	text, err = os.ReadFile(target)
	require.NoError(t, err)
	assert.Empty(t, text, "an empty file is a file, too")
}

// TestReplaceWithoutRights: a file in a directory that is not to be written to.
func TestReplaceWithoutRights(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(name, []byte("of before"), 0o600))
	if os.Getuid() == 0 {
		require.NoError(t, os.Chown(name, nobody, nobody))
		require.NoError(t, os.Chown(dir, nobody, nobody))
		require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755)) // where t.TempDir is
	}
	require.NoError(t, os.Chmod(dir, 0o500))
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	require.NoError(t, replaceAsNobody(name))
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "one", string(text))
	require.NoError(t, os.Chmod(dir, 0o700))
	require.NoError(t, os.Chmod(name, 0o400))
	require.ErrorIs(t, replaceAsNobody(name), os.ErrPermission)
}

const nobody = 65534

// replaceAsNobody replaces a file by "one", as an ordinary user.
func replaceAsNobody(name string) error {
	result := make(chan error)
	go func() {
		// Root may write everywhere, unless its thread gives that up. The thread stays
		// locked, so that it ends with the goroutine.
		runtime.LockOSThread()
		var err error
		if os.Getuid() == 0 {
			err = unix.Setfsuid(nobody)
		}
		if err == nil {
			err = replace(name, func(w io.Writer) error {
				_, err := io.WriteString(w, "one")
				return err
			})
		}
		result <- err
	}()
	return <-result
}
