package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestExtractTar(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct{ name, body string }{
		{"./boot/vmlinuz-1", "image"}, {"./boot/config-1", "config"}, {"../../vmlinuz-2", "outside"},
	} {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(f.body))}))
		_, err := w.Write([]byte(f.body))
		require.NoError(t, err)
	}
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "./vmlinuz", Typeflag: tar.TypeSymlink, Linkname: "boot/vmlinuz-1"}))
	require.NoError(t, w.Close())

	tree := t.TempDir()
	image := func(file string) bool { return strings.HasPrefix(filepath.Base(file), "vmlinu") }
	require.NoError(t, extractTar(bytes.NewReader(b.Bytes()), tree, image))
	var names []string
	require.NoError(t, filepath.WalkDir(tree, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(tree, p)
			names = append(names, rel)
		}
		return err
	}))
	assert.Equal(t, []string{"boot/vmlinuz-1", "vmlinuz-2"}, names)
	got, err := os.ReadFile(filepath.Join(tree, "boot/vmlinuz-1"))
	require.NoError(t, err)
	assert.Equal(t, "image", string(got))
	assert.Error(t, extractTar(bytes.NewReader(b.Bytes()[:514]), t.TempDir(), image), "cut short")
}
