package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
)

// sh is a script in a guest.
func sh(t testing.TB, g *remote.Guest, script string) *remote.Cmd {
	c := g.CommandContext(bounded(t), "sh", "-c", script)
	c.Env = []string{"PATH=/usr/bin:/bin"}
	return c
}

// said runs a script that must not fail.
func said(t testing.TB, g *remote.Guest, script string) string {
	t.Helper()
	out, err := sh(t, g, script).Output()
	var exit *remote.ExitError
	if errors.As(err, &exit) {
		t.Logf("%s: %s", script, exit.Stderr)
	}
	require.NoError(t, err, script)
	return string(out)
}

func TestRun(t *testing.T) {
	g, b := newGuest(t, wire.Config{Hostname: "box"})
	hello, err := g.Ready(bounded(t))
	require.NoError(t, err)
	assert.Equal(t, []string{"mount devtmpfs on /dev: operation not permitted"}, hello.Problems)
	assert.Less(t, hello.Init, hello.Ready)

	c := sh(t, g, "echo out; echo err >&2; cat; hostname; exit 7")
	c.Stdin = strings.NewReader("in\n")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	var exit *remote.ExitError
	require.ErrorAs(t, c.Run(), &exit)
	assert.Equal(t, 7, exit.ExitCode())
	assert.Equal(t, "out\nin\nbox\n", out.String())
	assert.Equal(t, "err\n", errs.String())
	assert.Positive(t, exit.ProcessState.Wall())
	assert.Positive(t, exit.MaxRSS())

	require.NoError(t, g.Poweroff())
	<-b.exited
	assert.Equal(t, 0, b.cmd.ProcessState.ExitCode(), b.out)
	assert.Empty(t, b.out.String())
}

func TestEndings(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	for _, c := range []struct {
		script string
		code   int
		signal syscall.Signal
	}{
		{"exit 0", 0, 0},
		{"exit 1", 1, 0},
		{"exit 255", 255, 0},
		{"kill -9 $$", -1, syscall.SIGKILL},
		{"kill -SEGV $$", -1, syscall.SIGSEGV},
		{"kill -TERM 0; sleep 100", -1, syscall.SIGTERM},
		{"for s in KILL TERM HUP INT QUIT ABRT SEGV STOP; do kill -$s 1; done; exit 4", 4, 0}, // PID 1 is immune
	} {
		t.Run(c.script, func(t *testing.T) {
			err := sh(t, g, c.script).Run()
			if c.code == 0 {
				require.NoError(t, err)
				return
			}
			var exit *remote.ExitError
			require.ErrorAs(t, err, &exit)
			assert.Equal(t, c.code, exit.ExitCode())
			assert.Equal(t, c.signal, exit.Signal())
			assert.False(t, exit.OOM())
		})
	}
}

func TestSignals(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGKILL} {
		t.Run(s.String(), func(t *testing.T) {
			// The group's, not only the shell's.
			c := sh(t, g, "sh -c 'echo ready; exec sleep 1000'; true")
			out, err := c.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, c.Start())
			_, err = out.Read(make([]byte, 6))
			require.NoError(t, err)
			require.NoError(t, c.Signal(s))
			var exit *remote.ExitError
			require.ErrorAs(t, c.Wait(), &exit)
			assert.Equal(t, s, exit.Signal())
		})
	}
	c := sh(t, g, `trap 'echo caught; exit 3' HUP; echo ready; while :; do sleep 0.01; done`)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	line := make([]byte, 6)
	_, err = out.Read(line)
	require.NoError(t, err)
	require.NoError(t, c.Signal(syscall.SIGHUP))
	n, _ := out.Read(line)
	assert.Equal(t, "caught", string(line[:n]))
	var exit *remote.ExitError
	require.ErrorAs(t, c.Wait(), &exit)
	assert.Equal(t, 3, exit.ExitCode())
	assert.Error(t, c.Signal(syscall.SIGHUP))
}

