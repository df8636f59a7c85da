package virtio

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestMuffle(t *testing.T) {
	var m Muffle
	for _, tt := range []struct {
		at   time.Duration
		held uint64
		ok   bool
	}{
		{0, 0, true},
		{time.Millisecond, 0, false},
		{time.Second - 1, 0, false},
		{time.Second, 2, true},
		{time.Second + 1, 0, false},
		{time.Minute, 1, true},
		{time.Minute + time.Second, 0, true},
	} {
		held, ok := m.Pass(tt.at)
		assert.Equal(t, tt.ok, ok, "at %v", tt.at)
		assert.Equal(t, tt.held, held, "at %v", tt.at)
	}
}
