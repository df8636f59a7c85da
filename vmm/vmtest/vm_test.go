package vmtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/vmm"
)

func TestVMCommands(t *testing.T) {
	dir := t.TempDir()
	fake := runFake(t, time.Time{}, func(ft *fakeTB) {
		v, m := startFake(ft, dir)
		require.Equal(t, "6.1-fake", v.Release())
		require.Equal(t, "a b\n", v.Output("echo", "a", "b"))

		c := v.Command("cat")
		c.Stdin = strings.NewReader("hello")
		out, err := c.Output()
		require.NoError(t, err)
		require.Equal(t, "hello", string(out))

		var exit *remote.ExitError
		require.ErrorAs(t, v.Command("code", "7").Run(), &exit)
		require.Equal(t, 7, exit.ExitCode())

		v.WriteFile("/x", []byte("data"), 0o600)
		require.Equal(t, "data", string(v.ReadFile("/x")))
		there := filepath.Join(dir, "copy")
		v.CopyOut("/x", there)
		v.CopyIn(there, "/y")
		require.Equal(t, "data", string(v.ReadFile("/y")))

		require.Equal(t, " 1", v.Output("where"), "no environment and directory of a host that is not the guest's")
		v.onHostRoot = true
		require.NotContains(t, v.Output("where"), " 1 ")
		require.True(t, strings.HasPrefix(v.Output("where"), "/"))

		m.call("end")
	})
	require.False(t, fake.failed, fake.said())
	require.Contains(t, fake.said(), `a \x1b[problem`)
	require.NotContains(t, fake.said(), "console", "a test that passes needs no console")
}

// TestVMLacks: a guest whose writes would be lost is none for a test.
func TestVMLacks(t *testing.T) {
	dir := t.TempDir()
	fake := runFake(t, time.Time{}, func(ft *fakeTB) {
		ft.lacks = "/x can't be made writable in the guest"
		startFake(ft, dir)
		t.Error("the test goes on")
	})
	require.True(t, fake.failed)
	require.Contains(t, fake.said(), "vmtest: the guest: /x can't be made writable in the guest\n")
}

// TestVMEndsTests: methods without an error end the test and say why.
func TestVMEndsTests(t *testing.T) {
	for name, tc := range map[string]struct {
		f    func(v *VM, m *fakeMachine)
		want string
	}{
		"a command's code":       {func(v *VM, _ *fakeMachine) { v.Output("code", "3") }, "code 3: exit status 3\nit went wrong"},
		"no such command":        {func(v *VM, _ *fakeMachine) { v.Output("nothing") }, "no such program"},
		"no such file":           {func(v *VM, _ *fakeMachine) { v.ReadFile("/no") }, "open /no: no such file"},
		"no such file here":      {func(v *VM, _ *fakeMachine) { v.CopyIn("/no/such/file", "/x") }, "/no/such/file"},
		"no such directory here": {func(v *VM, _ *fakeMachine) { v.CopyOut("/x", "/no/such/file") }, "/no/such/file"},
		"not on the console":     {func(v *VM, _ *fakeMachine) { v.Expect("never") }, `expect "never" on the console: it has not come within 20ms`},
		"no expression":          {func(v *VM, _ *fakeMachine) { v.Expect("(") }, "missing closing"},
		"a panic for a command":  {func(v *VM, _ *fakeMachine) { v.Output("panic") }, "panicked: a fake"},
		"a panic for Expect":     {func(v *VM, m *fakeMachine) { m.panic(); v.Expect("never") }, "panicked: a fake"},
		"an end for Expect": {func(v *VM, m *fakeMachine) {
			m.end(vmm.Exit{Reason: vmm.Poweroff}, nil)
			v.Expect("never")
		}, "the guest has ended: poweroff"},
		"nobody listens":       {func(v *VM, _ *fakeMachine) { v.Dial(7) }, "vsock port 7 of the guest"},
		"no network":           {func(v *VM, _ *fakeMachine) { v.DialTCP("guest:1") }, "the option Net"},
		"a console to type on": {func(v *VM, _ *fakeMachine) { v.Send("x") }, "the console's input is Machine.ConsoleIn"},
		"a shutdown": {func(v *VM, m *fakeMachine) {
			m.syncErr = errors.New("a full disk")
			v.Shutdown()
		}, "shut the guest down: a full disk"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := runFake(t, time.Time{}, func(ft *fakeTB) {
				v, m := startFake(ft, t.TempDir(), Patience(20*time.Millisecond))
				_, _ = io.WriteString(v.console, "[    0.0] boo\x1b[2Jted\r\n")
				tc.f(v, m)
				t.Error("it goes on")
			})
			require.True(t, fake.failed)
			require.Contains(t, fake.said(), tc.want)
			require.Contains(t, fake.said(), `    [    0.0] boo\x1b[2Jted`, "the console")
		})
	}
}

