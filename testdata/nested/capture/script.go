package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Command is one that is typed.
type Command struct {
	Text string
	Code int // what it must end with, or there is no picture
}

// Script is what a picture shows.
type Script struct {
	Name     string // that of its file, without .txt
	Title    string
	Rows     int // of the terminal
	Commands []Command
}

// readScript reads a script: lines of "title: TEXT", "rows: N" for a terminal that
// is not of 24, "$ COMMAND", and "= CODE" for a command that ends with another code than 0. What begins with # is a comment.
func readScript(path string) (Script, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Script{}, err
	}
	s := Script{Rows: rows, Name: strings.TrimSuffix(filepath.Base(path), ".txt")}
	for i, line := range bytes.Split(raw, []byte("\n")) {
		if err := s.add(strings.TrimSpace(string(line))); err != nil {
			return Script{}, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
	}
	if len(s.Commands) == 0 {
		return Script{}, fmt.Errorf("%s: it has no command", path)
	}
	return s, nil
}

func (s *Script) add(line string) error {
	if line == "" || line[0] == '#' {
		return nil
	}
	if title, ok := strings.CutPrefix(line, "title:"); ok {
		s.Title = strings.TrimSpace(title)
		return nil
	}
	if text, ok := strings.CutPrefix(line, "rows: "); ok {
		n, err := strconv.ParseUint(text, 10, 8)
		if err != nil || n == 0 {
			return fmt.Errorf("%q is no number of rows", text)
		}
		s.Rows = int(n)
		return nil
	}
	if text, ok := strings.CutPrefix(line, "$ "); ok {
		s.Commands = append(s.Commands, Command{Text: text})
		return nil
	}
	text, ok := strings.CutPrefix(line, "= ")
	code, err := strconv.ParseUint(text, 10, 8)
	if !ok || err != nil {
		return fmt.Errorf("%q is none of title:, rows:, $ COMMAND, = CODE and # comment", line)
	}
	if len(s.Commands) == 0 {
		return fmt.Errorf("there is no command before %q", line)
	}
	s.Commands[len(s.Commands)-1].Code = int(code)
	return nil
}
