package guest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/initramfs"
)

// executable is an ELF file with the given segments, whose contents follow the
// program headers in order, and then symbols that no kernel needs.
func executable(t testing.TB, change func(*elf.Header64), segments ...elf.Prog64) []byte {
	const junk = "symbols, section headers and debug information"
	h := elf.Header64{
		Type:      uint16(elf.ET_EXEC),
		Machine:   uint16(elfMachine),
		Version:   1,
		Phoff:     64,
		Ehsize:    64,
		Phentsize: 56,
		Phnum:     uint16(len(segments)),
		Shentsize: 64,
		Shnum:     7,
		Shstrndx:  6,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	off := h.Phoff + 56*uint64(len(segments))
	var body []byte
	for i := range segments {
		p := &segments[i]
		if p.Off == 0 {
			p.Off = off
			text := bytes.Repeat([]byte{byte('a' + i)}, int(p.Filesz))
			if p.Type == uint32(elf.PT_INTERP) {
				text = append([]byte("/lib/ld.so.2"), make([]byte, p.Filesz)...)[:p.Filesz]
			}
			body = append(body, text...)
			off += p.Filesz
		}
	}
	h.Shoff = off
	if change != nil {
		change(&h)
	}
	var b bytes.Buffer
	for _, part := range []any{h, segments, body, []byte(junk)} {
		require.NoError(t, binary.Write(&b, binary.LittleEndian, part))
	}
	return b.Bytes()
}

func load(size uint64) elf.Prog64 { return elf.Prog64{Type: uint32(elf.PT_LOAD), Filesz: size} }

func TestNewLoadable(t *testing.T) {
	data := executable(t, nil, load(100), load(33), elf.Prog64{Type: uint32(elf.PT_GNU_STACK)})
	l, err := newLoadable(bytes.NewReader(data), int64(len(data)))
	require.NoError(t, err)
	assert.Equal(t, int64(64+3*56+133), l.size)
	got := make([]byte, l.size)
	_, err = l.ReadAt(got, 0)
	require.NoError(t, err)
	assert.Equal(t, data[64:l.size], got[64:])
	assert.Equal(t, data[:0x28], got[:0x28])
	var h elf.Header64
	require.NoError(t, binary.Read(bytes.NewReader(got), binary.LittleEndian, &h))
	assert.Zero(t, h.Shoff)
	assert.Zero(t, h.Shnum)
	assert.Zero(t, h.Shstrndx)
	_, err = elf.NewFile(bytes.NewReader(got))
	assert.NoError(t, err, "what is left is well formed")
	for _, off := range []int64{0, 10, 63, 64, 65, 200} {
		for _, n := range []int{0, 1, 60, 100} {
			p := make([]byte, n)
			_, err := l.ReadAt(p, off)
			require.NoError(t, err)
			assert.Equal(t, got[off:off+int64(n)], p)
		}
	}
}

func TestNewLoadableRefuses(t *testing.T) {
	interp := elf.Prog64{Type: uint32(elf.PT_INTERP), Filesz: 13}
	good := executable(t, nil, load(100))
	for _, c := range []struct {
		name string
		data []byte
		want error
		says string
	}{
		{"empty", nil, ErrNotExecutable, "only 0 bytes"},
		{"header cut", good[:63], ErrNotExecutable, "only 63 bytes"},
		{"script", []byte("#!/bin/sh\n" + strings.Repeat("#", 100)), ErrNotExecutable, `begins with "#!/b"`},
		{"32-bit", executable(t, func(h *elf.Header64) { h.Ident[elf.EI_CLASS] = 1 }), ErrNotExecutable, "ELFCLASS32"},
		{"big-endian", executable(t, func(h *elf.Header64) { h.Ident[elf.EI_DATA] = 2 }), ErrNotExecutable, "ELFDATA2MSB"},
		{"other machine", executable(t, func(h *elf.Header64) { h.Machine = 0xf3 }, load(1)), ErrNotExecutable, "EM_RISCV"},
		{"object", executable(t, func(h *elf.Header64) { h.Type = 1 }, load(1)), ErrNotExecutable, "ET_REL"},
		{"no segments", executable(t, nil), ErrNotExecutable, "0 program headers"},
		{"too many segments", executable(t, func(h *elf.Header64) { h.Phnum = 0xffff }, load(1)), ErrNotExecutable, "65535 program headers"},
		{"entry size", executable(t, func(h *elf.Header64) { h.Phentsize = 32 }, load(1)), ErrNotExecutable, "of 32 bytes"},
		{"headers far away", executable(t, func(h *elf.Header64) { h.Phoff = 1 << 63 }, load(1)), ErrNotExecutable, "program headers of"},
		{"headers cut", executable(t, func(h *elf.Header64) { h.Phnum = 100 }, load(1)), ErrNotExecutable, "cut off"},
		{"segment cut", good[:200], ErrNotExecutable, "cut off within a segment"},
		{"segment wraps", executable(t, nil, elf.Prog64{Type: 1, Off: 1<<64 - 1, Filesz: 2}), ErrNotExecutable, "cut off within a segment"},
		{"dynamic", executable(t, nil, load(10), interp), ErrDynamic, "interpreter /lib/ld.so.2 ("},
		{"dynamic and position independent", executable(t, func(h *elf.Header64) { h.Type = 3 }, interp), ErrDynamic, "/lib/ld.so.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := newLoadable(bytes.NewReader(c.data), int64(len(c.data)))
			require.ErrorIs(t, err, c.want)
			assert.ErrorContains(t, err, c.says)
		})
	}
}

