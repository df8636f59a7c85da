package block

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

// TestWaitless: only a read that says it can't wait is hidden from the runtime's
// scheduler, so that nothing else ever waits for storage with it.
func TestWaitless(t *testing.T) {
	for _, c := range []struct {
		name     string
		inMemory bool
		trap     uintptr
		want     bool
	}{
		{"read of a file that storage has", false, unix.SYS_PREADV2, true},
		{"read of a file in memory", true, unix.SYS_PREADV2, false},
		{"write to a file that storage has", false, unix.SYS_PWRITEV2, false},
		{"write to a file in memory", true, unix.SYS_PWRITEV2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := promptness{inMemory: c.inMemory}
			assert.Equal(t, c.want, waitless(c.trap, p.flags()))
		})
	}
}
