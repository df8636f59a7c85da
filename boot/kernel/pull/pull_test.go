package pull

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
)

// writeFile writes a file in a directory of the test's own.
func writeFile(t testing.TB, path string, b []byte) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, b, 0o644))
	return path
}

func debFile(t testing.TB, release, suffix string) string {
	return writeFile(t, filepath.Join(t.TempDir(), "linux-image.deb"), deb(t, release, suffix))
}

func TestPullDeb(t *testing.T) {
	opt := testOptions(t)
	var steps []Step
	opt.Progress = func(p Progress) {
		if len(steps) == 0 || steps[len(steps)-1] != p.Step {
			steps = append(steps, p.Step)
		}
	}
	path := debFile(t, testRelease, ".xz")
	r, err := Pull(t.Context(), source(t, path), opt)
	require.NoError(t, err)
	assert.Equal(t, []Step{StepLooking, StepUnpacking, StepIndexing}, steps)
	assert.Equal(t, filepath.Join(opt.Dir, testRelease, "vmlinuz"), r.Path)
	assert.Equal(t, filepath.Join(opt.Dir, testRelease, "lib/modules", testRelease), r.ModulesDir)
	assert.False(t, r.Present)
	want := deb(t, testRelease, ".xz")
	assert.Equal(t, []Part{{"linux-image-test", "6.12.9-1", sumOf(want)}}, r.Parts)
	assert.Equal(t, "sha256:"+sumOf(want), r.ID)
	assert.Equal(t, sumOf(image(testRelease)), r.SHA256)
	got, err := os.ReadFile(r.Path)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(image(testRelease), got))

	// The modules are ready for use, and the kernel is found.
	d, err := initramfs.OpenModules(r.ModulesDir)
	require.NoError(t, err)
	sel, err := d.Select(initramfs.SelectOptions{}, "a", "fs-b")
	require.NoError(t, err)
	assert.Equal(t, []initramfs.Module{{Name: "b", Path: "kernel/b.ko"}, {Name: "a", Path: "kernel/a.ko"}}, sel.Load)
	found := kernel.Finder{Root: t.TempDir(), Release: "x", Pulled: opt.Dir}.Find()
	require.Len(t, found, 1)
	assert.Equal(t, r.Path, found[0].Path)
	assert.Equal(t, r.ModulesDir, found[0].Modules)

	records, err := Records(opt.Dir)
	require.NoError(t, err)
	assert.Equal(t, []Record{r.Record}, records)
	assert.Equal(t, []string{testRelease}, entries(t, opt.Dir), "nothing is left beside it")

	again, err := Pull(t.Context(), source(t, path), opt)
	require.NoError(t, err)
	assert.True(t, again.Present)
	assert.Equal(t, r.Record, again.Record)

	// What has lost its image is fetched anew.
	require.NoError(t, os.Remove(r.Path))
	again, err = Pull(t.Context(), source(t, path), opt)
	require.NoError(t, err)
	assert.False(t, again.Present)
	assert.Equal(t, r.Path, again.Path)

	require.NoError(t, Remove(t.Context(), opt.Dir, testRelease))
	assert.Empty(t, entries(t, opt.Dir))
	assert.ErrorIs(t, Remove(t.Context(), opt.Dir, testRelease), ErrNotFound)
	for _, name := range []string{"", ".", "..", ".work", "a/b", "../x"} {
		assert.ErrorIs(t, Remove(t.Context(), opt.Dir, name), ErrNotFound, name)
	}
}

