package virtiotest

import (
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestGrowth: what is left behind is found, and nothing else.
func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		name, say string
		leave     func(t *testing.T)
	}{
		{"nothing", "", func(t *testing.T) {
			_ = make([]byte, 2*growthHeap)
		}},
		{"goroutines", "goroutines", func(t *testing.T) {
			stop := make(chan struct{})
			for range growthGoroutines + 1 {
				go func() { <-stop }()
			}
			t.Cleanup(func() { close(stop) })
		}},
		{"files", "open files", func(t *testing.T) {
			for range growthFiles + 1 {
				f, err := os.Open(os.DevNull)
				require.NoError(t, err)
				t.Cleanup(func() { _ = f.Close() })
			}
		}},
		{"memory", "bytes on the heap", func(t *testing.T) {
			b := make([]byte, growthHeap+1<<20)
			t.Cleanup(func() { runtime.KeepAlive(b) })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var g Growth
			require.NoError(t, g.look())
			require.NoError(t, g.look())
			c.leave(t)
			err := g.look()
			if c.say == "" {
				assert.NoError(t, err)
				return
			}
			require.Error(t, err)
			assert.ErrorContains(t, err, c.say)
		})
	}
	var g Growth
	for range 2 * growthEvery {
		g.Check(t)
	}
	assert.Equal(t, 2*growthEvery, g.calls)
	assert.NotNil(t, g.first)
}
