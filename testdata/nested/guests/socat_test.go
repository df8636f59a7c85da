package guests

import (
	"context"
	"maps"
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
