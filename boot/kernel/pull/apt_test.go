package pull

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
)

// fakeGet is an apt-get that knows what is in the directory $FAKE: packages as files, "old" while
// the host's lists are, and "lists" that are to be had. It writes its arguments to the log.
const fakeGet = `#!/bin/sh
fake=$(dirname "$0")
echo "apt-get $*" | sed 's/-c [^ ]* -q //' >>"$fake/log"
private=
while [ $# -gt 0 ]; do
	case $1 in
	-c) grep -q '^Dir::State::status' "$2" || exit 99; shift ;;
	-o) case $2 in Dir::State::Lists=*) private=${2#*=} ;; esac; shift ;;
	-q|--) ;;
	*) break ;;
	esac
	shift
done
case $1 in
update)
	[ -e "$fake/no-network" ] && { echo "E: no network" >&2; exit 100; }
	[ -n "$private" ] || exit 98
	touch "$private/new"; exit 0 ;;
esac
if [ -e "$fake/old" ] && ! [ -e "$private/new" ]; then
	echo "W: a warning" >&2; echo "E: Unable to locate package $*" >&2; exit 100
fi
case "$*" in
"-s install "*)
	[ -e "$fake/unknown" ] && { echo "E: Unable to locate package x" >&2; exit 100; }
	echo "Reading package lists..."
	echo "Inst libc6 (2.36 Debian [amd64])"
	echo "Inst linux-image-6.12.9-cloud-amd64 (6.12.9-1 Debian:12 [amd64])"
	echo "Inst linux-base [1] (4.9 Debian [all])"
	echo "Inst linux-image-cloud-amd64 (6.12.9-1 Debian:12 [amd64])"
	echo "Conf linux-image-cloud-amd64 (6.12.9-1 Debian:12 [amd64])" ;;
"--print-uris download "*)
	echo "'http://host/image_6.12.9-1_amd64.deb' image_6.12.9-1_amd64.deb $(stat -c %s "$fake/image_6.12.9-1_amd64.deb") SHA256:00"
	echo "'http://host/meta_6.12.9-1_amd64.deb' meta_6.12.9-1_amd64.deb $(stat -c %s "$fake/meta_6.12.9-1_amd64.deb") SHA256:00" ;;
"download "*)
	[ -e "$fake/hang" ] && { touch "$fake/hanging"; sleep 100; }
	[ -e "$fake/gone" ] && ! [ -e "$private/new" ] && { echo "E: 404 Not Found" >&2; exit 100; }
	cp "$fake"/*.deb . ;;
*) echo "E: what is $*?" >&2; exit 100 ;;
esac
`

const fakeCache = `#!/bin/sh
fake=$(dirname "$0")
echo "apt-cache $*" | sed 's/-c [^ ]* -q //' >>"$fake/log"
cat "$fake/names"
`

func fakeApt(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"apt-get": fakeGet, "apt-cache": fakeCache} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	writeFile(t, filepath.Join(dir, "image_6.12.9-1_amd64.deb"), deb(t, testRelease, ".xz"))
	writeFile(t, filepath.Join(dir, "meta_6.12.9-1_amd64.deb"), debOf(t, ".xz", tarball(t)))
	writeFile(t, filepath.Join(dir, "names"), []byte("linux-image-6.12.9-cloud-amd64\nlinux-image-6.12.9-cloud-amd64-dbg\n"))
	return dir
}

// aptLog is what was run, without what changes.
func aptLog(t *testing.T, dir string, opt Options) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, "log")))
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(string(b), opt.Dir, "DIR")), "\n")
}

