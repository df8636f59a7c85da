package initramfs

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// oldModules is a directory with two modules that nobody has touched lately: its
// times can't be set back, so it waits until they are old enough.
func oldModules(t *testing.T) string {
	dir := t.TempDir()
	write := func(name, data string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644))
	}
	write("kernel/a.ko", "\x7fELF a")
	write("kernel/b.ko", "\x7fELF b")
	write("modules.dep", "kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n")
	settle(t, dir)
	return dir
}

// settle waits until a change now would show in the time of a file's last change.
func settle(t *testing.T, path string) {
	require.Eventually(t, func() bool {
		return time.Since(time.Unix(0, versionOf(path).Change)) > 1100*time.Millisecond
	}, 5*time.Second, 10*time.Millisecond)
}

func bytesOf(t *testing.T, m *ModuleArchive) []byte {
	b, err := io.ReadAll(io.NewSectionReader(m, 0, m.Size()))
	require.NoError(t, err)
	return b
}

func modulesOf(t *testing.T, c Cache, dir string) *ModuleArchive {
	m, err := c.Modules(dir, SelectOptions{}, "a")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func TestCache(t *testing.T) {
	dir := oldModules(t)
	c := Cache{Dir: filepath.Join(t.TempDir(), "cache")}

	first := modulesOf(t, c, dir)
	assert.False(t, first.Cached)
	assert.Equal(t, []string{"lib/modules/kernel/b.ko", "lib/modules/kernel/a.ko"}, first.Load)
	second := modulesOf(t, c, dir)
	assert.True(t, second.Cached)
	assert.Equal(t, first.Load, second.Load)
	assert.Equal(t, bytesOf(t, first), bytesOf(t, second))

	_, err := c.Modules(dir, SelectOptions{}, "none")
	require.ErrorIs(t, err, ErrNoModule)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "kernel/b.ko"), []byte("\x7fELF another"), 0o644))
	third := modulesOf(t, c, dir)
	assert.False(t, third.Cached, "a module has changed")
	assert.Contains(t, string(bytesOf(t, third)), "another")
	fourth := modulesOf(t, c, dir)
	assert.False(t, fourth.Cached, "a module that has just changed may change again unseen")
}

func TestCacheDamaged(t *testing.T) {
	dir := oldModules(t)
	c := Cache{Dir: t.TempDir()}
	require.NoError(t, os.Chmod(c.Dir, 0o700))
	modulesOf(t, c, dir)
	files, err := filepath.Glob(filepath.Join(c.Dir, "*.modules"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	for name, data := range map[string]string{
		"empty": "", "no line": "xx", "not JSON": "{\n", "no files": "{}\n", "cut off": "{\"files\":[{\"path\":\"/nowhere\"}]}\n",
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(files[0], []byte(data), 0o600))
			assert.False(t, modulesOf(t, c, dir).Cached)
			assert.True(t, modulesOf(t, c, dir).Cached, "mended")
		})
	}
	require.NoError(t, os.Chmod(c.Dir, 0o777))
	assert.False(t, modulesOf(t, c, dir).Cached, "anybody could have put it there")
}

func TestCachePrunes(t *testing.T) {
	dir := oldModules(t)
	c := Cache{Dir: filepath.Join(t.TempDir(), "c"), Keep: 1}
	modulesOf(t, c, dir)
	m, err := c.Modules(dir, SelectOptions{}, "b")
	require.NoError(t, err)
	require.NoError(t, m.Close())
	files, err := filepath.Glob(filepath.Join(c.Dir, "*"))
	require.NoError(t, err)
	assert.Len(t, files, 1)

	beside := filepath.Join(c.Dir, "beside")
	require.NoError(t, os.WriteFile(beside, nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(c.Dir, "1"+tempSuffix), nil, 0o600))
	require.NoError(t, c.Clear())
	files, err = filepath.Glob(filepath.Join(c.Dir, "*"))
	require.NoError(t, err)
	assert.Equal(t, []string{beside}, files)
	assert.NoError(t, Cache{Dir: filepath.Join(t.TempDir(), "none")}.Clear())
	require.NoError(t, os.Chmod(c.Dir, 0o777))
	assert.Error(t, c.Clear(), "not this user's alone")
}
