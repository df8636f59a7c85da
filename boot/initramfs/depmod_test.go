package initramfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"
)

// search looks a key up in an encoded trie as modprobe does.
func search(t *testing.T, b []byte, key string) []string {
	t.Helper()
	require.Equal(t, []byte("\xb0\x07\xf4\x57\x00\x02\x00\x01"), b[:8])
	return searchNode(b, binary.BigEndian.Uint32(b[8:]), key)
}

func searchNode(b []byte, at uint32, key string) []string {
	be := binary.BigEndian
	p := b[at&0x0fffffff:]
	if at&0x80000000 != 0 {
		prefix, _, _ := bytes.Cut(p, []byte{0})
		p = p[len(prefix)+1:]
		var ok bool
		if key, ok = strings.CutPrefix(key, string(prefix)); !ok {
			return nil
		}
	}
	if at&0x20000000 != 0 {
		first, last := p[0], p[1]
		if key != "" {
			if key[0] < first || key[0] > last || be.Uint32(p[2+4*int(key[0]-first):]) == 0 {
				return nil
			}
			return searchNode(b, be.Uint32(p[2+4*int(key[0]-first):]), key[1:])
		}
		p = p[2+4*(int(last-first)+1):]
	}
	if key != "" || at&0x40000000 == 0 {
		return nil
	}
	var values []string
	n := be.Uint32(p)
	p = p[4:]
	for range n {
		value, rest, _ := bytes.Cut(p[4:], []byte{0})
		values, p = append(values, string(value)), rest
	}
	return values
}

func TestTrie(t *testing.T) {
	for name, keys := range map[string][]string{
		"none":              nil,
		"one":               {"kvm"},
		"begin alike":       {"virtio_pci", "virtio_mmio", "virtio", "virtio_blk", "vhost"},
		"in another order":  {"virtio", "vhost", "virtio_blk", "virtio_pci", "virtio_mmio"},
		"one within one":    {"abcdef", "abc", "abcd", "a"},
		"nothing in common": {"zram", "ext4", "9p"},
		"odd characters":    {"pci:v00001AF4d*sv*sd*bc*sc*i*", "of:N*T*Cfoo[a-z]", "~"},
		"the empty one":     {"", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			root := &trie{}
			for i, k := range keys {
				root.insert(k, "value of "+k, uint32(i))
			}
			root.insert("with \x00", "", 0)
			root.insert("with \xc3\xa4", "", 0)
			b := root.encode()
			for _, k := range keys {
				assert.Equal(t, []string{"value of " + k}, search(t, b, k), "%q", k)
				assert.Empty(t, search(t, b, k+"!"), "%q", k)
			}
			assert.Empty(t, search(t, b, "nothing"))
			assert.Empty(t, search(t, b, "with \xc3\xa4"))
		})
	}
	t.Run("values of one key are in the order of their priority", func(t *testing.T) {
		root := &trie{}
		root.insert("k", "c", 3)
		root.insert("k", "a", 1)
		root.insert("k", "b", 2)
		root.insert("k", "a again", 1)
		assert.Equal(t, []string{"a", "a again", "b", "c"}, search(t, root.encode(), "k"))
	})
}

func TestIndexes(t *testing.T) {
	fsys := fstest.MapFS{
		"kernel/a.ko":      file(koFile("name=a", "depends=b-b,d", "alias=fs-a", "description=a\nb", "alias=x\nalias y z", "alias=pci:v0-[0-9]x-y*")),
		"kernel/b-b.ko.gz": file(gz(t, koFile("name=b_b", "depends=c,core"))),
		"kernel/c.ko.xz":   file(xzip(t, koFile("name=c", "softdep=pre: x post: y"))),
		"kernel/d.ko.zst":  file(zst(t, koFile("name=d", "depends=c"))),
		"modules.builtin":  text("kernel/core.ko\n"),
		"modules.order":    text("kernel/d.ko\nkernel/gone.ko\nkernel/a.o\nkernel/a.ko\nkernel/d.ko\n"),
	}
	d, err := NewModuleDir(fsys, "test")
	require.NoError(t, err)
	var steps []string
	got, err := d.Indexes(t.Context(), func(done, total int) { steps = append(steps, fmt.Sprint(done, "/", total)) })
	require.NoError(t, err)
	assert.Equal(t, []string{"1/4", "2/4", "3/4", "4/4"}, steps)
	assert.Equal(t, `kernel/d.ko.zst: kernel/c.ko.xz
kernel/a.ko: kernel/d.ko.zst kernel/b-b.ko.gz kernel/c.ko.xz
kernel/b-b.ko.gz: kernel/c.ko.xz
kernel/c.ko.xz:
`, string(got["modules.dep"]))
	assert.Equal(t, "# Aliases extracted from modules themselves.\nalias fs-a a\nalias pci:v0-[0-9]x-y* a\n", string(got["modules.alias"]))
	assert.Contains(t, string(got["modules.softdep"]), "\nsoftdep c pre: x post: y\n")
	assert.Equal(t, []string{"kernel/b-b.ko.gz: kernel/c.ko.xz"}, search(t, got["modules.dep.bin"], "b_b"))
	assert.Equal(t, []string{"a"}, search(t, got["modules.alias.bin"], "fs_a"))
	assert.Equal(t, []string{""}, search(t, got["modules.builtin.bin"], "core"))

	// With the indexes the same is selected as without.
	opt := SelectOptions{Softdeps: true}
	before, err := d.Select(opt, "a", "fs-a")
	assert.ErrorIs(t, err, ErrNoModule, "an alias takes an index")
	before, err = d.Select(opt, "a")
	require.NoError(t, err)
	for name, data := range got {
		fsys[name] = file(data)
	}
	indexed, err := NewModuleDir(fsys, "test")
	require.NoError(t, err)
	after, err := indexed.Select(opt, "fs-a")
	require.NoError(t, err)
	assert.ElementsMatch(t, before.Load, after.Load)
	assert.Equal(t, before.Absent, after.Absent)
}

func TestIndexesRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		files fstest.MapFS
		want  error
		words string
	}{
		"a circle":       {fstest.MapFS{"a.ko": file(koFile("depends=b")), "b.ko": file(koFile("depends=a"))}, ErrModuleCycle, "->"},
		"one is missing": {fstest.MapFS{"a.ko": file(koFile("depends=b"))}, ErrNoModule, "b (needed by a)"},
		"no module":      {fstest.MapFS{"a.ko": text("text")}, ErrModule, "a.ko"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := NewModuleDir(c.files, "test")
			require.NoError(t, err)
			_, err = d.Indexes(t.Context(), nil)
			require.ErrorIs(t, err, c.want)
			assert.ErrorContains(t, err, c.words)
		})
	}
	t.Run("a .modinfo that is too large", func(t *testing.T) {
		d, err := NewModuleDir(fstest.MapFS{"a.ko.zst": file(zst(t, koFile("alias="+strings.Repeat("a", maxModinfo))))}, "test")
		require.NoError(t, err)
		_, err = d.Indexes(t.Context(), nil)
		require.ErrorIs(t, err, ErrModule)
		assert.ErrorIs(t, err, errTooLarge)
		assert.ErrorContains(t, err, "a.ko.zst")
	})
	t.Run("too much in all of them", func(t *testing.T) {
		const each = maxModinfo - 1<<10
		module := file(zst(t, koFile("alias="+strings.Repeat("a", each))))
		files := fstest.MapFS{}
		for i := range maxIndex/each + 1 {
			files[fmt.Sprintf("m%d.ko.zst", i)] = module
		}
		d, err := NewModuleDir(files, "test")
		require.NoError(t, err)
		_, err = d.Indexes(t.Context(), nil)
		require.ErrorIs(t, err, ErrModule)
		assert.ErrorIs(t, err, errTooLarge)
	})
	t.Run("a chain that is too long", func(t *testing.T) {
		d, err := NewModuleDir(chain(5000), "test")
		require.NoError(t, err)
		_, err = d.Indexes(t.Context(), nil)
		require.ErrorIs(t, err, ErrModule)
		assert.ErrorIs(t, err, errTooLarge)
	})
	t.Run("a line that is too long", func(t *testing.T) {
		long := strings.Repeat("d/", 1000)
		files := fstest.MapFS{}
		for name, f := range chain(600) {
			files[long+name] = f
		}
		d, err := NewModuleDir(files, "test")
		require.NoError(t, err)
		_, err = d.Indexes(t.Context(), nil)
		require.ErrorIs(t, err, ErrModule)
		assert.ErrorContains(t, err, "modules.dep")
	})
	t.Run("ended while the index is written", func(t *testing.T) {
		d, err := NewModuleDir(chain(100), "test")
		require.NoError(t, err)
		// The reading asks once for each module and once more on each CPU.
		_, err = d.Indexes(&countdown{t.Context(), 100 + runtime.GOMAXPROCS(0)}, nil)
		assert.ErrorIs(t, err, context.Canceled)
	})
	t.Run("ended", func(t *testing.T) {
		d, err := NewModuleDir(unpacked(t), "test")
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = d.Indexes(ctx, nil)
		assert.ErrorIs(t, err, context.Canceled)
	})
}

// watchedFS knows how many files are open of which more than large bytes were read.
type watchedFS struct {
	fs.FS
	large   int
	now     atomic.Int64
	most    atomic.Int64
	reached func()
}

func (w *watchedFS) Open(name string) (fs.File, error) {
	f, err := w.FS.Open(name)
	if err != nil || !strings.Contains(name, ".ko") {
		return f, err
	}
	return &watchedFile{f, w, 0}, nil
}

type watchedFile struct {
	fs.File
	fs    *watchedFS
	total int
}

