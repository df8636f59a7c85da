package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fillPipe writes to a pipe until it takes no more. Its description is blocking before and after.
func fillPipe(t *testing.T, w int) {
	t.Helper()
	require.NoError(t, unix.SetNonblock(w, true))
	for block := make([]byte, 4096); ; {
		if _, err := unix.Write(w, block); err != nil {
			require.ErrorIs(t, err, unix.EAGAIN)
			break
		}
	}
	require.NoError(t, unix.SetNonblock(w, false))
}

// fullPipe is the end for writing of a pipe that nobody reads.
func fullPipe(t *testing.T) *os.File {
	t.Helper()
	var fds [2]int
	require.NoError(t, unix.Pipe2(fds[:], unix.O_CLOEXEC))
	t.Cleanup(func() { unix.Close(fds[0]) })
	fillPipe(t, fds[1])
	w := os.NewFile(uintptr(fds[1]), "pipe")
	t.Cleanup(func() { w.Close() })
	return w
}

// TestStderrBlocked: whoever doesn't read stderr holds up no end, and changes no exit code.
func TestStderrBlocked(t *testing.T) {
	for name, tc := range map[string]struct {
		args func(*testing.T) []string
		want int
	}{
		"bad usage": {func(*testing.T) []string { return []string{"run", "-k", "/nowhere"} }, codeUsage},
		"timeout":   {func(t *testing.T) []string { return machineArgs(t, flood(), "--timeout", "200ms") }, codeTimeout},
		"reset":     {func(t *testing.T) []string { return machineArgs(t, reset(), "--report", "-", "-v") }, codeReset},
		"no report": {func(t *testing.T) []string { return machineArgs(t, powerOff(), "--report", "-") }, codeHost},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := commandWithin(t, 20*time.Second, tc.args(t)...)
			full := fullPipe(t)
			cmd.Stdout, cmd.Stderr = full, full
			err := cmd.Run()
			var exit *exec.ExitError
			require.True(t, errors.As(err, &exit), err)
			assert.Equal(t, tc.want, exit.ExitCode(), "%v", exit)
			assert.False(t, nonblock(t, full), "the inherited description is as it was")
		})
	}
}

// TestBoundedWriter: what is not taken in time is lost; the writer goes on when its reader does.
func TestBoundedWriter(t *testing.T) {
	for name, open := range endKinds {
		t.Run(name, func(t *testing.T) {
			r, s := open(t).streams(t)
			w := &boundedWriter{stream: s}
			n, err := w.Write(make([]byte, 1<<24))
			assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
			assert.Positive(t, n)
			began := time.Now()
			for range 10 { // only the first of these has its second
				_, err = w.Write([]byte("lost\n"))
				assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
			}
			assert.Less(t, time.Since(began), 5*writeBound)

			_, err = io.ReadFull(r, make([]byte, n))
			require.NoError(t, err)
			_, err = w.Write([]byte("on\n"))
			require.NoError(t, err)
			got := make([]byte, 3)
			_, err = io.ReadFull(r, got)
			require.NoError(t, err)
			assert.Equal(t, "on\n", string(got))
		})
	}
}
