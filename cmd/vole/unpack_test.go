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

// TestUnpackEnds: with --boot vmlinux a kernel that is not in the cache is put there first, which the
// timeout and a signal end as they end a guest.
func TestUnpackEnds(t *testing.T) {
	kernels := filepath.SplitList(os.Getenv("VOLE_TEST_KERNELS"))
	if len(kernels) == 0 {
		t.Skip("VOLE_TEST_KERNELS names no kernels")
	}
	cache, err := kernel.NewCache(t.TempDir())
	require.NoError(t, err)
	s := &session{cfg: vmm.Config{Kernel: kernels[0], Memory: 512 << 20, Boot: vmm.BootVMLinux, Cache: cache, Timeout: time.Nanosecond}}
	_, err = s.newMachine(t.Context())
	assert.Equal(t, errTimeUp, err)

	s.cfg.Kernel = filepath.Join(t.TempDir(), "none")
	_, err = s.newMachine(t.Context())
	assert.ErrorIs(t, err, vmm.ErrConfig, "bad input stays bad input, however little time there is")

	s.cfg.Kernel, s.cfg.Timeout = kernels[0], time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.newMachine(ctx)
	assert.ErrorIs(t, err, context.Canceled)
	_, held, err := cache.Lookup(kernels[0])
	require.NoError(t, err)
	assert.False(t, held)
}
