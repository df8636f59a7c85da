package kernel

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCompareVersions(t *testing.T) {
	ordered := []string{
		"", "2.6.32-5-amd64", "4.19.0-27-amd64", "5.10.0-9-amd64", "5.10.0-30-amd64",
		"6.1.0-9-amd64", "6.1.0-50-amd64", "6.1.0-50-cloud-amd64", "6.1.1", "6.1.10",
		"6.12-rc1", "6.12~rc2", "6.12-rc10", "6.12", "6.12-3", "6.12.9", "6.12.117+deb12-amd64", "6.12.117+deb13-amd64", "7.2",
	}
	for i, a := range ordered {
		for j, b := range ordered {
			got := CompareVersions(a, b)
			switch {
			case i < j:
				assert.Negative(t, got, "%q and %q", a, b)
			case i > j:
				assert.Positive(t, got, "%q and %q", a, b)
			default:
				assert.Zero(t, got, "%q and %q", a, b)
			}
		}
	}
	assert.Zero(t, CompareVersions("6.1", "6.1.0"))
	assert.Zero(t, CompareVersions("6.01", "6.1"))
	assert.Negative(t, CompareVersions("6.99999999999999999999998", "6.99999999999999999999999"))
	assert.Negative(t, CompareVersions("6.1-é", "6.2-é"))
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("6.1.0-50-amd64", "6.12-rc1")
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := CompareVersions(a, b), CompareVersions(b, a)
		if x < 0 != (y > 0) || x == 0 != (y == 0) || CompareVersions(a, a) != 0 {
			t.Fatalf("%q and %q: %d and %d", a, b, x, y)
		}
	})
}

// machine is a root directory with kernels in it.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T) machine {
	return machine{t, filepath.Join(t.TempDir(), "odd [root]*")}
}

func (m machine) path(name string) string { return filepath.Join(m.root, name) }

func (m machine) write(name string, contents []byte) string {
	m.t.Helper()
	require.NoError(m.t, os.MkdirAll(filepath.Dir(m.path(name)), 0o755))
	require.NoError(m.t, os.WriteFile(m.path(name), contents, 0o644))
	return m.path(name)
}

// image writes a bzImage that says it is of that version.
func (m machine) image(name, version string) string {
	b := makeImage(nil)
	text := append([]byte(version+" (someone@example.org) #1 SMP"), 0)
	copy(b[0x400:], text)
	return m.write(name, b)
}

func (m machine) finder(release string) Finder {
	return Finder{Root: m.root, Release: release, Pulled: m.path("pulled")}
}

func TestFind(t *testing.T) {
	m := newMachine(t)
	m.image("boot/vmlinuz-6.1.0-9-amd64", "6.1.0-9-amd64")
	m.image("boot/vmlinuz-6.1.0-50-amd64", "6.1.0-50-amd64")
	m.image("usr/lib/modules/6.12.5/vmlinuz", "6.12.5")
	m.image("boot/vmlinuz-renamed", "6.2.0")
	m.write("boot/vmlinuz-5.0-text", []byte("not a kernel"))
	m.image("pulled/debian-7/vmlinuz-7.2", "7.2")
	m.image("pulled/vmlinuz", "7.1")
	require.NoError(t, os.Mkdir(m.path("boot/vmlinuz-4.0-dir"), 0o755))
	require.NoError(t, os.Symlink("vmlinuz-6.1.0-50-amd64", m.path("boot/vmlinuz")))
	require.NoError(t, os.Symlink("vmlinuz-3.0", m.path("boot/vmlinuz-dangling")))
	require.NoError(t, os.Symlink("usr/lib", m.path("lib")))
	require.NoError(t, os.Symlink("a", m.path("boot/vmlinuz-1.0-loop")))
	require.NoError(t, os.Symlink("a", m.path("boot/a")))

	var got []string
	for _, k := range m.finder("6.1.0-9-amd64").Find() {
		rel, err := filepath.Rel(m.root, k.Path)
		require.NoError(t, err)
		line := []string{k.Version, rel, string(k.Source)}
		if k.Running {
			line = append(line, "running")
		}
		if k.Err != nil {
			line = append(line, "error")
		}
		got = append(got, strings.Join(line, " "))
	}
	assert.Equal(t, []string{
		"7.2 pulled/debian-7/vmlinuz-7.2 pulled",
		"7.1 pulled/vmlinuz pulled",
		"6.12.5 usr/lib/modules/6.12.5/vmlinuz modules",
		"6.2.0 boot/vmlinuz-renamed boot",
		"6.1.0-50-amd64 boot/vmlinuz-6.1.0-50-amd64 boot",
		"6.1.0-9-amd64 boot/vmlinuz-6.1.0-9-amd64 boot running",
		"5.0-text boot/vmlinuz-5.0-text boot error",
		"4.0-dir boot/vmlinuz-4.0-dir boot error",
		"1.0-loop boot/vmlinuz-1.0-loop boot error",
	}, got)
}