func TestNotStarted(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	script := said(t, g, `mkdir -p /tmp/t/closed /tmp/t/empty
printf 'echo plain $1' >/tmp/t/plain; chmod 755 /tmp/t/plain
printf '#!/nonexistent\n' >/tmp/t/nointerp; chmod 755 /tmp/t/nointerp
echo >/tmp/t/noexec; mkdir /tmp/t/empty/true; chmod 700 /tmp/t/closed; chmod 755 /tmp/t /tmp/t/empty
printf '#!/bin/sh\necho $0' >/tmp/t/named; chmod 755 /tmp/t/named
echo fine`)
	require.Equal(t, "fine\n", script)
	nobody := &remote.User{UID: 1000, GID: 1000}
	for _, c := range []struct {
		name string
		cmd  *remote.Cmd
		out  string
		errs []string
		is   error
	}{
		{"no such program", &remote.Cmd{Path: "nope"}, "", []string{"nope", "PATH"}, fs.ErrNotExist},
		{"no such file", &remote.Cmd{Path: "/tmp/t/nope"}, "", []string{"/tmp/t/nope"}, fs.ErrNotExist},
		{"no name", &remote.Cmd{}, "", []string{"no name"}, fs.ErrNotExist},
		{"not executable", &remote.Cmd{Path: "/tmp/t/noexec"}, "", []string{"/tmp/t/noexec: permission denied"}, fs.ErrPermission},
		{"a directory", &remote.Cmd{Path: "/tmp/t"}, "", []string{"/tmp/t is a directory"}, fs.ErrPermission},
		{"no interpreter", &remote.Cmd{Path: "/tmp/t/nointerp"}, "", []string{"interpreter"}, fs.ErrNotExist},
		{"no such directory", &remote.Cmd{Path: "true", Dir: "/tmp/nope"}, "", []string{"working directory /tmp/nope"}, fs.ErrNotExist},
		{"a file as directory", &remote.Cmd{Path: "true", Dir: "/tmp/t/noexec"}, "", []string{"working directory", "not a directory"}, unix.ENOTDIR},
		{"closed directory", &remote.Cmd{Path: "true", Dir: "/tmp/t/closed", User: nobody}, "", []string{"working directory /tmp/t/closed is closed to user 1000"}, fs.ErrPermission},
		{"too much", &remote.Cmd{Path: "true", Args: []string{"true", strings.Repeat("x", 1<<20)}}, "", []string{"too long"}, unix.E2BIG},
		{"NUL", &remote.Cmd{Path: "true", Args: []string{"true", "a\x00b"}}, "", nil, unix.EINVAL},
		{"a script without a shell", &remote.Cmd{Path: "/tmp/t/plain", Args: []string{"plain", "x"}}, "plain x\n", nil, nil},
		{"relative to the directory", &remote.Cmd{Path: "./named", Dir: "/tmp/t"}, "./named\n", nil, nil},
		{"relative in PATH", &remote.Cmd{Path: "named", Dir: "/tmp", Env: []string{"PATH=t"}}, "t/named\n", nil, nil},
		{"the working directory in PATH", &remote.Cmd{Path: "named", Dir: "/tmp/t", Env: []string{"PATH=/nope:"}}, "./named\n", nil, nil},
		{"past a directory in PATH", &remote.Cmd{Path: "pwd", Dir: "/tmp", Env: []string{"PATH=/tmp/t/empty:/bin"}}, "/tmp\n", nil, nil},
		{"past a closed one", &remote.Cmd{Path: "named", Dir: "/", User: nobody, Env: []string{"PATH=/tmp/t/closed:/tmp/t"}}, "/tmp/t/named\n", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := g.CommandContext(bounded(t), c.cmd.Path)
			if c.cmd.Args != nil {
				cmd.Args = c.cmd.Args
			}
			cmd.Dir, cmd.User, cmd.Env = c.cmd.Dir, c.cmd.User, c.cmd.Env
			out, err := cmd.Output()
			if c.is == nil {
				require.NoError(t, err)
				assert.Equal(t, c.out, string(out)+map[bool]string{true: "\n"}[!bytes.HasSuffix(out, []byte("\n"))])
				return
			}
			var start *remote.StartError
			require.ErrorAs(t, err, &start)
			require.ErrorIs(t, err, c.is)
			assert.Equal(t, strings.HasPrefix(start.What, "the working directory "), start.Cause == wire.CauseDir)
			for _, e := range c.errs {
				assert.ErrorContains(t, err, e)
			}
		})
	}
}

