package inputs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// refusedCreatingNothing runs vole in the ways that create files, each of which
// has to fail before it does.
func refusedCreatingNothing(t *testing.T, args []string, words ...string) {
	t.Helper()
	dir := t.TempDir()
	args = append([]string{"run", "--console", filepath.Join(dir, "console"), "--report", filepath.Join(dir, "report.json")}, args...)
	refused(t, vole(t, dir, args...), 2, words...)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left, "nothing is created")
}

// TestForeignKernels: what runs on another architecture is named as that.
func TestForeignKernels(t *testing.T) {
	for name, says := range map[string]string{
		nested.AssetI386:  "an i386 kernel",
		nested.AssetARM64: "an arm64 ",
	} {
		t.Run(name, func(t *testing.T) {
			path, err := nested.Asset(name)
			if err != nil {
				t.Skipf("the archive offers no %s: %v", name, err)
			}
			for _, boot := range []string{"auto", "vmlinux", "bzimage"} {
				t.Run(boot, func(t *testing.T) {
					refusedCreatingNothing(t, []string{"-k", path, "--boot", boot}, path+": ", says)
				})
			}
		})
	}
}

// TestTruncatedKernels: a real bzImage cut where a download may have ended.
func TestTruncatedKernels(t *testing.T) {
	kernels, err := nested.Kernels()
	require.NoError(t, err)
	require.NotEmpty(t, kernels, "make deps")
	for _, k := range kernels {
		whole, err := os.ReadFile(k.Image)
		require.NoError(t, err)
		// The fields setup_sects and syssize of the boot protocol. A signature may
		// follow what they tell of; the kernel is whole without it.
		protected := (int(whole[0x1f1]) + 1) * 512
		end := protected + int(binary.LittleEndian.Uint32(whole[0x1f4:]))*16
		require.LessOrEqual(t, end, len(whole))
		for _, cut := range []struct {
			name string
			at   int
			says string
		}{
			{"one byte", 1, "not a Linux kernel"},
			// A boot sector alone may be that of other EFI images.
			{"in the boot sector", 0x100, ""},
			{"before the header's magic", 0x202, ""},
			{"in the header", 0x230, "truncated"},
			{"behind the boot sector", 512 + 0x80, "truncated"},
			{"behind the setup code", protected, "truncated"},
			{"in the kernel", protected + 0x1000, "truncated"},
			{"in the middle", len(whole) / 2, "truncated"},
			{"16 bytes short", end - 16, "truncated"},
			{"one byte short", end - 1, "truncated"},
		} {
			t.Run(k.Name+"/"+cut.name, func(t *testing.T) {
				path := file(t, "vmlinuz", whole[:cut.at])
				refusedCreatingNothing(t, []string{"-k", path}, path+": ", cut.says)
			})
		}
	}
}

// TestWhatDoesNotFit: a real kernel with too much beside it, and ELF files that
// want to be where there is no memory.
func TestWhatDoesNotFit(t *testing.T) {
	kernel := asset(t, nested.KernelDefault)
	large := sparse(t, 200<<20)
	for _, tc := range []struct {
		name string
		args []string
		want []string
	}{
		{"kernel larger than memory", []string{"-k", kernel, "-m", "16M"}, []string{kernel + ": ", "memory"}},
		{"initrd larger than memory", []string{"-k", kernel, "-i", large, "-m", "128M"}, []string{large + ": ", "memory"}},
		{"initrd that leaves no room", []string{"-k", kernel, "-i", sparse(t, 120<<20), "-m", "128M"}, []string{"sparse: ", "does not fit"}},
		{"empty initrd", []string{"-k", kernel, "-i", file(t, "initrd", nil)}, []string{"initrd: ", "empty"}},
		{"command line too long", []string{"-k", kernel, "-a", strings.Repeat("x", 3000)}, []string{"--append", "command line", "2047"}},
		{"segment above memory", []string{"-k", elfAt(t, 1<<30, 0), "-m", "128M"}, []string{"payload: ", "0x40000000", "memory"}},
		{"segment that ends above memory", []string{"-k", elfAt(t, 64<<20, 128<<20), "-m", "128M"}, []string{"payload: ", "memory"}},
		{"segment in the hole", []string{"-k", elfAt(t, 0xfee00000, 0), "-m", "8G"}, []string{"payload: ", "0xfee00000"}},
		{"segment that wraps", []string{"-k", elfAt(t, 1<<64-16, 1<<63), "-m", "128M"}, []string{"payload: "}},
		{"segment over boot structures", []string{"-k", elfAt(t, 0x7000, 0), "-m", "128M"}, []string{"payload: "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refusedCreatingNothing(t, tc.args, tc.want...)
		})
	}
}