func TestPullApt(t *testing.T) {
	const (
		resolve  = "apt-get -s install -- linux-image-cloud-amd64"
		uris     = "apt-get --print-uris download -- linux-image-6.12.9-cloud-amd64=6.12.9-1 linux-image-cloud-amd64=6.12.9-1"
		download = "apt-get download -- linux-image-6.12.9-cloud-amd64=6.12.9-1 linux-image-cloud-amd64=6.12.9-1"
		private  = "-o Dir::State::Lists=DIR/.work/apt/lists "
		id       = "linux-image-6.12.9-cloud-amd64=6.12.9-1 linux-image-cloud-amd64=6.12.9-1"
	)
	own := func(command string) string { return strings.Replace(command, "apt-get ", "apt-get "+private, 1) }
	for name, c := range map[string]struct {
		name string
		host []string // the state of the archive
		log  []string
		err  error
		says string
	}{
		"a metapackage":      {"debian", nil, []string{resolve, uris, download}, nil, ""},
		"a package":          {"linux-image-6.12.9-cloud-amd64", nil, []string{"apt-get -s install -- linux-image-6.12.9-cloud-amd64", uris, download}, nil, ""},
		"a release":          {"linux-image-amd64/stable", nil, []string{"apt-get -s install -t stable -- linux-image-amd64", uris, download}, nil, ""},
		"a version":          {"linux-image-amd64=6.12.9-1", nil, []string{"apt-get -s install -- linux-image-amd64=6.12.9-1", uris, download}, nil, ""},
		"a kernel's version": {"6.12", nil, []string{"apt-cache pkgnames -- linux-image-6.12", "apt-get -s install -- linux-image-6.12.9-cloud-amd64", uris, download}, nil, ""},
		"no lists":           {"debian", []string{"old"}, []string{resolve, own("apt-get update"), own(resolve), own(uris), own(download)}, nil, ""},
		"old lists":          {"debian", []string{"gone"}, []string{resolve, uris, download, own("apt-get update"), own(resolve), own(uris), own(download)}, nil, ""},
		"unknown":            {"debian", []string{"unknown"}, []string{resolve, own("apt-get update"), own(resolve)}, ErrNotFound, "Unable to locate package x"},
		"no lists, no network": {"debian", []string{"old", "no-network"}, []string{resolve, own("apt-get update"), own(resolve)}, nil,
			"can't be updated: apt-get: no network"},
		"no such version": {"6.13", nil, []string{"apt-cache pkgnames -- linux-image-6.13", own("apt-get update"), strings.Replace("apt-cache pkgnames -- linux-image-6.13", "apt-cache ", "apt-cache "+private, 1)}, ErrNotFound, "linux-image-6.13"},
	} {
		t.Run(name, func(t *testing.T) {
			opt := testOptions(t)
			opt.apt = fakeApt(t)
			for _, f := range c.host {
				writeFile(t, filepath.Join(opt.apt, f), nil)
			}
			r, err := Pull(t.Context(), source(t, c.name), opt)
			assert.Equal(t, c.log, aptLog(t, opt.apt, opt))
			if c.err != nil || c.says != "" {
				require.ErrorContains(t, err, c.says)
				if c.err != nil {
					assert.ErrorIs(t, err, c.err)
				}
				assert.NotContains(t, err.Error(), "\n")
				for _, n := range names(t, opt.Dir) {
					assert.Regexp(t, "^.work/apt/(updated|lists/new)$", n)
				}
				return
			}
			require.NoError(t, err)
			assert.Equal(t, id, r.ID)
			assert.Equal(t, testRelease, r.Release)
			assert.NotEmpty(t, r.ModulesDir)
			assert.Len(t, r.Parts, 2)

			r, err = Pull(t.Context(), source(t, c.name), opt)
			require.NoError(t, err)
			assert.True(t, r.Present)
			assert.NotContains(t, strings.Join(aptLog(t, opt.apt, opt), "\n"), "update", "the lists are fresh")
		})
	}
}