// Who runs it, where and with what.
func TestIdentity(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	c := sh(t, g, `id -u; id -g; id -G; umask; pwd; echo $HOME; echo to stderr >/dev/stderr; ls -ld $XDG_RUNTIME_DIR | cut -c1-10; ps -o pid=,pgid=,sid= -p $$ 2>/dev/null | awk '{ print $1 == $2, $2 == $3 }'`)
	c.User = &remote.User{UID: 1000, GID: 1001, Groups: []uint32{5, 1002}}
	c.Umask = 0o027
	c.Dir = "/tmp"
	c.Env = append(c.Env, "HOME=/no/home", "XDG_RUNTIME_DIR=/run/user/1000")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	require.NoError(t, c.Run(), "%s", &errs)
	lines := strings.Split(out.String(), "\n")
	assert.Equal(t, []string{"1000", "1001", "1001 5 1002", "0027", "/tmp", "/no/home", "drwx------"}, lines[:7])
	assert.Equal(t, "to stderr\n", errs.String())
	assert.Equal(t, "0\n0022\n/\n", said(t, g, "id -u; umask; pwd"))
	assert.Equal(t, "0\n", said(t, g, "cat /proc/self/oom_score_adj"))
	// As whoever started this test has it: make(1) has its children ignore signal 32.
	assert.Equal(t, "SigBlk:\t0000000000000000\n"+statusLine(t, "SigIgn"), said(t, g, "grep -e SigBlk -e SigIgn /proc/self/status"))
}

// statusLine is a line of this process's status.
func statusLine(t *testing.T, key string) string {
	b, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, key+":") {
			return line
		}
	}
	t.Fatalf("/proc/self/status has no %s", key)
	return ""
}

func TestStandardFiles(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	t.Run("null", func(t *testing.T) {
		require.NoError(t, sh(t, g, `test /proc/self/fd/0 -ef /dev/null && test /proc/$$/fd/1 -ef /dev/null && test /proc/$$/fd/2 -ef /dev/null && ! test -e /proc/$$/fd/3`).Run())
	})
	t.Run("no terminal", func(t *testing.T) {
		assert.Equal(t, "none\n", said(t, g, "(: </dev/tty) 2>/dev/null || echo none"))
	})
	t.Run("one for both outputs", func(t *testing.T) {
		out, err := sh(t, g, "for i in 1 2 3; do echo o$i; echo e$i >&2; done").CombinedOutput()
		require.NoError(t, err)
		assert.Equal(t, "o1\ne1\no2\ne2\no3\ne3\n", string(out))
	})
	t.Run("nobody takes it", func(t *testing.T) {
		c := sh(t, g, "exec yes")
		c.Stdout = failing{}
		var exit *remote.ExitError
		require.ErrorAs(t, c.Run(), &exit)
		assert.Equal(t, syscall.SIGPIPE, exit.Signal())
	})
	t.Run("nobody reads it", func(t *testing.T) {
		c := sh(t, g, "head -c 3; exec 0<&-; exec sleep 0.2")
		c.Stdin = endless{}
		out, err := c.Output()
		require.NoError(t, err)
		assert.Equal(t, "yyy", string(out))
	})
	t.Run("left behind", func(t *testing.T) {
		out := said(t, g, "(sleep 0.2; echo more; sleep 0.2; echo more; touch /tmp/lived) & echo first")
		assert.Equal(t, "first\n", out)
		said(t, g, "while ! test -e /tmp/lived; do sleep 0.05; done")
	})
	t.Run("left behind and noisy", func(t *testing.T) {
		out := said(t, g, "(yes; touch /tmp/ended) & echo $! >/tmp/yes; sleep 0.1")
		assert.NotContains(t, strings.ReplaceAll(out, "y\n", ""), "y\n")
		said(t, g, "! test -e /tmp/ended && kill $(cat /tmp/yes)")
	})
	t.Run("unknown kinds", func(t *testing.T) {
		b := startBox(t, wire.Config{Root: hostRoot()})
		h := newHost(t, b)
		for i, f := range [][3]wire.File{{wire.FileOut}, {0, wire.FileOut}, {200}} {
			id := uint32(i + 1)
			h.say(wire.KindStart, wire.Command{ID: id, Path: "true", Files: f})
			var failed wire.Failed
			h.next(wire.KindFailed, &failed)
			assert.Equal(t, id, failed.ID)
			assert.EqualValues(t, unix.EINVAL, failed.Errno)
		}
	})
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'y'
	}
	return len(p), nil
}

