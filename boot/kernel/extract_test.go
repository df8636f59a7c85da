package kernel

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz/lzma"
)

var update = flag.Bool("update", false, "pack testdata/vmlinux.* anew with the tools of this machine")

// packers are the commands of the kernel's build (scripts/Makefile.lib), from
// stdin to stdout.
var packers = []struct {
	compression Compression
	command     string
}{
	{Gzip, "gzip -n -f -9"},
	{Bzip2, "bzip2 -9"},
	{LZMA, "lzma -9"},
	{XZ, "xz --check=crc32 --x86 --lzma2=dict=32MiB"},
	{LZO, "lzop -9"},
	{LZ4, "lz4 -l -9 - -"},
	{Zstd, "zstd -22 --ultra"},
}

func TestMain(m *testing.M) {
	flag.Parse()
	if *update {
		if err := pack(); err != nil {
			println(err.Error())
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func pack() error {
	for _, p := range packers {
		argv := strings.Fields(p.command)
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin, cmd.Stderr = bytes.NewReader(makeVmlinux()), os.Stderr
		b, err := cmd.Output()
		if err != nil {
			return errors.Join(errors.New(p.command), err)
		}
		if err := os.WriteFile(filepath.Join("testdata", "vmlinux."+string(p.compression)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func TestExtractEveryCompression(t *testing.T) {
	want := makeVmlinux()
	for _, p := range packers {
		t.Run(string(p.compression), func(t *testing.T) {
			payload := testPayload(t, p.compression)
			var got bytes.Buffer
			info, err := Extract(bytes.NewReader(makeImage(payload)), &got)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(want, got.Bytes()), "the vmlinux differs")
			assert.Equal(t, Info{Compression: p.compression, Version: "6.1.0-99-test",
				PayloadOffset: 0x630, PayloadSize: int64(len(payload)), Size: int64(len(want))}, info)
		})
	}
}

// TestExtractBCJ checks that the golden XZ payload needs the x86 filter: without
// undoing it, calls would be wrong.
func TestExtractBCJ(t *testing.T) {
	payload := testPayload(t, XZ)
	// Block header: size, flags with the number of filters less one, filter id.
	assert.Equal(t, []byte{1, 4}, payload[13:15], "two filters, the first of them x86 BCJ")
}

func TestExtractManyBlocks(t *testing.T) {
	big := append(makeVmlinux(), bytes.Repeat([]byte("another block of 8 MiB. "), 1<<20)...)
	var packed bytes.Buffer
	zw := lz4.NewWriter(&packed)
	require.NoError(t, zw.Apply(lz4.LegacyOption(true)))
	_, err := zw.Write(big)
	require.NoError(t, err)
	require.NoError(t, zw.Close())
	var got bytes.Buffer
	_, err = Extract(bytes.NewReader(makeImage(withSize(packed.Bytes(), len(big)))), &got)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(big, got.Bytes()))
}

func TestExtractStoredLZO(t *testing.T) {
	// lzop stores a block that does not shrink; such a block has no checksum of
	// its packed form. Rebuild the golden file with its block stored.
	golden := testPayload(t, LZO)
	vmlinux := makeVmlinux()
	header := 9 + 2 + 2 + 2 + 1 + 1 + 4 + 4 + 4 + 4 + 1 + int(golden[33]) + 4
	be := binary.BigEndian
	file := bytes.Clone(golden[:header])
	for b := vmlinux; len(b) > 0; {
		n := min(len(b), 256<<10)
		file = be.AppendUint32(file, uint32(n))
		file = be.AppendUint32(file, uint32(n))
		file = be.AppendUint32(file, adler(b[:n]))
		file = append(file, b[:n]...)
		b = b[n:]
	}
	file = be.AppendUint32(file, 0)
	var got bytes.Buffer
	_, err := Extract(bytes.NewReader(makeImage(withSize(file, len(vmlinux)))), &got)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(vmlinux, got.Bytes()))
}

func adler(b []byte) uint32 {
	x, y := uint32(1), uint32(0)
	for _, c := range b {
		x = (x + uint32(c)) % 65521
		y = (y + x) % 65521
	}
	return y<<16 | x
}

func TestExtractRefuses(t *testing.T) {
	le := binary.LittleEndian
	good := makeImage(testPayload(t, LZ4))
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	vmlinux := makeVmlinux()
	other := func(f func(elf []byte)) []byte { // a payload with another ELF header
		b := bytes.Clone(vmlinux)
		f(b)
		var packed bytes.Buffer
		zw := lz4.NewWriter(&packed)
		require.NoError(t, zw.Apply(lz4.LegacyOption(true)))
		_, err := zw.Write(b)
		require.NoError(t, err)
		require.NoError(t, zw.Close())
		return makeImage(withSize(packed.Bytes(), len(b)))
	}
	for _, c := range []struct {
		name string
		img  []byte
		want error
		text string
	}{
		{"empty", nil, ErrUnsupported, "0 bytes are too few"},
		{"text", bytes.Repeat([]byte("hello\n"), 1000), ErrUnsupported, "no HdrS magic"},
		{"a vmlinux", vmlinux, ErrUnsupported, "no HdrS magic"},
		{"old protocol", edit(func(b []byte) []byte { le.PutUint16(b[offVersion:], 0x0207); return b }), ErrUnsupported, "boot protocol 2.07"},
		{"no payload", edit(func(b []byte) []byte { le.PutUint32(b[offPayloadLength:], 0); return b }), ErrUnsupported, "no payload"},
		{"tiny payload", edit(func(b []byte) []byte { le.PutUint32(b[offPayloadLength:], 7); return b }), ErrCorrupt, "payload of 7 bytes"},
		{"truncated in the setup", good[:headerSize+10], ErrCorrupt, "setup code ends"},
		{"truncated in the payload", good[:len(good)-100], ErrCorrupt, "truncated"},
		{"payload past the file", edit(func(b []byte) []byte { le.PutUint32(b[offPayloadOffset:], 0xffffffff); return b }), ErrCorrupt, "truncated"},
		{"unknown compression", edit(func(b []byte) []byte { copy(b[0x630:], "\x7fELF"); return b }), ErrUnsupported, "no known compression"},
		{"size too small", makeImage(withSize(testPayload(t, Zstd)[:len(testPayload(t, Zstd))-4], len(vmlinux)-1)), ErrCorrupt, "more than"},
		{"size too large", makeImage(withSize(testPayload(t, LZ4)[:len(testPayload(t, LZ4))-4], len(vmlinux)+1)), ErrCorrupt, "promises"},
		{"size tiny", makeImage(withSize(testPayload(t, LZ4)[:len(testPayload(t, LZ4))-4], 10)), ErrCorrupt, "less than an ELF header"},
		{"size over the limit", makeImage(withSize(testPayload(t, LZ4)[:len(testPayload(t, LZ4))-4], MaxSize+1)), ErrUnsupported, "over the limit"},
		{"not an ELF", other(func(b []byte) { b[0] = 'M' }), ErrCorrupt, "not an ELF"},
		{"i386", other(func(b []byte) { b[ehdrClass] = 1; b[ehdrMachine] = 3 }), ErrUnsupported, "class 1"},
		{"arm64", other(func(b []byte) { b[ehdrMachine] = 183 }), ErrUnsupported, "machine 183"},
		{"an object file", other(func(b []byte) { b[ehdrType] = 1 }), ErrUnsupported, "type 1"},
		{"no program headers", other(func(b []byte) { b[ehdrPhnum] = 0 }), ErrUnsupported, "program headers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got bytes.Buffer
			_, err := Extract(bytes.NewReader(c.img), &got)
			require.ErrorIs(t, err, c.want)
			assert.ErrorContains(t, err, c.text)
		})
	}
}

// TestExtractDamaged flips bits and cuts streams: whatever the packer protects
// by a checksum must be noticed, nothing may panic, and the size always holds.
// TestLZMADictionaryIsBounded: a header that claims a large dictionary gets none.
func TestLZMADictionaryIsBounded(t *testing.T) {
	open := func(dict uint32, size int64) error {
		header := binary.LittleEndian.AppendUint32([]byte{0x5d}, dict)
		header = binary.LittleEndian.AppendUint64(header, 1<<64-1) // the size is not known
		_, err := newLZMAReader(bufio.NewReader(bytes.NewReader(append(header, make([]byte, 64)...))), size)
		return err
	}
	var tooLarge *lzma.ErrDictSize
	require.ErrorAs(t, open(1<<30, MaxSize), &tooLarge)
	require.ErrorAs(t, open(maxWindow+1, MaxSize), &tooLarge)
	assert.NoError(t, open(64<<20, MaxSize), "that of lzma -9")
	assert.NoError(t, open(1<<30, 1<<20), "there is no more output than that")
}

func TestExtractDamaged(t *testing.T) {
	want := makeVmlinux()
	for _, p := range packers {
		t.Run(string(p.compression), func(t *testing.T) {
			payload := testPayload(t, p.compression)
			step := max(1, len(payload)/41)
			for at := 0; at < len(payload); at += step {
				bad := bytes.Clone(payload)
				bad[at] ^= 0x20
				var got bytes.Buffer
				_, err := Extract(bytes.NewReader(makeImage(bad)), &got)
				if err == nil {
					assert.Len(t, got.Bytes(), len(want))
					continue
				}
				assert.True(t, errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported), "%v", err)
			}
			for at := 20; at < len(payload)-sizeTrailer; at += step {
				cut := withSize(payload[:at], len(want))
				_, err := Extract(bytes.NewReader(makeImage(cut)), io.Discard)
				require.Error(t, err, "cut at %d of %d", at, len(payload))
				assert.ErrorIs(t, err, ErrCorrupt)
			}
		})
	}
}

var errTest = errors.New("test error")

type failingImage struct {
	*bytes.Reader
	from int64
}

func (f failingImage) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errTest
	}
	return f.Reader.ReadAt(p, off)
}

