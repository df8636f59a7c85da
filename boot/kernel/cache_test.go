package kernel

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func newTestCache(tb testing.TB) *Cache {
	tb.Helper()
	c, err := NewCache(filepath.Join(tb.TempDir(), "cache", "kernels"))
	require.NoError(tb, err)
	return c
}

func mustHit(tb testing.TB, c *Cache, path string) string {
	tb.Helper()
	vmlinux, ok, err := c.Lookup(path)
	require.NoError(tb, err)
	require.True(tb, ok, "a hit")
	return vmlinux
}

func mustMiss(tb testing.TB, c *Cache, path string) {
	tb.Helper()
	vmlinux, ok, err := c.Lookup(path)
	require.NoError(tb, err)
	require.False(tb, ok, "a miss")
	require.Empty(tb, vmlinux)
}

// names lists the cache's directory.
func names(tb testing.TB, c *Cache) []string {
	tb.Helper()
	entries, err := os.ReadDir(c.Dir())
	require.NoError(tb, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestCacheFillAndLookup(t *testing.T) {
	c := newTestCache(t)
	path := writeKernel(t, t.TempDir(), "vmlinuz", XZ)
	mustMiss(t, c, path)
	assert.NoDirExists(t, c.Dir(), "a lookup makes no directory")
	require.NoError(t, c.Fill(path))
	vmlinux := mustHit(t, c, path)
	file, err := os.ReadFile(vmlinux)
	require.NoError(t, err)
	checkCompact(t, makeVmlinux(), file)
	info, err := os.Stat(c.Dir())
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
	assert.Equal(t, []string{filepath.Base(vmlinux), "index"}, names(t, c))

	again, err := NewCache(c.Dir())
	require.NoError(t, err)
	assert.Equal(t, vmlinux, mustHit(t, again, path), "by another Cache")
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	assert.Equal(t, vmlinux, mustHit(t, c, link), "by a symbolic link")
}

func TestCacheSharesOneVmlinux(t *testing.T) {
	c := newTestCache(t)
	dir := t.TempDir()
	one := writeKernel(t, dir, "one", LZ4)
	two := writeKernel(t, dir, "two", LZ4)
	require.NoError(t, c.Fill(one))
	first, err := os.Stat(mustHit(t, c, one))
	require.NoError(t, err)
	mustMiss(t, c, two)
	require.NoError(t, c.Fill(two))
	second, err := os.Stat(mustHit(t, c, two))
	require.NoError(t, err)
	assert.True(t, os.SameFile(first, second))
	assert.Equal(t, first.ModTime(), second.ModTime(), "not extracted again")
	mustHit(t, c, one)
}

func TestCacheFillsFreshFile(t *testing.T) {
	c := newTestCache(t)
	path := writeKernel(t, t.TempDir(), "vmlinuz", Zstd)
	require.NoError(t, os.WriteFile(path, makeImage(testPayload(t, Gzip)), 0o644))
	require.NoError(t, c.Fill(path))
	mustHit(t, c, path)
}

func TestCacheMisses(t *testing.T) {
	for _, m := range []struct {
		name   string
		damage func(t *testing.T, c *Cache, path, vmlinux string)
	}{
		{"the kernel is another file", func(t *testing.T, _ *Cache, path, _ string) {
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.WriteFile(path, b, 0o644))
			require.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
		}},
		{"the kernel was overwritten and its time set back", func(t *testing.T, _ *Cache, path, _ string) {
			info, err := os.Stat(path)
			require.NoError(t, err)
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte("X"), info.Size()-1)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
		}},
		{"the vmlinux is gone", func(t *testing.T, _ *Cache, _, vmlinux string) {
			require.NoError(t, os.Remove(vmlinux))
		}},
		{"the vmlinux is truncated", func(t *testing.T, _ *Cache, _, vmlinux string) {
			info, err := os.Stat(vmlinux)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(vmlinux, info.Size()-1))
			require.NoError(t, os.Chtimes(vmlinux, info.ModTime(), info.ModTime()))
		}},
		{"the vmlinux was written", func(t *testing.T, _ *Cache, _, vmlinux string) {
			now := time.Now()
			require.NoError(t, os.Chtimes(vmlinux, now, now))
		}},
		{"the vmlinux is no ELF", func(t *testing.T, _ *Cache, _, vmlinux string) {
			info, err := os.Stat(vmlinux)
			require.NoError(t, err)
			f, err := os.OpenFile(vmlinux, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(make([]byte, 4), 0)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.NoError(t, os.Chtimes(vmlinux, info.ModTime(), info.ModTime()))
		}},
		{"the vmlinux can be written by others", func(t *testing.T, _ *Cache, _, vmlinux string) {
			require.NoError(t, os.Chmod(vmlinux, 0o666))
		}},
		{"the vmlinux is a symbolic link", func(t *testing.T, _ *Cache, _, vmlinux string) {
			other := filepath.Join(t.TempDir(), "other")
			require.NoError(t, os.Rename(vmlinux, other))
			require.NoError(t, os.Symlink(other, vmlinux))
		}},
		{"the index is gone", func(t *testing.T, c *Cache, _, _ string) {
			require.NoError(t, os.Remove(filepath.Join(c.Dir(), indexName)))
		}},
		{"the index is damaged", func(t *testing.T, c *Cache, _, _ string) {
			require.NoError(t, os.WriteFile(filepath.Join(c.Dir(), indexName), []byte("not an index"), 0o600))
		}},
		{"the index is empty", func(t *testing.T, c *Cache, _, _ string) {
			require.NoError(t, os.Truncate(filepath.Join(c.Dir(), indexName), 0))
		}},
		{"the index is huge", func(t *testing.T, c *Cache, _, _ string) {
			require.NoError(t, os.Truncate(filepath.Join(c.Dir(), indexName), 1<<30))
		}},
	} {
		t.Run(m.name, func(t *testing.T) {
			c := newTestCache(t)
			path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
			require.NoError(t, c.Fill(path))
			m.damage(t, c, path, mustHit(t, c, path))
			mustMiss(t, c, path)
			require.NoError(t, c.Fill(path), "and the next Fill mends it")
			file, err := os.ReadFile(mustHit(t, c, path))
			require.NoError(t, err)
			checkCompact(t, makeVmlinux(), file)
			assert.Len(t, names(t, c), 2)
		})
	}
}

