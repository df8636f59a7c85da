package spec

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/vole-vmm/vole/vmm"
)

// ErrSize reports a text that is not a size; errTooLarge a size beyond 64 bits.
var (
	ErrSize     = errors.New("not a size")
	errTooLarge = fmt.Errorf("%w that fits in 64 bits", ErrSize)
)

// units are the binary units of a size: each is 1024 times the one before it.
const units = "KMGTPE"

// ParseSize reads a number of bytes: decimal digits, then nothing, or one of K, M, G, T, P, E in
// either case for that power of 1024, also written KiB and so on. A size that does not fit in 64
// bits is an error like any other that is too large. Errors wrap ErrSize.
func ParseSize(s string) (uint64, error) {
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, ok := digits(s[:end])
	unit := strings.TrimSuffix(strings.ToUpper(s[end:]), "IB")
	shift := 0
	if unit != "" {
		i := strings.Index(units, unit)
		if i < 0 || len(unit) != 1 {
			ok = false
		}
		shift = 10 * (i + 1)
	} else if end != len(s) {
		ok = false // "5iB"
	}
	switch {
	case !ok:
		return 0, fmt.Errorf("%q is %w: want a number of bytes, or one with K, M, G or T, as 512M", s, ErrSize)
	case n == math.MaxUint64 || bits.Len64(n)+shift > 64:
		return 0, fmt.Errorf("%q is %w", s, errTooLarge)
	}
	return n << shift, nil
}

// ParseMemory reads an amount of RAM and checks it against what a machine can have.
func ParseMemory(s string) (uint64, error) {
	n, err := ParseSize(s)
	limits := fmt.Sprintf("from %s to %s, as 512M", FormatSize(vmm.MinMemory), FormatSize(vmm.MaxMemory))
	switch {
	case errors.Is(err, errTooLarge):
		return 0, fmt.Errorf("%q is too much: want %s", s, limits)
	case err != nil:
		return 0, err
	case n < vmm.MinMemory && !hasUnit(s) && n >= vmm.MinMemory>>20:
		return 0, fmt.Errorf("%q is a number of bytes and too little: want %s (did you mean %sM?)", s, limits, s)
	case n < vmm.MinMemory:
		return 0, fmt.Errorf("%q is too little: want %s", s, limits)
	case n > vmm.MaxMemory:
		return 0, fmt.Errorf("%q is too much: want %s", s, limits)
	case n%pageSize != 0:
		return 0, fmt.Errorf("%q is not a multiple of %d bytes", s, pageSize)
	}
	return n, nil
}

// pageSize is what guest RAM is a multiple of.
const pageSize = 4096

func hasUnit(s string) bool {
	return s != "" && (s[len(s)-1] < '0' || s[len(s)-1] > '9')
}

// FormatSize is the shortest text that ParseSize reads as n.
func FormatSize(n uint64) string {
	i := 0
	for n != 0 && n%1024 == 0 && i < len(units) {
		n /= 1024
		i++
	}
	if i == 0 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d%c", n, units[i-1])
}