type failingWriter struct{ left int }

func (f *failingWriter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errTest
	}
	return len(p), nil
}

func TestExtractPassesErrorsOn(t *testing.T) {
	for _, p := range packers {
		t.Run(string(p.compression), func(t *testing.T) {
			img := makeImage(testPayload(t, p.compression))
			_, err := Extract(bytes.NewReader(img), &failingWriter{left: 100})
			require.ErrorIs(t, err, errTest)
			assert.NotErrorIs(t, err, ErrCorrupt)
			for _, from := range []int64{0, 0x300, 0x632, int64(len(img) - 22)} {
				_, err = Extract(failingImage{bytes.NewReader(img), from}, io.Discard)
				require.ErrorIs(t, err, errTest)
				assert.NotErrorIs(t, err, ErrCorrupt)
			}
		})
	}
}

func FuzzExtract(f *testing.F) {
	for _, p := range packers {
		f.Add(makeImage(testPayload(f, p.compression)))
	}
	f.Fuzz(func(t *testing.T, img []byte) {
		const limit = 1 << 20
		var out countingWriter
		info, err := extract(bytes.NewReader(img), &out, limit)
		if out > limit || out > countingWriter(info.Size) {
			t.Fatalf("%d bytes written, %d promised", out, info.Size)
		}
		if err == nil && out != countingWriter(info.Size) {
			t.Fatalf("%d bytes written of %d and no error", out, info.Size)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("an error of no kind: %v", err)
		}
	})
}

type countingWriter int64

func (w *countingWriter) Write(p []byte) (int, error) {
	*w += countingWriter(len(p))
	return len(p), nil
}
