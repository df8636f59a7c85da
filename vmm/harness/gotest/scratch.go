package gotest

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	home string // absolute, "" if it is not known
	dirs []string
	left []string
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
// is there and not a regular one. The user's home, and what contains it, is never
// writable for a file in it: Left has these.
func New(args []string, coverDir string, own func(dir string) string) *Scratch {
	s := &Scratch{own: own, home: home()}
	s.add(coverDir)
	flags := Flags(args)
	for _, name := range dirFlags {
		s.add(flags[name])
	}
	// "go test" names its own directory for any profile: what goes there says so below.
	if dir := s.find(flags["outputdir"]); dir != "" && !s.tooMuch(dir) {
		s.add(dir)
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

// home is the user's home directory without links, "" if there is none.
func home() string {
	dir, err := os.UserHomeDir()
	if err != nil || !filepath.IsAbs(dir) {
		return ""
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return filepath.Clean(dir)
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// Dirs are the directories: absolute, without links, each once.
func (s *Scratch) Dirs() []string { return slices.Clone(s.dirs) }

// Left are the directories that something is to be written in, and that are too much to be
// writable because of that; as Dirs.
func (s *Scratch) Left() []string { return slices.Clone(s.left) }

// find is what the guest sees under the name of a directory, which is what it leads to; ""
// if that is no directory, or one of the guest's own.
func (s *Scratch) find(dir string) string {
	if dir == "" {
		return ""
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil || !isDir(dir) || s.own(dir) != "" {
		return ""
	}
	return dir
}

// tooMuch says whether dir is the user's home, or contains it.
func (s *Scratch) tooMuch(dir string) bool {
	return dir == "/" || s.home == dir || strings.HasPrefix(s.home, dir+"/")
}

// add notes a directory, if it is one.
func (s *Scratch) add(dir string) {
	if dir = s.find(dir); dir == "" {
		return
	}
	list := &s.dirs
	if s.tooMuch(dir) {
		list = &s.left
	}
	if !slices.Contains(*list, dir) {
		*list = append(*list, dir)
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