func TestCacheErrors(t *testing.T) {
	dir := t.TempDir()
	good := writeKernel(t, dir, "good", LZ4)
	cut := filepath.Join(dir, "cut")
	b, err := os.ReadFile(good)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(cut, b[:len(b)-2000], 0o644))
	damaged := filepath.Join(dir, "damaged")
	b[len(b)-3000] ^= 0xff
	b[len(b)-3001] ^= 0xff
	require.NoError(t, os.WriteFile(damaged, makeImage(withSize(testPayload(t, XZ)[:1000], 1<<20)), 0o644))
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for _, x := range []struct {
		name, path string
		want       error
	}{
		{"missing", filepath.Join(dir, "missing"), fs.ErrNotExist},
		{"a directory", dir, ErrUnsupported},
		{"a FIFO", fifo, ErrUnsupported},
		{"truncated", cut, ErrCorrupt},
		{"damaged", damaged, ErrCorrupt},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newTestCache(t)
			err := c.Fill(x.path)
			require.ErrorIs(t, err, x.want)
			assert.ErrorContains(t, err, x.path)
			if _, err := os.Stat(c.Dir()); err == nil {
				assert.Empty(t, names(t, c))
			}
		})
	}
	_, _, err = newTestCache(t).Lookup(filepath.Join(dir, "missing"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestCacheRefusesDirectory(t *testing.T) {
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	for _, x := range []struct {
		name string
		make func(t *testing.T, dir string)
		text string
	}{
		{"world-writable", func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.Chmod(dir, 0o702))
		}, "mode 0702"},
		{"group-writable", func(t *testing.T, dir string) {
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.Chmod(dir, 0o720))
		}, "mode 0720"},
		{"of another user", func(t *testing.T, dir string) {
			needRoot(t)
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.Chown(dir, 12345, -1))
		}, "belongs to user 12345"},
		{"a link of another user", func(t *testing.T, dir string) {
			needRoot(t)
			require.NoError(t, os.Symlink(t.TempDir(), dir))
			require.NoError(t, os.Lchown(dir, 12345, -1))
		}, "symbolic link of user 12345"},
		{"a file", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(dir, nil, 0o600))
		}, "not a directory"},
		{"under a file", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Dir(dir), nil, 0o600))
		}, "not a directory"},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "up", "cache")
			if x.name != "under a file" {
				require.NoError(t, os.Mkdir(filepath.Dir(dir), 0o700))
			}
			x.make(t, dir)
			c, err := NewCache(dir)
			require.NoError(t, err)
			_, ok, err := c.Lookup(path)
			require.ErrorIs(t, err, ErrCacheDir)
			assert.False(t, ok)
			for _, err := range []error{err, c.Fill(path), c.Prune(1)} {
				require.ErrorIs(t, err, ErrCacheDir)
				assert.ErrorContains(t, err, x.text)
				assert.ErrorContains(t, err, filepath.Dir(dir))
			}
		})
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// TestCacheDirUnderLink uses a directory that the user has linked elsewhere.
func TestCacheDirUnderLink(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(t.TempDir(), link))
	require.NoError(t, os.Chmod(link, 0o700))
	c, err := NewCache(link)
	require.NoError(t, err)
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	require.NoError(t, c.Fill(path))
	mustHit(t, c, path)
}