// TestVMUnexpectedEnd: a guest that fails makes the test fail, unless that knows.
func TestVMUnexpectedEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		f      func(v *VM, m *fakeMachine)
		failed bool
		calls  []string
	}{
		"none":       {func(*VM, *fakeMachine) {}, false, []string{"shutdown", "close"}},
		"a panic":    {func(_ *VM, m *fakeMachine) { m.panic() }, true, []string{"close"}},
		"waited":     {func(v *VM, m *fakeMachine) { m.panic(); v.Wait() }, false, []string{"close"}},
		"asked for":  {func(v *VM, m *fakeMachine) { m.panic(); v.Failure() }, false, []string{"close"}},
		"not asked":  {func(v *VM, m *fakeMachine) { v.Failure(); m.panic() }, true, []string{"close"}},
		"shut down":  {func(v *VM, _ *fakeMachine) { v.Shutdown() }, false, []string{"shutdown", "close"}},
		"not synced": {func(_ *VM, m *fakeMachine) { m.syncErr = errors.New("no answer") }, false, []string{"shutdown", "close"}},
	} {
		t.Run(name, func(t *testing.T) {
			var machine *fakeMachine
			fake := runFake(t, time.Time{}, func(ft *fakeTB) {
				v, m := startFake(ft, t.TempDir())
				machine = m
				tc.f(v, m)
			})
			require.Equal(t, tc.failed, fake.failed, fake.said())
			require.Equal(t, tc.calls, machine.called())
			if tc.failed {
				require.Contains(t, fake.said(), "panicked: a fake\n")
				require.Contains(t, fake.said(), "Kernel panic - not syncing")
			}
		})
	}
}

// TestVMWaitsEndWithTheTest: before the test's own time, so that the log is written.
func TestVMWaitsEndWithTheTest(t *testing.T) {
	for name, f := range map[string]func(v *VM){
		"Expect":    func(v *VM) { v.Expect("never") },
		"a command": func(v *VM) { v.Output("hang") },
		"Wait":      func(v *VM) { v.Wait() },
		"Dial":      func(v *VM) { v.Dial(1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			end := time.Now().Add(6 * time.Second)
			fake := runFake(t, end, func(ft *fakeTB) {
				v, _ := startFake(ft, t.TempDir())
				_, _ = io.WriteString(v.console, "so far\n")
				f(v)
			})
			require.Less(t, time.Now(), end)
			require.Contains(t, fake.said(), "so far")
			if name != "Dial" {
				require.Contains(t, fake.said(), errDeadline.Error())
			}
		})
	}
}

func TestVMDial(t *testing.T) {
	dir := t.TempDir()
	fake := runFake(t, time.Time{}, func(ft *fakeTB) {
		v, _ := startFake(ft, dir)
		made := make(chan net.Conn)
		go func() { made <- v.Dial(5) }()
		// It is tried until somebody listens.
		l, err := net.Listen("unix", filepath.Join(dir, "5"))
		require.NoError(t, err)
		defer l.Close()
		c := <-made
		require.NotNil(t, c)
		c.Close()
	})
	require.False(t, fake.failed, fake.said())
}

// dialer is a network whose guest listens at the second try.
type dialer struct {
	tries int
	conn  net.Conn
}

func (d *dialer) Dial(_ context.Context, network, address string) (net.Conn, error) {
	if d.tries++; d.tries < 2 || network != "tcp" || address != "guest:80" {
		return nil, errors.New("refused")
	}
	return d.conn, nil
}

func TestVMDialTCP(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	network := &dialer{conn: here}
	device := &closing{}
	fake := runFake(t, time.Time{}, func(ft *fakeTB) {
		v, _ := startFake(ft, t.TempDir(), Net(device, UserNet(), network))
		require.Same(t, here, v.DialTCP("guest:80"))
		require.Equal(t, 2, network.tries)
		require.Equal(t, "10.0.2.15/24", v.c.harness.Net.Addresses[0])
		require.Len(t, v.c.harness.Machine.Devices, 1)
	})
	require.False(t, fake.failed, fake.said())
}

func TestVMLogsConsole(t *testing.T) {
	var all bytes.Buffer
	fake := runFake(t, time.Time{}, func(ft *fakeTB) {
		v, _ := startFake(ft, t.TempDir(), LogConsole(), Console(&all), Console(failing{}))
		_, _ = io.WriteString(v.console, "one\r\ntw")
		require.Contains(t, ft.said(), "console: one\n")
		_, _ = io.WriteString(v.console, "o")
		ft.Errorf("wrong")
	})
	require.Contains(t, fake.said(), "console: two\n", "a line without an end")
	require.NotContains(t, fake.said(), "the last of", "it is there already")
	require.Equal(t, "one\r\ntwo", all.String())
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }
