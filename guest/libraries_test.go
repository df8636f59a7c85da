package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/guest/wire"
)

// unpack extracts an image's files, directories and links.
func unpack(t testing.TB, i *Initramfs) string {
	t.Helper()
	dir := t.TempDir()
	r := initramfs.NewReader(io.NewSectionReader(i, 0, i.Size()))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return dir
		}
		require.NoError(t, err)
		path := filepath.Join(dir, h.Name)
		switch h.Mode.Type() {
		case fs.ModeDir:
			require.NoError(t, os.MkdirAll(path, 0o755))
		case fs.ModeSymlink:
			require.NoError(t, os.Symlink(h.Target, path))
		case 0:
			b, err := io.ReadAll(r)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, b, h.Mode.Perm()))
		}
	}
}

// dynamicInit builds an init that needs the C library.
func dynamicInit(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("needs gcc")
	}
	exe := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-ldflags=-linkmode=external", "-o", exe, "./testdata/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return exe
}

func TestAgentArchive(t *testing.T) {
	exe := dynamicInit(t)
	_, err := Archive(exe)
	require.ErrorIs(t, err, ErrDynamic)

	config := wire.Config{Port: 5, Secret: wire.NewSecret(), Modules: []string{"lib/modules/a.ko"}, Hostname: "x"}
	i, err := AgentArchive(exe, config)
	require.NoError(t, err)
	defer i.Close()
	dir := unpack(t, i)
	name := filepath.Join(dir, wire.ConfigFile)
	got, err := takeConfig(name)
	require.NoError(t, err)
	assert.Equal(t, config, got)
	assert.True(t, config.Secret.Equal(got.Secret))
	assert.NoFileExists(t, name)
	_, err = takeConfig(name)
	require.ErrorIs(t, err, fs.ErrNotExist)

	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	// In there nothing else is needed for it to run.
	cmd := exec.Command("/init")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
	cmd.Dir, cmd.Env = "/", []string{}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	assert.Equal(t, "vole guest: this process is not PID 1 of a guest of vole's, so it does nothing\n", string(out))
}

