package nested

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestConsole(t *testing.T) {
	var c console
	write := func(s string) {
		_, err := c.Write([]byte(s))
		require.NoError(t, err)
	}
	write("[ 1.0] one\r\n[ 2.0] two\r\n")
	assert.False(t, c.lockedUp())
	assert.Equal(t, "[ 2.0] two", c.last(1))
	write("[ 9.0] watchdog: BUG: soft lock")
	assert.False(t, c.lockedUp())
	write("up - CPU#1 stuck for 22s! [kworker/1:1:40]\r\n")
	assert.True(t, c.lockedUp())
	write(strings.Repeat("x", 3*consoleKeep))
	assert.Len(t, c.tail, consoleKeep)
}

// TestWatch: how an emulated host's end is told, also in mid-frame.
func TestWatch(t *testing.T) {
	const stuck = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!\n"
	eof, cut, dead := event{err: io.EOF}, event{err: io.ErrUnexpectedEOF}, event{dead: true}
	tests := []struct {
		name, console string
		events        []event
		want          error
	}{
		{"vanished", "", []event{eof, dead}, errVanish},
		{"vanished in mid-frame", "", []event{cut, dead}, errVanish},
		{"vanished, seen late", "", []event{dead}, errVanish},
		{"locked up", stuck, []event{eof}, errLockup},
		{"locked up in mid-frame", stuck, []event{cut}, errLockup},
		{"nonsense", "", []event{{err: errFrame}}, errFrame},
		{"exit", stuck, []event{{frame: frameExit, data: []byte("{}")}}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var m machine
			_, err := m.console.Write([]byte(test.console))
			require.NoError(t, err)
			events := make(chan event, len(test.events))
			for _, e := range test.events {
				events <- e
			}
			_, err = m.watch(t.Context(), &exec.Cmd{}, events)
			assert.ErrorIs(t, err, test.want)
			assert.Equal(t, test.want == errVanish || test.want == errLockup, errors.Is(err, ErrHost))
		})
	}
}

func TestStoreBelow(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	store := storeBelow([]string{out, filepath.Join(dir, "cover.out")})
	require.NoError(t, store(fileHead{Path: filepath.Join(out, "a/b"), Mode: 0o600}, []byte("x")))
	require.NoError(t, store(fileHead{Path: filepath.Join(dir, "cover.out"), Mode: 0o644}, nil))
	got, err := os.ReadFile(filepath.Join(out, "a/b"))
	require.NoError(t, err)
	assert.Equal(t, "x", string(got))
	for _, path := range []string{out + "side", filepath.Join(out, "../other"), "/etc/passwd", ""} {
		assert.Error(t, store(fileHead{Path: path}, nil), path)
	}
}

func TestManifest(t *testing.T) {
	dir := t.TempDir()
	m, err := ReadManifest(dir)
	require.NoError(t, err)
	assert.Empty(t, m.Components)
	m.Set(Component{Name: "a", Dir: "a-1"})
	m.Set(Component{Name: "b", Absent: "why"})
	m.Set(Component{Name: "a", Dir: "a-2", Packages: []Package{{Name: "p", Version: "1", SHA256: "00"}}})
	require.NoError(t, m.Write(dir))
	again, err := ReadManifest(dir)
	require.NoError(t, err)
	assert.Equal(t, m, again)
	for _, damage := range []string{"", "{", `{"format":0,"components":[{"name":"a"}]}`} {
		require.NoError(t, os.WriteFile(manifestPath(dir), []byte(damage), 0o644))
		m, err := ReadManifest(dir)
		require.NoError(t, err)
		assert.Empty(t, m.Components)
	}
}

func TestCacheDir(t *testing.T) {
	t.Setenv("VOLE_TEST_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "/x")
	dir, err := CacheDir()
	require.NoError(t, err)
	assert.Equal(t, "/x/vole/test", dir)
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "/h")
	dir, err = CacheDir()
	require.NoError(t, err)
	assert.Equal(t, "/h/.cache/vole/test", dir)
	t.Setenv("HOME", "")
	dir, err = CacheDir()
	require.NoError(t, err)
	assert.True(t, filepath.IsAbs(dir))
	t.Setenv("VOLE_TEST_CACHE", "/elsewhere")
	dir, err = CacheDir()
	require.NoError(t, err)
	assert.Equal(t, "/elsewhere", dir)
}

func TestKernelNames(t *testing.T) {
	tests := []struct{ file, name, release string }{
		{"vmlinuz-6.1.0-50-cloud-amd64", KernelCloud61, "6.1.0-50-cloud-amd64"},
		{"vmlinuz-6.1.0-50-amd64", KernelGeneric61, "6.1.0-50-amd64"},
		{"vmlinuz-6.12.9+deb12-cloud-amd64", KernelCloud612, "6.12.9+deb12-cloud-amd64"},
		{"vmlinuz-6.1.0-50-rt-amd64", "kernel-6.1-rt", "6.1.0-50-rt-amd64"},
		{"vmlinuz-6.1.0-50-arm64", "", ""},
	}
	for _, test := range tests {
		k, ok := kernelOf("/tree", "/tree/boot/"+test.file)
		assert.Equal(t, test.name != "", ok, test.file)
		assert.Equal(t, test.name, k.Name, test.file)
		assert.Equal(t, test.release, k.Release, test.file)
	}
}

func TestAssetErrorsNameTheCommand(t *testing.T) {
	t.Setenv("VOLE_TEST_CACHE", t.TempDir())
	t.Setenv("VOLE_BIN", "")
	for _, name := range []string{AssetBusybox, AssetVole, KernelCloud61, KernelDefault, "modules-6.1-cloud"} {
		_, err := Asset(name)
		assert.ErrorIs(t, err, ErrNotFetched, name)
		assert.ErrorContains(t, err, "`make ", name)
	}
	_, err := Asset("nonsense")
	assert.Error(t, err)
	assert.False(t, errors.Is(err, ErrNotFetched))
}

func TestTestOutputs(t *testing.T) {
	assert.Equal(t, []string{"/d/c.out", "/abs/cpu"}, TestOutputs("/d",
		[]string{"-test.v=true", "-test.coverprofile=c.out", "--test.cpuprofile=/abs/cpu", "-coverprofile=other", "-test.trace="}))
	assert.Equal(t, []string{"/o/c.out"}, TestOutputs("/d", []string{"-test.coverprofile=c.out", "-test.outputdir=/o"}))
}
