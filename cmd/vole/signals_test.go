package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestSecondSignal: the first signal asks for an orderly end, the second ends the process.
func TestSecondSignal(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	codes := make(chan int, 1)
	s := watchSignals(cancel, nil, new(live), io.Discard, slog.New(slog.DiscardHandler), func(code int) { codes <- code })
	defer s.stop()
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGINT))
	<-ctx.Done()
	var stop *stopped
	require.ErrorAs(t, context.Cause(ctx), &stop)
	assert.Equal(t, &stopped{130, "SIGINT"}, stop)
	assert.Empty(t, codes)
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	assert.Equal(t, 143, <-codes)
}

// TestHangupIgnored: what nohup asks for is kept.
func TestHangupIgnored(t *testing.T) {
	cmd := command(t, machineArgs(t, append(say("up\n"), echo()...))...)
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skipf("needs a shell: %v", err)
	}
	cmd.Args = append([]string{"sh", "-c", `trap "" HUP; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = sh
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	assert.Equal(t, "up\n", readLine(t, out))

	status, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
	require.NoError(t, err)
	_, mask, _ := strings.Cut(string(status), "SigIgn:\t")
	mask, _, _ = strings.Cut(mask, "\n")
	ignored, err := strconv.ParseUint(mask, 16, 64)
	require.NoError(t, err)
	assert.NotZero(t, ignored&(1<<(syscall.SIGHUP-1)), "SIGHUP is ignored still")

	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
	_, err = io.WriteString(in, "on\n")
	require.NoError(t, err)
	assert.Equal(t, "on\n", readLine(t, out))
	_, err = io.WriteString(in, "q")
	require.NoError(t, err)
	_ = cmd.Wait()
	assert.Equal(t, codeOK, cmd.ProcessState.ExitCode())
}

func TestOrphaned(t *testing.T) {
	// Which it is depends on who runs the tests; it must come to an end and be stable.
	assert.Equal(t, orphaned(), orphaned())
}