func TestManyAtOnce(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			text := strings.Repeat(fmt.Sprint(i), 10000)
			var out bytes.Buffer
			var err error
			for {
				c := sh(t, g, fmt.Sprintf("cat; exit %d", i))
				c.Stdin, c.Stdout = strings.NewReader(text), &out
				if err = c.Run(); !errors.Is(err, unix.EAGAIN) {
					break
				}
			}
			assert.True(t, text == out.String(), "%d bytes of %d: %v", out.Len(), len(text), err)
			var exit *remote.ExitError
			if i == 0 {
				assert.NoError(t, err)
			} else if assert.ErrorAs(t, err, &exit) {
				assert.Equal(t, i, exit.ExitCode())
			}
		})
	}
	all.Wait()
}

// Nothing is left of commands: no descriptor, no process.
func TestNothingLeft(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	const census = "ls /proc/1/fd | wc -l; ls -d /proc/[0-9]* | wc -l; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"
	before := said(t, g, census)
	for i := range 50 {
		_ = said(t, g, "(sleep 0.01 & sleep 0.01 &) ; echo x; true")
		c := sh(t, g, "tty")
		c.Terminal = &remote.Terminal{}
		require.NoError(t, c.Run())
		require.Error(t, g.CommandContext(bounded(t), "nope").Run())
		if i%10 == 0 {
			c := sh(t, g, "sleep 100")
			c.Stdin, c.Stdout = endless{}, failing{}
			require.NoError(t, c.Start())
			require.NoError(t, c.Signal(syscall.SIGKILL))
			require.Error(t, c.Wait())
		}
	}
	require.Eventually(t, func() bool { return said(t, g, census) == before }, boxTimeout, 1, "%s and %s", before, said(t, g, census))
}

func TestFiles(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	ctx := bounded(t)
	said(t, g, "mkdir /tmp/t")
	data := random(t, 3<<20)
	require.NoError(t, g.WriteFile(ctx, "/tmp/t/data", data, 0o751))
	got, err := g.ReadFile(ctx, "/tmp/t/data")
	require.NoError(t, err)
	assert.True(t, bytes.Equal(data, got))
	assert.Equal(t, "-rwxr-x--x\n1\n", said(t, g, "ls -l /tmp/t/data | cut -c1-10; ls -A /tmp/t | wc -l"))
	require.NoError(t, g.WriteFile(ctx, "/tmp/t/data", nil, 0o600))
	got, err = g.ReadFile(ctx, "/tmp/t/data")
	require.NoError(t, err)
	assert.Empty(t, got)
	got, err = g.ReadFile(ctx, "/proc/self/comm")
	require.NoError(t, err)
	assert.NotEmpty(t, got)

	// A program that is there can be run at once, whatever else is being started.
	exe, err := os.ReadFile("/bin/true")
	require.NoError(t, err)
	for range 20 {
		require.NoError(t, g.WriteFile(ctx, "/tmp/t/true", exe, 0o755))
		require.NoError(t, g.CommandContext(ctx, "/tmp/t/true").Run())
	}

	_, err = g.ReadFile(ctx, "/tmp/t/nope")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = g.ReadFile(ctx, "/tmp/t")
	require.ErrorIs(t, err, unix.EISDIR)
	require.ErrorIs(t, g.WriteFile(ctx, "/nope/x", nil, 0o600), fs.ErrNotExist)
	require.Error(t, g.WriteFile(ctx, "/tmp/t", nil, 0o600))
	assert.Equal(t, "data\ntrue\n", said(t, g, "ls -A /tmp/t"))
	assert.Empty(t, said(t, g, "ls -d /tmp/.vole-* 2>/dev/null; true"))
}

