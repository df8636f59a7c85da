package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestExitCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		code []byte
		args []string
		want int
		says string
	}{
		"poweroff":     {powerOff(), nil, codeOK, ""},
		"debug exit 0": {debugExit(0), nil, codeOK, ""},
		"debug exit 3": {debugExit(3), nil, codeDebugExit, "the guest wrote 0x3 to the debug exit port"},
		"reset":        {reset(), nil, codeReset, "the guest reset"},
		"triple fault": {tripleFault, nil, codeTripleFault, "the guest can't go on"},
		"timeout":      {halt, []string{"--timeout", "200ms"}, codeTimeout, `--timeout has passed; on its console: "hello"`},
		"reset loop":   {reset(), []string{"--on-reset", "restart"}, codeReset, "reset 10 times in a row"},
	} {
		t.Run(name, func(t *testing.T) {
			r := vole(t, machineArgs(t, append(say("hello\n"), tc.code...), tc.args...)...)
			assert.Equal(t, tc.want, r.code, r.stderr)
			assert.Contains(t, r.stderr, tc.says)
			assert.Equal(t, "hello\n", r.stdout[:6])
		})
	}
}

// start starts cmd, whose stdout then is a pipe that the test reads, up to its first line.
func start(t *testing.T, args ...string) (wait func() int, stdin io.Writer, stdout io.Reader, signal func(os.Signal), stderr *bytes.Buffer) {
	t.Helper()
	cmd := command(t, args...)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return func() int {
			_ = cmd.Wait()
			return cmd.ProcessState.ExitCode()
		}, in, out, func(s os.Signal) {
			require.NoError(t, cmd.Process.Signal(s))
		}, stderr
}

func readLine(t *testing.T, r io.Reader) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; {
		_, err := io.ReadFull(r, b)
		require.NoError(t, err, "after %q", line)
		if line = append(line, b[0]); b[0] == '\n' {
			return string(line)
		}
	}
}

func TestSignals(t *testing.T) {
	for name, tc := range map[string]struct {
		signal syscall.Signal
		want   int
	}{
		"SIGINT":  {syscall.SIGINT, 130},
		"SIGTERM": {syscall.SIGTERM, 143},
		"SIGHUP":  {syscall.SIGHUP, 129},
		"SIGQUIT": {syscall.SIGQUIT, 131},
	} {
		t.Run(name, func(t *testing.T) {
			wait, _, stdout, signal, stderr := start(t, machineArgs(t, append(say("up\n"), halt...))...)
			assert.Equal(t, "up\n", readLine(t, stdout))
			signal(tc.signal)
			assert.Equal(t, tc.want, wait(), stderr)
			assert.Contains(t, stderr.String(), name+": the guest was ended")
			assert.Equal(t, tc.signal == syscall.SIGQUIT, strings.Contains(stderr.String(), "goroutine 1 ["))
		})
	}
}

func TestInput(t *testing.T) {
	wait, stdin, stdout, _, stderr := start(t, machineArgs(t, append(say("up\n"), echo()...))...)
	assert.Equal(t, "up\n", readLine(t, stdout))
	// Ctrl-a means nothing where stdin is no terminal.
	_, err := io.WriteString(stdin, "some\x01x words\nq")
	require.NoError(t, err)
	got, err := io.ReadAll(stdout)
	require.NoError(t, err)
	assert.Equal(t, "some\x01x words\n", string(got))
	assert.Equal(t, codeOK, wait(), stderr)
}

func TestStdoutGone(t *testing.T) {
	cmd := command(t, machineArgs(t, flood())...)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	r.Close()
	cmd.Stdout = w
	res := finish(t, cmd)
	w.Close()
	assert.Equal(t, codeHost, res.code)
	assert.Contains(t, res.stderr, "vole: run: stdout: write: broken pipe: the guest was ended\n")
}

func TestStdoutFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("needs /dev/full: %v", err)
	}
	defer full.Close()
	cmd := command(t, machineArgs(t, append(say("lost\n"), powerOff()...))...)
	cmd.Stdout = full
	r := finish(t, cmd)
	assert.Equal(t, codeHost, r.code)
	assert.Contains(t, r.stderr, "stdout: write: no space left on device")
}

// TestStdoutBlocked: a reader that does not read holds up neither a signal nor the timeout.
func TestStdoutBlocked(t *testing.T) {
	t.Run("SIGTERM", func(t *testing.T) {
		wait, _, stdout, signal, stderr := start(t, machineArgs(t, append(say("up\n"), flood()...))...)
		assert.Equal(t, "up\n", readLine(t, stdout))
		signal(syscall.SIGTERM)
		assert.Equal(t, 143, wait(), stderr)
	})
	t.Run("timeout", func(t *testing.T) {
		wait, _, _, _, stderr := start(t, machineArgs(t, flood(), "--timeout", "2s")...)
		assert.Equal(t, codeTimeout, wait(), stderr)
	})
}

