package initramfs

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// everyType has one entry of each type, and bodies of each alignment.
func everyType(t testing.TB) *Archive {
	a := new(Archive)
	for _, err := range []error{
		a.Bytes("init", 0o755, []byte("#!/bin/sh\n")),
		a.Dir("/tmp", 0o777|fs.ModeSticky),
		a.CharDevice("dev/console", 0o600, 5, 1),
		a.BlockDevice("dev/vda", 0o660, 254, 1<<20-1),
		a.Symlink("lib", "usr/lib"),
		a.Add(Entry{Name: "run/pipe", Mode: fs.ModeNamedPipe | 0o640, UID: 1000, GID: 0xfffffffe}),
		a.Add(Entry{Name: "run/socket", Mode: fs.ModeSocket | 0o700}),
		a.Add(Entry{Name: "usr/bin/su", Mode: fs.ModeSetuid | fs.ModeSetgid | 0o755}),
		a.Bytes("usr/lib/a", 0o644, nil),
		a.Bytes("usr/lib/b", 0o644, []byte("1")),
		a.Bytes("usr/lib/cc", 0o644, []byte("12")),
		a.Bytes("usr/lib/ddd", 0o644, []byte("123")),
		a.Bytes("usr/lib/eeee", 0o400, []byte("1234")),
		a.Dir("usr", 0o711),
	} {
		require.NoError(t, err)
	}
	return a
}

func imageBytes(t testing.TB, img *Image) []byte {
	var b bytes.Buffer
	n, err := img.WriteTo(&b)
	require.NoError(t, err)
	require.Equal(t, img.Size(), n)
	require.Equal(t, img.Size(), int64(b.Len()))
	return b.Bytes()
}

func TestArchiveGolden(t *testing.T) {
	got := imageBytes(t, everyType(t).Image())
	golden := filepath.Join("testdata", "every-type.cpio")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o777))
		require.NoError(t, os.WriteFile(golden, got, 0o666))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, want, got)
	assert.Equal(t, got, imageBytes(t, everyType(t).Image()), "the same entries give the same bytes")
	assert.Zero(t, len(got)%512)
}

func TestImageReadAt(t *testing.T) {
	img := everyType(t).Image()
	whole := imageBytes(t, img)
	require.NoError(t, iotest.TestReader(io.NewSectionReader(img, 0, img.Size()), whole))
	for _, size := range []int{1, 3, 110, 511, len(whole)} {
		for off := 0; off < len(whole); off++ {
			p := make([]byte, size)
			n, err := img.ReadAt(p, int64(off))
			want := whole[off:min(off+size, len(whole))]
			if !bytes.Equal(want, p[:n]) {
				t.Fatalf("%d bytes at %d differ", size, off)
			}
			if n < size {
				assert.Equal(t, io.EOF, err)
			} else {
				assert.NoError(t, err)
			}
		}
	}
	_, err := img.ReadAt(make([]byte, 1), -1)
	assert.ErrorContains(t, err, "negative offset")
	n, err := img.ReadAt(make([]byte, 1), img.Size())
	assert.Zero(t, n)
	assert.Equal(t, io.EOF, err)
}

func TestImageIsNotChangedByLaterEntries(t *testing.T) {
	a := new(Archive)
	require.NoError(t, a.Dir("a", 0o755))
	img := a.Image()
	before := imageBytes(t, img)
	require.NoError(t, a.Bytes("a/b", 0o644, []byte("later")))
	require.NoError(t, a.Dir("a", 0o700))
	assert.Equal(t, before, imageBytes(t, img))
	assert.NotEqual(t, before, imageBytes(t, a.Image()))
}

