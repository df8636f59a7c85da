package pull

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"
)

const testRelease = "6.12.9-test"

// image is the beginning of a bzImage of that release.
func image(release string) []byte {
	b := make([]byte, 0x600)
	b[0x1f1] = 2
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x020f)
	binary.LittleEndian.PutUint16(b[0x20e:], 0x200)
	copy(b[0x400:], release+" (someone@example.org) #1 SMP\x00")
	return b
}

// module is a kernel module with nothing but what it says of itself.
func module(info ...string) []byte {
	const names = "\x00.modinfo\x00.shstrtab\x00"
	modinfo := strings.Join(info, "\x00") + "\x00"
	le := binary.LittleEndian
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	body := modinfo + names
	le.PutUint64(b[0x28:], uint64(64+len(body)))
	le.PutUint16(b[0x3a:], 64)
	le.PutUint16(b[0x3c:], 3)
	le.PutUint16(b[0x3e:], 2)
	b = append(b, body...)
	for _, s := range [][4]int{{0, 0, 0, 0}, {1, 1, 64, len(modinfo)}, {10, 3, 64 + len(modinfo), len(names)}} {
		var h [64]byte
		le.PutUint32(h[0:], uint32(s[0]))
		le.PutUint32(h[4:], uint32(s[1]))
		le.PutUint64(h[0x18:], uint64(s[2]))
		le.PutUint64(h[0x20:], uint64(s[3]))
		b = append(b, h[:]...)
	}
	return b
}

// entry is one of an archive: a file, or with a link a symbolic link ("-> x")
// or a hard one ("= x").
type entry struct{ name, body, link string }

// kernelFiles are those of a package.
func kernelFiles(release string) []entry {
	dir := "./lib/modules/" + release + "/"
	return []entry{
		{"./boot/vmlinuz-" + release, string(image(release)), ""},
		{"./boot/config-" + release, "CONFIG_X=y\n", ""},
		{"./boot/System.map-" + release, "0 T x\n", ""},
		{dir + "build", "", "-> /usr/src/linux"},
		{dir + "modules.order", "kernel/b.ko\nkernel/a.ko\n", ""},
		{dir + "modules.builtin", "kernel/core.ko\n", ""},
		{dir + "kernel/a.ko", string(module("name=a", "depends=b")), ""},
		{dir + "kernel/b.ko", string(module("name=b", "alias=fs-b")), ""},
		{"./usr/share/doc/x/copyright", "text", ""},
	}
}

func tarball(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(e.body)), ModTime: time.Unix(0, 0)}
		if target, ok := strings.CutPrefix(e.link, "-> "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		} else if target, ok := strings.CutPrefix(e.link, "= "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, target, 0
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, e.body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// pack compresses by the suffix of a file name.
func pack(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch filepath.Ext(name) {
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	default:
		return data
	}
	require.NoError(t, err)
	_, err = w.Write(data)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func member(name string, data []byte) []byte {
	b := fmt.Appendf(nil, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", len(data))
	b = append(b, data...)
	if len(data)%2 == 1 {
		b = append(b, '\n')
	}
	return b
}

// debOf is a package with that data archive.
func debOf(t testing.TB, suffix string, data []byte) []byte {
	control := tarball(t, entry{"./control", "Package: linux-image-test\nVersion: 6.12.9-1\nArchitecture: amd64\n", ""})
	b := append([]byte("!<arch>\n"), member("debian-binary", []byte("2.0\n"))...)
	b = append(b, member("control.tar"+suffix, pack(t, suffix, control))...)
	return append(b, member("data.tar"+suffix, pack(t, suffix, data))...)
}

func deb(t testing.TB, release, suffix string) []byte {
	return debOf(t, suffix, tarball(t, kernelFiles(release)...))
}

// testTree is an empty tree with small limits.
func testTree(t testing.TB) *tree {
	t.Helper()
	tr, err := newTree(filepath.Join(t.TempDir(), "tree"), limits{bytes: 1 << 20, file: 256 << 10, files: 100, read: 4 << 20, names: 1000})
	require.NoError(t, err)
	t.Cleanup(tr.close)
	return tr
}

// names lists the files below a directory.
func names(t testing.TB, dir string) []string {
	t.Helper()
	list := []string{}
	require.NoError(t, filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			list = append(list, rel)
		}
		return err
	}))
	return list
}
