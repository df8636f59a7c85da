package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSecret(t *testing.T) {
	a, b := NewSecret(), NewSecret()
	assert.True(t, a.Equal(a))
	assert.False(t, a.Equal(b))
	text, err := json.Marshal(Config{Secret: a})
	require.NoError(t, err)
	var c Config
	require.NoError(t, json.Unmarshal(text, &c))
	assert.True(t, a.Equal(c.Secret))
	for name, bad := range map[string]string{"short": "c2VjcmV0", "not base64": "****", "none": ""} {
		t.Run(name, func(t *testing.T) {
			var s Secret
			err := json.Unmarshal([]byte(`"`+bad+`"`), &s)
			require.Error(t, err)
			assert.Equal(t, "wire: malformed: no secret of 32 bytes", err.Error())
			assert.Zero(t, s)
		})
	}
}

// Whoever prints it, or what has it, prints nothing of it.
func TestSecretIsNotShown(t *testing.T) {
	s := Secret{0x41, 0x42, 0x43, 31: 0x44}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		assert.Equal(t, "(secret)", fmt.Sprintf(verb, s))
		assert.Equal(t, "(secret)", fmt.Sprintf(verb, &s))
		text := fmt.Sprintf(verb, Config{Secret: s})
		assert.Contains(t, text, "(secret)")
		for _, shown := range []string{"ABC", "414243", "65 66 67", "0x41", "QUJD"} {
			assert.NotContains(t, text, shown, verb)
		}
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "secret", s, "error", fmt.Errorf("%v", s))
	assert.NotContains(t, log.String(), "QUJD")
}