func TestArchiveParents(t *testing.T) {
	a := new(Archive)
	require.NoError(t, a.Bytes("a/b/c/file", 0o644, nil))
	require.NoError(t, a.Bytes("a/b/other", 0o644, nil))
	require.NoError(t, a.Dir("/a/b", 0o700))
	require.NoError(t, a.Dir("a/b/c/d", 0o750))
	assert.True(t, a.Has("/a/b"))
	assert.False(t, a.Has("a/x"))
	assert.Equal(t, 6, a.Len())

	var got []string
	r := NewReader(bytes.NewReader(imageBytes(t, a.Image())))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		got = append(got, h.Mode.String()+" "+h.Name)
	}
	assert.Equal(t, []string{
		"drwxr-xr-x a",
		"drwx------ a/b",
		"drwxr-xr-x a/b/c",
		"-rw-r--r-- a/b/c/file",
		"-rw-r--r-- a/b/other",
		"drwxr-x--- a/b/c/d",
	}, got)
}

func TestArchiveRefuses(t *testing.T) {
	base := func() *Archive {
		a := new(Archive)
		require.NoError(t, a.Bytes("file", 0o644, nil))
		require.NoError(t, a.Dir("dir", 0o755))
		require.NoError(t, a.Symlink("link", "dir"))
		return a
	}
	long := strings.Repeat("x", 255)
	longest := strings.Repeat(long+"/", 15) + long // 4095 bytes
	body := strings.NewReader("")
	for _, c := range []struct {
		name  string
		entry Entry
		want  error
	}{
		{"empty name", Entry{Name: ""}, ErrName},
		{"root", Entry{Name: "/", Mode: fs.ModeDir}, ErrName},
		{"dot", Entry{Name: ".", Mode: fs.ModeDir}, ErrName},
		{"two leading slashes", Entry{Name: "//a"}, ErrName},
		{"slash at the end", Entry{Name: "a/", Mode: fs.ModeDir}, ErrName},
		{"dot inside", Entry{Name: "a/./b"}, ErrName},
		{"parent", Entry{Name: ".."}, ErrName},
		{"below parent", Entry{Name: "../a"}, ErrName},
		{"NUL", Entry{Name: "a\x00b"}, ErrName},
		{"the trailer", Entry{Name: "TRAILER!!!"}, ErrName},
		{"component too long", Entry{Name: "a/" + long + "x"}, ErrName},
		{"name too long", Entry{Name: longest[:4080] + "/" + strings.Repeat("y", 15)}, ErrName},
		{"longest name", Entry{Name: longest}, nil},
		{"size negative", Entry{Name: "a", Size: -1, Body: body}, ErrSize},
		{"size 4 GiB", Entry{Name: "a", Size: 1 << 32, Body: body}, ErrSize},
		{"size just below", Entry{Name: "a", Size: 1<<32 - 1, Body: body}, nil},
		{"size without body", Entry{Name: "a", Size: 1}, ErrSize},
		{"body of a directory", Entry{Name: "a", Mode: fs.ModeDir, Body: body}, ErrSize},
		{"no such type", Entry{Name: "a", Mode: fs.ModeIrregular}, ErrMode},
		{"two types", Entry{Name: "a", Mode: fs.ModeDir | fs.ModeSymlink}, ErrMode},
		{"no target", Entry{Name: "a", Mode: fs.ModeSymlink}, ErrTarget},
		{"NUL in target", Entry{Name: "a", Mode: fs.ModeSymlink, Target: "a\x00"}, ErrTarget},
		{"target too long", Entry{Name: "a", Mode: fs.ModeSymlink, Target: longest + "x"}, ErrTarget},
		{"longest target", Entry{Name: "a", Mode: fs.ModeSymlink, Target: longest}, nil},
		{"target of a file", Entry{Name: "a", Target: "b"}, ErrTarget},
		{"major too large", Entry{Name: "a", Mode: fs.ModeDevice, Major: 1 << 12}, ErrDevice},
		{"minor too large", Entry{Name: "a", Mode: fs.ModeDevice, Minor: 1 << 20}, ErrDevice},
		{"major of a file", Entry{Name: "a", Major: 1}, ErrDevice},
		{"file twice", Entry{Name: "file"}, ErrExist},
		{"directory over a file", Entry{Name: "file", Mode: fs.ModeDir}, ErrExist},
		{"file over a directory", Entry{Name: "dir"}, ErrExist},
		{"below a file", Entry{Name: "file/a"}, ErrNotDir},
		{"far below a file", Entry{Name: "file/a/b"}, ErrNotDir},
		{"below a link", Entry{Name: "link/a"}, ErrNotDir},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := base()
			n := a.Len()
			err := a.Add(c.entry)
			if c.want == nil {
				assert.NoError(t, err)
				return
			}
			assert.ErrorIs(t, err, c.want)
			assert.Equal(t, n, a.Len(), "a refused entry leaves nothing behind")
		})
	}
}