func entries(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// What is pulled again from the same source replaces the old, what is of another source does not.
func TestPullReplaces(t *testing.T) {
	opt := testOptions(t)
	path := debFile(t, testRelease, "")
	first, err := Pull(t.Context(), source(t, path), opt)
	require.NoError(t, err)
	writeFile(t, path, debOf(t, "", tarball(t, entry{"boot/vmlinuz", string(image(testRelease)), ""})))
	second, err := Pull(t.Context(), source(t, path), opt)
	require.NoError(t, err)
	assert.Equal(t, first.Path, second.Path)
	assert.Empty(t, second.ModulesDir)
	assert.Equal(t, []string{testRelease}, entries(t, opt.Dir))
	assert.Equal(t, []string{"kernel.json", "vmlinuz"}, names(t, filepath.Dir(second.Path)))

	other, err := Pull(t.Context(), source(t, debFile(t, testRelease, ".gz")), opt)
	require.NoError(t, err)
	assert.NotEqual(t, first.Path, other.Path)
	assert.Equal(t, first.Release, other.Release)
	assert.NotEmpty(t, other.ModulesDir)
	assert.Len(t, entries(t, opt.Dir), 2)
	// Under its other name it is replaced too.
	require.NoError(t, os.Remove(other.Path))
	again, err := Pull(t.Context(), source(t, other.Source), opt)
	require.NoError(t, err)
	assert.Equal(t, other.Path, again.Path)
	assert.Len(t, entries(t, opt.Dir), 2)
}

func TestPullSeveralDebs(t *testing.T) {
	all := kernelFiles(testRelease)
	dir := t.TempDir()
	a := writeFile(t, filepath.Join(dir, "a.deb"), debOf(t, ".gz", tarball(t, all[:3]...)))
	b := writeFile(t, filepath.Join(dir, "b.deb"), debOf(t, ".gz", tarball(t, all[3:]...)))
	r, err := Pull(t.Context(), source(t, a, b), testOptions(t))
	require.NoError(t, err)
	assert.Len(t, r.Parts, 2)
	assert.NotEmpty(t, r.ModulesDir)
}

func TestPullRefuses(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "d.deb"), 0o755))
	for name, c := range map[string]struct {
		source string
		err    error
	}{
		"not there":         {filepath.Join(dir, "none.deb"), ErrNotFound},
		"a directory":       {filepath.Join(dir, "d.deb"), ErrArchive},
		"text":              {writeFile(t, filepath.Join(dir, "text.deb"), []byte("text")), ErrArchive},
		"no kernel":         {writeFile(t, filepath.Join(dir, "none-in.deb"), debOf(t, "", tarball(t))), ErrNoKernel},
		"no directory":      {filepath.Join(dir, "nowhere"), ErrNotFound},
		"a file":            {writeFile(t, filepath.Join(dir, "file"), nil), ErrNotFound},
		"an empty one":      {t.TempDir(), ErrNoKernel},
		"a tree, not built": {filepath.Dir(filepath.Dir(filepath.Dir(writeFile(t, filepath.Join(t.TempDir(), "include/config/kernel.release"), []byte("6.1\n"))))), ErrNoKernel},
	} {
		t.Run(name, func(t *testing.T) {
			opt := testOptions(t)
			_, err := Pull(t.Context(), source(t, c.source), opt)
			require.ErrorIs(t, err, c.err)
			assert.NotContains(t, err.Error(), "\n")
			assert.Empty(t, entries(t, opt.Dir))
		})
	}
	t.Run("a directory of others", func(t *testing.T) {
		opt := testOptions(t)
		require.NoError(t, os.Chmod(opt.Dir, 0o777))
		_, err := Pull(t.Context(), source(t, debFile(t, testRelease, "")), opt)
		assert.ErrorIs(t, err, kernel.ErrCacheDir)
	})
}

// Modules that can't be indexed are no reason to have no kernel.
func TestPullWarns(t *testing.T) {
	for name, c := range map[string]struct{ body, words string }{
		"text":           {"text", "bad.ko"},
		"much of itself": {string(module("alias=" + strings.Repeat("a", 1<<20))), "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			files := append(kernelFiles(testRelease), entry{"lib/modules/" + testRelease + "/kernel/bad.ko", c.body, ""})
			path := writeFile(t, filepath.Join(t.TempDir(), "x.deb"), debOf(t, ".gz", tarball(t, files...)))
			r, err := Pull(t.Context(), source(t, path), testOptions(t))
			require.NoError(t, err)
			require.Len(t, r.Warnings, 1)
			assert.ErrorIs(t, r.Warnings[0], initramfs.ErrModule)
			assert.ErrorContains(t, r.Warnings[0], c.words)
			assert.NotEmpty(t, r.ModulesDir)
		})
	}
}

