package block

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestHabit(t *testing.T) {
	var h habit
	quickly := func(n int) {
		for range n {
			h.took(quickWrite)
		}
	}
	assert.False(t, h.quick(), "nothing is known")
	quickly(habitQuick - 1)
	assert.False(t, h.quick())
	quickly(1)
	assert.True(t, h.quick())
	quickly(1000)
	h.took(time.Hour)
	assert.True(t, h.quick(), "one was held up")
	quickly(7)
	h.took(quickWrite + 1)
	assert.True(t, h.quick(), "one of eight is")
	for range 3 {
		h.took(time.Second)
	}
	assert.False(t, h.quick(), "the disk has become slow")
	quickly(habitQuick)
	assert.True(t, h.quick())
}
