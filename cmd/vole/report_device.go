package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vole-vmm/vole/vmm"
)

// deviceText is what a report for people says of a device, in lines: what it was made with, and its
// counters that are not 0.
func deviceText(d vmm.DeviceReport) (lines []string) {
	if words := configWords(d.Config); len(words) > 0 {
		lines = append(lines, strings.Join(words, " "))
	}
	var counts []string
	for _, c := range d.Counters {
		if c.Value > 0 {
			counts = append(counts, fmt.Sprintf("%s %d", c.Name, c.Value))
		}
	}
	if len(counts) > 0 {
		lines = append(lines, strings.Join(counts, ", "))
	}
	return lines
}

// configWords has a device's configuration in words like those of the flags: "mac=02:00:00:00:00:01",
// "vhost". What is off goes without saying.
func configWords(config map[string]any) (words []string) {
	for _, k := range slices.Sorted(maps.Keys(config)) {
		switch v := config[k].(type) {
		case bool:
			if v {
				words = append(words, k)
			}
		case []string:
			for _, one := range v {
				words = append(words, k+"="+configWord(one))
			}
		case map[string]string:
			for _, name := range slices.Sorted(maps.Keys(v)) {
				words = append(words, k+"="+configWord(name)+":"+configWord(v[name]))
			}
		default:
			words = append(words, k+"="+configWord(fmt.Sprint(v)))
		}
	}
	return words
}

// configWord quotes what would not be a word, or could not be printed.
func configWord(s string) string {
	if q := strconv.Quote(s); s == "" || strings.ContainsRune(s, ' ') || len(q) != len(s)+len(`""`) {
		return q
	}
	return s
}
