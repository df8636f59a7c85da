package remote

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vole-vmm/vole/guest/wire"
)

const (
	// maxText is as much of a text of the agent's as is kept, in bytes.
	maxText = 500
	// maxProblems is how many problems of an agent's are kept.
	maxProblems = 32
)

// clean makes one line of a text of the agent's that has a bound and steers no terminal.
func clean(s string) string {
	var b strings.Builder
	for i, r := range s {
		if b.Len() >= maxText {
			return b.String() + "..."
		}
		_, size := utf8.DecodeRuneInString(s[i:])
		if raw := r == utf8.RuneError && size == 1; raw || !unicode.IsPrint(r) {
			quoted := strconv.QuoteToASCII(s[i : i+size])
			b.WriteString(quoted[1 : len(quoted)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func cleanHello(h wire.Hello) wire.Hello {
	h.Release, h.Lacks = clean(h.Release), clean(h.Lacks)
	h.Problems = h.Problems[:min(len(h.Problems), maxProblems)]
	for i, p := range h.Problems {
		h.Problems[i] = clean(p)
	}
	return h
}