type failingBody struct{ err error }

func (b failingBody) ReadAt(p []byte, off int64) (int, error) { return 0, b.err }

func TestImageBodyFails(t *testing.T) {
	disk := errors.New("disk on fire")
	for _, c := range []struct {
		name string
		body io.ReaderAt
		want error
	}{
		{"error", failingBody{disk}, disk},
		{"too short", strings.NewReader("12345"), io.ErrUnexpectedEOF},
		{"nothing", strings.NewReader(""), io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := new(Archive)
			require.NoError(t, a.File("bin/thing", 0o755, c.body, 6))
			img := a.Image()
			_, err := img.WriteTo(io.Discard)
			assert.ErrorIs(t, err, ErrBody)
			assert.ErrorIs(t, err, c.want)
			assert.ErrorContains(t, err, `"bin/thing"`)
			_, err = img.ReadAt(make([]byte, img.Size()), 0)
			assert.ErrorIs(t, err, ErrBody)
			assert.ErrorIs(t, err, c.want)
		})
	}
	a := new(Archive)
	require.NoError(t, a.Bytes("a", 0o644, []byte("x")))
	_, err := a.Image().WriteTo(iotest.TruncateWriter(failingWriter{disk}, 0))
	assert.NoError(t, err)
	_, err = a.Image().WriteTo(failingWriter{disk})
	assert.ErrorIs(t, err, disk)
	assert.NotErrorIs(t, err, ErrBody, "a writer's failure is not the body's")
}

type failingWriter struct{ err error }

func (w failingWriter) Write(p []byte) (int, error) { return 0, w.err }

// TestImageReadsStraightFromBodies checks that the reader's own buffer reaches
// a file's ReadAt: no copy of a file is ever made.
func TestImageReadsStraightFromBodies(t *testing.T) {
	body := &recordingBody{size: 1 << 20}
	a := new(Archive)
	require.NoError(t, a.File("init", 0o755, body, body.size))
	img := a.Image()
	p := make([]byte, img.Size())
	_, err := img.ReadAt(p, 0)
	require.NoError(t, err)
	require.Len(t, body.reads, 1)
	assert.Same(t, &p[headerSize+int64(len("init\x00"))+1], &body.reads[0][0])
	assert.Len(t, body.reads[0], 1<<20)
}

type recordingBody struct {
	size  int64
	reads [][]byte
}

func (b *recordingBody) ReadAt(p []byte, off int64) (int, error) {
	b.reads = append(b.reads, p)
	return len(p), nil
}

func BenchmarkImageReadAt(b *testing.B) {
	a := new(Archive)
	for i := range 1000 {
		name := "d/" + strings.Repeat("x", i%200+1) + string(rune('a'+i/200))
		require.NoError(b, a.Bytes(name, 0o644, make([]byte, 1000)))
	}
	img := a.Image()
	p := make([]byte, img.Size())
	b.SetBytes(img.Size())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := img.ReadAt(p, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// TestImageBodyWithEOF has a body that reports the end together with its last
// bytes, which io.ReaderAt allows.
func TestImageBodyWithEOF(t *testing.T) {
	a := new(Archive)
	require.NoError(t, a.File("a", 0o644, eofBody("text"), 4))
	img := a.Image()
	p := make([]byte, img.Size())
	_, err := img.ReadAt(p, 0)
	require.NoError(t, err)
	assert.Equal(t, imageBytes(t, img), p)
}

type eofBody string

func (b eofBody) ReadAt(p []byte, off int64) (int, error) {
	return copy(p, b[off:]), io.EOF
}
