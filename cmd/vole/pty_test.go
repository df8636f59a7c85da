package main

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pty is a pseudo-terminal; what comes out of it is collected.
type pty struct {
	t             *testing.T
	master, slave *os.File
	before        unix.Termios

	mu  sync.Mutex
	out []byte
	got chan struct{} // has room for one: more has come out
}

func openPty(t *testing.T) *pty {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("needs pseudo-terminals: /dev/ptmx: %v", err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	p := &pty{t: t, master: master, slave: slave, got: make(chan struct{}, 1)}
	p.before = p.termios()
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.out = append(p.out, buf[:n]...)
			p.mu.Unlock()
			select {
			case p.got <- struct{}{}:
			default:
			}
		}
	}()
	return p
}

func (p *pty) termios() unix.Termios {
	p.t.Helper()
	got, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	require.NoError(p.t, err)
	return *got
}

func (p *pty) isRaw() bool { return p.termios().Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0 }

func (p *pty) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.out)
}

// expect waits until want has come out.
func (p *pty) expect(want string) {
	p.t.Helper()
	p.expectWithin(want, patience)
}

func (p *pty) expectWithin(want string, bound time.Duration) {
	p.t.Helper()
	timeout := time.After(bound)
	for !strings.Contains(p.output(), want) {
		select {
		case <-p.got:
		case <-timeout:
			out := p.output()
			p.t.Fatalf("%q did not come out, but %d bytes: %q", want[:min(len(want), 1<<10)], len(out), out[:min(len(out), 4<<10)])
		}
	}
}

func (p *pty) typeIn(s string) {
	p.t.Helper()
	require.NoError(p.t, p.master.SetWriteDeadline(time.Now().Add(patience)))
	_, err := p.master.WriteString(s)
	require.NoError(p.t, err)
}

// start starts cmd with the terminal for its controlling one.
func (p *pty) start(cmd *exec.Cmd) {
	p.t.Helper()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.slave, p.slave, p.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(p.t, cmd.Start())
	p.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// foreground is the process group that has the terminal.
func (p *pty) foreground() int {
	p.t.Helper()
	pgrp, err := unix.IoctlGetInt(int(p.master.Fd()), unix.TIOCGPGRP)
	require.NoError(p.t, err)
	return pgrp
}

// eventually waits for what a process that the test can't wait for does soon.
func (p *pty) eventually(cond func() bool, what string) {
	p.t.Helper()
	require.Eventually(p.t, cond, patience, 5*time.Millisecond, what)
}

// TestTerminalEndings: the terminal is raw while the guest has it and as before after every ending.
func TestTerminalEndings(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(*pty, *exec.Cmd)
		want int // exit code, -1: killed by a signal
		says string
	}{
		"poweroff":   {func(p *pty, _ *exec.Cmd) { p.typeIn("q") }, codeOK, ""},
		"Ctrl-a x":   {func(p *pty, _ *exec.Cmd) { p.typeIn("\x01x") }, 130, "Ctrl-a x: the guest was ended"},
		"SIGINT":     {func(_ *pty, c *exec.Cmd) { c.Process.Signal(syscall.SIGINT) }, 130, "SIGINT"},
		"SIGTERM":    {func(_ *pty, c *exec.Cmd) { c.Process.Signal(syscall.SIGTERM) }, 143, "SIGTERM"},
		"SIGHUP":     {func(_ *pty, c *exec.Cmd) { c.Process.Signal(syscall.SIGHUP) }, 129, "SIGHUP"},
		"SIGQUIT":    {func(_ *pty, c *exec.Cmd) { c.Process.Signal(syscall.SIGQUIT) }, 131, "SIGQUIT"},
		"SIGKILL":    {func(_ *pty, c *exec.Cmd) { c.Process.Kill() }, -1, ""},
		"SIGABRT":    {func(_ *pty, c *exec.Cmd) { c.Process.Signal(syscall.SIGABRT) }, 2, "SIGABRT"},
		"a panic":    {func(_ *pty, c *exec.Cmd) { c.Process.Signal(syscall.SIGUSR1) }, 2, "panic: as the test asked"},
		"group kill": {func(_ *pty, c *exec.Cmd) { syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }, -1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := openPty(t)
			cmd := command(t, machineArgs(t, append(say("up\n"), echo()...))...)
			cmd.Env = append(cmd.Env, envPanic+"=1")
			p.start(cmd)
			p.expect("up\n")
			assert.True(t, p.isRaw())
			assert.NotContains(t, p.output(), "up\r\n", "the guest's output goes as it is")
			tc.end(p, cmd)
			_ = cmd.Wait()
			assert.Equal(t, tc.want, cmd.ProcessState.ExitCode(), p.output())
			if tc.says != "" {
				p.expect(tc.says)
			}
			p.eventually(func() bool { return p.termios() == p.before }, "terminal restored")
		})
	}
}

func TestTerminalTyping(t *testing.T) {
	p := openPty(t)
	cmd := command(t, machineArgs(t, append(say("up\n"), echo()...))...)
	p.start(cmd)
	p.expect("up\n")
	p.typeIn("\x03\x1a\x04 to the guest")
	p.expect("\x03\x1a\x04 to the guest")
	p.typeIn("[\x01a\x01\x01\x01z]")
	p.expect("[\x01\x01]")
	p.typeIn("\x01h")
	p.expect("\r\nCtrl-a h  this help\r\n")
	p.typeIn("q")
	require.NoError(t, cmd.Wait())
	assert.Equal(t, p.before, p.termios())
}

