package pull

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPlace(t *testing.T) {
	for name, want := range map[string]string{
		"./boot/vmlinuz-6.1":           "boot/vmlinuz-6.1",
		"boot/vmlinuz":                 "boot/vmlinuz",
		"/boot/vmlinuz":                "boot/vmlinuz",
		"vmlinuz-6.1":                  "boot/vmlinuz-6.1",
		"bzImage":                      "boot/bzImage",
		"boot/config-6.1":              "boot/config-6.1",
		"config":                       "",
		"boot/System.map-6.1":          "",
		"boot/grub/vmlinuz":            "",
		"boot/vmlinuz.old":             "",
		"lib/modules/6.1/kernel/a.ko":  "lib/modules/6.1/kernel/a.ko",
		"usr/lib/modules/6.1/vmlinuz":  "lib/modules/6.1/vmlinuz",
		"./lib/modules/6.1/build":      "",
		"lib/modules/6.1/source/x":     "",
		"lib/modules/6.1":              "",
		"lib/modules/.hidden/kernel/a": "",
		"lib/modules/a b/kernel/a":     "",
		"etc/passwd":                   "",
		"":                             "",
	} {
		got, err := place(name)
		assert.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
	for _, name := range []string{"..", "../boot/vmlinuz", "boot/../../vmlinuz", "lib/modules/6.1/../../../etc/passwd", "boot/vmlinuz\x00",
		"lib/modules/6.1/" + strings.Repeat("a/", 40) + "a.ko", "boot/vmlinuz-" + strings.Repeat("a", 1024)} {
		_, err := place(name)
		assert.ErrorIs(t, err, ErrArchive, name)
	}
}

func TestAddTar(t *testing.T) {
	const big = 300 << 10
	dir := "lib/modules/6.1/"
	for name, c := range map[string]struct {
		entries []entry
		want    []string // or
		err     string
	}{
		"a package":              {kernelFiles("6.1"), []string{"boot/config-6.1", "boot/vmlinuz-6.1", dir + "kernel/a.ko", dir + "kernel/b.ko", dir + "modules.builtin", dir + "modules.order"}, ""},
		"nothing of a kernel":    {[]entry{{"etc/passwd", "x", ""}}, []string{}, ""},
		"the last one wins":      {[]entry{{"boot/vmlinuz", "1", ""}, {"boot/vmlinuz", "2", ""}}, []string{"boot/vmlinuz"}, ""},
		"a hard link":            {[]entry{{dir + "a.ko", "x", ""}, {dir + "b.ko", "", "= " + dir + "a.ko"}}, []string{dir + "a.ko", dir + "b.ko"}, ""},
		"a hard link to itself":  {[]entry{{dir + "a.ko", "x", ""}, {dir + "a.ko", "", "= " + dir + "a.ko"}}, []string{dir + "a.ko"}, ""},
		"a symbolic link":        {[]entry{{"boot/vmlinuz", "", "-> /etc/passwd"}}, []string{}, ""},
		"out by its name":        {[]entry{{"../x", "x", ""}}, nil, `"../x"`},
		"out, in the middle":     {[]entry{{dir + "../../../../x", "x", ""}}, nil, "../"},
		"a hard link out":        {[]entry{{dir + "a.ko", "", "= ../../etc/passwd"}}, nil, "passwd"},
		"a hard link elsewhere":  {[]entry{{dir + "a.ko", "", "= etc/passwd"}}, nil, "not among"},
		"a hard link to nothing": {[]entry{{dir + "a.ko", "", "= " + dir + "b.ko"}}, nil, "b.ko"},
		"a file too large":       {[]entry{{"boot/vmlinuz", strings.Repeat("x", big), ""}}, nil, "larger than"},
		"too much of all": {[]entry{{dir + "1", strings.Repeat("x", big-1<<16), ""}, {dir + "2", strings.Repeat("x", big-1<<16), ""}, {dir + "3", strings.Repeat("x", big-1<<16), ""},
			{dir + "4", strings.Repeat("x", big-1<<16), ""}, {dir + "5", strings.Repeat("x", big-1<<16), ""}}, nil, "larger than"},
		"too much that is not kept":  {[]entry{{"etc/x", strings.Repeat("x", 5<<20), ""}}, nil, "too large"},
		"a file that is a directory": {[]entry{{dir + "a", "x", ""}, {dir + "a/b", "x", ""}}, nil, "below something that is not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := testTree(t)
			err := tr.addTar(t.Context(), bytes.NewReader(tarball(t, c.entries...)), false)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				assert.Empty(t, names(t, filepath.Dir(tr.dir))[len(names(t, tr.dir)):], "beside the tree")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, names(t, tr.dir))
		})
	}
	t.Run("too many files", func(t *testing.T) {
		var entries []entry
		for i := range 101 {
			entries = append(entries, entry{dir + strings.Repeat("x", i+1), "", ""})
		}
		assert.ErrorIs(t, testTree(t).addTar(t.Context(), bytes.NewReader(tarball(t, entries...)), false), ErrArchive)
	})
	t.Run("too many entries", func(t *testing.T) {
		var entries []entry
		for range 1001 {
			entries = append(entries, entry{"etc/x", "", ""})
		}
		assert.ErrorContains(t, testTree(t).addTar(t.Context(), bytes.NewReader(tarball(t, entries...)), false), "entries")
	})
	t.Run("cut short", func(t *testing.T) {
		b := tarball(t, kernelFiles("6.1")...)
		assert.ErrorIs(t, testTree(t).addTar(t.Context(), bytes.NewReader(b[:700]), false), ErrArchive)
	})
	t.Run("a read error stays what it is", func(t *testing.T) {
		broken := errors.New("broken")
		b := tarball(t, kernelFiles("6.1")...)
		err := testTree(t).addTar(t.Context(), io.MultiReader(bytes.NewReader(b[:700]), iotest.ErrReader(broken)), false)
		assert.ErrorIs(t, err, broken)
		assert.NotErrorIs(t, err, ErrArchive)
	})
	t.Run("ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		assert.ErrorIs(t, testTree(t).addTar(ctx, bytes.NewReader(tarball(t, kernelFiles("6.1")...)), false), context.Canceled)
	})
}

