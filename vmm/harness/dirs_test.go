package harness

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
	"github.com/vole-vmm/vole/vmm"
)

func TestOutermost(t *testing.T) {
	for name, c := range map[string]struct{ dirs, want []string }{
		"none":                    {nil, nil},
		"twice":                   {[]string{"/b", "/a", "/b"}, []string{"/a", "/b"}},
		"nested":                  {[]string{"/a/b/c", "/a", "/ab", "/a/b"}, []string{"/a", "/ab"}},
		"between":                 {[]string{"/a", "/a-b", "/a/c"}, []string{"/a", "/a-b"}},
		"all":                     {[]string{"/a", "/"}, []string{"/"}},
		"what all does not cover": {[]string{"/", "/run/x/y", "/run/x", "/dev/shm/z", "/srv"}, []string{"/", "/dev/shm/z", "/run/x"}},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, Outermost(c.dirs)) })
	}
}

func TestOwnOf(t *testing.T) {
	for path, want := range map[string]string{
		"/proc": "/proc", "/sys/kernel": "/sys", "/dev/mapper": "/dev", "/dev": "/dev",
		"/dev/shm": "", "/dev/shm/x": "", "/run": "", "/": "", "/devices": "",
	} {
		assert.Equal(t, want, OwnOf(path), path)
	}
}

// scratch makes a directory in /run or /dev/shm.
func scratch(t *testing.T, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "vole-harness-")
	if err != nil {
		t.Skipf("a directory in %s: %v", parent, err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestProgramDir(t *testing.T) {
	shm := scratch(t, shmDir)
	program := filepath.Join(shm, "p.test")
	require.NoError(t, os.WriteFile(program, nil, 0o755))
	assert.Equal(t, []string{shm}, ProgramDirs(program))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(program, link))
	assert.Equal(t, []string{shm}, ProgramDirs(link))
	run := scratch(t, runDir)
	link = filepath.Join(run, "link")
	require.NoError(t, os.Symlink(program, link))
	assert.Equal(t, []string{run, shm}, ProgramDirs(link))
	assert.Empty(t, ProgramDirs("/bin/sh"))
	assert.Empty(t, ProgramDirs("/nowhere/at/all"))
}

// TestSharedDirs: what the root's device shows and what has one of its own.
func TestSharedDirs(t *testing.T) {
	run, shm, dir := scratch(t, runDir), scratch(t, shmDir), t.TempDir()
	for _, d := range []string{run + "/work", run + "/program", shm + "/work"} {
		require.NoError(t, os.Mkdir(d, 0o755))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "w"), 0o755))
	mount := func(i string, dir string, readOnly bool) wire.Mount {
		return wire.Mount{Tag: dirTag + i, Dir: wire.Text(dir), ReadOnly: readOnly}
	}
	for name, c := range map[string]struct {
		root    Root
		want    wire.Root
		mounts  []wire.Mount
		refused string
	}{
		"run": {root: Root{Writable: []string{run + "/work"}, Visible: []string{run + "/program"}},
			want: wire.Root{Writable: wire.Texts([]string{run + "/work"}), Visible: wire.Texts([]string{run + "/program"})}},
		"visible since writable": {root: Root{Writable: []string{run}, Visible: []string{run + "/program"}},
			want: wire.Root{Writable: wire.Texts([]string{run})}},
		"memory": {root: Root{Writable: []string{"/", shm + "/work"}, Visible: []string{shm}},
			want:   wire.Root{Writable: wire.Texts([]string{"/"})},
			mounts: []wire.Mount{mount("0", shm, true), mount("1", shm+"/work", false)}},
		"below another root":     {root: Root{Dir: dir, Writable: []string{dir + "/w"}}, want: wire.Root{Writable: wire.Texts([]string{"/w"})}},
		"another root":           {root: Root{Dir: dir, Writable: []string{dir}}, want: wire.Root{Writable: wire.Texts([]string{"/"})}},
		"outside":                {root: Root{Dir: dir, Writable: []string{run}}, refused: "is not below"},
		"visible anyway":         {root: Root{Visible: []string{dir}}, refused: "can't be made visible"},
		"the kernel's":           {root: Root{Writable: []string{"/proc"}}, refused: "is to be writable, and is hidden"},
		"a share with a bad tag": {refused: "a share can't have the tag vole-root"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Machine: vmm.Config{Kernel: "/proc/self/exe"}, Root: &c.root}
			if name == "a share with a bad tag" {
				host, err := hostdir.New(hostdir.Options{Dir: dir})
				require.NoError(t, err)
				share, err := fs.New(host, fs.Options{Tag: RootTag})
				require.NoError(t, err)
				o.Machine.Devices = []virtio.Device{share}
			}
			m, err := New(o)
			if c.refused != "" {
				require.ErrorIs(t, err, ErrOptions)
				require.ErrorContains(t, err, c.refused)
				return
			}
			require.NoError(t, err)
			defer m.Close()
			c.want.Tag, c.want.Overlay = RootTag, true
			got := *m.archive.config.Root
			got.ModulesDir = ""
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.mounts, m.archive.config.Mounts)
		})
	}
}

// TestCorePattern: cores are what ulimit says.
func TestCorePattern(t *testing.T) {
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_CORE, &before))
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &before) })
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Max: before.Max}))
	assert.Empty(t, CorePattern())
	if before.Max == 0 {
		t.Skip("this process may have no cores")
	}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: before.Max, Max: before.Max}))
	assert.Equal(t, "core.%e.%p", CorePattern())
}
