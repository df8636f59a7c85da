package inputs

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestThrough: input from a pipe through a guest that echoes it, and no byte
// lost on either way: 1 MiB in the larger suites. Here the guest is a loop of a
// few instructions, since a kernel that does the same takes too long in the
// emulated host.
func TestThrough(t *testing.T) {
	size := 64 << 10
	if nested.CurrentSuite() != nested.SuiteTest {
		size = 1 << 20
	}
	needKVM(t)
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
	code := binary.LittleEndian.AppendUint32([]byte{0xb9}, uint32(len(data))) // mov ecx, length
	code = append(code,
		0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd: LSR
		0xec,       // in al, dx
		0xa8, 0x01, // test al, 1: data ready
		0x74, 0xfb, // jz to the in
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xec,       // in al, dx
		0xee,       // out dx, al
		0xff, 0xc9, // dec ecx
		0x75, 0xed, // jnz to the first mov dx
	)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, asset(t, nested.AssetVole), "run", "-k", elfOf(t, 1<<20, 0, append(code, powerOff()...)),
		"-i", file(t, "initrd", []byte("unused")), "-m", "8M")
	cmd.Env = append(os.Environ(), "VOLE_CACHE="+filepath.Join(t.TempDir(), "cache"))
	cmd.Stdin = bytes.NewReader(data)
	began := time.Now()
	r := finish(t, cmd)
	took := time.Since(began)
	require.Equal(t, 0, r.code, r.stderr)
	assert.Equal(t, len(data), len(r.stdout))
	assert.True(t, string(data) == r.stdout, "what comes out is what went in")
	t.Logf("%d KiB in and out in %.1f s, %.1f us a byte", size>>10, took.Seconds(), float64(took.Microseconds())/float64(len(data)))
}