// A link that is in the tree, however it got there, is not followed out.
func TestTreeHoldsAgainstLinks(t *testing.T) {
	tr := testTree(t)
	outside := t.TempDir()
	require.NoError(t, os.Symlink(outside, filepath.Join(tr.dir, "lib")))
	assert.Error(t, tr.put("lib/modules/6.1/x", strings.NewReader("x")))
	assert.Error(t, tr.remove("lib/modules"))
	assert.Empty(t, names(t, outside))
}

func TestWhiteouts(t *testing.T) {
	dir := "lib/modules/6.1/"
	base := []entry{{"boot/vmlinuz", "1", ""}, {dir + "a.ko", "x", ""}, {dir + "b.ko", "x", ""}}
	for name, c := range map[string]struct {
		marks []entry
		want  []string
	}{
		"a file":           {[]entry{{dir + ".wh.a.ko", "", ""}}, []string{"boot/vmlinuz", dir + "b.ko"}},
		"in usr":           {[]entry{{"usr/" + dir + ".wh.a.ko", "", ""}}, []string{"boot/vmlinuz", dir + "b.ko"}},
		"a directory":      {[]entry{{"./.wh.boot", "", ""}}, []string{dir + "a.ko", dir + "b.ko"}},
		"what is in one":   {[]entry{{"lib/modules/.wh..wh..opq", "", ""}, {dir + "c.ko", "", ""}}, []string{"boot/vmlinuz", dir + "c.ko"}},
		"all":              {[]entry{{".wh..wh..opq", "", ""}}, []string{}},
		"something else":   {[]entry{{"etc/.wh.passwd", "", ""}}, []string{"boot/vmlinuz", dir + "a.ko", dir + "b.ko"}},
		"what isn't there": {[]entry{{dir + ".wh.z.ko", "", ""}}, []string{"boot/vmlinuz", dir + "a.ko", dir + "b.ko"}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := testTree(t)
			require.NoError(t, tr.addTar(t.Context(), bytes.NewReader(tarball(t, base...)), true))
			require.NoError(t, tr.addTar(t.Context(), bytes.NewReader(tarball(t, c.marks...)), true))
			assert.Equal(t, c.want, names(t, tr.dir))
		})
	}
	tr := testTree(t)
	assert.ErrorIs(t, tr.addTar(t.Context(), bytes.NewReader(tarball(t, entry{"boot/../../.wh.x", "", ""})), true), ErrArchive)
}

func TestSettle(t *testing.T) {
	for name, c := range map[string]struct {
		files   map[string][]byte
		release string
		want    []string
		err     string
	}{
		"a package": {map[string][]byte{"boot/vmlinuz-6.1": image("6.1"), "boot/config-6.1": nil, "lib/modules/6.1/modules.order": nil},
			"6.1", []string{"config", "lib/modules/6.1/modules.order", "vmlinuz"}, ""},
		"without modules": {map[string][]byte{"boot/vmlinuz": image("6.1"), "boot/config": nil}, "6.1", []string{"config", "vmlinuz"}, ""},
		"among its modules": {map[string][]byte{"lib/modules/6.1/vmlinuz": image("6.1"), "lib/modules/6.1/modules.dep": nil},
			"6.1", []string{"lib/modules/6.1/modules.dep", "vmlinuz"}, ""},
		"the newest of several": {map[string][]byte{"boot/vmlinuz-6.9": image("6.9"), "boot/vmlinuz-6.12": image("6.12"), "lib/modules/6.9/modules.dep": nil, "lib/modules/6.12/modules.dep": nil},
			"6.12", []string{"lib/modules/6.12/modules.dep", "vmlinuz"}, ""},
		"others' modules":         {map[string][]byte{"boot/vmlinuz": image("6.1"), "lib/modules/6.2/modules.dep": nil}, "6.1", []string{"vmlinuz"}, ""},
		"one of two is no kernel": {map[string][]byte{"boot/vmlinuz": image("6.1"), "boot/vmlinuz-x": []byte("text")}, "6.1", []string{"vmlinuz"}, ""},
		"nothing":                 {nil, "", nil, "neither boot/vmlinuz nor"},
		"only modules":            {map[string][]byte{"lib/modules/6.2/modules.dep": nil}, "", nil, "neither boot/vmlinuz nor"},
		"no kernel":               {map[string][]byte{"boot/vmlinuz": []byte("text")}, "", nil, "boot/vmlinuz"},
		"nameless":                {map[string][]byte{"boot/vmlinuz": image("")}, "", nil, "which release"},
		"leads elsewhere":         {map[string][]byte{"boot/vmlinuz": image("../../x")}, "", nil, "which release"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := testTree(t)
			for name, b := range c.files {
				require.NoError(t, tr.put(name, bytes.NewReader(b)))
			}
			release, err := tr.settle()
			if c.err != "" {
				require.ErrorIs(t, err, ErrNoKernel)
				assert.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.release, release)
			assert.Equal(t, c.want, names(t, tr.dir))
		})
	}
}