func TestDefaultDir(t *testing.T) {
	t.Setenv("HOME", "/home/x")
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv(envCache, "")
	for _, x := range []struct{ name, key, value, want string }{
		{"home", "HOME", "/home/y", "/home/y/.cache/vole/kernels"},
		{"xdg", "XDG_CACHE_HOME", "/xdg", "/xdg/vole/kernels"},
		{"vole", envCache, "/somewhere/else", "/somewhere/else"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Setenv(x.key, x.value)
			c, err := NewCache("")
			require.NoError(t, err)
			assert.Equal(t, x.want, c.Dir())
		})
	}
	t.Setenv("HOME", "")
	_, err := NewCache("")
	assert.ErrorContains(t, err, "no cache directory")
}

func TestCachePrune(t *testing.T) {
	c := newTestCache(t)
	dir := t.TempDir()
	var paths []string
	for _, p := range []Compression{Gzip, XZ, LZ4, Zstd} {
		path := writeKernel(t, dir, string(p), p)
		require.NoError(t, c.Fill(path))
		paths = append(paths, path)
	}
	pulled := filepath.Join(c.Dir(), pulledName)
	require.NoError(t, os.Mkdir(pulled, 0o700))
	require.NoError(t, c.Prune(2))
	mustMiss(t, c, paths[0])
	mustMiss(t, c, paths[1])
	mustHit(t, c, paths[2])
	mustHit(t, c, paths[3])
	assert.Len(t, names(t, c), 4, "two kernels, index, pulled")

	c.Keep = 1
	require.NoError(t, c.Fill(paths[0]))
	mustHit(t, c, paths[0])
	mustMiss(t, c, paths[3])
	require.NoError(t, c.Prune(0))
	assert.Equal(t, []string{indexName, pulledName}, names(t, c))
	require.Error(t, c.Prune(-1))
	require.NoError(t, newTestCache(t).Prune(1), "of a cache that does not exist")
}

func TestCacheCleansUpAfterCrash(t *testing.T) {
	c := newTestCache(t)
	require.NoError(t, os.MkdirAll(c.Dir(), 0o700))
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	for _, name := range []string{indexName + tempSuffix, strings.Repeat("ab", 32) + tempSuffix, strings.Repeat("cd", 32) + vmlinuxSuffix} {
		require.NoError(t, os.WriteFile(filepath.Join(c.Dir(), name), []byte("half"), 0o600))
	}
	require.NoError(t, c.Fill(path))
	assert.Equal(t, []string{filepath.Base(mustHit(t, c, path)), indexName}, names(t, c))
}

// countdown is a context that ends after it was asked n times.
type countdown struct {
	context.Context
	n int
}

