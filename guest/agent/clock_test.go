package agent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A clock is set if it shows a time that it can't be, and to one that is not worse.
func TestClockStep(t *testing.T) {
	const sent = int64(1e18)
	for name, c := range map[string]struct {
		off, age, want time.Duration // since sent
		set            bool
	}{
		"right":                   {off: 0},
		"the host's word is late": {off: time.Second, age: time.Second},
		"in between":              {off: time.Second / 2, age: time.Second},
		"a little behind":         {off: -clockSlack, age: time.Second},
		"a little ahead":          {off: time.Second + clockSlack, age: time.Second},
		"behind":                  {off: -clockSlack - 1, age: time.Second, want: 0, set: true},
		"ahead":                   {off: time.Second + clockSlack + 1, age: time.Second, want: time.Second, set: true},
		"whole seconds":           {off: -900 * time.Millisecond, age: time.Millisecond, want: 0, set: true},
		"never set":               {off: -time.Duration(sent), age: time.Millisecond, want: 0, set: true},
		"asked for":               {off: time.Hour, want: 0, set: true},
	} {
		t.Run(name, func(t *testing.T) {
			set, off := clockStep(sent+int64(c.off), sent, c.age)
			assert.Equal(t, c.set, off)
			if c.set {
				assert.Equal(t, sent+int64(c.want), set)
			}
		})
	}
}
