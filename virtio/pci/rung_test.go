package pci_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
)

// rung reports whether a bell that nobody waits for has been rung, and stills it.
func rung(t *testing.T, b *virtio.Doorbell) bool {
	t.Helper()
	var n [8]byte
	_, err := unix.Read(b.FD(), n[:])
	if err == unix.EAGAIN {
		return false
	}
	require.NoError(t, err)
	return true
}