func TestPullFillsTheCache(t *testing.T) {
	opt := testOptions(t)
	var err error
	opt.Cache, err = kernel.NewCache(t.TempDir())
	require.NoError(t, err)
	r, err := Pull(t.Context(), source(t, debFile(t, testRelease, "")), opt)
	require.NoError(t, err)
	require.Len(t, r.Warnings, 1, "the image has no vmlinux in it")
	assert.ErrorIs(t, r.Warnings[0], kernel.ErrUnsupported)
}

func TestPullEnded(t *testing.T) {
	path := debFile(t, testRelease, ".xz")
	for _, at := range []Step{StepLooking, StepUnpacking, StepIndexing} {
		t.Run(string(at), func(t *testing.T) {
			opt := testOptions(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opt.Progress = func(p Progress) {
				if p.Step == at {
					cancel()
				}
			}
			_, err := Pull(ctx, source(t, path), opt)
			require.ErrorIs(t, err, context.Canceled)
			assert.Empty(t, entries(t, opt.Dir))
		})
	}
}

// Many at once pull the same: one does the work, and all have it.
func TestPullAtOnce(t *testing.T) {
	opt := testOptions(t)
	path := debFile(t, testRelease, ".gz")
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 8 {
		wg.Go(func() {
			r, err := Pull(t.Context(), source(t, path), opt)
			assert.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			if !r.Present {
				made++
			}
		})
	}
	wg.Wait()
	assert.Equal(t, 1, made)
	assert.Equal(t, []string{testRelease}, entries(t, opt.Dir))
}

// Different ones at once, and removals in between, leave nothing half.
func TestPullAndRemoveAtOnce(t *testing.T) {
	opt := testOptions(t)
	var wg sync.WaitGroup
	for i := range 6 {
		release := "6.1." + string(rune('0'+i%3))
		path := debFile(t, release, ".gz")
		wg.Go(func() {
			for range 5 {
				r, err := Pull(t.Context(), source(t, path), opt)
				if assert.NoError(t, err) {
					err = Remove(t.Context(), opt.Dir, r.Name)
					if err != nil {
						assert.ErrorIs(t, err, ErrNotFound)
					}
				}
			}
		})
	}
	wg.Wait()
	assert.Empty(t, entries(t, opt.Dir))
}

// What a process that was killed has left is cleared away by the next, but not what is in use.
func TestSweep(t *testing.T) {
	opt := testOptions(t)
	work := filepath.Join(opt.Dir, workName)
	writeFile(t, filepath.Join(work, "killed", stageName, "vmlinuz"), nil)
	writeFile(t, filepath.Join(work, "partly", stageName, "vmlinuz"), nil)
	writeFile(t, filepath.Join(work, "partly", "x.part"), nil)
	writeFile(t, filepath.Join(work, "old", "x.part"), nil)
	old := time.Now().Add(-2 * keepParts)
	require.NoError(t, os.Chtimes(filepath.Join(work, "old"), old, old))
	writeFile(t, filepath.Join(work, "used", stageName, "vmlinuz"), nil)
	w, err := lockWork(t.Context(), opt.Dir, "used", nil)
	require.NoError(t, err)

	_, err = Pull(t.Context(), source(t, debFile(t, testRelease, "")), opt)
	require.NoError(t, err)
	assert.Equal(t, []string{"partly/x.part", "used/stage/vmlinuz"}, names(t, work))
	require.NoError(t, Clean(opt.Dir))
	assert.Equal(t, []string{"used/stage/vmlinuz"}, names(t, work))
	require.NoError(t, w.unlock(true))
	assert.Equal(t, []string{testRelease}, entries(t, opt.Dir))
	require.NoError(t, Clean(filepath.Join(t.TempDir(), "none")))
}

func TestLockWorkWaits(t *testing.T) {
	dir := t.TempDir()
	w, err := lockWork(t.Context(), dir, "x", nil)
	require.NoError(t, err)
	waiting := make(chan struct{})
	got := make(chan error)
	go func() {
		other, err := lockWork(t.Context(), dir, "x", func() { close(waiting) })
		if err == nil {
			err = other.unlock(false)
		}
		got <- err
	}()
	<-waiting
	require.NoError(t, w.unlock(false))
	require.NoError(t, <-got)

	w, err = lockWork(t.Context(), dir, "x", nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	_, err = lockWork(ctx, dir, "x", cancel)
	assert.ErrorIs(t, err, context.Canceled)
	require.NoError(t, w.unlock(false))
}

// Many take the directory in turn: nobody loses it while it is locked, or has it with another.
func TestLockWorkAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), workName, "x")
	var holders, turns atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for turns.Load() < 2000 && !t.Failed() {
				_ = os.MkdirAll(path, 0o700) // which others may remove at once
				w, err := tryLockWork(path)
				if !assert.NoError(t, err) || w == nil {
					continue
				}
				turns.Add(1)
				assert.EqualValues(t, 1, holders.Add(1))
				assert.NoError(t, os.Mkdir(w.join("mine"), 0o700))
				holders.Add(-1)
				assert.NoError(t, w.unlock(false))
			}
		})
	}
	wg.Wait()
	assert.NoDirExists(t, filepath.Dir(path))
}