func TestNewLoadableStaticPIE(t *testing.T) {
	data := executable(t, func(h *elf.Header64) { h.Type = uint16(elf.ET_DYN) }, load(8), elf.Prog64{Type: uint32(elf.PT_DYNAMIC), Filesz: 16})
	_, err := newLoadable(bytes.NewReader(data), int64(len(data)))
	assert.NoError(t, err)
}

func FuzzNewLoadable(f *testing.F) {
	f.Add(executable(f, nil, load(100), load(33)))
	f.Add(executable(f, nil, load(10), elf.Prog64{Type: uint32(elf.PT_INTERP), Filesz: 13}))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := newLoadable(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		if l.size > int64(len(data)) {
			t.Fatalf("%d bytes of %d", l.size, len(data))
		}
		p := make([]byte, l.size)
		if _, err := l.ReadAt(p, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	})
}

func TestArchive(t *testing.T) {
	exe := filepath.Join(t.TempDir(), "exe")
	require.NoError(t, os.WriteFile(exe, executable(t, nil, load(1000)), 0o755))
	i, err := Archive(exe)
	require.NoError(t, err)
	var b bytes.Buffer
	n, err := i.WriteTo(&b)
	require.NoError(t, err)
	assert.Equal(t, i.Size(), n)
	var got []string
	for r := initramfs.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		got = append(got, h.Mode.String()+" "+h.Name)
		if h.Name == "init" {
			assert.Equal(t, int64(64+56+1000), h.Size)
		}
	}
	assert.Equal(t, []string{
		"drwxr-xr-x dev",
		"drwxr-xr-x etc",
		"dr-xr-xr-x proc",
		"drwx------ root",
		"drwxr-xr-x run",
		"dr-xr-xr-x sys",
		"dtrwxrwxrwx tmp",
		"Dcrw------- dev/console",
		"Dcrw-r----- dev/mem",
		"Dcrw-rw-rw- dev/null",
		"-r--r--r-- etc/vole-guest",
		"-rwxr-xr-x init",
	}, got)
	require.NoError(t, i.Close())
	_, err = i.WriteTo(io.Discard)
	assert.ErrorIs(t, err, os.ErrClosed)
}

func TestArchiveRefuses(t *testing.T) {
	dir := t.TempDir()
	_, err := Archive(filepath.Join(dir, "none"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Archive(dir)
	assert.ErrorIs(t, err, ErrNotExecutable)
	assert.ErrorContains(t, err, "not a regular file")
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, bytes.Repeat([]byte("text "), 100), 0o755))
	_, err = Archive(text)
	assert.ErrorIs(t, err, ErrNotExecutable)
	assert.ErrorContains(t, err, "guest: "+text+": not an ELF executable")
}

// TestLinkedInit builds the least program that can be an init: it must be
// static, small, and free of the packages that would make every vole heavy.
func TestLinkedInit(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command")
	}
	exe := filepath.Join(t.TempDir(), "init")
	run := func(args ...string) string {
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "go %s: %s", strings.Join(args, " "), out)
		return string(out)
	}
	run("build", "-o", exe, "./testdata/init")
	i, err := Archive(exe)
	require.NoError(t, err)
	defer i.Close()
	whole, err := os.Stat(exe)
	require.NoError(t, err)
	t.Logf("executable %d bytes, initramfs %d", whole.Size(), i.Size())
	assert.Less(t, i.Size(), whole.Size(), "symbols are left out")
	assert.Less(t, i.Size(), int64(3<<20))

	deps := strings.Fields(run("list", "-deps", "./testdata/init"))
	for _, heavy := range []string{"net", "net/http", "text/template", "html/template", "regexp", "os/exec"} {
		assert.NotContains(t, deps, heavy)
	}
	for _, dep := range deps {
		if ours, ok := strings.CutPrefix(dep, "github.com/vole-vmm/vole/"); ok {
			assert.Contains(t, []string{"boot/initramfs", "guest", "guest/agent", "guest/wire", "guest/testdata/init"}, ours)
		}
	}
}
