package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// envCommand makes the test binary be vole; envPanic makes it panic on another goroutine on SIGUSR1.
const (
	envCommand = "VOLE_TEST_COMMAND"
	envPanic   = "VOLE_TEST_PANIC"
)

// patience bounds every wait for a process here.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(envCommand) != "" || isGuard(os.Args) {
		if os.Getenv(envPanic) != "" {
			ch := make(chan os.Signal, 1)
			signal.Notify(ch, syscall.SIGUSR1)
			go func() {
				<-ch
				panic("as the test asked")
			}()
		}
		main()
	}
	if signal.Ignored(syscall.SIGHUP) {
		// Under nohup: the commands are to have the default action.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	os.Exit(m.Run())
}

// command is the test binary as `vole args...`, killed when the test takes too long. Its cache is
// the test's own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return commandWithin(t, patience, args...)
}

// commandWithin is command for one that may take longer than patience.
func commandWithin(t *testing.T, bound time.Duration, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), envCommand+"=1", "VOLE_CACHE="+filepath.Join(t.TempDir(), "cache"))
	return cmd
}

// result is what a finished command left.
type result struct {
	code           int
	stdout, stderr string
}

// vole runs `vole args...` with nothing on stdin.
func vole(t *testing.T, args ...string) result {
	t.Helper()
	return finish(t, command(t, args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	cmd.Stderr = &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// file makes a file in a directory of the test's own.
func file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o644))
	return path
}

