package initramfs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// readAll returns the entries of an archive with their bodies.
func readAll(r io.Reader) ([]Header, error) {
	var all []Header
	for ar := NewReader(r); ; {
		h, err := ar.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if h.Mode.IsRegular() {
			data, err := io.ReadAll(ar)
			if err != nil {
				return all, err
			}
			if h.Size > 0 {
				h.Body = bytes.NewReader(data)
			}
		}
		all = append(all, *h)
	}
}

func TestReaderRoundTrip(t *testing.T) {
	a := everyType(t)
	data := imageBytes(t, a.Image())
	for name, r := range map[string]io.Reader{
		"whole":         bytes.NewReader(data),
		"bytewise":      iotest.OneByteReader(bytes.NewReader(data)),
		"EOF with data": iotest.DataErrReader(bytes.NewReader(data)),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readAll(r)
			require.NoError(t, err)
			require.Len(t, got, a.Len())
			again := new(Archive)
			for i, h := range got {
				assert.Equal(t, uint32(i+1), h.Ino)
				assert.Zero(t, h.ModTime)
				require.NoError(t, again.Add(h.Entry))
			}
			assert.Equal(t, data, imageBytes(t, again.Image()))
		})
	}
}

func TestReaderSkipsBodies(t *testing.T) {
	data := imageBytes(t, everyType(t).Image())
	r := NewReader(bytes.NewReader(data))
	n := 0
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		if h.Name == "usr/lib/ddd" {
			p := make([]byte, 2)
			k, err := r.Read(p)
			require.NoError(t, err)
			assert.Equal(t, "12"[:k], string(p[:k]))
		}
		n++
	}
	assert.Equal(t, everyType(t).Len(), n)
	_, err := r.Next()
	assert.Equal(t, io.EOF, err, "the end stays the end")
	_, err = r.Read(make([]byte, 1))
	assert.Equal(t, io.EOF, err)
}

func TestReaderConcatenated(t *testing.T) {
	one := func(name string) []byte {
		a := new(Archive)
		require.NoError(t, a.Bytes(name, 0o644, []byte(name)))
		return imageBytes(t, a.Image())
	}
	var all []byte
	all = append(all, make([]byte, 8)...)
	all = append(all, one("first")...)
	all = append(all, make([]byte, 4)...)
	all = append(all, one("second")...)
	got, err := readAll(bytes.NewReader(all))
	require.NoError(t, err)
	require.Len(t, got, 2)
	assert.Equal(t, "first", got[0].Name)
	assert.Equal(t, "second", got[1].Name)
}

func TestReaderRefuses(t *testing.T) {
	good := imageBytes(t, everyType(t).Image())
	patch := func(off int, s string) []byte {
		b := bytes.Clone(good)
		copy(b[off:], s)
		return b
	}
	field := func(i int, v uint32) []byte {
		return patch(len(magicNewc)+8*i, fmt.Sprintf("%08x", v))
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"text", []byte("hello, world, this is longer than one header can ever be" + strings.Repeat(".", 99)), `the magic is "hello,"`},
		{"gzip", append([]byte("\x1f\x8b\x08\x00"), make([]byte, 200)...), "the magic is"},
		{"old binary", append([]byte("\xc7\x71"), make([]byte, 200)...), "the magic is"},
		{"odc", append([]byte("070707"), make([]byte, 200)...), `the magic is "070707"`},
		{"not hexadecimal", patch(len(magicNewc), "0000000g"), "not a hexadecimal number"},
		{"empty name", field(fieldNameSize, 0), "a name of 0 bytes"},
		{"name too long", field(fieldNameSize, 4097), "a name of 4097 bytes"},
		{"name of 4 GiB", field(fieldNameSize, 0xffffffff), "a name of 4294967295 bytes"},
		{"name not ended", field(fieldNameSize, 4), "does not end in its only NUL"},
		{"NUL in name", field(fieldNameSize, 6), "does not end in its only NUL"},
		{"body of 4 GiB", field(fieldFileSize, 0xffffffff), "ends"},
		{"header cut", good[:50], "ends before its trailer"},
		{"name cut", good[:headerSize+2], "ends before its trailer"},
		{"body cut", good[:headerSize+6+3], "ends within a file"},
		{"no trailer", good[:bytes.Index(good, []byte("usr/lib/a"))-headerSize], "ends before its trailer"},
		{"unaligned second", append(bytes.Clone(good), append(make([]byte, 2), good...)...), "not a multiple of 4"},
		{"rubbish behind", append(bytes.Clone(good), bytes.Repeat([]byte("x"), 200)...), "the magic is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := readAll(bytes.NewReader(c.data))
			require.ErrorIs(t, err, ErrFormat)
			assert.ErrorContains(t, err, c.want)
		})
	}
	t.Run("symbolic link target too long", func(t *testing.T) {
		b := field(fieldMode, sIFLNK|0o777)
		copy(b[len(magicNewc)+8*fieldFileSize:], fmt.Sprintf("%08x", 4096))
		_, err := readAll(bytes.NewReader(b))
		assert.ErrorIs(t, err, ErrFormat)
		assert.ErrorContains(t, err, "target of 4096 bytes")
	})
	t.Run("error of the stream", func(t *testing.T) {
		r := NewReader(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(good))))
		_, err := r.Next()
		assert.ErrorIs(t, err, iotest.ErrTimeout)
		_, err = r.Next()
		assert.ErrorIs(t, err, iotest.ErrTimeout, "an error is final")
	})
}

