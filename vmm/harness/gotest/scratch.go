package gotest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// fuzzDir is where a test binary writes an input that makes a fuzz test fail, below its
// working directory.
var fuzzDir = filepath.Join("testdata", "fuzz")

// Scratch are directories that have to be writable for a test binary.
type Scratch struct {
	dirs []string
	made []string // by New, to be removed if nothing is in them; innermost first
}

// New finds the directories that a test binary with these arguments, of which the first
// is the program, writes to for its caller: without them coverage, profiles and failing
// fuzz inputs are gone with a guest. Relative ones are of this process's working
// directory. coverDir is the value of GOCOVERDIR, which any program may heed, "" for none.
//
// What is missing is left out, since a test binary complains of that by itself; but
// testdata/fuzz is made when a fuzz test is asked for, and lasts if something comes of
// it. The caller calls Remove.
func New(args []string, coverDir string) *Scratch {
	s := &Scratch{}
	s.add(coverDir)
	flags := Flags(args)
	for _, name := range dirFlags {
		s.add(flags[name])
	}
	for _, name := range fileFlags {
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
		s.make(fuzzDir)
	}
	return s
}

// Dirs are the directories: absolute, without links, each once.
func (s *Scratch) Dirs() []string { return slices.Clone(s.dirs) }

// add notes a directory, if it is one.
func (s *Scratch) add(dir string) {
	if dir == "" {
		return
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return
	}
	// What the guest sees under this name is what it leads to.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return
	}
	if info, err := os.Stat(dir); err == nil && info.IsDir() && dir != "/" && !slices.Contains(s.dirs, dir) {
		s.dirs = append(s.dirs, dir)
	}
}

// make makes a directory below the working directory for as long as the test binary
// runs, or for good if something comes of it.
func (s *Scratch) make(dir string) {
	for d := dir; d != "."; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); errors.Is(err, fs.ErrNotExist) {
			s.made = append(s.made, d)
		}
	}
	if os.MkdirAll(dir, 0o777) != nil {
		// A read-only tree: the fuzzer will say so when it has something to write.
		s.Remove()
		return
	}
	s.add(dir)
}

// Remove removes the directories that New has made, if they are empty.
func (s *Scratch) Remove() {
	for _, d := range s.made {
		_ = os.Remove(d)
	}
	s.made = nil
}