func (c *countdown) Err() error {
	if c.n--; c.n < 0 {
		return context.Canceled
	}
	return nil
}

func TestCacheFillCancelled(t *testing.T) {
	c := newTestCache(t)
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	for n := 0; ; n++ {
		err := c.FillContext(&countdown{t.Context(), n}, path)
		if err == nil {
			assert.Greater(t, n, 2)
			break
		}
		require.ErrorIs(t, err, context.Canceled)
		assert.Empty(t, names(t, c), "cancelled after %d", n)
	}
	mustHit(t, c, path)

	ctx, cancel := context.WithCancel(t.Context())
	held, err := lockTemp(ctx, c.Dir(), "held"+tempSuffix)
	require.NoError(t, err)
	defer held.discard()
	cancel()
	_, err = lockTemp(ctx, c.Dir(), "held"+tempSuffix)
	require.ErrorIs(t, err, context.Canceled, "while waiting for another holder")
}

// TestCacheChangesCancelled: another process that has the index is not waited for beyond the context.
func TestCacheChangesCancelled(t *testing.T) {
	c := newTestCache(t)
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	require.NoError(t, c.Fill(path))
	held, err := lockTemp(t.Context(), c.Dir(), indexName+tempSuffix)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, c.PruneContext(ctx, 0), context.Canceled)
	assert.ErrorIs(t, c.ForgetContext(ctx, path), context.Canceled)
	mustHit(t, c, path)
	held.discard()
	require.NoError(t, c.ForgetContext(t.Context(), path))
	mustMiss(t, c, path)
}

// digested is an open kernel file whose digest is known.
func digested(t *testing.T, path string) *sourceFile {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	src, err := settled(t.Context(), f)
	require.NoError(t, err)
	require.NoError(t, src.digestFile(t.Context()))
	return src
}

// TestCacheTryFill: who finds another at work leaves it to that one.
func TestCacheTryFill(t *testing.T) {
	c := newTestCache(t)
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	src := digested(t, path)
	require.NoError(t, makeDir(c.Dir()))
	other, err := lockTemp(t.Context(), c.Dir(), src.digest.String()+tempSuffix)
	require.NoError(t, err)
	require.ErrorIs(t, c.TryFill(t.Context(), path), ErrBusy)
	other.discard()
	require.NoError(t, c.TryFill(t.Context(), path))
	mustHit(t, c, path)
	require.NoError(t, c.TryFill(t.Context(), path), "it is there")
}

func TestSourceChanged(t *testing.T) {
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	src := digested(t, path)
	require.NoError(t, os.Truncate(path, 5000))
	require.ErrorIs(t, src.digestFile(t.Context()), ErrChanged)
	require.ErrorIs(t, src.unchanged(), ErrChanged)
}

func TestCacheConcurrentFills(t *testing.T) {
	c := newTestCache(t)
	dir := t.TempDir()
	paths := []string{writeKernel(t, dir, "a", LZ4), writeKernel(t, dir, "b", XZ), writeKernel(t, dir, "c", LZ4)}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() { assert.NoError(t, c.Fill(paths[i%len(paths)])) })
	}
	wg.Wait()
	for _, path := range paths {
		mustHit(t, c, path)
	}
	assert.Len(t, names(t, c), 3, "two kernels and the index")
}

// TestCacheProcesses lets processes fill one cache, kills some at random, and
// looks at what is left.
func TestCacheProcesses(t *testing.T) {
	if dir := os.Getenv("VOLE_TEST_FILL"); dir != "" {
		c, err := NewCache(dir)
		require.NoError(t, err)
		c.Keep = 1 // fills displace each other
		for range 20 {
			for _, path := range strings.Split(os.Getenv("VOLE_TEST_FILL_KERNELS"), ":") {
				require.NoError(t, c.Fill(path))
			}
		}
		return
	}
	exe, err := os.Executable()
	require.NoError(t, err)
	c := newTestCache(t)
	dir := t.TempDir()
	paths := []string{writeKernel(t, dir, "a", LZ4), writeKernel(t, dir, "b", Gzip)}
	start := func() *exec.Cmd {
		cmd := exec.Command(exe, "-test.run=^TestCacheProcesses$", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), "VOLE_TEST_FILL="+c.Dir(), "VOLE_TEST_FILL_KERNELS="+strings.Join(paths, ":"))
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(out.String())
			}
		})
		return cmd
	}
	steady := []*exec.Cmd{start(), start()}
	for i := range 6 {
		cmd := start()
		time.AfterFunc(time.Duration(10+7*i)*time.Millisecond, func() { cmd.Process.Kill() })
		cmd.Wait()
	}
	for _, cmd := range steady {
		assert.NoError(t, cmd.Wait())
	}
	for _, path := range paths {
		require.NoError(t, c.Fill(path))
		file, err := os.ReadFile(mustHit(t, c, path))
		require.NoError(t, err)
		checkCompact(t, makeVmlinux(), file)
	}
	assert.Len(t, names(t, c), 3)
}