func TestEarly(t *testing.T) {
	b := startEarly(t)
	g := remote.New(b, remote.Options{Secret: boxSecret})
	defer g.Close()
	// It has the number that the host gives its first.
	c := g.CommandContext(bounded(t), "sh", "-c", "cat; echo early; exit 5")
	c.Stdin = strings.NewReader("in\n")
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	_, err = c.Early()
	require.NoError(t, err)
	b.start()
	text := make([]byte, 100)
	n := 0
	for n < len("in\nearly\n") {
		m, err := out.Read(text[n:])
		require.NoError(t, err)
		n += m
	}
	assert.Equal(t, "in\nearly\n", string(text[:n]))
	var exit *remote.ExitError
	require.ErrorAs(t, c.Wait(), &exit)
	assert.Equal(t, 5, exit.ExitCode())
}

// earlyBox is a box that starts when it is told to.
type earlyBox struct {
	*box
	start func()
}

func startEarly(t *testing.T) earlyBox {
	b := newBox(t, wire.Config{Root: hostRoot(), Command: &wire.Command{
		ID: 1, Path: "sh", Args: wire.Texts([]string{"sh", "-c", "cat; echo early; exit 5"}), Env: wire.Texts([]string{"PATH=/bin"}),
		Files: [3]wire.File{wire.FileStream, wire.FileStream, wire.FileNull},
	}})
	return earlyBox{b, b.start}
}

// What stays and what goes.
func TestRoot(t *testing.T) {
	base, err := os.MkdirTemp("", "vole-root-")
	require.NoError(t, err)
	defer os.RemoveAll(base)
	require.NoError(t, os.Chmod(base, 0o755))
	require.NoError(t, os.Chown(base, boxMapped, boxMapped))
	for _, dir := range []string{"keep", "drop"} {
		require.NoError(t, os.Mkdir(filepath.Join(base, dir), 0o755))
		require.NoError(t, os.Chown(filepath.Join(base, dir), boxMapped, boxMapped))
	}
	require.NoError(t, os.Symlink(base+"/keep", filepath.Join(base, "link")))
	require.NoError(t, os.WriteFile(filepath.Join(base, "file"), nil, 0o666))
	root := hostRoot()
	root.Writable = append(root.Writable, wire.Text(base+"/link"))
	g, _ := newGuest(t, wire.Config{Root: root, Mounts: []wire.Mount{{Tag: "host", Dir: "/tmp/new/share"}}})
	hello, err := g.Ready(bounded(t))
	require.NoError(t, err)
	assert.Equal(t, []string{"mount devtmpfs on /dev: operation not permitted"}, hello.Problems)
	assert.Empty(t, hello.Lacks)
	said(t, g, fmt.Sprintf(`set -e; cd %s; echo a >keep/a; echo b >drop/b; cat keep/a drop/b
		cd /tmp/new/share%[1]s; test -e keep/a; ! test -e drop/b
		test -d /run/lock; test -k /tmp; touch /run/x; mktemp /tmp/XXXXXX >/dev/null`, base))
}

// ownDir makes a directory that a box's root may change.
func ownDir(t *testing.T, parent string, perm os.FileMode) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp(parent, "vole-agent-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, perm))
	require.NoError(t, os.Chown(dir, boxMapped, boxMapped))
	return dir
}

// What is to be writable and is not is an error of every command.
func TestLacks(t *testing.T) {
	for name, c := range map[string]struct {
		config wire.Config
		want   string
	}{
		"writable": {wire.Config{Root: &wire.Root{Tag: "host", Overlay: true, Writable: []wire.Text{"/dev", "/no/where"}}},
			"/no/where can't be made writable in the guest: no such file or directory"},
		"a share": {wire.Config{Mounts: []wire.Mount{{Tag: "nope", Dir: "/mnt"}}},
			"the share nope can't be mounted on /mnt: invalid argument"},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := newGuest(t, c.config)
			hello, err := g.Ready(bounded(t))
			require.NoError(t, err)
			assert.Equal(t, c.want, hello.Lacks)
			var start *remote.StartError
			require.ErrorAs(t, sh(t, g, "true").Run(), &start)
			assert.Equal(t, wire.CauseFiles, start.Cause)
			assert.Equal(t, c.want, start.What)
			require.ErrorAs(t, g.WriteFile(bounded(t), "/tmp/x", nil, 0o600), &start)
			_, err = g.ReadFile(bounded(t), "/proc/self/mounts")
			require.NoError(t, err)
		})
	}
}