func TestRecords(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "text", recordName), []byte("text"))
	writeFile(t, filepath.Join(dir, "format", recordName), []byte(`{"format": 9, "release": "6.1"}`))
	writeFile(t, filepath.Join(dir, "release", recordName), []byte(`{"format": 1, "release": "../x"}`))
	writeFile(t, filepath.Join(dir, "none", "vmlinuz"), nil)
	writeFile(t, filepath.Join(dir, ".hidden", recordName), []byte(`{"format": 1, "release": "6.1"}`))
	writeFile(t, filepath.Join(dir, "good", recordName), []byte(`{"format": 1, "release": "6.1"}`))
	list, err := Records(dir)
	require.NoError(t, err)
	assert.Equal(t, []Record{{Format: 1, Name: "good", Release: "6.1"}}, list)
	list, err = Records(filepath.Join(dir, "nowhere"))
	require.NoError(t, err)
	assert.Empty(t, list)
}

func TestPullDebURL(t *testing.T) {
	body := deb(t, testRelease, ".gz")
	f := serve(t)
	f.bodies["/pool/linux-image.deb"] = body
	f.etag = `"1"`
	url := f.URL + "/pool/linux-image.deb#sha256=" + sumOf(body)
	opt := testOptions(t)
	f.cut, f.cuts = 100, 1
	r, err := Pull(t.Context(), source(t, url), opt)
	require.NoError(t, err)
	assert.Equal(t, []string{"GET /pool/linux-image.deb", "GET /pool/linux-image.deb bytes=100-"}, f.seen())
	assert.Equal(t, f.URL+"/pool/linux-image.deb", r.Source)
	r, err = Pull(t.Context(), source(t, url), opt)
	require.NoError(t, err)
	assert.True(t, r.Present)
	assert.Empty(t, f.seen())

	_, err = Pull(t.Context(), source(t, f.URL+"/pool/linux-image.deb#sha256="+sumOf(nil)), opt)
	require.ErrorIs(t, err, ErrChecksum)
	assert.Equal(t, []string{testRelease}, entries(t, opt.Dir))
	_, err = Pull(t.Context(), source(t, f.URL+"/none.deb#sha256="+sumOf(nil)), opt)
	assert.ErrorIs(t, err, ErrNotFound)

	// Without a checksum https is what it takes.
	secure := httptest.NewUnstartedServer(f)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // it is refused once
	secure.StartTLS()
	defer secure.Close()
	opt = testOptions(t)
	_, err = Pull(t.Context(), source(t, secure.URL+"/pool/linux-image.deb"), opt)
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, err, &unknown)
	opt.web.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	r, err = Pull(t.Context(), source(t, secure.URL+"/pool/linux-image.deb"), opt)
	require.NoError(t, err)
	assert.Equal(t, "sha256:"+sumOf(body), r.ID)
}

