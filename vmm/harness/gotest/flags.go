package gotest

import (
	"slices"
	"strings"
)

var (
	// fileFlags name files that "go test" wants to have back, below -test.outputdir
	// or the working directory, and dirFlags other directories.
	fileFlags = []string{"coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace", "testlogfile"}
	dirFlags  = []string{"gocoverdir", "fuzzcachedir", "artifactsdir"}
	// boolFlags have no value behind them, and are true; those that are not here have one.
	boolFlags = []string{"artifacts", "benchmem", "failfast", "fullpath", "fuzzworker", "paniconexit0", "short", "v"}
)

// Flags are the values of a test binary's own flags, by their names without "test.".
// What lacks a value that it should have is left out, and so is everything that the tests
// themselves get. args begins with the program.
func Flags(args []string) map[string]string {
	flags := make(map[string]string)
	if len(args) == 0 {
		return flags
	}
	args = args[1:]
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" || arg == "-args" || arg == "--args" {
			break
		}
		rest, ok := strings.CutPrefix(arg, "-")
		if !ok {
			break
		}
		rest, ok = strings.CutPrefix(strings.TrimPrefix(rest, "-"), "test.")
		if !ok {
			continue
		}
		name, value, ok := strings.Cut(rest, "=")
		switch {
		case ok:
			flags[name] = value
		case slices.Contains(boolFlags, name):
			flags[name] = "true"
		case i+1 < len(args):
			i++
			flags[name] = args[i]
		}
	}
	return flags
}
