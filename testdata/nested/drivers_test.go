package nested

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
)

// TestDrivers: with the asset, and with any other module beside it, each kernel's
// drivers are found from the kernel and load as they do where all modules are.
func TestDrivers(t *testing.T) {
	kernels, err := Kernels()
	require.NoError(t, err)
	if len(kernels) == 0 {
		t.Skip("the cache has no kernel")
	}
	for _, k := range kernels {
		t.Run(k.Name, func(t *testing.T) {
			var p packer
			defer p.close()
			_, err := p.modules(k, []string{"loop"})
			require.NoError(t, err)
			require.NoError(t, p.asset(AssetDrivers+strings.TrimPrefix(k.Name, "kernel")))
			require.NoError(t, p.asset(k.Name))
			require.NoError(t, p.indexes())
			root := t.TempDir()
			size := unpack(t, &p.archive, root)
			image, err := os.Stat(k.Image)
			require.NoError(t, err)
			assert.Less(t, size-image.Size(), int64(4<<20), "bytes, besides the kernel")

			dir, err := kernel.Finder{Root: root}.ModulesFor(filepath.Join(root, k.Image))
			require.NoError(t, err)
			assert.Equal(t, filepath.Join(root, k.Modules), dir)
			for _, names := range [][]string{guestDrivers, {"loop"}} {
				assert.Equal(t, selected(t, k.Modules, names), selected(t, dir, names))
			}
		})
	}
	var p packer
	assert.ErrorIs(t, p.asset(AssetDrivers+"-0.1"), ErrNotFetched)
}

func selected(t *testing.T, dir string, names []string) initramfs.Selection {
	t.Helper()
	modules, err := initramfs.OpenModules(dir)
	require.NoError(t, err)
	sel, err := modules.Select(initramfs.SelectOptions{}, names...)
	require.NoError(t, err)
	return sel
}

// unpack writes the files of an archive below root and returns their size together.
func unpack(t *testing.T, a *initramfs.Archive, root string) (size int64) {
	t.Helper()
	img := a.Image()
	r := initramfs.NewReader(io.NewSectionReader(img, 0, img.Size()))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return size
		}
		require.NoError(t, err)
		to := filepath.Join(root, h.Name)
		if h.Mode.IsDir() {
			require.NoError(t, os.MkdirAll(to, 0o755))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		size += int64(len(b))
		require.NoError(t, os.WriteFile(to, b, 0o644))
	}
}