// An interrupted download is gone on with by the next pull.
func TestPullGoesOn(t *testing.T) {
	body := deb(t, testRelease, "")
	f := serve(t)
	f.bodies["/x.deb"] = body
	f.cut, f.cuts, f.stall = 2000, 1, make(chan struct{})
	opt := testOptions(t)
	ctx, cancel := context.WithCancel(t.Context())
	opt.Progress = func(p Progress) {
		if p.Done >= 2000 {
			cancel()
		}
	}
	name := f.URL + "/x.deb#sha256=" + sumOf(body)
	_, err := Pull(ctx, source(t, name), opt)
	require.ErrorIs(t, err, context.Canceled)
	close(f.stall)
	assert.Equal(t, []string{workName}, entries(t, opt.Dir))
	f.seen()
	opt.Progress = nil
	_, err = Pull(t.Context(), source(t, name), opt)
	require.NoError(t, err)
	assert.Equal(t, []string{"GET /x.deb bytes=2000-"}, f.seen())
	assert.Equal(t, []string{testRelease}, entries(t, opt.Dir))
}

func TestPullDirectory(t *testing.T) {
	t.Run("as in a file system", func(t *testing.T) {
		dir := t.TempDir()
		for _, e := range kernelFiles(testRelease) {
			if e.link == "" {
				writeFile(t, filepath.Join(dir, "usr", e.name), []byte(e.body))
			}
		}
		require.NoError(t, os.Rename(filepath.Join(dir, "usr/boot"), filepath.Join(dir, "boot")))
		require.NoError(t, os.Symlink("usr/lib", filepath.Join(dir, "lib")))
		require.NoError(t, os.Symlink("/", filepath.Join(dir, "lib/modules", testRelease, "build")))
		r, err := Pull(t.Context(), source(t, dir), testOptions(t))
		require.NoError(t, err)
		assert.Contains(t, names(t, r.ModulesDir), "kernel/a.ko")
	})
	t.Run("an image alone", func(t *testing.T) {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "vmlinuz-x"), image(testRelease))
		r, err := Pull(t.Context(), source(t, dir), testOptions(t))
		require.NoError(t, err)
		assert.Empty(t, r.ModulesDir)
	})
}

func TestPullBuildTree(t *testing.T) {
	build := func(order string, files ...string) string {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "include/config/kernel.release"), []byte(testRelease+"\n"))
		writeFile(t, filepath.Join(dir, "arch/x86/boot/bzImage"), image(testRelease))
		writeFile(t, filepath.Join(dir, ".config"), []byte("CONFIG_X=y\n"))
		writeFile(t, filepath.Join(dir, "modules.builtin"), []byte("kernel/core.ko\n"))
		if order != "" {
			writeFile(t, filepath.Join(dir, "modules.order"), []byte(order))
		}
		for _, f := range files {
			writeFile(t, filepath.Join(dir, f), module("name=x"))
		}
		return dir
	}
	for name, c := range map[string]struct {
		dir  string
		want []string
		err  string
	}{
		"as since 6.3":          {build("fs/x.o\n", "fs/x.ko", "fs/y.ko"), []string{"kernel/fs/x.ko"}, ""},
		"as before":             {build("fs/x.ko\n", "fs/x.ko"), []string{"kernel/fs/x.ko"}, ""},
		"as before 5.10":        {build("kernel/fs/x.ko\n", "fs/x.ko"), []string{"kernel/fs/x.ko"}, ""},
		"without modules":       {build(""), nil, ""},
		"with an empty list":    {build("\n"), nil, ""},
		"modules not built":     {build("fs/x.o\n"), nil, "make modules"},
		"a list that leads out": {build("../../etc/x.ko\n"), nil, "../../etc"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Pull(t.Context(), source(t, c.dir), testOptions(t))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			if c.want == nil {
				assert.Empty(t, r.ModulesDir)
				return
			}
			for _, f := range c.want {
				assert.Contains(t, names(t, r.ModulesDir), f)
			}
			assert.NotContains(t, names(t, r.ModulesDir), "kernel/fs/y.ko")
		})
	}
	t.Run("built for another release", func(t *testing.T) {
		dir := build("")
		writeFile(t, filepath.Join(dir, "include/config/kernel.release"), []byte("6.13\n"))
		_, err := Pull(t.Context(), source(t, dir), testOptions(t))
		require.ErrorIs(t, err, ErrNoKernel)
		assert.ErrorContains(t, err, "`make` again")
	})
}