// TestCacheFullDisk fills onto file systems of every size up to enough.
func TestCacheFullDisk(t *testing.T) {
	needRoot(t)
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	filled, full := 0, 0
	for pages := 1; pages < 30; pages++ {
		dir := t.TempDir()
		if err := syscall.Mount("vole", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", pages*os.Getpagesize())); err != nil {
			t.Skipf("can't mount a tmpfs: %v", err)
		}
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
		c, err := NewCache(dir)
		require.NoError(t, err)
		if err := c.Fill(path); err != nil {
			full++
			require.ErrorIs(t, err, syscall.ENOSPC)
			assert.Empty(t, names(t, c), "with %d pages", pages)
			mustMiss(t, c, path)
			continue
		}
		filled++
		mustHit(t, c, path)
	}
	assert.NotZero(t, filled)
	assert.NotZero(t, full)
}

// TestLookupLeavesTheKernelAlone watches the kernel file: a hit must not even
// open it.
func TestLookupLeavesTheKernelAlone(t *testing.T) {
	c := newTestCache(t)
	path := writeKernel(t, t.TempDir(), "vmlinuz", LZ4)
	require.NoError(t, c.Fill(path))
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	require.NoError(t, err)
	defer syscall.Close(fd)
	_, err = syscall.InotifyAddWatch(fd, path, syscall.IN_ALL_EVENTS)
	require.NoError(t, err)
	mustHit(t, c, path)
	var events [4096]byte
	_, err = syscall.Read(fd, events[:])
	require.ErrorIs(t, err, syscall.EAGAIN, "no event")
	_, err = os.ReadFile(path)
	require.NoError(t, err)
	n, err := syscall.Read(fd, events[:])
	require.NoError(t, err, "the watch works")
	require.NotZero(t, n)
}

func BenchmarkLookup(b *testing.B) {
	c := newTestCache(b)
	path := writeKernel(b, b.TempDir(), "vmlinuz", LZ4)
	require.NoError(b, c.Fill(path))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok, err := c.Lookup(path); !ok || err != nil {
			b.Fatal("a miss")
		}
	}
}

func TestForget(t *testing.T) {
	dir := t.TempDir()
	c, err := NewCache(filepath.Join(dir, "cache"))
	require.NoError(t, err)
	gone := writeKernel(t, dir, "gone", Gzip)
	require.NoError(t, c.Forget(gone), "there is no cache")
	kept := writeKernel(t, dir, "kept", LZ4)
	same := writeKernel(t, dir, "same", LZ4)
	for _, path := range []string{gone, kept, same} {
		require.NoError(t, c.Fill(path))
	}
	held := func(path string) bool {
		_, ok, err := c.Lookup(path)
		require.NoError(t, err)
		return ok
	}
	require.NoError(t, c.Forget(gone))
	assert.False(t, held(gone))
	require.NoError(t, c.Forget(same))
	assert.False(t, held(same))
	assert.True(t, held(kept), "its vmlinux was the other's too")
	left, err := filepath.Glob(filepath.Join(c.Dir(), "*"+vmlinuxSuffix))
	require.NoError(t, err)
	assert.Len(t, left, 1)
	assert.ErrorIs(t, c.Forget(filepath.Join(dir, "none")), os.ErrNotExist)
}
