package wire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Streams of a Preface besides those of the standard files, 0 to 2.
const (
	// Terminal is a command's terminal, both ways.
	Terminal = 3
	// Control is the control connection.
	Control = 0xff
)

// Preface is what a connection begins with.
type Preface struct {
	// Command is the ID of the command whose stream this is, 0 on the control
	// connection.
	Command uint32
	// Stream is 0 for standard input, 1 for output, 2 for error, Terminal or Control.
	Stream uint8
}

// PrefaceSize is a Preface's length in bytes, with the secret behind it.
const PrefaceSize = 16 + SecretSize

const (
	magic   = 0x656c6f76 // "vole"
	version = 3
)

// Append adds the Preface to b, and the guest's secret.
func (p Preface) Append(b []byte, secret Secret) []byte {
	b = binary.LittleEndian.AppendUint32(b, magic)
	b = append(b, version, p.Stream, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, p.Command)
	b = append(b, 0, 0, 0, 0)
	return append(b, secret[:]...)
}

// ReadPreface reads and checks a Preface, and nothing behind it. Without the guest's secret
// it is ErrSecret, whatever else it says.
func ReadPreface(r io.Reader, secret Secret) (Preface, error) {
	var b [PrefaceSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Preface{}, err
	}
	if !secret.Equal(Secret(b[PrefaceSize-SecretSize:])) {
		return Preface{}, ErrSecret
	}
	p := Preface{Stream: b[5], Command: binary.LittleEndian.Uint32(b[8:])}
	switch {
	case binary.LittleEndian.Uint32(b[:]) != magic:
		return p, fmt.Errorf("%w: a connection begins with %q", ErrFrame, b[:4])
	case b[4] != version:
		return p, fmt.Errorf("%w: version %d, not %d", ErrFrame, b[4], version)
	case p.Stream > Terminal && p.Stream != Control, p.Stream == Control && p.Command != 0:
		return p, fmt.Errorf("%w: stream %d of command %d", ErrFrame, p.Stream, p.Command)
	}
	return p, nil
}