func TestReaderEmpty(t *testing.T) {
	for name, data := range map[string][]byte{"nothing": nil, "zeroes": make([]byte, 1001)} {
		t.Run(name, func(t *testing.T) {
			got, err := readAll(bytes.NewReader(data))
			assert.NoError(t, err)
			assert.Empty(t, got)
		})
	}
}

func TestReaderTakesCRCAndUpperCase(t *testing.T) {
	data := imageBytes(t, everyType(t).Image())
	data = bytes.ReplaceAll(data, []byte("070701"), []byte("070702"))
	upper := bytes.ReplaceAll(data, []byte("fffffffe"), []byte("FFFFFFFE"))
	require.NotEqual(t, data, upper)
	got, err := readAll(bytes.NewReader(upper))
	require.NoError(t, err)
	assert.Len(t, got, everyType(t).Len())
}

// TestCpioAgrees lets GNU cpio read what Image wrote and Reader read what GNU
// cpio wrote.
func TestCpioAgrees(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is not installed")
	}
	a := everyType(t)
	list := exec.Command(cpio, "--quiet", "-t")
	list.Stdin = bytes.NewReader(imageBytes(t, a.Image()))
	out, err := list.Output()
	require.NoError(t, err)
	var want []string
	for _, e := range a.entries {
		want = append(want, e.Name)
	}
	assert.Equal(t, want, strings.Fields(string(out)))

	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("abc"), 0o640))
	require.NoError(t, os.Symlink("file", filepath.Join(dir, "link")))
	make := exec.Command(cpio, "--quiet", "-o", "-H", "newc")
	make.Dir = dir
	make.Stdin = strings.NewReader(".\nfile\nlink\n")
	out, err = make.Output()
	require.NoError(t, err)
	got, err := readAll(bytes.NewReader(out))
	require.NoError(t, err)
	require.Len(t, got, 3)
	assert.Equal(t, ".", got[0].Name)
	assert.True(t, got[0].Mode.IsDir())
	assert.Equal(t, int64(3), got[1].Size)
	assert.Equal(t, "file", got[2].Target)
}

// FuzzReader checks that no input makes a Reader fail otherwise than by an
// error, that it finds no more than the input can hold, and that what can be
// written again reads back the same.
func FuzzReader(f *testing.F) {
	f.Add(imageBytes(f, everyType(f).Image()))
	f.Add([]byte("070701"))
	f.Add(make([]byte, 7))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := readAll(bytes.NewReader(data))
		if len(got) > len(data)/(headerSize+1) {
			t.Fatalf("%d entries in %d bytes", len(got), len(data))
		}
		var bodies int64
		a := new(Archive)
		kept := make(map[string]Header)
		for _, h := range got {
			bodies += h.Size
			if a.Add(h.Entry) == nil {
				kept[h.Name] = h
			}
		}
		if bodies > int64(len(data)) {
			t.Fatalf("bodies of %d bytes in %d", bodies, len(data))
		}
		if err != nil {
			return
		}
		again, err := readAll(bytes.NewReader(imageBytes(t, a.Image())))
		require.NoError(t, err)
		require.Len(t, again, a.Len())
		for _, h := range again {
			if was, ok := kept[h.Name]; ok && !was.Mode.IsDir() {
				was.Ino, was.Links, was.ModTime = h.Ino, h.Links, h.ModTime
				require.Equal(t, was, h)
			}
		}
	})
}
