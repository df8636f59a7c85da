package spec

import (
	"fmt"
	"math"
	"strings"

	"github.com/vole-vmm/vole/virtio"
)

// option is a word behind what a flag names: one with a value, or one that stands alone and then
// has a value of its own.
type option[T any] struct {
	name  string
	alone string // what the bare word means; "" if it needs a value
	set   func(to *T, v string) error
}

// parseOptions takes the words behind the first of s. what says of what they are options, and what
// there is.
func parseOptions[T any](s string, words []string, known []option[T], to *T, what string) error {
	seen := map[string]bool{}
	for _, word := range words {
		name, value, valued := strings.Cut(word, "=")
		var o *option[T]
		for i := range known {
			if known[i].name == name {
				o = &known[i]
			}
		}
		switch {
		case o == nil:
			return fmt.Errorf("%q: %q is no option of %s", s, word, what)
		case seen[name]:
			return fmt.Errorf("%q: %s is given more than once", s, name)
		case !valued && o.alone == "":
			return fmt.Errorf("%q: %s needs a value, as %s=VALUE", s, name, name)
		case !valued:
			value = o.alone
		case value == "":
			return fmt.Errorf("%q: %s is empty", s, name)
		}
		seen[name] = true
		if err := o.set(to, value); err != nil {
			return fmt.Errorf("%q: %s: %w", s, name, err)
		}
	}
	return nil
}

func onOff(v string) (bool, error) {
	switch v {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither on nor off", v)
}

// splitCommas splits at commas; two of them are one in a word.
func splitCommas(s string) []string {
	var words []string
	var word strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			word.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			word.WriteByte(',')
			i++
		default:
			words = append(words, word.String())
			word.Reset()
		}
	}
	return append(words, word.String())
}

// rate is one number of a device's limits, as it stands in the description.
type rate struct {
	name string
	text Text
	to   *int64
}

// parseRates reads the numbers that are given, and checks what they make.
func parseRates(limits *virtio.Limits, rates []rate) error {
	for _, r := range rates {
		if r.text == "" {
			continue
		}
		n, err := ParseSize(string(r.text))
		if err != nil || n == 0 || n > math.MaxInt64 {
			return fmt.Errorf("%s: %q is no rate: want a number above 0, or one with K, M or G", r.name, r.text)
		}
		*r.to = int64(n)
	}
	return limits.Validate()
}
