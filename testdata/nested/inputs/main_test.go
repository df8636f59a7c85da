package inputs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

func TestMain(m *testing.M) {
	stageIfAsked()
	// These tests need no /dev/kvm that boots a kernel.
	os.Setenv("VOLE_NESTED", "never")
	nested.Main(m, nested.Options{Assets: []string{nested.AssetVole}})
}

// patience bounds every run of vole here.
const patience = time.Minute

// result is what came of a vole command.
type result struct {
	code           int
	stdout, stderr string
}

func asset(t testing.TB, name string) string {
	t.Helper()
	path, err := nested.Asset(name)
	require.NoError(t, err)
	return path
}

// vole runs the vole command with nothing on stdin and a cache in dir.
func vole(t testing.TB, dir string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, asset(t, nested.AssetVole), args...)
	cmd.Env = append(os.Environ(), "VOLE_CACHE="+filepath.Join(dir, "cache"))
	return finish(t, cmd)
}

func finish(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// file makes a file in a directory of the test's own.
func file(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o644))
	return path
}

// sparse is a file of that many bytes and no content.
func sparse(t testing.TB, size int64) string {
	t.Helper()
	path := file(t, "sparse", nil)
	require.NoError(t, os.Truncate(path, size))
	return path
}

// elfAt is a kernel that says "up" on COM1 and powers off, loaded and entered at
// paddr.
func elfAt(t testing.TB, paddr, memsz uint64) string {
	t.Helper()
	return elfOf(t, paddr, memsz, slices.Concat(outb(0x3f8, 'u'), outb(0x3f8, 'p'), outb(0x3f8, '\n'), powerOff()))
}

// outb is mov dx, port; mov al, v; out dx, al.
func outb(port uint16, v byte) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xb0, v, 0xee}
}

// powerOff writes the ACPI sleep register; then cli; hlt; and back to the cli.
func powerOff() []byte { return append(outb(0x600, 1<<5|5<<2), 0xfa, 0xf4, 0xeb, 0xfc) }

// elfOf is a kernel of that code, an ELF file whose one segment it is.
func elfOf(t testing.TB, paddr, memsz uint64, code []byte) string {
	t.Helper()
	const headers = 64 + 56
	b := slices.Concat([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9))
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2)     // ET_EXEC
	b = le.AppendUint16(b, 62)    // EM_X86_64
	b = le.AppendUint32(b, 1)     // EV_CURRENT
	b = le.AppendUint64(b, paddr) // e_entry
	b = le.AppendUint64(b, 64)    // e_phoff
	b = le.AppendUint64(b, 0)     // e_shoff
	b = le.AppendUint32(b, 0)     // e_flags
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // PF_R | PF_X
	for _, v := range []uint64{headers, paddr, paddr, uint64(len(code)), max(memsz, uint64(len(code))), 1} {
		b = le.AppendUint64(b, v)
	}
	return file(t, "payload", append(b, code...))
}

// refused holds a result to the form of every refusal: that exit code, nothing
// on stdout, and one line on stderr that contains the words.
func refused(t testing.TB, r result, code int, words ...string) {
	t.Helper()
	assert.Equal(t, code, r.code, r.stderr)
	assert.Empty(t, r.stdout)
	assert.True(t, strings.HasPrefix(r.stderr, "vole: run: "), r.stderr)
	assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
	for _, w := range words {
		assert.Contains(t, r.stderr, w)
	}
	assert.NotContains(t, r.stderr, "goroutine")
}