// TestTerminalPaste: nothing of much input at once is lost; 1 MiB of it in make soak.
func TestTerminalPaste(t *testing.T) {
	size := 4 << 10
	if os.Getenv("VOLE_SUITE") == "soak" {
		size = 1 << 20
	}
	bound := patience * time.Duration(1+size>>17)
	p := openPty(t)
	cmd := commandWithin(t, bound, machineArgs(t, append(say("up\n"), echo()...))...)
	p.start(cmd)
	p.expect("up\n")
	var paste bytes.Buffer
	for i := 0; paste.Len() < size; i++ {
		paste.WriteString(strconv.Itoa(i) + ",")
	}
	paste.WriteString("end")
	p.typeIn(paste.String())
	p.expectWithin(paste.String(), bound)
	p.typeIn("q")
	require.NoError(t, cmd.Wait())
}

// TestTerminalHungGuest: Ctrl-a x is seen behind much that a guest has not read.
func TestTerminalHungGuest(t *testing.T) {
	p := openPty(t)
	cmd := command(t, machineArgs(t, append(say("up\n"), halt...))...)
	p.start(cmd)
	p.expect("up\n")
	p.typeIn(strings.Repeat("is anybody there? ", 10000) + "\x01x")
	_ = cmd.Wait()
	assert.Equal(t, 130, cmd.ProcessState.ExitCode(), p.output())
	assert.Equal(t, p.before, p.termios())
}

// TestTerminalContinued: a SIGCONT that nothing has stopped for changes nothing.
func TestTerminalContinued(t *testing.T) {
	p := openPty(t)
	cmd := command(t, machineArgs(t, append(say("up\n"), echo()...), "-v")...)
	p.start(cmd)
	p.expect("up\n")
	require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
	p.expect("continued")
	assert.True(t, p.isRaw())
	p.typeIn("q")
	require.NoError(t, cmd.Wait())
	assert.Equal(t, p.before, p.termios())
}

// TestTerminalNotTouched: with --console or without a terminal on stdin there is nothing to make raw.
func TestTerminalNotTouched(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		stdin bool
	}{
		"--console":         {[]string{"--console", "/dev/stdout"}, true},
		"stdin a /dev/null": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := openPty(t)
			cmd := command(t, machineArgs(t, append(say("up\n"), halt...), tc.args...)...)
			cmd.Stdout, cmd.Stderr = p.slave, p.slave
			if tc.stdin {
				cmd.Stdin = p.slave
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
			require.NoError(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			p.expect("up\r\n")
			assert.Equal(t, p.before, p.termios())
			p.typeIn("\x03")
			_ = cmd.Wait()
			assert.Equal(t, 130, cmd.ProcessState.ExitCode())
		})
	}
}

// shell runs a script with job control on the terminal; $VOLE is `vole run` of that payload.
func (p *pty) shell(script string, code []byte) *exec.Cmd {
	p.t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		p.t.Skipf("needs a shell: %v", err)
	}
	vole := command(p.t, machineArgs(p.t, code)...)
	cmd := exec.Command(sh, "-c", "set -m; VOLE='"+strings.Join(vole.Args, " ")+"'; "+script)
	cmd.Env = vole.Env
	p.start(cmd)
	return cmd
}

// TestTerminalStop: the shell gets its terminal back while vole is stopped, and vole takes it again.
func TestTerminalStop(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"SIGTSTP": syscall.SIGTSTP, "SIGSTOP": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			p := openPty(t)
			cmd := p.shell(`$VOLE; echo stopped; read line; fg; echo "ended: $?"`, append(say("up\n"), echo()...))
			p.expect("up\n")
			assert.True(t, p.isRaw())
			require.NoError(t, syscall.Kill(p.foreground(), sig))
			p.expect("stopped")
			if sig == syscall.SIGTSTP {
				assert.Equal(t, p.before, p.termios())
			}
			// A shell with line editing would have done this after SIGSTOP.
			require.NoError(t, unix.IoctlSetTermios(int(p.slave.Fd()), unix.TCSETS, &p.before))
			p.typeIn("\n")
			p.eventually(p.isRaw, "raw again")
			p.typeIn("again")
			p.expect("again")
			p.typeIn("q")
			p.expect("ended: 0")
			require.NoError(t, cmd.Wait())
			assert.Equal(t, p.before, p.termios())
		})
	}
}

// TestTerminalStopOrphan: where nobody could continue vole, SIGTSTP does not stop it, and it keeps
// the terminal.
func TestTerminalStopOrphan(t *testing.T) {
	p := openPty(t)
	cmd := command(t, machineArgs(t, append(say("up\n"), echo()...))...)
	p.start(cmd)
	p.expect("up\n")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTSTP))
	p.typeIn("going on")
	p.expect("going on")
	assert.True(t, p.isRaw())
	p.typeIn("q")
	require.NoError(t, cmd.Wait())
	assert.Equal(t, p.before, p.termios())
}

// TestBackground: in the background vole runs on, prints, and leaves the terminal alone; brought
// forward it takes it.
func TestBackground(t *testing.T) {
	p := openPty(t)
	cmd := p.shell(`$VOLE & echo started; read line; fg; echo "ended: $?"`, append(say("up\n"), echo()...))
	p.expect("started")
	p.expect("up\r\n")
	assert.Equal(t, p.before, p.termios())
	p.typeIn("\n")
	p.eventually(p.isRaw, "raw in the foreground")
	p.typeIn("hello")
	p.expect("hello")
	p.typeIn("q")
	p.expect("ended: 0")
	require.NoError(t, cmd.Wait())
	assert.Equal(t, p.before, p.termios())
}
