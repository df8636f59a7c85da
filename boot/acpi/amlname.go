package acpi

import (
	"encoding/binary"
	"strings"
)

const (
	dualNamePrefix  = 0x2e
	multiNamePrefix = 0x2f
	maxNameSegs     = 255
)

// nameSeg is one name segment of one to four characters, padded to four with
// underscores (ACPI 6.3, section 20.2.2).
func nameSeg(s string) term {
	if len(s) < 1 || len(s) > 4 {
		return badTerm("name segment %q does not have 1 to 4 characters", s)
	}
	b := []byte("____")
	for i := range len(s) {
		c := s[i]
		if !(c == '_' || 'A' <= c && c <= 'Z' || i > 0 && '0' <= c && c <= '9') {
			return badTerm("name segment %q: %q cannot stand at %d", s, c, i)
		}
		b[i] = c
	}
	return term{b: b}
}

// nameString is a path as ASL writes it: an optional \ or a run of ^, then
// segments with dots between them, or nothing.
func nameString(path string) term {
	rest := path
	if strings.HasPrefix(rest, `\`) {
		rest = rest[1:]
	} else {
		rest = strings.TrimLeft(rest, "^")
	}
	prefix := raw([]byte(path[:len(path)-len(rest)])...)
	if rest == "" {
		return join(prefix, raw(0))
	}

	segs := strings.Split(rest, ".")
	switch n := len(segs); {
	case n > maxNameSegs:
		return badTerm("a path has at most %d segments, not %d", maxNameSegs, n)
	case n > 2:
		prefix = join(prefix, raw(multiNamePrefix, byte(n)))
	case n == 2:
		prefix = join(prefix, raw(dualNamePrefix))
	}
	terms := []term{prefix}
	for _, s := range segs {
		terms = append(terms, nameSeg(s))
	}
	return join(terms...)
}

// eisaID is a seven-character hardware id such as PNP0501 as the compressed
// integer that ASL's EISAID gives (ACPI 6.3, section 19.3.4): three letters of
// five bits and four hexadecimal digits, big-endian.
func eisaID(id string) term {
	if len(id) != 7 {
		return badTerm("EISA id %q does not have 7 characters", id)
	}
	var v uint32
	for i := range len(id) {
		switch c := id[i]; {
		case i < 3 && 'A' <= c && c <= 'Z':
			v = v<<5 | uint32(c-'A'+1)
		case i >= 3 && '0' <= c && c <= '9':
			v = v<<4 | uint32(c-'0')
		case i >= 3 && 'A' <= c && c <= 'F':
			v = v<<4 | uint32(c-'A'+10)
		default:
			return badTerm("EISA id %q is not three letters and four upper-case hexadecimal digits", id)
		}
	}
	return term{b: binary.BigEndian.AppendUint32([]byte{opDWordPrefix}, v)}
}

// uuid is the 16-byte buffer that ASL's ToUUID gives (ACPI 6.3, section
// 19.6.142): the first three groups have their bytes reversed.
func uuid(s string) term {
	// The position in the text of each byte's two digits.
	at := [16]int{6, 4, 2, 0, 11, 9, 16, 14, 19, 21, 24, 26, 28, 30, 32, 34}
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return badTerm("UUID %q is not of the form 8-4-4-4-12", s)
	}
	b := make([]byte, len(at))
	for i, p := range at {
		hi, okHi := hexDigit(s[p])
		lo, okLo := hexDigit(s[p+1])
		if !okHi || !okLo {
			return badTerm("UUID %q has a character that is not a hexadecimal digit", s)
		}
		b[i] = hi<<4 | lo
	}
	return buffer(b)
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