// TestAgentArchiveOfEnvironment: in the guest there is no LD_LIBRARY_PATH, and the program
// lies elsewhere.
func TestAgentArchiveOfEnvironment(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("needs gcc")
	}
	dir := t.TempDir()
	for _, d := range []string{"env", "app/lib"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	gcc := func(source string, args ...string) {
		t.Helper()
		cmd := exec.Command("gcc", append([]string{"-x", "c", "-", "-Wl,--no-as-needed"}, args...)...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(source)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	// liba is found by LD_LIBRARY_PATH alone, libb beside it, and libc by the program.
	gcc("int b(void) { return 4; }", "-shared", "-fPIC", "-o", "env/libvoleb.so")
	gcc("int b(void); int a(void) { return b() + 2; }", "-shared", "-fPIC", "-o", "env/libvolea.so", "-Lenv", "-lvoleb", "-Wl,-rpath,$ORIGIN")
	gcc("int c(void) { return 1; }", "-shared", "-fPIC", "-o", "app/lib/libvolec.so")
	program := func(args ...string) {
		gcc("int a(void); int c(void); int main(void) { return a() + c(); }", append(args, "-o", "app/exe", "-Lenv", "-Lapp/lib", "-lvolea", "-lvolec",
			"-Wl,-rpath,$ORIGIN/lib", "-Wl,-rpath-link,env")...)
	}
	program()
	exe := filepath.Join(dir, "app/exe")
	usual, err := interpreter(exe)
	require.NoError(t, err)
	// One in a directory of its own, as Nix has it.
	text, err := os.ReadFile(usual)
	require.NoError(t, err)
	loader := filepath.Join(dir, "loader", filepath.Base(usual))
	require.NoError(t, os.Mkdir(filepath.Dir(loader), 0o755))
	require.NoError(t, os.WriteFile(loader, text, 0o755))
	program("-Wl,--dynamic-linker=" + loader)
	_, err = AgentArchive(exe, wire.Config{})
	require.ErrorIs(t, err, ErrLibrary)

	t.Setenv("LD_LIBRARY_PATH", "/nowhere:"+filepath.Join(dir, "env"))
	// As vole names itself, the program is a link.
	link := filepath.Join(t.TempDir(), "exe")
	require.NoError(t, os.Symlink(exe, link))
	i, err := AgentArchive(link, wire.Config{})
	require.NoError(t, err)
	defer i.Close()
	root := unpack(t, i)
	for _, name := range []string{"libvolea.so", "libvoleb.so", "libvolec.so"} {
		_, err := os.Lstat(filepath.Join(root, filepath.Dir(loader), name))
		assert.NoError(t, err)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command("/init")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir, cmd.Env = "/", []string{}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	assert.Equal(t, 7, exit.ExitCode(), "%s", out)
}

// The configuration is for root alone, and nothing else in the archive, nor what says where
// it is, has the secret.
func TestConfigIsRoots(t *testing.T) {
	exe, err := os.Executable()
	require.NoError(t, err)
	config := wire.Config{Secret: wire.NewSecret()}
	i, err := AgentArchive(exe, config)
	require.NoError(t, err)
	defer i.Close()
	text, err := config.Secret.MarshalText()
	require.NoError(t, err)
	r := initramfs.NewReader(io.NewSectionReader(i, 0, i.Size()))
	found := 0
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		if h.Name == wire.ConfigFile {
			found++
			assert.Equal(t, fs.FileMode(0o400), h.Mode)
			assert.Zero(t, h.UID)
			assert.Zero(t, h.GID)
			assert.Contains(t, string(b), string(text))
			continue
		}
		assert.False(t, bytes.Contains(b, text) || bytes.Contains(b, config.Secret[:]), h.Name)
	}
	assert.Equal(t, 1, found)
}

// What is wrong with a configuration is said without what is in it.
func TestBadConfig(t *testing.T) {
	name := filepath.Join(t.TempDir(), "agent.json")
	for _, text := range []string{`{"secret":"c2VjcmV0"}`, `{"secret":"c2VjcmV0`, `{"secret":["c2VjcmV0"]}`} {
		require.NoError(t, os.WriteFile(name, []byte(text), 0o400))
		_, err := takeConfig(name)
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "c2VjcmV0")
		assert.NoFileExists(t, name)
	}
}

func TestAgentArchiveFails(t *testing.T) {
	_, err := AgentArchive("/nonexistent", wire.Config{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	text := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(text, bytes.Repeat([]byte("text "), 100), 0o755))
	_, err = AgentArchive(text, wire.Config{})
	require.ErrorIs(t, err, ErrNotExecutable)
}

// machine is a file system for a loader.
type machine struct {
	objects map[string]object
	files   map[string]string
}

func (m machine) Object(name string) (object, error) {
	if o, ok := m.objects[name]; ok {
		return o, nil
	}
	return object{}, fs.ErrNotExist
}

func (m machine) ReadFile(name string) ([]byte, error) {
	if s, ok := m.files[name]; ok {
		return []byte(s), nil
	}
	return nil, fs.ErrNotExist
}

func (m machine) Glob(pattern string) (names []string) {
	for name := range m.files {
		if ok, _ := filepath.Match(pattern, name); ok {
			names = append(names, name)
		}
	}
	return names
}

func needs(names ...string) object { return object{needed: names} }

func TestLoader(t *testing.T) {
	const interp = "/lib64/ld-linux-x86-64.so.2"
	cache := cacheOf([][2]string{{"libx.so", "/opt/cached/libx.so"}, {"libgone.so", "/gone/libgone.so"}})
	here, err := os.Getwd()
	require.NoError(t, err)
	for _, c := range []struct {
		name    string
		objects map[string]object
		files   map[string]string
		want    []library
		missing string
		env     string
	}{
		{"none", map[string]object{"/app/exe": {}}, nil, nil, "", ""},
		{"the interpreter's own name", map[string]object{"/app/exe": needs("ld-linux-x86-64.so.2")}, nil, nil, "", ""},
		{"usual directory", map[string]object{"/app/exe": needs("libx.so"), "/usr/lib/libx.so": {}}, nil,
			[]library{{"libx.so", "/usr/lib/libx.so", false}}, "", ""},
		{"the cache comes first", map[string]object{"/app/exe": needs("libx.so"), "/lib/libx.so": {}, "/opt/cached/libx.so": {}},
			map[string]string{"/etc/ld.so.cache": cache}, []library{{"libx.so", "/opt/cached/libx.so", true}}, "", ""},
		{"the cache is out of date", map[string]object{"/app/exe": needs("libgone.so"), "/lib/libgone.so": {}},
			map[string]string{"/etc/ld.so.cache": cache}, []library{{"libgone.so", "/lib/libgone.so", false}}, "", ""},
		{"ld.so.conf without a cache", map[string]object{"/app/exe": needs("libx.so"), "/opt/b/libx.so": {}},
			map[string]string{"/etc/ld.so.conf": "# no\n/opt/a\ninclude ld.so.conf.d/*.conf\n", "/etc/ld.so.conf.d/b.conf": "/opt/b # yes\n"},
			[]library{{"libx.so", "/opt/b/libx.so", true}}, "", ""},
		{"runpath", map[string]object{"/app/exe": {needed: []string{"libx.so"}, runpath: []string{"$ORIGIN/lib", "relative"}}, "/app/lib/libx.so": needs("liby.so"), "/lib/liby.so": {}, "/app/lib/liby.so": {}}, nil,
			[]library{{"libx.so", "/app/lib/libx.so", true}, {"liby.so", "/lib/liby.so", false}}, "", ""},
		{"rpath goes on", map[string]object{"/app/exe": {needed: []string{"libx.so"}, rpath: []string{"${ORIGIN}/lib"}}, "/app/lib/libx.so": needs("liby.so"), "/app/lib/liby.so": {}}, nil,
			[]library{{"libx.so", "/app/lib/libx.so", true}, {"liby.so", "/app/lib/liby.so", true}}, "", ""},
		{"a path", map[string]object{"/app/exe": needs("/x/liby.so"), "/x/liby.so": {}}, nil, []library{{"/x/liby.so", "/x/liby.so", false}}, "", ""},
		{"a circle", map[string]object{"/app/exe": needs("liba.so"), "/lib/liba.so": needs("libb.so"), "/lib/libb.so": needs("liba.so")}, nil,
			[]library{{"liba.so", "/lib/liba.so", false}, {"libb.so", "/lib/libb.so", false}}, "", ""},
		{"missing", map[string]object{"/app/exe": needs("liba.so"), "/lib/liba.so": needs("libnone.so")}, nil, nil, "libnone.so, which /lib/liba.so needs", ""},
		{"the environment, before the cache", map[string]object{"/app/exe": needs("libx.so"), "/env/b/libx.so": {}, "/opt/cached/libx.so": {}},
			map[string]string{"/etc/ld.so.cache": cache}, []library{{"libx.so", "/env/b/libx.so", true}}, "", "/env/a:/env/b"},
		{"the environment, before RUNPATH", map[string]object{"/app/exe": {needed: []string{"libx.so"}, runpath: []string{"/run"}}, "/run/libx.so": {}, "/env/libx.so": {}}, nil,
			[]library{{"libx.so", "/env/libx.so", true}}, "", "/env"},
		{"the environment, after RPATH", map[string]object{"/app/exe": {needed: []string{"libx.so"}, rpath: []string{"/r"}}, "/r/libx.so": {}, "/env/libx.so": {}}, nil,
			[]library{{"libx.so", "/r/libx.so", true}}, "", "/env"},
		{"RPATH does not count beside RUNPATH", map[string]object{"/app/exe": {needed: []string{"libx.so"}, rpath: []string{"/r"}, runpath: []string{"/run"}}, "/r/libx.so": {}, "/env/libx.so": {}}, nil,
			[]library{{"libx.so", "/env/libx.so", true}}, "", "/env"},
		{"the environment, for all", map[string]object{"/app/exe": needs("libx.so"), "/env/libx.so": needs("liby.so"), "/env/liby.so": {}, "/lib/liby.so": {}}, nil,
			[]library{{"libx.so", "/env/libx.so", true}, {"liby.so", "/env/liby.so", true}}, "", "/env"},
		{"an unusual directory of this loader's", map[string]object{"/app/exe": needs("libx.so"), "/usr/lib/x86_64-linux-gnu/libx.so": {}}, nil,
			[]library{{"libx.so", "/usr/lib/x86_64-linux-gnu/libx.so", true}}, "", "/usr/lib/x86_64-linux-gnu"},
		{"semicolons and origin", map[string]object{"/app/exe": needs("libx.so"), "/app/lib/libx.so": {}}, nil,
			[]library{{"libx.so", "/app/lib/libx.so", true}}, "", "/no;$ORIGIN/lib"},
		{"a relative one, and none", map[string]object{"/app/exe": needs("libx.so", "liby.so"), here + "/lib/libx.so": {}, here + "/liby.so": {}}, nil,
			[]library{{"libx.so", here + "/lib/libx.so", true}, {"liby.so", here + "/liby.so", true}}, "", "lib:"},
		{"not in the environment", map[string]object{"/app/exe": needs("libnone.so")}, nil, nil, "libnone.so, which /app/exe needs", "/env"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLoader(machine{c.objects, c.files})
			l.path = c.env
			got, err := l.closure("/app/exe", interp)
			if c.missing != "" {
				require.ErrorIs(t, err, ErrLibrary)
				require.ErrorContains(t, err, c.missing)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

// cacheOf is an ld.so.cache with these names and paths.
func cacheOf(libs [][2]string) string {
	b := []byte(cacheMagic)
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(libs)))
	b = append(b, make([]byte, cacheHeader-len(b))...)
	strs := cacheHeader + len(libs)*cacheEntry
	var text strings.Builder
	add := func(s string) uint32 {
		at := strs + text.Len()
		text.WriteString(s + "\x00")
		return uint32(at)
	}
	for _, l := range libs {
		b = le.AppendUint32(b, cacheX86_64)
		b = le.AppendUint32(b, add(l[0]))
		b = le.AppendUint32(b, add(l[1]))
		b = append(b, make([]byte, 12)...)
	}
	return string(b) + text.String()
}

func TestParseCache(t *testing.T) {
	assert.Nil(t, parseCache(nil))
	assert.Nil(t, parseCache([]byte("something else")))
	good := cacheOf([][2]string{{"a.so", "/x/a.so"}, {"a.so", "/y/a.so"}, {"b.so", "relative"}})
	want := map[string]string{"a.so": "/x/a.so"}
	assert.Equal(t, want, parseCache([]byte(good)))
	assert.Equal(t, want, parseCache([]byte("ld.so-1.7.0\x00and an old one"+good)))
	own, err := os.ReadFile("/etc/ld.so.cache")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("this machine has no /etc/ld.so.cache")
	}
	require.NoError(t, err)
	if bytes.Contains(own, []byte(cacheMagic)) {
		assert.NotEmpty(t, parseCache(own))
	}
}

func FuzzParseCache(f *testing.F) {
	f.Add([]byte(cacheOf([][2]string{{"a.so", "/x/a.so"}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, path := range parseCache(b) {
			if name == "" || !filepath.IsAbs(path) {
				t.Fatalf("%q: %q", name, path)
			}
		}
	})
}
