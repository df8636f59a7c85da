package nested

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rigCase makes this test binary, run in the emulated host, do one thing.
const rigCase = "VOLE_RIG_CASE"

func TestMain(m *testing.M) {
	RunIfInit()
	if os.Getenv(rigCase) == "tests" {
		stdin, w := io.Pipe()
		Main(m, Options{Memory: "1G", stdin: stdin, began: func(test string) {
			if test == "TestRigRerun" {
				w.Close()
			}
		}})
	}
	if name := os.Getenv(rigCase); name != "" && Inside() {
		os.Exit(rigMain(name))
	}
	os.Exit(m.Run())
}

// rigMain is the inner half of TestRig.
func rigMain(name string) int {
	switch name {
	case "results":
		in, err := io.ReadAll(os.Stdin)
		fmt.Printf("stdin %q %v\n", in, err)
		fmt.Fprintln(os.Stderr, "to stderr")
		dir := os.Getenv("VOLE_RIG_OUT")
		_ = os.MkdirAll(filepath.Join(dir, "sub"), 0o755)
		_ = os.WriteFile(filepath.Join(dir, "sub", "large"), bytes.Repeat([]byte("vole"), 50_000), 0o600)
		_ = os.WriteFile(filepath.Join(dir, "empty"), nil, 0o644)
		if _, err := os.Stat("/dev/kvm"); err != nil {
			fmt.Println(err)
		}
		return 7
	case "hang":
		fmt.Println("about to hang")
		forever()
	case "lockup":
		lockUp()
	case "vanish":
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("o"), 0)
		forever()
	case "killed":
		p, _ := os.FindProcess(os.Getpid())
		_ = p.Kill()
		forever()
	}
	return 99
}

// forever waits for the end of the emulated host. (`select {}` would end this
// process: the runtime sees that nothing can wake it.)
func forever() { time.Sleep(time.Hour) }

// lockUp ends the emulated host as its watchdog does that finds it stuck.
func lockUp() {
	_ = os.WriteFile("/dev/kmsg", []byte("<0>watchdog: BUG: soft lockup - CPU#0 stuck for 26s! (not really: a test)\n"), 0)
	_ = os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0)
	forever()
}

// TestRigBefore, TestRigRerun and TestRigFails are what TestRig runs through Main
// in emulated hosts. The first host, in which no test is done at first, locks
// up under TestRigRerun, once the process outside has read that it began: that
// ends the stdin of the tests.
func TestRigBefore(t *testing.T) {
	if Inside() {
		assert.Empty(t, flagValue("test.skip"), "it ran again")
	}
}

func TestRigRerun(t *testing.T) {
	if os.Getenv(rigCase) == "tests" && Inside() && flagValue("test.skip") == "" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		lockUp()
	}
}

func TestRigFails(t *testing.T) {
	if os.Getenv(rigCase) == "tests" && Inside() {
		t.Error("always")
	}
}

// TestRig boots the emulated host for what it must survive.
func TestRig(t *testing.T) {
	if testing.Short() {
		t.Skip("only in make test: boots the emulated host")
	}
	if _, err := hostKernel(); err != nil {
		t.Skip(err)
	}
	self, err := os.Executable()
	require.NoError(t, err)
	run := func(t *testing.T, name string, c Command) (res Result, stdout, stderr string, err error) {
		t.Helper()
		var out, errs bytes.Buffer
		c.Args, c.Env = []string{self}, append(c.Env, rigCase+"="+name)
		c.Stdout, c.Stderr, c.Note, c.Memory = &out, &errs, func(s string) { t.Log(s) }, "1G"
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		res, err = c.Run(ctx)
		return res, out.String(), errs.String(), err
	}
	t.Run("results", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "out")
		res, out, errs, err := run(t, "results", Command{
			Env: []string{"VOLE_RIG_OUT=" + dir}, Out: []string{dir}, Stdin: strings.NewReader("some\x00input\r\n\x03\x04"),
		})
		require.NoError(t, err, res.Console)
		assert.Equal(t, 7, res.Code)
		assert.Equal(t, "stdin \"some\\x00input\\r\\n\\x03\\x04\" <nil>\n", out)
		assert.Equal(t, "to stderr\n", errs)
		large, err := os.ReadFile(filepath.Join(dir, "sub", "large"))
		require.NoError(t, err)
		assert.Equal(t, bytes.Repeat([]byte("vole"), 50_000), large)
		empty, err := os.ReadFile(filepath.Join(dir, "empty"))
		require.NoError(t, err)
		assert.Empty(t, empty)
	})
	t.Run("hang", func(t *testing.T) {
		res, out, errs, err := run(t, "hang", Command{Quiet: 3 * time.Second})
		assert.ErrorIs(t, err, errStalled)
		assert.NotErrorIs(t, err, ErrHost)
		assert.Equal(t, 2, res.Code, "of a Go program that SIGQUIT ended")
		assert.Equal(t, "about to hang\n", out)
		assert.Contains(t, errs, "SIGQUIT: quit")
		assert.Contains(t, errs, "rigMain", "the dump names the function that hangs")
	})
	t.Run("lockup", func(t *testing.T) {
		res, _, _, err := run(t, "lockup", Command{})
		assert.ErrorIs(t, err, errLockup)
		assert.ErrorIs(t, err, ErrHost)
		assert.Contains(t, res.Console, "soft lockup")
	})
	t.Run("vanish", func(t *testing.T) {
		_, _, _, err := run(t, "vanish", Command{})
		assert.ErrorIs(t, err, errVanish)
		assert.ErrorIs(t, err, ErrHost)
	})
	t.Run("killed", func(t *testing.T) {
		res, _, _, err := run(t, "killed", Command{})
		require.NoError(t, err)
		assert.Equal(t, 137, res.Code)
	})
	tests := func(t *testing.T, pattern string) (how map[string][]string, output string, err error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-p", "p", self, "-test.v=test2json", "-test.run="+pattern)
		cmd.Env = append(os.Environ(), rigCase+"=tests", envMode+"=always")
		raw, err := cmd.Output()
		how = map[string][]string{}
		for line := range bytes.Lines(raw) {
			var e struct{ Action, Test, Output string }
			require.NoError(t, json.Unmarshal(line, &e), "%s", line)
			switch e.Action {
			case "pass", "fail", "skip":
				how[e.Test] = append(how[e.Test], e.Action)
			case "output":
				output += e.Output
			}
		}
		return how, output, err
	}
	pass, fail := []string{"pass"}, []string{"fail"}
	t.Run("tests that are left run again", func(t *testing.T) {
		how, out, err := tests(t, "^TestRig(Before|Rerun)$")
		require.NoError(t, err, out)
		assert.Equal(t, map[string][]string{"": pass, "TestRigBefore": pass, "TestRigRerun": pass}, how)
		assert.True(t, strings.HasSuffix(out, "PASS\nnested: rerun: the emulated host failed: it locked up during TestRigRerun\n"), out)
	})
	t.Run("a failure does not", func(t *testing.T) {
		how, out, err := tests(t, "^TestRig(Before|Fails)$")
		require.Error(t, err, out)
		assert.Equal(t, map[string][]string{"": fail, "TestRigBefore": pass, "TestRigFails": fail}, how)
		assert.Equal(t, 1, strings.Count(out, "always"), out)
		assert.NotContains(t, out, "rerun")
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c := Command{Args: []string{self}, Stdout: io.Discard, Stderr: io.Discard}
		_, err := c.Run(ctx)
		assert.True(t, errors.Is(err, context.Canceled), "%v", err)
	})
}
