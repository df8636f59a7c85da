package kernel

import (
	"cmp"
	"strings"
)

// CompareVersions orders kernel releases as a person would: below zero when a
// is older than b, above when it is newer. The dotted numbers in front decide,
// then release candidates come before their release, then what follows is
// compared run by run, digits as numbers: 6.1.0-9 < 6.1.0-50 < 6.12-rc1 < 6.12.
func CompareVersions(a, b string) int {
	aNumbers, aRest := cutNumbers(a)
	bNumbers, bRest := cutNumbers(b)
	for aNumbers != "" || bNumbers != "" {
		var x, y string
		x, aNumbers, _ = strings.Cut(aNumbers, ".")
		y, bNumbers, _ = strings.Cut(bNumbers, ".")
		if c := compareNumbers(x, y); c != 0 {
			return c
		}
	}
	aCandidate, bCandidate := candidate(aRest), candidate(bRest)
	switch {
	case aCandidate && bCandidate:
		if c := compareRuns(aRest[1:], bRest[1:]); c != 0 { // -rc1 or ~rc1
			return c
		}
	case aCandidate:
		return -1
	case bCandidate:
		return 1
	}
	return compareRuns(aRest, bRest)
}

// cutNumbers splits "6.1.0-50-amd64" into "6.1.0" and "-50-amd64".
func cutNumbers(s string) (numbers, rest string) {
	end := strings.IndexFunc(s, func(r rune) bool { return r != '.' && !isDigit(byte(min(r, 0x7f))) })
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// candidate says whether what follows the numbers is -rc3 or ~rc3.
func candidate(rest string) bool {
	return len(rest) > 3 && (rest[0] == '-' || rest[0] == '~') && rest[1:3] == "rc" && isDigit(rest[3])
}

// compareRuns compares alternating runs of digits and of other characters.
func compareRuns(a, b string) int {
	for a != "" && b != "" {
		var x, y string
		x, a = cutRun(a)
		y, b = cutRun(b)
		c := strings.Compare(x, y)
		if isDigit(x[0]) && isDigit(y[0]) {
			c = compareNumbers(x, y)
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// cutRun splits off the longest start that is all digits or has none.
func cutRun(s string) (run, rest string) {
	digits := isDigit(s[0])
	for i := range len(s) {
		if isDigit(s[i]) != digits {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// compareNumbers compares decimal numbers of any length; "" is 0.
func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