func (f *watchedFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	before := f.total
	if f.total += n; before <= f.fs.large && f.total > f.fs.large {
		now := f.fs.now.Add(1)
		for most := f.fs.most.Load(); now > most && !f.fs.most.CompareAndSwap(most, now); {
			most = f.fs.most.Load()
		}
		f.fs.reached()
	}
	return n, err
}

func (f *watchedFile) Close() error {
	if f.total > f.fs.large {
		f.fs.now.Add(-1)
	}
	return f.File.Close()
}

// TestIndexesReadWithinBounds: large modules are read one after the other, whatever the
// number of readers.
func TestIndexesReadWithinBounds(t *testing.T) {
	const readers, small = 4, 64 << 10
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(readers))
	random := rand.NewChaCha8([32]byte{})
	// What can't be packed is read from its file as it is unpacked, or some 40 KiB before.
	noise := func(n int) []byte {
		ko := bomb(n, "depends=")
		_, _ = random.Read(ko[len(koFile("depends=")):])
		return ko
	}
	files := fstest.MapFS{}
	for i := range 2 * readers {
		files[fmt.Sprintf("plain%d.ko", i)] = file(noise(200 << 10))
		files[fmt.Sprintf("packed%d.ko.gz", i)] = file(gz(t, noise(200<<10)))
		files[fmt.Sprintf("small%d.ko.gz", i)] = file(gz(t, noise(20<<10)))
	}
	within := bounds{module: 256 << 10, reading: 256<<10 + readers*small}

	t.Run("read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			// When this time is over all others have gone as far as they may.
			w := &watchedFS{FS: files, large: small + 48<<10, reached: func() { time.Sleep(time.Second) }}
			d, err := NewModuleDir(w, "R")
			require.NoError(t, err)
			d.bounds = within
			got, err := d.Indexes(t.Context(), nil)
			require.NoError(t, err)
			assert.Equal(t, len(files), bytes.Count(got["modules.dep"], []byte("\n")))
			assert.EqualValues(t, 1, w.most.Load(), "large modules at once")
		})
	})
	t.Run("ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			w := &watchedFS{FS: files, large: small + 48<<10}
			read := 0
			w.reached = func() { time.Sleep(time.Second); cancel(); read++ }
			d, err := NewModuleDir(w, "R")
			require.NoError(t, err)
			d.bounds = within
			_, err = d.Indexes(ctx, nil)
			require.ErrorIs(t, err, context.Canceled)
			assert.Equal(t, 1, read, "nobody goes on to the next one")
		})
	})
	t.Run("too large", func(t *testing.T) {
		d, err := NewModuleDir(files, "R")
		require.NoError(t, err)
		d.bounds = bounds{module: 100 << 10, reading: 100<<10 + readers*small}
		_, err = d.Indexes(t.Context(), nil)
		require.ErrorIs(t, err, ErrModule)
		require.ErrorIs(t, err, errTooLarge)
		assert.ErrorContains(t, err, "more than 102400 bytes")
	})
}

// TestWindowsAreBounded: what takes much memory to unpack is read like what is large.
func TestWindowsAreBounded(t *testing.T) {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(32<<20))
	require.NoError(t, err)
	_, err = z.Write(koFile("depends=", "alias=z"))
	require.NoError(t, err)
	require.NoError(t, z.Flush()) // or its window would be as small as it is
	require.NoError(t, z.Close())
	var x bytes.Buffer
	w, err := xz.WriterConfig{DictCap: 32 << 20}.NewWriter(&x)
	require.NoError(t, err)
	_, err = w.Write(koFile("depends=", "alias=x"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	for suffix, data := range map[string][]byte{".zst": b.Bytes(), ".xz": x.Bytes()} {
		_, err := decompress(suffix, bytes.NewReader(data), maxModule, minWindow)
		require.Error(t, err)
		assert.True(t, needsMore(err), "%s: %v", suffix, err)
		got, err := decompress(suffix, bytes.NewReader(data), maxModule, maxWindow)
		require.NoError(t, err)
		assert.Equal(t, koFile("depends=", "alias="+suffix[1:2]), got)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(64))
	files := fstest.MapFS{"a.ko.zst": file(b.Bytes()), "b.ko.xz": file(x.Bytes())}
	for i := range 62 { // as many as there are readers
		files[fmt.Sprintf("m%d.ko", i)] = file(koFile("depends="))
	}
	d, err := NewModuleDir(files, "R")
	require.NoError(t, err)
	got, err := d.Indexes(t.Context(), nil)
	require.NoError(t, err)
	assert.Contains(t, string(got["modules.alias"]), "alias z a\n")
	assert.Contains(t, string(got["modules.alias"]), "alias x b\n")
}

// chain are n modules, each of which needs the one before it.
func chain(n int) fstest.MapFS {
	files := fstest.MapFS{"m0.ko": file(koFile("depends="))}
	for i := 1; i < n; i++ {
		files[fmt.Sprintf("m%d.ko", i)] = file(koFile(fmt.Sprintf("depends=m%d", i-1)))
	}
	return files
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