func TestBadUsage(t *testing.T) {
	dir := t.TempDir()
	empty := file(t, "empty", nil)
	text := file(t, "text", []byte(strings.Repeat("not a kernel\n", 1000)))
	config := file(t, "machine.json", []byte(`{"kernel": "k", "memory": "1X"}`))
	unknown := file(t, "unknown.json", []byte(`{"dish": "d"}`))
	kernel := file(t, "kernel", payload(powerOff()))
	loop := filepath.Join(dir, "loop")
	require.NoError(t, os.Symlink(loop, loop))
	long := strings.Repeat("x", 256)
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"unknown command":       {[]string{"frob"}, []string{"vole: ", `"frob"`}},
		"unknown flag":          {[]string{"run", "--frob"}, []string{"vole: run: ", "--frob"}},
		"unknown short flag":    {[]string{"run", "-z"}, []string{"'z'"}},
		"no such network":       {[]string{"run", "--net", "bridge"}, []string{"--net", `"bridge" begins neither with tap=NAME nor with user`}},
		"tap without a name":    {[]string{"run", "--net", "tap="}, []string{"--net", "tap=NAME"}},
		"network option":        {[]string{"run", "--net", "user,speed=1"}, []string{"--net", `"speed=1" is no option of a network`}},
		"bad MAC":               {[]string{"run", "--net", "user,mac=52:54"}, []string{"--net", `mac: "52:54" is not a hardware address`}},
		"multicast MAC":         {[]string{"run", "--net", "tap=t,mac=53:54:00:12:34:56"}, []string{"--net", "multicast"}},
		"nobody's MAC":          {[]string{"run", "--net", "tap=t,mac=0:0:0:0:0:0"}, []string{"--net", "mac"}},
		"MTU too large":         {[]string{"run", "--net", "tap=t,mtu=70000"}, []string{"--net", "tap=t: mtu", "68", "65535"}},
		"MTU too small":         {[]string{"run", "--net", "user,mtu=100"}, []string{"--net", "user: mtu", "1280"}},
		"MTU no number":         {[]string{"run", "--net", "user,mtu=big"}, []string{"--net", "mtu"}},
		"queues of user":        {[]string{"run", "--net", "user,queues=2"}, []string{"--net", "for a tap"}},
		"too many queues":       {[]string{"run", "--net", "tap=t,queues=65"}, []string{"--net", "between 1 and 64"}},
		"restricted tap":        {[]string{"run", "--net", "tap=t,restrict"}, []string{"--net", "kind user"}},
		"network rate":          {[]string{"run", "--net", "user,rx-bps=fast"}, []string{"--net", "rx-bps", "no rate"}},
		"network burst":         {[]string{"run", "--net", "user,tx-pps-burst=5"}, []string{"--net", "burst"}},
		"publish to nobody":     {[]string{"run", "--publish", "8080:80"}, []string{"--publish", "--net user"}},
		"publish nonsense":      {[]string{"run", "--net", "user", "--publish", "80"}, []string{"--publish", `"80"`}},
		"publish from nowhere":  {[]string{"run", "--net", "user", "--publish", "nowhere:80:80"}, []string{"--publish", `"nowhere" is not an IP address`}},
		"publish protocol":      {[]string{"run", "--net", "user", "--publish", "80:80/sctp"}, []string{"--publish", "sctp"}},
		"vsock twice":           {[]string{"run", "--vsock", "a", "--vsock", "b"}, []string{"--vsock: given more than once"}},
		"vsock CID":             {[]string{"run", "--vsock", "/tmp/v,cid=2"}, []string{"--vsock", `cid: "2"`}},
		"vsock option":          {[]string{"run", "--vsock", "/tmp/v,x"}, []string{"--vsock", `"x" is no option of a vsock`}},
		"vsock without a path":  {[]string{"run", "--vsock", ",cid=3"}, []string{"--vsock", "no path"}},
		"console device":        {[]string{"run", "--console-device", "tty"}, []string{"--console-device", "serial, virtio"}},
		"port without a path":   {[]string{"run", "--port", "agent"}, []string{"--port", "NAME=PATH"}},
		"port without a name":   {[]string{"run", "--port", "=x"}, []string{"--port", "no name"}},
		"port twice":            {[]string{"run", "--port", "a=x", "--port", "a=y"}, []string{"--port", `two ports are called "a"`}},
		"one path for two":      {[]string{"run", "--port", "a=x", "--port", "b=x"}, []string{"--port", "path of two ports"}},
		"argument":              {[]string{"run", "vmlinuz"}, []string{`unexpected argument "vmlinuz"`}},
		"kernel twice":          {[]string{"run", "--kernel", "a", "-k", "b"}, []string{"--kernel: given more than once"}},
		"memory twice":          {[]string{"run", "-m", "1G", "-m", "1G"}, []string{"--memory: given more than once"}},
		"value missing":         {[]string{"run", "--kernel"}, []string{"--kernel: a value is missing"}},
		"value empty":           {[]string{"run", "--kernel="}, []string{"--kernel: the value is empty"}},
		"no such kernel":        {[]string{"run", "-k", "/nowhere/vmlinuz"}, []string{"/nowhere/vmlinuz", "no such file"}},
		"kernel is a directory": {[]string{"run", "-k", dir}, []string{dir, "directory"}},
		"kernel is empty":       {[]string{"run", "-k", empty}, []string{empty, "empty"}},
		"kernel is text":        {[]string{"run", "-k", text}, []string{text, "not a Linux kernel"}},
		"kernel in a file":      {[]string{"run", "-k", text + "/x"}, []string{text + "/x", "not a directory"}},
		"kernel in a loop":      {[]string{"run", "-k", loop}, []string{loop, "too many levels of symbolic links"}},
		"kernel's name long":    {[]string{"run", "-k", long}, []string{long, "file name too long"}},
		"initrd in a file":      {[]string{"run", "-k", kernel, "-i", text + "/x"}, []string{text + "/x", "not a directory"}},
		"no such initrd":        {[]string{"run", "-k", kernel, "-i", "/nowhere/initrd"}, []string{"/nowhere/initrd", "no such file"}},
		"initrd too large":      {[]string{"run", "-k", kernel, "-i", bigFile(t, 8<<20), "-m", "4M"}, []string{"initrd"}},
		"command line too long": {[]string{"run", "-k", kernel, "-i", text, "-a", strings.Repeat("word ", 1<<13)}, []string{"--append", "command line"}},
		"memory 0":              {[]string{"run", "-k", kernel, "-m", "0"}, []string{"--memory", `"0"`, "as 512M"}},
		"memory 1 MiB":          {[]string{"run", "-k", kernel, "-m", "1M"}, []string{"--memory", `"1M"`}},
		"memory 16 EiB":         {[]string{"run", "-k", kernel, "-m", "16E"}, []string{"--memory", `"16E"`}},
		"memory not a number":   {[]string{"run", "-k", kernel, "-m", "much"}, []string{"--memory", `"much"`}},
		"no vCPUs":              {[]string{"run", "-k", kernel, "-c", "0"}, []string{"--cpus", "0"}},
		"10000 vCPUs":           {[]string{"run", "-k", kernel, "-c", "10000"}, []string{"--cpus", "10000"}},
		"boot":                  {[]string{"run", "-k", kernel, "--boot", "pxe"}, []string{"--boot", `"pxe"`}},
		"timeout":               {[]string{"run", "-k", kernel, "--timeout", "30"}, []string{"--timeout", `"30"`, "30s"}},
		"on reset":              {[]string{"run", "-k", kernel, "--on-reset", "x"}, []string{"--on-reset"}},
		"no such config":        {[]string{"run", "--config", "/nowhere.json"}, []string{"--config", "/nowhere.json"}},
		"value in config":       {[]string{"run", "--config", config}, []string{"--config", config, "memory", `"1X"`}},
		"key in config":         {[]string{"run", "--config", unknown}, []string{unknown, `"dish"`}},
		"pit":                   {[]string{"run", "--pit=maybe"}, []string{"--pit", `"maybe"`}},
		"kernel subcommand":     {[]string{"kernel", "push"}, []string{"vole: kernel: ", `"push"`}},
		"kernel path":           {[]string{"kernel", "path", "a", "b"}, []string{`"b"`}},
		"completion, none":      {[]string{"completion"}, []string{"bash, zsh, fish, powershell"}},
		"completion":            {[]string{"completion", "csh"}, []string{`"csh"`, "bash, zsh"}},
		"help about nothing":    {[]string{"help", "frob"}, []string{`"frob"`}},
		"doctor argument":       {[]string{"doctor", "x"}, []string{`"x"`}},
	} {
		t.Run(name, func(t *testing.T) {
			r := vole(t, tc.args...)
			assert.Equal(t, codeUsage, r.code, r.stderr)
			assert.Empty(t, r.stdout)
			assert.True(t, strings.HasPrefix(r.stderr, "vole: "), r.stderr)
			assert.Equal(t, 1, strings.Count(r.stderr, "\n"), r.stderr)
			for _, want := range tc.want {
				assert.Contains(t, r.stderr, want)
			}
		})
	}
}

