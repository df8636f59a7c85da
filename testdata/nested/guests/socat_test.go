package guests

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestSocat: the sockets as any program has them: socat on both sides, into the
// guest by the line that names the port, and out of it, with bytes both ways on each.
func TestSocat(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	tools, err := nested.Programs(nested.ComponentNet, "bin/socat")
	if err != nil {
		t.Skipf("%v", err)
	}
	t.Parallel()
	kernel := nested.KernelCloud61
	path := filepath.Join(t.TempDir(), "v")
	initrd := moduleInitWith(t, kernel, vsockModules, maps.Clone(tools), `
echo out of the guest | socat -t60 - VSOCK-CONNECT:2:7005
socat VSOCK-LISTEN:7004 SYSTEM:'read line; echo "the guest heard: $line"'
read end
`)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	server, err := nested.ProgramCommand(ctx, nested.ComponentNet, "bin/socat", "-t60", "UNIX-LISTEN:"+path+"_7005", "-")
	require.NoError(t, err)
	heard := new(strings.Builder)
	server.Stdin, server.Stdout = strings.NewReader("the host answers\n"), heard
	require.NoError(t, server.Start())
	answer := make(chan string, 1)
	go func() {
		var out []byte
		_ = retry(func() error {
			client, err := nested.ProgramCommand(ctx, nested.ComponentNet, "bin/socat", "-t60", "-", "UNIX-CONNECT:"+path)
			if err != nil {
				return err
			}
			client.Stdin = strings.NewReader("CONNECT 7004\ninto the guest\n")
			if out, err = client.Output(); err == nil && !strings.Contains(string(out), "heard") {
				return context.DeadlineExceeded // the guest does not listen yet
			}
			return err
		})
		answer <- string(out)
	}()
	run, keys := startTyped(t, "run", "-k", asset(t, kernel), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux", "--vsock", path)
	var lines []string
	select {
	case text := <-answer:
		lines = strings.SplitN(text, "\n", 2)
		_, err = keys.Write([]byte("\n")) // the guest may end: nothing is under way
		require.NoError(t, err)
	case <-ctx.Done():
		require.Fail(t, "no answer", "console: %s", run.out)
	}
	r := run.wait()
	said := "console: " + r.stdout + "\nstderr: " + r.stderr
	require.Equal(t, 0, r.code, said)
	require.NoError(t, server.Wait(), said)
	assert.Equal(t, "out of the guest\n", heard.String(), said)
	assert.Contains(t, r.stdout, "the host answers\r\n", said)
	require.Len(t, lines, 2, said)
	assert.Regexp(t, `^OK \d+$`, lines[0])
	assert.Equal(t, "the guest heard: into the guest\n", lines[1])
}

func firecrackerPath() (string, error) {
	dir, err := nested.CacheDir()
	return filepath.Join(dir, "bin", "firecracker-dial"), err
}

// buildFirecracker builds the client of Firecracker's library, outside of the emulated host.
func buildFirecracker() error {
	path, err := firecrackerPath()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-C", "../../firecracker", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building testdata/firecracker: %w\n%s", err, out)
	}
	return nil
}

// TestFirecrackerClient: Firecracker's own client of these sockets, which nobody here has
// written, reaches the guest: a MiB there and back.
func TestFirecrackerClient(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	program, err := firecrackerPath()
	require.NoError(t, err)
	tools, err := nested.Programs(nested.ComponentNet, "bin/socat")
	if err != nil {
		t.Skipf("%v", err)
	}
	t.Parallel()
	path := filepath.Join(t.TempDir(), "v")
	initrd := moduleInitWith(t, nested.KernelCloud61, vsockModules, maps.Clone(tools), `
socat VSOCK-LISTEN:7004 EXEC:cat &
read end
`)
	run, keys := startTyped(t, "run", "-k", asset(t, nested.KernelCloud61), "-i", initrd, "-m", "256M", "-a", "quiet", "--boot", "vmlinux", "--vsock", path)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i >> 3)
	}
	client := exec.CommandContext(ctx, program, path, "7004")
	client.Stdin = bytes.NewReader(data)
	var said bytes.Buffer
	client.Stderr = &said
	got, err := client.Output()
	_, _ = keys.Write([]byte("\n")) // the guest may end
	r := run.wait()
	require.NoError(t, err, "%s\nconsole: %s\nstderr: %s", &said, r.stdout, r.stderr)
	assert.True(t, bytes.Equal(data, got), "%d bytes of %d", len(got), len(data))
	assert.Equal(t, 0, r.code)
}