func TestConsoleFile(t *testing.T) {
	path := file(t, "console", []byte("what was there before, and is longer"))
	r := vole(t, machineArgs(t, append(say("hello\n"), powerOff()...), "--console", path)...)
	assert.Equal(t, codeOK, r.code, r.stderr)
	assert.Empty(t, r.stdout)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "hello\n", string(got))
}

func TestConsoleFileRefused(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	for name, tc := range map[string]struct{ path, want string }{
		"no such directory":   {"/nowhere/console", "no such file"},
		"a directory":         {t.TempDir(), "directory"},
		"a FIFO nobody reads": {fifo, "nobody reads this FIFO"},
	} {
		t.Run(name, func(t *testing.T) {
			r := vole(t, machineArgs(t, say("hello\n"), "--console", tc.path)...)
			assert.Equal(t, codeUsage, r.code, r.stderr)
			assert.Contains(t, r.stderr, "--console: ")
			assert.Contains(t, r.stderr, tc.path)
			assert.Contains(t, r.stderr, tc.want)
		})
	}
}

// TestRestartWithoutItsDisk: between two machines a disk that is gone is the host's fault, for
// something was started, and the report is written.
func TestRestartWithoutItsDisk(t *testing.T) {
	disk := file(t, "disk.img", make([]byte, 4096))
	report := filepath.Join(t.TempDir(), "report.json")
	args := machineArgs(t, append(say("up\n"), echoUntil(reset())...), "--on-reset", "restart", "--disk", disk, "--report", report)
	wait, stdin, stdout, _, stderr := start(t, args...)
	assert.Equal(t, "up\n", readLine(t, stdout))
	require.NoError(t, os.Remove(disk))
	_, err := io.WriteString(stdin, "q")
	require.NoError(t, err)
	rest, err := io.ReadAll(stdout)
	require.NoError(t, err)
	assert.Empty(t, rest)
	assert.Equal(t, codeHost, wait(), stderr)
	assert.Contains(t, stderr.String(), "vole: run: the guest reset and can't be started again: --disk: ")
	got := readReport(t, report)
	assert.EqualValues(t, codeHost, got["exit_code"])
	assert.EqualValues(t, 1, got["restarts"])
	assert.Contains(t, got["message"], disk)
}

func TestConfigFile(t *testing.T) {
	args := machineArgs(t, debugExit(9))
	config, err := json.Marshal(map[string]any{"kernel": args[2], "initrd": args[4], "memory": 16 << 20, "cpus": 2})
	require.NoError(t, err)
	report := filepath.Join(t.TempDir(), "report.json")
	r := vole(t, "run", "--config", file(t, "machine.json", config), "-c", "1", "--report", report)
	assert.Equal(t, codeDebugExit, r.code, r.stderr)
	got := readReport(t, report)
	assert.EqualValues(t, 16<<20, got["memory_bytes"])
	assert.EqualValues(t, 1, got["vcpus"], "a flag wins over the file")
}

func readReport(t *testing.T, path string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(b, &got), string(b))
	return got
}

func TestReport(t *testing.T) {
	args := machineArgs(t, append(say("hello\n"), debugExit(3)...))
	t.Run("JSON", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "report.json")
		began := time.Now()
		r := vole(t, append(args, "--report", path)...)
		took := time.Since(began)
		assert.Equal(t, codeDebugExit, r.code, r.stderr)
		got := readReport(t, path)
		assert.EqualValues(t, codeDebugExit, got["exit_code"])
		assert.Equal(t, map[string]any{"reason": "debug-exit", "debug_exit_code": 3.0}, got["exit"])
		assert.Greater(t, got["exits"].(map[string]any)["port-out"], 5.0)
		var names []string
		last := 0.0
		for _, m := range got["timeline"].([]any) {
			m := m.(map[string]any)
			names = append(names, m["name"].(string))
			assert.GreaterOrEqual(t, m["at_ns"], last)
			last = m["at_ns"].(float64)
		}
		assert.Equal(t, []string{"process", "main", "created", "entry", "console", "exit"}, names)
		assert.Less(t, last, float64(took+10*time.Millisecond))
		assert.Greater(t, got["resident"].(map[string]any)["vole_bytes"], 1e6)
	})
	t.Run("text", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "report")
		r := vole(t, append(args, "--report", path)...)
		assert.Equal(t, codeDebugExit, r.code, r.stderr)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, want := range []string{"ended     debug-exit 3 (exit code 7)", "\n  console ", "\nexits ", "\n  port-out ", "\nresident "} {
			assert.Contains(t, string(b), want)
		}
	})
	t.Run("stderr", func(t *testing.T) {
		r := vole(t, append(args, "--report", "-")...)
		assert.Contains(t, r.stderr, "timeline  from the start of the process\n")
	})
	t.Run("no such directory", func(t *testing.T) {
		r := vole(t, append(args, "--report", "/nowhere/report")...)
		assert.Equal(t, codeUsage, r.code)
		assert.Contains(t, r.stderr, "--report: open /nowhere/report")
		assert.Empty(t, r.stdout)
	})
}