// bigFile is a sparse file.
func bigFile(t *testing.T, size int64) string {
	t.Helper()
	path := file(t, "big", nil)
	require.NoError(t, os.Truncate(path, size))
	return path
}

// TestBadInputCreatesNothing: no console file, no report, no cache.
func TestBadInputCreatesNothing(t *testing.T) {
	dir := t.TempDir()
	text := file(t, "text", []byte(strings.Repeat("not a kernel\n", 1000)))
	cmd := command(t, "run", "-k", text, "--console", filepath.Join(dir, "console"), "--report", filepath.Join(dir, "report.json"))
	cmd.Env = append(cmd.Env, "VOLE_CACHE="+filepath.Join(dir, "cache"))
	r := finish(t, cmd)
	assert.Equal(t, codeUsage, r.code)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestErrorsCantSteerTheTerminal(t *testing.T) {
	for name, evil := range map[string]string{
		"escape": "\x1b", "line": "\n", "delete": "\x7f",
		"C1 control": "\u009b", "C1 next line": "\u0085", "C1 in one byte": "\x9b",
		"line separator": "\u2028", "paragraph separator": "\u2029",
	} {
		t.Run(name, func(t *testing.T) {
			r := vole(t, "run", "-k", "/nowhere/"+evil+"[31mred")
			assert.Equal(t, codeUsage, r.code)
			assert.Contains(t, r.stderr, "[31mred")
			line, ended := strings.CutSuffix(r.stderr, "\n")
			assert.True(t, ended)
			assert.False(t, strings.Contains(line, evil), "%q", line)
		})
	}
}

func TestVersion(t *testing.T) {
	r := vole(t, "version")
	assert.Equal(t, codeOK, r.code)
	assert.Regexp(t, `^vole \S+ .*go1\.\d+.* linux/\w+\n$`, r.stdout)
	r = vole(t, "version", "--json")
	assert.Contains(t, r.stdout, `"platform": "linux/`)
}

func TestHelp(t *testing.T) {
	root := vole(t, "help")
	assert.Equal(t, codeOK, root.code)
	for _, cmd := range []string{"run", "doctor", "kernel", "version", "completion", "help"} {
		assert.Contains(t, root.stdout, "\n  "+cmd+" ")
	}
	assert.Equal(t, root, vole(t), "no command at all is help")
	assert.Equal(t, root, vole(t, "--help"))

	run := vole(t, "help", "run")
	assert.Equal(t, codeOK, run.code)
	for _, flag := range []string{"-k, --kernel FILE", "-m, --memory SIZE", "--on-reset WAY", "--report FILE"} {
		assert.Contains(t, run.stdout, flag)
	}
	assert.Equal(t, run, vole(t, "run", "-h"))
	assert.Contains(t, vole(t, "help", "kernel", "path").stdout, "vole kernel path [NAME]")
	if !strings.Contains(vole(t, "help", "kernel").stdout, "\n  pull ") {
		for _, help := range [][]string{{"run"}, {"kernel"}, {"kernel", "ls"}, {"kernel", "path"}, {"doctor"}} {
			assert.NotContains(t, vole(t, append([]string{"help"}, help...)...).stdout, "pull", "there is no command for that")
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range shells {
		t.Run(shell, func(t *testing.T) {
			r := vole(t, "completion", shell)
			assert.Equal(t, codeOK, r.code, r.stderr)
			assert.Contains(t, r.stdout, "vole")
			assert.Empty(t, r.stderr)
		})
	}
	r := vole(t, "__complete", "run", "--boot", "")
	assert.Contains(t, r.stdout, "vmlinux\nbzimage\n")
}

func TestKernelCommands(t *testing.T) {
	r := vole(t, "kernel", "path", "0.0.0-nothing")
	assert.Equal(t, codeUsage, r.code)
	assert.Contains(t, r.stderr, `no kernel "0.0.0-nothing"`)
	r = vole(t, "kernel", "ls", "--json")
	assert.Equal(t, codeOK, r.code)
	assert.True(t, strings.HasPrefix(r.stdout, "["), r.stdout)
}
