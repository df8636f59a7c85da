package kernel

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// realKernels are the bzImages in $VOLE_TEST_KERNELS, separated by colons.
func realKernels(tb testing.TB) []string {
	tb.Helper()
	paths := filepath.SplitList(os.Getenv("VOLE_TEST_KERNELS"))
	if len(paths) == 0 {
		tb.Skip("VOLE_TEST_KERNELS names no kernels")
	}
	return paths
}

// unpackers are the reference implementations, from stdin to stdout.
var unpackers = map[Compression][]string{
	Gzip: {"gzip", "-dc"}, Bzip2: {"bzip2", "-dc"}, LZMA: {"lzma", "-dc"}, XZ: {"xz", "-dc"},
	LZO: {"lzop", "-dc"}, LZ4: {"lz4", "-dc"}, Zstd: {"zstd", "-dc", "--long=27"},
}

// TestRealKernels compares with the reference decompressor, byte for byte, and
// checks that the cached form loads to the same memory.
func TestRealKernels(t *testing.T) {
	for _, path := range realKernels(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			img, err := os.ReadFile(path)
			require.NoError(t, err)
			var got bytes.Buffer
			info, err := Extract(bytes.NewReader(img), &got)
			require.NoError(t, err)
			assert.Equal(t, nameVersion(path), info.Version)

			argv := unpackers[info.Compression]
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Logf("not compared with %s: %v", argv[0], err)
			} else {
				payload := img[info.PayloadOffset : info.PayloadOffset+info.PayloadSize]
				if info.Compression != Gzip {
					payload = payload[:len(payload)-sizeTrailer]
				}
				cmd := exec.Command(argv[0], argv[1:]...)
				cmd.Stdin = bytes.NewReader(payload)
				want, err := cmd.Output()
				require.NoError(t, err)
				assert.True(t, bytes.Equal(want, got.Bytes()), "as %v does", argv)
			}

			c := newTestCache(t)
			require.NoError(t, c.Fill(path))
			file, err := os.ReadFile(mustHit(t, c, path))
			require.NoError(t, err)
			original := memoryOf(t, got.Bytes())
			cached := memoryOf(t, file)
			require.Len(t, cached, len(original))
			for page, want := range original {
				require.True(t, bytes.Equal(want, cached[page]), "page %#x", page)
			}
			assert.Equal(t, notesOf(t, got.Bytes()), notesOf(t, file))
			headers := programHeaders(file)
			assert.Greater(t, len(headers), len(programHeaders(got.Bytes())), "split")
			bytesOf := func(headers []progHeader) (sum uint64) {
				for _, p := range headers {
					if p.Type == ptLoad {
						sum += p.Filesz
					}
				}
				return sum
			}
			t.Logf("%s: vmlinux of %d bytes, %d of them to load; cached %d bytes, %d to load by %d program headers",
				info.Compression, got.Len(), bytesOf(programHeaders(got.Bytes())), len(file), bytesOf(headers), len(headers))
		})
	}
}

func BenchmarkExtract(b *testing.B) {
	for _, path := range realKernels(b) {
		b.Run(filepath.Base(path), func(b *testing.B) {
			img, err := os.ReadFile(path)
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				info, err := Extract(bytes.NewReader(img), io.Discard)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(info.Size)
			}
		})
	}
}

func BenchmarkFill(b *testing.B) {
	for _, path := range realKernels(b) {
		b.Run(filepath.Base(path), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := newTestCache(b).Fill(path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
