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
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(b.FD()), Events: unix.POLLIN}}, 0)
	require.NoError(t, err)
	if ready == 0 {
		return false
	}
	var n [8]byte
	_, err = unix.Read(b.FD(), n[:])
	require.NoError(t, err)
	return true
}
