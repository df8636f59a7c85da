package main

import (
	"context"
	"io"
	"log/slog"
	"os"
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

func TestOrphaned(t *testing.T) {
	// Which it is depends on who runs the tests; it must come to an end and be stable.
	assert.Equal(t, orphaned(), orphaned())
}
