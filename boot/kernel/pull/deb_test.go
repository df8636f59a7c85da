package pull

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReadDeb(t *testing.T) {
	for _, suffix := range []string{"", ".gz", ".xz", ".zst"} {
		t.Run("data.tar"+suffix, func(t *testing.T) {
			tr := testTree(t)
			c, err := readDeb(t.Context(), iotest.HalfReader(bytes.NewReader(deb(t, testRelease, suffix))), tr)
			require.NoError(t, err)
			assert.Equal(t, debControl{"linux-image-test", "6.12.9-1", "amd64"}, c)
			release, err := tr.settle()
			require.NoError(t, err)
			assert.Equal(t, testRelease, release)
			assert.Contains(t, names(t, tr.dir), "lib/modules/"+testRelease+"/kernel/a.ko")
		})
	}
}

func TestReadDebRefuses(t *testing.T) {
	good := deb(t, testRelease, ".gz")
	arm := slices.Concat([]byte("!<arch>\n"), member("debian-binary", []byte("2.0\n")),
		member("control.tar", tarball(t, entry{"control", "Architecture: arm64\n", ""})))
	for name, c := range map[string]struct {
		deb []byte
		err string
	}{
		"empty":                 {nil, "not a Debian package"},
		"text":                  {[]byte("some text, not a package"), "not a Debian package"},
		"nothing in it":         {[]byte("!<arch>\n"), "ends before its data.tar"},
		"format 3":              {slices.Concat([]byte("!<arch>\n"), member("debian-binary", []byte("3.0\n"))), "format"},
		"a damaged header":      {append([]byte("!<arch>\n"), strings.Repeat("x", 60)...), "member header"},
		"a size that is none":   {append([]byte("!<arch>\n"), strings.Repeat(" ", 48)+"ten       `\n"...), "a member of"},
		"a negative size":       {append([]byte("!<arch>\n"), strings.Repeat(" ", 48)+"-10       `\n"...), "a member of"},
		"another architecture":  {arm, "arm64"},
		"no control":            {slices.Concat([]byte("!<arch>\n"), member("control.tar", tarball(t))), "no file named control"},
		"data of another kind":  {slices.Concat([]byte("!<arch>\n"), member("data.tar.bz2", []byte("BZh91AY&SY"))), "unusable"},
		"damaged compression":   {slices.Concat([]byte("!<arch>\n"), member("data.tar.gz", []byte("\x1f\x8b\x08text"))), "decompression"},
		"damaged xz":            {slices.Concat([]byte("!<arch>\n"), member("data.tar.xz", []byte("\xfd7zXZ\x00text"))), "decompression"},
		"damaged zstd":          {slices.Concat([]byte("!<arch>\n"), member("data.tar.zst", []byte("\x28\xb5\x2f\xfdtext"))), "unusable"},
		"cut in the data":       {good[:len(good)-40], "unusable"},
		"cut in the tar's end":  {debOf(t, "", nil)[:len(debOf(t, "", nil))-512], "unexpected EOF"},
		"many members":          {append([]byte("!<arch>\n"), bytes.Repeat(member("x", nil), 17)...), "no data.tar"},
		"out of the tree":       {debOf(t, ".xz", tarball(t, entry{"../../x", "x", ""})), "../../x"},
		"a bomb in the data":    {debOf(t, ".zst", tarball(t, entry{"etc/x", strings.Repeat("\x00", 8<<20), ""})), "too large"},
		"a bomb in the control": {slices.Concat([]byte("!<arch>\n"), member("control.tar.gz", pack(t, ".gz", tarball(t, entry{"x", strings.Repeat("\x00", maxControl+1), ""})))), "too large"},
		"a bomb of a module":    {debOf(t, ".xz", tarball(t, entry{"lib/modules/6.1/a.ko", strings.Repeat("\x00", 1<<20), ""})), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := testTree(t)
			_, err := readDeb(t.Context(), bytes.NewReader(c.deb), tr)
			require.ErrorIs(t, err, ErrArchive)
			assert.ErrorContains(t, err, c.err)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	t.Run("a read error stays what it is", func(t *testing.T) {
		broken := errors.New("broken")
		for at := 0; at < len(good); at += 100 {
			_, err := readDeb(t.Context(), io.MultiReader(bytes.NewReader(good[:at]), iotest.ErrReader(broken)), testTree(t))
			require.ErrorIs(t, err, broken, "after %d bytes", at)
			require.NotErrorIs(t, err, ErrArchive, "after %d bytes", at)
		}
	})
	t.Run("ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := readDeb(ctx, bytes.NewReader(good), testTree(t))
		assert.ErrorIs(t, err, context.Canceled)
	})
}

// Any package: an error, or files that are in the tree and within the limits.
func FuzzReadDeb(f *testing.F) {
	for _, suffix := range []string{"", ".gz", ".xz", ".zst"} {
		f.Add(deb(f, testRelease, suffix))
	}
	f.Add(debOf(f, "", tarball(f, entry{"boot/vmlinuz", "", "= boot/x"}, entry{"../x", "x", ""})))
	f.Add(debOf(f, "", tarball(f, entry{"lib/modules/6.1/a", "x", ""}, entry{"lib/modules/6.1/a/b", "", "= lib/modules/6.1/a"})))
	parent := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		dir, err := os.MkdirTemp(parent, "")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		l := limits{bytes: 1 << 20, file: 256 << 10, files: 100, read: 4 << 20, names: 1000}
		tr, err := newTree(filepath.Join(dir, "tree"), l)
		require.NoError(t, err)
		defer tr.close()
		if _, err := readDeb(t.Context(), bytes.NewReader(b), tr); err == nil {
			_, _ = tr.settle()
		}
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, 1, "something beside the tree")
		files, size, err := measure(tr.dir)
		require.NoError(t, err)
		require.LessOrEqual(t, files, l.files)
		require.LessOrEqual(t, size, l.bytes+l.file)
	})
}
