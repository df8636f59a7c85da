package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/vmm"
)

// TestUnpack: with --boot vmlinux a kernel that is not in the cache is put there first, which the
// timeout and a signal end as they end a guest.
func TestUnpack(t *testing.T) {
	kernels := filepath.SplitList(os.Getenv("VOLE_TEST_KERNELS"))
	if len(kernels) == 0 {
		t.Skip("VOLE_TEST_KERNELS names no kernels")
	}
	cache, err := kernel.NewCache(t.TempDir())
	require.NoError(t, err)
	s := &session{cfg: vmm.Config{Kernel: kernels[0], Boot: vmm.BootVMLinux, Cache: cache, Timeout: time.Nanosecond}}
	exit, over := s.unpack(t.Context())
	assert.True(t, over)
	assert.Equal(t, vmm.Timeout, exit.Reason)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	exit, over = s.unpack(ctx)
	assert.True(t, over)
	assert.Equal(t, vmm.Killed, exit.Reason)

	s.cfg.Timeout = time.Hour
	_, over = s.unpack(t.Context())
	assert.False(t, over)
	assert.Less(t, s.cfg.Timeout, time.Hour, "what it took is of the run's time")
	_, held, err := cache.Lookup(kernels[0])
	require.NoError(t, err)
	assert.True(t, held)
}
