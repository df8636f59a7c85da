package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Size of the terminal, if the script says no other.
const (
	cols = 88
	rows = 24
)

// How the commands are typed, in seconds.
const (
	typeAfter = 0.8   // from the prompt to the first character
	typeEvery = 0.035 // from one to the next
	typeEnter = 0.5   // from the last one to Enter
	readAfter = 1.5   // from a command's end to the prompt
)

const prompt = "\x1b[1;32m$\x1b[0m "

// Stage is where the commands run: directories of their own, so that no path of
// the machine comes into the picture.
type Stage struct {
	Vole    string // the program, which is on PATH as vole
	Kernel  string // is there as if it had been pulled
	Busybox string // has the commands, "" if the machine's own are to be used

	dir string
	env []string
}

// applets are the commands that busybox is there for.
var applets = []string{"sh", "cat", "echo", "head", "ls", "sha256sum", "tar", "true", "uname"}

// files are the working directory's.
var files = map[string]string{
	"hello.go": "package main\n\nfunc main() { println(\"hello\") }\n",
	"go.mod":   "module hello\n\ngo 1.26\n",
}

// open makes the directories, which are gone with close.
func (s *Stage) open() (err error) {
	if s.dir, err = os.MkdirTemp("", "stage"); err != nil {
		return err
	}
	bin, home, pulled := s.path("bin"), s.path("home"), s.path("cache/pulled/debian")
	links := map[string]string{
		filepath.Join(bin, "vole"):                     s.Vole,
		filepath.Join(pulled, filepath.Base(s.Kernel)): s.Kernel,
	}
	search := os.Getenv("PATH")
	if s.Busybox != "" {
		search = ""
		for _, name := range applets {
			links[filepath.Join(bin, name)] = s.Busybox
		}
	}
	for _, dir := range []string{bin, home, pulled, s.path("work")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	for at, to := range links {
		if err := os.Symlink(to, at); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.path("work"), name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	s.env = []string{
		"PATH=" + strings.TrimSuffix(bin+":"+search, ":"), "HOME=" + home, "VOLE_CACHE=" + s.path("cache"),
		"TERM=xterm-256color", "LANG=C.UTF-8",
	}
	return nil
}

func (s *Stage) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Stage) close() { _ = os.RemoveAll(s.dir) }

// warmUp runs a guest that is not recorded: what vole does for a kernel's first run
// is no part of the pictures.
func (s *Stage) warmUp(ctx context.Context) error {
	var said strings.Builder
	code, err := s.run(ctx, Command{Text: "vole exec -- true"}, rows, 0, func(_ float64, text string) { said.WriteString(text) })
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	if err != nil {
		return fmt.Errorf("a first guest: %w: %s", err, said.String())
	}
	return nil
}

// record types a script's commands and records what comes of them.
func (s *Stage) record(ctx context.Context, script Script) (Cast, error) {
	c := Cast{Name: script.Name, Title: script.Title, Cols: cols, Rows: script.Rows}
	now := 0.0
	say := func(after float64, kind, data string) {
		now += after
		c.Events = append(c.Events, Event{Time: now, Kind: kind, Data: data})
	}
	code := 0
	for i, command := range script.Commands {
		say(0, kindOutput, prompt)
		after := typeAfter
		for _, r := range command.Text {
			say(after, kindOutput, string(r))
			after = typeEvery
		}
		say(typeEnter, kindOutput, "\r\n")
		say(0, kindMarker, markBegin)
		got, err := s.run(ctx, command, script.Rows, code, func(after float64, data string) { say(after, kindOutput, data) })
		if err == nil && got != command.Code {
			err = fmt.Errorf("exit code %d, not %d", got, command.Code)
		}
		if err != nil {
			return c, fmt.Errorf("%s: %s: %w; what has been seen:\n%s", script.Name, command.Text, err, c.text())
		}
		code = got
		say(0, kindMarker, markEnd)
		if i < len(script.Commands)-1 {
			now += readAfter
		}
	}
	return c, nil
}

// run runs a command in a shell, on a terminal of that many rows; code is that of the command before, and
// returns its exit code. It calls say for each piece of output, with the seconds
// since the one before.
func (s *Stage) run(ctx context.Context, command Command, rows, code int, say func(float64, string)) (int, error) {
	shell := "sh"
	if s.Busybox != "" {
		shell = filepath.Join(s.path("bin"), "sh")
	}
	cmd := exec.Command(shell, "-c", fmt.Sprintf("(exit %d)\n%s", code, command.Text))
	cmd.Env, cmd.Dir = s.env, s.path("work")
	last := time.Now()
	since := func() float64 {
		before := last
		last = time.Now()
		return last.Sub(before).Seconds()
	}
	got, err := runOnPTY(ctx, cmd, cols, rows, func(p []byte) { say(since(), string(p)) })
	if err == nil {
		say(since(), "") // the time to the end
	}
	return got, err
}

// text is what the terminal showed, all of it.
func (c *Cast) text() string {
	s := c.play()
	var b strings.Builder
	for _, line := range s.Lines {
		for _, cell := range line {
			b.WriteRune(max(cell.R, ' '))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// play is the screen after the recording.
func (c *Cast) play() *Screen {
	s := &Screen{Cols: c.Cols, Rows: c.Rows}
	for _, ev := range c.Events {
		if ev.Kind == kindOutput {
			_, _ = s.Write([]byte(ev.Data))
		}
	}
	return s
}

// check says what in a recording is not to be in a picture: one of the words, which
// are names and paths of the machine, or what the terminal does not understand.
func (c *Cast) check(words []string) error {
	s := c.play()
	if len(s.Unknown) > 0 {
		return fmt.Errorf("%s: not understood: %s", c.Name, strings.Join(s.Unknown, ", "))
	}
	if len(s.Lines) > maxLines {
		return fmt.Errorf("%s: %d lines are more than a picture can show", c.Name, len(s.Lines))
	}
	text := strings.ReplaceAll(c.text(), "\n", " ")
	var errs []error
	for _, w := range words {
		if strings.Contains(text, w) {
			errs = append(errs, fmt.Errorf("%s: the picture would show %q, which is this machine's", c.Name, w))
		}
	}
	return errors.Join(errs...)
}
