package vmm

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/kvm"
)

// TestProbeEndsWithItsContext: a test guest that never leaves does not keep
// Probe beyond its context.
func TestProbeEndsWithItsContext(t *testing.T) {
	needKVM(t)
	sys, err := kvm.Open("")
	require.NoError(t, err)
	defer sys.Close()
	for _, tc := range []struct {
		name  string
		bound time.Duration
	}{{"while the guest runs", 50 * time.Millisecond}, {"before", 0}} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), tc.bound)
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := instructionRate(ctx, sys, spin)
				done <- err
			}()
			select {
			case err := <-done:
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			case <-time.After(patience):
				require.Fail(t, "it still runs")
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = Probe(ctx)
	assert.ErrorIs(t, err, context.Canceled)
	_, err = Probe(context.Background())
	assert.NoError(t, err, "and the next one works")
}
