package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// testFiles and testDirs are flags of a test binary that name what "go test" wants to have back: files
// below -test.outputdir, or the working directory, and directories.
var (
	testFiles = []string{"coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace", "testlogfile"}
	testDirs  = []string{"gocoverdir", "fuzzcachedir", "outputdir", "artifactsdir"}
)

// scratch are directories that have to be writable for a test binary.
type scratch struct {
	dirs []string
	made []string // by goTestDirs, to be removed if nothing is in them; innermost first
}

// goTestDirs finds the directories that a test binary, run by "go test -exec", writes to for the
// caller: without them coverage, profiles and failing fuzz inputs would be gone with the guest. Those
// of $GOCOVERDIR are any program's.
func goTestDirs(args []string) (*scratch, error) {
	s := &scratch{}
	if dir := os.Getenv("GOCOVERDIR"); dir != "" {
		s.add(dir)
	}
	flags := testFlags(args)
	if len(flags) == 0 {
		return s, nil
	}
	for _, name := range testDirs {
		if dir := flags[name]; dir != "" {
			s.add(dir)
		}
	}
	for _, name := range testFiles {
		file := flags[name]
		switch {
		case file == "":
		case filepath.IsAbs(file):
			s.add(filepath.Dir(file))
		default:
			s.add(filepath.Dir(filepath.Join(flags["outputdir"], file)))
		}
	}
	if flags["fuzz"] != "" {
		return s, s.make(filepath.Join("testdata", "fuzz"))
	}
	return s, nil
}

// testFlags are the -test.NAME=VALUE of a test binary's arguments.
func testFlags(args []string) map[string]string {
	flags := make(map[string]string)
	for _, arg := range args[1:] {
		if arg == "--" || arg == "-args" {
			break
		}
		arg = strings.TrimPrefix(arg, "-")
		rest, ok := strings.CutPrefix(strings.TrimPrefix(arg, "-"), "test.")
		if !ok {
			continue
		}
		if name, value, ok := strings.Cut(rest, "="); ok {
			flags[name] = value
		}
	}
	return flags
}

// add notes a directory, if it is one: a test binary complains of what is missing by itself.
func (s *scratch) add(dir string) {
	if dir, err := writableDir(dir); err == nil && dir != "/" {
		s.dirs = append(s.dirs, dir)
	}
}

// make makes a directory for as long as the command runs, or for good if something comes of it.
func (s *scratch) make(dir string) error {
	for d := dir; d != "."; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); errors.Is(err, fs.ErrNotExist) {
			s.made = append(s.made, d)
		}
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		// A read-only tree: the fuzzer will say so when it has something to write.
		s.remove()
		return nil
	}
	s.add(dir)
	return nil
}

// remove removes the directories that make has made, if they are empty.
func (s *scratch) remove() {
	for _, d := range s.made {
		_ = os.Remove(d)
	}
}
