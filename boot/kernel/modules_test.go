package kernel

import (
	"bytes"
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

// modules makes a modules directory that depmod has seen.
func (m machine) modules(dir string) string {
	m.write(filepath.Join(dir, "modules.dep"), []byte("kernel/a.ko:\n"))
	return m.path(dir)
}

func TestModulesFor(t *testing.T) {
	const release = "6.1.0-9-amd64"
	for _, c := range []struct {
		name  string
		setup func(m machine) (image string)
		want  string
	}{
		{"of an installed kernel", func(m machine) string {
			m.modules("lib/modules/" + release)
			m.modules("lib/modules/6.1.0-10-amd64")
			return m.image("boot/vmlinuz-"+release, release)
		}, "lib/modules/" + release},
		{"in /usr", func(m machine) string {
			m.modules("usr/lib/modules/" + release)
			return m.image("boot/vmlinuz-"+release, release)
		}, "usr/lib/modules/" + release},
		{"a file elsewhere, of an installed kernel", func(m machine) string {
			m.modules("usr/lib/modules/" + release)
			return m.image("home/someone/a kernel", release)
		}, "usr/lib/modules/" + release},
		{"beside it before installed ones", func(m machine) string {
			m.modules("lib/modules/" + release)
			m.modules("pulled/x/lib/modules/" + release)
			return m.image("pulled/x/vmlinuz", release)
		}, "pulled/x/lib/modules/" + release},
		{"an unpacked package before installed ones", func(m machine) string {
			m.modules("lib/modules/" + release)
			m.modules("home/deb/usr/lib/modules/" + release)
			return m.image("home/deb/boot/vmlinuz-"+release, release)
		}, "home/deb/usr/lib/modules/" + release},
		{"among its modules", func(m machine) string {
			m.modules("home/lib/modules/" + release)
			return m.image("home/lib/modules/"+release+"/vmlinuz", release)
		}, "home/lib/modules/" + release},
		{"in a build tree", func(m machine) string {
			m.write("home/linux/include/config/kernel.release", []byte(release+"\n"))
			m.modules("home/linux/lib/modules/" + release)
			return m.image("home/linux/arch/x86/boot/bzImage", release)
		}, "home/linux/lib/modules/" + release},
		{"through a link", func(m machine) string {
			m.modules("home/deb/lib/modules/" + release)
			m.image("home/deb/boot/vmlinuz-"+release, release)
			require.NoError(m.t, os.Symlink("home/deb/boot/vmlinuz-"+release, m.path("link")))
			return m.path("link")
		}, "home/deb/lib/modules/" + release},
		{"without depmod", func(m machine) string {
			m.write("lib/modules/"+release+"/kernel/fs/a.ko", nil)
			return m.image("boot/vmlinuz-"+release, release)
		}, "lib/modules/" + release},
		{"of an ELF kernel", func(m machine) string {
			m.modules("lib/modules/" + release)
			return m.write("home/vmlinux", []byte("\x7fELF...Linux version Linux version 6.1.0-9-amd64 (x@y) (gcc)"))
		}, "lib/modules/" + release},
		{"nowhere", func(m machine) string {
			return m.image("boot/vmlinuz-"+release, release)
		}, ""},
		{"what was left behind is no modules directory", func(m machine) string {
			m.write("lib/modules/"+release+"/build/Makefile", nil)
			return m.image("boot/vmlinuz-"+release, release)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			image := c.setup(m)
			dir, err := m.finder("").ModulesFor(image)
			if c.want == "" {
				require.ErrorIs(t, err, ErrNoModules)
				assert.ErrorContains(t, err, "6.1.0-9-amd64")
				assert.ErrorContains(t, err, m.path("lib/modules/"+release))
				assert.ErrorContains(t, err, m.path("usr/lib/modules/"+release))
				assert.NotContains(t, err.Error(), "\n")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, m.path(c.want), dir)
		})
	}
}

func TestModulesForRefuses(t *testing.T) {
	m := newMachine(t)
	for name, c := range map[string]struct {
		path string
		want error
	}{
		"not there":        {m.path("none"), os.ErrNotExist},
		"no kernel":        {m.write("text", bytes.Repeat([]byte("text"), 1000)), ErrUnsupported},
		"a directory":      {t.TempDir(), ErrUnsupported},
		"nameless":         {m.image("nameless", ""), ErrUnsupported},
		"leads elsewhere":  {m.image("elsewhere", "../../etc"), ErrUnsupported},
		"hidden":           {m.image("hidden", ".."), ErrUnsupported},
		"nameless vmlinux": {m.write("vmlinux", []byte("\x7fELFLinux version %s (x)")), ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ModulesFor(c.path)
			require.ErrorIs(t, err, c.want)
			assert.ErrorContains(t, err, c.path)
		})
	}
}

func TestFindModules(t *testing.T) {
	m := newMachine(t)
	m.image("boot/vmlinuz-6.1", "6.1")
	m.image("boot/vmlinuz-6.2", "6.2")
	m.image("pulled/p/vmlinuz", "6.3")
	for _, dir := range []string{"lib/modules/6.1", "pulled/p/lib/modules/6.3"} {
		m.modules(dir)
	}
	got := map[string]string{}
	for _, k := range m.finder("").Find() {
		got[k.Version] = strings.TrimPrefix(k.Modules, m.root)
	}
	assert.Equal(t, map[string]string{"6.1": "/lib/modules/6.1", "6.2": "", "6.3": "/pulled/p/lib/modules/6.3"}, got)
}

func TestBannerRelease(t *testing.T) {
	const text = "Linux version 6.12.1-test (who@where)"
	for _, before := range []int{0, 1, 100, copyBuffer - 5, copyBuffer, copyBuffer + 100, copyBuffer + 127, copyBuffer + 128, 3 * copyBuffer} {
		b := append(bytes.Repeat([]byte{'L'}, before), text...)
		got, err := bannerRelease(bytes.NewReader(b))
		require.NoError(t, err)
		assert.Equal(t, "6.12.1-test", got, "after %d bytes", before)
		got, err = bannerRelease(iotest.OneByteReader(bytes.NewReader(append(b, make([]byte, 2*copyBuffer)...))))
		require.NoError(t, err)
		assert.Equal(t, "6.12.1-test", got, "after %d bytes, byte by byte", before)
	}
	broken := errors.New("broken")
	_, err := bannerRelease(io.MultiReader(strings.NewReader("text"), iotest.ErrReader(broken)))
	assert.ErrorIs(t, err, broken)
	got, err := bannerRelease(strings.NewReader("Linux version "))
	assert.NoError(t, err)
	assert.Empty(t, got)
}