// A writable "/" is the share itself, without an overlay. What the kernel's file systems
// cover is the guest's all the same, and nothing is made in the share.
func TestWritableRoot(t *testing.T) {
	home := ownDir(t, "", 0o755)
	root := hostRoot()
	root.Writable = append(root.Writable, "/", wire.Text(home))
	g, _ := newGuest(t, wire.Config{Root: root, Mounts: []wire.Mount{{Tag: "host", Dir: "/run/share"}}})
	said(t, g, fmt.Sprintf(`set -e; echo kept >/tmp/kept; cmp /tmp/kept /run/share/tmp/kept; test / -ef /run/share
		echo x >%[1]s/x; test -e /run/share%[1]s/x; test %[1]s -ef /run/share%[1]s; touch /run/x; ! test -e /run/share/run/x
		! test -e /run/share/run/vole; ! test -e /run/share/dev/hugepages; test -d /run/lock`, home))
	hello, _ := g.Hello()
	assert.Empty(t, hello.Lacks)
}

// Writable directories below /run and /dev/shm are there, in the guest's own (a box's share
// has no /dev/shm).
func TestWritableRun(t *testing.T) {
	run := ownDir(t, "/run", 0o755)
	require.NoError(t, os.Mkdir(filepath.Join(run, "program"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(run, "program", "p"), []byte("#!/bin/sh\necho runs"), 0o755))
	for name, root := range map[string]*wire.Root{"overlay": hostRoot(), "all of it": {Tag: "host", Overlay: true, Writable: []wire.Text{"/"}}} {
		t.Run(name, func(t *testing.T) {
			root.Writable = append(root.Writable, wire.Text(run))
			root.Visible = []wire.Text{wire.Text(run + "/program"), "/run/no/such"}
			// The share is no more than another view of this machine's files.
			g, _ := newGuest(t, wire.Config{Root: root, Mounts: []wire.Mount{{Tag: "host", Dir: "/mnt"}}})
			assert.Equal(t, "runs\nlock\n"+filepath.Base(run)+"\n", said(t, g, fmt.Sprintf("set -e; echo kept >%s/kept; test -e /mnt%[1]s/kept; %[1]s/program/p; ls /run", run)))
			hello, _ := g.Hello()
			assert.Equal(t, "show /run/no/such: no such file or directory", hello.Problems[0])
		})
	}
	assert.True(t, late("/run") && late("/dev/shm/x") && !late("/runs") && !late("/dev"))
}

// A command's directory for temporary files is there where only the guest's own /run or
// /dev/shm hides it, and all can write to it. Nothing else is made or changed for that.
func TestTempDir(t *testing.T) {
	run := ownDir(t, "/run", 0o755)
	for _, dir := range []string{"rw", "ro"} {
		require.NoError(t, os.Mkdir(filepath.Join(run, dir), 0o755))
		require.NoError(t, os.Chown(filepath.Join(run, dir), boxMapped, boxMapped))
	}
	root := hostRoot()
	root.Writable = append(root.Writable, wire.Text(run+"/rw"))
	root.Visible = []wire.Text{wire.Text(run + "/ro")}
	g, _ := newGuest(t, wire.Config{Root: root, Mounts: []wire.Mount{{Tag: "host", Dir: "/dev/shm/lead/host"}}})
	said(t, g, `set -e; umask 022; mkdir /dev/shm/mine /tmp/away; mkdir -m 700 /dev/shm/theirs; chown 1000 /dev/shm/theirs
		ln -s /dev/shm /tmp/link; touch /dev/shm/file; ln -s /dev/shm/gone /dev/shm/dangling`)
	for name, c := range map[string]struct{ dir, want string }{
		"missing":                         {"/dev/shm/a", "1777 0 made"},
		"missing with what is above":      {"/run/b/c/d", "1777 0 made"},
		"not clean":                       {"//dev/shm/./e/", "1777 0 made"},
		"by a link":                       {"/tmp/link/f", "1777 0 made"},
		"above a directory that is shown": {run, "1777 0 made"},
		"above a share":                   {"/dev/shm/lead", "1777 0 made"},
		"all of it":                       {"/dev/shm", "1777 0 made"},
		"not for all":                     {"/run", "755 0 not made"},
		"made by a command":               {"/dev/shm/mine", "755 0 not made"},
		"the user's":                      {"/dev/shm/theirs", "700 1000 made"},
		"the host's":                      {run + "/rw", "755 0 not made"},
		"missing in the host's":           {run + "/rw/x", "not made"},
		"missing in a share":              {"/dev/shm/lead/host/tmp/" + filepath.Base(run), "not made"},
		"missing in what is shown":        {run + "/ro/x", "not made"},
		"missing elsewhere":               {"/tmp/away/x", "not made"},
		"elsewhere":                       {"/tmp/away", "755 0 not made"},
		"a file":                          {"/dev/shm/file", "644 0 not made"},
		"below a file":                    {"/dev/shm/file/x", "not made"},
		"a link to nowhere":               {"/dev/shm/dangling", "777 0 not made"},
		"relative":                        {"shm/x", "not made"},
		"empty":                           {"", "not made"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := sh(t, g, `stat -c '%a %u' "$TMPDIR" 2>/dev/null; mktemp "$TMPDIR/XXXXXX" >/dev/null 2>&1 && echo made || echo not made`)
			cmd.Env = append(cmd.Env, "TMPDIR="+c.dir)
			cmd.Dir, cmd.Umask = "/dev", 0o077
			cmd.User = &remote.User{UID: 1000, GID: 1000}
			out, err := cmd.Output()
			require.NoError(t, err)
			assert.Equal(t, c.want, strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", " "))
		})
	}
	for _, dir := range []string{"rw", "ro"} {
		entries, err := os.ReadDir(filepath.Join(run, dir))
		require.NoError(t, err)
		assert.Empty(t, entries)
	}
}

// The agent changes nothing in what is the host's: neither modes nor directories nor files.
func TestHostUntouched(t *testing.T) {
	root := hostRoot()
	root.ModulesDir = "/usr/share"
	root.Writable = append(root.Writable, "/tmp", "/etc", "/usr/lib", "/lib", "/run")
	g, _ := newGuest(t, wire.Config{
		Root:   root,
		Mounts: []wire.Mount{{Tag: "host", Dir: "/mnt"}},
		Net:    &wire.Net{DNS: []string{"10.0.2.3"}},
	})
	// The box's /tmp is not quite what it would be made.
	out := said(t, g, `set -e; test -e /etc/resolv.conf && grep -q 10.0.2.3 /etc/resolv.conf && ! grep -q 10.0.2.3 /mnt/etc/resolv.conf
		stat -c %a /mnt/tmp; ! test -e /mnt/run/vole; ! test -e /mnt/usr/lib/modules/$(uname -r)`)
	assert.Equal(t, "1755\n", out)
	hello, _ := g.Hello()
	assert.Contains(t, strings.Join(hello.Problems, "\n"), "show /usr/share as /lib/modules/"+release()+": /lib/modules/"+release()+" is missing")
}

func TestNoRoot(t *testing.T) {
	g, _ := newGuest(t, wire.Config{Root: &wire.Root{Tag: "nope"}, Mounts: []wire.Mount{{Tag: "more", Dir: "/x"}}, Modules: []string{"lib/nope.ko"}})
	hello, err := g.Ready(bounded(t))
	require.NoError(t, err)
	text := strings.Join(hello.Problems, "\n")
	assert.Contains(t, text, "the guest has no root file system: mount the share nope: invalid argument")
	assert.Equal(t, "the share more can't be mounted on /x: invalid argument", hello.Lacks)
	assert.Contains(t, text, "load the kernel module nope.ko: no such file or directory")
	err = g.CommandContext(bounded(t), "true").Run()
	var start *remote.StartError
	require.ErrorAs(t, err, &start)
	assert.ErrorContains(t, err, "the guest has no root file system")
}
