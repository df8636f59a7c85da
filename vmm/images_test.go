package vmm

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/memory"
)

// bzImage makes a small bzImage around a vmlinux, by the x86 boot protocol's
// setup header.
func bzImage(t *testing.T, vmlinux []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(vmlinux)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	const sects, payloadOffset = 2, 0x300
	code := make([]byte, payloadOffset, payloadOffset+packed.Len()+16)
	code = append(code, packed.Bytes()...)
	code = append(code, make([]byte, -len(code)&15)...)

	le := binary.LittleEndian
	b := make([]byte, (sects+1)*512)
	b[0x1f1] = sects
	le.PutUint32(b[0x1f4:], uint32(len(code)/16)) // syssize
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x200:], "\xeb\x6aHdrS")
	le.PutUint16(b[0x206:], 0x20f)      // version
	b[0x211] = 1                        // loadflags: LOADED_HIGH
	le.PutUint32(b[0x22c:], 0x7fffffff) // initrd_addr_max
	le.PutUint32(b[0x230:], 0x100000)   // kernel_alignment
	b[0x234] = 1                        // relocatable_kernel
	le.PutUint16(b[0x236:], 1)          // xloadflags: XLF_KERNEL_64
	le.PutUint32(b[0x238:], 2047)       // cmdline_size
	le.PutUint32(b[0x248:], payloadOffset)
	le.PutUint32(b[0x24c:], uint32(packed.Len()))
	le.PutUint64(b[0x258:], 0x200000) // pref_address
	le.PutUint32(b[0x260:], 0x10000)  // init_size
	return append(b, code...)
}

// cachedKernel is a Config for a bzImage whose vmlinux is in the cache, and
// that vmlinux's path.
func cachedKernel(t *testing.T) (cfg Config, vmlinux string) {
	t.Helper()
	raw, err := io.ReadAll(payload(spin).(io.Reader))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "vmlinuz")
	require.NoError(t, os.WriteFile(path, bzImage(t, raw), 0o644))
	cache, err := kernel.NewCache(filepath.Join(t.TempDir(), "cache"))
	require.NoError(t, err)
	require.NoError(t, cache.Fill(path))
	vmlinux, ok, err := cache.Lookup(path)
	require.NoError(t, err)
	require.True(t, ok)
	return Config{Kernel: path, Cache: cache, Memory: 4 << 20}, vmlinux
}

// patch changes a file and leaves its size and time, by which the cache knows
// it, as they are.
func patch(off int64, b ...byte) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		info, err := os.Stat(path)
		require.NoError(t, err)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(b, off)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, os.Chtimes(path, time.Time{}, info.ModTime()))
	}
}

// Offsets in the cached vmlinux of its ELF header's and its only program
// header's fields.
const (
	elfEntry  = 24
	elfPhoff  = 32
	elfPhnum  = 56
	phType    = 64
	phOffset  = phType + 8
	phPaddr   = phType + 24
	phFilesz  = phType + 32
	farBeyond = 0x7f // as an address's sixth byte
)

// TestSurprisesInTheCache: whatever is found in the place of a cached vmlinux,
// the bzImage is booted.
func TestSurprisesInTheCache(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, vmlinux string)
		want   boot.Protocol
	}{
		{"none", func(*testing.T, string) {}, boot.ProtocolELF64},
		{"removed", func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) }, boot.ProtocolBzImage64},
		{"a directory", func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o700))
		}, boot.ProtocolBzImage64},
		{"unreadable", func(t *testing.T, path string) {
			require.NoError(t, os.Chmod(path, 0))
			if f, err := os.Open(path); err == nil {
				f.Close()
				t.Skip("root reads everything")
			}
		}, boot.ProtocolBzImage64},
		{"empty", func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) }, boot.ProtocolBzImage64},
		{"truncated", func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 80)) }, boot.ProtocolBzImage64},
		{"garbage for an ELF header", patch(0, bytes.Repeat([]byte{0xa5}, 64)...), boot.ProtocolBzImage64},
		{"another machine's ELF", patch(18, 183), boot.ProtocolBzImage64},
		{"program headers outside of the file", patch(elfPhoff+5, farBeyond), boot.ProtocolBzImage64},
		{"more program headers than there are", patch(elfPhnum, 0xff), boot.ProtocolBzImage64},
		{"no segment to load", patch(phType, 0), boot.ProtocolBzImage64},
		{"a segment outside of the file", patch(phOffset+5, farBeyond), boot.ProtocolBzImage64},
		{"a segment larger than the file", patch(phFilesz+5, farBeyond), boot.ProtocolBzImage64},
		{"a segment outside of memory", patch(phPaddr+5, farBeyond), boot.ProtocolBzImage64},
		{"a segment over the boot structures", patch(phPaddr, 0, 0, 0, 0), boot.ProtocolBzImage64},
		{"an entry in no segment", patch(elfEntry+5, farBeyond), boot.ProtocolBzImage64},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, vmlinux := cachedKernel(t)
			tc.damage(t, vmlinux)
			cfg = cfg.withDefaults()
			k, err := cfg.openImages(t.Context())
			require.NoError(t, err)
			defer k.close()
			mem, err := memory.New(memory.Config{Size: cfg.Memory, Backing: memory.Anonymous})
			require.NoError(t, err)
			defer mem.Close()
			entry, err := boot.Load(mem, k.params)
			require.NoError(t, err)
			assert.Equal(t, tc.want, entry.Protocol)
			assert.Equal(t, tc.want != boot.ProtocolBzImage64, k.cached)
		})
	}
}

// shrinking is an initrd that cuts a vmlinux off as soon as that is loaded,
// which is after everything about it has been checked.
type shrinking struct {
	t       *testing.T
	vmlinux string
}

func (s *shrinking) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

func (s *shrinking) Size() int64 {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(1, pc)])
	for more := true; more; {
		var f runtime.Frame
		if f, more = frames.Next(); strings.HasSuffix(f.Function, "/boot.Load") {
			require.NoError(s.t, os.Truncate(s.vmlinux, 80))
		}
	}
	return memory.PageSize
}

// TestVmlinuxFailsWhileRead: that a cached vmlinux can't be read is found out
// only when it is loaded, by the first of two machines.
func TestVmlinuxFailsWhileRead(t *testing.T) {
	needKVM(t)
	machineOf := func(t *testing.T, way BootMode) (*Machine, string, string, error) {
		cfg, vmlinux := cachedKernel(t)
		var log bytes.Buffer
		cfg.Boot, cfg.Logger = way, slog.New(slog.NewTextHandler(&log, nil))
		cfg.Initrds = []boot.Image{&shrinking{t, vmlinux}}
		before := owned(t)
		m, err := New(cfg)
		if err == nil {
			t.Cleanup(func() {
				assert.NoError(t, m.Close())
				requireNothingLeft(t, before, 4)
			})
		}
		return m, vmlinux, log.String(), err
	}
	t.Run("auto", func(t *testing.T) {
		m, vmlinux, log, err := machineOf(t, BootAuto)
		require.NoError(t, err)
		assert.Equal(t, string(boot.ProtocolBzImage64), m.Report().Boot.Protocol)
		assert.False(t, m.Report().Boot.Cached)
		assert.Contains(t, log, "booting the bzImage as it is")
		assert.Contains(t, log, vmlinux)
	})
	t.Run("vmlinux", func(t *testing.T) {
		_, vmlinux, _, err := machineOf(t, BootVMLinux)
		assert.ErrorIs(t, err, boot.ErrTruncated)
		assert.ErrorContains(t, err, vmlinux)
	})
}
