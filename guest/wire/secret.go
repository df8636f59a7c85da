package wire

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// SecretSize is a Secret's length in bytes.
const SecretSize = 32

// Secret is what only a guest's agent knows, and its host: other programs of the guest may
// connect to the same port. The host makes one for each guest ([NewSecret]); it comes to the
// agent in its [Config] and back in each [Preface]. However it is formatted, it is not shown;
// as JSON it is.
type Secret [SecretSize]byte

// ErrSecret reports a connection that does not know the guest's secret.
var ErrSecret = errors.New("wire: a connection without the guest's secret")

// NewSecret makes one at random.
func NewSecret() (s Secret) {
	_, _ = rand.Read(s[:]) // never fails
	return s
}

// Equal compares two of them in a time that says nothing of either.
func (s Secret) Equal(t Secret) bool { return subtle.ConstantTimeCompare(s[:], t[:]) == 1 }

const secretShown = "(secret)"

// Format implements fmt.Formatter: whatever the verb, nothing is shown.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, secretShown) }

// LogValue implements slog.LogValuer, as Format.
func (Secret) LogValue() slog.Value { return slog.StringValue(secretShown) }

// MarshalText implements encoding.TextMarshaler, for the agent's Config.
func (s Secret) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, s[:]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler. Its errors don't show the text.
func (s *Secret) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil || len(b) != SecretSize {
		return fmt.Errorf("%w: no secret of %d bytes", ErrFrame, SecretSize)
	}
	copy(s[:], b)
	return nil
}