func TestFindNothing(t *testing.T) {
	assert.Empty(t, newMachine(t).finder("6.1").Find())
}

func TestFindOnThisMachine(t *testing.T) {
	t.Setenv(envCache, t.TempDir())
	assert.True(t, slices.IsSortedFunc(Find(), func(a, b Kernel) int { return CompareVersions(b.Version, a.Version) }))
	if k, err := Default(); err != nil {
		assert.ErrorIs(t, err, ErrNoKernel)
	} else {
		assert.NoError(t, k.Err)
	}
}

func TestDefault(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup func(m machine)
		want  string   // path
		err   []string // or words of the error
	}{
		{"the running one", func(m machine) {
			m.image("boot/vmlinuz-6.1", "6.1")
			m.image("boot/vmlinuz-6.5", "6.5")
			m.image("pulled/vmlinuz-7.0", "7.0")
		}, "boot/vmlinuz-6.1", nil},
		{"the running one among its modules", func(m machine) {
			m.image("lib/modules/6.1/vmlinuz", "6.1")
		}, "lib/modules/6.1/vmlinuz", nil},
		{"the newest pulled one", func(m machine) {
			m.image("boot/vmlinuz-6.5", "6.5")
			m.image("pulled/vmlinuz-6.9", "6.9")
			m.image("pulled/vmlinuz-6.12", "6.12")
			m.write("pulled/vmlinuz-8", []byte("damaged"))
		}, "pulled/vmlinuz-6.12", nil},
		{"pulled under the running version is no reason", func(m machine) {
			m.image("pulled/vmlinuz-6.1", "6.1")
			m.image("pulled/vmlinuz-6.2", "6.2")
		}, "pulled/vmlinuz-6.2", nil},
		{"none", func(machine) {}, "", []string{"not on this machine", "--kernel FILE", "`vole kernel pull`"}},
		{"only another", func(m machine) {
			m.image("boot/vmlinuz-6.5", "6.5")
		}, "", []string{"not on this machine", "--kernel FILE", "this machine has", "boot/vmlinuz-6.5"}},
		{"running is damaged", func(m machine) {
			m.write("boot/vmlinuz-6.1", []byte("hello"))
		}, "", []string{"boot/vmlinuz-6.1 can't be used", "too few for a bzImage"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			c.setup(m)
			k, err := m.finder("6.1").Default()
			if c.err == nil {
				require.NoError(t, err)
				assert.Equal(t, m.path(c.want), k.Path)
				return
			}
			require.ErrorIs(t, err, ErrNoKernel)
			for _, text := range c.err {
				assert.ErrorContains(t, err, text)
			}
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root reads everything")
	}
	m := newMachine(t)
	require.NoError(t, os.Chmod(m.image("boot/vmlinuz-6.1", "6.1"), 0))
	all := m.finder("6.1").Find()
	require.Len(t, all, 1)
	assert.ErrorIs(t, all[0].Err, os.ErrPermission)
	assert.Equal(t, "6.1", all[0].Version, "from its name")
	_, err := m.finder("6.1").Default()
	assert.ErrorContains(t, err, "permission denied")
}
