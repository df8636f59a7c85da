package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
)

// Distribution kernels as they are.
func TestRealKernels(t *testing.T) {
	for _, path := range testKernels(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := OpenImage(path)
			require.NoError(t, err)
			defer func() { assert.NoError(t, f.Close()) }()
			kind, h, err := Probe(f)
			require.NoError(t, err)
			for _, size := range []uint64{128 << 20, 512 << 20, 5 << 30} {
				p := Params{Kernel: f, Cmdline: "console=ttyS0", Initrd: []Image{bytes.NewReader(pattern(1<<20, 1))}}
				require.NoError(t, Check(p, size))
				g, err := memory.New(memory.Config{Backing: memory.Memfd, Size: size})
				require.NoError(t, err)
				e, err := Load(g, p)
				require.NoError(t, err)
				t.Logf("%v, %d MiB: %+v", kind, size>>20, e)
				if kind == BzImage {
					t.Logf("%s, boot protocol %#x", h.KernelVersion, h.Version)
					assert.NotEmpty(t, h.Release())
					assert.Equal(t, ProtocolBzImage64, e.Protocol)
				} else {
					assert.Equal(t, ProtocolPVH, e.Protocol)
				}
				require.NoError(t, g.Close())
			}
			assert.ErrorIs(t, Check(Params{Kernel: f}, 24<<20), ErrTooBig)
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, path := range testKernels(b) {
		b.Run(filepath.Base(path), func(b *testing.B) {
			f, err := OpenImage(path)
			require.NoError(b, err)
			defer f.Close()
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				g, err := memory.New(memory.Config{Backing: memory.Memfd, Size: 512 << 20, Huge: memory.HugeNever})
				require.NoError(b, err)
				b.StartTimer()
				_, err = Load(g, Params{Kernel: f, Cmdline: "console=ttyS0"})
				require.NoError(b, err)
				b.StopTimer()
				require.NoError(b, g.Close())
				b.StartTimer()
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	for name, k := range map[string]Image{"bzImage": newBz().image(), "ELF": newELF().image()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Check(params(k), 512<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// testKernels returns the kernels that VOLE_TEST_KERNELS names.
func testKernels(t testing.TB) []string {
	paths := filepath.SplitList(os.Getenv("VOLE_TEST_KERNELS"))
	if len(paths) == 0 {
		t.Skip("VOLE_TEST_KERNELS names no kernels (paths of vmlinuz and vmlinux files, separated by colons)")
	}
	return paths
}
