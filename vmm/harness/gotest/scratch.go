package gotest

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// fuzzDir is where a test binary writes an input that makes a fuzz test fail, below its
// working directory.
var fuzzDir = filepath.Join("testdata", "fuzz")

// artifactsDir is where a test binary makes the directories of testing's ArtifactDir,
// below -test.outputdir or its working directory.
const artifactsDir = "_artifacts"

// Scratch are directories that have to be writable for a test binary.
type Scratch struct {
	own  func(dir string) string
	dirs []string
	made []string // by New, to be removed if nothing is in them; innermost first
}

// New finds the directories that a test binary with these arguments, of which the first
// is the program, writes to for its caller: without them coverage, profiles and failing
// fuzz inputs are gone with a guest. Relative ones are of this process's working
// directory. coverDir is the value of GOCOVERDIR, which any program may heed, "" for none.
//
// What is missing is left out, since a test binary complains of that by itself. But what
// it would make is made: the cache of fuzz inputs, testdata/fuzz when a fuzz test is asked
// for, and _artifacts. Each lasts if something comes of it. The caller calls Remove.
//
// own gives the directory of the guest's own that contains a clean absolute path, "" if
// none does: what is in one, such as /dev/null, is left out too, and so is every file that
// is there and not a regular one.
func New(args []string, coverDir string, own func(dir string) string) *Scratch {
	s := &Scratch{own: own}
	s.add(coverDir)
	flags := Flags(args)
	for _, name := range dirFlags {
		s.add(flags[name])
	}
	for _, name := range fileFlags {
		file := flags[name]
		if file == "" {
			continue
		}
		if !filepath.IsAbs(file) {
			file = filepath.Join(flags["outputdir"], file)
		}
		if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
			continue // /dev/null, or a FIFO, which leads nowhere from the guest
		}
		s.add(filepath.Dir(file))
	}
	if flags["fuzz"] != "" {
		s.make(fuzzDir)
	}
	if dir := flags["fuzzcachedir"]; dir != "" {
		s.make(dir)
	}
	// The test binary makes no directory to put it in.
	if on, _ := strconv.ParseBool(flags["artifacts"]); on && isDir(cmp.Or(flags["outputdir"], ".")) {
		s.make(filepath.Join(flags["outputdir"], artifactsDir))
	}
	return s
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
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
	if isDir(dir) && dir != "/" && s.own(dir) == "" && !slices.Contains(s.dirs, dir) {
		s.dirs = append(s.dirs, dir)
	}
}

// make makes a directory for as long as the test binary runs, or for good if something
// comes of it, with those that it lies in.
func (s *Scratch) make(dir string) {
	dir, err := filepath.Abs(dir)
	if err != nil || s.own(dir) != "" {
		return
	}
	var made []string
	for d := dir; d != filepath.Dir(d); d = filepath.Dir(d) {
		if _, err := os.Lstat(d); errors.Is(err, fs.ErrNotExist) {
			made = append(made, d)
		}
	}
	if os.MkdirAll(dir, 0o777) != nil {
		// A read-only tree: the test binary will say so when it has something to write.
		removeEmpty(made)
		return
	}
	s.made = append(made, s.made...) // in front of those that may be around it
	s.add(dir)
}

// Remove removes the directories that New has made, if they are empty.
func (s *Scratch) Remove() {
	removeEmpty(s.made)
	s.made = nil
}

func removeEmpty(dirs []string) {
	for _, d := range dirs {
		_ = os.Remove(d)
	}
}