// TestPullRealApt fetches Debian's kernel by this machine's apt, in `make soak`: it has what
// a guest of `vole exec` needs.
func TestPullRealApt(t *testing.T) {
	if os.Getenv("VOLE_SUITE") != "soak" {
		t.Skip("it downloads 30 MB: in make soak only")
	}
	if b, err := os.ReadFile("/etc/os-release"); err != nil || !bytes.Contains(b, []byte("ID=debian\n")) {
		t.Skip("this machine is not a Debian")
	}
	opt := testOptions(t)
	r, err := Pull(t.Context(), source(t, "debian"), opt)
	require.NoError(t, err)
	require.NotEmpty(t, r.ModulesDir)
	release, err := kernel.Release(r.Path)
	require.NoError(t, err)
	assert.Equal(t, r.Release, release)
	d, err := initramfs.OpenModules(r.ModulesDir)
	require.NoError(t, err)
	_, err = d.Select(initramfs.SelectOptions{}, "virtio_pci", "virtio_mmio", "virtiofs", "vmw_vsock_virtio_transport", "overlay")
	assert.NoError(t, err)
	r, err = Pull(t.Context(), source(t, "debian"), opt)
	require.NoError(t, err)
	assert.True(t, r.Present)
}

func TestPullAptEnded(t *testing.T) {
	opt := testOptions(t)
	opt.apt = fakeApt(t)
	writeFile(t, filepath.Join(opt.apt, "hang"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opt.Progress = func(p Progress) {
		if _, err := os.Stat(filepath.Join(opt.apt, "hanging")); err == nil {
			cancel()
		}
	}
	_, err := Pull(ctx, source(t, "debian"), opt)
	require.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, entries(t, opt.Dir))
}

func TestPullWithoutApt(t *testing.T) {
	opt := testOptions(t)
	opt.apt = t.TempDir()
	_, err := Pull(t.Context(), source(t, "debian"), opt)
	require.ErrorIs(t, err, ErrUnavailable)
	assert.ErrorContains(t, err, "name an OCI image")
	assert.Empty(t, entries(t, opt.Dir))
}

func TestAptOutput(t *testing.T) {
	assert.Equal(t, []aptPackage{{"a", "1"}, {"b:i386", "2:3+x"}, {"c", "4"}},
		parseInst("x\nInst a (1 Debian [amd64])\nInst b:i386 [1] (2:3+x D, E [i386]) []\nInst a (1 x)\nInst c (4)\nInst d\nInst\nConf a (1)\n"))
	assert.Equal(t, []aptFile{{"a_1%3a2_amd64.deb", 5}},
		parseURIs("'http://x y/a' a_1%3a2_amd64.deb 5 SHA256:00\n'u' ../x.deb 5 S\n'u' x.txt 5\n'u' x.deb -5\n'u' x.deb\nu x.deb 5\n"))
	assert.Equal(t, "one; two", aptErrors("W: x\nE: one\nE: two\nlast\n", nil))
	assert.Equal(t, "last", aptErrors("first\nlast\n", nil))
	assert.Equal(t, "file does not exist", aptErrors("", os.ErrNotExist))
}

func TestChooseVersion(t *testing.T) {
	list := strings.Fields(`linux-image-6.1.0-56-amd64 linux-image-6.12-cloud-amd64 linux-image-6.12.117+deb12-amd64 linux-image-6.12.117+deb12-cloud-amd64
		linux-image-6.12.117+deb12-cloud-amd64-dbg linux-image-6.12.117+deb12-cloud-amd64-unsigned linux-image-6.12.117+deb12-rt-amd64
		linux-image-6.12.9+deb12-cloud-amd64 linux-image-6.8.0-31-generic linux-image-6.8.0-40-generic linux-image-amd64 linux-image-6.5.0-rt-amd64`)
	for version, want := range map[string]string{
		"6.12":                 "linux-image-6.12.117+deb12-cloud-amd64",
		"6.12.9":               "linux-image-6.12.9+deb12-cloud-amd64",
		"6.1":                  "linux-image-6.1.0-56-amd64",
		"6":                    "linux-image-6.12.117+deb12-cloud-amd64",
		"6.1.0-56-amd64":       "linux-image-6.1.0-56-amd64",
		"6.8":                  "linux-image-6.8.0-40-generic",
		"6.5":                  "linux-image-6.5.0-rt-amd64",
		"6.12.117+deb12-amd64": "linux-image-6.12.117+deb12-amd64",
		"6.2":                  "",
		"6.12.11":              "",
	} {
		assert.Equal(t, want, chooseVersion(list, version), version)
	}
}
