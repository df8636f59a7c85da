package vmtest

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// FuzzConsole: whatever a guest writes, and in whatever parts, the console has it, its
// lines are those that were passed on, and a log of it has no control characters.
func FuzzConsole(f *testing.F) {
	f.Add([]byte("one\r\ntwo\r\r\n\x1b[2J\xff\n"), uint8(3))
	f.Add([]byte("\r\n\r"), uint8(1))
	f.Fuzz(func(t *testing.T, text []byte, part uint8) {
		var lines, raw strings.Builder
		c := &console{line: func(s string) { lines.WriteString(s + "\n") }}
		c.tees = append(c.tees, &raw)
		for rest := text; len(rest) > 0; {
			n := min(int(part)+1, len(rest))
			_, _ = c.Write(rest[:n])
			rest = rest[n:]
		}
		want := strings.TrimSuffix(strings.ReplaceAll(string(text), "\r\n", "\n"), "\r")
		assert.Equal(t, want, c.String())
		assert.Equal(t, string(text), raw.String())
		c.flush()
		if len(text) < maxMatch {
			logged := strings.ReplaceAll(want, "\r", "")
			if logged != "" && !strings.HasSuffix(logged, "\n") {
				logged += "\n"
			}
			assert.Equal(t, logged, lines.String())
		}
		assert.LessOrEqual(t, strings.Count(c.tail(3, 100), "\n"), 2)
		for _, r := range printable(string(text)) {
			assert.True(t, r >= ' ' && r != 0x7f || r == '\n' || r == '\t')
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		found, err := c.expect(ctx, regexp.MustCompile(`two`), nil)
		assert.Equal(t, bytes.Contains([]byte(want), []byte("two")), err == nil)
		assert.Equal(t, err == nil, found != nil)
	})
}
