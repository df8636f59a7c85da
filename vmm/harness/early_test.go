package harness

import (
	"errors"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestEndings: a signal ends the context instead of the process.
func TestEndings(t *testing.T) {
	ctx, stop := Endings(t.Context())
	defer stop()
	require.NoError(t, ctx.Err())
	require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGTERM))
	<-ctx.Done()
}

// TestEarlySignals: a few wait until the guest is up.
func TestEarlySignals(t *testing.T) {
	var e EarlySignals
	var got []syscall.Signal
	to := func(s syscall.Signal) error {
		got = append(got, s)
		return nil
	}
	refuse := func(syscall.Signal) error { return errors.New("no guest") }
	e.Pass(syscall.SIGUSR1, refuse)
	for range 2 * MaxEarlySignals {
		e.Pass(syscall.SIGUSR2, refuse)
	}
	assert.Empty(t, got)
	e.Send(to)
	require.Len(t, got, MaxEarlySignals)
	assert.Equal(t, []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2}, got[:2])
	e.Pass(syscall.SIGUSR1, to)
	assert.Len(t, got, MaxEarlySignals+1)
	e.Send(to)
	assert.Len(t, got, MaxEarlySignals+1)
}
